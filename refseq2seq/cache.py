"""The key-value cache: the one place that mutates."""

import numpy as np

from .backend import Array, array_namespace


class KeyValueCache:
    """Keys and values of the tokens decoded so far, for one self-attention layer.

    Memory for ``capacity`` tokens is reserved at once; only the first ``length`` places
    are ever read.

    Parameters
    ----------
    batch, n_heads, capacity, d_k, d_v : int
        ``n_heads`` counts key-value heads.
    like : array
        Gives the backend and the dtype.

    Attributes
    ----------
    length : int
        Tokens held.
    """

    def __init__(
        self, batch: int, n_heads: int, capacity: int, d_k: int, d_v: int, like: Array
    ) -> None:
        xp = array_namespace(like)
        self._keys = xp.empty((batch, n_heads, capacity, d_k), dtype=like.dtype)
        self._values = xp.empty((batch, n_heads, capacity, d_v), dtype=like.dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """The most tokens that fit."""
        return int(self._keys.shape[2])

    def append(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Store the keys and values of ``n_new`` tokens; give those of all tokens so far.

        Parameters
        ----------
        keys : array, shape (batch, n_heads, n_new, d_k)
        values : array, shape (batch, n_heads, n_new, d_v)

        Returns
        -------
        keys, values : array views, shapes (batch, n_heads, length, d_k) and (..., d_v)
            Valid until the rows are reordered; not to be written to.

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
        """Let row i continue what row ``rows[i]`` held. Rows that stay are not copied.

        Parameters
        ----------
        rows : integer array on the host, shape (n_rows,)
            With fewer rows than before, the cache keeps only that many.
        """
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        if len(moved):
            xp = array_namespace(self._keys)
            to, source = xp.asarray(moved), xp.asarray(rows[moved])
            self._keys[to, :, : self.length] = self._keys[source, :, : self.length]
            self._values[to, :, : self.length] = self._values[source, :, : self.length]
        self._keys, self._values = self._keys[: len(rows)], self._values[: len(rows)]
