"""Positions of every kind, against tables worked by hand and slow literal versions."""

import math

import numpy as np
import pytest
from close import assert_close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refseq2seq.config import (
    AlibiPositions,
    BucketedPositions,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
)
from refseq2seq.positions import (
    alibi_slopes,
    position_embedding,
    rotate,
    rotation,
    score_bias,
    sinusoids,
    t5_bucket,
)

LAYOUTS = ("interleaved", "concatenated", "tensor2tensor")


# sinusoids


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("interleaved", [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]),
        ("concatenated", [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]),
        ("tensor2tensor", [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]),
    ],
)
def test_sinusoids_by_hand(layout, row):
    """At width 4 the second frequency is 10000^(-1/2) = 1/100, or, over h - 1 = 1, 1/10000."""
    assert_close(sinusoids(np.array([0, 3]), 4, layout)[1], row, 1e-15)
    zero = [0, 1, 0, 1] if layout == "interleaved" else [0, 0, 1, 1]
    assert sinusoids(np.array([0, 3]), 4, layout)[0].tolist() == zero


@pytest.mark.parametrize("layout", LAYOUTS)
@given(position=st.integers(0, 1000), d=st.integers(1, 11))
def test_sinusoids_are_sines_and_cosines_of_geometric_frequencies(layout, position, d):
    half = d // 2
    expected = np.zeros(d)
    for j in range(half):
        exponent = j / max(half - 1, 1) if layout == "tensor2tensor" else 2 * j / d
        sine, cosine = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, half + j)
        expected[sine] = math.sin(position / 10000**exponent)
        expected[cosine] = math.cos(position / 10000**exponent)
    actual = sinusoids(np.array([[position]]), d, layout)
    assert actual.dtype == np.float64
    assert d % 2 == 0 or actual[0, 0, -1] == 0
    assert_close(actual, expected[None, None], 1e-12)  # angles up to 1000, rounded at 1e-13


def test_offset_and_scale_of_position_embeddings():
    like = np.zeros((2, 3, 4), dtype="float32")
    table = np.arange(24, dtype="float32").reshape(6, 4)
    learned = LearnedPositions(n_positions=6, offset=2, scale=0.5)
    x = position_embedding(learned, table, np.array([[0, 1, 2], [0, 0, 3]]), like)
    assert x.dtype == np.float32
    assert x.tolist() == (table[[[2, 3, 4], [2, 2, 5]]] / 2).tolist()
    waves = SinusoidalPositions(layout="concatenated", offset=3, scale=0.5)
    x = position_embedding(waves, None, np.array([0, 4]), like)
    assert x.dtype == np.float32
    assert_close(x, sinusoids(np.array([3, 7]), 4, "concatenated") / 2, 2.0**-25)


# rotary


def turn(how, positions, x):
    return rotate(x, rotation(how, positions, x.dtype))


def test_rotation_by_hand():
    """Position 2 turns the first pair by 2 radians and the second by 2 / 9^(1/2)."""
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    c, s, c2, s2 = math.cos(2), math.sin(2), math.cos(2 / 3), math.sin(2 / 3)

    def rotated(pairing):
        how = RotaryPositions(d_rotary=4, base=9.0, pairing=pairing)
        return turn(how, np.array([2]), x)[0, 0, 0]

    interleaved = [c - 2 * s, 2 * c + s, 3 * c2 - 4 * s2, 4 * c2 + 3 * s2, 5]
    assert_close(rotated("interleaved"), interleaved, 1e-15)
    halves = [c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2, 5]
    assert_close(rotated("halves"), halves, 1e-15)


rotaries = st.builds(
    RotaryPositions,
    d_rotary=st.sampled_from((2, 4, 6)),
    base=st.sampled_from((10.0, 10000.0)),
    pairing=st.sampled_from(("interleaved", "halves")),
)


@given(how=rotaries, q_at=st.integers(0, 99), k_at=st.integers(0, 99), shift=st.integers(-99, 99))
def test_rotated_products_depend_on_the_distance_alone(how, q_at, k_at, shift):
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 7))

    def score(q_position, k_position):
        turned_q = turn(how, np.array([q_position]), q)
        return (turned_q * turn(how, np.array([k_position]), k)).sum()

    assert abs(score(q_at + shift, k_at + shift) - score(q_at, k_at)) < 1e-12
    turned = turn(how, np.array([q_at]), q)
    assert abs((turned * turned).sum() - (q * q).sum()) < 1e-13  # a rotation keeps lengths
    np.testing.assert_array_equal(turned[..., how.d_rotary :], q[..., how.d_rotary :])
    np.testing.assert_array_equal(turn(how, np.array([0]), q), q)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_rotate_by_their_own_positions(dtype):
    how = RotaryPositions(d_rotary=4, base=100.0, pairing="halves")
    x = np.linspace(-1, 1, 2 * 3 * 5 * 7, dtype=dtype).reshape(2, 3, 5, 7)
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 1, 1, 2]])
    y = turn(how, positions, x)
    assert y.dtype == dtype
    for row in range(2):
        np.testing.assert_array_equal(y[row], turn(how, positions[row], x[row : row + 1])[0])


