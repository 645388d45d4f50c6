"""Sources that are not tokens: frames, embeddings, and memories that are given."""

import dataclasses

import arrangements
import numpy as np
import pytest
import scalar
from arrangements import frame_layer, reading_frames
from command_line import assert_refused, in_process
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import raises_naming
from tasks import every_search

import refseq2seq as rs
from refseq2seq.config import FrameInput
from refseq2seq.frames import frame_layer as computed_layer
from refseq2seq.frames import mask_of_windows, windows
from refseq2seq.params import FrameLayerParams, NormParams
from refseq2seq.testing import strategies

TARGET = np.array([[1, 4, 6, 7], [1, 5, 8, 3]])
NEW = {"max_new_tokens": 4}
dtypes = pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
every_reader = pytest.mark.parametrize(
    "config", arrangements.OF_FRAMES.values(), ids=arrangements.OF_FRAMES
)


def model_of(config=arrangements.frames, dtype="float64", seed=3):
    return rs.Model.random(config, seed, dtype)


def rows_of(model, lengths=(11, 7), seed=0):
    """Frames, rounded to float16 so that every dtype has the same."""
    width, rng = model.config.encoder.input.n_features, np.random.default_rng(seed)
    return [rng.standard_normal((n, width)).astype("float16").astype("float64") for n in lengths]


def padded(rows, more=0, filler=0.0):
    """The rows as one array with padding at their end, and its mask."""
    n = max(map(len, rows)) + more
    x, mask = np.full((len(rows), n, rows[0].shape[1]), filler), np.zeros((len(rows), n), bool)
    for i, row in enumerate(rows):
        x[i, : len(row)], mask[i, : len(row)] = row, True
    return x, mask


def assert_same(a, b):
    a, b = (dataclasses.asdict(x) if dataclasses.is_dataclass(x) else {"x": x} for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Windows and their masks.

EMPTY = NormParams(gain=None, bias=None)

layers = st.builds(
    lambda window, stride, padding: frame_layer(3, window, stride, min(padding, (window - 1) // 2)),
    window=st.integers(1, 6),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
)


@given(c=layers, n=st.integers(6, 13))
def test_windows_are_those_of_a_loop(c, n):
    x = np.arange(1.0, 2 * n * 2 + 1).reshape(2, n, 2)
    expected = []
    for row in x.tolist():
        whole = [[0.0, 0.0]] * c.padding + row + [[0.0, 0.0]] * c.padding
        starts = range(0, len(whole) - c.window + 1, c.stride)
        expected.append([[y for v in whole[i : i + c.window] for y in v] for i in starts])
    assert windows(x, c).tolist() == expected


@given(c=layers, kernel=st.lists(st.integers(-8, 8), min_size=6, max_size=6), n=st.integers(6, 13))
def test_a_layer_of_one_feature_is_a_correlation(c, kernel, n):
    x, kernel = np.random.default_rng(n).standard_normal(n), np.array(kernel[: c.window]) / 4
    p = FrameLayerParams(
        norm_before=EMPTY, w_in=kernel[:, None], b_in=np.array([0.25]), norm_after=EMPTY
    )
    c = dataclasses.replace(c, d_out=1, activation="none")
    out, mask = computed_layer(p, c, x[None, :, None], None)
    inner = np.pad(x, c.padding)
    np.testing.assert_allclose(
        out[0, :, 0], np.correlate(inner, kernel, "valid")[:: c.stride] + 0.25, atol=1e-13
    )
    assert mask is None


@given(
    inner=st.lists(layers, max_size=3), lengths=st.lists(st.integers(1, 29), min_size=1, max_size=4)
)
def test_a_mask_counts_the_windows_that_there_are_without_padding(inner, lengths):
    """One after the other; `FrameInput.length` says how many, with and without padding."""
    c = FrameInput(n_features=2, layers=tuple(inner), n_class_tokens=0)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    x = np.zeros((len(lengths), max(lengths), 2))
    for layer in c.layers:
        if x.shape[1] + 2 * layer.padding < layer.window:
            return
        x, mask = windows(x, layer), mask_of_windows(mask, layer)
        assert mask.shape == x.shape[:2]
    assert x.shape[1] == c.length(max(lengths))
    assert mask.sum(axis=1).tolist() == [c.length(n) for n in lengths]
    assert (np.sort(mask)[:, ::-1] == mask).all()  # the real ones come first


@every_reader
def test_the_shape_and_the_mask_of_a_memory(config):
    model = model_of(config)
    memory = rs.encode(model, rows_of(model))
    lengths = [config.encoder.input.length(n) for n in (11, 7)]
    assert memory.hidden.shape == (2, lengths[0], config.encoder.d_model)
    assert memory.mask.sum(axis=1).tolist() == lengths
    assert rs.encode(model, rows_of(model)[:1]).mask is None


# Values, and relations to the last bit.


@every_reader
def test_forward_agrees_with_the_scalar_implementation(config):
    model = model_of(config)
    logits = rs.forward(model, rows_of(model), TARGET)
    for row, target, actual in zip(rows_of(model), TARGET.tolist(), logits, strict=True):
        expected = scalar.forward(model, row.tolist(), target)
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)


@dtypes
@settings(max_examples=12)
@given(data=st.data())
def test_padding_cache_and_batch_change_no_bit_of_an_exact_model(data, dtype):
    config = data.draw(strategies.configs() | st.sampled_from([*arrangements.OF_FRAMES.values()]))
    model = rs.Model.random(config, data.draw(st.integers(0, 99)), dtype).exact()
    source = data.draw(strategies.sources(model, embedded=config.encoder.vocab_size > 0))
    rows = [np.array(row) for row in source.rows]
    target = data.draw(strategies.targets(model, source.batch, max_length=4))
    together = rs.forward(model, source.tokens, target, source.mask)
    single = [rs.forward(model, [row], target[[i]])[0] for i, row in enumerate(rows)]
    np.testing.assert_array_equal(together, np.stack(single))
    most = config.encoder.max_length
    for more, filler in ((0, 5.0), (3, np.nan)):  # what a mask hides may be anything
        x, mask = padded(rows, more, filler)
        if most is None or config.encoder.input.length(x.shape[1]) <= most:
            np.testing.assert_array_equal(rs.forward(model, x, target, mask), together)
    memory = rs.encode(model, source.tokens, source.mask)
    cache = rs.new_cache(model, source.batch, target.shape[1])
    steps = [rs.decode(model, target[:, [t]], memory, cache=cache) for t in range(target.shape[1])]
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), together)


