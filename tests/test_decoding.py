"""The loop: what each step says, against teacher forcing, by hand, and in any company."""

import dataclasses
import gc
import math
import re
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq import backend, decoding
from refseq2seq.params import build_params
from refseq2seq.testing import strategies

NEW = 5  # new tokens of the random models below; their position tables serve 11
GREEDY, SAMPLE = rs.greedy(), rs.sample(rs.temperature(1.5), rs.top_k(4))
every_chooser = pytest.mark.parametrize("choose", [GREEDY, SAMPLE], ids=["greedy", "sample"])


# Models whose logits are known -------------------------------------------------------------------


def table_model(table, *, start=0, eos_ids=(), pad_id=1):
    """The logits after a token are its row of the table, exactly: its layers add zeros."""
    vocab_size = len(table)
    config = rs.presets.x_transformers(
        d_model=vocab_size,
        source_vocab_size=vocab_size,
        target_vocab_size=vocab_size,
        n_source_positions=1,
        n_target_positions=1,
        encoder_layers=1,
        decoder_layers=1,
        n_heads=1,
        d_k=1,
        decoder_start_id=start,
        eos_ids=eos_ids,
        pad_id=pad_id,
    )
    plain = {"positions": None, "final_norm": False}
    config = dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, **plain),
        decoder=dataclasses.replace(config.decoder, **plain),
    )
    arrays = {
        "encoder.embedding": np.eye(vocab_size),
        "decoder.embedding": np.eye(vocab_size),
        "unembedding": np.array(table, dtype=np.float64),
    }

    def array(name, shape):
        return arrays[name] if name in arrays else np.zeros(shape)

    return rs.Model(config=config, params=build_params(config, array))


def path_model(**options):
    """Of 7 tokens; greedy decoding goes 0 3 4 2 5 6 3 4 2 ..., each time 5 nats ahead."""
    table = np.zeros((7, 7))
    for token, following in {0: 3, 3: 4, 4: 2, 2: 5, 5: 6, 6: 3, 1: 1}.items():
        table[token, following] = 5
    return table_model(table, **options)


def path(model, prefix=None, **options):
    """`generate` for sources that this model does not look at."""
    n = 1 if prefix is None else len(prefix)
    return rs.generate(model, [[0]] * n, prefix=prefix, **({"max_new_tokens": 7} | options))


