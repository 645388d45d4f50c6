"""The parts of a model, in words: its sublayers, their sizes, and the quantities of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import (
    AlibiPositions,
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    FrameInput,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from .facts import Fact

NORMS = {
    "layer_norm": "layer norm", "rms_norm": "RMS norm", "l2_norm": "L2 norm",
    "std_norm": "std norm",
}  # fmt: skip
ACTIVATIONS = {
    "relu": "ReLU", "relu_squared": "squared ReLU", "silu": "SiLU", "gelu_erf": "exact GELU",
    "gelu_tanh": "tanh GELU",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A box of the picture: a sublayer, or what stands before or after the layers.

    ``quantities`` are computed inside; ``after`` is the residual stream behind the sublayer, if
    there is one. ``norms`` are those before, on the branch and after, each "" if there is none.
    """

    name: str
    title: str
    details: tuple[str, ...]
    quantities: tuple[Fact, ...]
    after: Fact | None
    norms: tuple[str, str, str] = ("", "", "")


def part_of(name: str) -> str:
    """The part to which a quantity belongs.

    Examples
    --------
    >>> part_of("decoder.layers.*.after_cross_attention"), part_of("encoder.embed")
    ('decoder.cross_attention', 'encoder.embedding')
    """
    stack = re.match("encoder|decoder", name)
    if stack is None:
        return "unembedding" if name == "logits" else "choice"
    sublayer = re.search("self_attention|cross_attention|feed_forward|frame|final", name)
    return f"{stack[0]}.{sublayer[0] if sublayer else 'embedding'}".replace("frame", "frames")


def parts(c: ModelConfig, facts: dict[str, Fact]) -> list[Part]:
    """The parts in the order in which the data pass them."""
    found = []
    for name, title, details in _described(c):
        own = [fact for fact in facts.values() if part_of(fact.name) == name]
        after = [fact for fact in own if ".after_" in fact.name]
        inside = tuple(fact for fact in own if fact not in after)
        stack = c.encoder if name.startswith("encoder") else c.decoder
        norms = _norms(stack) if after else ("", "", "")
        found.append(Part(name, title, details, inside, after[0] if after else None, norms))
    return found


def _norms(c: StackConfig) -> tuple[str, str, str]:
    before, branch, after = (
        NORMS[c.norm.kind] if place in c.norm_positions else ""
        for place in ("before", "branch", "after")
    )
    return before, branch, after


def _described(c: ModelConfig) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The name, the title and the details of each part."""
    for stack, of in (("encoder", c.encoder), ("decoder", c.decoder)):
        if isinstance(of.input, FrameInput):
            yield f"{stack}.frames", "Frames", tuple(_of_frames(of.input))
        yield f"{stack}.embedding", "Embedding", tuple(_of_embedding(of))
        if of.n_layers:
            yield f"{stack}.self_attention", "Self-attention", tuple(_of_self_attention(stack, of))
            if of.cross_attention is not None:
                details = tuple(_of_attention(of.cross_attention))
                yield f"{stack}.cross_attention", "Cross-attention", details
            yield f"{stack}.feed_forward", "Feed-forward", tuple(_of_feed_forward(of.feed_forward))
        final = (NORMS[of.norm.kind],) if of.final_norm else ()
        title = {"encoder": "Memory", "decoder": "Output"}[stack]
        yield f"{stack}.final", "Final norm" if final else title, final
    table = (
        "the embedding transposed"
        if c.tied_logits
        else f"{c.decoder.d_model} × {c.decoder.vocab_size}"
    )
    yield "unembedding", "Unembedding", (table, *_capped(c.logits_softcap))
    yield "choice", "Choice of a token", ()


def _of_frames(c: FrameInput) -> Iterator[str]:
    yield f"width {c.n_features}"
    for layer in c.layers:
        every = f", every {layer.stride}" if layer.stride > 1 else ""
        yield f"windows of {layer.window}{every}: {layer.d_out}"
    if c.n_class_tokens:
        yield f"{c.n_class_tokens} class tokens"


def _of_embedding(c: StackConfig) -> Iterator[str]:
    yield f"{c.vocab_size} × {c.d_model}" if c.vocab_size else f"width {c.d_model}"
    if c.positions is not None:
        learned = isinstance(c.positions, LearnedPositions)
        yield f"{c.positions.n_positions} positions" if learned else "sinusoids"  # type: ignore[union-attr]
    if c.embedding_norm != "none":
        yield NORMS[c.norm.kind]
    if c.n_register_tokens:
        yield f"{c.n_register_tokens} registers"


def _of_self_attention(stack: str, c: StackConfig) -> Iterator[str]:
    yield from _of_attention(c.self_attention)
    if stack == "decoder":
        yield "causal"
    if c.windows:
        yield "windows"
    relative = c.relative_positions
    if isinstance(relative, AlibiPositions):
        yield "ALiBi"
    elif isinstance(relative, BucketedPositions):
        yield f"bias of {relative.n_buckets} buckets"
    elif relative is not None:
        yield "rotated q and k"


def _of_attention(c: AttentionConfig) -> Iterator[str]:
    yield f"{c.n_heads} heads of {c.d_k}"
    if c.n_kv_heads < c.n_heads:
        yield f"{c.n_kv_heads} of k and v"
    if c.qk_norm is not None:
        yield "q and k normed"
    if c.n_learned_kv:
        yield f"{c.n_learned_kv} learned k, v"
    if c.gate != "none":
        yield "gated"
    if c.head_scale:
        yield "scaled heads"
    yield from _capped(c.softcap)


def _of_feed_forward(c: FeedForwardConfig) -> Iterator[str]:
    yield f"width {c.d_ff}"
    yield ACTIVATIONS[c.activation]
    if c.gated:
        yield "gated"
    if isinstance(c.hidden_norm, NormConfig):
        yield NORMS[c.hidden_norm.kind]


def _capped(cap: float | None) -> Iterator[str]:
    if cap is not None:
        yield f"capped at {cap:g}"
