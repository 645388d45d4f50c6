"""T5Gemma's directory without PyTorch, and families that are refused by name.

Live: tests/peers/test_t5gemma.py.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scalar
from naming import raises_naming

pytest.importorskip("resource", reason="tests/helpers/hostile.py needs Unix")

import hostile

import refseq2seq as rs
from refseq2seq.config import RotaryPositions, WindowConfig
from refseq2seq.convert import UnsupportedFeature, from_huggingface
from refseq2seq.convert.huggingface import FAMILIES
from refseq2seq.convert.huggingface.refused import REASONS
from refseq2seq.files import safetensors

STACK = {
    "vocab_size": 13, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "query_pre_attn_scalar": 9,
    "rms_norm_eps": 1e-3, "sliding_window": 2, "rope_parameters": {"rope_theta": 50.0},
    "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.75,
}  # fmt: skip
WIDER = STACK | {
    "vocab_size": 17,
    "hidden_size": 10,
    "intermediate_size": 7,
    "num_hidden_layers": 1,
}
CONFIG = {"model_type": "t5gemma", "encoder": STACK, "decoder": WIDER}


def made(path, **fields):
    """A directory with random arrays, and its arrays."""
    config = CONFIG | fields
    arrays = hostile.arrays_of(config)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    safetensors.write(path / "model.safetensors", arrays)
    return arrays


def test_a_directory(tmp_path):
    arrays = made(tmp_path / "t5gemma")
    model = rs.load(tmp_path / "t5gemma")
    c, p = model.config, model.params
    assert (c.decoder_start_id, c.eos_ids, c.pad_id) == (2, (1,), 0)  # the class's
    assert (c.encoder.vocab_size, c.decoder.vocab_size) == (13, 17)
    assert (c.encoder.d_model, c.decoder.d_model) == (6, 10)
    assert c.encoder.windows == (WindowConfig(back=2, ahead=2), None)
    assert c.decoder.windows == (WindowConfig(back=1, ahead=0),)
    assert c.encoder.embedding_scale == math.sqrt(6)
    for attention in (
        c.encoder.self_attention,
        c.decoder.self_attention,
        c.decoder.cross_attention,
    ):
        assert (attention.n_heads, attention.n_kv_heads, attention.d_k) == (2, 1, 4)
        assert (attention.scale, attention.softcap) == (1 / 3, 0.5)
    assert c.logits_softcap == 0.75
    rotary = RotaryPositions(d_rotary=4, base=50.0, pairing="halves")
    assert c.encoder.relative_positions == c.decoder.relative_positions == rotary
    assert (c.tied_embeddings, c.tied_logits) == (False, True)
    norm = arrays["model.decoder.layers.0.post_cross_attn_layernorm.weight"]
    assert np.array_equal(p.decoder.layers[0].cross_norms.branch.gain, 1 + norm)
    gate = arrays["model.encoder.layers.1.mlp.gate_proj.weight"]
    assert np.array_equal(p.encoder.layers[1].feed_forward.w_gate, gate.T)
    assert p.decoder.layers[0].cross_attention.w_k.shape == (6, 4)
    assert from_huggingface(arrays, CONFIG).config == c


def test_the_logits_are_those_of_the_definition_by_loops(tmp_path):
    """Windows of 2 in sources of 7 and targets of 5; both caps change the logits."""
    arrays = made(tmp_path / "t5gemma")
    model = from_huggingface({name: x.astype("float64") for name, x in arrays.items()}, CONFIG)
    source, target = [3, 8, 1, 12, 5, 9, 4], [2, 11, 6, 16, 3]
    found = rs.forward(model, [source], [target])[0]
    expected = np.array(scalar.forward(model, source, target))
    assert abs(found - expected).max() < 1e-12
    assert abs(found).max() <= 0.75
    uncapped = replace(model.config, logits_softcap=None)
    assert abs(rs.forward(replace(model, config=uncapped), [source], [target])).max() > 0.75


BANDS = {  # where a query (row) sees a key, by hand: W before and after, or W - 1 before
    ("encoder", 1): "11000 11100 01110 00111 00011",
    ("encoder", 2): "11100 11110 11111 01111 00111",
    ("decoder", 1): "10000 01000 00100 00010 00001",
    ("decoder", 2): "10000 11000 01100 00110 00011",
    ("decoder", 4): "10000 11000 11100 11110 01111",
}


@pytest.mark.parametrize(("side", "size"), BANDS)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_where_a_window_ends(side, size, padding, tmp_path):
    """Queries of zeros see all that they may see with equal weight."""
    stacks = {name: CONFIG[name] | {"sliding_window": size} for name in ("encoder", "decoder")}
    arrays = made(tmp_path / "t5gemma", **stacks)
    arrays = {name: x * ("q_proj" not in name) for name, x in arrays.items()}
    model = from_huggingface(arrays, CONFIG | stacks)
    n_left, n_right = {"none": (0, 0), "left": (3, 0), "right": (0, 3)}[padding]
    mask = np.array([[False] * n_left + [True] * 5 + [False] * n_right])
    seen = rs.Trace("*.0.self_attention.weights")
    rs.forward(model, np.where(mask, 7, 0), [[2, 11, 6, 16, 3]], mask, tap=seen)
    weights = seen[f"{side}.layers.0.self_attention.weights"][0]
    if side == "encoder":
        real = slice(n_left, n_left + 5)
        assert not weights[:, real][..., ~mask[0]].any()
        weights = weights[:, real, real]
    band = np.array([[int(x) for x in row] for row in BANDS[side, size].split()])
    expected = band / band.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, np.broadcast_to(expected, weights.shape), rtol=1e-6)


@pytest.mark.parametrize("family", REASONS)
def test_families_that_are_refused_by_name(family, tmp_path):
    """Their config is enough: nothing else is read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    reason = REASONS[family]
    for given in ([tmp_path], [{}, {"model_type": family}]):
        with raises_naming(UnsupportedFeature, family, reason):
            from_huggingface(*given)
    with raises_naming(UnsupportedFeature, family, reason):
        rs.load(tmp_path)


def test_other_families_are_told_what_is_supported(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with raises_naming(UnsupportedFeature, "gpt2", *FAMILIES):
        rs.load(tmp_path)
    assert not FAMILIES.keys() & REASONS.keys()
