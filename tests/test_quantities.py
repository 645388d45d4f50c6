"""The table of quantities: names, shapes, order and inputs, as traces have them."""

import dataclasses
import re
from itertools import pairwise

import arrangements
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.config import FrameInput
from refseq2seq.testing import strategies
from refseq2seq.watching.quantities import BY_NAME, QUANTITIES, inputs_of, quantity


def traced(computation):
    trace = rs.Trace()
    computation(trace)
    return trace


def everything():
    """Traces that together have every quantity."""
    model = rs.Model.random(arrangements.rich, 0, "float64")
    forward = traced(lambda tap: rs.forward(model, [[3, 4]], [[1, 5]], tap=tap))
    listener = rs.Model.random(arrangements.frames, 0, "float64")
    frames = np.ones((1, 7, listener.config.encoder.input.n_features))
    heard = traced(lambda tap: rs.forward(listener, frames, [[1, 5]], tap=tap))

    def drained(steps):
        return lambda tap: list(
            steps(model, [[3, 4]], max_new_tokens=3, amateurs=[rs.amateur(model)], tap=tap)
        )

    return forward, heard, traced(drained(rs.decode_steps)), traced(drained(rs.beam_steps))


def table_name(name):
    bare = re.sub(r"^(step\.\d+\.)?(amateur\.\d+\.)?", "", name)
    return re.sub(r"layers\.\d+", "layers.*", bare)


def test_the_table_has_all_quantities_and_no_others():
    passed = {table_name(name) for trace in everything() for name in trace}
    assert passed == {row.name for row in QUANTITIES}
    assert len(BY_NAME) == len(QUANTITIES)


def test_quantities_pass_in_the_order_of_the_table():
    place = {row.name: i for i, row in enumerate(QUANTITIES)}
    for trace in everything()[:2]:
        for layer in "01":
            of_layer = [n for n in trace if f"layers.{layer}." in n or "layers" not in n]
            places = [place[table_name(name)] for name in of_layer]
            assert places == sorted(places)


@given(data=st.data())
def test_shapes_are_those_of_the_table(data):
    model = data.draw(strategies.models())
    source = data.draw(strategies.sources(model))
    target = data.draw(strategies.targets(model, source.batch))
    trace = traced(lambda tap: rs.forward(model, *source[:1], target, source.mask, tap=tap))
    c = model.config
    for name, x in trace.items():
        stack = c.decoder if name.startswith(("decoder", "logits")) else c.encoder
        attention = stack.cross_attention if "cross" in name else stack.self_attention
        n_read = max(map(len, source.rows)) if source.mask is None else source.mask.shape[1]
        n_source, frames = c.encoder.input.length(n_read), {}
        if isinstance(c.encoder.input, FrameInput):
            layers = c.encoder.input.layers
            upto = int(name.split(".")[2]) + 1 if "frame_layers" in name else 0
            inner = dataclasses.replace(c.encoder.input, layers=layers[:upto], n_class_tokens=0)
            frames = {"n_frames": n_read, "n_features": c.encoder.input.n_features}
            frames |= {"n_windows": inner.length(n_read), "d_out": inner.widths[-1]}
        of_source = n_source if re.search(r"embed|tokens|positions", name) else None
        n_encoded = n_source + c.encoder.n_register_tokens
        n_own = target.shape[1] if stack is c.decoder else of_source or n_encoded
        sizes = {
            "batch": source.batch,
            "n_target": target.shape[1],
            "n_source": n_source if "cross_attention" in name else n_own,
            "n_so_far": n_own,
            "d_model": stack.d_model,
            "d_ff": stack.feed_forward.d_ff,
            "d_k": attention.d_k,
            "d_v": attention.d_v,
            "n_heads": attention.n_heads,
            "n_kv_heads": attention.n_kv_heads,
            "n_gates": attention.n_heads * (attention.d_v if attention.gate == "per_value" else 1),
            "vocab_size": c.decoder.vocab_size,
            **frames,
        }
        symbols = re.findall(r"\w+", quantity(name).shape)
        expected = [sizes[symbol] for symbol in symbols]
        if quantity(name).shape.startswith("([batch,]") and x.ndim < len(expected):
            expected = expected[1:]
        if name.endswith(("scores", "weights")):
            expected[-1] += attention.n_learned_kv  # learned pairs come first
        assert x.shape == tuple(expected), name


def test_inputs_pass_before_what_is_computed_from_them():
    for trace in everything():
        names = list(trace)
        for i, name in enumerate(names):
            found = inputs_of(name, names)
            assert all(source in names[:i] for source in found), name
            roots = ("frames", "decoder.tokens", "positions")
            roots += () if "encoder.frames" in names else ("encoder.tokens",)
            assert found or name.endswith(roots), name


def test_inputs_of_the_final_norm_and_of_a_layer():
    forward, *_ = everything()
    assert inputs_of("decoder.final", forward) == ["decoder.layers.1.after_feed_forward"]
    assert inputs_of("decoder.layers.1.self_attention.input", forward) == [
        "decoder.layers.0.after_feed_forward"
    ]


def test_inputs_of_frames_and_of_an_encoder_without_layers():
    _, heard, *_ = everything()
    chain = [
        "encoder.frames", "encoder.frame_layers.0.projected", "encoder.frame_layers.0.out",
        "encoder.frame_layers.1.projected", "encoder.frame_layers.1.out", "encoder.tokens",
    ]  # fmt: skip
    assert [*heard][: len(chain)] == chain
    for before, name in pairwise(chain):
        assert inputs_of(name, heard) == [before]
    bare = ["encoder.frames", "encoder.tokens", "encoder.embed", "encoder.final"]
    assert inputs_of("encoder.tokens", bare) == ["encoder.frames"]
    assert inputs_of("encoder.final", bare) == ["encoder.embed"]


@pytest.mark.parametrize(
    "name", ["decoder.layers.0.cross_attention.x", "step.x.logits", "", "encoder.layers.embed"]
)
def test_an_unknown_quantity_raises(name):
    with pytest.raises(KeyError):
        quantity(name)
