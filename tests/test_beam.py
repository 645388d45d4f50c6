"""Beam search against enumeration of every target, greedy decoding, and its own rules."""

import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from naming import raises_naming, short
from tasks import assert_read_only, every_search, tiny, writing

import refseq2seq as rs
from refseq2seq.generation.beam import Hypotheses
from refseq2seq.ops import top_indices

EOS, LONGEST = 2, 4
PENALTIES = [0.0, 1.0, -0.5, 2.5, rs.gnmt_penalty(0.6)]


def divisor(penalty):
    """What a sum of n log-probabilities is divided by, as a function of n."""
    return penalty if callable(penalty) else lambda n: n**penalty


def rows_of(out, row):
    """The hypotheses of a row: (score, tokens without what follows their end)."""
    of_row = zip(out.scores[row], out.tokens[row].tolist(), out.lengths[row], strict=True)
    return [(score, tuple(tokens[:n])) for score, tokens, n in of_row]


def enumerated(model, source, penalty):
    """The best of all targets that can end, with its score by teacher forcing."""
    vocab_size = model.config.decoder.vocab_size
    best = (-np.inf, ())
    for n in range(1, LONGEST + 1):
        tokens = np.array(list(itertools.product(range(vocab_size), repeat=n)))
        open_before = (tokens[:, :-1] != EOS).all(axis=1)
        ends = tokens[:, -1] == EOS if n < LONGEST else np.ones(len(tokens), dtype=bool)
        tokens = tokens[open_before & ends]
        target = np.concatenate([np.ones((len(tokens), 1), int), tokens], axis=1)
        logits = rs.forward(model, [source] * len(tokens), target[:, :-1])
        probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probs /= probs.sum(axis=-1, keepdims=True)
        chosen = np.take_along_axis(probs, tokens[..., None], axis=-1)[..., 0]
        scores = np.log(chosen).sum(axis=1) / penalty(n)
        place = scores.argmax()
        best = max(best, (scores[place], tuple(tokens[place].tolist())))
    return best


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("seed", range(4))
def test_enough_beams_find_the_best_target_of_all(seed, penalty):
    model, source = tiny(seed), [[3, 4, 5], [6, 1]]
    out = rs.beam_search(
        model,
        source,
        beams=5**LONGEST,
        length_penalty=penalty,
        early_stopping="never",
        max_new_tokens=LONGEST,
    )
    for row, ids in enumerate(source):
        score, tokens = enumerated(model, ids, divisor(penalty))
        assert rows_of(out, row) == [(pytest.approx(score, rel=1e-12), tokens)]


@given(seed=st.integers(0, 99), n=st.integers(1, 8))
def test_one_beam_that_stops_at_once_is_greedy(seed, n):
    model, source = tiny(seed, 11), [[3, 4, 5], [6]]
    greedy = rs.generate(model, source, max_new_tokens=n)
    beam = rs.beam_search(model, source, beams=1, early_stopping=True, max_new_tokens=n)
    assert beam.lengths[:, 0].tolist() == greedy.lengths.tolist()
    for row, length in enumerate(greedy.lengths):
        assert (beam.tokens[row, 0, :length] == greedy.tokens[row, :length]).all()
        np.testing.assert_allclose(
            beam.log_probs[row, 0, :length], greedy.log_probs[row, :length], rtol=1e-12
        )


searches = {
    "beams": st.integers(1, 7),
    "length_penalty": st.sampled_from(PENALTIES),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "max_new_tokens": st.integers(1, 7),
}


