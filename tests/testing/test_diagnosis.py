"""`refseq2seq.testing.diagnose_arrays`: faults that are planted in traces, and their causes."""

import dataclasses
import json
import math
from fnmatch import fnmatchcase

import arrangements
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_mistakes import MISTAKES as PLANTED

import refseq2seq as rs
from refseq2seq.checks import as_source, as_tokens
from refseq2seq.ops import softmax
from refseq2seq.params import build_params, named_arrays
from refseq2seq.taps import FunctionTap
from refseq2seq.testing import diagnose_arrays, rounded, strategies
from refseq2seq.testing.diagnosis.judge import Seen, Tolerance, _evidence, judged
from refseq2seq.testing.diagnosis.replay import member, replay, with_member
from refseq2seq.testing.diagnosis.steps import joined
from refseq2seq.testing.mistakes import MISTAKES
from refseq2seq.testing.rounding import round_to
from refseq2seq.testing.vectors import FAMILIES, safetensors
from refseq2seq.testing.vectors.drawing import draw_cases

MASK = np.arange(7) < np.array([[7], [5], [3]])
SOURCE = np.where(MASK, np.random.default_rng(3).integers(3, 11, MASK.shape), 0)
TARGET = np.random.default_rng(5).integers(3, 11, (3, 5))
CONFIGS = {
    "x-transformers": arrangements.x_transformers,
    "vaswani": arrangements.vaswani,
    "rich": arrangements.rich,
}
MODELS = {
    name: rounded(rs.Model.random(config, 1, "float64"), "float32")
    for name, config in CONFIGS.items()
}
CROSS = "decoder.layers.0.cross_attention"


def traced(model, change=lambda name, x: x, target=TARGET):
    """The quantities of a pass in which ``change`` acts."""
    trace = rs.Trace()
    tap = FunctionTap(lambda name, x: trace(name, change(name, x)))
    rs.forward(model.astype("float32"), SOURCE, target, MASK, tap=tap)
    return trace


def diagnosed(model, arrays, target=TARGET, dtype="float32", **options):
    return diagnose_arrays(model, arrays, SOURCE, target, MASK, dtype=dtype, runs=8, **options)


@pytest.mark.parametrize("name", MODELS)
def test_a_right_implementation_has_no_fault(name):
    found = diagnosed(MODELS[name], traced(MODELS[name]))
    assert found.faults == found.not_judged == found.not_compared == ()
    assert found.first is found.difference is found.unhooked is None
    assert repr(found) == f"<Diagnosis of {len(found.compared)} quantities: no fault>"
    assert found.report().startswith(
        f"No fault in {len(found.compared)} compared quantities, up to"
    )


def test_a_diagnosis_shows_its_first_fault_in_a_line():
    model = MODELS["vaswani"]
    found = diagnosed(model, traced(model, lambda name, x: x * (1 + (name == "logits"))))
    assert repr(found).endswith("quantities: the first fault is in logits>")


@settings(max_examples=20)
@given(data=st.data())
def test_three_faults_give_exactly_three_names(data):
    """A factor at three quantities, which no other step makes good."""
    model = MODELS[data.draw(st.sampled_from(list(MODELS)))]
    names = list(traced(model))
    free = [n for n in names if n.endswith((".q", ".scores", ".out", ".projected", ".final"))]
    chosen = data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=3, unique=True))
    factor = data.draw(st.sampled_from([0.5, 1.01, 2.0, -1.0]))
    found = diagnosed(model, traced(model, lambda name, x: x * factor if name in chosen else x))
    assert [fault.name for fault in found.faults] == [name for name in names if name in chosen]
    for fault in found.faults:
        assert fault.cause is not None
        assert fault.cause.spreads <= 8
        assert fault.cause.flag in MISTAKES
        assert str(fault.cause) in found.report()


# Each field of a config, with another value: the trace of the changed model is the port's.


OTHER_FIELDS = [
    ("decoder.cross_attention.scale", 1.0, "AttentionScale"),
    ("encoder.self_attention.scale", 0.123, "AttentionScale"),
    ("encoder.embedding_scale", 2.5, "EmbeddingScale"),
    ("logits_scale", 0.31, "LogitsScale"),
    ("decoder.norm.eps", 1e-2, "NormEps"),
    ("decoder.feed_forward.activation", "silu", "Activation"),
    ("encoder.feed_forward.activation", "relu_squared", "Activation"),
]
"""Path, another value that keeps the shapes of the parameters, and its flag."""


