r"""The error function and the normal distribution function, from array operations.

NumPy has neither, and GELU needs one of them. A factorisation preserves relative accuracy
arbitrarily far in the tail (Cody 1969, "Rational Chebyshev approximations for the error
function"):

.. math:: \mathrm{erfc}(t) = e^{-t^2}\,\mathrm{erfcx}(t), \qquad t \ge 0

erfcx decreases like :math:`1 / (\sqrt\pi\,t)`, so (t + h) erfcx(t) varies little for a constant
h. The map (t - 3) / (t + 3) takes the half-line to [-1, 1), where one polynomial approximates
that product (Shepherd and Laframboise 1981, "Chebyshev approximation of (1 + 2x) exp(x^2)
erfc x").

There are two such polynomials: a short one with h = 3, written in y = 3 / (t + 3), because the map
is 1 - 2 y; and a long one with h = 3/4. float16 and float32, for which GELU must be fast, are
computed in float64 with the short one and rounded once. float64, which has no wider dtype, uses
the long one and tracks the rounding errors. Models use `gelu_erf`; the other functions are public
and use the same polynomials.
"""

import math
from collections.abc import Sequence

from .backend import Array, array_namespace, elementwise

# Coefficients, lowest power first. Each polynomial interpolates at Chebyshev points;
# tests/test_erf.py derives them again.
# fmt: off
_SHORT = (  # erfcx(t) in powers of y = 3 / (t + 3), from y^0 (h is 3); relative error 3e-9
    0.0,
    0.18802819768824947, 0.18882296839834237, 0.17035618522311455, 0.19687502808599547,
    -0.015005654910979532, 0.42697436110740483, -0.4684886921302902, 0.5556532882368124,
    -0.30042856375832033, 0.05721288361979039,
)
_LONG = (  # (t + 3/4) erfcx(t) - 11/16 in (t - 3) / (t + 3); t <= 27.3; error 2e-17
    -0.016245683069787686, -0.14936894307304988, 0.03761980325135724, 0.02729359522618437,
    -0.04172037240815009, 0.02805588884239458, -0.010817973376415307, 0.0014416325163039117,
    0.0007950796967433857, -0.0003786022956966537, -3.656579323204751e-05, 5.933445038514135e-05,
    4.803489614829599e-07, -9.519868501685356e-06, -5.299012401740095e-08, 1.6616389437843229e-06,
    1.202824500625223e-07, -2.9937504645099957e-07, -5.941875680049095e-08, 4.928163180273085e-08,
    1.858077487799886e-08, -5.810927939047292e-09, -3.619662220787645e-09, 2.3973697971732626e-10,
    2.8819907641561644e-10,
)
# fmt: on
_SERIES = [  # erf(t) / t in t^2, the Taylor series; for t < 0.48 the remainder is below 1e-18
    2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(13)
]

# Constants as coarse + fine: the coarse part has so few bits that its products are exact.
_ONE = (1.0, 0.0)
_coarse_root = round(math.sqrt(0.5) * 2**24) / 2**24
_SQRT_HALF = (_coarse_root, (0.5 - _coarse_root**2) / (math.sqrt(0.5) + _coarse_root))
_LN2 = (0xB17217F7 / 2**32, 0xD1CF79ABC9E3B398 / 2**96)


@elementwise
def erfc(x: Array) -> Array:
    r"""Complementary error function.

    .. math:: \mathrm{erfc}(x) = \frac{2}{\sqrt\pi} \int_x^\infty e^{-u^2}\,du

    Parameters
    ----------
    x : array of float16, float32 or float64, any shape

    Returns
    -------
    array, shape and dtype of ``x``
        Within 2 units in the last place, also in the tail.

    Examples
    --------
    >>> import numpy as np
    >>> erfc(np.array([-np.inf, 0.0, 1.0, 26.0]))
    array([2.00000000e+000, 1.00000000e+000, 1.57299207e-001, 5.66319241e-296])
    """
    tail = _erfc_of_abs(x, _ONE)
    return array_namespace(x).where(x < 0, 2 - tail, tail)


@elementwise
def erf(x: Array) -> Array:
    r"""Error function, computed as 1 - erfc(x), or by its power series near 0.

    .. math:: \mathrm{erf}(x) = \frac{2}{\sqrt\pi} \int_0^x e^{-u^2}\,du

    The argument and the accuracy are those of `erfc`. The power series avoids cancellation.
    """
    xp = array_namespace(x)
    far = xp.copysign(1 - _erfc_of_abs(x, _ONE), x)
    is_near = xp.abs(x) < 0.4769  # there erf < 1/2 < erfc
    near = xp.where(is_near, x, 0.0).astype(xp.float64)
    near = near * _polynomial(_SERIES, near * near)
    return xp.where(is_near, near.astype(x.dtype), far)


