"""The tools for other implementations, with sources of frames and embeddings."""

import dataclasses

import arrangements
import numpy as np
import pytest
from naming import raises_naming

import refseq2seq as rs
from refseq2seq.frames import windows
from refseq2seq.testing import (
    assert_agrees,
    assert_generation_agrees,
    assert_tokens_agree,
    diagnose_arrays,
    first_difference,
    spread,
)
from refseq2seq.testing.rounding import rounded

TARGET = np.array([[1, 4, 6, 7], [1, 5, 8, 3]])
rng = np.random.default_rng(0)


def half(*shape):
    """Numbers that every format has."""
    return rng.standard_normal(shape).round(1).astype("float16").astype("float64")


PADDED = np.arange(11) < np.array([[11], [7]])
SOURCES = {
    "frames": (arrangements.frames, half(2, 11, 5), PADDED),
    "frames, a list": (arrangements.frames, [half(9, 5), half(5, 5)], None),
    "captioner": (arrangements.captioner, half(2, 11, 14), PADDED),
    "embeddings": (arrangements.vaswani, half(2, 11, 14), PADDED[:, ::-1]),
}
every_source = pytest.mark.parametrize(("config", "source", "mask"), SOURCES.values(), ids=SOURCES)


def traced(model, source, mask, fault=lambda name, x: x):
    trace = rs.Trace()
    tap = rs.FunctionTap(lambda name, x: trace(name, fault(name, x)))
    rs.forward(model, source, TARGET, mask, tap=tap)
    return trace


def at(place, change):
    return lambda name, x: change(x) if name == place else x


@every_source
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_spread_accepts_its_rounding(config, source, mask, dtype):
    model = rounded(rs.Model.random(config, 1, "float64"), dtype)
    within = spread(model, source, TARGET, mask, dtype=dtype)
    trace = traced(model.astype(dtype), source, mask)
    assert list(trace) == list(within)
    assert_agrees(trace, within)


@every_source
def test_a_spread_finds_a_fault_and_nothing_behind_a_mask(config, source, mask):
    model = rounded(rs.Model.random(config, 1, "float64"), "float32")
    within = spread(model, source, TARGET, mask, dtype="float32")
    name = next(iter(within))
    found = first_difference(within, traced(model, source, mask, at(name, lambda x: x * 1.001)))
    assert found.name == name
    if isinstance(source, np.ndarray):
        other = np.where(mask[:, :, None], source, 9.0)
        fault = at(name, lambda x: np.where(mask[:, :, None], x, 9.0))
        hidden = traced(model, source, mask, fault)
        assert within[name].where.sum() == mask.sum() * source.shape[-1]
        assert_agrees({name: hidden[name]}, within)
        assert_agrees(traced(model, other, mask), within)


@every_source
def test_generations_agree_up_to_rounding(config, source, mask):
    model = rs.Model.random(config, 1, "float32")
    how = {"max_new_tokens": 4, "eos_ids": ()}
    theirs = rs.generate(model, source, source_mask=mask, **how)
    found = assert_generation_agrees(theirs, model, source, source_mask=mask, **how)
    assert found.compared == 8
    beams = rs.beam_search(model, source, source_mask=mask, beams=3, n_best=2, **how)
    given = {"source_mask": mask, "beams": 3, "n_best": 2} | how
    assert_generation_agrees(beams, model, source, **given)
    wrong = rs.generate(
        model, source, source_mask=mask, choose=rs.greedy(rs.no_repeat_ngram(1)), **how
    )
    if (wrong.tokens != theirs.tokens).any():
        with pytest.raises(AssertionError, match="row"):
            assert_generation_agrees(wrong, model, source, source_mask=mask, **how)
    own = rs.generate(model.astype("float64"), source, source_mask=mask, **how)
    target = np.column_stack([np.full((2, 1), config.decoder_start_id), own.tokens])
    within = spread(model, source, target, mask, dtype="float32")
    assert assert_tokens_agree(theirs.tokens, within, eos_ids=()).compared == 8


FAULTS = {
    "encoder.frames": lambda x: 2 * x,
    "encoder.frame_layers.0.projected": lambda x: x[:, ::-1],
    "encoder.frame_layers.1.out": lambda x: x + 0.3,
    "encoder.tokens": lambda x: x * 1.1,
    "encoder.layers.0.self_attention.scores": lambda x: x * 1.1,
    "decoder.layers.1.cross_attention.k": lambda x: x[:, ::-1],
    "logits": lambda x: 4 * x,
}


@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=FAULTS)
def test_arrays_of_frames_are_diagnosed(name, fault):
    config, source, mask = SOURCES["frames"]
    model = rs.Model.random(config, 1, "float64")
    trace = traced(model, source, mask, at(name, fault))
    diagnosis = diagnose_arrays(model, trace, source, TARGET, mask, dtype="float64")
    assert diagnosis.first == name
    assert [fault.name for fault in diagnosis.faults] == [name]
    assert name in diagnosis.report()


@pytest.mark.parametrize("name", ["frames", "captioner", "embeddings"])
def test_right_arrays_have_no_faults(name):
    config, source, mask = SOURCES[name]
    model = rs.Model.random(config, 1, "float64")
    trace = traced(model, source, mask)
    diagnosis = diagnose_arrays(model, trace, source, TARGET, mask, dtype="float32")
    assert diagnosis.faults == ()
    assert set(diagnosis.compared) == set(trace)


def test_windows_without_padding_are_found():
    """A convolution that reads the padding of its batch."""
    config, source, mask = SOURCES["frames"]
    model = rs.Model.random(config, 1, "float64")
    c, p = config.encoder.input.layers[0], model.params.encoder.frame_layers[0]
    noise = np.where(mask[:, :, None], source, 1.0)
    name = "encoder.frame_layers.0.projected"
    theirs = traced(model, source, mask, at(name, lambda x: windows(noise, c) @ p.w_in + p.b_in))
    diagnosis = diagnose_arrays(model, theirs, source, TARGET, mask, dtype="float32")
    assert diagnosis.first == name


def test_a_memory_is_refused_by_name():
    model = rs.Model.random(arrangements.vaswani, 0)
    memory = rs.encode(model, [[3, 4]])
    tokens = rs.generate(model, memory, max_new_tokens=2).tokens
    for tool in (
        lambda: spread(model, memory, [[1, 4]], dtype="float32"),
        lambda: assert_generation_agrees(tokens, model, memory, max_new_tokens=2),
        lambda: diagnose_arrays(model, {"logits": tokens}, memory, [[1, 4]], dtype="float32"),
    ):
        with raises_naming(rs.UnsupportedFeature, "source", "Memory"):
            tool()


def test_a_case_of_frames_prints_and_runs():
    from refseq2seq.testing.cases import Case, conventions

    frames = {"type": "frames", "n_features": 2, "layers": [], "n_class_tokens": 1}
    config = conventions(**{"encoder.input": frames})
    case = Case(config, source=[[[0.5, 1.0], [0.0, -2.0]]], source_mask=[[True, False]])
    again = {}
    exec(str(case), again)
    assert again["case"] == case
    np.testing.assert_array_equal(again["logits"], case.logits())
    alone = dataclasses.replace(case, source=[[[0.5, 1.0]]], source_mask=None)
    np.testing.assert_allclose(alone.logits(), case.logits(), rtol=1e-12)