def learned_model(dtype="float64"):
    """Prime sizes, and position tables: 5 for the source, 7 for the target."""
    config = rs.presets.x_transformers(
        d_model=6,
        source_vocab_size=11,
        target_vocab_size=13,
        n_source_positions=5,
        n_target_positions=7,
        encoder_layers=1,
        decoder_layers=2,
        n_heads=3,
        d_k=2,
        decoder_start_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    return rs.Model.random(config, seed=0, dtype=dtype)


def slow_log_softmax(row):
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def targets(steps, prefix, pad_id):
    """What each row has been fed and given: (batch, n)."""
    shortest = min(len(row) for row in prefix)
    fed = np.array([row[:shortest] for row in prefix])
    return np.concatenate([fed, np.stack([step.tokens for step in steps], axis=1)], axis=1)


def new_tokens(out):
    """The new tokens of each row, without what follows the end."""
    return [row[:n].tolist() for row, n in zip(out.tokens, out.lengths, strict=True)]


# Random tasks -------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What to generate, and how, with a model whose arithmetic is exact."""

    model: rs.Model
    source: strategies.Source
    prefix: list[list[int]]
    choose: rs.Chooser

    def rows(self, order):
        """The task with these rows of the sources and of the prefixes."""
        return self._replace(
            source=strategies.Source([self.source.rows[i] for i in order], None),
            prefix=[self.prefix[i] for i in order],
        )

    def steps(self, **options):
        return rs.decode_steps(
            self.model,
            self.source.tokens,
            **{
                "source_mask": self.source.mask,
                "prefix": self.prefix,
                "choose": self.choose,
                "max_new_tokens": NEW,
            }
            | options,
        )

    def generated(self, **options):
        """Per row: new tokens, their log-probabilities, and whether it ended."""
        out = rs.Generation.from_steps(self.steps(**options), self.model.config.pad_id)
        assert np.isfinite(out.log_probs).all()
        return [
            (out.tokens[i, :n].tolist(), out.log_probs[i, :n].tolist(), bool(out.finished[i]))
            for i, n in enumerate(out.lengths)
        ]


@st.composite
def tasks(draw, choosers=(GREEDY, SAMPLE), dtypes=("float64", "float32")):
    model = draw(strategies.models(dtype=draw(st.sampled_from(dtypes)))).exact()
    source = draw(strategies.sources(model))
    prefix = draw(strategies.prefixes(model, source.batch))
    return Task(model, source, prefix, draw(st.sampled_from(choosers)))


# The steps are what teacher forcing says ---------------------------------------------------------


@settings(max_examples=30)
@given(task=tasks())
def test_every_field_of_every_step(task):
    model, source, prefix, choose = task
    steps = list(task.steps())
    config, batch, shortest = model.config, source.batch, min(map(len, prefix))
    target = targets(steps, prefix, config.pad_id)
    expected = rs.forward(model, source.tokens, target[:, :-1], source.mask)
    shape = (batch, config.decoder.vocab_size)
    has_ended = np.zeros(batch, dtype=bool)
    n_new = np.zeros(batch, dtype=int)
    for t, step in enumerate(steps):
        assert step.index == t
        for array, dtype in (
            (step.tokens, np.int64),
            (step.log_probs, np.float64),
            (step.margin, np.float64),
            (step.finished, np.bool_),
            (step.forced, np.bool_),
            (step.emitted, np.bool_),
        ):
            assert type(array) is np.ndarray
            assert (array.shape, array.dtype) == ((batch,), dtype)
        for array in (step.logits, step.scores):
            assert (array.shape, array.dtype) == (shape, model.dtype)

        # what the model says: bit for bit, for the arithmetic is exact
        logits = np.asarray(expected[:, shortest - 1 + t])
        assert np.isfinite(logits).all()
        going_on = step.forced | step.emitted
        np.testing.assert_array_equal(np.asarray(step.logits)[going_on], logits[going_on])
        if choose is GREEDY:
            np.testing.assert_array_equal(np.asarray(step.scores)[going_on], logits[going_on])

        # what is done with it
        n = shortest + t
        for i in range(batch):
            token, row = step.tokens[i], logits[i].tolist()
            assert step.forced[i] == (n < len(prefix[i]))
            assert step.emitted[i] == (n >= len(prefix[i]) and not has_ended[i] and n_new[i] < NEW)
            n_new[i] += step.emitted[i]
            if step.forced[i]:
                assert token == prefix[i][n]
            elif step.emitted[i]:
                assert step.scores[i, token] > -math.inf
                if choose is GREEDY:
                    assert token == row.index(max(row))
                has_ended[i] = token in config.eos_ids
            else:
                assert token == config.pad_id
            counts = step.forced[i] or step.emitted[i]
            log_prob = slow_log_softmax(row)[token] if counts else 0.0
            # a sum of 13 terms at most, a logarithm, two differences: under 16 roundings
            spacing = float(np.finfo(model.dtype).eps) * max(1.0, *map(abs, row))
            assert abs(step.log_probs[i] - log_prob) <= 16 * spacing
            second, best = np.sort(np.asarray(step.scores[i]))[-2:]
            assert step.margin[i] == (best - second if counts else math.inf)
        np.testing.assert_array_equal(step.finished, has_ended)
    assert (has_ended | (n_new == NEW)).all()


@settings(max_examples=20)
@given(task=tasks())
def test_generate_is_its_steps(task):
    model, source, prefix, choose = task
    options = {"source_mask": source.mask, "prefix": prefix, "choose": choose}
    out = rs.generate(model, source.tokens, max_new_tokens=NEW, **options)
    steps = list(task.steps())
    lengths = [sum(bool(step.emitted[i]) for step in steps) for i in range(source.batch)]
    assert out.tokens.dtype == np.int64
    assert out.log_probs.dtype == np.float64
    assert out.lengths.tolist() == lengths
    assert out.tokens.shape == out.log_probs.shape == (source.batch, max(lengths))
    np.testing.assert_array_equal(out.finished, steps[-1].finished)
    for i, n in enumerate(lengths):
        of_row = [step for step in steps if step.emitted[i]]
        assert out.tokens[i, :n].tolist() == [step.tokens[i] for step in of_row]
        assert out.log_probs[i, :n].tolist() == [step.log_probs[i] for step in of_row]
        assert (out.tokens[i, n:] == model.config.pad_id).all()
        assert (out.log_probs[i, n:] == 0).all()


# The same row in any company, bit for bit --------------------------------------------------------


@settings(max_examples=20)
@given(task=tasks())
def test_with_and_without_a_cache(task):
    assert task.generated(use_cache=True) == task.generated(use_cache=False)


@settings(max_examples=20)
@given(task=tasks())
def test_a_row_alone_and_in_a_batch(task):
    together = task.generated(seed=3)
    for i in range(task.source.batch):
        assert task.rows([i]).generated(seed=3, row_ids=[i]) == [together[i]]


@settings(max_examples=20)
@given(task=tasks(), data=st.data())
def test_a_batch_in_another_order(task, data):
    order = data.draw(st.permutations(range(task.source.batch)))
    together = task.generated()
    assert task.rows(order).generated(row_ids=order) == [together[i] for i in order]


@settings(max_examples=20)
@given(task=tasks(), n=st.integers(1, NEW - 1))
def test_fewer_new_tokens_are_the_beginning_of_more(task, n):
    assert task.generated(max_new_tokens=n) == [
        (tokens[:n], log_probs[:n], ended and len(tokens) <= n)
        for tokens, log_probs, ended in task.generated()
    ]


@settings(max_examples=20)
@given(task=tasks(choosers=[GREEDY]), n=st.integers(1, NEW - 1))
def test_the_first_half_fed_back_as_prefix_gives_the_second(task, n):
    whole = task.generated(eos_ids=())
    longer = [begin + tokens[:n] for begin, (tokens, _, _) in zip(task.prefix, whole, strict=True)]
    rest = task.generated(eos_ids=(), prefix=longer, max_new_tokens=NEW - n)
    assert rest == [(tokens[n:], log_probs[n:], False) for tokens, log_probs, _ in whole]


@settings(max_examples=20)
@given(task=tasks(choosers=[GREEDY], dtypes=["float64"]))
def test_with_fast_sums_the_same_up_to_rounding(task):
    exact = list(task.steps())
    scale = max(float(np.abs(step.logits).max()) for step in exact)
    assume(all((step.margin > 1e-9 * scale).all() for step in exact))  # no near-ties
    for use_cache in (True, False):
        fast = list(task._replace(model=task.model.to("numpy")).steps(use_cache=use_cache))
        for a, b in zip(exact, fast, strict=True):
            # some thousand roundings of 1e-16: the worst of 300 such loops was off by 1.4e-14
            np.testing.assert_allclose(
                b.logits, np.asarray(a.logits), rtol=0, atol=1e-12 * scale, equal_nan=False
            )
            np.testing.assert_array_equal(a.tokens, b.tokens)


# How rows begin and end, by hand -----------------------------------------------------------------


def test_eos_is_kept_and_followed_by_pad():
    out = path(path_model(eos_ids=(2,)), [[0], [4], [3]])
    assert out.tokens.tolist() == [[3, 4, 2], [2, 1, 1], [4, 2, 1]]
    assert out.lengths.tolist() == [3, 1, 2]
    assert out.finished.tolist() == [True, True, True]
    # of 7 tokens one is 5 nats ahead of the others
    surely = -math.log(1 + 6 * math.exp(-5))
    expected = [[surely] * 3, [surely, 0, 0], [surely, surely, 0]]
    np.testing.assert_allclose(out.log_probs, expected, rtol=1e-13, equal_nan=False)


def test_the_prefix_is_the_start_token_by_default():
    assert new_tokens(path(path_model(start=6), max_new_tokens=2)) == [[3, 4]]
    assert new_tokens(path(path_model(start=6), [[6]], max_new_tokens=2)) == [[3, 4]]


def test_forced_then_emitted_then_neither():
    model = path_model(eos_ids=(2,))
    prefix = [[0], [0, 5, 5, 3], [0, 4]]
    steps = list(rs.decode_steps(model, [[0]] * 3, prefix=prefix, max_new_tokens=3))
    assert [step.tokens.tolist() for step in steps] == [
        [3, 5, 4],
        [4, 5, 2],
        [2, 3, 1],
        [1, 4, 1],
        [1, 2, 1],
    ]
    assert [step.forced.tolist() for step in steps] == [
        [False, True, True],
        [False, True, False],
        [False, True, False],
        [False, False, False],
        [False, False, False],
    ]
    assert [step.emitted.tolist() for step in steps] == [
        [True, False, False],
        [True, False, True],
        [True, False, False],
        [False, True, False],
        [False, True, False],
    ]
    assert [step.finished.tolist() for step in steps] == [
        [False, False, False],
        [False, False, True],
        [True, False, True],
        [True, False, True],
        [True, True, True],
    ]
    # 5 after 0 is not what the model expects, 4 after 0 neither; nothing follows the end
    ahead, behind = -math.log(1 + 6 * math.exp(-5)), -math.log(6 + math.exp(5))
    np.testing.assert_allclose(
        [step.log_probs for step in steps],
        [
            [ahead, behind, behind],
            [ahead, behind, ahead],
            [ahead, behind, 0],
            [0, ahead, 0],
            [0, ahead, 0],
        ],
        rtol=1e-13,
        equal_nan=False,
    )


def test_each_row_has_its_own_new_tokens_when_prefixes_are_ragged():
    out = path(path_model(), [[0], [0, 3, 4], [0, 3]], max_new_tokens=2)
    assert out.tokens.tolist() == [[3, 4], [2, 5], [4, 2]]
    assert out.finished.tolist() == [False, False, False]


def test_any_of_several_eos_ids_ends_a_row():
    model = path_model(eos_ids=(2,))
    assert new_tokens(path(model, eos_ids=(6, 4))) == [[3, 4]]
    assert new_tokens(path(model, eos_ids=[6])) == [[3, 4, 2, 5, 6]]
    assert new_tokens(path(path_model(eos_ids=(6, 2)))) == [[3, 4, 2]]


def test_without_eos_ids_nothing_ends():
    out = path(path_model(eos_ids=(2,)), eos_ids=())
    assert new_tokens(out) == [[3, 4, 2, 5, 6, 3, 4]]
    assert out.finished.tolist() == [False]


def test_eos_in_the_prefix_ends_nothing():
    model = path_model(eos_ids=(2,))
    assert new_tokens(path(model, [[0, 2]])) == [[5, 6, 3, 4, 2]]
    assert new_tokens(path(model, [[0, 2, 2], [2]])) == [[5, 6, 3, 4, 2]] * 2


def test_a_start_token_that_is_eos_too():
    assert new_tokens(path(path_model(start=2, eos_ids=(2,)))) == [[5, 6, 3, 4, 2]]


def test_eos_at_the_last_place_counts_as_an_end():
    assert path(path_model(eos_ids=(2,)), max_new_tokens=3).finished.tolist() == [True]
    assert path(path_model(eos_ids=(2,)), max_new_tokens=2).finished.tolist() == [False]


def test_min_new_tokens_removes_eos_until_then():
    model = path_model(eos_ids=(2,))
    # at the third token 2 is removed, and of the others, all equal, 0 is the first
    assert new_tokens(path(model, min_new_tokens=2)) == [[3, 4, 2]]
    assert new_tokens(path(model, min_new_tokens=3)) == [[3, 4, 0, 3, 4, 2]]
    assert new_tokens(path(model, [[4], [0, 4]], min_new_tokens=1)) == [[0, 3, 4, 2]] * 2
    steps = list(rs.decode_steps(model, [[0]], prefix=[[4]], max_new_tokens=2, min_new_tokens=1))
    assert [step.scores[0, 2] for step in steps] == [-math.inf, 0]
    assert steps[0].logits[0, 2] == 5  # the raw logits stay as they are
    assert steps[0].margin.tolist() == [0]


def test_min_new_tokens_goes_before_the_processors():
    # if the best one were kept first, it would be EOS, and nothing would be left
    options = {"min_new_tokens": 1, "max_new_tokens": 1, "choose": rs.greedy(rs.top_k(1))}
    assert new_tokens(path(path_model(eos_ids=(2,)), [[4]], **options)) == [[0]]


def test_min_new_tokens_equal_to_max_new_tokens():
    out = path(path_model(eos_ids=(2,)), min_new_tokens=7, max_new_tokens=7)
    assert out.lengths.tolist() == [7]


def test_by_default_as_many_new_tokens_as_the_positions_serve():
    model = learned_model()
    # 7 positions: the start token's, and of the new tokens all but the last
    assert rs.generate(model, [[3]], eos_ids=()).lengths.tolist() == [7]
    assert rs.generate(model, [[3]], eos_ids=(), prefix=[[1, 4, 5]]).lengths.tolist() == [5]
    assert rs.generate(model, [[3]], eos_ids=(), prefix=[[1] * 7]).lengths.tolist() == [1]
    assert rs.generate(model, [[3]], eos_ids=(), max_new_tokens=7).lengths.tolist() == [7]


# Stopping ----------------------------------------------------------------------------------------


def test_stop_ends_everything():
    model, seen = path_model(eos_ids=(2,)), []

    def stop(step):
        seen.append(step.index)
        return step.index == 1

    out = path(model, [[5], [0]], stop=stop)
    assert new_tokens(out) == [[6, 3], [3, 4]]
    assert out.finished.tolist() == [True, True]
    assert seen == [0, 1]


@pytest.mark.parametrize("as_answer", [np.asarray, np.ndarray.tolist], ids=["array", "list"])
def test_stop_ends_single_rows(as_answer):
    out = path(
        path_model(), [[0], [5]], stop=lambda step: as_answer(step.tokens == 4), max_new_tokens=5
    )
    assert new_tokens(out) == [[3, 4], [6, 3, 4]]
    assert out.finished.tolist() == [True, True]


@pytest.mark.parametrize("answer", [None, False, np.False_, 0])
def test_an_answer_that_is_not_true_stops_nothing(answer):
    assert path(path_model(), stop=lambda step: answer).lengths.tolist() == [7]


def test_stop_sees_the_end_by_eos_and_its_own_answer_shows_in_the_step():
    model, seen = path_model(eos_ids=(2,)), []

    def stop(step):
        seen.append(step.finished.tolist())
        return [False, step.index == 1]

    steps = list(rs.decode_steps(model, [[0]] * 2, prefix=[[4], [0]], max_new_tokens=7, stop=stop))
    assert seen == [[True, False], [True, False]]
    assert [step.finished.tolist() for step in steps] == [[True, False], [True, True]]


def test_a_row_can_be_stopped_in_its_prefix():
    out = path(path_model(), [[0], [0, 3, 4]], stop=lambda step: [False, True], max_new_tokens=3)
    assert new_tokens(out) == [[3, 4, 2], []]
    out = path(path_model(), [[0, 3], [0]], stop=lambda step: step.forced | step.emitted)
    assert (new_tokens(out), out.tokens.shape) == ([[], [3]], (2, 1))


@pytest.mark.parametrize("tap", [rs.no_tap, rs.Trace()])
def test_a_row_that_is_stopped_in_its_prefix_has_ended(tap):
    model, prefix = learned_model(), [[1, 3, 4, 5], [1]]
    steps = list(
        rs.decode_steps(
            model,
            [[3, 4], [5]],
            prefix=prefix,
            max_new_tokens=3,
            eos_ids=(),
            stop=lambda step: [True, False],
            tap=tap,
        )
    )
    assert [step.forced.tolist() for step in steps] == [[True, False], [False] * 2, [False] * 2]
    assert [step.tokens[0] for step in steps] == [3, 0, 0]  # then pads
    assert steps[0].log_probs[0] < 0
    assert [step.log_probs[0] for step in steps[1:]] == [0, 0]
    assert [step.emitted.tolist() for step in steps] == [[False, True]] * 3


@pytest.mark.parametrize(
    ("pick", "got"),
    [
        (lambda scores: scores.argmax(axis=-1, keepdims=True), r"int64 \(2, 1\)"),
        (lambda scores: scores.argmax(axis=-1)[:1], r"int64 \(1,\)"),
        (lambda scores: scores.max(axis=-1), r"float64 \(2,\)"),
    ],
)
def test_what_is_no_choice_is_refused(pick, got):
    choose = rs.Chooser((), lambda scores, state: pick(scores))
    must = r"^choose must pick a token id for each row, integers \(2,\), got "
    with pytest.raises(ValueError, match=must + got):
        rs.generate(learned_model(), [[3], [4]], choose=choose)


def test_a_negative_choice_is_refused():
    choose = rs.Chooser((), lambda scores, state: scores.argmax(axis=-1) * 0 - 1)
    with pytest.raises(
        ValueError, match=r"^choose must pick token ids from 0 to \d+, got -1 for row 0$"
    ):
        rs.generate(learned_model(), [[3], [4]], choose=choose)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "uint64"])