@pytest.mark.parametrize("name", MODELS)
def test_another_value_of_a_field_is_named(name):
    model = MODELS[name]
    for path, value, flag in OTHER_FIELDS:
        if member(model.config, path) == value:
            continue
        changed = dataclasses.replace(model, config=with_member(model.config, path, value))
        found = diagnosed(model, traced(changed))
        causes = [cause for fault in found.faults for cause in fault.causes]
        assert causes, path
        assert all(fault.cause for fault in found.faults), found.report()
        named = next(cause for cause in causes if cause.field == path)
        assert named.flag == flag
        near = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        assert named.value == member(named.config, path) == near
        again = dataclasses.replace(model, config=named.config)
        assert not diagnosed(again, traced(changed)).faults, path


def of_weights(change):
    """A change of the cross-attention's weights, a function of its scores and of the mask."""

    def fault(trace):
        def tap(name, x):
            if name == f"{CROSS}.scores":
                trace["scores"] = x
            return change(trace["scores"]) if name == f"{CROSS}.weights" else x

        return tap

    return fault({})


def over_queries(scores):
    return softmax(np.where(MASK[:, None, None], scores, -1e30).mT).mT


def coarse(name, x):
    return round_to(x, "bfloat16") if name == "encoder.final" else x


FAULTS = {
    "no mask": (of_weights(softmax), f"{CROSS}.weights", "PadLeak"),
    "the softmax runs over the queries": (
        of_weights(over_queries),
        f"{CROSS}.weights",
        "SoftmaxForm",
    ),
    "another row": (
        lambda name, x: np.roll(x, 1, 0) if name == f"{CROSS}.k" else x,
        f"{CROSS}.k",
        "OtherRow",
    ),
    "shifted": (
        lambda name, x: np.roll(x, 1, -2) if name == "decoder.embed" else x,
        "decoder.embed",
        "ShiftedInput",
    ),
    "bfloat16": (coarse, "encoder.final", "LowPrecision"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_no_field_describes_is_named(fault):
    change, place, flag = FAULTS[fault]
    found = diagnosed(MODELS["vaswani"], traced(MODELS["vaswani"], change))
    assert [f.name for f in found.faults] == [place]
    assert flag in {cause.flag for cause in found.faults[0].causes}, found.report()


def test_a_fault_of_its_own_has_no_cause():
    """None is guessed; the report tells what the quantity depends on."""
    rng = np.random.default_rng(1)
    strange = lambda name, x: x + rng.normal(size=x.shape) if name == f"{CROSS}.q" else x  # noqa: E731
    found = diagnosed(MODELS["x-transformers"], traced(MODELS["x-transformers"], strange))
    assert [(fault.name, fault.cause) for fault in found.faults] == [(f"{CROSS}.q", None)]
    told = found.report()
    assert "No explanation was verified." in told
    assert f"{CROSS}.w_q, an array of shape" in told
    assert json.loads(json.dumps(found.to_dict()))["faults"][0]["causes"] == []


FORWARD = [
    flag
    for flag, (_, place) in PLANTED.items()
    if not place.startswith("step") and place != "lengths" and flag != "SoftmaxOverflow"
]


@pytest.mark.parametrize("flag", FORWARD)
def test_the_mistakes_of_the_vectors_are_named(flag, monkeypatch):
    """The flag of a case that reveals a mistake is that of its cause."""
    family = {
        "KeyValueHeads": "everything",
        "RotaryPairing": "everything",
        "BiasedDeviation": "everything",
    }
    family |= {"NormPlace": "vaswani", "EmbeddingScale": "vaswani", "SinusoidLayout": "vaswani"}
    family |= {"RelativeBuckets": "t5", "AttentionScale": "t5", "LogitsScale": "t5"}
    family |= dict.fromkeys(("FrameMask", "FramePadding", "FrameKernel"), "whisper")
    family |= dict.fromkeys(("FrameNorm", "ClassTokens"), "captions")
    family |= dict.fromkeys(("WindowEdge", "CapOrder", "LogitsCap"), "t5gemma")
    of = family.get(flag, "x_transformers")
    case = next(c for c in draw_cases(of, FAMILIES[of], None, 0, "float64") if flag in c.flags)
    wrong, fault = PLANTED[flag][0](case, monkeypatch)
    trace = rs.Trace()
    tap = trace if fault is None else FunctionTap(lambda name, x: trace(name, fault(name, x)))
    rs.forward(wrong.model, wrong.source, wrong.target, wrong.source_mask, tap=tap)
    monkeypatch.undo()
    tokens = case.source, case.target, case.source_mask
    found = diagnose_arrays(case.model.to("numpy"), trace, *tokens, dtype="float64", runs=8)
    same = {"NormPlace": {"NormMissing", "NormPlace"}, "LastPosition": {"ShiftedInput", None}}
    same["FramePadding"] = {"FramePadding", "ShiftedInput"}  # it moves the first window's padding
    assert fnmatchcase(found.first, PLANTED[flag][1]), found.report()
    flags = {cause.flag for fault in found.faults for cause in fault.causes} or {None}
    assert flags & same.get(flag, {flag}), found.report()


# Partial dumps, loops, shapes and numbers that are not finite.


@pytest.mark.parametrize("kept", ["q k v scores heads", "out final", "logits"])
def test_a_partial_dump(kept):
    """Quantities that are not shown belong to the next one that is."""
    model = MODELS["vaswani"]
    changed = with_member(model.config, "encoder.feed_forward.activation", "gelu_erf")
    whole = traced(dataclasses.replace(model, config=changed))
    hidden = kept.split()[:-1] if kept.startswith("q") else []
    shown = {
        name: x
        for name, x in whole.items()
        if (
            name.rpartition(".")[2] not in hidden
            if hidden
            else name.rpartition(".")[2] in kept.split()
        )
    }
    found = diagnosed(model, shown)
    assert all(fault.name in shown for fault in found.faults)
    causes = {cause.field for fault in found.faults for cause in fault.causes}
    assert "encoder.feed_forward.activation" in causes, found.report()
    assert "intermediate, not compared" in found.report() or hidden


def in_steps(model, change=lambda name, x: x, prefix=2):
    """What a loop computes that reads the target token by token after its prefix."""
    trace = rs.Trace()
    tap = FunctionTap(lambda name, x: trace(name, change(name, x)))
    model = model.astype("float32")
    memory = rs.encode(model, SOURCE, MASK, tap=tap)
    cache = rs.new_cache(model, 3, TARGET.shape[1])
    reads = [TARGET[:, :prefix], *(TARGET[:, t : t + 1] for t in range(prefix, TARGET.shape[1]))]
    for t, tokens in enumerate(reads):
        rs.decode(model, tokens, memory, cache=cache, tap=tap.at(f"step.{t}"))
    return trace, [tokens.shape[1] for tokens in reads]


@pytest.mark.parametrize("name", MODELS)
def test_the_steps_of_a_loop_are_joined_to_one_pass(name):
    model = MODELS[name]
    steps, lengths = in_steps(model)
    whole, one = traced(model), joined(steps, lengths)
    assert list(one) == list(whole)
    for quantity, x in whole.items():
        if quantity.endswith("self_attention.scores") and quantity.startswith("decoder"):
            continue  # later keys have no scores in a loop
        scale = np.abs(x).max()
        np.testing.assert_allclose(one[quantity], x, rtol=0, atol=1e-4 * scale, equal_nan=False)
    assert not diagnosed(model, steps).faults


def test_a_fault_of_later_steps():
    """The mask is applied in the first step only."""
    scores = {}

    def unmasked_later(name, x):
        if name.endswith(f"{CROSS}.scores"):
            scores[name] = x
        late = name.endswith(f"{CROSS}.weights") and not name.startswith("step.0.")
        return softmax(scores[name.replace("weights", "scores")]) if late else x

    steps, _ = in_steps(MODELS["x-transformers"], unmasked_later)
    found = diagnosed(MODELS["x-transformers"], steps)
    assert {fault.name for fault in found.faults} == {
        f"step.{t}.{CROSS}.weights" for t in (1, 2, 3)
    }
    assert {fault.cause.flag for fault in found.faults} == {"PadLeak"}
    assert "no mask is applied" in str(found.faults[0].cause)
    assert "in the steps after the first" in str(found.faults[0].cause)
    assert len(list(found.groups())) == 1


@pytest.mark.parametrize("bad", ["shape", "NaN"])
def test_what_depends_on_another_shape_is_not_judged(bad):
    model, name = MODELS["x-transformers"], f"{CROSS}.scores"
    arrays = dict(traced(model))
    arrays[name] = arrays[name][..., :-1] if bad == "shape" else np.full_like(arrays[name], np.nan)
    found = diagnosed(model, arrays)
    assert [fault.name for fault in found.faults] == [name]
    assert found.difference.reason == ("shape" if bad == "shape" else "not finite")
    assert found.not_judged == (f"{CROSS}.weights",)
    assert "Not judged" in found.report()


def test_a_file_is_read(tmp_path):
    model = MODELS["vaswani"]
    trace = traced(model, lambda name, x: 2 * x if name == "encoder.final" else x)
    trace.save(tmp_path / "dump.npz")
    safetensors.write(tmp_path / "dump.safetensors", trace)
    for name in ("dump.npz", "dump.safetensors"):
        assert diagnosed(model, tmp_path / name).first == "encoder.final"


REFUSED = {
    "no mapping": ([1.0], TypeError, "arrays must be a mapping"),
    "nothing": ({}, ValueError, "got none"),
    "unknown": ({"encoder.finale": np.ones(3)}, ValueError, "mean .encoder.final.?"),
    "another": ({"encoder.layers.9.feed_forward.out": np.ones(3)}, ValueError, "architecture"),
    "text": ({"encoder.final": "x"}, TypeError, r"arrays\['encoder.final'\]: .*real numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_arrays_are_refused(case):
    arrays, kind, told = REFUSED[case]
    with pytest.raises(kind, match=told):
        diagnosed(MODELS["vaswani"], arrays)


@pytest.mark.parametrize(
    "options", [{"runs": 1}, {"z": -1.0}, {"z": math.nan}, {"dtype": "float8"}], ids=str
)
def test_wrong_options_are_refused(options):
    how = {"dtype": "float32"} | options
    with pytest.raises(ValueError, match=next(iter(options))):
        diagnose_arrays(MODELS["vaswani"], {"logits": TARGET}, SOURCE, TARGET, MASK, **how)


# The mechanism.


@settings(max_examples=10)
@given(data=st.data())
def test_a_replay_computes_what_the_forward_pass_computes(data):
    """Of any model, and of any of its quantities."""
    model = data.draw(strategies.models(dtype="float64"))
    source = data.draw(strategies.sources(model))
    target = data.draw(strategies.targets(model, source.batch))
    c = model.config
    read = as_source(c.encoder, source.tokens, source.mask)
    fed = as_tokens("target", target, c.decoder.vocab_size)
    ids, masks = zip(read, fed, strict=True)
    trace = rs.Trace()
    rs.forward(model, ids[0], ids[1], masks[0], tap=trace)
    how = Tolerance(dtype="float64", z=8.0, runs=8, rounds_weights=True, is_exact=True)
    scene = _evidence(
        judged(model, Seen(dict(trace), ids, masks, ~masks[0], None, None), how)
    ).scene
    name = data.draw(st.sampled_from(list(trace)))
    kept = rs.Trace()
    replay(scene, [name], kept)
    assert list(kept) == [name]
    np.testing.assert_allclose(kept[name], trace[name], rtol=1e-12, atol=1e-12, equal_nan=False)


def test_every_mistake_has_a_description():
    assert len(MISTAKES) > 50
    for about in MISTAKES.values():
        assert about.keys() == {"bugType", "description", "effect"}
        assert about["description"].endswith(".")
        assert about["effect"].endswith(".")


def test_members_are_read_and_replaced():
    model = MODELS["vaswani"]
    path = "layers.1.self_attention.w_q"
    changed = with_member(model.params.decoder, path, 5)
    assert member(changed, path) == 5
    assert member(changed, "layers.0.self_attention.w_q") is member(
        model.params.decoder, "layers.0.self_attention.w_q"
    )
    arrays = dict(named_arrays(model.params))
    params = build_params(model.config, lambda name, shape: arrays[name])
    assert dict(named_arrays(params)).keys() == arrays.keys()


def test_the_choices_of_a_loop_are_not_judged():
    """A whole trace of `generate` is accepted."""
    model, trace = MODELS["x-transformers"], rs.Trace()
    options = {"source_mask": MASK, "prefix": TARGET[:, :2], "max_new_tokens": 3, "eos_ids": ()}
    steps = list(rs.decode_steps(model.astype("float32"), SOURCE, tap=trace, **options))
    fed = np.column_stack([TARGET[:, :2], *(step.tokens for step in steps[:-1])])
    found = diagnosed(model, trace, fed)
    assert not found.faults
    assert "step.2.chosen" in found.not_judged
