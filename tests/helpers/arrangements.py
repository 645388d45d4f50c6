"""Configs and vocabularies that tests share: two presets, and two with every addition.

All sizes are primes and differ, so that an array with two axes swapped fits nowhere.
"""

from dataclasses import replace

from refseq2seq import ModelConfig, Vocabulary, presets
from refseq2seq.config import (
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
    WindowConfig,
)

SPECIAL = {"decoder_start_id": 1, "eos_ids": (2,), "pad_id": 0}
FREE = {  # no token is forced or suppressed
    "forced_bos_id": None,
    "forced_eos_id": None,
    "suppressed_ids": (),
    "begin_suppressed_ids": (),
}


def small_x_transformers(d_model, vocab_sizes, n_positions, n_layers, n_heads, d_k, **special):
    """The preset; vocabularies, positions and layers are pairs: of the encoder, of the decoder."""
    return presets.x_transformers(
        d_model=d_model,
        source_vocab_size=vocab_sizes[0],
        target_vocab_size=vocab_sizes[1],
        n_source_positions=n_positions[0],
        n_target_positions=n_positions[1],
        encoder_layers=n_layers[0],
        decoder_layers=n_layers[1],
        n_heads=n_heads,
        d_k=d_k,
        **SPECIAL | special,
    )


def small_vaswani(d_model, vocab_size, n_layers, d_ff, **special):
    """The preset, with two heads."""
    sizes = {"d_model": d_model, "vocab_size": vocab_size, "n_layers": n_layers, "d_ff": d_ff}
    return presets.vaswani(n_heads=2, **sizes, **SPECIAL | special)


def vocabulary(symbols, separator="", special=(), replacements=()):
    return Vocabulary(
        symbols=(*symbols,), separator=separator, special=special, replacements=replacements
    )


def readable(model):
    """The model with vocabularies of letters."""
    config, symbols = model.config, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    of = [vocabulary(symbols[: stack.vocab_size]) for stack in (config.encoder, config.decoder)]
    return replace(model, source_vocabulary=of[0], target_vocabulary=of[1])


x_transformers = small_x_transformers(13, (29, 23), (19, 17), (2, 3), n_heads=3, d_k=7)
vaswani = small_vaswani(d_model=14, vocab_size=29, n_layers=2, d_ff=31)


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
        softcap=None,
    )


rich = ModelConfig(
    encoder=StackConfig(
        input=TokenInput(vocab_size=29),
        d_model=13,
        n_layers=2,
        embedding_scale=1.5,
        embedding_norm="after_positions",
        positions=LearnedPositions(n_positions=19, offset=2, scale=0.5),
        relative_positions=RotaryPositions(d_rotary=4, base=100.0, pairing="halves"),
        n_register_tokens=2,
        windows=(),
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
        input=TokenInput(vocab_size=23),
        d_model=11,
        n_layers=2,
        embedding_scale=0.5,
        embedding_norm="before_positions",
        positions=SinusoidalPositions(layout="interleaved", offset=1, scale=0.5),
        relative_positions=BucketedPositions(
            n_buckets=6, max_distance=5, bidirectional=False, per_layer=True, scale=1.5
        ),
        n_register_tokens=0,
        windows=(),
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
    logits_softcap=None,
    **SPECIAL,
    **FREE,
)

_t5_stack = {
    "input": TokenInput(vocab_size=29),
    "d_model": 11,
    "embedding_scale": 1.0,
    "embedding_norm": "none",
    "positions": None,
    "n_register_tokens": 0,
    "windows": (),
    "norm": NormConfig(kind="rms_norm", eps=1e-6, gain="vector", bias=False),
    "norm_positions": ("before",),
    "final_norm": True,
}

t5_like = ModelConfig(
    encoder=StackConfig(
        **_t5_stack,
        n_layers=2,
        relative_positions=BucketedPositions(
            n_buckets=8, max_distance=5, bidirectional=True, per_layer=False, scale=1.0
        ),
        self_attention=presets.plain_attention(n_heads=3, d_k=5),
        cross_attention=None,
        feed_forward=FeedForwardConfig(
            d_ff=17, activation="gelu_tanh", gated=True, biases=(), hidden_norm=None
        ),
    ),
    decoder=StackConfig(
        **_t5_stack,
        n_layers=3,
        relative_positions=AlibiPositions(slopes=(0.5, 0.25, 0.125)),
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
    logits_softcap=None,
    **SPECIAL | {"decoder_start_id": 0},
    **FREE,
)

ALL = {"x_transformers": x_transformers, "vaswani": vaswani, "rich": rich, "t5_like": t5_like}


def frame_layer(d_out, window, stride, padding, **fields):
    """A frame layer with a bias and without norms, unless the fields say otherwise."""
    sizes = {"window": window, "stride": stride, "padding": padding}
    return presets.plain_frame_layer(d_out, **sizes | {"activation": "gelu_erf"} | fields)


def reading_frames(config, n_features, layers, n_class_tokens=0, **fields):
    """The config with an encoder that reads frames, and other fields of the encoder."""
    frames = FrameInput(n_features=n_features, layers=layers, n_class_tokens=n_class_tokens)
    encoder = replace(config.encoder, **{"input": frames} | fields)
    return replace(config, encoder=encoder, tied_embeddings=False)


_frame_layers = (
    frame_layer(7, window=3, stride=1, padding=1, norm_after=_norm("rms_norm")),
    frame_layer(
        13, window=5, stride=2, padding=2, activation="relu", norm_before=_norm("std_norm")
    ),
)
_capped = replace(rich.decoder.self_attention, softcap=1.5)
frames = reading_frames(
    replace(rich, decoder=replace(rich.decoder, self_attention=_capped), logits_softcap=3.0),
    n_features=5,
    layers=_frame_layers,
    n_class_tokens=2,
    n_register_tokens=0,
    windows=(WindowConfig(back=2, ahead=1), None),
)
"""All that a source of frames, windows and caps can have, in the conventions of `rich`."""

captioner = reading_frames(vaswani, 14, (), n_layers=0, positions=None, embedding_scale=1.0)
"""A decoder behind another encoder: its own passes the frames on."""

OF_FRAMES = {"frames": frames, "captioner": captioner}