def test_row_ids_of_any_integer_dtype(dtype):
    options = {"num_return_sequences": 2, "choose": rs.sample()}
    out = rs.generate(learned_model(), [[3], [4]], row_ids=np.array([1, 2], dtype), **options)
    same = rs.generate(learned_model(), [[3], [4]], row_ids=[1, 2], **options)
    assert np.array_equal(out.tokens, same.tokens)


# Interrupting ------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(task=tasks(), data=st.data())
def test_an_interrupted_loop_has_given_the_beginning(task, data):
    steps = list(task.steps())
    n = data.draw(st.integers(1, len(steps)))
    loop = task.steps()
    some = [step for step, _ in zip(loop, range(n), strict=False)]
    loop.close()
    for a, b in zip(some, steps, strict=False):
        for field in dataclasses.fields(rs.Step):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    whole = rs.Generation.from_steps(steps, task.model.config.pad_id)
    part = rs.Generation.from_steps(some, task.model.config.pad_id)
    assert (part.lengths <= whole.lengths).all()
    width = part.tokens.shape[1]
    kept = np.arange(width) < part.lengths[:, None]
    np.testing.assert_array_equal(part.tokens[kept], whole.tokens[:, :width][kept])
    np.testing.assert_array_equal(part.log_probs[kept], whole.log_probs[:, :width][kept])
    np.testing.assert_array_equal(part.finished, some[-1].finished)


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_was_yielded_does_not_change_later(use_cache):
    model = learned_model()
    source, prefix = [[3, 4], [5]], [[1], [1, 9, 8]]
    steps, copies = [], []
    for step in rs.decode_steps(model, source, prefix=prefix, eos_ids=(), use_cache=use_cache):
        steps.append(step)
        copies.append({f.name: np.copy(getattr(step, f.name)) for f in dataclasses.fields(step)})
    assert len(steps) == 7
    for step, copy in zip(steps, copies, strict=True):
        for name, value in copy.items():
            np.testing.assert_array_equal(getattr(step, name), value)


