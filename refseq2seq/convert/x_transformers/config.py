"""The configuration that the options of x-transformers 2.31 determine."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ...config import (
    AlibiPositions,
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    FrameInput,
    LearnedPositions,
    NormConfig,
    RotaryPositions,
    SinusoidalPositions,
    StackConfig,
    TokenInput,
)
from ...positions import alibi_slopes
from ...presets import plain_frame_layer
from .options import Side, default

LAYER_NORM = NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=False)


def stack_config(o: Side, arrays: Mapping[str, np.ndarray]) -> StackConfig:
    """The configuration of an encoder or decoder; the scale of sinusoids is in ``arrays``."""
    norm = _norm(o)
    if o["post_emb_norm"] and norm != LAYER_NORM:
        raise o.refusal("post_emb_norm", "is implemented where all norms are layer norms")
    if o["num_memory_tokens"] and o.is_decoder:
        raise o.refusal("num_memory_tokens", "is implemented for encoders only")
    before = o["pre_norm"] or o["pre_and_post_norm"]
    after = not o["pre_norm"] or o["pre_and_post_norm"]
    places: dict[Literal["before", "branch", "after"], bool] = {
        "before": before,
        "branch": o["sandwich_norm"],
        "after": after,
    }
    return StackConfig(
        input=_input(o),
        d_model=o["dim"],
        n_layers=len(o.order) // len(o.block),
        embedding_scale=1.0,
        embedding_norm="after_positions" if o["post_emb_norm"] else "none",
        positions=_positions(o, arrays),
        relative_positions=_relative_positions(o),
        n_register_tokens=o["num_memory_tokens"] or o["num_register_tokens"],
        windows=(),
        norm=norm,
        norm_positions=tuple(place for place, has_norm in places.items() if has_norm),
        final_norm=not after and o["pre_norm_has_final_norm"],
        self_attention=_attention(o, "attn_"),
        cross_attention=_attention(o, "cross_attn_") if o.is_decoder else None,
        feed_forward=_feed_forward(o),
    )


def _input(o: Side) -> TokenInput | FrameInput:
    if o.reads == "tokens":
        return TokenInput(vocab_size=o["num_tokens"])
    is_vit = o.reads == "images"
    norm = LAYER_NORM if is_vit else None
    projection = plain_frame_layer(o["dim"], bias=is_vit, norm_before=norm, norm_after=norm)
    n_features = o["channels"] * o["patch_size"] ** 2 if is_vit else o["dim_in"]
    is_identity = o["use_identity_if_same_dim"] and n_features == o["dim"]
    layers = () if is_identity else (projection,)
    return FrameInput(n_features=n_features, layers=layers, n_class_tokens=0)


def _norm(o: Side) -> NormConfig:
    gains: dict[str, Literal["vector", "scalar", "none"]] = {
        "use_scalenorm": "scalar",
        "use_rmsnorm": "vector",
        "use_simple_rmsnorm": "none",
    }
    for name, gain in gains.items():
        if o[name]:
            return NormConfig(kind="l2_norm", eps=1e-12, gain=gain, bias=False)
    return LAYER_NORM


def _positions(
    o: Side, arrays: Mapping[str, np.ndarray]
) -> LearnedPositions | SinusoidalPositions | None:
    if o.reads == "images":
        n_patches = (o["image_size"] // o["patch_size"]) ** 2
        return LearnedPositions(n_positions=n_patches, offset=0, scale=1.0)
    disabled = o["disable_abs_pos_emb"]
    if disabled is None:
        disabled = o["rel_pos_bias"] or o["rotary_pos_emb"]
    if disabled or not o["use_abs_pos_emb"] or not o["max_seq_len"]:
        return None
    if not o["scaled_sinu_pos_emb"]:
        return LearnedPositions(n_positions=o["max_seq_len"], offset=0, scale=o["dim"] ** -0.5)
    name = f"{o.theirs}pos_emb.scale"
    if name not in arrays:
        raise ValueError(f"there is no array {name}, the scale of the sinusoids")
    return SinusoidalPositions(layout="concatenated", offset=0, scale=arrays[name].item())


def _relative_positions(
    o: Side,
) -> RotaryPositions | AlibiPositions | BucketedPositions | None:
    chosen = [n for n in ("rotary_pos_emb", "alibi_pos_bias", "rel_pos_bias") if o[n]]
    if chosen and o["num_register_tokens"]:
        raise o.refusal("num_register_tokens", f"together with {chosen[0]} is not implemented")
    if len(chosen) > 1:
        raise o.refusal(chosen[1], f"together with {chosen[0]} is not implemented")
    if o["rotary_pos_emb"]:
        d = default(o["rotary_emb_dim"], o["attn_dim_head"] // 2)
        d_rotary = d + d % 2  # an odd d has (d + 1)/2 frequencies 10000^(-2j/d)
        return RotaryPositions(
            d_rotary=d_rotary, base=10000.0 ** (d_rotary / d), pairing="interleaved"
        )
    if o["alibi_pos_bias"]:
        n = default(o["alibi_num_heads"], o["heads"])
        slopes = [float(np.float32(slope)) for slope in alibi_slopes(n)]  # stored as float32
        return AlibiPositions(slopes=(*slopes, *[0.0] * (o["heads"] - n)))
    if o["rel_pos_bias"]:
        return BucketedPositions(
            n_buckets=o["rel_pos_num_buckets"],
            max_distance=o["rel_pos_max_distance"],
            bidirectional=not o.is_decoder,
            per_layer=False,
            scale=o["attn_dim_head"] ** 0.5,
        )
    return None


def _attention(o: Side, kind: str) -> AttentionConfig:
    """Convert the options that begin with ``kind``, which is attn_ or cross_attn_."""
    d_k, gate = o[f"{kind}dim_head"], _gate(o, kind)
    kv_heads = 1 if o[f"{kind}one_kv_head"] else default(o[f"{kind}kv_heads"], o["heads"])
    scale, qk_norm = d_k**-0.5, None
    if o[f"{kind}qk_rmsnorm"]:
        qk_norm = NormConfig(kind="l2_norm", eps=1e-12, gain="vector", bias=False)
    if o[f"{kind}qk_norm"]:
        if qk_norm is not None:
            raise o.refusal(f"{kind}qk_rmsnorm", f"together with {kind}qk_norm is not implemented")
        learned = o[f"{kind}qk_norm_dim_scale"]
        qk_norm = NormConfig(
            kind="l2_norm", eps=1e-12, gain="vector" if learned else "none", bias=False
        )
        # After our l2_norm, q and k have length sqrt(d_k); after theirs, length 1.
        scale = (d_k**-0.5 if learned else o[f"{kind}qk_norm_scale"]) / d_k
    return AttentionConfig(
        n_heads=o["heads"],
        n_kv_heads=kv_heads,
        kv_head_order="tiled",
        d_k=d_k,
        d_v=default(o[f"{kind}value_dim_head"], d_k),
        scale=scale,
        biases=(),
        qk_norm=qk_norm,
        n_learned_kv=o[f"{kind}num_mem_kv"],
        gate=gate,
        head_scale=o[f"{kind}head_scale"],
        softcap=float(o[f"{kind}logit_softclamp_value"]) if o[f"{kind}softclamp_logits"] else None,
    )


def _gate(o: Side, kind: str) -> Literal["none", "per_value", "per_head"]:
    if o[f"{kind}gate_values"] and o[f"{kind}gate_value_heads"]:
        raise o.refusal(
            f"{kind}gate_value_heads", f"together with {kind}gate_values is not implemented"
        )
    if o[f"{kind}gate_value_heads"]:
        return "per_head"
    if o[f"{kind}gate_values"]:
        return "per_head" if o[f"{kind}gate_values_headwise"] else "per_value"
    return "none"


def _feed_forward(o: Side) -> FeedForwardConfig:
    biases: dict[Literal["in", "gate", "out"], bool] = {
        "in": o["ff_glu"] or not o["ff_no_bias"],  # a GLU always has biases
        "gate": o["ff_glu"],
        "out": not o["ff_no_bias"],
    }
    return FeedForwardConfig(
        d_ff=int(o["dim"] * o["ff_mult"]),
        activation=(
            "relu_squared" if o["ff_relu_squared"] else "silu" if o["ff_swish"] else "gelu_erf"
        ),
        gated=o["ff_glu"],
        biases=tuple(name for name, has_bias in biases.items() if has_bias),
        hidden_norm=LAYER_NORM if o["ff_post_act_ln"] else None,
    )


def logits_scale(o: Side) -> float:
    """The scale of tied logits: by default 1/sqrt(dim) in release 2.31, and 1 in 2.26."""
    if not o["tie_embedding"]:
        return 1.0
    return float(default(o["tie_embedding_scale"], o["dim"] ** -0.5))