def slow_search(
    model, source, *, beams, length_penalty, early_stopping, max_new_tokens, prefix, eos_ids
):
    """The rules at the top of `refseq2seq.beam`, for one source, in lists and by teacher forcing.

    Gives the pool, best first, and the least gap between scores that were compared.
    """
    divide = divisor(length_penalty)
    live, pool, gaps = [(0.0, ())], [], []
    for n in range(1, max_new_tokens + 1):
        candidates = []
        for beam, (score, tokens) in enumerate(live):
            logits = rs.forward(model, [source], [[*prefix, *tokens]])[0, -1]
            log_probs = logits - logits.max()
            log_probs = log_probs - np.log(np.exp(log_probs).sum())
            candidates += [(-score - x, beam, token) for token, x in enumerate(log_probs)]
        candidates.sort()
        n_considered = max(2, 1 + len(eos_ids)) * beams
        compared = [score for score, _, _ in candidates[: n_considered + 1]]
        gaps += [b - a for a, b in itertools.pairwise(compared)]
        going_on = []
        for place, (minus, beam, token) in enumerate(candidates[:n_considered]):
            tokens = (*live[beam][1], token)
            if token not in eos_ids and n < max_new_tokens:
                going_on.append((-minus, tokens))
            elif place < beams:
                pool.append((-minus / divide(n), tokens))
        pool = sorted(pool, key=lambda hypothesis: -hypothesis[0])[:beams]
        live = going_on[:beams]
        if not live:
            break
        if len(pool) == beams:
            if early_stopping is True:
                break
            lengths = range(n, max_new_tokens + 1) if early_stopping == "never" else [n]
            best = live[0][0] / max(map(divide, lengths))
            gaps.append(abs(best - pool[-1][0]))
            if best <= pool[-1][0]:
                break
    return pool, min(gaps)


