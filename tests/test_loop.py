"""The loop: its steps against teacher forcing, by hand, and in any batch."""

import dataclasses
import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naming import raises_naming, short
from tasks import (
    GREEDY,
    NEW,
    assert_read_only,
    learned_model,
    new_tokens,
    path,
    path_model,
    slow_log_softmax,
    table_model,
    targets,
    tasks,
    writing,
)

import refseq2seq as rs
from refseq2seq import backend
from refseq2seq.generation import loop

# The steps are what teacher forcing says ---------------------------------------------------------


@settings(max_examples=30)
@given(task=tasks())
def test_every_field_of_every_step(task):
    model, source, prefix, choose = task
    steps = list(task.steps())
    config, batch, shortest = model.config, source.batch, min(map(len, prefix))
    target = targets(steps, prefix)
    expected = rs.forward(model, source.tokens, target[:, :-1], source.mask)
    shape = (batch, config.decoder.vocab_size)
    has_ended = np.zeros(batch, dtype=bool)
    n_new = np.zeros(batch, dtype=int)
    for t, step in enumerate(steps):
        assert step.index == t
        dtypes = {"tokens": np.int64, "log_probs": np.float64, "margin": np.float64}
        dtypes |= dict.fromkeys(("finished", "forced", "emitted"), np.bool_)
        for name, dtype in dtypes.items():
            array = getattr(step, name)
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


# The same row alone and in a batch, bit for bit ---------------------------------------------------


@settings(max_examples=20)
@given(task=tasks())
def test_cache_changes_no_bit(task):
    assert task.generated(use_cache=True) == task.generated(use_cache=False)


@settings(max_examples=20)
@given(task=tasks())
def test_a_row_is_the_same_alone_and_in_a_batch(task):
    together = task.generated(seed=3)
    for i in range(task.source.batch):
        assert task.rows([i]).generated(seed=3, row_ids=[i]) == [together[i]]


@settings(max_examples=20)
@given(task=tasks(), data=st.data())
def test_the_order_of_rows_does_not_matter(task, data):
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
def test_new_tokens_fed_back_as_prefix_are_continued(task, n):
    whole = task.generated(eos_ids=())
    longer = [begin + tokens[:n] for begin, (tokens, _, _) in zip(task.prefix, whole, strict=True)]
    rest = task.generated(eos_ids=(), prefix=longer, max_new_tokens=NEW - n)
    assert rest == [(tokens[n:], log_probs[n:], False) for tokens, log_probs, _ in whole]


@settings(max_examples=20)
@given(task=tasks(choosers=[GREEDY], dtypes=["float64"]))
def test_blas_gives_the_same_up_to_rounding(task):
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


ENDINGS = [  # greedy decoding goes 0 3 4 2 5 6 3 4 2, and 2 is EOS
    ({}, [[3, 4, 2]]),
    ({"prefix": [[0], [4], [3]]}, [[3, 4, 2], [2], [4, 2]]),
    ({"prefix": [[0], [0, 3, 4], [0, 3]], "max_new_tokens": 2}, [[3, 4], [2], [4, 2]]),
    ({"prefix": [[0, 2]]}, [[5, 6, 3, 4, 2]]),  # EOS in the prefix ends nothing
    ({"prefix": [[0, 2, 2], [2]]}, [[5, 6, 3, 4, 2]] * 2),
    ({"eos_ids": (6, 4)}, [[3, 4]]),
    ({"eos_ids": [6]}, [[3, 4, 2, 5, 6]]),
    ({"eos_ids": ()}, [[3, 4, 2, 5, 6, 3, 4]]),
    ({"eos_ids": (), "prefix": [[0], [0, 3]], "max_new_tokens": 2}, [[3, 4], [4, 2]]),
    ({"max_new_tokens": 3}, [[3, 4, 2]]),
    ({"max_new_tokens": 2}, [[3, 4]]),
    ({"min_new_tokens": 2}, [[3, 4, 2]]),
    # at the third token 2 is removed, and of the others, all equal, 0 is the first
    ({"min_new_tokens": 3}, [[3, 4, 0, 3, 4, 2]]),
    ({"min_new_tokens": 7}, [[3, 4, 0, 3, 4, 0, 3]]),
    ({"min_new_tokens": 1, "prefix": [[4], [0, 4]]}, [[0, 3, 4, 2]] * 2),
    # min_new_tokens goes first: if top_k kept EOS, nothing would be left
    ({"min_new_tokens": 1, "prefix": [[4]], "choose": rs.greedy(rs.top_k(1))}, [[0, 3, 4, 2]]),
]


