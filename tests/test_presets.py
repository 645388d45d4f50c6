"""The two presets: what their sources say, field by field."""

import math

import pytest
from arrangements import SPECIAL
from naming import raises_naming

from refseq2seq import presets

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

# What both presets leave out.
ATTENTION = {
    "d_k": 7,
    "d_v": 7,
    "scale": 1 / math.sqrt(7),
    "kv_head_order": "grouped",
    "qk_norm": None,
    "n_learned_kv": 0,
    "gate": "none",
    "head_scale": False,
    "softcap": None,
}
STACK = {
    "embedding_norm": "none",
    "relative_positions": None,
    "n_register_tokens": 0,
    "windows": [],
}
FEED_FORWARD = {"gated": False, "biases": ["in", "out"], "hidden_norm": None}
MODEL = {
    "logits_scale": 1.0,
    "logits_bias": False,
    "logits_softcap": None,
    "decoder_start_id": 1,
    "eos_ids": [2],
    "pad_id": 0,
    "forced_bos_id": None,
    "forced_eos_id": None,
    "suppressed_ids": [],
    "begin_suppressed_ids": [],
}


def test_x_transformers_has_the_defaults_of_the_package():
    attention = ATTENTION | {"n_heads": 3, "n_kv_heads": 3, "biases": []}
    positions = {"type": "learned", "offset": 0, "scale": 1 / math.sqrt(11)}

    def stack(vocab_size, n_layers, n_positions, cross_attention):
        return STACK | {
            "input": {"type": "tokens", "vocab_size": vocab_size},
            "d_model": 11,
            "n_layers": n_layers,
            "embedding_scale": 1.0,
            "positions": positions | {"n_positions": n_positions},
            "norm": {"kind": "layer_norm", "eps": 1e-5, "gain": "vector", "bias": False},
            "norm_positions": ["before"],
            "final_norm": True,
            "self_attention": attention,
            "cross_attention": cross_attention,
            "feed_forward": FEED_FORWARD | {"d_ff": 44, "activation": "gelu_erf"},
        }

    assert presets.x_transformers(**X_TRANSFORMERS).to_dict() == MODEL | {
        "encoder": stack(29, 2, 19, None),
        "decoder": stack(23, 3, 17, attention),
        "tied_embeddings": False,
        "tied_logits": False,
    }


def test_vaswani_has_the_conventions_of_the_paper():
    attention = ATTENTION | {"n_heads": 2, "n_kv_heads": 2, "biases": ["q", "k", "v", "o"]}
    encoder = STACK | {
        "input": {"type": "tokens", "vocab_size": 29},
        "d_model": 14,
        "n_layers": 3,
        "embedding_scale": math.sqrt(14),
        "positions": {"type": "sinusoidal", "layout": "interleaved", "offset": 0, "scale": 1.0},
        "norm": {"kind": "layer_norm", "eps": 1e-5, "gain": "vector", "bias": True},
        "norm_positions": ["after"],
        "final_norm": False,
        "self_attention": attention,
        "cross_attention": None,
        "feed_forward": FEED_FORWARD | {"d_ff": 31, "activation": "relu"},
    }
    assert presets.vaswani(**VASWANI).to_dict() == MODEL | {
        "encoder": encoder,
        "decoder": encoder | {"cross_attention": attention},
        "tied_embeddings": True,
        "tied_logits": True,
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (X_TRANSFORMERS | {"n_heads": 0}, ["n_heads", "got 0"]),
        (X_TRANSFORMERS | {"d_k": 0}, ["d_k", "got 0"]),
        (X_TRANSFORMERS | {"d_k": 7.0}, ["d_k", "got float"]),
        (X_TRANSFORMERS | {"d_model": 0}, ["d_model", "got 0"]),
        (X_TRANSFORMERS | {"decoder_layers": 0}, ["decoder", "layer"]),
        (X_TRANSFORMERS | {"n_source_positions": 0}, ["n_positions"]),
        (X_TRANSFORMERS | {"eos_ids": (23,)}, ["eos_ids", "23"]),
        (X_TRANSFORMERS | {"eos_ids": 2}, ["eos_ids", "int"]),
        (VASWANI | {"n_heads": 3}, ["n_heads", "d_model = 14", "got 3"]),
        (VASWANI | {"n_heads": 0}, ["n_heads", "d_model = 14", "got 0"]),
        (VASWANI | {"d_model": 0}, ["d_k"]),
        (VASWANI | {"vocab_size": 0}, ["vocab_size", "got 0"]),
        (VASWANI | {"d_ff": 0}, ["d_ff", "got 0"]),
        (VASWANI | {"pad_id": 29}, ["pad_id", "29"]),
    ],
)
def test_bad_sizes_raise(given, names):
    preset = presets.vaswani if "d_ff" in given else presets.x_transformers
    with raises_naming((TypeError, ValueError), *names):
        preset(**given)