def test_two_loops_of_one_model_do_not_meet():
    model = learned_model()
    alone = [list(rs.decode_steps(model, [[token]], eos_ids=())) for token in (3, 4)]
    loops = [rs.decode_steps(model, [[token]], eos_ids=()) for token in (3, 4)]
    for steps in zip(*alone, *loops, strict=True):
        for expected, step in zip(steps[:2], steps[2:], strict=True):
            np.testing.assert_array_equal(step.logits, expected.logits)


def test_a_generation_keeps_no_logits_of_its_steps():
    seen = []  # weak references to what would fill the memory if it were kept

    def watched():
        for step in rs.decode_steps(learned_model(), [[3]], eos_ids=(), max_new_tokens=5):
            arrays = [np.array(x) for x in (step.logits, step.scores)]
            seen.extend(map(weakref.ref, arrays))
            yield dataclasses.replace(step, logits=arrays.pop(0), scores=arrays.pop(0))
            gc.collect()
            assert all(array() is None for array in seen[:-2])

    out = rs.Generation.from_steps(watched(), 0)
    assert out.lengths.tolist() == [5]
    assert len(seen) == 10


def test_no_steps_are_no_generation():
    with pytest.raises(ValueError, match=r"^no steps: at least one is needed to know the batch$"):
        rs.Generation.from_steps([], 0)


# Sampling ----------------------------------------------------------------------------------------

WHIM = np.log([[0.1, 0.2, 0.3, 0.15, 0.25]] * 5)  # the same distribution after every token


def whim(**options):
    """New tokens of two rows of a model that does not look at anything."""
    options = {"max_new_tokens": 11, "choose": rs.sample()} | options
    return rs.generate(table_model(WHIM), [[0], [0]], **options).tokens.tolist()


def inverse_cdf(probs, u):
    return next(i for i in range(len(probs)) if math.fsum(probs[: i + 1]) > u)


def test_a_token_is_the_inverse_cdf_at_its_rows_uniform_number():
    expected = [
        [inverse_cdf([0.1, 0.2, 0.3, 0.15, 0.25], u) for u in row]
        for row in rs.draw_uniforms(5, [0, 1], 11)
    ]
    assert whim(seed=5) == expected
    assert whim(seed=5, row_ids=[1, 0]) == expected[::-1]


def test_given_uniforms_are_used_as_the_drawn_ones_are():
    u = rs.draw_uniforms(5, [7, 8], 13)
    assert whim(uniforms=u[:, :11]) == whim(seed=5, row_ids=[7, 8])
    assert whim(uniforms=u) == whim(seed=5, row_ids=[7, 8])
    assert whim(uniforms=u.tolist()) == whim(seed=5, row_ids=[7, 8])
    assert whim(uniforms=[[0.0] * 11, [math.nextafter(1, 0)] * 11]) == [[0] * 11, [4] * 11]


def test_the_seed_and_the_row_decide():
    assert whim(seed=1) == whim(seed=1)
    assert whim(seed=1) != whim(seed=2)
    first, second = whim(seed=1)
    assert first != second
    assert whim(seed=1, row_ids=[3, 3])[0] == whim(seed=1, row_ids=[3, 3])[1]
    assert whim() == whim(seed=0, row_ids=range(2))
    assert whim(seed=1, row_ids=np.array([2**64 - 1, 0], dtype=np.uint64))[1] == first


@given(u=strategies.uniforms(batch=2, steps=3))
def test_a_row_in_its_prefix_uses_up_no_uniform_number(u):
    # row 1 chooses two steps later than row 0, and from the same numbers as if it were alone
    probs = np.exp(WHIM[0]).tolist()
    sums = [math.fsum(probs[: i + 1]) for i in range(len(probs))]
    assume(all(abs(x - s) > 1e-12 for x in u.flat for s in sums))
    expected = [[inverse_cdf(probs, x) for x in row] for row in u.tolist()]
    out = rs.generate(
        table_model(WHIM),
        [[0], [0]],
        prefix=[[0], [0, 3, 3]],
        choose=rs.sample(),
        uniforms=u,
        max_new_tokens=3,
    )
    assert out.tokens.tolist() == expected


def test_an_exponential_race_takes_the_noise_of_each_rows_own_step():
    noise = np.random.default_rng(0).exponential(size=(3, 2, 5))
    out = rs.generate(
        table_model(WHIM),
        [[0], [0]],
        prefix=[[0], [0, 3, 3]],
        choose=rs.exponential_race(noise),
        max_new_tokens=3,
    )
    race = np.exp(WHIM[0]) / noise
    np.testing.assert_array_equal(out.tokens.T, race.argmax(axis=-1))


def test_greedy_draws_no_numbers(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        decoding, "draw_uniforms", lambda seed, ids, n: drawn.append(n) or np.zeros((len(ids), n))
    )
    path(path_model())
    assert drawn == [0]  # the arguments are checked all the same
    path(path_model(), choose=rs.sample())
    assert drawn == [0, 0, 7]


# Processors --------------------------------------------------------------------------------------


def test_processors_apply_in_their_order_and_log_probs_stay_raw():
    table = np.log([[0.4, 0.3, 0.2, 0.1]] * 4)
    for processors, stay in (
        ([rs.top_p(0.5), rs.top_k(2)], [0, 1]),
        ([rs.top_k(2), rs.top_p(0.5)], [0]),
    ):
        for choose in (rs.greedy(*processors), rs.sample(*processors)):
            [step] = rs.decode_steps(
                table_model(table), [[0]], max_new_tokens=1, choose=choose, uniforms=[[0.1]]
            )
            assert np.flatnonzero(step.scores[0] > -math.inf).tolist() == stay
            np.testing.assert_allclose(step.log_probs, math.log(0.4), rtol=1e-14, equal_nan=False)
            assert step.margin[0] == (math.inf if stay == [0] else table[0, 0] - table[0, 1])


def test_a_processor_sees_the_rows_as_they_are():
    states = []

    def watch(scores, state):
        states.append(state)
        return scores

    source_mask = np.array([[True, True], [False, True]])
    rs.generate(
        path_model(eos_ids=(2,)),
        np.array([[3, 4], [5, 6]]),
        source_mask=source_mask,
        prefix=[[4], [0, 5, 6]],
        max_new_tokens=3,
        choose=rs.greedy(watch),
    )
    assert [state.tokens.tolist() for state in states] == [
        [[4], [0]],
        [[4, 2], [0, 5]],
        [[4, 2, 1], [0, 5, 6]],
        [[4, 2, 1, 1], [0, 5, 6, 3]],
        [[4, 2, 1, 1, 1], [0, 5, 6, 3, 4]],
    ]
    assert [state.n_new.tolist() for state in states] == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 2]]
    assert [state.emitted.tolist() for state in states] == [
        [True, False],
        [False, False],
        [False, True],
        [False, True],
        [False, True],
    ]
    for state in states:
        assert state.source_index.tolist() == [0, 1]
        np.testing.assert_array_equal(state.source_mask, source_mask)
        np.testing.assert_array_equal(state.source[source_mask], [3, 4, 6])