@pytest.mark.parametrize(("options", "tokens"), ENDINGS, ids=short)
def test_rows_end_with_eos_or_max_new_tokens(options, tokens):
    out = path(path_model(eos_ids=(2,)), **options)
    assert new_tokens(out) == tokens
    eos_ids = options.get("eos_ids", (2,))
    assert out.finished.tolist() == [row[-1] in eos_ids for row in tokens]


def test_start_token_and_eos_ids_are_those_of_the_config():
    assert new_tokens(path(path_model(start=6), max_new_tokens=2)) == [[3, 4]]
    assert new_tokens(path(path_model(start=6), [[6]], max_new_tokens=2)) == [[3, 4]]
    assert new_tokens(path(path_model(start=2, eos_ids=(2,)))) == [[5, 6, 3, 4, 2]]
    assert new_tokens(path(path_model(eos_ids=(6, 2)))) == [[3, 4, 2]]


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

    def by_step(*rows):
        return [[bool(x) for x in step] for step in zip(*rows, strict=True)]

    forced = by_step([0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0])
    emitted = by_step([1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0])
    finished = by_step([0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1])
    assert [step.forced.tolist() for step in steps] == forced
    assert [step.emitted.tolist() for step in steps] == emitted
    assert [step.finished.tolist() for step in steps] == finished
    # 5 after 0 is not what the model expects, 4 after 0 neither; nothing follows the end
    ahead, behind = -math.log(1 + 6 * math.exp(-5)), -math.log(6 + math.exp(5))
    expected = [[ahead, behind, behind], [ahead, behind, ahead], [ahead, behind, 0]]
    expected += [[0, ahead, 0], [0, ahead, 0]]
    found = [step.log_probs for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-13, equal_nan=False)


def test_min_new_tokens_changes_scores_and_no_logits():
    how = {"prefix": [[4]], "max_new_tokens": 2, "min_new_tokens": 1}
    steps = list(rs.decode_steps(path_model(eos_ids=(2,)), [[0]], **how))
    assert [step.scores[0, 2] for step in steps] == [-math.inf, 0]
    assert steps[0].logits[0, 2] == 5
    assert steps[0].margin.tolist() == [0]


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
    stop = {"stop": lambda step: as_answer(step.tokens == 4)}
    out = path(path_model(), [[0], [5]], max_new_tokens=5, **stop)
    assert new_tokens(out) == [[3, 4], [6, 3, 4]]
    assert out.finished.tolist() == [True, True]


@pytest.mark.parametrize("answer", [None, False, np.False_, 0])
def test_stop_that_answers_false_or_none_stops_nothing(answer):
    assert path(path_model(), stop=lambda step: answer).lengths.tolist() == [7]


def test_stop_sees_the_end_by_eos_and_its_own_answer_shows_in_the_step():
    model, seen = path_model(eos_ids=(2,)), []

    def stop(step):
        seen.append(step.finished.tolist())
        return [False, step.index == 1]

    steps = list(rs.decode_steps(model, [[0]] * 2, prefix=[[4], [0]], max_new_tokens=7, stop=stop))
    assert seen == [[True, False], [True, False]]
    assert [step.finished.tolist() for step in steps] == [[True, False], [True, True]]


def test_stop_ends_a_row_in_its_prefix():
    out = path(path_model(), [[0], [0, 3, 4]], stop=lambda step: [False, True], max_new_tokens=3)
    assert new_tokens(out) == [[3, 4, 2], []]
    out = path(path_model(), [[0, 3], [0]], stop=lambda step: step.forced | step.emitted)
    assert (new_tokens(out), out.tokens.shape) == ([[], [3]], (2, 1))


