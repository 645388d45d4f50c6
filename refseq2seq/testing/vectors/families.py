"""Configurations that together cover every convention on which libraries disagree."""

from dataclasses import replace
from typing import Any, Literal

from ...config import (
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    FrameInput,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    RotaryPositions,
    SinusoidalPositions,
    StackConfig,
    TokenInput,
    WindowConfig,
)
from ...presets import (
    plain_attention,
    plain_feed_forward,
    plain_frame_layer,
    plain_model,
    plain_stack,
    vaswani,
    x_transformers,
)

_TOKENS: dict[str, Any] = {"decoder_start_id": 1, "eos_ids": (2,), "pad_id": 0}


def _t5() -> ModelConfig:
    """T5 1.1 with a tied head: RMS norms, relative buckets, unscaled scores, gated tanh GELU."""

    def stack(cross: bool) -> StackConfig:
        return plain_stack(
            replace(plain_attention(n_heads=3, d_k=5), scale=1.0),
            cross=cross,
            input=TokenInput(vocab_size=19),
            d_model=11,
            n_layers=2,
            positions=None,
            relative_positions=BucketedPositions(
                n_buckets=6, max_distance=5, bidirectional=not cross, per_layer=False, scale=1.0
            ),
            norm=NormConfig(kind="rms_norm", eps=1e-6, gain="vector", bias=False),
            norm_positions=("before",),
            final_norm=True,
            feed_forward=plain_feed_forward(17, "gelu_tanh", gated=True, biases=()),
        )

    return plain_model(
        stack(cross=False),
        stack(cross=True),
        tied=True,
        logits_scale=11**-0.5,
        **_TOKENS | {"decoder_start_id": 0},
    )


def _t5gemma() -> ModelConfig:
    """T5Gemma: T5 with rotations, windows in every second layer, and capped scores and logits."""
    c, rotary = _t5(), RotaryPositions(d_rotary=4, base=100.0, pairing="halves")
    attention = replace(plain_attention(n_heads=3, d_k=5), softcap=2.0)
    new: dict[str, Any] = {
        "self_attention": attention,
        "relative_positions": rotary,
        "norm_positions": ("before", "branch"),
    }
    near, before = WindowConfig(back=1, ahead=1), WindowConfig(back=1, ahead=0)
    encoder = replace(c.encoder, windows=(near, None), **new)
    decoder = replace(c.decoder, windows=(before, None), cross_attention=attention, **new)
    return replace(c, encoder=encoder, decoder=decoder, logits_scale=1.0, logits_softcap=3.0)


def _whisper() -> ModelConfig:
    """Whisper: two convolutions of frames, pre-norm, keys without bias, and a tied head."""
    c = vaswani(d_model=14, vocab_size=19, n_layers=2, n_heads=2, d_ff=23, **_TOKENS)
    attention = plain_attention(n_heads=2, d_k=7, biases=("q", "v", "o"))
    new: dict[str, Any] = {
        "embedding_scale": 1.0,
        "norm_positions": ("before",),
        "final_norm": True,
        "self_attention": attention,
        "feed_forward": replace(c.encoder.feed_forward, activation="gelu_erf"),
    }
    layers = tuple(
        plain_frame_layer(14, window=3, stride=stride, padding=1, activation="gelu_erf")
        for stride in (1, 2)
    )
    frames = FrameInput(n_features=5, layers=layers, n_class_tokens=0)
    waves = SinusoidalPositions(layout="tensor2tensor", offset=0, scale=1.0)
    table = LearnedPositions(n_positions=11, offset=0, scale=1.0)
    encoder = replace(c.encoder, input=frames, positions=waves, **new)
    decoder = replace(c.decoder, positions=table, cross_attention=attention, **new)
    return replace(c, encoder=encoder, decoder=decoder, tied_embeddings=False)