def test_the_order_of_frames_and_each_of_them_count():
    model = model_of()
    x = np.stack(rows_of(model, (9, 9)))
    before = rs.forward(model, x, TARGET)
    for place in range(9):
        changed = x.copy()
        changed[:, place] += 1
        assert abs(rs.forward(model, changed, TARGET) - before).max() > 1e-4
    assert abs(rs.forward(model, x[:, ::-1], TARGET) - before).max() > 1e-4


@every_reader
@dtypes
def test_dtype_in_is_dtype_out(config, dtype):
    trace = rs.Trace()
    model = model_of(config, dtype)
    rows = [row.astype("float32") for row in rows_of(model)]
    assert rs.forward(model, rows, TARGET, tap=trace).dtype == dtype
    assert {x.dtype.name for x in trace.values()} == {dtype}
    np.testing.assert_array_equal(trace["encoder.frames"][0], rows[0])


def test_the_embedding_scale_counts_frames_and_class_tokens():
    scaled = dataclasses.replace(arrangements.captioner.encoder, embedding_scale=3.0)
    model = model_of(dataclasses.replace(arrangements.captioner, encoder=scaled))
    (row,) = rows_of(model, (5,))
    np.testing.assert_array_equal(rs.encode(model, [row]).hidden, 3 * row[None])


# Embeddings.


@pytest.mark.parametrize("name", arrangements.ALL)
@dtypes
def test_embeddings_stand_for_their_tokens(name, dtype):
    model, ids = model_of(arrangements.ALL[name], dtype), np.array([[3, 4, 5], [9, 7, 0]])
    mask, c = np.array([[True] * 3, [True, True, False]]), model.config.encoder
    wide = "float32" if dtype == "float16" else dtype
    vectors = model.params.encoder.embedding[ids].astype(wide) * c.embedding_scale
    vectors = vectors.astype(dtype)
    for search in (rs.generate, rs.beam_search):
        found = [search(model, x, source_mask=mask, **NEW) for x in (ids, vectors)]
        assert_same(*found)
    ragged = [vectors[0], vectors[1, :2]]
    target = np.column_stack([[model.config.decoder_start_id] * 2, TARGET])
    assert_same(rs.score(model, ids, target, mask), rs.score(model, ragged, target))


