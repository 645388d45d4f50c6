"""The parts of a model: its sublayers, what the config says of each, and their quantities."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import (
    AttentionConfig,
    BucketedPositions,
    FrameInput,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from ..watching.notebook import counted
from .facts import Fact

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Part:
    """A sublayer, or what stands before or after the layers: a box of the picture.

    ``quantities`` are computed inside, and ``after`` is the residual stream behind a sublayer.
    ``norms`` are the kinds of norm before the sublayer, on its branch and after the addition.
    """

    name: str
    title: str
    details: tuple[str, ...]
    quantities: tuple[Fact, ...]
    after: Fact | None
    norms: tuple[str | None, ...]


def part_of(name: str) -> str:
    """The part to which a quantity belongs.

    Examples
    --------
    >>> part_of("decoder.layers.*.after_cross_attention"), part_of("encoder.embed")
    ('decoder.cross_attention', 'encoder.embedding')
    """
    stack, _, rest = name.partition(".")
    if stack not in ("encoder", "decoder"):
        return "unembedding" if name == "logits" else "choice"
    found = re.search("self_attention|cross_attention|feed_forward|frame|final", rest)
    sublayer = found[0] if found else "embedding"
    return f"{stack}.{'frames' if sublayer == 'frame' else sublayer}"


def parts(c: ModelConfig, facts: dict[str, Fact]) -> list[Part]:
    """The parts in the order in which data pass them."""
    found = []
    for name, title, details in _described(c):
        own = [fact for fact in facts.values() if part_of(fact.name) == name]
        after = next((fact for fact in own if ".after_" in fact.name), None)
        stack = c.encoder if name.startswith("encoder") else c.decoder
        norms = (
            _kind(stack.norm) if after and place in stack.norm_positions else None
            for place in ("before", "branch", "after")
        )
        inside = tuple(fact for fact in own if fact is not after)
        found.append(Part(name, title, tuple(details), inside, after, tuple(norms)))
    return found


def _described(c: ModelConfig) -> Iterator[tuple[str, str, Iterator[str]]]:
    """The name, the title and the details of each part."""
    for stack, of in (("encoder", c.encoder), ("decoder", c.decoder)):
        if isinstance(of.input, FrameInput):
            yield f"{stack}.frames", "Frames", _frames(of.input)
        yield f"{stack}.embedding", "Embedding", _embedding(of)
        if of.n_layers:
            yield f"{stack}.self_attention", "Self-attention", _self_attention(of)
            if of.cross_attention is not None:
                yield f"{stack}.cross_attention", "Cross-attention", _attention(of.cross_attention)
            yield f"{stack}.feed_forward", "Feed-forward", _feed_forward(of)
        title = "Final norm" if of.final_norm else "Output"
        yield f"{stack}.final", title, iter([_kind(of.norm)] if of.final_norm else [])
    yield "unembedding", "Unembedding", _unembedding(c)
    yield "choice", "Choice of a token", iter([])


def _frames(c: FrameInput) -> Iterator[str]:
    yield f"width {c.n_features}"
    for layer in c.layers:
        stride = f", stride {layer.stride}" if layer.stride > 1 else ""
        yield f"window {layer.window}{stride}"
    if c.n_class_tokens:
        yield counted(c.n_class_tokens, "class token")


def _embedding(c: StackConfig) -> Iterator[str]:
    yield f"{c.vocab_size:,} {TIMES} {c.d_model}" if c.vocab_size else f"width {c.d_model}"
    if isinstance(c.positions, LearnedPositions):
        yield f"{c.positions.n_positions:,} positions"
    elif c.positions is not None:
        yield "sinusoids"
    if c.embedding_norm != "none":
        yield _kind(c.norm)
    if c.n_register_tokens:
        yield counted(c.n_register_tokens, "register")


def _self_attention(c: StackConfig) -> Iterator[str]:
    yield from _attention(c.self_attention)
    if c.cross_attention is not None:
        yield "causal"
    if c.windows:
        yield "windows"
    if isinstance(c.relative_positions, BucketedPositions):
        yield f"bias, {c.relative_positions.n_buckets} buckets"
    elif c.relative_positions is not None:
        yield c.relative_positions.TYPE


def _attention(c: AttentionConfig) -> Iterator[str]:
    yield f"{counted(c.n_heads, 'head')} of {c.d_k}"
    if c.n_kv_heads < c.n_heads:
        yield f"{c.n_kv_heads} of k and v"
    if c.qk_norm is not None:
        yield f"{_kind(c.qk_norm)} of q, k"
    if c.n_learned_kv:
        yield f"{c.n_learned_kv} learned k, v"
    if c.head_scale:
        yield "scaled heads"
    if c.softcap is not None:
        yield f"cap {c.softcap:g}"


def _feed_forward(c: StackConfig) -> Iterator[str]:
    yield f"width {c.feed_forward.d_ff:,}"
    yield c.feed_forward.activation
    if c.feed_forward.hidden_norm is not None:
        yield _kind(c.feed_forward.hidden_norm)


def _unembedding(c: ModelConfig) -> Iterator[str]:
    yield f"{c.decoder.d_model} {TIMES} {c.decoder.vocab_size:,}"
    if c.tied_logits:
        yield "tied"
    if c.logits_softcap is not None:
        yield f"cap {c.logits_softcap:g}"


def _kind(c: NormConfig) -> str:
    return c.kind.replace("_", " ")
