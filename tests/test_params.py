"""The arrays of a model: which there are, their names, shapes and random values."""

import copy
import dataclasses
import math

import numpy as np
import pytest
from arrangements import rich, small_vaswani
from hypothesis import given, settings
from naming import raises_naming

import refseq2seq as rs
from refseq2seq.params import check_params, map_arrays, named_arrays, param_shapes
from refseq2seq.testing import strategies

BARE = {"biases": (), "qk_norm": None, "n_learned_kv": 0, "gate": "none", "head_scale": False}
ENCODER, DECODER = rich.encoder, rich.decoder
CONFIG = dataclasses.replace(  # an encoder that has everything, a decoder of few arrays
    rich,
    encoder=dataclasses.replace(ENCODER, n_layers=1, norm_positions=("after",)),
    decoder=dataclasses.replace(
        DECODER,
        n_layers=1,
        embedding_norm="none",
        norm_positions=(),
        self_attention=dataclasses.replace(DECODER.self_attention, **BARE),
        cross_attention=dataclasses.replace(DECODER.cross_attention, **BARE | {"gate": "per_head"}),
        feed_forward=dataclasses.replace(
            DECODER.feed_forward, gated=False, biases=(), hidden_norm=None
        ),
    ),
)
TIED = small_vaswani(d_model=6, vocab_size=7, n_layers=2, d_ff=5)


def linear(name, d_in, d_out):
    return {f"w_{name}": (d_in, d_out), f"b_{name}": (d_out,)}


def norm(name, *shape):
    return {f"{name}.gain": shape, f"{name}.bias": shape}


def test_names_and_shapes_by_hand():
    """6 heads of 5 make 30, 3 key-value heads of 5 and 7 make 15 and 21, 6 heads of 7 make 42."""
    attention = {
        **linear("q", 13, 30),
        **linear("k", 13, 15),
        **linear("v", 13, 21),
        **linear("o", 42, 13),
        **norm("q_norm", 6, 1, 5),
        **norm("k_norm", 3, 1, 5),
        "learned_k": (3, 2, 5),
        "learned_v": (3, 2, 7),
        **linear("gate", 13, 42),
        "head_scale": (6, 1, 1),
    }
    feed_forward = {
        **linear("in", 13, 17),
        **linear("gate", 13, 17),
        **norm("hidden_norm", 17),
        **linear("out", 17, 13),
    }
    encoder = {
        "embedding": (29, 13),
        **norm("embedding_norm", 13),
        "positions": (19, 13),
        "register_tokens": (2, 13),
        **{f"layers.0.self_attention.{name}": shape for name, shape in attention.items()},
        **norm("layers.0.self_norms.after", 13),
        **{f"layers.0.feed_forward.{name}": shape for name, shape in feed_forward.items()},
        **norm("layers.0.feed_forward_norms.after", 13),
        **norm("final_norm", 13),
    }
    decoder = {
        "embedding": (23, 11),
        "relative_bias.0": (6, 6),
        "layers.0.self_attention.w_q": (11, 42),
        "layers.0.self_attention.w_k": (11, 21),
        "layers.0.self_attention.w_v": (11, 15),
        "layers.0.self_attention.w_o": (30, 11),
        "layers.0.cross_attention.w_q": (11, 18),
        "layers.0.cross_attention.w_k": (13, 9),
        "layers.0.cross_attention.w_v": (13, 15),
        "layers.0.cross_attention.w_o": (30, 11),
        "layers.0.cross_attention.w_gate": (11, 6),
        "layers.0.cross_attention.b_gate": (6,),
        "layers.0.feed_forward.w_in": (11, 19),
        "layers.0.feed_forward.w_out": (19, 11),
        "final_norm.gain": (),
        "final_norm.bias": (11,),
    }
    expected = {f"encoder.{name}": shape for name, shape in encoder.items()}
    expected |= {f"decoder.{name}": shape for name, shape in decoder.items()}
    assert param_shapes(CONFIG) == expected | {"unembedding": (11, 23), "logits_bias": (23,)}


