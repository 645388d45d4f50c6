"""erf, erfc and the normal distribution function against mpmath, to the last place."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given
from mpmath import mp, mpf

from refseq2seq.erf import (
    _LN2,
    _LONG,
    _SERIES,
    _SHORT,
    _SQRT_HALF,
    erf,
    erfc,
    gelu_erf,
    normal_cdf,
)

DTYPES = [np.float16, np.float32, np.float64]
FUNCTIONS = [erf, erfc, normal_cdf, gelu_erf]
EXACT = {
    erf: mpmath.erf,
    erfc: mpmath.erfc,
    normal_cdf: lambda x: mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    gelu_erf: lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
}
# Where erfc(x) and, at sqrt(2) times it, normal_cdf(-x) fall below the least subnormal number.
UNDERFLOW = {np.float16: 3.9, np.float32: 10.1, np.float64: 27.3}

dtypes = pytest.mark.parametrize("dtype", DTYPES)
functions = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture(autouse=True)
def _precision():
    with mp.workprec(250):
        yield


def sample(dtype):
    """Both signs, from subnormal to overflow: a grid, random points, tails, changes of branch."""
    rng = np.random.default_rng(7)
    end = 1.5 * UNDERFLOW[dtype]
    least, most = np.log10(float(np.finfo(dtype).smallest_subnormal)), np.log10(end)
    positive = np.concatenate(
        [
            np.linspace(0, 3, 151),
            rng.uniform(0, 1.5, 200),
            rng.uniform(0, end, 300),
            10 ** rng.uniform(least, most, 100),
            10 ** rng.uniform(-3, 0, 100),
            *(edge + np.linspace(-1e-3, 1e-3, 11) for edge in (0.2, 0.2 * math.sqrt(2), 0.4769)),
            *(np.linspace(0.96, 1.01, 40) * UNDERFLOW[dtype] * c for c in (1, math.sqrt(2))),
            [0.015421724955284342, 0.015251005055000509, 0.03037235289914317],  # hard for GELU
            [40.0, 41.0, float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)],
        ]
    ).astype(dtype)
    return np.concatenate([-positive, positive])


def exact_values(function, x):
    """mpmath's values; far out, where mpmath would take long to say so, erfc is 0 or 2."""
    if function is gelu_erf:
        return [mpf(float(a)) if a > 60 else EXACT[function](mpf(max(float(a), -60.0))) for a in x]
    return [EXACT[function](mpf(min(max(float(a), -60.0), 60.0))) for a in x]


def errors(actual, exact):
    """|actual - exact| in units in the last place of exact, subnormal places included."""
    info = np.finfo(actual.dtype)
    places = [max(math.frexp(float(e))[1] - 1, info.minexp) - info.nmant for e in exact]
    return [
        abs(mpf(float(a)) - e) / mpf(2) ** place
        for a, e, place in zip(actual, exact, places, strict=True)
    ]


@functions
@dtypes
def test_errors_are_at_most_two_units_in_the_last_place(function, dtype):
    x = sample(dtype)
    assert all(e <= 2 for e in errors(function(x), exact_values(function, x)))


@functions
@pytest.mark.parametrize("dtype", [">f8", np.longdouble])
def test_other_wide_dtypes_are_as_accurate_as_float64(function, dtype):
    x = sample(np.float64)
    found = function(x.astype(dtype)).astype(np.float64)
    np.testing.assert_allclose(found, function(x), rtol=1e-14, atol=1e-300, equal_nan=False)


def test_known_values():
    one = np.array(1.0)
    assert gelu_erf(one) == 0.8413447460685429
    assert erf(one) == 0.8427007929497149
    assert erfc(one) == 0.15729920705028513
    assert erfc(np.array(27.0)) == 5.237048923789256e-319  # subnormal


@dtypes
def test_limits(dtype):
    x = np.array([-math.inf, -0.0, 0.0, math.inf], dtype)
    assert erf(x).tolist() == [-1, 0, 0, 1]
    assert np.signbit(erf(x)).tolist() == [True, True, False, False]
    assert erfc(x).tolist() == [2, 1, 1, 0]
    assert normal_cdf(x).tolist() == [0, 0.5, 0.5, 1]
    assert gelu_erf(x).tolist() == [0, 0, 0, math.inf]


@functions
@dtypes
def test_nan_gives_nan_in_its_place_only(function, dtype):
    found = np.isnan(function(np.array([math.nan, 0, -math.nan], dtype)))
    assert found.tolist() == [True, False, True]


@functions
@pytest.mark.parametrize("dtype", [bool, np.int64, np.complex128])
def test_other_dtypes_raise(function, dtype):
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        function(np.ones(3, dtype))


