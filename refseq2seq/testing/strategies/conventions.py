"""Strategies for configurations: every convention, in every valid combination."""

import math
from dataclasses import replace
from functools import cache
from itertools import compress
from typing import Any, get_args

from hypothesis import strategies as st

from ...config import (
    Activation,
    AlibiPositions,
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    FrameInput,
    FrameLayerConfig,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    RotaryPositions,
    SinusoidalPositions,
    StackConfig,
    TokenInput,
    WindowConfig,
)

NORM_POSITIONS = (
    ("before",),
    ("after",),
    ("branch",),
    ("before", "branch"),
    ("before", "after"),
    ("branch", "after"),
    ("before", "branch", "after"),
    (),
)


@st.composite
def configs(draw: st.DrawFn, *, frames: bool = True) -> ModelConfig:
    """Conventions of a complete model, in every valid combination.

    Encoder and decoder are drawn independently, except that tied embeddings require equal
    ``vocab_size`` and ``d_model``. No token is forced or suppressed.

    Parameters
    ----------
    frames : bool
        Whether one encoder in four reads frames; otherwise all read tokens.
    """
    tied = draw(st.booleans())
    encoder = draw(stacks(cross=False, frames=frames))
    tied = tied and isinstance(encoder.input, TokenInput)
    decoder = draw(
        stacks(
            cross=True,
            vocab_size=encoder.vocab_size if tied else None,
            d_model=encoder.d_model if tied else None,
        )
    )
    ids = st.integers(0, decoder.vocab_size - 1)
    return ModelConfig(
        encoder=encoder,
        decoder=decoder,
        tied_embeddings=tied,
        tied_logits=draw(st.booleans()),
        logits_scale=draw(st.sampled_from((1.0, 1 / math.sqrt(decoder.d_model)))),
        logits_bias=draw(st.booleans()),
        logits_softcap=draw(_SOFTCAP),
        decoder_start_id=draw(ids),
        eos_ids=tuple(draw(st.lists(ids, max_size=2, unique=True))),
        pad_id=draw(ids),
        forced_bos_id=None,
        forced_eos_id=None,
        suppressed_ids=(),
        begin_suppressed_ids=(),
    )


@st.composite
def stacks(
    draw: st.DrawFn,
    *,
    cross: bool,
    vocab_size: int | None = None,
    d_model: int | None = None,
    frames: bool = True,
) -> StackConfig:
    """Conventions of a decoder if ``cross`` is true, of an encoder otherwise.

    Only an encoder may have 0 layers, or read frames, if ``frames`` is true.
    """
    # Sizes are drawn even if they are given, so that a given size does not make an example simpler.
    drawn = draw(st.sampled_from((5, 7, 11, 13))), draw(st.sampled_from((2, 3, 5, 7)))
    d_model = d_model or drawn[1]
    attention, rest, n_layers = draw(attentions()), draw(_STACK), draw(_N_LAYERS[cross])
    windows = draw(st.just(()) | st.tuples(*[_WINDOW] * n_layers))
    reads_frames = frames and not cross and draw(_ONE_IN_FOUR)
    tokens = TokenInput(vocab_size=vocab_size or drawn[0])
    return StackConfig(
        input=draw(frame_inputs(d_model=d_model)) if reads_frames else tokens,
        d_model=d_model,
        n_layers=n_layers,
        embedding_scale=draw(st.sampled_from((1.0, math.sqrt(d_model)))),
        relative_positions=draw(relative_positions(n_heads=attention.n_heads, d_k=attention.d_k)),
        n_register_tokens=0 if cross or windows else draw(st.integers(0, 2)),
        windows=windows,
        self_attention=attention,
        cross_attention=draw(attentions()) if cross else None,
        feed_forward=draw(feed_forwards()),
        **rest,
    )


@st.composite
def frame_inputs(draw: st.DrawFn, *, d_model: int) -> FrameInput:
    """Frames, 0 to 3 layers of them, and class tokens; 3 frames fill a window of each layer."""
    layers, n_features = draw(st.lists(_FRAME_LAYER, max_size=3)), draw(st.sampled_from((2, 3, 5)))
    n_class_tokens = draw(st.integers(0, 2))
    if layers:
        layers[-1] = replace(layers[-1], d_out=d_model)
    while True:
        found = FrameInput(
            n_features=n_features if layers else d_model,
            layers=tuple(layers),
            n_class_tokens=n_class_tokens,
        )
        if found.length(3):
            return found
        del layers[0]


@st.composite
def attentions(draw: st.DrawFn) -> AttentionConfig:
    """Multi-head, grouped-query and multi-query attention with all options."""
    switches = draw(_ATTENTION)
    n_kv_heads, share = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    natural_scale = 1 / math.sqrt(switches["d_k"])
    return AttentionConfig(
        n_heads=n_kv_heads * share,
        n_kv_heads=n_kv_heads,
        scale=draw(st.sampled_from((natural_scale, 1.0))),
        **switches,
    )