# Memories.


@every_reader
@dtypes
def test_a_memory_gives_what_its_source_gives(config, dtype):
    model = model_of(config, dtype)
    rows = rows_of(model)
    memory = rs.encode(model, rows)
    project = rs.project_memory(model, memory.hidden, memory.mask)
    assert rs.encode(model, memory) is memory
    weak = [rs.amateur(model_of(config, dtype, seed=5), reads_source=False)]
    for made in (memory, project) if dtype != "float16" else (memory,):  # hidden is rounded there
        np.testing.assert_array_equal(
            rs.forward(model, made, TARGET), rs.forward(model, rows, TARGET)
        )
        for how in ({}, {"choose": rs.sample(), "seed": 5, "num_return_sequences": 3}):
            assert_same(
                rs.generate(model, made, **NEW, **how), rs.generate(model, rows, **NEW, **how)
            )
        for how in ({"beams": 3, "n_best": 2}, {"amateurs": weak}):
            found = (rs.beam_search(model, x, **NEW, **how) for x in (made, rows))
            assert_same(*found)
        assert_same(rs.score(model, made, TARGET), rs.score(model, rows, TARGET))
        for a, b in zip(*(rs.decode_steps(model, x, **NEW) for x in (made, rows)), strict=True):
            np.testing.assert_array_equal(a.logits, b.logits)


def test_a_given_memory_needs_no_encoder():
    """Only its mask and its vectors count, and what is behind the mask counts for nothing."""
    model, hidden = model_of(arrangements.vaswani), np.random.default_rng(0).random((2, 5, 14))
    mask = np.array([[True] * 5, [False, True, True, False, True]])
    out = rs.generate(model, rs.project_memory(model, hidden, mask), **NEW)
    other = np.where(mask[:, :, None], hidden, 7.0)
    assert_same(rs.generate(model, rs.project_memory(model, other, mask), **NEW), out)
    alone = rs.project_memory(model, hidden[1:, mask[1]])
    hollow = np.where(mask[:, :, None], hidden, np.nan)
    assert_same(rs.generate(model, rs.project_memory(model, hollow, mask), **NEW), out)
    short = rs.generate(model, alone, **NEW)
    assert short.tokens[0, : short.lengths[0]].tolist() == out.tokens[1, : out.lengths[1]].tolist()


def test_amateurs_read_frames_or_the_experts_memory():
    model, other = model_of(), model_of(seed=5)
    rows = rows_of(model)
    how = NEW | {"amateurs": [rs.amateur(other)]}
    trace = rs.Trace()
    steps = list(rs.decode_steps(model, rows, tap=trace, **how))
    np.testing.assert_array_equal(
        trace["amateur.0.encoder.final"], traced(other, rows)["encoder.final"]
    )
    assert len(steps) == 4
    with raises_naming(ValueError, "amateur", "reads_source=False"):  # its keys are the expert's
        rs.generate(model, rs.encode(model, rows), **how)
    deaf = rs.amateur(model_of(arrangements.vaswani))
    with pytest.raises(ValueError, match=r"an amateur must .*vocabulary"):
        rs.generate(model, rows, amateurs=[deaf], **NEW)


def traced(model, source):
    trace = rs.Trace()
    rs.forward(model, source, TARGET, tap=trace)
    return trace


# Refusals.

GOOD = np.ones((2, 7, 5))
HOLES = np.array([[True] * 7, [True, True, True, False, True, True, True]])


def with_nan():
    x = GOOD.copy()
    x[1, 3, 2] = np.nan
    return x


class Tensor:
    """What another library might hand over."""


