"""Taps: the names and shapes of all that can be seen, and what a tap may change."""

import re
from fnmatch import fnmatchcase

import arrangements
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.watching.quantities import QUANTITIES

MODEL = rs.Model.random(arrangements.rich, 0, "float64")
SOURCE, TARGET = [[3, 4, 5, 6], [7, 8, 9]], [[1, 5, 6], [1, 2, 3]]

# 2 rows; 4 source tokens behind 2 memory tokens; 3 target tokens; attention to 2 learned pairs
# besides. Widths are in arrangements.rich: encoder 13, decoder 11, vocabulary 23.
SELF_ENCODER = {
    "input": (2, 6, 13),
    "q": (2, 6, 6, 5),
    "k": (2, 3, 6, 5),
    "v": (2, 3, 6, 7),
    "scores": (2, 6, 6, 8),
    "weights": (2, 6, 6, 8),
    "heads": (2, 6, 6, 7),
    "out": (2, 6, 13),
}
SELF_DECODER = {
    "input": (2, 3, 11),
    "q": (2, 6, 3, 7),
    "k": (2, 3, 3, 7),
    "v": (2, 3, 3, 5),
    "scores": (2, 6, 3, 5),
    "weights": (2, 6, 3, 5),
    "heads": (2, 6, 3, 5),
    "out": (2, 3, 11),
}
CROSS = {
    "input": (2, 3, 11),
    "q": (2, 6, 3, 3),
    "scores": (2, 6, 3, 6),
    "weights": (2, 6, 3, 6),
    "heads": (2, 6, 3, 5),
    "out": (2, 3, 11),
}


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


def test_every_tap_with_its_shape_in_order():
    trace = rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    found = {name: x.shape for name, x in trace.items()}
    assert found == expected_taps()
    assert list(found) == list(expected_taps())


def test_watching_changes_nothing():
    logits = rs.forward(MODEL, SOURCE, TARGET)
    trace = rs.Trace()
    np.testing.assert_array_equal(rs.forward(MODEL, SOURCE, TARGET, tap=trace), logits)
    np.testing.assert_array_equal(trace["logits"], logits)
    np.testing.assert_array_equal(rs.forward(MODEL, SOURCE, TARGET, tap=rs.no_tap), logits)


@pytest.mark.parametrize("name", expected_taps())
def test_what_a_tap_returns_is_what_is_used(name):
    """A fault put in anywhere shows in the logits, and nowhere before it was put in."""
    sign = np.random.default_rng(0)

    def fault(at, x):
        return x + sign.choice([-0.1, 0.1], x.shape) if at == name else x

    sound, faulty = rs.Trace(), rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=sound)

    def faulty_and_seen(at, x):
        return faulty(at, fault(at, x))

    rs.forward(MODEL, SOURCE, TARGET, tap=rs.FunctionTap(faulty_and_seen))
    differ = [at for at in sound if not np.array_equal(sound[at], faulty[at])]
    assert differ[0] == name
    assert np.isfinite(faulty["logits"]).all()
    assert np.abs(faulty["logits"] - sound["logits"]).max() > 1e-6


def test_a_tap_may_replace_the_weights_of_attention():
    """Uniform weights: every head is the mean of the values."""

    def uniform(name, x):
        return np.full_like(x, 1 / x.shape[-1]) if name.endswith("cross_attention.weights") else x

    model, trace = rs.Model.random(arrangements.x_transformers, 0, "float64"), rs.Trace("decoder.*")

    def seen(name, x):
        x = uniform(name, x)
        return trace(name, x)

    rs.forward(model, [[3, 4, 5]], [[1, 5]], tap=rs.FunctionTap(seen))
    for i in range(3):
        values = trace[f"decoder.layers.{i}.cross_attention.v"].mean(axis=2, keepdims=True)
        heads = trace[f"decoder.layers.{i}.cross_attention.heads"]
        assert np.isfinite(values).all()
        assert np.abs(heads - values).max() < 1e-14


def test_steps_have_names_of_their_own():
    trace = rs.Trace("*logits", "*.scores", "*embed")
    steps = list(rs.decode_steps(MODEL, SOURCE, max_new_tokens=3, eos_ids=(), tap=trace))
    assert [name for name in trace if name.endswith(".logits")] == [
        f"step.{i}.logits" for i in range(3)
    ]
    for step in steps:
        np.testing.assert_array_equal(trace[f"step.{step.index}.logits"][:, -1], step.logits)
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
def test_a_pattern_that_some_name_may_match_is_taken(pattern):
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
def test_a_pattern_that_no_name_matches_is_refused_with_the_nearest(pattern):
    with pytest.raises(ValueError, match="no quantity has a name") as caught:
        rs.Trace("*.q", pattern)
    assert repr(pattern) in str(caught.value)
    assert IMPOSSIBLE[pattern] in str(caught.value)


def test_a_pattern_is_a_str():
    with pytest.raises(TypeError, match=r"pattern must be a str.*\['\*\.q'\]"):
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
def test_a_pattern_that_matches_a_name_is_taken(data):
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
def test_what_is_proposed_for_a_pattern_is_taken(name, place, wrong):
    with pytest.raises(ValueError, match="no quantity has a name") as caught:
        rs.Trace(name[:place] + wrong + name[place:])
    if proposed := re.search(r": is it '(.*)'\?$", str(caught.value)):
        rs.Trace(proposed[1])


def test_a_trace_serves_one_computation():
    trace = rs.Trace("logits")
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    with pytest.raises(ValueError, match="logits has passed already: use one Trace"):
        rs.forward(MODEL, SOURCE, TARGET, tap=trace)


def test_a_trace_comes_back_from_its_file(tmp_path):
    trace = rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=trace)
    trace.save(tmp_path / "trace.npz")
    again = rs.Trace.load(tmp_path / "trace.npz")
    assert list(again) == list(trace)
    for name, x in trace.items():
        np.testing.assert_array_equal(again[name], x, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "a/b", "ä"])
def test_a_name_that_numpy_savez_takes_for_an_argument_is_kept(tmp_path, name):
    trace = rs.Trace()
    trace(name, np.arange(3.0))
    trace.save(tmp_path / "trace.npz")
    assert list(rs.Trace.load(tmp_path / "trace.npz")) == [name]
    with np.load(tmp_path / "trace.npz") as archive:
        assert archive[name].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 nothing"])
def test_a_file_that_is_no_trace_is_refused(tmp_path, content):
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"trace\.npz"):
        rs.Trace.load(path)


def test_an_array_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "trace.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"trace\.npz"):
        rs.Trace.load(tmp_path / "trace.npz")
