"""Complete configurations for given sizes: the original Transformer and x-transformers."""

import math
from typing import Any, Literal

from .config import (
    Activation,
    AttentionConfig,
    FeedForwardConfig,
    FrameLayerConfig,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    SinusoidalPositions,
    StackConfig,
    TokenInput,
)

Projection = Literal["q", "k", "v", "o"]


def plain_attention(n_heads: int, d_k: int, biases: tuple[Projection, ...] = ()) -> AttentionConfig:
    """Multi-head attention with scores divided by sqrt(d_k), without later extensions."""
    return AttentionConfig(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        kv_head_order="grouped",
        d_k=d_k,
        d_v=d_k,
        scale=_inverse_root("d_k", d_k),
        biases=biases,
        qk_norm=None,
        n_learned_kv=0,
        gate="none",
        head_scale=False,
        softcap=None,
    )


def plain_feed_forward(d_ff: int, activation: Activation, **fields: Any) -> FeedForwardConfig:
    """Two linear maps with biases, without a gate or a norm; ``fields`` replace other values."""
    plain: dict[str, Any] = {"gated": False, "biases": ("in", "out"), "hidden_norm": None}
    return FeedForwardConfig(d_ff=d_ff, activation=activation, **plain | fields)


def plain_frame_layer(d_out: int, **fields: Any) -> FrameLayerConfig:
    """A projection of each vector, with a bias; ``fields`` replace other values."""
    plain: dict[str, Any] = {
        "window": 1, "stride": 1, "padding": 0, "bias": True, "activation": "none",
        "norm_before": None, "norm_after": None,
    }  # fmt: skip
    return FrameLayerConfig(d_out=d_out, **plain | fields)


def plain_stack(attention: AttentionConfig, *, cross: bool, **fields: Any) -> StackConfig:
    """An encoder, or if ``cross`` a decoder, with one attention and without later extensions.

    ``fields`` are the others of a `StackConfig`.
    """
    plain: dict[str, Any] = {
        "embedding_scale": 1.0,
        "embedding_norm": "none",
        "relative_positions": None,
        "n_register_tokens": 0,
        "windows": (),
        "self_attention": attention,
        "cross_attention": attention if cross else None,
    }
    return StackConfig(**plain | fields)


def plain_model(
    encoder: StackConfig, decoder: StackConfig, *, tied: bool, **fields: Any
) -> ModelConfig:
    """A model with unscaled logits without bias, and without forced or suppressed tokens.

    If ``tied``, the source, the target and the unembedding share one table. ``fields`` are the
    others of a `ModelConfig`.
    """
    plain: dict[str, Any] = {
        "tied_embeddings": tied,
        "tied_logits": tied,
        "logits_scale": 1.0,
        "logits_bias": False,
        "logits_softcap": None,
        "forced_bos_id": None,
        "forced_eos_id": None,
        "suppressed_ids": (),
        "begin_suppressed_ids": (),
    }
    return ModelConfig(encoder=encoder, decoder=decoder, **plain | fields)


def x_transformers(
    *,
    d_model: int,
    source_vocab_size: int,
    target_vocab_size: int,
    n_source_positions: int,
    n_target_positions: int,
    encoder_layers: int,
    decoder_layers: int,
    n_heads: int,
    d_k: int,
    decoder_start_id: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
) -> ModelConfig:
    """The conventions of ``x_transformers.XTransformer`` 2.31 with default options.

    Pre-norm with final norms, layer norms with eps 1e-5 and no bias, attention without
    biases, a feed-forward of width 4 d_model with exact GELU and biases, learned positions
    multiplied by 1/sqrt(d_model), an untied unembedding without bias.
    """

    def stack(vocab_size: int, n_positions: int, n_layers: int, cross: bool) -> StackConfig:
        return plain_stack(
            plain_attention(n_heads, d_k),
            cross=cross,
            input=TokenInput(vocab_size=vocab_size),
            d_model=d_model,
            n_layers=n_layers,
            positions=LearnedPositions(
                n_positions=n_positions, offset=0, scale=_inverse_root("d_model", d_model)
            ),
            norm=NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=False),
            norm_positions=("before",),
            final_norm=True,
            feed_forward=plain_feed_forward(4 * d_model, "gelu_erf"),
        )

    return plain_model(
        stack(source_vocab_size, n_source_positions, encoder_layers, cross=False),
        stack(target_vocab_size, n_target_positions, decoder_layers, cross=True),
        tied=False,
        decoder_start_id=decoder_start_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
    )


def vaswani(
    *,
    d_model: int,
    vocab_size: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    decoder_start_id: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
) -> ModelConfig:
    """The original Transformer (Vaswani et al. 2017, section 3).

    Post-norm, layer norms with bias, ReLU, interleaved sinusoids, embeddings multiplied by
    sqrt(d_model), one table for source, target and unembedding (section 3.4), and
    d_k = d_model / n_heads. The paper does not state eps; here it is 1e-5, as in PyTorch. The
    paper's equations have no biases in the projections; like every implementation, this one
    has them.
    """
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"n_heads must divide d_model = {d_model}, got {n_heads}")
    d_k = d_model // n_heads

    def stack(cross: bool) -> StackConfig:
        return plain_stack(
            plain_attention(n_heads, d_k, biases=("q", "k", "v", "o")),
            cross=cross,
            input=TokenInput(vocab_size=vocab_size),
            d_model=d_model,
            n_layers=n_layers,
            embedding_scale=math.sqrt(d_model),
            positions=SinusoidalPositions(layout="interleaved", offset=0, scale=1.0),
            norm=NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=True),
            norm_positions=("after",),
            final_norm=False,
            feed_forward=plain_feed_forward(d_ff, "relu"),
        )

    return plain_model(
        stack(cross=False),
        stack(cross=True),
        tied=True,
        decoder_start_id=decoder_start_id,
        eos_ids=eos_ids,
        pad_id=pad_id,
    )


def _inverse_root(name: str, size: int) -> float:
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    return 1 / math.sqrt(size)
