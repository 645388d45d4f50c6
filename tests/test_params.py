"""The arrays of a model: which there are, their names, shapes and random values."""

import dataclasses
import math

import contracts
import numpy as np
import pytest
from arrangements import FREE, SPECIAL, small_vaswani
from hypothesis import given, settings

import refseq2seq as rs
from refseq2seq import config as configs
from refseq2seq.params import check_params, map_arrays, named_arrays, param_shapes
from refseq2seq.testing import strategies

# Everything that a model can have, in sizes that cannot be taken for one another.
NORM = configs.NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=True)
HEAD_NORM = configs.NormConfig(kind="l2_norm", eps=1e-5, gain="vector", bias=False)
ATTENTION = configs.AttentionConfig(
    n_heads=6,
    n_kv_heads=2,
    kv_head_order="grouped",
    d_k=5,
    d_v=7,
    scale=1.0,
    biases=("q", "k", "v", "o"),
    qk_norm=HEAD_NORM,
    n_learned_kv=3,
    gate="per_value",
    head_scale=True,
)
FEED_FORWARD = configs.FeedForwardConfig(
    d_ff=41,
    activation="silu",
    gated=True,
    biases=("in", "gate", "out"),
    hidden_norm=dataclasses.replace(NORM, gain="scalar", bias=False),
)
ENCODER = configs.StackConfig(
    vocab_size=29,
    d_model=11,
    n_layers=1,
    embedding_scale=1.0,
    embedding_norm="before_positions",
    positions=configs.LearnedPositions(n_positions=31, offset=2, scale=1.0),
    relative_positions=None,
    n_register_tokens=4,
    norm=NORM,
    norm_positions=("after",),
    final_norm=True,
    self_attention=ATTENTION,
    cross_attention=None,
    feed_forward=FEED_FORWARD,
)
DECODER = dataclasses.replace(
    ENCODER,
    vocab_size=37,
    d_model=13,
    embedding_norm="none",
    positions=None,
    relative_positions=configs.BucketedPositions(
        n_buckets=8, max_distance=9, bidirectional=False, per_layer=True, scale=1.0
    ),
    n_register_tokens=0,
    norm=dataclasses.replace(NORM, bias=False),
    norm_positions=(),
    self_attention=dataclasses.replace(
        ATTENTION,
        biases=(),
        qk_norm=None,
        n_learned_kv=0,
        gate="none",
        head_scale=False,
    ),
    cross_attention=dataclasses.replace(
        ATTENTION, biases=(), qk_norm=None, n_learned_kv=0, gate="per_head", head_scale=False
    ),
    feed_forward=dataclasses.replace(FEED_FORWARD, gated=False, biases=(), hidden_norm=None),
)
CONFIG = rs.ModelConfig(
    encoder=ENCODER,
    decoder=DECODER,
    tied_embeddings=False,
    tied_logits=False,
    logits_scale=1.0,
    logits_bias=True,
    **SPECIAL,
    **FREE,
)
TIED = small_vaswani(d_model=6, vocab_size=7, n_layers=2, d_ff=5)


