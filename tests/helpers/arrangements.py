"""Models that the tests of the forward pass share: two presets, and two with every addition.

All sizes are primes and differ, so that an array with two axes swapped fits nowhere.
"""

from refseq2seq import ModelConfig, presets
from refseq2seq.config import (
    AlibiPositions,
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    LearnedPositions,
    NormConfig,
    RotaryPositions,
    SinusoidalPositions,
    StackConfig,
)

x_transformers = presets.x_transformers(
    d_model=13,
    source_vocab_size=29,
    target_vocab_size=23,
    n_source_positions=19,
    n_target_positions=17,
    encoder_layers=2,
    decoder_layers=3,
    n_heads=3,
    d_k=7,
    decoder_start_id=1,
    eos_ids=(2,),
    pad_id=0,
)

vaswani = presets.vaswani(
    d_model=14,
    vocab_size=29,
    n_layers=2,
    n_heads=2,
    d_ff=31,
    decoder_start_id=1,
    eos_ids=(2,),
    pad_id=0,
)


def _norm(kind, gain="vector"):
    return NormConfig(kind=kind, eps=1e-3, gain=gain, bias=True)


def _attention(order, gate, d_k, d_v):
    return AttentionConfig(
        n_heads=6,
        n_kv_heads=3,
        kv_head_order=order,
        d_k=d_k,
        d_v=d_v,
        scale=0.5,
        biases=("q", "k", "v", "o"),
        qk_norm=_norm("rms_norm"),
        n_learned_kv=2,
        gate=gate,
        head_scale=True,
    )


rich = ModelConfig(
    encoder=StackConfig(
        vocab_size=29,
        d_model=13,
        n_layers=2,
        embedding_scale=1.5,
        embedding_norm="after_positions",
        positions=LearnedPositions(n_positions=19, offset=2, scale=0.5),
        relative_positions=RotaryPositions(d_rotary=4, base=100.0, pairing="halves"),
        n_register_tokens=2,
        norm=_norm("layer_norm"),
        norm_positions=("before", "branch", "after"),
        final_norm=True,
        self_attention=_attention("grouped", "per_value", d_k=5, d_v=7),
        cross_attention=None,
        feed_forward=FeedForwardConfig(
            d_ff=17,
            activation="gelu_erf",
            gated=True,
            biases=("in", "gate", "out"),
            hidden_norm=_norm("rms_norm"),
        ),
    ),
    decoder=StackConfig(
        vocab_size=23,
        d_model=11,
        n_layers=2,
        embedding_scale=0.5,
        embedding_norm="before_positions",
        positions=SinusoidalPositions(layout="interleaved", offset=1, scale=0.5),
        relative_positions=BucketedPositions(
            n_buckets=6, max_distance=5, bidirectional=False, per_layer=True, scale=1.5
        ),
        n_register_tokens=0,
        norm=_norm("std_norm", gain="scalar"),
        norm_positions=("before", "after"),
        final_norm=True,
        self_attention=_attention("tiled", "per_head", d_k=7, d_v=5),
        cross_attention=_attention("tiled", "per_value", d_k=3, d_v=5),
        feed_forward=FeedForwardConfig(
            d_ff=19,
            activation="silu",
            gated=True,
            biases=("in", "gate", "out"),
            hidden_norm=_norm("layer_norm"),
        ),
    ),
    tied_embeddings=False,
    tied_logits=False,
    logits_scale=0.5,
    logits_bias=True,
    decoder_start_id=1,
    eos_ids=(2,),
    pad_id=0,
    forced_bos_id=None,
    forced_eos_id=None,
    suppressed_ids=(),
    begin_suppressed_ids=(),
)

t5_like = ModelConfig(
    encoder=StackConfig(
        vocab_size=29,
        d_model=11,
        n_layers=2,
        embedding_scale=1.0,
        embedding_norm="none",
        positions=None,
        relative_positions=BucketedPositions(
            n_buckets=8, max_distance=5, bidirectional=True, per_layer=False, scale=1.0
        ),
        n_register_tokens=0,
        norm=NormConfig(kind="rms_norm", eps=1e-6, gain="vector", bias=False),
        norm_positions=("before",),
        final_norm=True,
        self_attention=presets.plain_attention(n_heads=3, d_k=5),
        cross_attention=None,
        feed_forward=FeedForwardConfig(
            d_ff=17, activation="gelu_tanh", gated=True, biases=(), hidden_norm=None
        ),
    ),
    decoder=StackConfig(
        vocab_size=29,
        d_model=11,
        n_layers=3,
        embedding_scale=1.0,
        embedding_norm="none",
        positions=None,
        relative_positions=AlibiPositions(slopes=(0.5, 0.25, 0.125)),
        n_register_tokens=0,
        norm=NormConfig(kind="rms_norm", eps=1e-6, gain="vector", bias=False),
        norm_positions=("before",),
        final_norm=True,
        self_attention=presets.plain_attention(n_heads=3, d_k=7),
        cross_attention=presets.plain_attention(n_heads=2, d_k=5),
        feed_forward=FeedForwardConfig(
            d_ff=17, activation="relu_squared", gated=False, biases=(), hidden_norm=None
        ),
    ),
    tied_embeddings=True,
    tied_logits=True,
    logits_scale=11**-0.5,
    logits_bias=False,
    decoder_start_id=0,
    eos_ids=(2,),
    pad_id=0,
    forced_bos_id=None,
    forced_eos_id=None,
    suppressed_ids=(),
    begin_suppressed_ids=(),
)

ALL = {"x_transformers": x_transformers, "vaswani": vaswani, "rich": rich, "t5_like": t5_like}
