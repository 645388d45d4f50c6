r"""Simulated low-precision arithmetic: a NumPy array whose operations round at random.

An implementation rounds in three steps, and so does a `LowPrecisionArray`:

- An elementwise operation rounds its results and its constants to the precision in which it
  computes.
- A matrix product or a sum of n terms t rounds partial sums. The partial sums grow towards the
  total and fluctuate like sums of independent terms, so that their mean square is about
  (2 (sum t)^2 + sum t^2) / 6. The errors of n of them together have the variance

  .. math:: c^2 u^2\, n\, \frac{2 (\sum_k t_k)^2 + \sum_k t_k^2}{3}, \qquad c = 0.3,

  where u is the unit roundoff.
- Between operations a tensor is stored in a format of its own. Taps round the named quantities
  to it; this module rounds the sum of two activations.

Repeating a computation with other random numbers shows the spread of its results.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .rounding import FORMATS, round_to, step_at, stochastically_rounded

# c is 0.3 for sequential sums of any terms, and smaller for blocked sums. The variance is doubled
# because random rounding has twice the variance of rounding to nearest.
ACCUMULATION = 0.3 * 2**0.5

_ROUNDING = {np.add, np.subtract, np.multiply, np.divide, np.sqrt, np.square, np.exp, np.tanh}


@dataclass(frozen=True)
class Arithmetic:
    """The number formats of a computation, and the random generator for rounding.

    The formats are names in `refseq2seq.testing.rounding.FORMATS`.
    """

    stored: str  # format of tensors between operations
    operands: str  # format of the operands of products: `stored`, or "tf32"
    summed: str  # format of partial sums
    rng: np.random.Generator
    stepwise: bool = False  # whether each step inside an operation is stored, as in eager code

    @property
    def unit(self) -> float:
        """The unit roundoff: the largest relative error of one rounding of a partial sum."""
        return FORMATS[self.summed].eps / 2

    @property
    def computed(self) -> str:
        """The format of elements inside operations; without the limits of float16's range."""
        eager = {"float16": "tf32"}.get(self.stored, self.stored)
        return eager if self.stepwise else self.summed

    @property
    def is_fine(self) -> bool:
        """Whether sums are so much finer than tensors that their rounding is negligible."""
        return FORMATS[self.summed].digits >= FORMATS[self.stored].digits + 8

    def store(self, x: np.ndarray) -> np.ndarray:
        """``x`` rounded to the stored format."""
        return self._rounded(x, self.stored)

    def compute(self, x: np.ndarray) -> np.ndarray:
        """``x``, the result of one elementwise operation, rounded to the computed format."""
        return x if self.is_fine and not self.stepwise else self._rounded(x, self.computed)

    def constant(self, x: Any) -> Any:
        """The constant ``x``, rounded to nearest, so that it is the same in every run."""
        return x if self.is_fine else round_to(x, self.computed)

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a @ b``, with operands and partial sums rounded."""
        if self.operands != self.stored:
            a, b = self._rounded(a, self.operands), self._rounded(b, self.operands)
        total = a @ b
        if self.is_fine and self.stepwise:  # such as a query that is scaled before the product
            spread = FORMATS[self.computed].eps / 2 * np.sqrt((a * a) @ (b * b) * 2 / 3)
            return self.compute(total + spread * self.rng.standard_normal(total.shape))
        if self.is_fine:
            return total
        return self._accumulated(total, a.shape[-1], (a * a) @ (b * b))

    def sum(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """``x.sum(**options)``, with partial sums rounded."""
        total = np.sum(x, **options)
        if self.is_fine:
            return total
        return self._accumulated(total, x.size // max(total.size, 1), np.sum(x * x, **options))

    def _accumulated(self, total: np.ndarray, n: int, squares: np.ndarray) -> np.ndarray:
        """The total of n terms plus the error of rounded partial sums; ``squares`` = sum t^2."""
        spread = ACCUMULATION * self.unit * np.sqrt(n * (2 * total**2 + squares) / 3)
        return total + spread * self.rng.standard_normal(total.shape)

    def _rounded(self, x: np.ndarray, dtype: str) -> np.ndarray:
        if dtype == "float64":  # the reference is rounded to it too: one step for each side
            step = np.where(np.isfinite(x), step_at(x, dtype), 0.0)
            return x + step * self.rng.uniform(-1, 1, x.shape)
        return stochastically_rounded(x, dtype, self.rng)


class LowPrecisionArray(np.ndarray):
    """A float64 array that computes with an `Arithmetic`, and so do arrays computed from it."""

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
    """A view of ``x`` that computes with ``arithmetic``; unchanged if ``x`` has no float dtype."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        x = x.view(LowPrecisionArray)
        x.arithmetic = arithmetic
    return x


def _operand(x: Any, arithmetic: Arithmetic) -> Any:
    """An operand with NumPy's own arithmetic: an activation as it is, a constant rounded."""
    if isinstance(x, LowPrecisionArray):
        return x.view(np.ndarray)
    return arithmetic.constant(x) if getattr(x, "dtype", type(x)) in (float, np.float64) else x
