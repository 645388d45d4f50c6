"""T5 and its descendants: T5 1.0 and 1.1, Flan and ByT5 (model_type "t5"), mT5, UMT5.

They have RMS norms before each sublayer and at the end, no biases, unscaled scores, and learned
biases for buckets of relative positions. The conventions are those of transformers 5.24.
"""

from dataclasses import replace
from typing import Any

from ...checks import UnsupportedFeature
from ...config import (
    BucketedPositions,
    ModelConfig,
    NormConfig,
    StackConfig,
    TokenInput,
)
from ...presets import plain_attention, plain_feed_forward, plain_stack
from ..table import SpecialTokens, module_rows
from .common import Arrays, Conversion, Fields, activation, token_tables

# Defaults of the config classes for fields that older files omit.
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {"feed_forward_proj": "relu"},
    "mt5": {"feed_forward_proj": "gated-gelu"},
    "umt5": {"feed_forward_proj": "gated-gelu"},
}

# Our names -> theirs. {ff} is 1 in the encoder and 2 in the decoder, where 1 is cross-attention.
STACK = {
    "relative_bias.*": "block.*.layer.0.SelfAttention.relative_attention_bias.weight",
    "layers.*.self_norms.before": "block.*.layer.0.layer_norm",
    "layers.*.self_attention.q": "block.*.layer.0.SelfAttention.q",
    "layers.*.self_attention.k": "block.*.layer.0.SelfAttention.k",
    "layers.*.self_attention.v": "block.*.layer.0.SelfAttention.v",
    "layers.*.self_attention.o": "block.*.layer.0.SelfAttention.o",
    "layers.*.cross_norms.before": "block.*.layer.1.layer_norm",
    "layers.*.cross_attention.q": "block.*.layer.1.EncDecAttention.q",
    "layers.*.cross_attention.k": "block.*.layer.1.EncDecAttention.k",
    "layers.*.cross_attention.v": "block.*.layer.1.EncDecAttention.v",
    "layers.*.cross_attention.o": "block.*.layer.1.EncDecAttention.o",
    "layers.*.feed_forward_norms.before": "block.*.layer.{ff}.layer_norm",
    "layers.*.feed_forward.in": "block.*.layer.{ff}.DenseReluDense.wi",
    "layers.*.feed_forward.out": "block.*.layer.{ff}.DenseReluDense.wo",
    "final_norm": "final_layer_norm",
}
GATED = {
    "layers.*.feed_forward.gate": "block.*.layer.{ff}.DenseReluDense.wi_0",
    "layers.*.feed_forward.in": "block.*.layer.{ff}.DenseReluDense.wi_1",
}
SHARED = "shared.weight"
ENCODER = "encoder.embed_tokens.weight"
DECODER = "decoder.embed_tokens.weight"
HEAD = "lm_head.weight"
TOKEN_TABLES = (SHARED, ENCODER, DECODER, HEAD)
# In the files of T5 1.0, but not used: cross-attention has no relative positions.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def completed(json_fields: dict[str, Any]) -> Fields:
    """The fields of a config.json, and those that its config class derives from them."""
    c = Fields(
        {
            "is_encoder_decoder": True,
            "num_decoder_layers": None,
            "relative_attention_max_distance": 128,
        }
        | DEFAULTS[json_fields["model_type"]]
        | json_fields
    )
    c["num_decoder_layers"] = c["num_decoder_layers"] or c["num_layers"]
    gate, _, act = c["feed_forward_proj"].rpartition("-")
    if gate not in ("", "gated"):
        raise UnsupportedFeature(f"feed_forward_proj = {c['feed_forward_proj']!r}")
    made = {
        "is_gated_act": gate == "gated",
        "dense_act_fn": "gelu_new" if (gate, act) == ("gated", "gelu") else act,
        "scale_decoder_outputs": c.get("tie_word_embeddings") is not False,
    }
    # Since transformers 5 these models tie their tables unless the arrays differ.
    return Fields(made | c | {"tie_word_embeddings": True})


def convert(c: Fields, arrays: Arrays, tokens: SpecialTokens) -> Conversion:
    """The configuration and the table of arrays for a model of this family."""
    tables, ties = token_tables(arrays, ENCODER, DECODER, HEAD, tied=TOKEN_TABLES)
    config = ModelConfig(
        encoder=_stack(c, c["num_layers"], is_decoder=False),
        decoder=_stack(c, c["num_decoder_layers"], is_decoder=True),
        logits_scale=c["d_model"] ** -0.5 if _scales_logits(c) else 1.0,
        logits_bias=False,
        logits_softcap=None,
        **ties,
        **tokens,
    )
    names = STACK | GATED if c["is_gated_act"] else STACK
    encoder = module_rows("encoder.", "encoder.", names, ff=1)
    decoder = module_rows("decoder.", "decoder.", names, ff=2)
    return Conversion(config, {**encoder, **decoder, **tables}, {*TOKEN_TABLES, *UNUSED})


def _scales_logits(c: Fields) -> bool:
    """Whether the last hidden state is divided by sqrt(d_model), as T5 1.0 was trained.

    transformers before 5.24 also scales a UMT5 whose file says that its tables are not tied.
    """
    if c["model_type"] == "mt5":
        return False
    return bool(
        c["scale_decoder_outputs" if "scale_decoder_outputs" in c else "tie_word_embeddings"]
    )


def _stack(c: Fields, n_layers: int, is_decoder: bool) -> StackConfig:
    return plain_stack(
        replace(plain_attention(c["num_heads"], c["d_kv"]), scale=1.0),
        cross=is_decoder,
        input=TokenInput(vocab_size=c["vocab_size"]),
        d_model=c["d_model"],
        n_layers=n_layers,
        positions=None,
        relative_positions=BucketedPositions(
            n_buckets=c["relative_attention_num_buckets"],
            max_distance=c["relative_attention_max_distance"],
            bidirectional=not is_decoder,
            per_layer=c["model_type"] == "umt5",
            scale=1.0,
        ),
        norm=NormConfig(kind="rms_norm", eps=c["layer_norm_epsilon"], gain="vector", bias=False),
        norm_positions=("before",),
        final_norm=True,
        feed_forward=plain_feed_forward(
            c["d_ff"], activation(c, "dense_act_fn"), gated=c["is_gated_act"], biases=()
        ),
    )