SOURCES = {
    "ids": ([[3, 4, 5]], (TypeError, ValueError), "source"),
    "integers": (GOOD.astype(int), TypeError, "int64"),
    "booleans": (GOOD > 0, TypeError, "bool"),
    "complex": (GOOD * 1j, TypeError, "complex128"),
    "objects": (np.full((1, 4, 5), None), TypeError, "object"),
    "texts": ("hello", (TypeError, ValueError), "source"),
    "masked": (np.ma.masked_array(GOOD, GOOD > 2), TypeError, "source"),
    "2-D": (GOOD[0], ValueError, "source[None]"),
    "a sound": (np.ones((1, 9)), ValueError, "log_mel"),
    "4-D": (GOOD[None], ValueError, "(1, 2, 7, 5)"),
    "one frame": (GOOD[0, 0], ValueError, "source"),
    "a number": (3.0, (TypeError, ValueError), "source"),
    "another width": (GOOD[:, :, :3], ValueError, "(batch, n, 5)"),
    "swapped axes": (GOOD.swapaxes(1, 2), ValueError, "swap"),
    "widths that differ": ([np.ones((7, 5)), np.ones((7, 3))], ValueError, "source"),
    "a list of vectors": ([np.ones(5), np.ones(5)], ValueError, "source"),
    "no rows": ([], ValueError, "source"),
    "no rows, an array": (GOOD[:0], ValueError, "source"),
    "no frames": (GOOD[:, :0], ValueError, "source"),
    "a row without frames": ([GOOD[0], GOOD[0, :0]], ValueError, "row 1"),
    "NaN": (with_nan(), ValueError, "row 1, position 3"),
    "infinite": (np.where(GOOD > 0, -np.inf, 0), ValueError, "row 0, position 0"),
    "another object": (Tensor(), (TypeError, ValueError), "source"),
    "None": (None, (TypeError, ValueError), "source"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "kind", "name"), SOURCES.values(), ids=SOURCES)
def test_wrong_frames_raise(source, kind, name):
    with raises_naming(kind, name, "source"):
        rs.encode(model_of(), source)


MASKS = {
    "holes": (HOLES, ValueError, "source_mask"),
    "padding first": (HOLES[:, ::-1] & (np.arange(7) > 0), ValueError, "source_mask"),
    "no frame": (np.zeros((2, 7), bool), ValueError, "row 0"),
    "integers": (HOLES.astype(int), TypeError, "int64"),
    "frames and features": (GOOD > 0, ValueError, "(2, 7, 5)"),
    "another length": (HOLES[:, :6], ValueError, "(2, 6)"),
}


@pytest.mark.parametrize(("mask", "kind", "name"), MASKS.values(), ids=MASKS)
def test_wrong_masks_of_frames_raise(mask, kind, name):
    with raises_naming(kind, name):
        rs.encode(model_of(), GOOD, mask)


def test_holes_are_refused_where_a_layer_skips_frames():
    c = arrangements.captioner.encoder
    skipping = FrameInput(
        n_features=14, layers=(frame_layer(c.d_model, 1, 2, 0),), n_class_tokens=0
    )
    config = dataclasses.replace(
        arrangements.captioner, encoder=dataclasses.replace(c, input=skipping)
    )
    with raises_naming(ValueError, "source_mask"):
        rs.encode(model_of(config), np.ones((2, 7, 14)), HOLES)


def test_holes_are_allowed_where_no_layer_joins_frames():
    model = model_of(arrangements.captioner)
    x = np.random.default_rng(0).random((2, 7, 14))
    logits = rs.forward(model, x, TARGET, HOLES)
    alone = rs.forward(model, x[1:, HOLES[1]], TARGET[1:])
    np.testing.assert_allclose(logits[1:], alone, rtol=1e-12)


def test_a_tensor_is_read_as_its_array():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = model_of()
    np.testing.assert_array_equal(
        rs.encode(model, torch.tensor(GOOD)).hidden, rs.encode(model, GOOD).hidden
    )
    with raises_naming(TypeError, "source"):
        rs.encode(model, torch.ones((2, 7, 5), dtype=torch.int64))


@pytest.mark.parametrize(
    ("vectors", "kind", "name"),
    [
        (np.ones((2, 3, 13)), ValueError, "(batch, n, 14)"),
        (np.ones((2, 3, 14), int), TypeError, "int64"),
        (np.full((2, 3, 14), np.inf), ValueError, "row 0, position 0"),
    ],
)
def test_wrong_embeddings_raise(vectors, kind, name):
    with raises_naming(kind, name, "source"):
        rs.encode(model_of(arrangements.vaswani), vectors)