@settings(max_examples=50)
@given(config=strategies.configs())
def test_random_params_have_the_names_and_shapes_of_the_config(config):
    params = rs.random_params(config, seed=0, dtype="float32")
    check_params(config, params)
    shapes, arrays = param_shapes(config), dict(named_arrays(params))
    assert arrays.keys() >= shapes.keys()
    for name, shape in shapes.items():
        assert arrays[name].shape == shape
        assert arrays[name].dtype == np.float32
        assert np.isfinite(arrays[name]).all()
    tied = {"encoder.embedding": config.tied_embeddings, "unembedding": config.tied_logits}
    assert arrays.keys() - shapes.keys() == {name for name, is_tied in tied.items() if is_tied}


def test_tied_tables_are_one_array():
    for params in (rs.random_params(TIED, 0), map_arrays(TIED, rs.random_params(TIED, 0), np.copy)):
        assert params.encoder.embedding is params.decoder.embedding
        assert params.unembedding.base is params.decoder.embedding
        assert params.unembedding.shape == (6, 7)


def test_an_array_depends_on_its_name_and_the_seed_only():
    small = dict(named_arrays(rs.random_params(TIED, seed=3)))
    more = dataclasses.replace(TIED, logits_bias=True, tied_logits=False)
    large = dict(named_arrays(rs.random_params(more, seed=3)))
    for name in param_shapes(TIED):
        np.testing.assert_array_equal(large[name], small[name], strict=True)
    other = dict(named_arrays(rs.random_params(TIED, seed=4)))
    contents = [x.tobytes() for x in (*small.values(), *other.values()) if x.base is None]
    names = [n for n, x in small.items() if x.base is None and n != "encoder.embedding"]
    assert len(set(contents)) == 2 * len(names)


def test_random_params_have_their_scales():
    """Of 4,800 numbers and more, mean and deviation are known to 3 standard errors: 0.05."""
    config = small_vaswani(d_model=60, vocab_size=100, n_layers=1, d_ff=80)
    arrays = dict(named_arrays(rs.random_params(config, seed=0, dtype="float64")))
    for name, deviation in [
        ("decoder.embedding", 1),
        ("decoder.layers.0.feed_forward.w_in", 1 / math.sqrt(60)),
        ("decoder.layers.0.feed_forward.w_out", 1 / math.sqrt(80)),
    ]:
        assert abs(arrays[name].mean()) < 0.05 * deviation
        assert abs(arrays[name].std() - deviation) < 0.05 * deviation
    gain, bias = (arrays[f"decoder.layers.0.self_norms.after.{x}"] for x in ("gain", "bias"))
    assert abs(gain.mean() - 1) < 0.05  # 3 / 8 / sqrt(60)
    assert abs(bias.mean()) < 0.05
    assert 0.08 < gain.std() < 0.17
    assert 0.08 < bias.std() < 0.17


@pytest.mark.parametrize("dtype", ["int8", "complex64", "f4", "", None, np.float32])
def test_random_params_of_another_dtype_raise(dtype):
    with raises_naming(ValueError, "dtype", repr(dtype)):
        rs.random_params(TIED, 0, dtype)


def test_params_that_do_not_fit_the_config_raise():
    params = rs.random_params(CONFIG, 0)
    check_params(CONFIG, params)
    for changes, names in (
        ({"unembedding": params.unembedding.T}, ["unembedding", "(11, 23)", "(23, 11)"]),
        ({"logits_bias": None}, ["lacks logits_bias", "(23,)"]),
        ({"logits_bias": params.logits_bias.astype("float64")}, ["['float32', 'float64']"]),
        ({"encoder": params.decoder}, ["encoder.embedding", "(29, 13)"]),
    ):
        changed = copy.copy(params)
        for name, x in changes.items():
            object.__setattr__(changed, name, x)  # past the contract of the fields
        with raises_naming(ValueError, *names):
            check_params(CONFIG, changed)
    with raises_naming(ValueError, "has logits_bias", "(23,)"):
        check_params(dataclasses.replace(CONFIG, logits_bias=False), params)
