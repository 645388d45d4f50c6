"""Exercises on positions: sinusoids, rotation, the causal mask."""
# mypy: allow-untyped-defs, allow-untyped-calls

import numpy as np

from ... import masks, positions
from ...config import RotaryPositions
from .exercise import Exercise, Mistakes


def _angles(p, d, *, exponent=-2, count=False):
    """Position times 10000^(-2j/d), j = 0, ..., d/2 - 1: shape (n, d / 2)."""
    p = np.arange(len(p)) if count else p
    return p[:, None] * 10000.0 ** (exponent * np.arange(d // 2) / d)


OF_ANGLES: Mistakes = {
    "the exponent lacks the factor 2: it is -2j/d": {"exponent": -1},
    "the exponent has the factor 2 twice: it is -2j/d": {"exponent": -4},
    "the exponent has the wrong sign: it is -2j/d": {"exponent": 2},
    "the positions are not used: rows are counted instead": {"count": True},
}


def sinusoids(positions, d_model, *, together=False, swap=False, first=0, each=False, **of_angles):
    """Sinusoids; ``together`` puts all sines before all cosines."""
    if each:  # of each column its own angle
        angles = _angles(positions, 2 * d_model, exponent=each)
        return np.where(np.arange(d_model) % 2, np.cos(angles), np.sin(angles))
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
        "the exponent is -i/d, i the column: columns 2j and 2j+1 have -2j/d": {"each": -2},
        "the exponent is -2i/d, i the column: columns 2j and 2j+1 have -2j/d": {"each": -4},
    },
    properties={
        "neighbouring columns have sin^2 + cos^2 = 1": lambda f, p, d: (
            np.square(f(p, d)).reshape(len(p), -1, 2).sum(axis=-1),
            np.ones((len(p), d // 2)),
        )
    },
)


def rotation(x, positions, *, halves=False, sign=1, mixed=False, **of_angles):
    """Rotation; ``halves`` takes the pairs from the two halves."""
    angles = sign * _angles(positions, x.shape[-1], **of_angles)
    a, b = np.split(x, 2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = [a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)]
    return np.concatenate(turned, -1) if halves or mixed else np.stack(turned, -1).reshape(x.shape)


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
        "the results are put side by side: they go back to columns 2j and 2j+1": {"mixed": True},
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


def causal_mask(
    q_positions, k_positions, *, upper=None, invert=False, more=0, count=None, rows=True,
    turn=False,
):  # fmt: skip
    """Causal mask; ``more`` counts later positions that are allowed too."""
    q, k = q_positions, k_positions
    if count:  # the first or the last rows and columns of a mask of consecutive positions
        q, k = np.arange(len(q)) + (len(k) - len(q) if count == "last" else 0), np.arange(len(k))
    distance = k - (q[:, None] if rows else q)
    allowed = distance >= 0 if upper else distance <= more
    allowed = np.triu(np.ones(distance.shape, bool)) if upper == "triu" else allowed
    allowed = ~allowed if invert else allowed
    return allowed.T if turn else allowed


def causal_mask_inputs(rng):
    """All positions, the last ones, and others."""
    for n, m in [(1, 1), (2, 2), (1, 3), (2, 5), (5, 5)]:
        yield np.arange(m - n, m), np.arange(m)
    yield np.array([5, 3]), np.array([2, 3, 5, 7, 4])


CAUSAL_MASK = Exercise(
    reference=masks.causal_mask,
    written=causal_mask,
    inputs=causal_mask_inputs,
    mistakes={
        "the mask is inverted: True = may attend": {"invert": True},
        "this is the upper triangle (np.triu): no key may be after the query": {"upper": "triu"},
        "the comparison is the wrong way round: a key must not be after the query": {
            "upper": "all"
        },
        "the positions are not used: this is the mask of 0, 1, 2, ...": {"count": "first"},
        "the positions are not used: this is the mask of the last in a row": {"count": "last"},
        "a position may not attend to itself: it must": {"more": -1},
        "a position may attend to the next one": {"more": 1},
        "each query needs a row of its own: q_positions[:, None]": {"rows": False},
        "rows and columns are exchanged: the rows are the queries": {"turn": True},
    },
    properties={
        "other keys make no difference to one key": lambda f, q, k: (f(q, k[:1]), f(q, k)[:, :1]),
        "only distances count": lambda f, q, k: (f(q + 3, k + 3), f(q, k)),
    },
)