@elementwise
def normal_cdf(x: Array) -> Array:
    r"""Distribution function of the standard normal distribution.

    .. math:: \Phi(x) = \frac{1}{\sqrt{2\pi}} \int_{-\infty}^x e^{-u^2/2}\,du
        = \tfrac12\,\mathrm{erfc}(-x / \sqrt 2)

    The argument and the accuracy are those of `erfc`. SciPy calls this function ``ndtr``.

    Examples
    --------
    >>> import numpy as np
    >>> normal_cdf(np.array([-10.0, 0.0, 1.0]))
    array([7.61985302e-24, 5.00000000e-01, 8.41344746e-01])
    """
    tail = 0.5 * _erfc_of_abs(x, _SQRT_HALF)
    return array_namespace(x).abs((x > 0) - tail)  # tail left of 0, 1 - tail right of it


@elementwise
def gelu_erf(x: Array) -> Array:
    r"""Gaussian error linear unit x Phi(x), exact (Hendrycks and Gimpel 2016, eq. 1).

    .. math:: x\,\Phi(x) = \max(x, 0) - \tfrac12\,|x|\,\mathrm{erfc}(|x| / \sqrt 2)

    The argument and the accuracy are those of `erfc`. The form on the right rounds once in the
    left tail, where a rounded :math:`\Phi(x)` may be subnormal. PyTorch and x-transformers
    compute x (1 + erf(x / sqrt 2)) / 2 under the name ``gelu``; in the left tail that form loses
    every digit.

    Examples
    --------
    >>> import numpy as np
    >>> gelu_erf(np.array([-10.0, 0.0, 1.0]))
    array([-7.61985302e-23,  0.00000000e+00,  8.41344746e-01])
    """
    xp = array_namespace(x)
    half = 0.5 * xp.minimum(xp.abs(x), 40.0)  # erfc is 0 beyond 40, and inf * 0 is NaN
    return xp.maximum(x, 0) - _erfc_of_abs(x, _SQRT_HALF, times=half)


def _erfc_of_abs(x: Array, scale: tuple[float, float], times: Array | float = 1.0) -> Array:
    """times * erfc(scale |x|), of the shape of x and rounded once to its dtype."""
    if x.dtype.kind != "f":
        raise TypeError(f"expected an array of floating-point numbers, got {x.dtype}")
    xp = array_namespace(x)
    if x.dtype.itemsize > 4:
        return _accurate_erfc(xp.abs(x), scale, times).astype(x.dtype)
    t = xp.abs(x).astype(xp.float64) * sum(scale)
    result = _polynomial(_SHORT, 3 / (t + 3))  # erfcx(t)
    t *= -t  # in place: memory access is slower here than arithmetic
    result *= xp.exp(t)  # erfc(t)
    result *= times
    return result.astype(x.dtype)


def _accurate_erfc(x: Array, scale: tuple[float, float], times: Array | float) -> Array:
    """times * erfc(scale x), accurate to float64, for x >= 0.

    Coarse parts have 24 bits, fine parts the remainder.
    """
    xp = array_namespace(x)
    x = xp.minimum(x, 40.0)  # the result is 0 beyond 40, and squares stay finite
    # t = scale x in extra precision: an absolute error of t^2 is a relative one of exp(-t^2).
    x_coarse, t_coarse = _coarse(x), _coarse(x * sum(scale))
    t_fine = (x_coarse * scale[0] - t_coarse) + x_coarse * scale[1] + (x - x_coarse) * sum(scale)
    t = t_coarse + t_fine
    # exp(-t^2) = 2^-n gauss, with n ln 2 nearest to t^2. The first expm1 has an exact argument.
    n = xp.rint(t * t / math.log(2))
    growth = xp.expm1(n * _LN2[0] - t_coarse * t_coarse)
    correction = xp.expm1(n * _LN2[1] - t_fine * (t_coarse + t))
    gauss_coarse = _coarse(1 + growth)
    gauss_fine = (growth - (gauss_coarse - 1)) + (1 + growth) * correction
    # erfcx(t) = (11/16 + p) / (t + 3/4): a coarse quotient, then its remainder, divided too.
    p = _polynomial(_LONG, (t - 3) / (t + 3))
    erfcx_coarse = _coarse((0.6875 + p) / (t + 0.75))
    remainder = (0.6875 - erfcx_coarse * (t_coarse + 0.75)) + (p - erfcx_coarse * t_fine)
    erfcx_fine = remainder / (t + 0.75)
    # The product of two sums; only the last addition and the factor ``times`` round to float64.
    fine = erfcx_coarse * gauss_fine + erfcx_fine * (gauss_coarse + gauss_fine)
    far = (erfcx_coarse * gauss_coarse + fine) * times * xp.exp2(-n)
    return xp.where(t < 0.2, (1 - t * _polynomial(_SERIES, t * t)) * times, far)


def _coarse(x: Array) -> Array:
    """x rounded to the 24 bits of float32; the float64 product of two such numbers is exact."""
    xp = array_namespace(x)
    return x.astype(xp.float32).astype(xp.float64)


def _polynomial(coefficients: Sequence[float], v: Array) -> Array:
    """c0 + c1 v + c2 v^2 + ... by Horner's rule."""
    total = coefficients[-1] * v
    for c in coefficients[-2:0:-1]:
        total += c
        total *= v
    total += coefficients[0]
    return total