def test_a_processor_sees_which_source_each_sample_is_of():
    seen = []
    path(
        path_model(),
        [[0], [0]],
        num_return_sequences=2,
        choose=rs.greedy(lambda scores, state: seen.append(state.source_index) or scores),
    )
    assert seen[0].tolist() == [0, 0, 1, 1]
    assert seen[0].dtype == np.int64


def test_a_caller_can_write_a_processor():
    def never_twice(scores, state):
        again = scores.copy()
        np.put_along_axis(again, state.tokens, -math.inf, axis=1)
        return again

    out = path(path_model(), choose=rs.greedy(never_twice), max_new_tokens=6)
    assert out.tokens.tolist() == [[3, 4, 2, 5, 6, 1]]


def test_a_caller_can_write_a_chooser():
    worst = rs.Chooser((), lambda scores, state: scores.argmin(axis=-1))
    assert new_tokens(path(path_model(), [[1], [0]], choose=worst, max_new_tokens=2)) == [
        [0, 0],
        [0, 0],
    ]


# Looking inside, and what it costs ---------------------------------------------------------------


def test_the_tap_sees_the_encoder_once_and_each_step_by_its_index():
    trace = rs.Trace()
    steps = list(rs.decode_steps(learned_model(), [[3]], max_new_tokens=3, eos_ids=(), tap=trace))
    names = list(trace)
    for step in steps:
        np.testing.assert_array_equal(trace[f"step.{step.index}.logits"][:, -1], step.logits)
        np.testing.assert_array_equal(trace[f"step.{step.index}.scores"], step.scores)
    assert sum(name == "encoder.final" for name in names) == 1
    decoder = [name for name in names if name.startswith("step.1.decoder.")]
    assert decoder == [
        name.replace("step.2", "step.1") for name in names if name.startswith("step.2.decoder.")
    ]
    # cross-attention keys and values are projected once, before the first step
    projected = [
        name for name in names if name.endswith(("cross_attention.k", "cross_attention.v"))
    ]
    assert len(projected) == 2 * 2
    assert max(map(names.index, projected)) < min(
        i for i, name in enumerate(names) if name.startswith("step.")
    )


def test_what_a_tap_changes_is_gone_on_with():
    def forbid_3(name, x):
        return np.where(np.arange(7) == 3, -math.inf, x) if name == "step.0.scores" else x

    out = path(path_model(), tap=rs.FunctionTap(forbid_3), max_new_tokens=2)
    assert new_tokens(out) == [[0, 3]]


def test_a_generation_encodes_once_and_reads_the_device_once_a_step(monkeypatch):
    passed, reads = [], []

    def read(*arrays):
        reads.append({x.shape for x in arrays})
        return backend.read(*arrays)

    monkeypatch.setattr(decoding, "read", read)
    rs.generate(
        learned_model(),
        [[3], [4, 5]],
        choose=rs.sample(rs.top_p(0.9)),
        eos_ids=(),
        tap=rs.FunctionTap(lambda name, x: passed.append(name) or x),
    )
    assert passed.count("encoder.embed") == 1
    assert [name for name in passed if name.endswith("decoder.embed")] == [
        f"step.{t}.decoder.embed" for t in range(7)
    ]
    assert reads == [{(2,)}] * 7


# What is refused ---------------------------------------------------------------------------------

