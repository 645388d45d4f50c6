"""Taps: the names of all quantities, and what a tap may change."""

import re
from fnmatch import fnmatchcase

import arrangements
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming

import refseq2seq as rs
from refseq2seq.watching.quantities import QUANTITIES, inputs_of

MODEL = rs.Model.random(arrangements.rich, 0, "float64")
SOURCE, TARGET = [[3, 4, 5, 6], [7, 8, 9]], [[1, 5, 6], [1, 2, 3]]


def expected_names():
    """Every quantity of `forward`, in order of execution; test_quantities.py has their shapes."""

    def layer(name, *sublayers):
        for sublayer, quantities in sublayers:
            yield from (f"{name}.{sublayer}.{quantity}" for quantity in quantities.split())
            yield f"{name}.after_{sublayer}"

    own = "self_attention", "input q k v scores weights heads gate out"
    cross = "cross_attention", "input q scores weights heads gate out"
    feed_forward = "feed_forward", "input projected gate activated hidden out"
    yield from ("encoder.tokens", "encoder.positions", "encoder.embed")
    for i in "01":
        yield from layer(f"encoder.layers.{i}", own, feed_forward)
    yield "encoder.final"
    yield from (f"decoder.layers.{i}.cross_attention.{x}" for i in "01" for x in "kv")
    yield from ("decoder.tokens", "decoder.positions", "decoder.embed")
    for i in "01":
        yield from layer(f"decoder.layers.{i}", own, cross, feed_forward)
    yield from ("decoder.final", "logits")


def test_names_and_order_of_all_quantities():
    trace = rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    assert list(trace) == list(expected_names())


def test_a_tap_that_changes_nothing_changes_no_logits():
    logits = rs.forward(MODEL, SOURCE, TARGET)
    trace = rs.Trace()
    np.testing.assert_array_equal(rs.forward(MODEL, SOURCE, TARGET, tap=trace), logits)
    np.testing.assert_array_equal(trace["logits"], logits)
    np.testing.assert_array_equal(rs.forward(MODEL, SOURCE, TARGET, tap=rs.no_tap), logits)


@pytest.mark.parametrize("name", list(expected_names()))
def test_a_change_by_a_tap_reaches_the_logits(name):
    """A fault put in anywhere shows in the logits, and nowhere before it was put in.

    And the arrows of the table of quantities are real: what has it as input changes.
    """
    sign = np.random.default_rng(0)

    sound, faulty = rs.Trace(), rs.Trace()

    def fault(at, x):
        return faulty(at, x + sign.choice([-0.1, 0.1], x.shape) if at == name else x)

    rs.forward(MODEL, SOURCE, TARGET, tap=sound)
    rs.forward(MODEL, SOURCE, TARGET, tap=rs.FunctionTap(fault))
    differ = [at for at in sound if not np.array_equal(sound[at], faulty[at])]
    assert differ[0] == name
    assert {at for at in sound if name in inputs_of(at, sound)} <= {*differ}
    assert np.isfinite(faulty["logits"]).all()
    assert np.abs(faulty["logits"] - sound["logits"]).max() > 1e-6


def test_a_tap_may_replace_the_weights_of_attention():
    """Uniform weights: every head is the mean of the values."""
    model, trace = rs.Model.random(arrangements.x_transformers, 0, "float64"), rs.Trace("decoder.*")

    def uniform(name, x):
        is_changed = name.endswith("cross_attention.weights")
        return trace(name, np.full_like(x, 1 / x.shape[-1]) if is_changed else x)

    rs.forward(model, [[3, 4, 5]], [[1, 5]], tap=rs.FunctionTap(uniform))
    for i in range(3):
        values = trace[f"decoder.layers.{i}.cross_attention.v"].mean(axis=2, keepdims=True)
        heads = trace[f"decoder.layers.{i}.cross_attention.heads"]
        assert np.isfinite(values).all()
        assert np.abs(heads - values).max() < 1e-14


def test_quantities_of_a_step_have_its_number():
    trace = rs.Trace("*logits", "*scores", "*embed")
    steps = list(rs.decode_steps(MODEL, SOURCE, max_new_tokens=3, eos_ids=(), tap=trace))
    assert [name for name in trace if name.endswith(".logits")] == [
        f"step.{i}.logits" for i in range(3)
    ]
    for step in steps:
        np.testing.assert_array_equal(trace[f"step.{step.index}.logits"][:, -1], step.logits)
        np.testing.assert_array_equal(trace[f"step.{step.index}.scores"], step.scores)
    assert trace["encoder.embed"].shape == (2, 4, 13)
    for i in range(3):
        assert trace[f"step.{i}.decoder.embed"].shape == (2, 1, 11)
        # the new token sees the targets so far and two learned pairs
        assert trace[f"step.{i}.decoder.layers.0.self_attention.scores"].shape == (2, 6, 1, i + 3)


# Trace itself


def test_a_trace_is_a_mapping_in_order():
    trace, x, y = rs.Trace(), np.ones(2), np.zeros(3)
    assert trace("b", x) is x
    assert trace.at("decoder").at("layers.0")("a", y) is y
    assert list(trace) == ["b", "decoder.layers.0.a"]
    assert trace["b"] is x
    assert trace["decoder.layers.0.a"] is y
    assert len(trace) == 2
    assert repr(trace) == "<Trace of 2 arrays>"
    with pytest.raises(KeyError):
        trace["c"]


