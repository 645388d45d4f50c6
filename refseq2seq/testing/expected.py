r"""A quantity, and how far from it another implementation may be.

A row, the last axis, has a spread: the root mean square sigma_r of its errors under rounding.
So has each element, but the runs that measure it are few: an element is allowed the spread of
its row, or its own where that is greater, as after a softmax that leaves two tokens in doubt.
One element may be off by

.. math:: z \max(\sigma_r, \sigma_{rj}),

and a row together, in the root mean square, by two spreads; or by more where it has so few
errors that are independent, n_r, that chance does not average out:

.. math:: \sigma_r \max\left(2,\ 1 + \frac{z - 1}{\sqrt{n_r}}\right)
"""

from dataclasses import dataclass

import numpy as np

from .rounding import format_of


@dataclass(frozen=True, eq=False)
class Expected:
    """What a quantity should be, and its spread under rounding."""

    value: np.ndarray
    sigma: np.ndarray  # of each row: shape of value, the last axis of length 1
    own_sigma: np.ndarray  # of each element, measured by itself: shape of value
    independent: np.ndarray  # how many errors of each row are: last axis of length 1
    where: np.ndarray  # boolean, shape of value; False = means nothing, is not compared
    dtype: str  # what the other implementation rounds to

    @property
    def element_sigma(self) -> np.ndarray:
        """The spread that each element is allowed: shape of value."""
        return np.maximum(self.sigma, self.own_sigma)

    def rms_limit(self, z: float) -> np.ndarray:
        """How many spreads the root mean square of each row may be: last axis of length 1."""
        return np.maximum(2.0, 1 + (z - 1) / np.sqrt(self.independent))


class Errors:
    """The errors of one quantity, gathered over many runs."""

    def __init__(self, value: np.ndarray, where: np.ndarray) -> None:
        self._value = value
        self._where = where
        self._runs = 0
        self._squares = np.zeros(value.shape)
        self._fourth = np.zeros((*value.shape[:-1], 1))

    def add(self, x: np.ndarray) -> None:
        """The quantity in one run or more: arrays of the value's shape, one after another."""
        squares = (x.reshape(-1, *self._value.shape) - self._value) ** 2
        self._runs += len(squares)
        self._squares += np.sum(squares, axis=0)
        self._fourth += np.sum(row_mean(squares, self._where) ** 2, axis=0)

    def expected(self, dtype: str) -> Expected:
        """What to expect of an implementation that rounds to ``dtype``, as the errors did.

        The expected error of a row is at least that of one rounding of its elements; below
        the least normal number the grid is evenly spaced.
        """
        x, where, squares = self._value, self._where, self._squares / self._runs
        f = format_of(dtype)
        least = f.eps**2 * row_mean(np.maximum(x * x, 4.0**f.min_exponent), where) / 12
        sigma = np.sqrt(np.maximum(row_mean(squares, where), least))
        return Expected(x, sigma, np.sqrt(squares), self._independent(squares), where, dtype)

    def _independent(self, squares: np.ndarray) -> np.ndarray:
        """How many errors make up each row: at most its participants, and at most as many as
        the relative variance of its mean square from run to run tells, 2 / n, its own or that
        of all rows.
        """
        n = np.maximum(participants(np.where(self._where, squares, 0.0)), 1.0)
        of_row = row_mean(squares, self._where)
        known = of_row > 1e-150  # the square of less is 0
        if not known.any():
            return n
        fourth = self._fourth / self._runs
        variance = np.divide(fourth, of_row**2, where=known, out=np.ones_like(of_row)) - 1
        variance = np.maximum(variance, np.mean(variance[known]))
        return np.minimum(n, np.maximum(1.0, 2 / np.maximum(variance, 1e-9)))


def row_mean(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each row over the places that mean something; 0 where there are none."""
    n = np.maximum(np.sum(where, axis=-1, keepdims=True), 1)
    return np.sum(np.where(where, x, 0.0), axis=-1, keepdims=True) / n


def participants(squares: np.ndarray) -> np.ndarray:
    """How many elements make up each row's sum: n if all are alike, 1 if one outweighs the rest.

    Examples
    --------
    >>> participants(np.array([[1.0, 1.0, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0]])).tolist()
    [[4.0], [1.0]]
    """
    top = np.max(squares, axis=-1, keepdims=True, initial=0.0)
    shares = squares / np.where(top > 0, top, 1.0)
    fourth = np.sum(shares**2, axis=-1, keepdims=True)
    return np.sum(shares, axis=-1, keepdims=True) ** 2 / np.where(fourth > 0, fourth, 1.0)
