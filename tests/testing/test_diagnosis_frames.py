"""`refseq2seq.testing.diagnose_arrays` of models of frames, with windows and soft caps."""

from dataclasses import replace

import arrangements
import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.checks import UnsupportedFeature
from refseq2seq.config import WindowConfig
from refseq2seq.taps import FunctionTap
from refseq2seq.testing import diagnose_arrays, rounded
from refseq2seq.testing.diagnosis.replay import with_member

RNG = np.random.default_rng(7)
TARGET = RNG.integers(3, 11, (3, 7))
WINDOWED = replace(
    arrangements.frames,
    decoder=replace(
        arrangements.frames.decoder,
        windows=(None, WindowConfig(back=2, ahead=0)),
    ),
)
WINDOWED = replace(
    WINDOWED, encoder=replace(WINDOWED.encoder, windows=(WindowConfig(back=1, ahead=1), None))
)
CONFIGS = {"frames": WINDOWED, "captioner": arrangements.captioner}
MODELS = {
    name: rounded(rs.Model.random(config, 1, "float64"), "float32")
    for name, config in CONFIGS.items()
}
FRAMES = {"frames": RNG.normal(size=(3, 19, 5)), "captioner": RNG.normal(size=(3, 5, 14))}
LENGTHS = {"frames": (19, 12, 9), "captioner": (5, 2, 1)}
MASKS = {
    name: np.arange(x.shape[1]) < np.array(LENGTHS[name])[:, None] for name, x in FRAMES.items()
}


def traced(name, changed=None, change=lambda name, x: x):
    """The quantities of a pass of a model, or of one with changes, in float32."""
    trace, model = rs.Trace(), changed or MODELS[name]
    tap = FunctionTap(lambda name, x: trace(name, change(name, x)))
    rs.forward(model.astype("float32"), FRAMES[name], TARGET, MASKS[name], tap=tap)
    return trace


def diagnosed(name, arrays):
    given = MODELS[name], arrays, FRAMES[name], TARGET, MASKS[name]
    return diagnose_arrays(*given, dtype="float32", runs=8)


@pytest.mark.parametrize("name", MODELS)
def test_a_right_implementation_has_no_fault(name):
    found = diagnosed(name, traced(name))
    assert found.faults == found.not_judged == found.not_compared == ()
    assert "encoder.frames" in found.compared


LAYERS = WINDOWED.encoder.input.layers
FIELDS = [
    ("encoder.windows", (WindowConfig(back=2, ahead=1), None), "WindowEdge"),
    ("encoder.windows", (None, WindowConfig(back=1, ahead=1)), "WindowEdge"),
    ("decoder.windows", (None, WindowConfig(back=3, ahead=0)), "WindowEdge"),
    ("decoder.windows", (), "WindowEdge"),
    ("decoder.self_attention.softcap", None, "ScoreCap"),
    ("decoder.self_attention.softcap", 2.25, "ScoreCap"),
    ("decoder.cross_attention.softcap", 5.0, "ScoreCap"),
    ("logits_softcap", None, "LogitsCap"),
    ("logits_softcap", 30.0, "LogitsCap"),
    ("encoder.input.layers.0.activation", "gelu_tanh", "GeluForm"),
    ("encoder.input.layers.1.norm_before.eps", 1e-2, "NormEps"),
]


@pytest.mark.parametrize(("path", "value", "flag"), FIELDS)
def test_another_value_of_a_field_is_named(path, value, flag):
    other = replace(MODELS["frames"], config=with_member(WINDOWED, path, value))
    found = diagnosed("frames", traced("frames", other))
    assert found.faults
    for fault in found.faults:
        values = [c.value for c in fault.causes if (c.flag, c.field) == (flag, path)]
        assert (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value) in values


def test_a_mask_that_forgets_its_window_and_more():
    """The masks of explanations are whole: with the window of the layer, or without it."""
    place = "decoder.layers.1.self_attention"
    scores = {}

    def unmasked(name, x):
        scores[name] = x
        if name != f"{place}.weights":
            return x
        e = np.exp(scores[f"{place}.scores"])
        return e / e.sum(-1, keepdims=True)

    found = diagnosed("frames", traced("frames", change=unmasked))
    assert [fault.name for fault in found.faults] == [f"{place}.weights"]
    assert "no mask is applied" in found.faults[0].cause.text


def test_a_front_end_of_its_own():
    """Frames that the caller computed are compared with those of the reference."""
    name = "frames"
    found = diagnosed(name, {"encoder.frames": FRAMES[name][..., ::-1] * MASKS[name][..., None]})
    assert [(f.name, f.cause.flag) for f in found.faults] == [("encoder.frames", "OtherFrames")]
    found = diagnosed(name, {"encoder.frames": FRAMES[name] ** 2})
    assert found.faults[0].cause is None
    assert "the frames given" in found.report()


def test_embeddings_are_a_source_and_a_memory_is_none():
    model = rounded(rs.Model.random(arrangements.vaswani, 1, "float64"), "float32")
    x, trace = RNG.normal(size=(3, 5, model.config.encoder.d_model)), rs.Trace()
    rs.forward(model.astype("float32"), x, TARGET, tap=trace)
    assert not diagnose_arrays(model, trace, x, TARGET, dtype="float32", runs=8).faults
    arrays = {**trace, "encoder.final": 2 * trace["encoder.final"]}
    found = diagnose_arrays(model, arrays, x, TARGET, dtype="float32", runs=8)
    assert found.first == "encoder.final"
    with pytest.raises(UnsupportedFeature, match=r"source .*Memory"):
        diagnose_arrays(model, trace, rs.encode(model, x), TARGET, dtype="float32")