def test_names_and_shapes_worked_by_hand():
    """6 heads of 5 make 30, 2 key-value heads of 5 and 7 make 10 and 14, 6 heads of 7 make 42."""
    assert param_shapes(CONFIG) == {
        "encoder.embedding": (29, 11),
        "encoder.embedding_norm.gain": (11,),
        "encoder.embedding_norm.bias": (11,),
        "encoder.positions": (31, 11),
        "encoder.register_tokens": (4, 11),
        "encoder.layers.0.self_attention.w_q": (11, 30),
        "encoder.layers.0.self_attention.b_q": (30,),
        "encoder.layers.0.self_attention.w_k": (11, 10),
        "encoder.layers.0.self_attention.b_k": (10,),
        "encoder.layers.0.self_attention.w_v": (11, 14),
        "encoder.layers.0.self_attention.b_v": (14,),
        "encoder.layers.0.self_attention.w_o": (42, 11),
        "encoder.layers.0.self_attention.b_o": (11,),
        "encoder.layers.0.self_attention.q_norm.gain": (6, 1, 5),
        "encoder.layers.0.self_attention.k_norm.gain": (2, 1, 5),
        "encoder.layers.0.self_attention.learned_k": (2, 3, 5),
        "encoder.layers.0.self_attention.learned_v": (2, 3, 7),
        "encoder.layers.0.self_attention.w_gate": (11, 42),
        "encoder.layers.0.self_attention.b_gate": (42,),
        "encoder.layers.0.self_attention.head_scale": (6, 1, 1),
        "encoder.layers.0.self_norms.after.gain": (11,),
        "encoder.layers.0.self_norms.after.bias": (11,),
        "encoder.layers.0.feed_forward.w_in": (11, 41),
        "encoder.layers.0.feed_forward.b_in": (41,),
        "encoder.layers.0.feed_forward.w_gate": (11, 41),
        "encoder.layers.0.feed_forward.b_gate": (41,),
        "encoder.layers.0.feed_forward.hidden_norm.gain": (),
        "encoder.layers.0.feed_forward.w_out": (41, 11),
        "encoder.layers.0.feed_forward.b_out": (11,),
        "encoder.layers.0.feed_forward_norms.after.gain": (11,),
        "encoder.layers.0.feed_forward_norms.after.bias": (11,),
        "encoder.final_norm.gain": (11,),
        "encoder.final_norm.bias": (11,),
        "decoder.embedding": (37, 13),
        "decoder.relative_bias.0": (8, 6),
        "decoder.layers.0.self_attention.w_q": (13, 30),
        "decoder.layers.0.self_attention.w_k": (13, 10),
        "decoder.layers.0.self_attention.w_v": (13, 14),
        "decoder.layers.0.self_attention.w_o": (42, 13),
        "decoder.layers.0.cross_attention.w_q": (13, 30),
        "decoder.layers.0.cross_attention.w_k": (11, 10),
        "decoder.layers.0.cross_attention.w_v": (11, 14),
        "decoder.layers.0.cross_attention.w_o": (42, 13),
        "decoder.layers.0.cross_attention.w_gate": (13, 6),
        "decoder.layers.0.cross_attention.b_gate": (6,),
        "decoder.layers.0.feed_forward.w_in": (13, 41),
        "decoder.layers.0.feed_forward.w_out": (41, 13),
        "decoder.final_norm.gain": (13,),
        "unembedding": (13, 37),
        "logits_bias": (37,),
    }


@settings(max_examples=50)
@given(config=strategies.configs())
def test_random_params_are_what_the_config_declares(config):
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


def test_tied_tables_are_one_array_and_stay_so():
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
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="dtype must be float16, float32 or float64, got"):
        rs.random_params(TIED, 0, dtype)


def test_params_that_do_not_fit_are_refused_by_name():
    params = rs.random_params(CONFIG, 0)
    check_params(CONFIG, params)
    for changes, message in [
        ({"unembedding": params.unembedding.T}, r"unembedding must have shape \(13, 37\) .* \(37"),
        ({"logits_bias": None}, r"params lacks logits_bias, of shape \(37,\)"),
        ({"logits_bias": params.logits_bias.astype("float64")}, r"\['float32', 'float64'\]"),
        ({"encoder": params.decoder}, r"encoder\.embedding must have shape \(29, 11\) by"),
    ]:
        with contracts.suspended():
            changed = dataclasses.replace(params, **changes)
        with pytest.raises(ValueError, match=message):
            check_params(CONFIG, changed)
    without = dataclasses.replace(CONFIG, logits_bias=False)
    with pytest.raises(ValueError, match=r"params has logits_bias, of shape \(37,\)"):
        check_params(without, params)
