r"""The error function and the normal distribution function, from array operations.

NumPy has neither, and GELU needs one. All of it rests on a factorisation that keeps every
digit however far out in the tail (Cody 1969, "Rational Chebyshev approximations for the
error function"): for :math:`t \ge 0`

.. math:: \mathrm{erfc}(t) = e^{-t^2}\,\mathrm{erfcx}(t),
    \qquad \mathrm{erfcx}(t) = \frac{a + \sum_i c_i v^i}{t + h}, \quad v = \frac{t - k}{t + k}

erfcx falls off like :math:`1 / (\sqrt\pi\,t)`, so t + h times erfcx hardly varies; v maps
the half-line to [-1, 1), where one polynomial follows that product (Shepherd and Laframboise
1981, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < infinity").

There are two sets of coefficients. GELU in float32 must be fast: float16 and float32 are
computed in float64 from a short polynomial and rounded once. float64 has no wider type to
be computed in, so there the parts that rounding would lose are carried along.
"""

import math

from .backend import Array, array_namespace

# The coefficients c interpolate (t + h) erfcx(t) - a at Chebyshev points in v. They are
# derived anew, with mpmath, in tests/test_special.py.
# fmt: off

# k = h = 3, a = 0, for t up to 9.3, where erfc leaves the normal range of float32.
# Relative error 3e-9: a twentieth of what rounding to float32 loses.
_SHORT = (
    1.0740069071777165, -0.8833944583617944, 0.5902283585827174, -0.31046676821203667,
    0.11952779085286344, -0.02683495876475683, -0.0012171961688386037, 0.003073711270742707,
    -0.0005035615719054327, -0.00033523173995970935,
)
# k = 4, h = 7/8, a = 3/4, for t up to 27.3, where erfc underflows in float64. Relative error
# 1e-17. This h makes (t + h) erfcx(t) flat: it stays within a quarter of a.
_LONG = (
    -0.08212764407782572, -0.16696107670534563, 0.08970970564565917, -0.027548154134144333,
    -0.009658341493561543, 0.023200986634264124, -0.02142803671160831, 0.01376727800713821,
    -0.006576268170124859, 0.0022163124325438027, -0.00038704728636472724, -7.00096478471524e-05,
    6.68523008415356e-05, -1.291332844511866e-05, -4.506719181515947e-06, 2.701619140041016e-06,
    4.016424364885206e-08, -3.766699359308425e-07, 4.709967026981879e-08, 4.9346011427234794e-08,
    -1.0039456359860898e-08, -6.39091736344092e-09, 1.060503592304986e-09, 6.103330969181019e-10,
)
# fmt: on

# erf(t) / t as a power series in t^2. For t < 0.48 the first term left out is below 1e-18.
_SERIES = [
    (-1) ** n * 2 / math.sqrt(math.pi) / (math.factorial(n) * (2 * n + 1)) for n in range(13)
]

# Numbers as coarse + fine: coarse has so few bits that its products below are exact.
_ONE = (1.0, 0.0)
_root = round(math.sqrt(0.5) * 2**24) / 2**24
_SQRT_HALF = (_root, (0.5 - _root**2) / (math.sqrt(0.5) + _root))
_LN2 = (0xB17217F7 / 2**32, 0xD1CF79ABC9E3B398 / 2**96)


def erfc(x: Array) -> Array:
    r"""Complementary error function.

    .. math:: \mathrm{erfc}(x) = \frac{2}{\sqrt\pi} \int_x^\infty e^{-u^2}\,du

    Parameters
    ----------
    x : array of float16, float32 or float64, any shape

    Returns
    -------
    array, shape and dtype of ``x``
        Within 2 units in the last place, in the right tail too. NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> erfc(np.array([-np.inf, 0.0, 1.0, 26.0]))
    array([2.00000000e+000, 1.00000000e+000, 1.57299207e-001, 5.66319241e-296])
    """
    tail = _erfc_of_abs(x, _ONE)
    return array_namespace(x).where(x < 0, 2 - tail, tail)