def test_too_few_frames_for_the_windows_raise():
    layers = (frame_layer(13, window=5, stride=2, padding=0),)
    model = model_of(reading_frames(arrangements.frames, 5, layers, n_class_tokens=1))
    assert rs.encode(model, GOOD[:, :5]).hidden.shape == (2, 2, 13)
    with raises_naming(ValueError, "row 1", "4 frames"):
        rs.encode(model, [GOOD[0], GOOD[1, :4]])


def test_more_embeddings_than_positions_raise():
    model = model_of()  # 17 positions: 2 class tokens and 15 windows, of 30 frames
    assert rs.encode(model, np.ones((1, 30, 5))).hidden.shape[1] == 17
    with raises_naming(ValueError, "source", "17", "18"):
        rs.encode(model, np.ones((1, 31, 5)))


MEMORIES = {
    "masked": ({"hidden": np.ma.masked_array(np.ones((2, 3, 14)))}, TypeError, "hidden"),
    "integers": ({"hidden": np.ones((2, 3, 14), int)}, TypeError, "hidden"),
    "2-D": ({"hidden": np.ones((3, 14))}, ValueError, "hidden[None]"),
    "another width": ({"hidden": np.ones((2, 3, 13))}, ValueError, "(2, 3, 13)"),
    "empty": ({"hidden": np.ones((2, 0, 14))}, ValueError, "(2, 0, 14)"),
    "mask of integers": ({"mask": np.ones((2, 3), int)}, TypeError, "mask"),
    "mask of another shape": ({"mask": np.ones((3, 2), bool)}, ValueError, "(3, 2)"),
    "a model's name": ({"model": "g2p"}, TypeError, "rs.load"),
    "a tap that is none": ({"tap": 3}, TypeError, "tap"),
    "NaN": ({"hidden": np.full((2, 3, 14), np.nan)}, ValueError, "row 0, position 0"),
}


@pytest.mark.parametrize(("wrong", "kind", "name"), MEMORIES.values(), ids=MEMORIES)
def test_project_memory_refuses(wrong, kind, name):
    given = {"model": model_of(arrangements.vaswani), "hidden": np.ones((2, 3, 14))} | wrong
    with raises_naming(kind, name):
        rs.project_memory(**given)


@every_search
def test_a_memory_of_another_model_or_dtype_or_with_a_mask_is_refused(search):
    model = model_of(arrangements.vaswani)
    memory = rs.encode(model, [[3, 4], [5, 6]])
    others = [model_of(arrangements.rich), model.astype("float32"), model_of(arrangements.t5_like)]
    for other in others:
        with raises_naming(ValueError, "Memory", "rs.project_memory"):
            search(other, memory, max_new_tokens=2)
    with raises_naming(ValueError, "source_mask", "Memory"):
        search(model, memory, source_mask=np.ones((2, 2), bool), max_new_tokens=2)
    with raises_naming(ValueError, "prefix", "2", "3"):
        search(model, memory, prefix=[[1]] * 3, max_new_tokens=2)


@pytest.mark.parametrize(
    "changed",
    [
        lambda m: {"mask": m.mask.astype(int)},
        lambda m: {"mask": m.mask[:1]},
        lambda m: {"mask": m.mask[0]},
        lambda m: {"mask": m.mask[:, :2]},
        lambda m: {"hidden": m.hidden[:, :2]},
        lambda m: {"hidden": None},
        lambda m: {"keys": m.keys[:1]},
        lambda m: {"keys": None},
        lambda m: {"values": tuple(v.astype("float32") for v in m.values)},
        lambda m: {"values": (1, 2)},
        lambda m: dataclasses.asdict(m.take(np.array([], int))),
    ],
)
def test_a_memory_that_was_changed_is_refused(changed):
    model = model_of(arrangements.vaswani)
    memory = rs.encode(model, [[3, 4, 5], [5, 6]])
    for name, value in changed(memory).items():
        object.__setattr__(memory, name, value)
    for reads in (
        lambda: rs.generate(model, memory, **NEW),
        lambda: rs.decode(model, TARGET, memory),
    ):
        with raises_naming(ValueError, "Memory", "rs.project_memory"):
            reads()


