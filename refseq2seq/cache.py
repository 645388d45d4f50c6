"""The key-value cache: the only arrays that are written to in place."""

import numpy as np

from .backend import Array, array_namespace


class KeyValueCache:
    """Keys and values of the tokens decoded so far, for one self-attention layer.

    Memory for ``capacity`` tokens is reserved at once; only the first ``length`` positions are
    ever read.

    Parameters
    ----------
    batch, n_heads, capacity, d_k, d_v : int
        ``n_heads`` counts key-value heads.
    like : array
        Gives the backend and the dtype.

    Attributes
    ----------
    capacity : int
    length : int
        The number of tokens that the cache holds.
    """

    def __init__(
        self, batch: int, n_heads: int, capacity: int, d_k: int, d_v: int, like: Array
    ) -> None:
        xp = array_namespace(like)
        self._keys = xp.empty((batch, n_heads, capacity, d_k), dtype=like.dtype)
        self._values = xp.empty((batch, n_heads, capacity, d_v), dtype=like.dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Store the keys and values of ``n_new`` tokens; return those of all tokens so far.

        Parameters
        ----------
        keys : array, shape (batch, n_heads, n_new, d_k)
        values : array, shape (batch, n_heads, n_new, d_v)

        Returns
        -------
        keys, values : array views, shapes (batch, n_heads, length, d_k) and (..., d_v)
            Valid until the rows are reordered. Do not write to them.

        Raises
        ------
        ValueError
            If they do not fit.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.length} of at most {self.capacity} tokens; "
                f"{keys.shape[2]} more do not fit"
            )
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def reorder(self, rows: np.ndarray) -> None:
        """Let row i continue row ``rows[i]``. Rows that stay at their index are not copied.

        Parameters
        ----------
        rows : integer array on the host, shape (n_rows,)
            With fewer rows than before, the cache keeps only that many rows.
        """
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        if len(moved):
            xp = array_namespace(self._keys)
            to, source = xp.asarray(moved), xp.asarray(rows[moved])
            self._keys[to, :, : self.length] = self._keys[source, :, : self.length]
            self._values[to, :, : self.length] = self._values[source, :, : self.length]
        self._keys, self._values = self._keys[: len(rows)], self._values[: len(rows)]