def _captions() -> ModelConfig:
    """An encoder of images: projected and normalised patches after two class tokens."""
    c = vaswani(d_model=14, vocab_size=19, n_layers=2, n_heads=2, d_ff=23, **_TOKENS)
    norms = dict.fromkeys(("norm_before", "norm_after"), c.encoder.norm)
    layer = plain_frame_layer(14, activation="gelu_erf", **norms)
    patches = FrameInput(n_features=6, layers=(layer,), n_class_tokens=2)
    positions = LearnedPositions(n_positions=11, offset=0, scale=1.0)
    encoder = replace(c.encoder, input=patches, positions=positions, embedding_scale=1.0)
    return replace(c, encoder=encoder, tied_embeddings=False)


def _everything() -> ModelConfig:
    """Options that are rarely combined: grouped heads, rotations, gates, memories, rare norms."""
    norm = NormConfig(kind="layer_norm", eps=1e-3, gain="vector", bias=True)
    feed_forward = FeedForwardConfig(
        d_ff=17,
        activation="relu_squared",
        gated=True,
        biases=("in", "gate", "out"),
        hidden_norm=norm,
    )
    return plain_model(
        StackConfig(
            input=TokenInput(vocab_size=23),
            d_model=13,
            n_layers=1,
            embedding_scale=1.5,
            embedding_norm="after_positions",
            positions=LearnedPositions(n_positions=11, offset=2, scale=0.5),
            relative_positions=RotaryPositions(d_rotary=4, base=100.0, pairing="halves"),
            n_register_tokens=2,
            windows=(),
            norm=norm,
            norm_positions=("before", "branch", "after"),
            final_norm=True,
            self_attention=_gated("grouped", "per_value", d_k=5, d_v=7),
            cross_attention=None,
            feed_forward=feed_forward,
        ),
        StackConfig(
            input=TokenInput(vocab_size=19),
            d_model=11,
            n_layers=2,
            embedding_scale=0.5,
            embedding_norm="before_positions",
            positions=SinusoidalPositions(layout="concatenated", offset=1, scale=0.5),
            relative_positions=RotaryPositions(d_rotary=6, base=10000.0, pairing="interleaved"),
            n_register_tokens=0,
            windows=(),
            norm=replace(norm, kind="std_norm", gain="scalar"),
            norm_positions=("before", "after"),
            final_norm=True,
            self_attention=_gated("tiled", "per_head", d_k=7, d_v=5),
            cross_attention=_gated("tiled", "per_value", d_k=3, d_v=5),
            feed_forward=replace(
                feed_forward, activation="silu", hidden_norm=replace(norm, kind="rms_norm")
            ),
        ),
        tied=False,
        logits_scale=0.5,
        logits_bias=True,
        logits_softcap=None,
        **_TOKENS,
    )


def _gated(
    order: Literal["grouped", "tiled"], gate: Literal["per_value", "per_head"], d_k: int, d_v: int
) -> AttentionConfig:
    """Grouped-query attention with all options; its scale is not 1 / sqrt(d_k)."""
    return AttentionConfig(
        n_heads=4,
        n_kv_heads=2,
        kv_head_order=order,
        d_k=d_k,
        d_v=d_v,
        scale=0.5,
        biases=("q", "k", "v", "o"),
        qk_norm=NormConfig(kind="l2_norm", eps=1e-3, gain="vector", bias=True),
        n_learned_kv=1,
        gate=gate,
        head_scale=True,
        softcap=None,
    )


FAMILIES = {
    # The original Transformer: post-norm, sinusoids, ReLU, one table for all embeddings.
    "vaswani": vaswani(d_model=14, vocab_size=19, n_layers=2, n_heads=2, d_ff=23, **_TOKENS),
    # x-transformers without options: pre-norm, learned positions, exact GELU, few biases.
    "x_transformers": x_transformers(
        d_model=13,
        source_vocab_size=23,
        target_vocab_size=19,
        n_source_positions=11,
        n_target_positions=7,
        encoder_layers=2,
        decoder_layers=2,
        n_heads=3,
        d_k=5,
        **_TOKENS,
    ),
    "t5": _t5(),
    "everything": _everything(),
    "whisper": _whisper(),
    "captions": _captions(),
    "t5gemma": _t5gemma(),
}
