"""Beam search against enumeration of every target, greedy decoding, and its own rules."""

import dataclasses
import itertools
import math
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tasks import tiny

import refseq2seq as rs
from refseq2seq.generation.beam import Hypotheses
from refseq2seq.ops import top_indices

EOS, LONGEST = 2, 4
NOT_FINITE = "^the model's logits of row 0 in step \\d are NaN or infinite: they define no"
NOTHING_LEFT = (
    r"^no token is left for row 0 in step 0: the processor suppress\(.*\) removes the last$"
)


def enumerated(model, source, penalty, prefix=(1,)):
    """Every target that can end, with its score by teacher forcing: the best one."""
    vocab_size = model.config.decoder.vocab_size
    best = (-np.inf, ())
    for n in range(1, LONGEST + 1):
        tokens = np.array(list(itertools.product(range(vocab_size), repeat=n)))
        open_before = (tokens[:, :-1] != EOS).all(axis=1)
        ends = tokens[:, -1] == EOS if n < LONGEST else np.ones(len(tokens), dtype=bool)
        tokens = tokens[open_before & ends]
        target = np.concatenate([np.tile(prefix, (len(tokens), 1)), tokens], axis=1)
        logits = rs.forward(model, [source] * len(tokens), target[:, :-1])[:, len(prefix) - 1 :]
        probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probs /= probs.sum(axis=-1, keepdims=True)
        chosen = np.take_along_axis(probs, tokens[..., None], axis=-1)[..., 0]
        scores = np.log(chosen).sum(axis=1) / penalty(n)
        place = scores.argmax()
        best = max(best, (scores[place], tuple(tokens[place].tolist())))
    return best