def test_stop_does_not_finish_a_row_that_was_cut_off():
    """Row 0 reaches its two new tokens in step 1; row 1 follows its prefix until step 3."""
    for ended, finished in (([True, False], [False, False]), (True, [False, True])):
        stop = {"stop": lambda step, ended=ended: ended if step.index == 4 else False}
        out = path(path_model(), [[0], [0, 3, 4, 2, 3]], max_new_tokens=2, eos_ids=(), **stop)
        assert out.finished.tolist() == finished


@pytest.mark.parametrize("tap", [rs.no_tap, rs.Trace()])
def test_a_row_that_is_stopped_in_its_prefix_gets_pads(tap):
    how = {"prefix": [[1, 3, 4, 5], [1]], "max_new_tokens": 3, "eos_ids": (), "tap": tap}
    stop = {"stop": lambda step: [True, False]}
    steps = list(rs.decode_steps(learned_model(), [[3, 4], [5]], **how, **stop))
    assert [step.forced.tolist() for step in steps] == [[True, False], [False] * 2, [False] * 2]
    assert [step.tokens[0] for step in steps] == [3, 0, 0]  # then pads
    assert steps[0].log_probs[0] < 0
    assert [step.log_probs[0] for step in steps[1:]] == [0, 0]
    assert [step.emitted.tolist() for step in steps] == [[False, True]] * 3


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "uint64"])
def test_row_ids_may_be_of_any_integer_dtype(dtype):
    options = {"num_return_sequences": 2, "choose": rs.sample()}
    out = rs.generate(learned_model(), [[3], [4]], row_ids=np.array([1, 2], dtype), **options)
    same = rs.generate(learned_model(), [[3], [4]], row_ids=[1, 2], **options)
    assert np.array_equal(out.tokens, same.tokens)


# Interrupting ------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(task=tasks(), data=st.data())
def test_steps_of_an_interrupted_loop_are_the_first_ones(task, data):
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
def test_steps_do_not_change_after_they_are_yielded(use_cache):
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


def test_two_loops_of_one_model_share_no_state():
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


def test_a_generation_of_no_steps_raises():
    with raises_naming(ValueError, "steps"):
        rs.Generation.from_steps([], 0)


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


def test_the_state_that_a_processor_gets():
    states = []

    def watch(scores, state):
        states.append(state)
        return scores

    source, source_mask = np.array([[3, 4], [5, 6]]), np.array([[True, True], [False, True]])
    how = {"prefix": [[4], [0, 5, 6]], "max_new_tokens": 3, "choose": rs.greedy(watch)}
    rs.generate(path_model(eos_ids=(2,)), source, source_mask=source_mask, **how)
    assert [state.tokens.tolist() for state in states] == [
        [[4], [0]],
        [[4, 2], [0, 5]],
        [[4, 2, 1], [0, 5, 6]],
        [[4, 2, 1, 1], [0, 5, 6, 3]],
        [[4, 2, 1, 1, 1], [0, 5, 6, 3, 4]],
    ]
    assert [state.n_new.tolist() for state in states] == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 2]]
    assert [state.emitted[0] for state in states] == [True, False, False, False, False]
    assert [state.emitted[1] for state in states] == [False, False, True, True, True]
    for state in states:
        assert state.source_index.tolist() == [0, 1]
        np.testing.assert_array_equal(state.source_mask, source_mask)
        np.testing.assert_array_equal(state.source[source_mask], [3, 4, 6])


def test_a_processor_sees_which_source_each_sample_is_of():
    seen = []
    watch = rs.greedy(lambda scores, state: seen.append(state.source_index) or scores)
    path(path_model(), [[0], [0]], num_return_sequences=2, choose=watch)
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
    out = path(path_model(), [[1], [0]], choose=worst, max_new_tokens=2)
    assert new_tokens(out) == [[0, 0], [0, 0]]


# Looking inside, and what it costs ---------------------------------------------------------------


def test_scores_that_a_tap_changes_are_used():
    def forbid_3(name, x):
        return np.where(np.arange(7) == 3, -math.inf, x) if name == "step.0.scores" else x

    out = path(path_model(), tap=rs.FunctionTap(forbid_3), max_new_tokens=2)
    assert new_tokens(out) == [[0, 3]]


