"""Positions: vectors added to embeddings, biases added to scores, rotations of queries and keys.

Positions are arrays of shape (n,), or (batch, n) where padding makes rows differ. Those of tokens
are integers counted from 0; register tokens have the positions -n to -1. Angles are computed in
float64 and rounded once.
"""

import math
from bisect import bisect_left
from functools import cache
from typing import Literal, NamedTuple

from .backend import Array, array_namespace
from .config import (
    AlibiPositions,
    BucketedPositions,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    SinusoidLayout,
)


def sinusoids(positions: Array, d_model: int, layout: SinusoidLayout) -> Array:
    r"""Sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    .. math:: \sin(p\,\omega_j),\ \cos(p\,\omega_j), \qquad j = 0, \dots, h - 1,\quad h = d/2

    Three layouts share this name:

    - ``interleaved``: sin, cos, sin, cos, ...; omega_j = 10000^(-j/h). The paper.
    - ``concatenated``: all sines, then all cosines, same omega_j. Marian, Pegasus and
      x-transformers' ``scaled_sinu_pos_emb``.
    - ``tensor2tensor``: as concatenated with omega_j = 10000^(-j/(h-1)). fairseq, M2M100.

    Parameters
    ----------
    positions : array, shape (...,)
        Integers or fractions.
    d_model : int
        Width d; if it is odd, the last column is zero.
    layout : str

    Returns
    -------
    float64 array, shape (..., d_model)

    Examples
    --------
    >>> import numpy as np
    >>> sinusoids(np.array([0, 1]), 2, "interleaved").round(4)
    array([[0.    , 1.    ],
           [0.8415, 0.5403]])
    """
    xp = array_namespace(positions)
    half = d_model // 2
    steps = max(half - 1, 1) if layout == "tensor2tensor" else d_model / 2
    frequencies = xp.exp(xp.arange(half, dtype="float64") * (-math.log(10000.0) / steps))
    angles = positions.astype("float64")[..., None] * frequencies
    waves = [xp.sin(angles), xp.cos(angles)]
    if layout == "interleaved":
        table = xp.stack(waves, axis=-1).reshape(*positions.shape, 2 * half)
    else:
        table = xp.concat(waves, axis=-1)
    if d_model % 2:
        table = xp.concat([table, xp.zeros((*positions.shape, 1), dtype="float64")], axis=-1)
    return table


def position_embedding(
    c: LearnedPositions | SinusoidalPositions, table: Array | None, positions: Array, like: Array
) -> Array:
    """The position vectors (..., d_model) to add to the embeddings ``like``, in their dtype.

    ``table`` is the learned table, shape (n_positions, d_model).
    """
    if isinstance(c, LearnedPositions):
        rows = table[positions + c.offset]  # type: ignore[index]
        return rows.astype(like.dtype, copy=False) * c.scale
    waves = sinusoids(positions + c.offset, like.shape[-1], c.layout)
    return (waves * c.scale).astype(like.dtype)


class Rotation(NamedTuple):
    """The angles by which `rotate` rotates queries and keys, and the elements that form a pair."""

    cos: Array  # ([batch,] 1, n, d_rotary // 2)
    sin: Array  # ([batch,] 1, n, d_rotary // 2)
    pairing: Literal["interleaved", "halves"]


def rotation(c: RotaryPositions, positions: Array, dtype: str) -> Rotation:
    r"""The rotation angles of each position (Su et al. 2021, eq. 15).

    .. math:: \theta_{p,j} = p\,\mathrm{base}^{-2j/d}, \qquad j = 0, \dots, d/2 - 1

    Parameters
    ----------
    c : RotaryPositions
    positions : array, shape (n,) or (batch, n)
        Integers or fractions; the first token has position 0.
    dtype : str or dtype
        The dtype of the result.

    Returns
    -------
    Rotation
    """
    xp = array_namespace(positions)
    steps = xp.arange(c.d_rotary // 2, dtype="float64")
    frequencies = xp.exp(steps * (-2 * math.log(c.base) / c.d_rotary))
    angles = positions[..., None, :, None].astype("float64") * frequencies
    return Rotation(xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype), c.pairing)


