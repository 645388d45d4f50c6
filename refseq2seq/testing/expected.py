r"""A quantity, and how far from it another implementation may be.

Errors of products are alike in a row; those of softmax and of activations grow with the
element. So of a row r, whose errors have the root mean square sigma_r, one element may be
off by

.. math:: z\,\sigma_r \max\left(1, \frac{|x_{rj}|}{\mathrm{rms}_i\,x_{ri}}\right),

and all together, in the root mean square, by :math:`2 \sigma_r`, or by more where so few
elements make up the row that chance does not average out:

.. math:: \sigma_r \max\left(2,\ 1 + \frac{z - 1}{\sqrt{n_r}}\right),
    \qquad n_r = \frac{(\sum_j x_{rj}^2)^2}{\sum_j x_{rj}^4}
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Expected:
    """What a quantity should be, and the spread of its rows under rounding."""

    value: np.ndarray
    sigma: np.ndarray  # of each row: shape of value, the last axis of length 1
    where: np.ndarray  # boolean, shape of value; False = means nothing, is not compared
    dtype: str  # what the other implementation rounds to

    @property
    def element_sigma(self) -> np.ndarray:
        """The spread of each element: shape of value."""
        x = np.where(self.where & np.isfinite(self.value), self.value, 0.0)
        rms = np.sqrt(row_mean(x * x, self.where))
        return self.sigma * np.maximum(1.0, np.abs(x) / np.where(rms > 0, rms, 1.0))

    def rms_limit(self, z: float) -> np.ndarray:
        """How many spreads the root mean square of each row may be: last axis of length 1."""
        return np.maximum(2.0, 1 + (z - 1) / np.sqrt(participants(self.value, self.where)))


def row_mean(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each row over the places that mean something; 0 where there are none."""
    n = np.maximum(np.sum(where, axis=-1, keepdims=True), 1)
    return np.sum(np.where(where, x, 0.0), axis=-1, keepdims=True) / n


def participants(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """How many elements make up each row: n if all are alike, 1 if one outweighs the rest.

    Examples
    --------
    >>> participants(np.array([[1.0, 1.0, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0]]), True).tolist()
    [[4.0], [1.0]]
    """
    squares = np.where(where & np.isfinite(x), x, 0.0) ** 2
    squares = squares / np.maximum(squares.max(axis=-1, keepdims=True, initial=0.0), 1e-300)
    fourth = np.sum(squares**2, axis=-1, keepdims=True)
    total = np.sum(squares, axis=-1, keepdims=True)
    return np.where(fourth > 0, total**2 / np.where(fourth > 0, fourth, 1.0), 1.0)
