"""The two presets: what their sources say, field by field."""

import math

import pytest

from refseq2seq import presets

SPECIAL = {"decoder_start_id": 1, "eos_ids": (2,), "pad_id": 0}
X_TRANSFORMERS = {
    "d_model": 11,
    "source_vocab_size": 29,
    "target_vocab_size": 23,
    "n_source_positions": 19,
    "n_target_positions": 17,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "n_heads": 3,
    "d_k": 7,
} | SPECIAL
VASWANI = {"d_model": 14, "vocab_size": 29, "n_layers": 3, "n_heads": 2, "d_ff": 31} | SPECIAL

ATTENTION = {
    "kv_head_order": "grouped",
    "qk_norm": None,
    "n_learned_kv": 0,
    "gate": "none",
    "head_scale": False,
}


def test_x_transformers_as_it_comes():
    attention = ATTENTION | {
        "n_heads": 3, "n_kv_heads": 3, "d_k": 7, "d_v": 7, "scale": 1 / math.sqrt(7), "biases": []
    }  # fmt: skip

    def stack(vocab_size, n_layers, n_positions, cross_attention):
        return {
            "vocab_size": vocab_size,
            "d_model": 11,
            "n_layers": n_layers,
            "embedding_scale": 1.0,
            "embedding_norm": "none",
            "positions": {
                "type": "learned",
                "n_positions": n_positions,
                "offset": 0,
                "scale": 1 / math.sqrt(11),
            },
            "relative_positions": None,
            "n_register_tokens": 0,
            "norm": {"kind": "layer_norm", "eps": 1e-5, "gain": "vector", "bias": False},
            "norm_positions": ["before"],
            "final_norm": True,
            "self_attention": attention,
            "cross_attention": cross_attention,
            "feed_forward": {
                "d_ff": 44,
                "activation": "gelu_erf",
                "gated": False,
                "biases": ["in", "out"],
                "hidden_norm": None,
            },
        }  # fmt: skip

    assert presets.x_transformers(**X_TRANSFORMERS).to_dict() == {
        "encoder": stack(29, 2, 19, None),
        "decoder": stack(23, 3, 17, attention),
        "tied_embeddings": False,
        "tied_logits": False,
        "logits_scale": 1.0,
        "logits_bias": False,
        "decoder_start_id": 1,
        "eos_ids": [2],
        "pad_id": 0,
        "forced_bos_id": None,
        "forced_eos_id": None,
        "suppressed_ids": [],
        "begin_suppressed_ids": [],
    }


def test_vaswani_as_in_the_paper():
    attention = ATTENTION | {
        "n_heads": 2,
        "n_kv_heads": 2,
        "d_k": 7,
        "d_v": 7,
        "scale": 1 / math.sqrt(7),
        "biases": ["q", "k", "v", "o"],
    }

    def stack(cross_attention):
        return {
            "vocab_size": 29,
            "d_model": 14,
            "n_layers": 3,
            "embedding_scale": math.sqrt(14),
            "embedding_norm": "none",
            "positions": {"type": "sinusoidal", "layout": "interleaved", "offset": 0, "scale": 1.0},
            "relative_positions": None,
            "n_register_tokens": 0,
            "norm": {"kind": "layer_norm", "eps": 1e-5, "gain": "vector", "bias": True},
            "norm_positions": ["after"],
            "final_norm": False,
            "self_attention": attention,
            "cross_attention": cross_attention,
            "feed_forward": {
                "d_ff": 31,
                "activation": "relu",
                "gated": False,
                "biases": ["in", "out"],
                "hidden_norm": None,
            },
        }

    assert presets.vaswani(**VASWANI).to_dict() == {
        "encoder": stack(None),
        "decoder": stack(attention),
        "tied_embeddings": True,
        "tied_logits": True,
        "logits_scale": 1.0,
        "logits_bias": False,
        "decoder_start_id": 1,
        "eos_ids": [2],
        "pad_id": 0,
        "forced_bos_id": None,
        "forced_eos_id": None,
        "suppressed_ids": [],
        "begin_suppressed_ids": [],
    }


@pytest.mark.parametrize(
    ("preset", "sizes", "changes", "message"),
    [
        (presets.x_transformers, X_TRANSFORMERS, {"n_heads": 0}, "n_heads must be at least 1"),
        (presets.x_transformers, X_TRANSFORMERS, {"d_k": 0}, "d_k must be at least 1"),
        (presets.x_transformers, X_TRANSFORMERS, {"d_k": 7.0}, "d_k must be an int, got float"),
        (presets.x_transformers, X_TRANSFORMERS, {"d_model": 0}, "d_model must be at least 1"),
        (presets.x_transformers, X_TRANSFORMERS, {"d_model": -4}, "d_model must be at least 1"),
        (
            presets.x_transformers,
            X_TRANSFORMERS,
            {"encoder_layers": 0},
            "n_layers must be at least",
        ),
        (presets.x_transformers, X_TRANSFORMERS, {"n_source_positions": 0}, "n_positions must be"),
        (presets.x_transformers, X_TRANSFORMERS, {"eos_ids": (23,)}, "eos_ids must be in"),
        (presets.x_transformers, X_TRANSFORMERS, {"eos_ids": 2}, "eos_ids must be a tuple"),
        (presets.vaswani, VASWANI, {"n_heads": 3}, "n_heads must divide d_model = 14, got 3"),
        (presets.vaswani, VASWANI, {"n_heads": 0}, "n_heads must divide d_model = 14, got 0"),
        (presets.vaswani, VASWANI, {"d_model": 0}, "d_k must be at least 1"),
        (presets.vaswani, VASWANI, {"vocab_size": 0}, "vocab_size must be at least 1"),
        (presets.vaswani, VASWANI, {"d_ff": 0}, "d_ff must be at least 1"),
        (presets.vaswani, VASWANI, {"pad_id": 29}, "pad_id must be in"),
    ],
)
def test_sizes_that_make_no_model_are_refused(preset, sizes, changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        preset(**sizes | changes)