UNIFORMS = "uniforms must have the shape (batch, max_new_tokens) = (1, 7), or more columns, got "
BAD_REQUESTS = {
    "source of another rank": (
        {"source": [3, 4]},
        ValueError,
        "source must have one list of token ids per row, such as [[4, 9], [7]]; got [3, 4]",
    ),
    "source array of rank 1": (
        {"source": np.array([3, 4])},
        ValueError,
        "source must have shape (batch, n), got (2,)",
    ),
    "source array of rank 3": (
        {"source": np.ones((1, 2, 3), int)},
        ValueError,
        "source must have shape (batch, n), got (1, 2, 3)",
    ),
    "empty batch": ({"source": []}, ValueError, "source is empty: its shape is (0,)"),
    "empty batch array": (
        {"source": np.ones((0, 3), int)},
        ValueError,
        "source is empty: its shape is (0, 3)",
    ),
    "empty source": ({"source": [[]]}, ValueError, "source row 0 is empty"),
    "empty source of two": ({"source": [[3], []]}, ValueError, "source row 1 is empty"),
    "negative id": (
        {"source": [[3, -1]]},
        ValueError,
        "source holds token id -1 at row 0, place 1; the vocabulary has ids 0 to 10",
    ),
    "id out of range": (
        {"source": [[3], [11]]},
        ValueError,
        "source holds token id 11 at row 1, place 0; the vocabulary has ids 0 to 10",
    ),
    "float ids": (
        {"source": np.array([[3.0]])},
        TypeError,
        "source must hold integer token ids, got dtype float64",
    ),
    "boolean ids": (
        {"source": np.array([[True]])},
        TypeError,
        "source must hold integer token ids, got dtype bool",
    ),
    "text": (
        {"source": "cat"},
        TypeError,
        "source must hold token ids, got a text: rs.generate_text takes texts",
    ),
    "source too long": (
        {"source": [[3] * 6]},
        ValueError,
        "source has 6 tokens; the model's position table serves at most 5",
    ),
    "integer mask": (
        {"source_mask": np.array([[1]])},
        TypeError,
        "source_mask must be boolean, True = real token, got dtype int64; for a mask of ones and "
        "zeros pass mask.astype(bool)",
    ),
    "mask of another shape": (
        {"source_mask": np.array([[True, True]])},
        ValueError,
        "source_mask must have the tokens' shape (1, 1), got (1, 2)",
    ),
    "empty prefix": ({"prefix": [[]]}, ValueError, "prefix row 0 is empty"),
    "prefix for no row": ({"prefix": []}, ValueError, "prefix is empty: its shape is (0,)"),
    "prefix for another batch": (
        {"prefix": [[1], [1]]},
        ValueError,
        "prefix has 2 rows, source has 1",
    ),
    "prefix id out of range": (
        {"prefix": [[13]]},
        ValueError,
        "prefix holds token id 13 at row 0, place 0; the vocabulary has ids 0 to 12",
    ),
    "float prefix": (
        {"prefix": [[1.0]]},
        TypeError,
        "prefix must hold integer token ids, got dtype float64",
    ),
    "prefix too long": (
        {"prefix": [[1] * 8]},
        ValueError,
        "prefix has 8 tokens; the model's position table serves at most 7",
    ),
    "too many new tokens": (
        {"max_new_tokens": 8},
        ValueError,
        "a prefix of 1 tokens and max_new_tokens = 8 need 8 positions; the model's table serves 7",
    ),
    "too many after the longest prefix": (
        {"source": [[3], [3]], "prefix": [[1], [1, 4, 5]], "max_new_tokens": 6},
        ValueError,
        "a prefix of 3 tokens and max_new_tokens = 6 need 8 positions; the model's table serves 7",
    ),
    "no new tokens": (
        {"max_new_tokens": 0},
        ValueError,
        "max_new_tokens must be at least 1, got 0",
    ),
    "fewer than none": (
        {"max_new_tokens": -3},
        ValueError,
        "max_new_tokens must be at least 1, got -3",
    ),
    "True new tokens": (
        {"max_new_tokens": True},
        TypeError,
        "max_new_tokens must be an int, got bool",
    ),
    "half a token": (
        {"max_new_tokens": 2.5},
        TypeError,
        "max_new_tokens must be an int, got float",
    ),
    "minimum over maximum": (
        {"max_new_tokens": 3, "min_new_tokens": 4},
        ValueError,
        "min_new_tokens must be at most max_new_tokens = 3, got 4",
    ),
    "minimum over the default maximum": (
        {"min_new_tokens": 8},
        ValueError,
        "min_new_tokens must be at most max_new_tokens = 7, got 8",
    ),
    "negative minimum": (
        {"min_new_tokens": -1},
        ValueError,
        "min_new_tokens must be at least 0, got -1",
    ),
    "float minimum": (
        {"min_new_tokens": 1.0},
        TypeError,
        "min_new_tokens must be an int, got float",
    ),
    "True minimum": (
        {"min_new_tokens": True},
        TypeError,
        "min_new_tokens must be an int, got bool",
    ),
    "eos id out of range": (
        {"eos_ids": (2, 13)},
        ValueError,
        "eos_ids must be from 0 to 12, got (2, 13)",
    ),
    "negative eos id": ({"eos_ids": [-1]}, ValueError, "eos_ids must be from 0 to 12, got [-1]"),
    "a single eos id": (
        {"eos_ids": 2},
        TypeError,
        "eos_ids must be a sequence of token ids, got 2",
    ),
    "float eos ids": (
        {"eos_ids": [2.0]},
        TypeError,
        "eos_ids must be a sequence of token ids, got [2.0]",
    ),
    "boolean eos ids": (
        {"eos_ids": [True]},
        TypeError,
        "eos_ids must be a sequence of token ids, got [True]",
    ),
    "text as eos ids": (
        {"eos_ids": "2"},
        TypeError,
        "eos_ids must be a sequence of token ids, got '2'",
    ),
    "row ids for another batch": (
        {"row_ids": [0, 1]},
        ValueError,
        "row_ids has 2 entries, source has 1 rows",
    ),
    "negative row id": (
        {"row_ids": [-1]},
        ValueError,
        "row_ids must be integers from 0 to 2**64 - 1, got -1",
    ),
    "row id of 65 bits": (
        {"row_ids": [2**64]},
        ValueError,
        "row_ids must be integers from 0 to 2**64 - 1, got 18446744073709551616",
    ),
    "float row id": (
        {"row_ids": [0.0]},
        ValueError,
        "row_ids must be integers from 0 to 2**64 - 1, got 0.0",
    ),
    "negative seed": (
        {"seed": -1},
        ValueError,
        "seed must be an integer from 0 to 2**64 - 1, got -1",
    ),
    "float seed": (
        {"seed": 0.5},
        ValueError,
        "seed must be an integer from 0 to 2**64 - 1, got 0.5",
    ),
    "uniforms of rank 1": (
        {"uniforms": [0.5] * 7},
        ValueError,
        UNIFORMS + "(7,)",
    ),
    "too few uniforms": (
        {"uniforms": [[0.5] * 6]},
        ValueError,
        UNIFORMS + "(1, 6)",
    ),
    "uniforms for another batch": ({"uniforms": [[0.5] * 7] * 2}, ValueError, UNIFORMS + "(2, 7)"),
    "a uniform of 1": ({"uniforms": [[1.0] * 7]}, ValueError, "uniforms must be in [0, 1)"),
    "a negative uniform": ({"uniforms": [[-0.1] * 7]}, ValueError, "uniforms must be in [0, 1)"),
    "NaN uniforms": ({"uniforms": [[math.nan] * 7]}, ValueError, "uniforms must be in [0, 1)"),
    "sample without ()": (
        {"choose": rs.sample},
        TypeError,
        f"choose must be a Chooser, such as rs.greedy(), got {rs.sample}",
    ),
    "a processor as chooser": (
        {"choose": rs.top_k(3)},
        TypeError,
        "choose must be a Chooser, got the processor top_k(3): write rs.sample(rs.top_k(3)) or ",
    ),
    "stop that cannot be called": (
        {"stop": 3},
        TypeError,
        "stop must be a function of a step, got 3",
    ),
    "no samples": (
        {"num_return_sequences": 0},
        ValueError,
        "num_return_sequences must be at least 1, got 0",
    ),
    "half a sample": (
        {"num_return_sequences": 1.5},
        TypeError,
        "num_return_sequences must be an int, got float",
    ),
    "a truth of samples": (
        {"num_return_sequences": True},
        TypeError,
        "num_return_sequences must be an int, got bool",
    ),
    "a row id too great for several samples": (
        {"row_ids": [2**32], "num_return_sequences": 2},
        ValueError,
        "row_ids must be below 2**32 for several samples, got 4294967296",
    ),
}


@pytest.mark.parametrize("function", [rs.decode_steps, rs.generate])
@pytest.mark.parametrize(
    ("options", "kind", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys()
)
def test_a_bad_request_is_refused_before_the_first_step(function, options, kind, message):
    options = {"source": [[3]]} | options
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        function(learned_model(), **options)


def test_a_model_without_positions_must_be_told_where_to_end():
    with pytest.raises(ValueError, match=r"^max_new_tokens is needed"):
        rs.generate(path_model(), [[0]])


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3,), (1,)])
def test_an_answer_of_stop_for_other_rows_is_refused(shape):
    with pytest.raises(
        ValueError, match=re.escape(f"stop must give a boolean or an array (2,), got {shape}") + "$"
    ):
        path(path_model(), [[0], [0]], stop=lambda step: np.zeros(shape, dtype=bool))


