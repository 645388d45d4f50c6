"""`refseq2seq.testing.rounding`, compared with NumPy's casts, exact fractions and chance."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.params import map_arrays, named_arrays
from refseq2seq.testing.rounding import (
    FORMATS,
    check_rounded,
    format_of,
    round_to,
    rounded,
    step_at,
    stochastically_rounded,
)

SMALL = ("float16", "bfloat16", "tf32", "float32")
numbers = st.floats(allow_nan=False, width=64) | st.floats(-70000, 70000) | st.floats(-1e-4, 1e-4)


def neighbours(x, dtype):
    """The values of the format just below and above x, by exact arithmetic."""
    f = FORMATS[dtype]
    exact = Fraction(x)
    exponent = f.min_exponent
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent + 1 - f.digits)
    n = exact / step
    below = n.numerator // n.denominator
    return below * step, -((-n.numerator) // n.denominator) * step


@given(x=numbers)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_round_to_is_a_cast(dtype, x):
    expected = np.float64(np.dtype(dtype).type(x))
    assert round_to(np.array([x]), dtype).tobytes() == expected.tobytes()


@given(x=st.floats(-1e38, 1e38), dtype=st.sampled_from(SMALL))
def test_round_to_takes_the_nearest_or_the_even_neighbour(x, dtype):
    below, above = neighbours(x, dtype)
    if max(abs(below), abs(above)) > Fraction(FORMATS[dtype].max):
        return
    found = Fraction(float(round_to(np.array(x), dtype)))
    assert found in (below, above)
    assert abs(found - Fraction(x)) == min(abs(below - Fraction(x)), abs(above - Fraction(x)))
    if below != above and Fraction(x) - below == above - Fraction(x):
        assert found / (above - below) % 2 == 0


@pytest.mark.parametrize("dtype", SMALL)
def test_ties_go_to_the_even_neighbour(dtype):
    eps = FORMATS[dtype].eps
    ties = np.array([1 + eps / 2, 1 + 3 * eps / 2, -1 - eps / 2])
    assert round_to(ties, dtype).tolist() == [1, 1 + 2 * eps, -1]


@given(x=st.floats(-60000, 60000), dtype=st.sampled_from(SMALL), seed=st.integers(0, 99))
def test_stochastic_rounding_gives_one_of_the_neighbours(x, dtype, seed):
    below, above = (float(y) for y in neighbours(x, dtype))
    found = stochastically_rounded(np.full(20, x), dtype, np.random.default_rng(seed))
    assert set(found.tolist()) <= {below, above}
    if below == above:
        assert (found == x).all()


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("magnitude", [1.0, -3.0, 2.0**-20, "below the least normal number"])
def test_stochastic_rounding_has_the_right_mean(dtype, magnitude):
    if isinstance(magnitude, str):
        magnitude = 2.0 ** (FORMATS[dtype].min_exponent - 2)
    below, above = (float(y) for y in neighbours(magnitude * (1 + 1e-12), dtype))
    n, fraction = 40_000, 0.3
    x = below + fraction * (above - below)
    found = stochastically_rounded(np.full(n, x), dtype, np.random.default_rng(3))
    assert set(found.tolist()) == {below, above}
    chance = (fraction * (1 - fraction) / n) ** 0.5
    assert abs((found == above).mean() - fraction) < 4 * chance


@pytest.mark.parametrize("dtype", SMALL)
def test_nan_and_infinities_stay_and_overflow_is_infinite(dtype):
    top = FORMATS[dtype].max
    x = np.array([np.inf, -np.inf, np.nan, top, -top, 2.01 * top, -2.01 * top])
    for found in (round_to(x, dtype), stochastically_rounded(x, dtype, np.random.default_rng(0))):
        np.testing.assert_array_equal(
            found, [np.inf, -np.inf, np.nan, top, -top, np.inf, -np.inf], strict=True
        )


def test_the_formats_are_those_that_numpy_knows():
    for dtype in ("float16", "float32", "float64"):
        info = np.finfo(dtype)
        assert FORMATS[dtype].eps == info.eps
        assert FORMATS[dtype].max == info.max
        assert 2.0 ** FORMATS[dtype].min_exponent == info.tiny
    bfloat16 = FORMATS["bfloat16"]  # float32 cut off after 16 bits
    assert bfloat16.eps == 2**-7
    assert bfloat16.max == np.uint32(0x7F7F0000).view(np.float32)
    with pytest.raises(ValueError, match="float8"):
        format_of("float8")


def test_a_step_is_the_distance_to_the_next_number():
    for dtype in ("float16", "float32"):
        x = np.array([1.0, 1.5, 1000.0, 6e-8, 1e-5, 0.0], dtype)
        assert step_at(x, dtype).tolist() == np.spacing(x).tolist()


def test_rounded_rounds_every_array_and_check_rounded_names_the_first():
    model = rs.load("g2p")
    with pytest.raises(ValueError, match="bfloat16"):
        check_rounded(model, "bfloat16")
    near = rounded(model, "bfloat16")
    assert near.dtype == "float64"
    pairs = zip(named_arrays(model.params), named_arrays(near.params), strict=True)
    for (name, x), (_, y) in pairs:
        assert np.abs(x - y).max() <= 2.0**-8 * np.abs(x).max(), name
    for dtype in ("bfloat16", "tf32", "float32", "float64"):
        check_rounded(near, dtype)
    name, first = next(iter(named_arrays(near.params)))
    broken = map_arrays(near.config, near.params, lambda x: np.where(x == first[0, 0], np.nan, x))
    with pytest.raises(ValueError, match=f"{name} holds nan"):
        check_rounded(rs.Model(config=near.config, params=broken), "float64")
