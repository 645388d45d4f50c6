"""Exercises on positions: sinusoids, rotation, the causal mask."""
# mypy: allow-untyped-defs, allow-untyped-calls

import numpy as np

from ... import masks, positions
from ...config import RotaryPositions
from .exercise import Exercise, Mistakes


def _angles(p, d, *, exponent=-2):
    """Position times 10000^(-2j/d), j = 0, ..., d/2 - 1: shape (n, d / 2)."""
    return p[:, None] * 10000.0 ** (exponent * np.arange(d // 2) / d)


OF_ANGLES: Mistakes = {
    "the exponent lacks the factor 2: it is -2j/d": {"exponent": -1},
    "the exponent has the wrong sign: it is -2j/d": {"exponent": 2},
}


def sinusoids(positions, d_model, *, together=False, swap=False, first=0, **of_angles):
    """Sinusoids; ``together`` puts all sines before all cosines."""
    angles = _angles(positions + first, d_model, **of_angles)
    waves = [np.sin(angles), np.cos(angles)][:: -1 if swap else 1]
    return np.concatenate(waves, 1) if together else np.stack(waves, 2).reshape(len(angles), -1)


SINUSOIDS = Exercise(
    reference=lambda p, d_model: positions.sinusoids(p, d_model, "interleaved"),
    written=sinusoids,
    inputs=lambda rng: (
        (np.array(p), d) for p, d in [([0], 2), ([1], 2), ([0, 1, 2], 4), ([7, 1009, 0], 14)]
    ),
    mistakes={
        **OF_ANGLES,
        "all sines come first, then all cosines: they alternate": {"together": True},
        "sine and cosine are exchanged: the sine is in the even columns": {"swap": True},
        "positions are counted from 1: use them as they are": {"first": 1},
    },
    properties={
        "neighbouring columns have sin^2 + cos^2 = 1": lambda f, p, d: (
            np.square(f(p, d)).reshape(len(p), -1, 2).sum(axis=-1),
            np.ones((len(p), d // 2)),
        )
    },
)


def rotation(x, positions, *, halves=False, sign=1, count=False, **of_angles):
    """Rotation; ``halves`` takes the pairs from the two halves, ``count`` counts rows."""
    n, d = x.shape[-2:]
    angles = sign * _angles(np.arange(n) if count else positions, d, **of_angles)
    a, b = np.split(x, 2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = [a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)]
    return np.concatenate(turned, -1) if halves else np.stack(turned, -1).reshape(x.shape)


def rotation_inputs(rng):
    """One vector, several, batches and heads, and positions out of order."""
    for *shape, p in [(1, 2, [0]), (1, 2, [1]), (3, 4, [0, 1, 2]), (2, 3, 2, 14, [4, 5])]:
        yield rng.standard_normal(shape), np.array(p)
    yield rng.standard_normal((2, 6)).astype("float32"), np.array([0, 1])
    yield rng.standard_normal((3, 10)), np.array([7, 1009, 0])


def _rotation(x, p):
    c = RotaryPositions(d_rotary=x.shape[-1], pairing="interleaved", base=10000.0)
    by = positions.rotation(c, p, x.dtype)
    return positions.rotate(x.reshape(1, -1, *x.shape[-2:]), by).reshape(x.shape)


def _products(x):
    return x @ x.mT


ROTATION = Exercise(
    reference=_rotation,
    written=rotation,
    inputs=rotation_inputs,
    mistakes={
        **OF_ANGLES,
        "the pairs are from the two halves: they are the columns 2j, 2j+1": {"halves": True},
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


def causal_mask(n_queries, n_keys, *, invert=False, last=True, more=0):
    """Causal mask; ``more`` counts later positions that are allowed too."""
    allowed = np.tri(n_queries, n_keys, more + (n_keys - n_queries if last else 0), dtype=bool)
    return ~allowed if invert else allowed


CAUSAL_MASK = Exercise(
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
