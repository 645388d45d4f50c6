r"""Arithmetic in low precision, simulated: a NumPy array whose operations round at random.

An implementation rounds in three places, and so does a `LowPrecisionArray`:

- an operation on elements rounds its results to the precision that it computes in, and its
  constants too;
- a product or sum of n terms t rounds partial sums. These drift towards the whole sum, and
  wander as far as independent terms do, so that their mean square is about
  (2 (sum t)^2 + sum t^2) / 6, and the errors of n of them together have the variance

  .. math:: c^2 u^2\, n\, \frac{2 (\sum_k t_k)^2 + \sum_k t_k^2}{3}, \qquad c = 0.3;

- a tensor is kept in a format of its own between operations. Taps round named quantities
  to it; here, a sum of two activations is such a tensor.

Repeated with other random numbers, a computation shows how far its results spread.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .rounding import FORMATS, round_to, step_at, stochastically_rounded

# c is 0.3 for sums in order, of any terms, and less for sums in blocks. Twice the variance,
# since rounding at random has twice the variance of rounding to nearest.
ACCUMULATION = 0.3 * 2**0.5

_ROUNDING = {np.add, np.subtract, np.multiply, np.divide, np.sqrt, np.square, np.exp, np.tanh}


@dataclass(frozen=True)
class Arithmetic:
    """What rounds to which format, and the random numbers to do it with."""

    stored: str  # tensors between operations
    operands: str  # of products: as they are stored, or TF32
    computed: str  # elements inside operations, and partial sums
    rng: np.random.Generator

    @property
    def unit(self) -> float:
        """The greatest relative error of one rounding inside operations."""
        return FORMATS[self.computed].eps / 2

    @property
    def is_fine(self) -> bool:
        """Whether what is computed is so much finer than what is stored that it never shows."""
        return FORMATS[self.computed].digits >= FORMATS[self.stored].digits + 8

    def store(self, x: np.ndarray) -> np.ndarray:
        """``x`` as it comes back from memory."""
        return self._rounded(x, self.stored)

    def compute(self, x: np.ndarray) -> np.ndarray:
        """``x`` as one operation on elements gives it."""
        return x if self.is_fine else self._rounded(x, self.computed)

    def constant(self, x: Any) -> Any:
        """``x``, which every run has alike, as the computation has it."""
        return x if self.is_fine else round_to(x, self.computed)

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a @ b, with operands and partial sums rounded."""
        if self.operands != self.stored:
            a, b = self._rounded(a, self.operands), self._rounded(b, self.operands)
        total = a @ b
        if self.is_fine:
            return total
        return self._accumulated(total, a.shape[-1], (a * a) @ (b * b))

    def sum(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """x.sum(...), with partial sums rounded."""
        total = np.sum(x, **options)
        if self.is_fine:
            return total
        return self._accumulated(total, x.size // max(total.size, 1), np.sum(x * x, **options))

    def _accumulated(self, total: np.ndarray, n: int, squares: np.ndarray) -> np.ndarray:
        """A sum of n terms, with this sum of their squares, whose partial sums were rounded."""
        spread = ACCUMULATION * self.unit * np.sqrt(n * (2 * total**2 + squares) / 3)
        return total + spread * self.rng.standard_normal(total.shape)

    def _rounded(self, x: np.ndarray, dtype: str) -> np.ndarray:
        if dtype == "float64":  # is rounded already, by the oracle: a step for both sides
            step = np.where(np.isfinite(x), step_at(x, dtype), 0.0)
            return x + step * self.rng.uniform(-1, 1, x.shape)
        return stochastically_rounded(x, dtype, self.rng)


class LowPrecisionArray(np.ndarray):
    """A float64 array that computes by an `Arithmetic`, and all that is computed from it."""

    arithmetic: Arithmetic

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, LowPrecisionArray):
            self.arithmetic = source.arithmetic

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        arithmetic = next(x.arithmetic for x in inputs if isinstance(x, LowPrecisionArray))
        a, *b = (_operand(x, arithmetic) for x in inputs)
        if ufunc is np.matmul:
            result = arithmetic.matmul(a, *b)
        elif ufunc is np.add and method == "reduce":
            result = arithmetic.sum(a, **options)
        else:
            result = getattr(ufunc, method)(a, *b, **options)
            if ufunc is np.add and np.shape(a) == np.shape(b[0]):
                result = arithmetic.store(result)
            elif ufunc in _ROUNDING:
                result = arithmetic.compute(result)
        if out is not None:  # numpy.mean divides its sum in place
            out[0].view(np.ndarray)[...] = result
            return out[0]
        return low_precision(result, arithmetic)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return low_precision(super().__array_function__(func, types, args, kwargs), self.arithmetic)


def low_precision(x: Any, arithmetic: Arithmetic) -> Any:
    """A view of ``x`` that computes by ``arithmetic``; masks and integers as they are."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        x = x.view(LowPrecisionArray)
        x.arithmetic = arithmetic
    return x


def _operand(x: Any, arithmetic: Arithmetic) -> Any:
    """``x`` with NumPy's own arithmetic: an activation, or a constant of the computation."""
    if isinstance(x, LowPrecisionArray):
        return x.view(np.ndarray)
    return arithmetic.constant(x) if getattr(x, "dtype", type(x)) in (float, np.float64) else x