@given(
    seed=st.integers(0, 99),
    options=st.fixed_dictionaries(searches),
    eos_ids=st.sampled_from([(), (2,), (2, 4)]),
    prefix=st.lists(st.integers(0, 6), max_size=3),
)
def test_beam_search_agrees_with_a_search_in_lists(seed, options, eos_ids, prefix):
    model, prefix = tiny(seed, 7), [1, *prefix]
    beams = options["beams"]
    sources, prefixes = [[6, 2], [3, 4, 5]], [[1, 5, 5, 5], prefix]
    out = rs.beam_search(model, sources, prefix=prefixes, eos_ids=eos_ids, n_best=beams, **options)
    pool, gap = slow_search(model, sources[1], prefix=prefix, eos_ids=eos_ids, **options)
    found = rows_of(out, 1)
    assert [tokens for _, tokens in found[: len(pool)]] == [tokens for _, tokens in pool]
    np.testing.assert_allclose([s for s, _ in found[: len(pool)]], [s for s, _ in pool], rtol=1e-11)
    assert found[len(pool) :] == [(-np.inf, ())] * (beams - len(pool))
    assert out.margin[1] == pytest.approx(gap, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("penalty", [1.0, 2.5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_each_value_of_early_stopping(early_stopping, penalty):
    others = set()
    for seed in range(12):
        model, source = tiny(seed, 7), [3, 4, 5]
        options = {
            "beams": 3,
            "length_penalty": penalty,
            "max_new_tokens": 8,
            "prefix": [1],
            "eos_ids": (2, 4),
        }
        pool, gap = slow_search(model, source, early_stopping=early_stopping, **options)
        options["prefix"] = [[1]]
        out, *rest = (
            rs.beam_search(model, [source], early_stopping=rule, n_best=3, **options)
            for rule in [early_stopping, *{True, False, "never"} - {early_stopping}]
        )
        np.testing.assert_allclose(out.scores[0], [score for score, _ in pool], rtol=1e-11)
        assert out.margin[0] == pytest.approx(gap, rel=1e-6, abs=1e-11)
        others |= {i for i, x in enumerate(rest) if not np.array_equal(x.margin, out.margin)}
    if penalty == 1.0:
        assert others == {0, 1}  # so another rule would have shown


def test_masked_tokens_of_a_source_do_not_count():
    model, mask = tiny(3, 7), np.array([[True, True, False, True], [True] * 4])
    out = rs.beam_search(model, [[3, 4, 6, 5], [3, 4, 6, 5]], source_mask=mask, n_best=4)
    alone = rs.beam_search(model, [[3, 4, 5]], n_best=4)
    np.testing.assert_allclose(out.scores[0], alone.scores[0], rtol=1e-11)
    assert not np.allclose(out.scores[0], out.scores[1])


def test_of_equal_hypotheses_the_older_go_first():
    k = 53
    old, new = (
        dataclasses.replace(
            Hypotheses.none(1, k, 1, pad_id=0),
            tokens=np.arange(k).reshape(1, k, 1) + begin,
            scores=np.zeros((1, k)),
        )
        for begin in (0, 100)
    )
    both = old.best(2 * k, new)
    assert both.tokens.ravel().tolist() == [*range(k), *range(100, 100 + k)]


@given(seed=st.integers(0, 99), options=st.fixed_dictionaries(searches))
def test_scores_are_those_of_teacher_forcing(seed, options):
    model, source = tiny(seed, 7), [[3, 4, 5], [6, 2]]
    beams = options["beams"]
    out = rs.beam_search(model, source, n_best=beams, **options)
    divide = divisor(options["length_penalty"])
    assert (np.diff(out.scores[np.isfinite(out.scores).all(axis=1)], axis=1) <= 0).all()
    for row, k in itertools.product(range(2), range(beams)):
        n = out.lengths[row, k]
        if out.scores[row, k] == -np.inf:
            assert n == 0
            continue
        tokens = out.tokens[row, k, :n]
        target = np.array([[1, *tokens]])
        logits = rs.forward(model, [source[row]], target[:, :-1])[0]
        probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        log_probs = np.log(probs[np.arange(n), tokens])
        np.testing.assert_allclose(out.log_probs[row, k, :n], log_probs, rtol=1e-11)
        assert out.scores[row, k] == pytest.approx(log_probs.sum() / divide(n), rel=1e-11)
        assert EOS not in tokens[:-1]
        assert tokens[-1] == EOS or n == options["max_new_tokens"]
        assert (out.tokens[row, k, n:] == 0).all()
    found = [tokens for score, tokens in rows_of(out, 0) if score > -np.inf]
    assert len(set(found)) == len(found)


@given(seed=st.integers(0, 99), options=st.fixed_dictionaries(searches), data=st.data())
@settings(max_examples=15)
def test_cache_and_batch_change_no_bit(seed, options, data):
    model = tiny(seed, 7).exact()
    source = [[3, 4, 5], [6, 2, 1, 5], [4]]
    prefix = [[1, *data.draw(st.lists(st.integers(0, 6), max_size=3))] for _ in source]
    options |= {"n_best": options["beams"]}
    batch = rs.beam_search(model, source, prefix=prefix, **options)
    uncached = rs.beam_search(model, source, prefix=prefix, use_cache=False, **options)
    for field in ("tokens", "lengths", "scores", "log_probs", "margin"):
        assert np.array_equal(getattr(batch, field), getattr(uncached, field))
    for row in range(3):
        alone = rs.beam_search(model, [source[row]], prefix=[prefix[row]], **options)
        n = alone.tokens.shape[2]
        assert np.array_equal(batch.tokens[row, :, :n], alone.tokens[0])
        assert np.array_equal(batch.scores[row], alone.scores[0])
        assert batch.margin[row] == alone.margin[0]


@pytest.mark.parametrize("seed", range(8))
def test_a_row_is_done_at_the_step_where_it_is_done_alone(seed):
    model, sources = tiny(seed, 7), [[3, 4, 5], [6, 2]]
    options = {"beams": 3, "eos_ids": (2, 4), "max_new_tokens": 8}
    together = [step.done.tolist() for step in rs.beam_steps(model, sources, **options)]
    for row, source in enumerate(sources):
        alone = [bool(step.done[0]) for step in rs.beam_steps(model, [source], **options)]
        assert [done[row] for done in together][: len(alone)] == alone


@pytest.mark.parametrize("eos_ids", [(), (2,), (2, 4), (0, 2, 4)])
def test_live_beams_hold_no_eos(eos_ids):
    model = tiny(5, 7)
    for step in rs.beam_steps(model, [[3, 4]], beams=3, eos_ids=eos_ids, max_new_tokens=6):
        assert step.candidates.scores.shape == (1, max(2, 1 + len(eos_ids)) * 3)
        assert not np.isin(step.live.tokens[0, :, : step.index + 1], eos_ids).any() or step.done[0]


def test_survivors_are_candidates_and_continue_their_parents():
    model, n = tiny(3, 7), 5
    previous = None
    for step in rs.beam_steps(model, [[3, 4], [5]], beams=3, eos_ids=(), max_new_tokens=n):
        c, rows = step.candidates, np.arange(2)[:, None]
        assert (np.diff(c.scores, axis=1) <= 0).all()
        assert step.live.tokens.shape == step.pool.log_probs.shape == (2, 3, step.index + 1)
        if not step.done.any():
            assert np.array_equal(step.live.scores, c.scores[rows, step.survivors])
            parents = c.beams[rows, step.survivors]
            now = step.live.tokens[:, :, step.index]
            assert np.array_equal(now, c.tokens[rows, step.survivors])
            if previous is not None:
                before = previous.live.tokens[rows, parents][:, :, : step.index]
                assert np.array_equal(step.live.tokens[:, :, : step.index], before)
        assert step.finishing.any() == (step.index == n - 1)
        previous = step
    assert previous.index == n - 1
    assert (previous.live.scores == -np.inf).all()  # nothing lives on


def test_a_forced_token_continues_every_beam_at_no_cost():
    prefix = [[1], [1, 4, 5]]
    first, second, third, *_ = rs.beam_steps(
        tiny(3, 7), [[3, 4], [5]], prefix=prefix, beams=3, eos_ids=(), max_new_tokens=5
    )
    for step, token in ((first, 4), (second, 5)):
        assert step.forced.tolist() == [False, True]
        assert (step.candidates.tokens[1] == token).all()
        assert step.candidates.log_probs[1].tolist() == [0.0] * 6
        assert step.candidates.beams[1].tolist() == [0, 1, 2, 0, 1, 2]
        assert step.candidates.scores[1].tolist() == [0.0] + [-np.inf] * 5
        assert (step.candidates.log_probs[0] < 0).all()
        assert step.live.lengths.tolist() == [[step.index + 1] * 3, [0] * 3]
        assert step.margin[1] == np.inf
    assert not third.forced.any()
    assert np.isfinite(third.margin).all()


def test_processors_see_every_beam_with_its_source():
    seen = []

    def look(scores, state):
        seen.append((state, scores.shape))
        return scores

    model, source, prefix = tiny(3, 7), np.array([[3, 4], [5, 6]]), [[1], [1, 4]]
    mask = np.array([[True, True], [False, True]])
    how = {"source_mask": mask, "prefix": prefix, "beams": 3, "eos_ids": (), "max_new_tokens": 3}
    steps = list(rs.beam_steps(model, source, processors=[look], **how))
    for (state, shape), step, before in zip(seen, steps, [None, *steps], strict=False):
        assert shape == (6, 7)
        assert state.source_index.tolist() == [0, 0, 0, 1, 1, 1]
        assert state.source.tolist() == [[3, 4]] * 3 + [[0, 6]] * 3
        assert state.source_mask.tolist() == mask.repeat(3, axis=0).tolist()
        assert state.n_new.tolist() == [step.index] * 3 + [max(0, step.index - 1)] * 3
        going = (~step.forced & (state.n_new[::3] < 3)).repeat(3)
        alive = [True, False, False] * 2 if before is None else before.live.scores.ravel() > -np.inf
        assert state.emitted.tolist() == (going & alive).tolist()
        n = step.index + 1
        assert state.tokens.shape == (6, n)
        if before is not None:
            chosen = before.live.scores[0] > -np.inf
            continued = before.live.tokens[0, chosen, : n - 1]
            assert np.array_equal(state.tokens[:3, 1:][chosen], continued)
            assert (state.tokens[3:, 1] == 4).all()


def test_defaults_are_four_beams_that_stop_by_their_own_length():
    stated = {"beams": 4, "length_penalty": 1.0, "early_stopping": False, "n_best": 1}
    others = set()
    for seed in range(20):
        model, source = tiny(seed, 7), [[3, 4, 5]]
        out = rs.beam_search(model, source)
        same = rs.beam_search(model, source, **stated)
        assert out.tokens.tolist() == same.tokens.tolist()
        assert out.tokens.shape[2] == out.lengths.max()
        assert next(rs.beam_steps(model, source)).live.scores.shape == (1, 4)
        for name, value in (("beams", 5), ("length_penalty", 0.9), ("early_stopping", True)):
            other = rs.beam_search(model, source, **stated | {name: value})
            if not np.array_equal(out.scores, other.scores):
                others.add(name)
    assert others == {"beams", "length_penalty", "early_stopping"}  # so each could have shown


few_scores = st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.0]) | st.floats(-9, 9)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 30))