@st.composite
def feed_forwards(draw: st.DrawFn) -> FeedForwardConfig:
    """Every activation, with and without a gate."""
    gated, biases = draw(st.booleans()), draw(_subsets("in", "gate", "out"))
    if not gated:
        biases = tuple(name for name in biases if name != "gate")
    return FeedForwardConfig(gated=gated, biases=biases, **draw(_FEED_FORWARD))


@cache
def norms() -> st.SearchStrategy[NormConfig]:
    """Every kind of norm, with and without gain and bias."""
    return st.builds(
        NormConfig,
        kind=st.sampled_from(("layer_norm", "rms_norm", "l2_norm", "std_norm")),
        eps=st.sampled_from((1e-5, 1e-6, 1e-2)),
        gain=st.sampled_from(("vector", "scalar", "none")),
        bias=st.booleans(),
    )


@cache
def absolute_positions() -> st.SearchStrategy[LearnedPositions | SinusoidalPositions | None]:
    """Absolute positions: tables for 11 to 17 tokens, sinusoids in three layouts, or None."""
    offsets, scales = st.integers(0, 2), st.sampled_from((1.0, 0.5))
    layouts = st.sampled_from(("interleaved", "concatenated", "tensor2tensor"))
    return (
        st.none()
        | st.builds(LearnedPositions, n_positions=st.integers(13, 17), offset=offsets, scale=scales)
        | st.builds(SinusoidalPositions, layout=layouts, offset=offsets, scale=scales)
    )


def relative_positions(
    *, n_heads: int, d_k: int
) -> st.SearchStrategy[RotaryPositions | AlibiPositions | BucketedPositions | None]:
    """Relative positions in self-attention, for heads of width ``d_k`` >= 2, or None.

    The number of buckets is small, so that short rows reach the logarithmic buckets and the
    last one.
    """
    slopes = st.lists(st.floats(0, 1, width=16), min_size=n_heads, max_size=n_heads)
    return (
        st.none()
        | st.builds(
            RotaryPositions,
            d_rotary=st.integers(1, d_k // 2).map(lambda pairs: 2 * pairs),
            base=st.sampled_from((10000.0, 100.0)),
            pairing=st.sampled_from(("interleaved", "halves")),
        )
        | st.builds(AlibiPositions, slopes=slopes.map(tuple))
        | _BUCKETED_POSITIONS
    )


def _subsets(*names: str) -> st.SearchStrategy[tuple[Any, ...]]:
    """Any subset of the names, in the given order."""
    chosen = st.lists(st.booleans(), min_size=len(names), max_size=len(names))
    return chosen.map(lambda flags: tuple(compress(names, flags)))


# Strategies that depend on no other draw are created once: creating one takes longer than drawing.

_WINDOW: st.SearchStrategy[WindowConfig | None] = st.none() | st.builds(
    WindowConfig, back=st.integers(0, 3), ahead=st.integers(0, 3)
)
_SOFTCAP: st.SearchStrategy[float | None] = st.none() | st.sampled_from((0.5, 3.0))
_N_LAYERS = {True: st.integers(1, 3), False: st.sampled_from((1, 2, 3, 0))}
_ONE_IN_FOUR = st.sampled_from((False, False, False, True))
_FRAME_LAYER: st.SearchStrategy[FrameLayerConfig] = st.builds(
    lambda window, **rest: FrameLayerConfig(window=window[0], padding=window[1], **rest),
    window=st.sampled_from(((1, 0), (2, 0), (3, 1), (3, 0))),
    d_out=st.sampled_from((2, 3, 5)),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    activation=st.sampled_from(("none", *get_args(Activation))),
    norm_before=st.none() | norms(),
    norm_after=st.none() | norms(),
)
_ATTENTION: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "kv_head_order": st.sampled_from(("grouped", "tiled")),
        "d_k": st.sampled_from((2, 3, 5)),
        "d_v": st.sampled_from((2, 3, 5)),
        "biases": _subsets("q", "k", "v", "o"),
        "qk_norm": st.none() | norms(),
        "n_learned_kv": st.integers(0, 2),
        "gate": st.sampled_from(("none", "per_value", "per_head")),
        "head_scale": st.booleans(),
        "softcap": _SOFTCAP,
    }
)
_FEED_FORWARD: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "d_ff": st.sampled_from((2, 3, 5, 11)),
        "activation": st.sampled_from(get_args(Activation)),
        "hidden_norm": st.none() | norms(),
    }
)
_BUCKETED_POSITIONS = st.builds(
    BucketedPositions,
    n_buckets=st.sampled_from((4, 6, 9)),
    max_distance=st.sampled_from((5, 7, 19)),
    bidirectional=st.booleans(),
    per_layer=st.booleans(),
    scale=st.sampled_from((1.0, 1.5)),
)
_STACK: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "embedding_norm": st.sampled_from(("none", "before_positions", "after_positions")),
        "positions": absolute_positions(),
        "norm": norms(),
        "norm_positions": st.sampled_from(NORM_POSITIONS),
        "final_norm": st.booleans(),
    }
)
