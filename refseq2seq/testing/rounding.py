"""Rounding to the number formats that implementations compute in, held in float64 arrays.

NumPy has neither bfloat16 nor TF32, and none of its casts rounds at random. Here every
format is two numbers, how many binary digits a significand has and which exponents there
are, and a rounding is a change of the number of steps of that format's grid:

    x = n step,  step = 2^(e + 1 - digits) for 2^e <= |x| < 2^(e + 1)

To nearest, n is rounded to the nearest integer, ties to even. Stochastically, n is rounded
up with the probability of its fraction, so that the mean over many roundings is x.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..backend import Array, to_numpy
from ..model import Model
from ..params import map_arrays, named_arrays


@dataclass(frozen=True)
class Format:
    """A binary floating-point format of IEEE 754 or of its kind."""

    digits: int  # of the significand, the leading one included
    min_exponent: int  # of the least normal number, 2^min_exponent
    max_exponent: int  # of the greatest numbers, below 2^(max_exponent + 1)

    @property
    def eps(self) -> float:
        """From 1 to the next greater number."""
        return 2.0 ** (1 - self.digits)

    @property
    def max(self) -> float:
        """The greatest number."""
        return (2.0 - self.eps) * 2.0**self.max_exponent


FORMATS = {
    "float16": Format(digits=11, min_exponent=-14, max_exponent=15),
    "bfloat16": Format(digits=8, min_exponent=-126, max_exponent=127),
    "tf32": Format(digits=11, min_exponent=-126, max_exponent=127),
    "float32": Format(digits=24, min_exponent=-126, max_exponent=127),
    "float64": Format(digits=53, min_exponent=-1022, max_exponent=1023),
}

EXPONENT = 0x7FF0_0000_0000_0000  # the bits of a float64 that, alone, are 2^e


def format_of(dtype: str) -> Format:
    """The format called ``dtype``.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if dtype not in FORMATS:
        raise ValueError(f"dtype must be one of {', '.join(FORMATS)}, got {dtype!r}")
    return FORMATS[dtype]


def step_at(x: Array, dtype: str) -> Array:
    """The step of the format's grid at ``x``, also called its ulp: float64, shape of ``x``.

    Below the least normal number the grid keeps the step that it has there.

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

    What is beyond the greatest number by half a step or more becomes infinite, as in a cast.

    Examples
    --------
    >>> round_to(np.array([1.0, 1.004, 65520.0]), "float16").tolist()
    [1.0, 1.00390625, inf]
    """
    return _on_the_grid(x, dtype, np.rint)


def stochastically_rounded(x: Array, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """One of the two values of ``dtype`` around each ``x``, the nearer one more often.

    It is the upper one with a probability that makes the mean ``x``. Values of ``dtype``
    stay what they are.

    Parameters
    ----------
    x : array
    dtype : str
        One of `FORMATS`.
    rng : numpy.random.Generator

    Returns
    -------
    float64 array, shape of ``x``
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
        beyond = x * np.inf  # infinities and NaN are what they were
        return np.where(np.abs(on_grid) <= format_of(dtype).max, on_grid, beyond)


def rounded(model: Model, dtype: str) -> Model:
    """The model whose arrays are the nearest values of ``dtype``, held in float64.

    Give these same arrays to the implementation under test: then it differs from the
    oracle by its arithmetic alone, and not by the rounding of its weights.

    Parameters
    ----------
    model : Model
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64"
    """
    format_of(dtype)
    params = map_arrays(model.config, model.params, lambda x: round_to(x, dtype))
    return replace(model, params=params)


def check_rounded(model: Model, dtype: str) -> None:
    """Raise unless every array of the model holds values of ``dtype`` only.

    Raises
    ------
    ValueError
        Naming the first array that does not, a value of it, and the cure.
    """
    for name, array in named_arrays(model.params):
        x = to_numpy(array).astype(np.float64)
        off = ~(x == round_to(x, dtype))
        if off.any():
            raise ValueError(
                f"{name} holds {float(x[off][0])!r}, which is no finite value of {dtype} (so do "
                f"{off.sum() - 1} more of {x.size}): give both sides rounded(model, {dtype!r})"
            )
