r"""The expected value of a quantity, and the error that another implementation may have.

A row, which is the last axis, has a spread: the root mean square sigma_r of its errors under
random rounding (see `refseq2seq.testing.tolerance`). Each element has a spread sigma_rj too, but
it is estimated from few runs. The limit of an element therefore uses the spread of its row, or
its own where that is larger, as after a softmax with two tokens of similar probability. The
error of one element may be

.. math:: z \max(\sigma_r, \sigma_{rj}),

and the root mean square error of a row may be two spreads, or more where the number n_r of its
independent errors is so small that they do not average out:

.. math:: \sigma_r \max\left(2,\ 1 + \frac{z - 1}{\sqrt{n_r}}\right)
"""

from dataclasses import dataclass

import numpy as np

from .rounding import format_of


@dataclass(frozen=True, eq=False)
class Expected:
    """The expected value of a quantity, and its spread under rounding."""

    value: np.ndarray
    sigma: np.ndarray  # spread of each row: shape of value, with a last axis of length 1
    own_sigma: np.ndarray  # spread of each element, estimated alone: shape of value
    independent: np.ndarray  # number of independent errors per row: last axis of length 1
    where: np.ndarray  # boolean, shape of value; False = not meaningful, not compared
    dtype: str  # number format of the other implementation

    @property
    def element_sigma(self) -> np.ndarray:
        """The larger of the spreads of each element and of its row: shape of value."""
        return np.maximum(self.sigma, self.own_sigma)

    def rms_limit(self, z: float) -> np.ndarray:
        """The limit of each row's root mean square error, in spreads: last axis of length 1."""
        return np.maximum(2.0, 1 + (z - 1) / np.sqrt(self.independent))


class Errors:
    """The errors of one quantity, accumulated over many runs.

    ``value`` is the float64 reference, and ``where`` a boolean array of its shape, True =
    meaningful.
    """

    def __init__(self, value: np.ndarray, where: np.ndarray) -> None:
        self.value = value
        self._where = where
        self._runs = 0
        self._squares = np.zeros(value.shape)
        self._fourth = np.zeros((*value.shape[:-1], 1))

    def add(self, x: np.ndarray) -> None:
        """Add the quantity of one or more runs: ``value``-shaped arrays, joined along axis 0."""
        squares = (x.reshape(-1, *self.value.shape) - self.value) ** 2
        self._runs += len(squares)
        self._squares += np.sum(squares, axis=0)
        self._fourth += np.sum(row_mean(squares, self._where) ** 2, axis=0)

    def expected(self, dtype: str) -> Expected:
        """The expectation for an implementation that rounds to ``dtype``, as the runs did.

        The spread of a row is at least that of one rounding of its elements. Below the
        smallest normal number the grid of ``dtype`` is evenly spaced.
        """
        x, where, squares = self.value, self._where, self._squares / self._runs
        f = format_of(dtype)
        least = f.eps**2 * row_mean(np.maximum(x * x, 4.0**f.min_exponent), where) / 12
        sigma = np.sqrt(np.maximum(row_mean(squares, where), least))
        return Expected(x, sigma, np.sqrt(squares), self._independent(squares), where, dtype)

    def _independent(self, squares: np.ndarray) -> np.ndarray:
        """The number of independent errors in each row, with a last axis of length 1.

        It is at most the number of participants. The mean square of n independent errors has
        the relative variance 2 / n from run to run, so that the variance also bounds n; the
        larger of the row's own variance and the mean over all rows is used.
        """
        n = np.maximum(participants(np.where(self._where, squares, 0.0)), 1.0)
        of_row = row_mean(squares, self._where)
        known = of_row > 1e-150  # the square of a smaller number underflows to 0
        if not known.any():
            return n
        fourth = self._fourth / self._runs
        variance = np.divide(fourth, of_row**2, where=known, out=np.ones_like(of_row)) - 1
        variance = np.maximum(variance, np.mean(variance[known]))
        return np.minimum(n, np.maximum(1.0, 2 / np.maximum(variance, 1e-9)))


def row_mean(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each row over its meaningful elements, 0 without any: last axis of length 1."""
    n = np.maximum(np.sum(where, axis=-1, keepdims=True), 1)
    return np.sum(np.where(where, x, 0.0), axis=-1, keepdims=True) / n


def participants(squares: np.ndarray) -> np.ndarray:
    """The effective number of elements in each row's sum: n if all are equal, 1 if one dominates.

    This is the participation ratio, (sum s)^2 / sum s^2, with a last axis of length 1.

    Examples
    --------
    >>> participants(np.array([[1.0, 1.0, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0]])).tolist()
    [[4.0], [1.0]]
    """
    top = np.max(squares, axis=-1, keepdims=True, initial=0.0)
    shares = squares / np.where(top > 0, top, 1.0)
    fourth = np.sum(shares**2, axis=-1, keepdims=True)
    return np.sum(shares, axis=-1, keepdims=True) ** 2 / np.where(fourth > 0, fourth, 1.0)