def test_a_trace_keeps_what_its_patterns_match():
    trace = rs.Trace("*.scores", "decoder.layers.?.*.q")
    names = ["mine.0.scores", "decoder.layers.0.x.q", "decoder.layers.10.x.q", "scores", "mine.q"]
    for name in names:
        trace(name, np.ones(1))
    assert list(trace) == names[:2]


POSSIBLE = [
    "*", "**.q", "*scores", "*.scores", "scores", "chosen", "candidates.tokens", "pool.scores",
    "logits", "step.1*.logits", "step.?.decoder.layers.[01].*", "step.[!0].chosen",
    "decoder.layers.7.*", "decoder.layers.12?4.*", "decoder.*.weights", "encoder.*",
    "encoder.layers.*.after_*", "decoder.layers.0.cross_attention.k", "amateur.0.decoder*",
    "amateur.12.encoder.embed", "step.2.amateur.0.decoder.embed", "*[.]q", "*[]q]",
]  # fmt: skip


@pytest.mark.parametrize("pattern", POSSIBLE)
def test_a_pattern_that_some_name_may_match_is_accepted(pattern):
    assert len(rs.Trace(pattern)) == 0


IMPOSSIBLE = {
    "decoder.layer.2.*": "decoder.layers.2.*",
    "decoder.layers.2": "decoder.layers.2.*",
    "Decoder.*": "decoder.*",
    "encoder.layer.[01].self_atention.q": "encoder.layers.[01].self_attention.q",
    "step.*.decoder.layer.1?.*": "step.*.decoder.layers.1?.*",
    "step.3.logit": "step.3.logits",
    "*.score": "*.scores",
    "self_attention.q": "*.self_attention.q",
    "step.0.encoder.*": "encoder.*",  # sources are encoded before the first step
    "step.0.decoder.layers.1.cross_attention.k": "decoder.layers.1.cross_attention.k",
    "amateur.0.scores": "refseq2seq.watching.quantities",  # amateurs choose nothing
    "xyz": "refseq2seq.watching.quantities",
    "[q": "*.q",
    "": "refseq2seq.watching.quantities",
}


@pytest.mark.parametrize("pattern", IMPOSSIBLE)
def test_a_pattern_that_no_name_matches_raises_and_proposes_the_nearest(pattern):
    with raises_naming(ValueError, repr(pattern), IMPOSSIBLE[pattern]):
        rs.Trace("*.q", pattern)


def test_a_pattern_of_another_type_raises():
    with raises_naming(TypeError, "pattern", "['*.q']"):
        rs.Trace(["*.q"])


NUMBERS = ("0", "1", "5", "10", "12", "21")
NAMES = sorted(
    {
        re.sub(r"\*", number, prefix + row.name)
        for row in QUANTITIES
        for number in NUMBERS
        for prefix in ("", *(f"step.{n}." for n in NUMBERS), "amateur.0.", "step.1.amateur.0.")
        if "step" not in prefix or not re.match(r"encoder|.*cross_attention\.[kv]$", row.name)
        if "amateur" not in prefix or re.match(r"encoder|decoder|logits", row.name)
    }
)


@given(st.data())
def test_a_pattern_that_matches_a_name_is_accepted(data):
    """Patterns made of names, with wildcards and changes in a few places."""
    parts = list(data.draw(st.sampled_from(NAMES)))
    changes = st.sampled_from(["*", "?", "[0-2]", "[!1]", "", "l", "1", "."])
    for place in data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=4)):
        parts[place] = data.draw(changes)
    pattern = "".join(parts)
    if any(fnmatchcase(name, pattern) for name in NAMES):
        rs.Trace(pattern)


def test_a_star_may_follow_a_number():
    rs.Trace("step.1*amateur.0.decoder.embed")


@given(
    name=st.sampled_from(NAMES), place=st.integers(0, 99), wrong=st.sampled_from(["~", "..", "-"])
)
def test_a_proposed_pattern_is_accepted(name, place, wrong):
    with raises_naming(ValueError, wrong) as caught:
        rs.Trace(name[:place] + wrong + name[place:])
    if proposed := re.search(r": is it '(.*)'\?$", str(caught.value)):
        rs.Trace(proposed[1])


def test_a_trace_serves_one_computation():
    trace = rs.Trace("logits")
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    with raises_naming(ValueError, "logits", "one Trace"):
        rs.forward(MODEL, SOURCE, TARGET, tap=trace)


def test_save_and_load_keep_names_and_arrays(tmp_path):
    trace = rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    trace.save(tmp_path / "trace.npz")
    again = rs.Trace.load(tmp_path / "trace.npz")
    assert list(again) == list(trace)
    for name, x in trace.items():
        np.testing.assert_array_equal(again[name], x, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "a/b", "ä"])
def test_names_that_are_arguments_of_savez_are_saved(tmp_path, name):
    trace = rs.Trace()
    trace(name, np.arange(3.0))
    trace.save(tmp_path / "trace.npz")
    assert list(rs.Trace.load(tmp_path / "trace.npz")) == [name]
    with np.load(tmp_path / "trace.npz") as archive:
        assert archive[name].tolist() == [0.0, 1.0, 2.0]