PENALTIES = [0.0, 1.0, -0.5, 2.5, rs.gnmt_penalty(0.6)]


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
    divide = penalty if callable(penalty) else lambda n: n**penalty
    for row, ids in enumerate(source):
        score, tokens = enumerated(model, ids, divide)
        assert tuple(out.tokens[row, 0, : out.lengths[row, 0]].tolist()) == tokens
        assert out.scores[row, 0] == pytest.approx(score, rel=1e-12)


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
    divide = length_penalty if callable(length_penalty) else lambda n: n**length_penalty
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
def test_a_search_in_lists_finds_the_same(seed, options, eos_ids, prefix):
    model, prefix = tiny(seed, 7), [1, *prefix]
    beams = options["beams"]
    sources, prefixes = [[6, 2], [3, 4, 5]], [[1, 5, 5, 5], prefix]  # the first: some company
    out = rs.beam_search(model, sources, prefix=prefixes, eos_ids=eos_ids, n_best=beams, **options)
    pool, gap = slow_search(model, sources[1], prefix=prefix, eos_ids=eos_ids, **options)
    found = [
        (score, tuple(tokens[:n]))
        for score, tokens, n in zip(
            out.scores[1], out.tokens[1].tolist(), out.lengths[1], strict=True
        )
    ]
    assert [tokens for _, tokens in found[: len(pool)]] == [tokens for _, tokens in pool]
    np.testing.assert_allclose([s for s, _ in found[: len(pool)]], [s for s, _ in pool], rtol=1e-11)
    assert found[len(pool) :] == [(-np.inf, ())] * (beams - len(pool))
    assert out.margin[1] == pytest.approx(gap, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("penalty", [1.0, 2.5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_each_rule_of_stopping(early_stopping, penalty):
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


def test_masked_tokens_of_a_source_are_not_there():
    model, mask = tiny(3, 7), np.array([[True, True, False, True], [True] * 4])
    out = rs.beam_search(model, [[3, 4, 6, 5], [3, 4, 6, 5]], source_mask=mask, n_best=4)
    alone = rs.beam_search(model, [[3, 4, 5]], n_best=4)
    np.testing.assert_allclose(out.scores[0], alone.scores[0], rtol=1e-11)
    assert not np.allclose(out.scores[0], out.scores[1])


def test_of_equal_hypotheses_those_that_were_there_go_before():
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
    penalty = options["length_penalty"]
    divide = penalty if callable(penalty) else lambda n: n**penalty
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
    found = [
        tuple(t[:n])
        for t, n, s in zip(out.tokens[0].tolist(), out.lengths[0], out.scores[0], strict=True)
        if s > -np.inf
    ]
    assert len(set(found)) == len(found)


@given(seed=st.integers(0, 99), options=st.fixed_dictionaries(searches), data=st.data())
@settings(max_examples=15)
def test_bit_for_bit_with_or_without_cache_alone_or_in_a_batch(seed, options, data):
    model = tiny(seed, 7).exact()
    source = [[3, 4, 5], [6, 2, 1, 5], [4]]
    prefix = [[1, *data.draw(st.lists(st.integers(0, 6), max_size=3))] for _ in source]
    options |= {"n_best": options["beams"]}
    batch = rs.beam_search(model, source, prefix=prefix, **options)
    uncached = rs.beam_search(model, source, prefix=prefix, use_cache=False, **options)
    for field in ("tokens", "lengths", "scores", "log_probs", "margin"):
        assert np.array_equal(getattr(batch, field), getattr(uncached, field))
    for row in range(3):
        alone = rs.beam_search(
            model, source[row : row + 1], prefix=prefix[row : row + 1], **options
        )
        n = alone.tokens.shape[2]
        assert np.array_equal(batch.tokens[row, :, :n], alone.tokens[0])
        assert np.array_equal(batch.scores[row], alone.scores[0])
        assert batch.margin[row] == alone.margin[0]


@pytest.mark.parametrize("seed", range(8))
def test_a_row_is_done_when_it_would_be_alone(seed):
    model, sources = tiny(seed, 7), [[3, 4, 5], [6, 2]]
    options = {"beams": 3, "eos_ids": (2, 4), "max_new_tokens": 8}
    together = [step.done.tolist() for step in rs.beam_steps(model, sources, **options)]
    for row, source in enumerate(sources):
        alone = [bool(step.done[0]) for step in rs.beam_steps(model, [source], **options)]
        assert [done[row] for done in together][: len(alone)] == alone


@pytest.mark.parametrize("eos_ids", [(), (2,), (2, 4), (0, 2, 4)])
def test_several_ends_leave_live_beams(eos_ids):
    model = tiny(5, 7)
    for step in rs.beam_steps(model, [[3, 4]], beams=3, eos_ids=eos_ids, max_new_tokens=6):
        assert step.candidates.scores.shape == (1, max(2, 1 + len(eos_ids)) * 3)
        assert not np.isin(step.live.tokens[0, :, : step.index + 1], eos_ids).any() or step.done[0]


def test_steps_show_the_tree():
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


def test_a_row_in_its_prefix_continues_every_beam_at_no_cost():
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

    model, source, prefix = tiny(3, 7), [[3, 4], [5, 6]], [[1], [1, 4]]
    steps = list(
        rs.beam_steps(
            model, source, prefix=prefix, beams=3, eos_ids=(), max_new_tokens=3, processors=[look]
        )
    )
    for (state, shape), step, before in zip(seen, steps, [None, *steps], strict=False):
        assert shape == (6, 7)
        assert state.source_index.tolist() == [0, 0, 0, 1, 1, 1]
        assert state.source.tolist() == [[3, 4]] * 3 + [[5, 6]] * 3
        assert state.source_mask.all()
        assert state.n_new.tolist() == [step.index] * 3 + [max(0, step.index - 1)] * 3
        going = (~step.forced & (state.n_new[::3] < 3)).repeat(3)
        alive = [True, False, False] * 2 if before is None else before.live.scores.ravel() > -np.inf
        assert state.emitted.tolist() == (going & alive).tolist()
        n = step.index + 1
        assert state.tokens.shape == (6, n)
        if before is not None:
            chosen = before.live.scores[0] > -np.inf
            assert np.array_equal(
                state.tokens[:3, 1:][chosen], before.live.tokens[0, chosen, : n - 1]
            )
            assert (state.tokens[3:, 1] == 4).all()


def test_what_is_not_said_is_four_beams_that_stop_by_their_own_length():
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


def test_more_beams_may_find_a_worse_target():
    """No property: what a wider beam keeps can crowd out the history that ends best."""
    model = tiny(100, 7)
    sharper = dataclasses.replace(model.params, unembedding=3 * model.params.unembedding)
    model = dataclasses.replace(model, params=sharper)
    one, two, three = (
        rs.beam_search(
            model, [[3, 4]], beams=b, length_penalty=0.0, eos_ids=(), max_new_tokens=8
        ).scores[0, 0]
        for b in (1, 2, 3)
    )
    assert two < one - 0.1 < three - 0.1


def test_processors_act_on_log_probabilities():
    model = tiny(1, 7)
    plain = rs.beam_search(model, [[3, 4]], beams=3, max_new_tokens=5, n_best=3)
    used = set(plain.tokens[0, 0].tolist()) - {EOS}
    banned = rs.suppress(sorted(used))
    out = rs.beam_search(model, [[3, 4]], beams=3, max_new_tokens=5, processors=[banned])
    assert not used & set(out.tokens[0, 0, : out.lengths[0, 0]].tolist())
    everything = [rs.suppress(range(7))]
    with pytest.raises(rs.NonFiniteLogitsError, match=NOTHING_LEFT):
        rs.beam_search(model, [[3, 4]], processors=everything)


@given(
    scores=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(1, 30)),
        elements=st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.0]) | st.floats(-9, 9),
    ),
    data=st.data(),
)
def test_best_places_are_those_of_a_stable_sort(scores, data):
    n = data.draw(st.integers(1, scores.shape[1]))
    for row, places in zip(scores.tolist(), top_indices(scores, n).tolist(), strict=True):
        assert places == sorted(range(len(row)), key=lambda i: (-row[i], i))[:n]