def normal_cdf(x: Array) -> Array:
    r"""Distribution function of the standard normal distribution.

    .. math:: \Phi(x) = \frac{1}{\sqrt{2\pi}} \int_{-\infty}^x e^{-u^2/2}\,du
        = \tfrac12\,\mathrm{erfc}(-x / \sqrt 2)

    Parameters, accuracy and dtypes as in `erfc`, in the left tail too.

    Notes
    -----
    GELU is :math:`x\,\Phi(x)`. SciPy calls this function ``ndtr``.

    Examples
    --------
    >>> import numpy as np
    >>> normal_cdf(np.array([-10.0, 0.0, 1.0]))
    array([7.61985302e-24, 5.00000000e-01, 8.41344746e-01])
    """
    tail = 0.5 * _erfc_of_abs(x, _SQRT_HALF)
    return array_namespace(x).where(x > 0, 1 - tail, tail)


def erf(x: Array) -> Array:
    r"""Error function.

    .. math:: \mathrm{erf}(x) = \frac{2}{\sqrt\pi} \int_0^x e^{-u^2}\,du = 1 - \mathrm{erfc}(x)

    Parameters, accuracy and dtypes as in `erfc`, near 0 too, where the difference would
    cancel and a power series takes its place.

    Examples
    --------
    >>> import numpy as np
    >>> erf(np.array([-np.inf, 0.0, 1e-20, 1.0]))
    array([-1.00000000e+00,  0.00000000e+00,  1.12837917e-20,  8.42700793e-01])
    """
    xp = array_namespace(x)
    far = xp.copysign(1 - _erfc_of_abs(x, _ONE), x)
    small = xp.abs(x) < 0.4769  # where erf < 1/2 < erfc
    near = xp.where(small, x, 0.0).astype(xp.float64)
    near *= _polynomial(_SERIES, near * near)
    return xp.where(small, near.astype(x.dtype), far)


def _erfc_of_abs(x: Array, scale: tuple[float, float]) -> Array:
    """erfc(scale |x|) in the dtype of x; scale is coarse + fine."""
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"expected an array of floating-point numbers, got {x.dtype}")
    x_abs = xp.minimum(xp.abs(x), 40.0)  # erfc(40 / sqrt(2)) is 0 in float64; inf would give nan
    tail = _accurate_erfc if x.dtype == xp.float64 else _fast_erfc
    return tail(x_abs, scale).astype(x.dtype)


def _fast_erfc(x: Array, scale: tuple[float, float]) -> Array:
    """erfc(scale x) for x >= 0 in float64, good to float32."""
    xp = array_namespace(x)
    t = x.astype(xp.float64)
    t *= sum(scale)
    shifted = t + 3
    tail = _polynomial(_SHORT, (t - 3) / shifted)
    tail /= shifted
    tail *= xp.exp(-t * t)
    return tail


def _accurate_erfc(x: Array, scale: tuple[float, float]) -> Array:
    """erfc(scale x) for float64 x >= 0, good to float64 (but for the last rounding)."""
    xp = array_namespace(x)
    # t = scale x: an absolute error in t^2 is a relative one in exp(-t^2).
    x_coarse, t_coarse = _coarse(x), _coarse(x * sum(scale))
    t_fine = (x_coarse * scale[0] - t_coarse) + x_coarse * scale[1] + (x - x_coarse) * sum(scale)
    t = t_coarse + t_fine
    # exp(-t^2) = 2^-n gauss, where n ln 2 is next to t^2.
    n = xp.rint(t * t / math.log(2))
    growth = xp.expm1((n * _LN2[0] - t_coarse * t_coarse) + (n * _LN2[1] - t_fine * (t + t_coarse)))
    gauss = _coarse(1 + growth)
    gauss_fine = growth - (gauss - 1)
    # erfcx(t) = (3/4 + p) / (t + 7/8), and what is left of the dividend.
    p = _polynomial(_LONG, (t - 4) / (t + 4))
    erfcx = _coarse((0.75 + p) / (t + 0.875))
    erfcx_fine = ((0.75 - erfcx * (t_coarse + 0.875)) + (p - erfcx * t_fine)) / (t + 0.875)
    # Only this sum is rounded to the last place; 2^-n is exact.
    mantissa = erfcx * gauss + (erfcx * gauss_fine + erfcx_fine * (1 + growth))
    return mantissa * xp.exp2(-n)


def _coarse(x: Array) -> Array:
    """x to the 24 bits of float32: the product of two such numbers is exact in float64."""
    xp = array_namespace(x)
    return x.astype(xp.float32).astype(xp.float64)


def _polynomial(coefficients, v: Array) -> Array:
    """c[0] + c[1] v + c[2] v^2 + ... by Horner's rule, on one array in place."""
    total = coefficients[-1] * v
    for c in coefficients[-2:0:-1]:
        total += c
        total *= v
    total += coefficients[0]
    return total
