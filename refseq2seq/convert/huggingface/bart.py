"""BART and its descendants: mBART, Marian, Pegasus, M2M100, NLLB, Blenderbots, MVP, PLBart.

They have layer norms and projections with biases, and add positions to the embeddings.
transformers 5.24 has a class for each model; here `FAMILIES` lists the differences.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...checks import UnsupportedFeature
from ...config import (
    LearnedPositions,
    ModelConfig,
    NormConfig,
    SinusoidalPositions,
    SinusoidLayout,
    StackConfig,
    TokenInput,
)
from ...positions import sinusoids
from ...presets import plain_attention, plain_feed_forward, plain_stack
from ..table import SpecialTokens, module_rows
from .common import Arrays, Conversion, Fields, activation, token_tables

EmbeddingNorm = Literal["none", "before_positions", "after_positions"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The conventions in which the families differ."""

    norm: Literal["before", "after"]  # of each sublayer; "before" implies final norms
    embedding_norm: dict[str, EmbeddingNorm]  # by side: "encoder", "decoder"
    positions: Literal["learned"] | SinusoidLayout
    offset: int | Literal["pad_token_id + 1"]  # added to each position


NO_NORM: dict[str, EmbeddingNorm] = {"encoder": "none", "decoder": "none"}
NORM: dict[str, EmbeddingNorm] = {"encoder": "after_positions", "decoder": "after_positions"}
MIXED: dict[str, EmbeddingNorm] = {"encoder": "after_positions", "decoder": "before_positions"}

FAMILIES = {
    "bart": Family(norm="after", embedding_norm=NORM, positions="learned", offset=2),
    "mbart": Family(norm="before", embedding_norm=NORM, positions="learned", offset=2),
    "marian": Family(norm="after", embedding_norm=NO_NORM, positions="concatenated", offset=0),
    "pegasus": Family(norm="before", embedding_norm=NO_NORM, positions="concatenated", offset=0),
    "m2m_100": Family(
        norm="before",
        embedding_norm=NO_NORM,
        positions="tensor2tensor",
        offset="pad_token_id + 1",
    ),
    "blenderbot": Family(norm="before", embedding_norm=NO_NORM, positions="learned", offset=0),
    "blenderbot-small": Family(norm="after", embedding_norm=MIXED, positions="learned", offset=0),
    "mvp": Family(norm="after", embedding_norm=NORM, positions="learned", offset=2),
    "plbart": Family(norm="after", embedding_norm=NORM, positions="learned", offset=2),
}

# Our names -> theirs. {norm} is `Family.norm`.
STACK = {
    "embedding_norm": "layernorm_embedding",
    "positions": "embed_positions.weight",
    "layers.*.self_norms.{norm}": "layers.*.self_attn_layer_norm",
    "layers.*.self_attention.q": "layers.*.self_attn.q_proj",
    "layers.*.self_attention.k": "layers.*.self_attn.k_proj",
    "layers.*.self_attention.v": "layers.*.self_attn.v_proj",
    "layers.*.self_attention.o": "layers.*.self_attn.out_proj",
    "layers.*.cross_norms.{norm}": "layers.*.encoder_attn_layer_norm",
    "layers.*.cross_attention.q": "layers.*.encoder_attn.q_proj",
    "layers.*.cross_attention.k": "layers.*.encoder_attn.k_proj",
    "layers.*.cross_attention.v": "layers.*.encoder_attn.v_proj",
    "layers.*.cross_attention.o": "layers.*.encoder_attn.out_proj",
    "layers.*.feed_forward_norms.{norm}": "layers.*.final_layer_norm",
    "layers.*.feed_forward.in": "layers.*.fc1",
    "layers.*.feed_forward.out": "layers.*.fc2",
    "final_norm": "layer_norm",
}
SHARED = "model.shared.weight"
ENCODER = "model.encoder.embed_tokens.weight"
DECODER = "model.decoder.embed_tokens.weight"
HEAD = "lm_head.weight"
LOGITS_BIAS = "final_logits_bias"
# Arrays that some files contain: sinusoids, which we compute, and unused ones.
SINUSOIDS = {
    f"model.{side}.embed_positions.{name}"
    for side in ("encoder", "decoder")
    for name in ("weight", "weights")
}
UNUSED = ("model.encoder.version", "model.decoder.version")


def completed(json_fields: dict[str, Any]) -> Fields:
    """The fields of a config.json, with the defaults of its config class for missing ones."""
    c = Fields(
        {
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
            "share_encoder_decoder_embeddings": True,
            "decoder_vocab_size": None,
        }
        | json_fields
    )
    c["decoder_vocab_size"] = c["decoder_vocab_size"] or c["vocab_size"]
    return c


