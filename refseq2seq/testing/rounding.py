"""Rounding to the number formats of implementations, with the results in float64 arrays.

NumPy has neither bfloat16 nor TF32, and none of its casts rounds at random. Here a format is
defined by the number of binary digits of its significand and by its range of exponents. Its
values form a grid, on which x is a number n of steps:

    x = n step,  step = 2^(e + 1 - digits) for 2^e <= |x| < 2^(e + 1)

Rounding to nearest rounds n to the nearest integer, ties to even. Stochastic rounding rounds n
up with a probability equal to its fractional part, so that the mean over many roundings is x.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..backend import Array, to_numpy
from ..model import Model
from ..params import map_arrays, named_arrays


@dataclass(frozen=True)
class Format:
    """A binary floating-point format of IEEE 754, or a similar one."""

    digits: int  # binary digits of the significand, including the leading one
    min_exponent: int  # the smallest normal number is 2^min_exponent
    max_exponent: int  # the largest number is below 2^(max_exponent + 1)

    @property
    def eps(self) -> float:
        """The machine epsilon: the distance from 1 to the next larger number."""
        return 2.0 ** (1 - self.digits)

    @property
    def max(self) -> float:
        """The largest finite number."""
        return (2.0 - self.eps) * 2.0**self.max_exponent


FORMATS = {
    "float16": Format(digits=11, min_exponent=-14, max_exponent=15),
    "bfloat16": Format(digits=8, min_exponent=-126, max_exponent=127),
    "tf32": Format(digits=11, min_exponent=-126, max_exponent=127),
    "float32": Format(digits=24, min_exponent=-126, max_exponent=127),
    "float64": Format(digits=53, min_exponent=-1022, max_exponent=1023),
}

EXPONENT = 0x7FF0_0000_0000_0000  # exponent bits of a float64; alone, they represent 2^e


def format_of(dtype: str) -> Format:
    """The format named ``dtype``; raise a ValueError if there is none."""
    if dtype not in FORMATS:
        raise ValueError(f"dtype must be one of {', '.join(FORMATS)}, got {dtype!r}")
    return FORMATS[dtype]


def step_at(x: Array, dtype: str) -> Array:
    """The step of the format's grid at ``x``, also called ulp: float64, shape of ``x``.

    Below the smallest normal number the step is constant.

    Examples
    --------
    >>> step_at(np.array([1.0, 3.0, 0.0]), "float16").tolist()
    [0.0009765625, 0.001953125, 5.960464477539063e-08]
    """
    f = format_of(dtype)
    exponent = np.asarray(x, np.float64).view(np.int64) & EXPONENT
    return np.maximum(exponent.view(np.float64), 2.0**f.min_exponent) * f.eps


def round_to(x: Array, dtype: str) -> np.ndarray:
    """The nearest values of ``dtype``, ties to even: float64, shape of ``x``.

    A value that exceeds the largest number by half a step or more becomes infinite, as in a cast.

    Examples
    --------
    >>> round_to(np.array([1.0, 1.004, 65520.0]), "float16").tolist()
    [1.0, 1.00390625, inf]
    """
    return _on_the_grid(x, dtype, np.rint)


def stochastically_rounded(x: Array, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Each element of ``x``, rounded at random to one of the two adjacent values of ``dtype``.

    The probability of rounding up is such that the mean is ``x``. Values of ``dtype`` do not
    change. The result is in float64.
    """

    def up_or_down(n: np.ndarray) -> np.ndarray:
        below = np.floor(n)
        return below + (rng.random(n.shape, np.float32) < n - below)

    return _on_the_grid(x, dtype, up_or_down)


def _on_the_grid(
    x: Array, dtype: str, to_integer: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    x = to_numpy(x).astype(np.float64)
    step = step_at(x, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        on_grid = to_integer(x / step) * step
        beyond = x * np.inf  # overflow gives infinity; infinities and NaN do not change
        return np.where(np.abs(on_grid) <= format_of(dtype).max, on_grid, beyond)


def rounded(model: Model, dtype: str) -> Model:
    """The model with each parameter rounded to the nearest value of ``dtype``, as float64 arrays.

    Use the same arrays in the implementation under test. It then differs from the reference
    only by its arithmetic, and not by the rounding of its weights.

    Parameters
    ----------
    model : Model
        In any dtype.
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64"
    """
    format_of(dtype)
    params = map_arrays(model.config, model.params, lambda x: round_to(x, dtype))
    return replace(model, params=params)


def check_rounded(model: Model, dtype: str) -> None:
    """Raise a ValueError unless every array of the model has only finite values of ``dtype``."""
    for name, array in named_arrays(model.params):
        x = to_numpy(array).astype(np.float64)
        off = ~(x == round_to(x, dtype))
        if off.any():
            raise ValueError(
                f"{name} holds {float(x[off][0])!r}, which is not a finite value of {dtype} (nor "
                f"are {off.sum() - 1} more of its {x.size} elements): use "
                f"rounded(model, {dtype!r}) on both sides"
            )
