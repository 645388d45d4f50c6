"""Taps: the names and shapes of all that can be seen, and what a tap may change."""

import re
from fnmatch import fnmatchcase

import arrangements
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming

import refseq2seq as rs
from refseq2seq.watching.quantities import QUANTITIES

MODEL = rs.Model.random(arrangements.rich, 0, "float64")
SOURCE, TARGET = [[3, 4, 5, 6], [7, 8, 9]], [[1, 5, 6], [1, 2, 3]]

# 2 rows; 4 source tokens behind 2 memory tokens; 3 target tokens; attention to 2 learned pairs
# besides. Widths are in arrangements.rich: encoder 13, decoder 11, vocabulary 23.


def attention(n_q, n_k, n_own, n_kv_heads, d_model, d_k, d_v):
    """Queries of 6 heads; the keys and values of self-attention pass after them."""
    keys = {"k": (2, n_kv_heads, n_own, d_k), "v": (2, n_kv_heads, n_own, d_v)} if n_own else {}
    return {
        "input": (2, n_q, d_model),
        "q": (2, 6, n_q, d_k),
        **keys,
        "scores": (2, 6, n_q, n_k),
        "weights": (2, 6, n_q, n_k),
        "heads": (2, 6, n_q, d_v),
        "out": (2, n_q, d_model),
    }


SELF_ENCODER = attention(6, 6 + 2, 6, n_kv_heads=3, d_model=13, d_k=5, d_v=7)
SELF_DECODER = attention(3, 3 + 2, 3, n_kv_heads=3, d_model=11, d_k=7, d_v=5)
CROSS = attention(3, 4 + 2, 0, n_kv_heads=3, d_model=11, d_k=3, d_v=5)


def under(prefix, names):
    return {f"{prefix}.{name}": shape for name, shape in names.items()}


def feed_forward(n, d_model, d_ff):
    inner = dict.fromkeys(("projected", "gate", "activated", "hidden"), (2, n, d_ff))
    return {"input": (2, n, d_model), **inner, "out": (2, n, d_model)}


def expected_taps():
    """Every tap of `forward`, in order of execution."""
    taps = {"encoder.tokens": (2, 4, 13), "encoder.positions": (2, 4, 13)}
    taps |= {"encoder.embed": (2, 4, 13)}
    for i in range(2):
        layer = f"encoder.layers.{i}"
        taps |= under(f"{layer}.self_attention", SELF_ENCODER)
        taps |= {f"{layer}.after_self_attention": (2, 6, 13)}
        taps |= under(f"{layer}.feed_forward", feed_forward(6, 13, 17))
        taps |= {f"{layer}.after_feed_forward": (2, 6, 13)}
    taps |= {"encoder.final": (2, 6, 13)}
    for i in range(2):
        taps |= under(f"decoder.layers.{i}.cross_attention", {"k": (2, 3, 4, 3), "v": (2, 3, 4, 5)})
    taps |= {"decoder.tokens": (2, 3, 11), "decoder.positions": (3, 11)}
    taps |= {"decoder.embed": (2, 3, 11)}
    for i in range(2):
        layer = f"decoder.layers.{i}"
        taps |= under(f"{layer}.self_attention", SELF_DECODER)
        taps |= {f"{layer}.after_self_attention": (2, 3, 11)}
        taps |= under(f"{layer}.cross_attention", CROSS)
        taps |= {f"{layer}.after_cross_attention": (2, 3, 11)}
        taps |= under(f"{layer}.feed_forward", feed_forward(3, 11, 19))
        taps |= {f"{layer}.after_feed_forward": (2, 3, 11)}
    return taps | {"decoder.final": (2, 3, 11), "logits": (2, 3, 23)}


def test_names_shapes_and_order_of_all_quantities():
    trace = rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    found = {name: x.shape for name, x in trace.items()}
    assert found == expected_taps()
    assert list(found) == list(expected_taps())


def test_a_tap_that_changes_nothing_changes_no_logits():
    logits = rs.forward(MODEL, SOURCE, TARGET)
    trace = rs.Trace()
    np.testing.assert_array_equal(rs.forward(MODEL, SOURCE, TARGET, tap=trace), logits)
    np.testing.assert_array_equal(trace["logits"], logits)
    np.testing.assert_array_equal(rs.forward(MODEL, SOURCE, TARGET, tap=rs.no_tap), logits)


@pytest.mark.parametrize("name", expected_taps())
def test_a_change_by_a_tap_reaches_the_logits(name):
    """A fault put in anywhere shows in the logits, and nowhere before it was put in."""
    sign = np.random.default_rng(0)

    sound, faulty = rs.Trace(), rs.Trace()

    def fault(at, x):
        return faulty(at, x + sign.choice([-0.1, 0.1], x.shape) if at == name else x)

    rs.forward(MODEL, SOURCE, TARGET, tap=sound)
    rs.forward(MODEL, SOURCE, TARGET, tap=rs.FunctionTap(fault))
    differ = [at for at in sound if not np.array_equal(sound[at], faulty[at])]
    assert differ[0] == name
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
    "amateur.0.scores": "refseq2seq.quantities",  # amateurs choose nothing
    "xyz": "refseq2seq.quantities",
    "[q": "*.q",
    "": "refseq2seq.quantities",
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


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 nothing", None])
def test_a_file_of_another_format_or_of_objects_raises(tmp_path, content):
    path = tmp_path / "trace.npz"
    if content is None:
        np.savez(path, x=np.array([{}], dtype=object))
    else:
        path.write_bytes(content)
    with raises_naming(ValueError, "trace.npz"):
        rs.Trace.load(path)