def arrays(**options):
    """Arrays of every dtype, of any shape, 0-d and empty ones too."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            dtype, shapes, elements=st.floats(width=8 * np.dtype(dtype).itemsize, **options)
        )
    )


@functions
@given(x=arrays())
def test_shape_dtype_and_input_do_not_change(function, x):
    before = x.tobytes()
    y = function(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert x.tobytes() == before


@functions
@given(x=arrays(allow_nan=False))
def test_value_depends_on_the_element_alone(function, x):
    one_by_one = [function(a) for a in x.reshape(-1)[:, None]]
    assert function(x).reshape(-1).tolist() == [float(a[0]) for a in one_by_one]
    assert np.array_equal(function(x.T), function(x).T)  # any strides

    class Subclass(np.ndarray):
        pass

    assert np.array_equal(function(x.view(Subclass)), function(x))


@given(x=arrays(allow_nan=False))
def test_symmetries(x):
    unit = np.finfo(x.dtype).eps
    assert np.array_equal(erf(-x), -erf(x))
    assert np.all(np.abs(erfc(-x) - (2 - erfc(x))) <= 2 * unit)
    assert np.all(np.abs(normal_cdf(-x) - (1 - normal_cdf(x))) <= unit)
    assert np.all(np.abs(erf(x) - (1 - erfc(x))) <= 2 * unit)


@given(x=arrays(allow_nan=False))
def test_range(x):
    for y, low, high in ((erf(x), -1, 1), (erfc(x), 0, 2), (normal_cdf(x), 0, 1)):
        assert np.all((low <= y) & (y <= high))


@dtypes
@pytest.mark.parametrize(("function", "sign"), [(erf, 1), (erfc, -1), (normal_cdf, 1)])
def test_monotone_up_to_rounding(function, sign, dtype):
    y = sign * function(np.sort(sample(dtype)))
    assert np.all(y[1:] - y[:-1] >= -2 * np.spacing(np.abs(y[1:])))


def polynomial(coefficients, v):
    return mpmath.fsum(c * v**i for i, c in enumerate(coefficients))


def erfcx(t):
    return mpmath.exp(t * t) * mpmath.erfc(t)


def interpolated(function, first, last, degree):
    """Coefficients, lowest first, of the polynomial that meets function at Chebyshev points."""
    angles = [mp.pi * (2 * j + 1) / (2 * degree + 2) for j in range(degree + 1)]
    points = [(first + last) / 2 + (last - first) / 2 * mpmath.cos(a) for a in angles]
    powers = mpmath.matrix([[p**i for i in range(degree + 1)] for p in points])
    return [float(c) for c in mp.lu_solve(powers, mpmath.matrix([function(p) for p in points]))]


def test_short_coefficients_are_interpolated():
    def ratio(y):  # erfcx(t) / y as a function of y = 3 / (t + 3)
        return erfcx(3 / y - 3) / y

    least = 3 / (mpf("9.3") + 3)
    assert list(_SHORT) == [0.0, *interpolated(ratio, least, mpf(1), 9)]
    for y in mpmath.linspace(least, 1, 300):
        assert abs(polynomial(_SHORT, y) / (y * ratio(y)) - 1) < 3.5e-9


def test_long_coefficients_are_interpolated():
    def product(v):  # (t + 3/4) erfcx(t) as a function of v = (t - 3) / (t + 3)
        t = 3 * (1 + v) / (1 - v)
        return (t + mpf(3) / 4) * erfcx(t)

    centre, most = mpf(11) / 16, (mpf("27.3") - 3) / (mpf("27.3") + 3)
    derived = interpolated(lambda v: product(v) - centre, mpf(-1), most, 24)
    assert list(_LONG) == derived
    for v in mpmath.linspace(-1, most, 300):
        assert abs((centre + polynomial(_LONG, v)) / product(v) - 1) < 2e-17


def test_constants_and_series_are_accurate():
    root, ln2 = _SQRT_HALF, _LN2
    assert abs(mpf(root[0]) + mpf(root[1]) - mpmath.sqrt(mpf(1) / 2)) < mpf(2) ** -76
    assert abs(mpf(ln2[0]) + mpf(ln2[1]) - mpmath.ln(2)) < mpf(2) ** -85
    assert root[0] == np.float32(root[0])
    assert (ln2[0] * 2**32).is_integer()
    t2 = mpf(0.48) ** 2
    series = polynomial(_SERIES, t2)
    assert abs(series / (mpmath.erf(mpf(0.48)) / mpf(0.48)) - 1) < 1e-16
