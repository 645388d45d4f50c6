"""T5Gemma: an encoder-decoder with the conventions of Gemma 2, as in transformers 5.24.

It has RMS norms before and after each sublayer, rotary positions, grouped key-value heads, soft
caps of scores and logits, and windows in every other layer. Its encoder and its decoder may
differ in sizes and vocabularies.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...checks import UnsupportedFeature
from ...config import (
    ModelConfig,
    NormConfig,
    RotaryPositions,
    StackConfig,
    TokenInput,
    WindowConfig,
)
from ...presets import plain_attention, plain_feed_forward, plain_stack
from ..table import SpecialTokens, module_rows
from .common import Arrays, Conversion, Fields, activation, token_tables

# The values of the config class for fields that a file omits.
DEFAULTS: dict[str, Any] = {
    "is_encoder_decoder": True, "tie_word_embeddings": True, "decoder_start_token_id": None,
    "encoder": {}, "decoder": {},
}  # fmt: skip
STACK_DEFAULTS: dict[str, Any] = {
    "model_type": "t5_gemma_module",
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": None, "is_causal": True,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rope_parameters": None,
    "rope_scaling": None, "rope_theta": 10000.0,  # as in older files
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip

STACK = {
    "layers.*.self_norms.before": "layers.*.pre_self_attn_layernorm",
    "layers.*.self_attention.q": "layers.*.self_attn.q_proj",
    "layers.*.self_attention.k": "layers.*.self_attn.k_proj",
    "layers.*.self_attention.v": "layers.*.self_attn.v_proj",
    "layers.*.self_attention.o": "layers.*.self_attn.o_proj",
    "layers.*.self_norms.branch": "layers.*.post_self_attn_layernorm",
    "layers.*.cross_norms.before": "layers.*.pre_cross_attn_layernorm",
    "layers.*.cross_attention.q": "layers.*.cross_attn.q_proj",
    "layers.*.cross_attention.k": "layers.*.cross_attn.k_proj",
    "layers.*.cross_attention.v": "layers.*.cross_attn.v_proj",
    "layers.*.cross_attention.o": "layers.*.cross_attn.o_proj",
    "layers.*.cross_norms.branch": "layers.*.post_cross_attn_layernorm",
    "layers.*.feed_forward_norms.before": "layers.*.pre_feedforward_layernorm",
    "layers.*.feed_forward.gate": "layers.*.mlp.gate_proj",
    "layers.*.feed_forward.in": "layers.*.mlp.up_proj",
    "layers.*.feed_forward.out": "layers.*.mlp.down_proj",
    "layers.*.feed_forward_norms.branch": "layers.*.post_feedforward_layernorm",
    "final_norm": "norm",
}
ENCODER = "model.encoder.embed_tokens.weight"
DECODER = "model.decoder.embed_tokens.weight"
HEAD = "lm_head.out_proj.weight"


def completed(json_fields: dict[str, Any]) -> Fields:
    """The fields of a config.json, with the defaults of its classes for missing ones."""
    c = Fields(DEFAULTS | json_fields)
    for side in ("encoder", "decoder"):
        c[side] = Fields(STACK_DEFAULTS | c[side])
    special = ("pad_token_id", "eos_token_id", "bos_token_id")
    tokens = {name: c["decoder"][name] for name in special}
    # The model ignores the vocab_size outside its stacks; tokenizers are checked against this one.
    return Fields(tokens | c | {"vocab_size": c["encoder"]["vocab_size"]})


def convert(c: Fields, arrays: Arrays, tokens: SpecialTokens) -> Conversion:
    """The configuration and the table of arrays for a T5Gemma."""
    c = completed(c)  # a live config has no fields of older files
    tied = (DECODER, HEAD) if c["tie_word_embeddings"] else ()
    tables, ties = token_tables(arrays, ENCODER, DECODER, HEAD, tied=tied)
    config = ModelConfig(
        encoder=_stack(c["encoder"], len(arrays), is_decoder=False),
        decoder=_stack(c["decoder"], len(arrays), is_decoder=True),
        logits_scale=1.0,
        logits_bias=False,
        logits_softcap=c["decoder"]["final_logit_softcapping"],
        **ties,
        **tokens,
    )
    names = {
        **module_rows("encoder.", "model.encoder.", STACK),
        **module_rows("decoder.", "model.decoder.", STACK),
    }
    gains = {ours: (theirs, _gain) for ours, (theirs, _) in names.items() if ours.endswith(".gain")}
    return Conversion(config, {**names, **gains, **tables}, {DECODER, HEAD})


def _gain(weight: Any) -> Any:
    """Their norms multiply by 1 + weight."""
    return 1 + np.asarray(weight)


def _stack(c: Fields, n_arrays: int, is_decoder: bool) -> StackConfig:
    d_model, scalar = c["hidden_size"], c["query_pre_attn_scalar"]
    if scalar < 1:
        raise ValueError(f"the config's query_pre_attn_scalar must be at least 1, got {scalar}")
    attention = replace(
        plain_attention(c["num_attention_heads"], c["head_dim"]),
        biases=("q", "k", "v", "o") if c["attention_bias"] else (),
        n_kv_heads=c["num_key_value_heads"],
        scale=scalar**-0.5,
        softcap=c["attn_logit_softcapping"],
    )
    return plain_stack(
        attention,
        cross=is_decoder,
        input=TokenInput(vocab_size=c["vocab_size"]),
        d_model=d_model,
        n_layers=c["num_hidden_layers"],
        embedding_scale=math.sqrt(d_model),
        positions=None,
        relative_positions=_rotary(c),
        windows=_windows(c, n_arrays, is_decoder),
        norm=NormConfig(kind="rms_norm", eps=c["rms_norm_eps"], gain="vector", bias=False),
        norm_positions=("before", "branch"),
        final_norm=True,
        feed_forward=plain_feed_forward(
            c["intermediate_size"], activation(c, "hidden_activation"), gated=True, biases=()
        ),
    )


def _rotary(c: Fields) -> RotaryPositions:
    """Rotations of whole heads, with pairs from their first and second halves."""
    given = c["rope_scaling"] or c["rope_parameters"] or {}
    rope = Fields(
        {"rope_type": given.get("type", "default"), "rope_theta": c["rope_theta"]} | given
    )
    if rope["rope_type"] != "default":
        raise UnsupportedFeature(
            f"rope_type = {rope['rope_type']!r}: only 'default' is implemented"
        )
    return RotaryPositions(d_rotary=c["head_dim"], base=rope["rope_theta"], pairing="halves")


def _windows(c: Fields, n_arrays: int, is_decoder: bool) -> tuple[WindowConfig | None, ...]:
    """The window of each layer. A decoder's size includes the query, an encoder's does not."""
    n_layers, size = c["num_hidden_layers"], c["sliding_window"]
    if n_layers > n_arrays:
        raise ValueError(
            f"the config's num_hidden_layers = {n_layers} needs more than {n_arrays} arrays"
        )
    if is_decoder and not c["is_causal"]:
        raise UnsupportedFeature("is_causal = False: only a causal decoder is implemented")
    types = c["layer_types"] or (("sliding_attention", "full_attention") * n_layers)[:n_layers]
    if unknown := sorted({*types} - {"sliding_attention", "full_attention"}):
        raise UnsupportedFeature(f"layer_types contains {unknown[0]!r}, which is not implemented")
    if len(types) != n_layers:
        raise ValueError(f"the config's layer_types must have {n_layers} entries, got {len(types)}")
    if "sliding_attention" not in types:
        return ()
    if size is None:
        raise ValueError("the config's sliding_window must be an int for sliding_attention layers")
    before, after = (size - 1, 0) if is_decoder else (size, size)
    window = WindowConfig(back=before, ahead=after)
    return tuple(window if kind == "sliding_attention" else None for kind in types)