def spoilt(row, value, *, at="step.1.logits"):
    """A tap that puts a value into one row of the logits, from a step on."""

    def spoil(name, x):
        if name != at:
            return x
        x = x.copy()
        x[row, ..., 4] = value
        return x

    return rs.FunctionTap(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_chooser
def test_logits_that_are_not_finite_are_reported_with_their_row(choose, value):
    with pytest.raises(
        rs.NonFiniteLogitsError,
        match=r"^the model's logits of row 1 in step \d are NaN or infinite: they define no",
    ):
        path(path_model(), [[0], [0]], choose=choose, tap=spoilt(1, value))
    # in a prefix too
    with pytest.raises(rs.NonFiniteLogitsError, match="row 1"):
        path(path_model(), [[0], [0, 3, 4]], choose=choose, tap=spoilt(1, value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_has_ended_may_have_any_logits(value):
    out = path(path_model(eos_ids=(2,)), [[4], [0]], tap=spoilt(0, value))
    assert out.tokens.tolist() == [[2, 1, 1], [3, 4, 2]]
    assert np.isfinite(out.log_probs).all()


def test_a_logit_of_minus_infinity_is_an_overflow_and_no_token_ruled_out():
    """Finite parameters give finite logits: its true value may be the best."""
    with pytest.raises(rs.NonFiniteLogitsError, match=r"the model's logits of row 0 in step \d"):
        path(path_model(), [[0]], tap=spoilt(0, -math.inf), max_new_tokens=2)
    out = path(path_model(), [[0]], choose=rs.greedy(rs.suppress([4])), max_new_tokens=2)
    assert 4 not in new_tokens(out)[0]  # this is how a token is ruled out


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@every_chooser
def test_weights_that_are_not_finite_give_the_error_and_no_warning(choose, name, value):
    model = learned_model()
    getattr(model.params, name).embedding[:] *= value
    with pytest.raises(rs.NonFiniteLogitsError, match="row 0"):
        rs.generate(model, [[3], [4]], choose=choose)
    with pytest.raises(rs.NonFiniteLogitsError, match="row 0"):
        rs.generate(learned_model(), [[3], [4]], choose=choose, amateurs=[rs.amateur(model)])


def test_steps_before_the_bad_one_were_given():
    tap = spoilt(0, math.nan, at="step.2.logits")
    loop = rs.decode_steps(path_model(), [[0]], max_new_tokens=7, tap=tap)
    steps = [next(loop), next(loop)]
    with pytest.raises(rs.NonFiniteLogitsError):
        next(loop)
    assert rs.Generation.from_steps(steps, 1).tokens.tolist() == [[3, 4]]


def only_in_row_1(value):
    def process(scores, state):
        return np.where([[False], [True]], value, scores)

    return process


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("make", [rs.greedy, rs.sample])
def test_processors_that_leave_no_token_are_reported_with_the_row(make, value):
    choose = make(only_in_row_1(value))
    message = "^no token is left for row 1 in step 0: the processor process removes the last$"
    if value != -math.inf:
        message = f"^the processor process gives row 1 in step 0 the score {value}: scores must"
    with pytest.raises(rs.NoTokenLeftError, match=message):
        path(path_model(), [[0], [0]], choose=choose)


def test_a_temperature_under_which_scores_overflow_is_reported():
    for make in (rs.greedy, rs.sample):
        message = r"the processor temperature\(1e-308\) gives row 0 in step 0 the score inf"
        with pytest.raises(rs.NoTokenLeftError, match=message):
            path(path_model(), choose=make(rs.temperature(1e-308)))


def test_min_new_tokens_can_leave_no_token():
    with pytest.raises(rs.NoTokenLeftError, match="the rule min_new_tokens removes the last"):
        path(path_model(), eos_ids=range(7), min_new_tokens=1)


# Text --------------------------------------------------------------------------------------------


def text_model():
    """Of the letters a to f for the source and the words on the path 0 3 4 2 for the target."""
    source = rs.Vocabulary(
        symbols=("<pad>", *"abcdef"), separator="", special=("<pad>",), replacements=(("A", "a"),)
    )
    target = rs.Vocabulary(
        symbols=("<s>", "<pad>", "</s>", "to", "be", "or", "not"),
        separator=" ",
        special=("<s>", "<pad>", "</s>"),
        replacements=(),
    )
    model = path_model(eos_ids=(2,))
    return dataclasses.replace(model, source_vocabulary=source, target_vocabulary=target)


def test_from_text_to_text():
    assert rs.generate_text(text_model(), ["Abba", "f"], max_new_tokens=7) == ["to be", "to be"]
    assert rs.generate_text(text_model(), ["a"], max_new_tokens=7, eos_ids=()) == [
        "to be or not to be"
    ]
    assert rs.generate_text(text_model(), ("a",), max_new_tokens=1) == ["to"]


def test_one_text_is_not_a_list_of_texts():
    with pytest.raises(
        TypeError, match=r"^texts must be a sequence of strings, got one string: put it in a list$"
    ):
        rs.generate_text(text_model(), "abba", max_new_tokens=7)


@pytest.mark.parametrize("missing", ["source_vocabulary", "target_vocabulary"])
def test_text_needs_both_vocabularies(missing):
    model = dataclasses.replace(text_model(), **{missing: None})
    with pytest.raises(
        ValueError, match=r"^the model has no vocabularies: give token ids to rs\.generate instead$"
    ):
        rs.generate_text(model, ["abba"], max_new_tokens=7)


def test_unknown_symbols_are_named():
    with pytest.raises(rs.UnknownSymbolError, match="'abxy' has unknown symbols: 'x', 'y'"):
        rs.generate_text(text_model(), ["abba", "abxy"], max_new_tokens=7)


@pytest.mark.parametrize("texts", [[], ["", "a"], ["a", ""]])
def test_no_text_and_empty_text_are_refused(texts):
    with pytest.raises(ValueError, match=r"source row . is empty|source is empty"):
        rs.generate_text(text_model(), texts, max_new_tokens=7)


@pytest.mark.parametrize("text", [b"ab", 3, None, ["a"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match=f"a text must be a string, got {type(text).__name__}"):
        rs.generate_text(text_model(), [text], max_new_tokens=7)


def test_several_samples_of_a_source_are_encoded_once_and_do_not_depend_on_their_number():
    model, source = learned_model(), [[3], [4, 5]]
    trace = rs.Trace("encoder.*")
    options = {"choose": rs.sample(rs.temperature(2.0)), "max_new_tokens": 5, "seed": 7}
    many = rs.generate(model, source, num_return_sequences=3, tap=trace, **options)
    few = rs.generate(model, source, num_return_sequences=2, **options)
    one = rs.generate(model, source, **options)
    assert len(trace["encoder.embed"]) == 2
    assert len(many.tokens) == 6

    def row(out, i):
        return out.tokens[i, : out.lengths[i]].tolist()

    for i in range(2):
        assert row(many, 3 * i) == row(few, 2 * i) == row(one, i)
        assert row(many, 3 * i + 1) == row(few, 2 * i + 1)
    named = rs.generate(model, source[1:], row_ids=[1], num_return_sequences=3, **options)
    assert [row(named, j) for j in range(3)] == [row(many, 3 + j) for j in range(3)]
    one_too_great = {"row_ids": [0, 2**32], "max_new_tokens": 2}
    with pytest.raises(ValueError, match=r"^row_ids must be below 2\*\*32"):
        rs.generate(model, source, num_return_sequences=2, **one_too_great)
    rs.generate(model, source, **one_too_great)


# The numbers and arrays of a caller ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_numbers_of_numpy_do_not_wrap_around(kind):
    config = learned_model().config
    model = rs.Model.random(dataclasses.replace(config, decoder=_long(config.decoder)), 0)
    plain = rs.generate(model, [[3]], max_new_tokens=127, eos_ids=(), min_new_tokens=3)
    how = {"max_new_tokens": kind(127), "min_new_tokens": kind(3), "eos_ids": ()}
    assert np.array_equal(rs.generate(model, [[3]], **how).tokens, plain.tokens)
    assert rs.generate(model, [[3]], **how, num_return_sequences=kind(2)).tokens.shape == (2, 127)
    small = {"beams": kind(3), "n_best": kind(2), "max_new_tokens": kind(100), "eos_ids": ()}
    assert rs.beam_search(model, [[3]], **small).tokens.shape == (1, 2, 100)


def _long(stack):
    positions = dataclasses.replace(stack.positions, n_positions=300)
    return dataclasses.replace(stack, positions=positions)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16, np.int64])
def test_numbers_of_numpy_do_not_change_the_dtype(number):
    model = learned_model().astype("float32")
    weak = rs.amateur(model, beta=number(2), alpha=number(1) / 2)
    processors = [rs.temperature(number(2)), rs.min_p(number(0)), rs.repetition_penalty(number(2))]
    choose = rs.greedy(*processors, rs.top_a(number(0), number(2)), rs.epsilon(number(0)))
    for step in rs.decode_steps(model, [[3]], amateurs=[weak], choose=choose):
        assert step.logits.dtype == step.scores.dtype == np.float32


def test_what_the_loop_goes_on_with_cannot_be_written_to():
    model = learned_model()
    expected = rs.generate(model, [[3], [4]])

    def write(scores, state):
        arrays = (
            state.tokens,
            state.n_new,
            state.emitted,
            state.source_index,
            state.source,
            state.eos_ids,
        )
        for x in (*arrays, state.source_mask):
            with pytest.raises(ValueError, match="read-only"):
                x[...] = 0
        return scores

    def stop(step):
        for name in ("tokens", "log_probs", "margin", "finished", "forced", "emitted"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(step, name)[...] = 0

    choose = rs.greedy(write)
    assert np.array_equal(
        rs.generate(model, [[3], [4]], choose=choose, stop=stop).tokens, expected.tokens
    )
    with pytest.raises(ValueError, match="read-only"):  # a processor that changes its input
        rs.generate(model, [[3]], choose=rs.greedy(lambda x, state: x.__setitem__(0, 0.0)))


@pytest.mark.parametrize(
    ("token", "dtype"),
    [
        (-1, "int32"),
        (-1, "int64"),
        (13, "int32"),
        (13, "uint64"),
        (2**40, "int64"),
        (2**40, "uint64"),
    ],
)
def test_a_pick_outside_the_vocabulary_is_refused(token, dtype):
    pick = np.array([3, token], dtype)
    message = rf"must pick token ids from 0 to 12, got {token} for row 1$"
    with pytest.raises(ValueError, match=message):
        rs.generate(learned_model(), [[3], [4]], choose=rs.Chooser((), lambda scores, state: pick))


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "int16"])
def test_a_pick_of_any_integer_dtype(dtype):
    model = learned_model()
    choose = rs.Chooser((), lambda scores, state: scores.argmax(axis=-1).astype(dtype))
    same = rs.generate(model, [[3], [4]], choose=choose)
    assert np.array_equal(same.tokens, rs.generate(model, [[3], [4]]).tokens)


# Options that are not there -----------------------------------------------------------------------

INSTEAD = {
    "temperature": (0.8, r"choose=rs\.sample\(rs\.temperature\(0\.8\)\)"),
    "top_k": (5, r"rs\.top_k\(5, keep_ties=True\)"),
    "no_repeat_ngram_size": (3, r"rs\.no_repeat_ngram\(3\)"),
    "bad_words_ids": ([[3]], r"rs\.bad_words\(\[\[3\]\]\)"),
    "num_beams": (4, r"rs\.beam_search\(model, source, beams=4\)"),
    "do_sample": (True, r"choose=rs\.sample"),
    "attention_mask": (None, "source_mask="),
    "eos_token_id": (2, r"eos_ids=\[2\]"),
    "max_length": (9, "max_new_tokens="),
    "processors": ([], r"choose=rs\.greedy\(\.\.\.\)"),
    "max_new_token": (3, "did you mean 'max_new_tokens'"),
    "frobnicate": (3, "its arguments are source_mask, prefix"),
    "option": (3, "its arguments are source_mask, prefix"),
    "sourc": (3, "did you mean 'source_mask'"),
}


@pytest.mark.parametrize(("name", "value_and_cure"), INSTEAD.items(), ids=INSTEAD)
def test_an_unknown_option_says_what_to_write(name, value_and_cure):
    value, cure = value_and_cure
    for call in (rs.generate, lambda *a, **o: rs.generate_text(text_model(), ["a"], **o)):
        with pytest.raises(TypeError, match=f"has no argument '{name}': .*{cure}"):
            call(learned_model(), [[3]], **{name: value})


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("repetition_penalty", r"processors=\[rs\.repetition_penalty\(2\)\]"),
        ("choose", "processors="),
        ("num_return_sequences", "n_best=2"),
        ("seed", "gumbel_top_k"),
        ("uniforms", "gumbel_top_k"),
        ("row_ids", "gumbel_top_k"),
        ("do_sample", "beam search does not sample"),
        ("num_beams", "beams=2"),
        ("n_bests", "did you mean 'n_best'"),
    ],
)
def test_an_unknown_option_of_a_search_says_what_to_write(name, cure):
    with pytest.raises(TypeError, match=f"beam_search has no argument '{name}': .*{cure}"):
        rs.beam_search(learned_model(), [[3]], **{name: 2})