@given(scores=hnp.arrays(np.float64, shapes, elements=few_scores), data=st.data())
def test_top_indices_are_those_of_a_stable_sort(scores, data):
    n = data.draw(st.integers(1, scores.shape[1]))
    for row, places in zip(scores.tolist(), top_indices(scores, n).tolist(), strict=True):
        assert places == sorted(range(len(row)), key=lambda i: (-row[i], i))[:n]


def test_top_indices_of_a_large_vocabulary():
    scores = np.random.default_rng(0).permuted(np.tile(np.arange(1009) // 3, (2, 1)), axis=1)
    for row, places in zip(scores.tolist(), top_indices(scores, 503).tolist(), strict=True):
        assert places == sorted(range(1009), key=lambda i: (-row[i], i))[:503]


def test_gnmt_penalty_by_hand():
    assert [rs.gnmt_penalty(2.0)(n) for n in (1, 7)] == [1.0, 4.0]
    assert rs.gnmt_penalty(0.0)(7) == 1.0


POSITIVE = "positive finite numbers"
BAD_REQUESTS = [
    (ValueError, {"beams": 0}, ["beams", "got 0"]),
    *((TypeError, {"beams": bad}, ["beams", type(bad).__name__]) for bad in (2.0, True, "2", None)),
    (ValueError, {"beams": 2, "n_best": 3}, ["n_best", "beams = 2", "got 3"]),
    (ValueError, {"beams": 2, "n_best": 0}, ["n_best", "got 0"]),
    *((TypeError, {"n_best": bad}, ["n_best", type(bad).__name__]) for bad in (2.0, True, "2")),
    (ValueError, {"early_stopping": "soon"}, ["early_stopping", "'soon'"]),
    (ValueError, {"early_stopping": 1}, ["early_stopping", "got 1"]),
    (ValueError, {"early_stopping": np.True_}, ["early_stopping", "np.True_"]),
    (ValueError, {"early_stopping": np.array([True, False])}, ["early_stopping"]),
    (TypeError, {"length_penalty": "1"}, ["length_penalty", "'1'"]),
    (TypeError, {"length_penalty": None}, ["length_penalty", "None"]),
    (ValueError, {"length_penalty": np.nan}, ["length_penalty", "nan"]),
    (ValueError, {"length_penalty": math.inf}, ["length_penalty", "inf"]),
    (ValueError, {"length_penalty": 1e3}, ["length_penalty", "1000.0", "out of range"]),
    (ValueError, {"length_penalty": lambda n: "x"}, ["length_penalty", POSITIVE]),
    (ValueError, {"length_penalty": lambda n: -1.0}, ["length_penalty", POSITIVE]),
    (ValueError, {"length_penalty": lambda n: 0.0}, ["length_penalty", POSITIVE]),
    (ValueError, {"max_new_tokens": 99}, ["max_new_tokens = 99", "table has 11"]),
    (TypeError, {"stop": 3}, ["stop", "got 3"]),
]


@pytest.mark.parametrize(("kind", "options", "names"), BAD_REQUESTS, ids=short)
def test_a_bad_request_raises_before_the_source_is_encoded(kind, options, names):
    encoded = rs.Trace()
    search = rs.beam_search if "n_best" in options else rs.beam_steps
    with raises_naming(kind, *names):
        search(tiny(0), [[3]], **{"max_new_tokens": 6, "tap": encoded} | options)
    assert not encoded


def test_a_processor_that_draws_uniforms_raises():
    with raises_naming(ValueError, "beam search", "uniform"):
        rs.beam_search(tiny(0), [[3]], processors=[lambda scores, state: scores + state.uniforms()])


def test_stop_that_answers_for_other_rows_raises():
    with raises_naming(ValueError, "stop", "(1,)", "got (3,)"):
        rs.beam_search(tiny(0), [[3]], stop=lambda step: [True] * 3)


@pytest.mark.parametrize("search", [rs.beam_steps, rs.decode_steps])
def test_amateurs_that_do_not_fit_raise_before_the_loop(search):
    with raises_naming(TypeError, "amateurs", "rs.amateur(model)"):
        search(tiny(0), [[3]], max_new_tokens=2, amateurs=[tiny(1)])
    with raises_naming(ValueError, "amateur", "vocabulary of 5 tokens", "got 7"):
        search(tiny(0), [[3]], max_new_tokens=2, amateurs=[rs.amateur(tiny(1, 7))])


def test_a_row_that_is_done_does_not_change():
    ends, options = set(), {"beams": 3, "early_stopping": True, "eos_ids": (2, 4, 5)}
    for seed in range(6):
        model, source = tiny(seed, 7).exact(), [[3, 4, 5], [6, 2]]
        search = partial(rs.beam_steps, model, source, max_new_tokens=6)
        before = None
        for step, watched in zip(search(**options), search(**options, tap=rs.Trace()), strict=True):
            for ours, theirs in ((step.live, watched.live), (step.candidates, watched.candidates)):
                for name in ("tokens", "log_probs", "scores"):
                    assert np.array_equal(getattr(ours, name), getattr(theirs, name))
            if before is not None:
                for row in np.flatnonzero(before.done):
                    assert np.array_equal(step.live.scores[row], before.live.scores[row])
                    assert np.array_equal(step.live.tokens[row, :, :-1], before.live.tokens[row])
                    assert (step.live.tokens[row, :, -1] == 0).all()
                    assert (step.candidates.log_probs[row] == 0).all()
                    ends.add((seed, row))
            before = step
    assert len(ends) > 3


def test_an_empty_beam_and_the_entropy_of_its_scores_raise_no_warning():
    after = {(1,): [5], (1, 5): [6, 4], (1, 5, 6): [2], (1, 5, 4): [2]}  # no third beam lives
    allowed = rs.allowed_tokens(lambda row, tokens: after.get(tuple(tokens.tolist()), []))
    how = {"beams": 3, "n_best": 2, "max_new_tokens": 4}
    out = rs.beam_search(tiny(0, 7), [[3]], processors=[allowed, rs.typical(0.9)], **how)
    assert sorted(out.tokens[0].tolist()) == [[5, 4, 2], [5, 6, 2]]


def spoilt(name, value, *, begin=0, end=None, token=slice(None)):
    """A tap that puts a value into the logits of beams ``begin`` to ``end``."""

    def spoil(passing, x):
        if passing == name:
            x = x.copy()
            x[begin:end, -1, token] = value
        return x

    return rs.FunctionTap(spoil)


def test_logits_that_are_not_finite_raise_with_their_row():
    model = tiny(0)
    with raises_naming(rs.NonFiniteLogitsError, "row 1 in step 0"):
        rs.beam_search(model, [[3], [3]], tap=spoilt("step.0.logits", np.nan, begin=4))
    model.params.unembedding[0, 3] = np.nan
    with raises_naming(rs.NonFiniteLogitsError, "row 0 in step 0"):
        rs.beam_search(model, [[3]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("beam", [0, 1, 2])
def test_one_live_beam_that_is_not_finite_raises(beam, value):
    """It must not be dropped as if it were improbable."""
    tap = spoilt("step.1.logits", value, begin=beam, end=beam + 1, token=3)
    with raises_naming(rs.NonFiniteLogitsError, "row 0 in step 1"):
        rs.beam_search(tiny(0), [[3]], beams=3, eos_ids=(), tap=tap)


def test_an_empty_beam_may_have_any_logits():
    """After the first step of one token, two of three beams are empty places."""
    options = {"beams": 3, "max_new_tokens": 4}
    seen = rs.beam_search(tiny(0), [[3]], tap=spoilt("step.0.logits", np.nan, begin=1), **options)
    np.testing.assert_array_equal(seen.tokens, rs.beam_search(tiny(0), [[3]], **options).tokens)


# Processors, stop, what a search hands out --------------------------------------------------------


def test_logits_processors_act_before_the_softmax():
    """By hand: half of the mass is banned, and the rest is a distribution again."""
    logits = np.log(np.array([0.1, 0.4, 0.25, 0.25, 0.0 + 1e-300]))
    model = tiny(0, 5)
    tap = rs.FunctionTap(lambda n, x: x * 0 + logits if n.endswith("logits") else x)
    ban = [rs.suppress([1, 0])]
    how = {"beams": 2, "n_best": 2, "max_new_tokens": 1, "eos_ids": (), "tap": tap}
    after = rs.beam_search(model, [[3]], processors=ban, **how)
    before = rs.beam_search(model, [[3]], logits_processors=ban, **how)
    again = rs.beam_search(model, [[3]], processors=[*ban, rs.renormalize_logits()], **how)
    np.testing.assert_allclose(after.scores[0], np.log([0.25, 0.25]), rtol=1e-12)
    np.testing.assert_allclose(before.scores[0], np.log([0.5, 0.5]), rtol=1e-12)
    np.testing.assert_allclose(again.scores[0], np.log([0.5, 0.5]), rtol=1e-12)


TRIE = {(): {3, 4}, (3,): {5}, (4,): {6}, (3, 5): {EOS}, (4, 6): {EOS}}


@given(seed=st.integers(0, 99), beams=st.integers(1, 6))
@settings(max_examples=30)
def test_processors_do_not_see_empty_beams(seed, beams):
    """Two paths, more beams: a dictionary without the others raises for none of them."""

    def follow(row, tokens):
        return TRIE[tuple(tokens[1:].tolist())]

    def bare(scores, state):  # looks at every row, as a careless processor does
        kept = np.zeros(scores.shape, dtype=bool)
        for row, tokens in enumerate(state.tokens):
            kept[row, list(TRIE[tuple(tokens[1:].tolist())])] = True
        return np.where(kept, scores, -np.inf)

    def alive(row, tokens):
        return TRIE.get(tuple(tokens[1:].tolist()), {0})

    model, how = tiny(seed, 7), {"beams": beams, "max_new_tokens": 3, "n_best": min(beams, 2)}
    out = rs.beam_search(model, [[3, 4]], processors=[rs.allowed_tokens(follow)], **how)
    assert {tuple(t) for t in out.tokens[0].tolist()} <= {(3, 5, EOS), (4, 6, EOS)}
    other = rs.beam_search(model, [[3, 4]], processors=[bare], **how)
    assert np.array_equal(other.tokens, out.tokens)
    assert np.array_equal(other.scores, out.scores)
    reference = rs.beam_search(model, [[3, 4]], processors=[rs.allowed_tokens(alive)], **how)
    assert np.array_equal(reference.scores, out.scores)


@pytest.mark.parametrize("argument", ["processors", "logits_processors"])
@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (rs.top_k(5), "{}=[rs.top_k(5)]"),
        ([rs.sample(rs.top_k(5))], "{}=[rs.top_k(5)]"),
        ([rs.greedy()], "{}=[...]"),
        ([rs.top_k], "{}=[rs.top_k(...)]"),
        ([None], "got None: write {}=[rs.top_k(5)]"),
        ([[rs.top_k(5)]], "got [top_k(5)]: write {}="),
        (5, "{}="),
    ],
)
def test_processors_of_another_type_raise_before_the_loop(argument, given, cure):
    encoded = rs.Trace()
    with raises_naming(TypeError, cure.format(argument)):
        rs.beam_steps(tiny(0), [[3]], tap=encoded, **{argument: given})
    assert not encoded


def in_row(process, row, step):
    """The processor in one row of the batch and in one step only."""

    def in_one_row(scores, state):
        here = (state.source_index == row) & (state.n_new == step)
        return np.where(here[:, None], process(scores, state), scores)

    return in_one_row


@pytest.mark.parametrize("value", [np.nan, np.inf])
@every_search
def test_a_processor_that_gives_nan_or_infinity_is_named(search, value):
    def spoil(scores, state):
        return np.where(np.arange(scores.shape[1]) == 3, value, scores)

    processors = [rs.suppress([2]), in_row(spoil, 1, step=1), rs.temperature(0.5)]
    with raises_naming(rs.NoTokenLeftError, "in_one_row", "row 1 in step 1", f"score {value}"):
        search(tiny(0, 7), [[3], [4]], processors, max_new_tokens=3)


@every_search
def test_no_token_left_names_the_processor_or_rule_the_row_and_the_step(search):
    model, how = tiny(0, 7), {"max_new_tokens": 3}
    ends, others = rs.suppress([2]), rs.suppress([0, 1, 3, 4, 5, 6])
    config = dataclasses.replace(model.config, suppressed_ids=(0, 1, 2, 3, 4, 5, 6))
    none = dataclasses.replace(model, config=config)
    every_end = {"eos_ids": range(7), "min_new_tokens": 1}
    for of, processors, options, names in (
        (model, [others, ends], {}, ["row 0 in step 0", "processor suppress([2])"]),
        (model, [ends, others], {}, ["row 0 in step 0", "processor suppress([0, 1"]),
        (model, [], every_end, ["row 0 in step 0", "rule min_new_tokens"]),
        (model, [ends, in_row(others, 1, step=1)], {}, ["row 1 in step 1", "in_one_row"]),
        (none, [ends], {}, ["row 0 in step 0", "rule suppressed_ids of the model's config"]),
    ):
        with raises_naming(rs.NoTokenLeftError, *names):
            search(of, [[3], [4]], processors, **how, **options)
    # what a forced token gives back is not lost
    forced = dataclasses.replace(
        model, config=dataclasses.replace(config, suppressed_ids=(), forced_bos_id=3)
    )
    search(forced, [[3], [4]], [in_row(rs.suppress(range(7)), 1, step=0), ends], **how)


@given(seed=st.integers(0, 60), data=st.data())
@settings(max_examples=30)
def test_stop_ends_rows_with_their_live_beams(seed, data):
    """A row that is stopped after n steps, and was not done, is the search for n new tokens."""
    model, source, beams = tiny(seed, 7), [[3, 4], [5], [6, 2]], data.draw(st.integers(1, 4))
    ends = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    how = {"beams": beams, "early_stopping": data.draw(st.sampled_from([True, False]))}
    n_best = data.draw(st.integers(1, beams))
    seen, done = [], np.zeros(3, bool)

    def stop(step):
        seen.append(step.index)
        now = np.array(ends) == step.index + 1
        done[now] = step.done[now]
        return np.array(ends) <= step.index + 1

    out = rs.beam_search(model, source, max_new_tokens=5, stop=stop, n_best=n_best, **how)
    assert seen == list(range(max(seen) + 1))
    assert max(seen) < max(ends)
    for row, n in enumerate(ends):
        if done[row]:
            continue
        alone = rs.beam_search(model, [source[row]], max_new_tokens=n, n_best=n_best, **how)
        k = alone.tokens.shape[2]
        np.testing.assert_allclose(out.scores[row], alone.scores[0], rtol=1e-11)
        if alone.margin[0] > 1e-9:
            assert np.array_equal(out.tokens[row, :, :k], alone.tokens[0])
    whole = rs.beam_search(model, source, max_new_tokens=5, stop=lambda step: True, **how)
    assert whole.tokens.shape[2] == 1


def test_a_step_after_which_rows_are_stopped_shows_them_as_done():
    steps = rs.beam_steps(tiny(0, 7), [[3, 4], [5]], stop=lambda step: [True, False])
    first = next(steps)
    assert first.done[0]
    assert not first.done[1]


def test_state_and_live_beams_are_read_only():
    model, source = tiny(1, 7), [[3, 4], [5]]
    plain = rs.beam_search(model, source, max_new_tokens=4)
    for step in rs.beam_steps(model, source, max_new_tokens=4, processors=[writing]):
        kept = step.live.tokens, step.live.scores, step.pool.tokens, step.pool.scores
        for x in (step.done, *kept):
            assert_read_only(x)
        for x in (step.survivors, step.finishing, step.margin, *step.candidates):
            x[...] = 0  # these are the caller's
    assert np.array_equal(step.pool.scores[:, 0], plain.scores[:, 0])