# alibi


def test_alibi_by_hand():
    how = AlibiPositions(slopes=(0.5, 0.25))
    bias = score_bias(how, None, np.array([1, 2]), np.array([0, 1, 2]), "float32")
    assert bias.dtype == np.float32
    assert bias.tolist() == [
        [[-0.5, 0, -0.5], [-1, -0.5, 0]],
        [[-0.25, 0, -0.25], [-0.5, -0.25, 0]],
    ]


def test_alibi_slopes_of_the_paper():
    """Section 3: eight heads take 1/2, 1/4, ..., 1/256; other numbers, by the authors' code."""
    assert alibi_slopes(1) == (2**-8,)
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert_close(alibi_slopes(16), [2 ** (-i / 2) for i in range(1, 17)], 1e-16)
    assert [len(alibi_slopes(n)) for n in range(1, 20)] == list(range(1, 20))


# buckets


def slow_bucket(distance, n_buckets, max_distance, bidirectional):
    """The rule of Raffel et al. 2020 and its first code, with a logarithm decided by integers.

    A key r >= n/2 back has bucket n/2 + floor(log(r / (n/2)) / log(max / (n/2)) (n - n/2)), or
    the last: the largest k with (max / (n/2))^k <= (r / (n/2))^(n - n/2), all of it whole.
    """
    n, first = n_buckets, 0
    if bidirectional:
        n //= 2
        first = n if distance > 0 else 0
    r = abs(distance) if bidirectional else max(-distance, 0)
    half = n // 2
    if r < half:
        return first + r
    k = max(
        k
        for k in range(n - half)
        if max_distance**k * half ** (n - half) <= r ** (n - half) * half**k
    )
    return first + half + k


@given(
    n_buckets=st.integers(4, 40),
    max_distance=st.integers(21, 150),
    bidirectional=st.booleans(),
    distance=st.integers(-200, 200),
)
def test_buckets_agree_with_integer_arithmetic(n_buckets, max_distance, bidirectional, distance):
    actual = t5_bucket(np.array([[distance]]), n_buckets, max_distance, bidirectional)
    assert actual.tolist() == [[slow_bucket(distance, n_buckets, max_distance, bidirectional)]]


def test_buckets_of_t5():
    """32 buckets to 128, as T5 has them in its encoder and its decoder; 64 is a border.

    (64 / 8)^(8 * 6 / 6) = (128 / 8)^6: log(8) / log(16) * 8 is 6 exactly, and 5.999 in floats
    that multiply before they divide.
    """
    at = np.array([0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127, 9999])
    both_ways = [0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15]
    assert t5_bucket(-at, 32, 128, True).tolist() == both_ways
    assert t5_bucket(at, 32, 128, True).tolist() == [0] + [16 + b for b in both_ways[1:]]
    back = t5_bucket(-np.array([0, 15, 16, 18, 19, 20, 21, 112, 113, 999]), 32, 128, False)
    assert back.tolist() == [0, 15, 16, 16, 17, 17, 18, 30, 31, 31]
    assert not t5_bucket(at, 32, 128, False).any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_bucketed_bias_by_hand(dtype):
    how = BucketedPositions(
        n_buckets=4, max_distance=9, bidirectional=False, per_layer=False, scale=2.0
    )
    table = np.array([[0, 10], [1, 11], [2, 12], [3, 13]], dtype=dtype)
    bias = score_bias(how, table, np.array([0, 9]), np.array([0, 1, 9]), dtype)
    assert bias.dtype == dtype
    # Query 9 looks back 9, 8 and 0: buckets 3 (from 2 * sqrt(9 / 2) = 4.2 on), 3 and 0.
    assert bias.tolist() == [[[0, 0, 0], [6, 6, 0]], [[20, 20, 20], [26, 26, 20]]]


KINDS = [
    AlibiPositions(slopes=(0.5, 0.25, 0.1)),
    BucketedPositions(n_buckets=6, max_distance=7, bidirectional=True, per_layer=False, scale=0.5),
]


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.TYPE)
@given(
    positions=arrays(np.int64, st.tuples(st.integers(1, 3), st.just(4)), elements=st.integers(0, 9))
)
def test_rows_have_biases_by_their_own_positions(how, positions):
    table = np.arange(18.0).reshape(6, 3)
    bias = score_bias(how, table, positions, positions, "float64")
    assert bias.shape == (len(positions), 3, 4, 4)
    for row, row_bias in zip(positions, bias, strict=True):
        np.testing.assert_array_equal(row_bias, score_bias(how, table, row, row, "float64"))