def test_every_cure_can_be_written():
    """Names that the messages use are names that there are."""
    from refseq2seq import options

    for text in (*options.PROCESSORS.values(), *options.ARGUMENTS.values()):
        for name in re.findall(r"rs\.(\w+)", text):
            assert hasattr(rs, name)


# What is no model, tap or sequence ----------------------------------------------------------------

CALLS = {
    "generate": rs.generate,
    "beam_search": rs.beam_search,
    "encode": rs.encode,
    "forward": lambda model, source, **how: rs.forward(model, source, [[1]], **how),
    "score": lambda model, source: rs.score(model, source, [[1, 3]]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("model", "got"), [("g2p", r"got str: write rs\.load\('g2p'\)"), (None, "NoneT")]
)
def test_what_is_no_model_is_refused(call, model, got):
    with pytest.raises(TypeError, match=f"^model must be a Model, .*{got}"):
        call(model, [[3]])


@pytest.mark.parametrize(
    "call", [CALLS[name] for name in ("generate", "beam_search", "encode", "forward")]
)
@pytest.mark.parametrize(
    ("tap", "cure"),
    [(lambda name, x: x, r"rs\.FunctionTap\("), (None, "rs.Trace"), ("*", "rs.Trace")],
)
def test_what_is_no_tap_is_refused(call, tap, cure):
    with pytest.raises(TypeError, match=f"^tap must be a Tap, got .*{cure}"):
        call(learned_model(), [[3]], tap=tap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_ids": 5}, "row_ids must be a sequence of ints, got 5"),
        ({"amateurs": None}, r"amateurs must be a sequence, such as \[rs\.amateur"),
        ({"amateurs": rs.amateur(rs.load("g2p"))}, "amateurs must be a sequence"),
        ({"uniforms": "abc"}, "uniforms must be numbers, got <U3"),
        ({"uniforms": [[0.5], [0.5, 0.5]]}, "uniforms must be an array, or lists of one shape"),
        ({"eos_ids": [[1], [2, 3]]}, "eos_ids must be an array, or lists of one shape"),
        ({"source_mask": [[True], [True, False]]}, "source_mask must be an array, or lists of one"),
        ({"eos_ids": np.ma.array([2, 3], mask=[0, 1])}, "eos_ids is a masked array"),
        ({"uniforms": np.ma.ones((1, 7))}, "uniforms is a masked array"),
        ({"use_cache": np.array([True, False])}, "use_cache must be a bool, got ndarray"),
        (
            {"choose": rs.Chooser((), lambda scores, state: None)},
            "pick an array of token ids, got None",
        ),
    ],
)
def test_what_is_no_sequence_or_array_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        rs.generate(learned_model(), [[3]], **options)
    with pytest.raises(TypeError, match="model must be a Model"):
        rs.amateur("g2p")
    with pytest.raises(ValueError, match="early_stopping must be True, False or 'never'"):
        rs.beam_search(learned_model(), [[3]], early_stopping=np.array([True, False]))
    with pytest.raises(TypeError, match="memory must be what encode gives, got None"):
        rs.decode(learned_model(), [[1]], None)