def convert(c: Fields, arrays: Arrays, tokens: SpecialTokens) -> Conversion:
    """The configuration and the table of arrays for a model of one of the `FAMILIES`."""
    family = FAMILIES[c["model_type"]]
    check_consistent(c, family)
    shared = c["model_type"] != "marian" or c["share_encoder_decoder_embeddings"]
    tied = (SHARED, ENCODER, DECODER, HEAD) if shared else (DECODER, HEAD)
    tables, ties = token_tables(
        arrays, ENCODER, DECODER, HEAD, tied=tied if c["tie_word_embeddings"] else ()
    )
    config = ModelConfig(
        encoder=stack(c, family, "encoder", c["vocab_size"]),
        decoder=stack(c, family, "decoder", c["vocab_size" if shared else "decoder_vocab_size"]),
        logits_scale=1.0,
        logits_bias=LOGITS_BIAS in arrays,  # transformers uses 0 if it is missing
        logits_softcap=None,
        **ties,
        **tokens,
    )
    table = {
        **module_rows("encoder.", "model.encoder.", STACK, norm=family.norm),
        **module_rows("decoder.", "model.decoder.", STACK, norm=family.norm),
        **tables,
        "logits_bias": (LOGITS_BIAS, lambda x: x.reshape(-1)),  # stored as (1, vocab_size)
    }
    unused = {SHARED, ENCODER, DECODER, HEAD, *UNUSED}
    if isinstance(config.encoder.positions, SinusoidalPositions):
        _check_sinusoids(arrays, config.encoder.positions, c["d_model"])
        unused |= SINUSOIDS
    return Conversion(config, table, unused)


def stack(
    c: Fields, family: Family, side: Literal["encoder", "decoder"], vocab_size: int
) -> StackConfig:
    """The encoder or the decoder of a model of the family, which reads tokens."""
    d_model, n_heads = c["d_model"], c[f"{side}_attention_heads"]
    positions = _positions(c, family)
    if n_heads == 0 or d_model % n_heads:
        raise ValueError(
            f"the config's {side}_attention_heads must divide d_model = {d_model}, got {n_heads}"
        )
    attention = plain_attention(n_heads, d_model // n_heads, biases=("q", "k", "v", "o"))
    embedding_norm = family.embedding_norm[side]
    # Blenderbot-small's decoder normalises token vectors before positions, and does not scale them.
    scaled = c["scale_embedding"] and embedding_norm != "before_positions"
    return plain_stack(
        attention,
        cross=side == "decoder",
        input=TokenInput(vocab_size=vocab_size),
        d_model=d_model,
        n_layers=c[f"{side}_layers"],
        embedding_scale=math.sqrt(d_model) if scaled else 1.0,
        embedding_norm=embedding_norm,
        positions=positions,
        norm=NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=True),
        norm_positions=(family.norm,),
        final_norm=family.norm == "before",
        feed_forward=plain_feed_forward(c[f"{side}_ffn_dim"], activation(c, "activation_function")),
    )


def _positions(c: Fields, family: Family) -> LearnedPositions | SinusoidalPositions:
    offset = c["pad_token_id"] + 1 if family.offset == "pad_token_id + 1" else family.offset
    if family.positions == "learned":
        return LearnedPositions(
            n_positions=c["max_position_embeddings"] + offset, offset=offset, scale=1.0
        )
    if c["d_model"] % 2 and family.positions == "concatenated":
        raise UnsupportedFeature(
            f"d_model = {c['d_model']}: sinusoids of an odd width differ from ours; it must be even"
        )
    return SinusoidalPositions(layout=family.positions, offset=offset, scale=1.0)


def check_consistent(c: Fields, family: Family) -> None:
    """Raise if a field contradicts what is implemented for the model's class."""
    implemented = {
        "normalize_before": family.norm == "before",
        "add_final_layer_norm": family.norm == "before",
        "normalize_embedding": family.embedding_norm["encoder"] != "none",
        "static_position_embeddings": family.positions != "learned",
        "use_prompt": False,  # MVP's learned keys and values
    }
    for field, done in implemented.items():
        if field in c and c[field] != done:
            raise UnsupportedFeature(
                f"{field} = {c[field]}: for {c['model_type']} models only {done} is implemented"
            )


def _check_sinusoids(arrays: Arrays, positions: SinusoidalPositions, d_model: int) -> None:
    """Raise unless a stored table of positions equals the computed one, up to its rounding."""
    for name in SINUSOIDS & arrays.keys():
        n_positions, *width = arrays[name].shape or (0,)
        if width != [d_model]:
            raise ValueError(
                f"{name} must have shape (n, d_model = {d_model}), got {arrays[name].shape}"
            )
        used = np.arange(positions.offset, n_positions)
        table = np.asarray(arrays[name])[used]
        difference = table - sinusoids(used, d_model, positions.layout)
        # Angles in float32, as in M2M100, have an error of up to 2^-23 times the position.
        allowed = _rounding(table) + used * 2.0**-22
        if not (np.abs(difference).max(axis=-1, initial=0.0) <= allowed).all():
            raise UnsupportedFeature(f"{name} is not the table of {positions.layout} sinusoids")


def _rounding(table: np.ndarray) -> float:
    """The largest rounding error of numbers up to 1 in the narrowest format that represents the
    table exactly.

    The format is bfloat16, float16 or float32, found from the number of significant binary
    digits, because a table in half precision has been widened before.
    """
    significands, _ = np.frexp(table.astype("float64"))
    for digits in (8, 11, 24):
        steps = significands * 2.0**digits
        if (steps == np.rint(steps)).all():
            break
    return 2.0 ** -(digits + 1)
