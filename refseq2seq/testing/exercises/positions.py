"""Exercises on positions: sinusoids, rotation, the causal mask."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import masks, positions
from ...config import RotaryPositions
from .exercise import Arguments, Exercise


def _frequencies(d: int, doubled: bool = True, inverse: bool = False) -> Any:
    """10000^(-2j/d), j = 0, ..., d/2 - 1."""
    return 10000.0 ** ((1 if inverse else -1) * (2 if doubled else 1) * np.arange(d // 2) / d)


def sinusoids(
    positions: Any,
    d_model: int,
    *,
    layout: str = "interleaved",
    swap: bool = False,
    first: int = 0,
    **frequencies: bool,
) -> Any:
    """Sinusoids with mistakes."""
    angles = (np.asarray(positions) + first)[:, None] * _frequencies(d_model, **frequencies)
    waves = [np.cos(angles), np.sin(angles)] if swap else [np.sin(angles), np.cos(angles)]
    if layout == "concatenated":
        return np.concatenate(waves, axis=-1)
    return np.stack(waves, axis=-1).reshape(len(angles), -1)


def sinusoids_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """One position, several, and large ones out of order."""
    yield np.array([0]), 2
    yield np.array([1]), 2
    yield np.arange(3), 4
    yield np.arange(5), 14
    yield np.array([7, 1009, 0]), 10


OF_FREQUENCIES: dict[str, dict[str, Any]] = {
    "the exponent lacks the factor 2: it is -2j/d": {"doubled": False},
    "the exponent has the wrong sign: the frequencies fall": {"inverse": True},
}
SINUSOIDS = Exercise(
    signature="sinusoids(positions, d_model)",
    reference=lambda p, d_model: positions.sinusoids(p, d_model, "interleaved"),
    written=sinusoids,
    inputs=sinusoids_inputs,
    mistakes={
        **OF_FREQUENCIES,
        "all sines come first, then all cosines: they alternate": {"layout": "concatenated"},
        "sine and cosine are exchanged: the sine is in the even columns": {"swap": True},
        "positions are counted from 1: use them as they are": {"first": 1},
    },
    properties={
        "each pair of columns has sin^2 + cos^2 = 1": lambda f, p, d: (
            np.square(f(p, d)).reshape(len(p), -1, 2).sum(axis=-1),
            np.ones((len(p), d // 2)),
        )
    },
)


def rotation(
    x: Any,
    positions: Any,
    *,
    pairs: str = "neighbours",
    sign: int = 1,
    count: bool = False,
    **frequencies: bool,
) -> Any:
    """Rotation with mistakes."""
    n, d = x.shape[-2:]
    angles = (np.arange(n) if count else np.asarray(positions))[:, None] * _frequencies(
        d, **frequencies
    )
    neighbours = pairs == "neighbours"
    a, b = (x[..., 0::2], x[..., 1::2]) if neighbours else (x[..., : d // 2], x[..., d // 2 :])
    cos, sin = np.cos(angles), sign * np.sin(angles)
    turned = [a * cos - b * sin, a * sin + b * cos]
    both = np.stack(turned, axis=-1) if neighbours else np.concatenate(turned, axis=-1)
    return both.reshape(x.shape)


def rotation_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """One vector, several, batches and heads, and positions out of order."""
    yield rng.standard_normal((1, 2)), np.array([0])
    yield rng.standard_normal((1, 2)), np.array([1])
    yield rng.standard_normal((3, 4)), np.arange(3)
    yield rng.standard_normal((2, 3, 5, 14)), np.arange(5)
    yield rng.standard_normal((3, 10)), np.array([7, 1009, 0])


def _rotated(x: Any, p: Any) -> Any:
    c = RotaryPositions(d_rotary=x.shape[-1], pairing="interleaved", base=10000.0)
    turned = positions.rotate(x.reshape(1, -1, *x.shape[-2:]), positions.rotation(c, p, "float64"))
    return turned.reshape(x.shape)


ROTATION = Exercise(
    signature="rotation(x, positions)",
    reference=_rotated,
    written=rotation,
    inputs=rotation_inputs,
    mistakes={
        **OF_FREQUENCIES,
        "the pairs are from the two halves: they are neighbours, 2j and 2j+1": {"pairs": "halves"},
        "it rotates backwards: (a cos - b sin, a sin + b cos)": {"sign": -1},
        "the positions are not used: rows are counted instead": {"count": True},
    },
    properties={
        "a rotation keeps the length": lambda f, x, p: (
            np.linalg.norm(f(x, p), axis=-1),
            np.linalg.norm(x, axis=-1),
        ),
        "products of rotated vectors depend only on the distance": lambda f, x, p: (
            _products(f(x, p)),
            _products(f(x, p + 3)),
        ),
    },
)


def _products(x: Any) -> Any:
    return np.asarray(x) @ np.asarray(x).mT


def causal_mask(
    n_queries: int, n_keys: int, *, invert: bool = False, last: bool = True, more: int = 0
) -> Any:
    """Causal mask with mistakes."""
    allowed = np.tri(n_queries, n_keys, more + (n_keys - n_queries if last else 0), dtype=bool)
    return ~allowed if invert else allowed


CAUSAL_MASK = Exercise(
    signature="causal_mask(n_queries, n_keys)",
    reference=lambda n, m: masks.causal_mask(np.arange(m - n, m), np.arange(m)),
    written=causal_mask,
    inputs=lambda rng: iter([(1, 1), (1, 3), (2, 2), (2, 5), (5, 5), (3, 7)]),
    mistakes={
        "the mask is inverted: True = may attend": {"invert": True},
        "the queries are taken as the first positions: they are the last": {"last": False},
        "a position may not attend to itself: it must": {"more": -1},
        "a position may attend to the next one": {"more": 1},
    },
    properties={
        "the last query may attend to every key": lambda f, n, m: (f(n, m)[-1], np.ones(m, bool)),
        "the mask of fewer queries has the last rows": lambda f, n, m: (f(1, m), f(n, m)[-1:]),
    },
)

EXERCISES = {"sinusoids": SINUSOIDS, "rotation": ROTATION, "causal_mask": CAUSAL_MASK}