def test_a_memory_of_another_backend_is_refused(double):
    with double.installed():
        model = model_of(arrangements.vaswani)
        there = model.to("cupy")
        for reader, maker in ((model, there), (there, model)):
            with raises_naming(TypeError, "Memory", "backend"):
                rs.generate(reader, rs.encode(maker, [[3, 4]]), **NEW)


READING = [rs.encoder_repetition_penalty(1.3), rs.encoder_no_repeat_ngram(2)]


@every_search
@pytest.mark.parametrize("process", READING, ids=repr)
def test_processors_that_read_source_tokens_refuse_other_sources(search, process):
    model, tokens = model_of(), model_of(arrangements.vaswani)
    vectors = np.ones((2, 3, 14))
    sources = [(model, rows_of(model)), (model, rs.encode(model, rows_of(model)))]
    for reader, source in [*sources, (tokens, vectors), (tokens, rs.encode(tokens, [[3, 4]]))]:
        with raises_naming(rs.UnsupportedFeature, process.name):
            search(reader, source, [process], max_new_tokens=2)


# What is not finite.


@every_search
def test_overflow_of_frames_raises_with_row_and_quantity(search):
    model = model_of(dtype="float32")
    rows = [x.astype("float32") for x in rows_of(model)]
    rows[1] *= np.float32(1e38)
    layers = tuple(
        dataclasses.replace(layer, norm_before=None, norm_after=None)
        for layer in model.config.encoder.input.layers
    )
    model = rs.Model.random(
        reading_frames(arrangements.frames, 5, layers, 2, n_register_tokens=0), 3, "float32"
    )
    with raises_naming(
        rs.NonFiniteLogitsError, "row 1 in step 0", "encoder.frame_layers.0", "astype('float64')"
    ):
        search(model, rows, max_new_tokens=2)


@every_search
def test_vectors_that_overflow_the_dtype_raise(search):
    model, x = model_of(arrangements.vaswani, "float32"), np.ones((2, 3, 14))
    x[1, 2] = 1e300
    with raises_naming(ValueError, "hidden", "float32", "row 1, position 2"):
        rs.project_memory(model, x)
    for reads in (rs.encode, lambda *given: search(*given, max_new_tokens=2)):
        with raises_naming(ValueError, "source", "float32", "row 1, position 2"):
            reads(model, x)


@every_search
def test_overflow_behind_a_memory_raises_with_row_and_quantity(search):
    model = model_of(arrangements.vaswani, "float32")
    hidden = np.ones((2, 3, 14), "float32")
    hidden[1] = 1e38
    memory = rs.project_memory(model, hidden)
    with raises_naming(rs.NonFiniteLogitsError, "row 1 in step 0", "decoder.layers.0"):
        search(model, memory, max_new_tokens=2)


# Texts, pages and tables.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of frames with a target vocabulary, in a file."""
    symbols = [*"abcdefghijklmnopqrstuvw"]
    model = dataclasses.replace(model_of(), target_vocabulary=arrangements.vocabulary(symbols))
    path = tmp_path_factory.mktemp("frames") / "model.npz"
    rs.save(model, path)
    return path


COMMANDS = [
    ["generate", "ab"],
    ["generate", "ab", "--steps"],
    ["generate", "ab", "--json", "--beams", "2"],
    ["explain", "ab", "--html", "-"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_that_read_texts_refuse_in_one_line(saved, capsys, command):
    assert_refused(in_process(capsys)(*command, "--model", saved), saved, "frames")


def test_a_model_of_frames_is_described(saved, capsys):
    status, out, errors = in_process(capsys)("info", saved)
    assert (status, errors) == (0, "")
    assert "frames of width 5" in out
    model = rs.load(saved)
    assert "frames of width 5" in model._repr_html_()
    assert "\n" not in repr(model)
    assert "encoder.frame_layers.1.out" in traced(model, rows_of(model))._repr_html_()
    assert rs.generate(model, rows_of(model), **NEW)._repr_html_()
    for refuse in (rs.explain.page, rs.explain.record):
        with raises_naming(ValueError, "frames"):
            refuse(model, "ab")