def test_the_best_places_of_many():
    scores = np.random.default_rng(0).permuted(np.tile(np.arange(1009) // 3, (2, 1)), axis=1)
    for row, places in zip(scores.tolist(), top_indices(scores, 503).tolist(), strict=True):
        assert places == sorted(range(1009), key=lambda i: (-row[i], i))[:503]


def test_the_penalty_of_gnmt_by_hand():
    assert [rs.gnmt_penalty(2.0)(n) for n in (1, 7)] == [1.0, 4.0]
    assert rs.gnmt_penalty(0.0)(7) == 1.0


class Nothing:
    """A penalty by which nothing can be divided."""

    def __call__(self, length):
        return 0.0

    def __repr__(self):
        return "nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"beams": 2, "n_best": 3}, "n_best must be at most beams = 2, got 3"),
        ({"beams": 2, "n_best": 0}, "n_best must be at least 1, got 0"),
        ({"early_stopping": "soon"}, "early_stopping must be True, False or 'never', got 'soon'"),
        ({"early_stopping": 1}, "early_stopping must be True, False or 'never', got 1"),
        (
            {"early_stopping": np.True_},
            "early_stopping must be True, False or 'never', got np.True_",
        ),
        (
            {"length_penalty": math.inf},
            "length_penalty must return positive finite numbers, got inf",
        ),
        (
            {"length_penalty": Nothing()},
            "length_penalty must return positive finite numbers, got nothing",
        ),
        (
            {"max_new_tokens": 99},
            "a prefix of 1 tokens and max_new_tokens = 99 need 99 positions; "
            "the model's table has 11",
        ),
        (
            {"processors": [lambda scores, state: scores + state.uniforms()]},
            "beam search and score draw no uniform numbers: use other processors",
        ),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rs.beam_search(tiny(0), [[3]], **options)


@pytest.mark.parametrize("bad", [2.0, True, "2", None])
@pytest.mark.parametrize("name", ["beams", "n_best"])
def test_beams_that_are_no_int_are_refused_at_once(name, bad):
    with pytest.raises(TypeError, match=f"^{name} must be an int, got {type(bad).__name__}$"):
        rs.beam_search(tiny(0), [[3]], **{name: bad}, tap=rs.FunctionTap(lambda *_: 1 / 0))


@pytest.mark.parametrize("search", [rs.beam_steps, rs.decode_steps])
def test_what_is_no_amateur_is_refused_at_once(search):
    with pytest.raises(TypeError, match=r"^amateurs must be made by rs.amateur\(model\), got "):
        search(tiny(0), [[3]], max_new_tokens=2, amateurs=[tiny(1)])
    with pytest.raises(ValueError, match=r"^an amateur must have the expert's target vocabulary"):
        search(tiny(0), [[3]], max_new_tokens=2, amateurs=[rs.amateur(tiny(1, 7))])


def test_a_row_that_is_done_stays_as_it_is():
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


def test_a_dead_beam_and_a_filter_that_asks_for_its_entropy_make_no_warning():
    after = {(1,): [5], (1, 5): [6, 4], (1, 5, 6): [2], (1, 5, 4): [2]}  # no third beam lives
    allowed = rs.allowed_tokens(lambda row, tokens: after.get(tuple(tokens.tolist()), []))
    out = rs.beam_search(
        tiny(0, 7),
        [[3]],
        beams=3,
        n_best=2,
        max_new_tokens=4,
        processors=[allowed, rs.typical(0.9)],
    )
    assert sorted(out.tokens[0].tolist()) == [[5, 4, 2], [5, 6, 2]]


def test_logits_that_are_not_finite_are_reported():
    model = tiny(0)

    def fault(name, x):
        return np.where(np.arange(len(x))[:, None, None] >= 4, np.nan, x) if "logits" in name else x

    with pytest.raises(rs.NonFiniteLogitsError, match=NOT_FINITE.replace("row 0", "row 1")):
        rs.beam_search(model, [[3], [3]], tap=rs.FunctionTap(fault))
    model.params.unembedding[0, 3] = np.nan
    with pytest.raises(rs.NonFiniteLogitsError, match=NOT_FINITE):
        rs.beam_search(model, [[3]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("beam", [0, 1, 2])
def test_a_single_live_beam_that_is_not_finite_is_reported_too(beam, value):
    """It must not be dropped as if it were improbable."""

    def fault(name, x):
        if name == "step.1.logits":
            x = x.copy()
            x[beam, -1, 3] = value
        return x

    with pytest.raises(rs.NonFiniteLogitsError, match=NOT_FINITE):
        rs.beam_search(tiny(0), [[3]], beams=3, eos_ids=(), tap=rs.FunctionTap(fault))


def test_a_beam_that_holds_nothing_may_have_any_logits():
    """After the first step of one token, two of three beams are empty places."""

    def fault(name, x):
        empty = np.arange(len(x))[:, None, None] > 0
        return np.where(empty, np.nan, x) if name == "step.0.logits" else x

    options = {"beams": 3, "max_new_tokens": 4}
    seen = rs.beam_search(tiny(0), [[3]], tap=rs.FunctionTap(fault), **options)
    np.testing.assert_array_equal(seen.tokens, rs.beam_search(tiny(0), [[3]], **options).tokens)


# Processors, stop, what a search hands out --------------------------------------------------------


def test_logits_processors_leave_a_distribution():
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
def test_a_trie_is_never_asked_about_a_beam_that_cannot_be_chosen(seed, beams):
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


@pytest.mark.parametrize("kind", ["processors", "logits_processors"])
@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (rs.top_k(5), r"must be a sequence: write {}=\[rs.top_k\(5\)\]"),
        ([rs.sample(rs.top_k(5))], r"picks a token: write {}=\[rs.top_k\(5\)\]"),
        ([rs.greedy()], r"picks a token: write {}=\[\.\.\.\]"),
        (
            [rs.top_k],
            r"rs.top_k makes a processor when it is called: write {}=\[rs.top_k\(\.\.\.\)\]",
        ),
        ([None], r"got None: write {}=\[rs.top_k\(5\)\]"),
        ([[rs.top_k(5)]], r"got \[top_k\(5\)\]: write {}="),
        (5, "must be a sequence: write"),
    ],
)
def test_processors_are_checked_before_the_loop(kind, given, cure):
    encoded = rs.Trace()
    with pytest.raises(TypeError, match=cure.format(kind)):
        rs.beam_steps(tiny(0), [[3]], tap=encoded, **{kind: given})
    assert not encoded


def in_row(process, row, step):
    """The processor in one row of the batch and in one step only."""

    def in_one_row(scores, state):
        here = (state.source_index == row) & (state.n_new == step)
        return np.where(here[:, None], process(scores, state), scores)

    return in_one_row


def greedily(model, source, processors, **how):
    return rs.generate(model, source, choose=rs.greedy(*processors), **how)


def at_random(model, source, processors, **how):
    return rs.generate(model, source, choose=rs.sample(*processors), **how)


def by_beams(model, source, processors, **how):
    return rs.beam_search(model, source, processors=processors, **how)


every_search = pytest.mark.parametrize("search", [greedily, at_random, by_beams])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@every_search
def test_a_processor_that_gives_no_number_is_named(search, value):
    def spoil(scores, state):
        return np.where(np.arange(scores.shape[1]) == 3, value, scores)

    spoilt = [rs.suppress([2]), in_row(spoil, 1, step=1), rs.temperature(0.5)]
    message = f"^the processor in_one_row gives row 1 in step 1 the score {value}: scores must be"
    with pytest.raises(rs.NoTokenLeftError, match=message):
        search(tiny(0, 7), [[3], [4]], spoilt, max_new_tokens=3)


@every_search
def test_no_token_left_names_the_processor_or_rule_the_row_and_the_step(search):
    model, source, how = tiny(0, 7), [[3], [4]], {"max_new_tokens": 3}
    ends, others = rs.suppress([2]), rs.suppress([0, 1, 3, 4, 5, 6])
    with pytest.raises(
        rs.NoTokenLeftError, match=r"row 0 in step 0: the processor suppress\(\[2\]\) rem"
    ):
        search(model, source, [others, ends], **how)
    with pytest.raises(
        rs.NoTokenLeftError, match=r"row 0 in step 0: the processor suppress\(\[0, 1"
    ):
        search(model, source, [ends, others], **how)
    with pytest.raises(
        rs.NoTokenLeftError, match=r"row 0 in step 0: the rule min_new_tokens removes"
    ):
        search(model, source, [], eos_ids=range(7), min_new_tokens=1, **how)
    with pytest.raises(
        rs.NoTokenLeftError, match="row 1 in step 1: the processor in_one_row removes"
    ):
        search(model, source, [ends, in_row(others, 1, step=1)], **how)
    config = dataclasses.replace(model.config, suppressed_ids=(0, 1, 2, 3, 4, 5, 6))
    none = dataclasses.replace(model, config=config)
    with pytest.raises(
        rs.NoTokenLeftError, match="the rule suppressed_ids of the model's config rem"
    ):
        search(none, source, [ends], **how)
    # what a forced token gives back is not lost
    forced = dataclasses.replace(
        model, config=dataclasses.replace(config, suppressed_ids=(), forced_bos_id=3)
    )
    search(forced, source, [in_row(rs.suppress(range(7)), 1, step=0), ends], **how)


@given(seed=st.integers(0, 60), data=st.data())
@settings(max_examples=30)
def test_stop_ends_rows_with_what_they_have(seed, data):
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


def test_a_stop_that_is_no_function_or_gives_no_boolean_is_refused():
    with pytest.raises(TypeError, match="stop must be a function of a step, got 3"):
        rs.beam_steps(tiny(0), [[3]], stop=3)
    with pytest.raises(
        ValueError, match=r"stop must return a boolean or an array \(1,\), got \(3,\)"
    ):
        rs.beam_search(tiny(0), [[3]], stop=lambda step: [True] * 3)


def test_what_a_search_goes_on_with_cannot_be_written_to():
    model, source = tiny(1, 7), [[3, 4], [5]]
    plain = rs.beam_search(model, source, max_new_tokens=4)

    def write(scores, state):
        arrays = (state.tokens, state.n_new, state.emitted, state.source_index, state.source)
        for x in (*arrays, state.source_mask, state.eos_ids):
            with pytest.raises(ValueError, match="read-only"):
                x[...] = 0
        return scores

    for step in rs.beam_steps(model, source, max_new_tokens=4, processors=[write]):
        for x in (
            step.done,
            step.live.tokens,
            step.live.scores,
            step.pool.tokens,
            step.pool.scores,
        ):
            with pytest.raises(ValueError, match="read-only"):
                x[...] = 0
        for x in (step.survivors, step.finishing, step.margin, *step.candidates):
            x[...] = 0  # these are the caller's
    assert np.array_equal(step.pool.scores[:, 0], plain.scores[:, 0])


@pytest.mark.parametrize(
    ("penalty", "kind", "message"),
    [
        ("1", TypeError, "must be a number, or a function of a length .* got '1'"),
        (None, TypeError, "must be a number, or a function of a length"),
        (np.nan, ValueError, "must return positive finite numbers, got nan"),
        (1e3, ValueError, "must return positive finite numbers, got 1000.0: .*out of range"),
        (lambda n: "x", ValueError, "must return positive finite numbers"),
        (lambda n: -1.0, ValueError, "must return positive finite numbers"),
    ],
)
def test_a_length_penalty_is_checked_before_the_loop(penalty, kind, message):
    with pytest.raises(kind, match=message):
        rs.beam_steps(tiny(0), [[3]], length_penalty=penalty, max_new_tokens=6)