def test_a_generation_encodes_once_and_reads_the_device_once_a_step(monkeypatch):
    passed, reads = [], []

    def read(*arrays):
        reads.append({x.shape for x in arrays})
        return backend.read(*arrays)

    monkeypatch.setattr(loop, "read", read)
    tap = rs.FunctionTap(lambda name, x: passed.append(name) or x)
    how = {"choose": rs.sample(rs.top_p(0.9)), "eos_ids": (), "tap": tap}
    rs.generate(learned_model(), [[3], [4, 5]], **how)
    embedded = [name for name in passed if name.endswith("embed")]
    assert embedded == ["encoder.embed", *(f"step.{t}.decoder.embed" for t in range(7))]
    assert reads == [{(2,)}] * 7


# The numbers and arrays of a caller ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_numbers_of_small_integer_dtypes_do_not_wrap(kind):
    model = learned_model(n_positions=300)
    plain = rs.generate(model, [[3]], max_new_tokens=127, eos_ids=(), min_new_tokens=3)
    how = {"max_new_tokens": kind(127), "min_new_tokens": kind(3), "eos_ids": ()}
    assert np.array_equal(rs.generate(model, [[3]], **how).tokens, plain.tokens)
    assert rs.generate(model, [[3]], **how, num_return_sequences=kind(2)).tokens.shape == (2, 127)
    small = {"beams": kind(3), "n_best": kind(2), "max_new_tokens": kind(100), "eos_ids": ()}
    assert rs.beam_search(model, [[3]], **small).tokens.shape == (1, 2, 100)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16, np.int64])
def test_numpy_numbers_do_not_change_the_dtype(number):
    model = learned_model().astype("float32")
    weak = rs.amateur(model, beta=number(2), alpha=number(1) / 2)
    processors = [rs.temperature(number(2)), rs.min_p(number(0)), rs.repetition_penalty(number(2))]
    choose = rs.greedy(*processors, rs.top_a(number(0), number(2)), rs.epsilon(number(0)))
    for step in rs.decode_steps(model, [[3]], amateurs=[weak], choose=choose):
        assert step.logits.dtype == step.scores.dtype == np.float32


def test_state_and_steps_are_read_only():
    model = learned_model()
    expected = rs.generate(model, [[3], [4]])

    def stop(step):
        for name in ("tokens", "log_probs", "margin", "finished", "forced", "emitted"):
            assert_read_only(getattr(step, name))

    watched = rs.generate(model, [[3], [4]], choose=rs.greedy(writing), stop=stop)
    assert np.array_equal(watched.tokens, expected.tokens)
    with pytest.raises(ValueError, match="read-only"):  # a processor that changes its input
        rs.generate(model, [[3]], choose=rs.greedy(lambda x, state: x.__setitem__(0, 0.0)))


@pytest.mark.parametrize(
    ("pick", "kind", "names"),
    [
        (lambda scores: scores.argmax(axis=-1, keepdims=True), ValueError, ["int64 (2, 1)"]),
        (lambda scores: scores.argmax(axis=-1)[:1], ValueError, ["int64 (1,)"]),
        (lambda scores: scores.max(axis=-1), ValueError, ["float64 (2,)"]),
        (lambda scores: None, TypeError, ["NoneType"]),
        *(
            (lambda scores, x=x: x, ValueError, ["0 to 12", x[1], "row 1"])
            for x in (
                *(np.array([0, -1], dtype) for dtype in ("int32", "int64")),
                *(np.array([0, 13], dtype) for dtype in ("int32", "uint64")),
                *(np.array([0, 2**40], dtype) for dtype in ("int64", "uint64")),
            )
        ),
    ],
)
def test_a_pick_of_another_shape_dtype_or_range_raises(pick, kind, names):
    choose = rs.Chooser((), lambda scores, state: pick(scores))
    with raises_naming(kind, "pick", *names):
        rs.generate(learned_model(), [[3], [4]], choose=choose)


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "int16"])
def test_a_pick_may_be_of_any_integer_dtype(dtype):
    choose = rs.Chooser((), lambda scores, state: scores.argmax(axis=-1).astype(dtype))
    same = rs.generate(learned_model(), [[3], [4]], choose=choose)
    assert np.array_equal(same.tokens, rs.generate(learned_model(), [[3], [4]]).tokens)
