"""Conversion of the arrays of an XTransformer, without torch. tests/peers compares live."""

import subprocess
import sys

import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_x_transformers

CONVENTIONS = {"decoder_start_id": 1, "eos_ids": [2]}
OPTIONS = {
    "dim": 7, "enc_num_tokens": 11, "enc_max_seq_len": 13, "enc_depth": 1, "enc_heads": 3,
    "enc_attn_dim_head": 5, "dec_num_tokens": 17, "dec_max_seq_len": 19, "dec_depth": 1,
    "dec_heads": 2, "dec_attn_dim_head": 3, "dec_ff_glu": True,
}  # fmt: skip


@pytest.fixture
def arrays():
    shapes = {
        "encoder.token_emb.emb.weight": (11, 7),
        "encoder.pos_emb.emb.weight": (13, 7),
        "encoder.attn_layers.final_norm.gamma": (7,),
        "decoder.net.token_emb.emb.weight": (17, 7),
        "decoder.net.pos_emb.emb.weight": (19, 7),
        "decoder.net.attn_layers.final_norm.gamma": (7,),
        "decoder.net.to_logits.weight": (17, 7),
    }
    decoder = "decoder.net.attn_layers.layers"
    attentions = {"encoder.attn_layers.layers.0": 15, f"{decoder}.0": 6, f"{decoder}.1": 6}
    for layer, width in attentions.items():
        shapes[f"{layer}.0.0.gamma"] = (7,)
        shapes |= {f"{layer}.1.to_{name}.weight": (width, 7) for name in "qkv"}
        shapes[f"{layer}.1.to_out.weight"] = (7, width)
    feed_forwards = [("encoder.attn_layers.layers.1", "0.0", 28), (f"{decoder}.2", "0.proj", 56)]
    for layer, name, width in feed_forwards:
        shapes[f"{layer}.0.0.gamma"] = (7,)
        shapes |= {f"{layer}.1.ff.{name}.weight": (width, 7), f"{layer}.1.ff.{name}.bias": (width,)}
        shapes |= {f"{layer}.1.ff.2.weight": (7, 28), f"{layer}.1.ff.2.bias": (7,)}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_each_array_is_converted(arrays):
    model = from_x_transformers(arrays, OPTIONS, **CONVENTIONS)
    encoder, decoder = model.params.encoder, model.params.decoder
    at = "decoder.net.attn_layers.layers"
    for ours, theirs in (
        (encoder.embedding, arrays["encoder.token_emb.emb.weight"]),
        (decoder.positions, arrays["decoder.net.pos_emb.emb.weight"]),
        (decoder.final_norm.gain, arrays["decoder.net.attn_layers.final_norm.gamma"] + 1),
        (decoder.layers[0].self_attention.w_q, arrays[f"{at}.0.1.to_q.weight"].T),
        (decoder.layers[0].cross_attention.w_o, arrays[f"{at}.1.1.to_out.weight"].T),
        (decoder.layers[0].cross_norms.before.gain, arrays[f"{at}.1.0.0.gamma"] + 1),
        (decoder.layers[0].feed_forward.w_in, arrays[f"{at}.2.1.ff.0.proj.weight"][:28].T),
        (decoder.layers[0].feed_forward.b_gate, arrays[f"{at}.2.1.ff.0.proj.bias"][28:]),
        (encoder.layers[0].feed_forward.b_in, arrays["encoder.attn_layers.layers.1.1.ff.0.0.bias"]),
        (model.params.unembedding, arrays["decoder.net.to_logits.weight"].T),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert model.dtype == "float64"
    assert np.isfinite(rs.forward(model, [[3, 10]], [[1, 16]])).all()


@pytest.mark.parametrize(
    ("options", "changes", "kind", "message"),
    [
        ({"dec_macaron": True}, {}, UnsupportedFeature, "dec_macaron = True"),
        ({}, {"encoder.stray": np.ones(3)}, ValueError, r"encoder\.stray"),
        (
            {},
            {"decoder.net.to_logits.weight": None},
            ValueError,
            r"decoder\.net\.to_logits\.weight",
        ),
    ],
)
def test_options_and_arrays_that_cannot_be_converted_raise(options, changes, kind, message, arrays):
    changed = {name: x for name, x in (arrays | changes).items() if x is not None}
    with pytest.raises(kind, match=message):
        from_x_transformers(changed, OPTIONS | options, **CONVENTIONS)


def test_a_live_module_without_torch_raises():
    code = """
import sys
sys.modules["torch"] = None
import refseq2seq as rs
try:
    rs.convert.from_x_transformers(object(), decoder_start_id=1, eos_ids=[2])
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refseq2seq[peers]" in done.stdout


def test_eos_ids_that_are_one_id_raise():
    with pytest.raises(TypeError, match=r"eos_ids .*got 2"):
        rs.convert.table.token_ids("eos_ids", 2)