def rotate(x: Array, r: Rotation) -> Array:
    r"""Rotate queries or keys by their positions.

    .. math:: (a, b) \mapsto (a \cos\theta - b \sin\theta,\ b \cos\theta + a \sin\theta)

    The elements of a pair (a, b) are neighbours if ``interleaved`` (the paper, x-transformers),
    or from the two halves of the rotary part if ``halves`` (Llama, Hugging Face). Elements after
    the first ``d_rotary`` are unchanged.

    Parameters
    ----------
    x : array, shape (batch, n_heads, n, d_k)
    r : Rotation

    Returns
    -------
    array, shape (batch, n_heads, n, d_k)
    """
    xp, half = array_namespace(x), r.cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if r.pairing == "interleaved":
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., :half], turned[..., half:]
    pair = [a * r.cos - b * r.sin, b * r.cos + a * r.sin]
    if r.pairing == "interleaved":
        turned = xp.stack(pair, axis=-1).reshape(turned.shape)
    else:
        turned = xp.concat(pair, axis=-1)
    return xp.concat([turned, rest], axis=-1)


def score_bias(
    c: AlibiPositions | BucketedPositions,
    table: Array | None,
    q_positions: Array,
    k_positions: Array,
    dtype: str,
) -> Array:
    """The bias to add to the scores of each head, from the positions of query and key.

    Parameters
    ----------
    c : AlibiPositions or BucketedPositions
    table : array, shape (n_buckets, n_heads), or None for ALiBi
    q_positions, k_positions : integer arrays, shapes ([batch,] n_q) and ([batch,] n_k)
    dtype : str or dtype

    Returns
    -------
    array, shape ([batch,] n_heads, n_q, n_k)

    Notes
    -----
    Press et al. (2022) define ALiBi for causal attention; here, as in x-transformers, the
    distance is symmetric: ``-slope |q - k|``. T5's bias (Raffel et al. 2020, section 2.1) is
    a table entry per head and bucket.
    """
    xp = array_namespace(q_positions)
    relative_position = k_positions[..., None, :] - q_positions[..., :, None]
    if isinstance(c, AlibiPositions):
        slopes = xp.asarray(c.slopes, dtype="float64")[:, None, None]
        return (-slopes * xp.abs(relative_position)[..., None, :, :]).astype(dtype)
    buckets = t5_bucket(relative_position, c.n_buckets, c.max_distance, c.bidirectional)
    biases = table[buckets].astype(dtype, copy=False)  # type: ignore[index]
    return xp.moveaxis(biases, -1, -3) * c.scale


def t5_bucket(
    relative_position: Array, n_buckets: int, max_distance: int, bidirectional: bool
) -> Array:
    r"""The bucket of a relative position, key minus query (Raffel et al. 2020, section 2.1).

    Of the n buckets for one direction, the first n/2 contain one distance each; the others
    widen logarithmically up to ``max_distance``; the last contains all larger distances:

    .. math:: \frac{n}{2} + \left\lfloor
        \frac{\log(|r| / \frac n2)}{\log(\mathrm{max} / \frac n2)} \frac n2 \right\rfloor,
        \qquad |r| \ge \tfrac n2

    If ``bidirectional``, the upper half of the buckets is for keys after the query; otherwise
    these keys share bucket 0 with the query's own position.

    Examples
    --------
    >>> import numpy as np
    >>> t5_bucket(np.array([-9, -2, 0, 2, 9]), 8, 16, bidirectional=True)
    array([3, 2, 0, 6, 7])
    """
    xp = array_namespace(relative_position)
    if bidirectional:
        n = n_buckets // 2
        offset = xp.where(relative_position > 0, n, 0)
        distance = xp.abs(relative_position)
    else:
        n, offset = n_buckets, 0
        distance = xp.maximum(-relative_position, 0)
    borders = xp.asarray(_bucket_borders(n, max_distance))
    return offset + xp.searchsorted(borders, distance, side="right")


@cache
def _bucket_borders(n: int, max_distance: int) -> tuple[int, ...]:
    """The smallest distance of each bucket except the first, computed in integers: a rounded
    logarithm may fall short of a border, as at distance 64 with T5's maximum of 128.
    """
    exact = n // 2
    wide = n - exact

    def border(k: int) -> int:  # the smallest r with log(r / exact) / log(max / exact) * wide >= k
        power = max_distance**k * exact**wide
        distances = range(max_distance + 1)
        return bisect_left(distances, power, lo=exact, key=lambda r: r**wide * exact**k)

    widening = [border(k) for k in range(1, wide)]
    return (*range(1, exact + 1), *widening)


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """The slopes of ALiBi (Press et al. 2022, section 3): 2^(-8/n), 2^(-16/n), ... for a
    power of two n; otherwise those of the next lower power, then every other of the next higher.

    Examples
    --------
    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    """

    def of_power(n: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 2 ** int(math.log2(n_heads))
    return tuple(of_power(below) + of_power(2 * below)[0::2][: n_heads - below])
