"""Exercises on attention: one head, several heads, the source, and the cache."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import attention as right
from .arrays import OF_THE_MASK, softmax
from .exercise import Arguments, Exercise


def attention(
    q: Any, k: Any, v: Any, mask: Any = None, *, power: float = -0.5, **of_softmax: Any
) -> Any:
    """Attention with mistakes."""
    return softmax(q @ k.mT * float(q.shape[-1]) ** power, mask, **of_softmax) @ v


def _attention(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    return right.attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]), mask=mask)


def attention_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """One query, several, batches, masks; then large scores, and a query without a key."""
    draw = rng.standard_normal

    def qkv(batch: tuple[int, ...], n_q: int, n_k: int, d_k: int, d_v: int) -> Arguments:
        return draw((*batch, n_q, d_k)), draw((*batch, n_k, d_k)), draw((*batch, n_k, d_v))

    yield qkv((), 1, 1, 1, 1)
    yield qkv((), 1, 2, 2, 1)
    yield qkv((), 2, 2, 3, 2)
    yield qkv((), 2, 3, 5, 2)
    yield *qkv((), 2, 3, 2, 2), np.array([[True, False, True], [False, True, True]])
    yield qkv((2, 3), 5, 7, 3, 2)
    yield *qkv((2,), 3, 3, 5, 2), np.tri(3, dtype=bool)
    yield tuple(x.astype("float32") for x in qkv((2,), 3, 5, 2, 3))
    yield tuple(s * x for s, x in zip((300, 100, 1), qkv((), 2, 3, 2, 2), strict=True))
    yield *qkv((), 2, 3, 2, 2), np.array([[True, False, True], [False, False, False]])


def _permuted(f: Any, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    more = () if mask is None else (mask[..., ::-1],)
    return f(q, k[..., ::-1, :].copy(), v[..., ::-1, :].copy(), *more), (
        f(q, k, v) if mask is None else f(q, k, v, mask)
    )


OF_ATTENTION: dict[str, dict[str, Any]] = {
    "the scores are not divided by sqrt(d_k)": {"power": 0.0},
    "the scores are divided by d_k: divide by its square root": {"power": -1.0},
    "the scores are multiplied by sqrt(d_k): divide": {"power": 0.5},
    "the exponentials are not divided by their sum": {"divide": False},
    "the softmax is over the queries: it must be over the keys": {"axis": -2},
    "the softmax is over axis 0: it must be over the last axis": {"axis": 0},
    "the softmax is over the whole array: it must be over the last axis": {"axis": None},
}
ATTENTION = Exercise(
    signature="attention(q, k, v, mask=None)",
    reference=_attention,
    written=attention,
    inputs=attention_inputs,
    mistakes={**OF_ATTENTION, **OF_THE_MASK},
    properties={
        "the order of the keys makes no difference": _permuted,
        "values that are all 1 give 1, or 0 for a query without a key": lambda f, q, k, v, *mask: (
            f(q, k, np.ones_like(v), *mask),
            _attention(q, k, np.ones_like(v), *mask),
        ),
    },
)


def split_heads(x: Any, n_heads: int, *, how: str = "heads first") -> Any:
    """The heads of each position, with mistakes."""
    batch, n, width = x.shape
    d = width // n_heads
    return {
        "heads first": x.reshape(batch, n, n_heads, d).transpose(0, 2, 1, 3),
        "not moved": x.reshape(batch, n, n_heads, d),
        "reshaped": x.reshape(batch, n_heads, n, d),
        "strided": x.reshape(batch, n, d, n_heads).transpose(0, 3, 1, 2),
    }[how]


def split_heads_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """Numbers that say where they come from."""
    for batch, n, heads, d in [(1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 2, 2), (2, 3, 7, 5)]:
        yield np.arange(float(batch * n * heads * d)).reshape(batch, n, heads * d), heads


SPLIT_HEADS = Exercise(
    signature="split_heads(x, n_heads)",
    reference=right.split_heads,
    written=split_heads,
    inputs=split_heads_inputs,
    mistakes={
        "the axis of the heads is not moved before that of the positions": {"how": "not moved"},
        "the reshape mixes positions: split the last axis first, then move it": {"how": "reshaped"},
        "a head takes every n_heads-th column: it takes d neighbouring ones": {"how": "strided"},
    },
    properties={
        "the heads, side by side again, are x": lambda f, x, n_heads: (
            np.concatenate([f(x, n_heads)[:, h] for h in range(n_heads)], axis=-1),
            x,
        )
    },
)

EXERCISES = {"attention": ATTENTION, "split_heads": SPLIT_HEADS}
