"""Attention, its heads and its key-value cache (Vaswani et al. 2017, section 3.2)."""

from typing import NamedTuple

import numpy as np

from .backend import Array, array_namespace
from .config import AttentionConfig
from .ops import linear, normalize, sigmoid, soft_cap, softmax
from .params import AttentionParams
from .positions import Rotation, rotate
from .taps import Tap, no_tap


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    mask: Array | None = None,
    bias: Array | None = None,
    softcap: float | None = None,
    tap: Tap = no_tap,
) -> Array:
    r"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    .. math:: \mathrm{softmax}(\mathrm{scale} \cdot Q K^\top + B)\, V

    Parameters
    ----------
    q : array, shape (..., n_q, d_k)
    k : array, shape (..., n_k, d_k)
    v : array, shape (..., n_k, d_v)
    scale : float
        1/sqrt(d_k) in the paper, 1 in T5.
    mask : boolean array, shape broadcastable to (..., n_q, n_k), optional
        True = may attend. PyTorch's ``key_padding_mask`` is the opposite.
    bias : array, shape broadcastable to (..., n_q, n_k), optional
        Added to the scaled scores.
    softcap : float, optional
        Bounds the scores: see `refseq2seq.ops.soft_cap`.
    tap : Tap
        Receives ``scores`` (before mask and softmax), ``weights`` (after) and ``heads``.

    Returns
    -------
    array, shape (..., n_q, d_v)
        Zeros, never NaN, for a query that may attend to no key.

    Examples
    --------
    A query with equal scores for two keys returns the mean of their values.

    >>> import numpy as np
    >>> q, k = np.ones((1, 2)), np.ones((2, 2))
    >>> attention(q, k, np.array([[2.0], [4.0]]), scale=1.0)
    array([[3.]])
    """
    scores = q @ k.mT * scale
    scores = tap("scores", soft_cap(scores if bias is None else scores + bias, softcap))
    weights = tap("weights", softmax(scores, mask))
    return tap("heads", weights @ v)


class KeyValueCache:
    """Keys and values of the tokens decoded so far, for one self-attention layer.

    Arrays for ``capacity`` tokens are allocated at once; only the first ``length`` positions
    are ever read.

    Parameters
    ----------
    batch, n_heads, capacity, d_k, d_v : int
        ``n_heads`` counts key-value heads.
    like : array
        Determines the backend and the dtype.

    Attributes
    ----------
    capacity : int
    length : int
        The number of tokens in the cache.
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
            If the tokens do not fit.
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
        """Replace row i by row ``rows[i]``. Rows that keep their index are not copied.

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


class SelfContext(NamedTuple):
    """The inputs of self-attention besides ``x``: positions, mask and cache."""

    rotation: Rotation | None = None  # rotates queries and keys by their positions
    bias: Array | None = None  # ([batch,] n_heads, n, n_k), added to the scores
    mask: Array | None = None  # boolean, True = may attend; broadcasts to (batch, n_heads, n, n_k)
    cache: KeyValueCache | None = None  # receives the new keys, already rotated, and new values


class CrossContext(NamedTuple):
    """The inputs of cross-attention besides ``x``: the memory's `keys_values` and mask."""

    k: Array  # (batch, n_kv_heads, n_source, d_k)
    v: Array  # (batch, n_kv_heads, n_source, d_v)
    mask: Array | None = None  # boolean, True = may attend; (batch, 1, 1, n_source)


def self_attention(
    p: AttentionParams, c: AttentionConfig, x: Array, context: SelfContext, tap: Tap = no_tap
) -> Array:
    """Tokens attend to their own sequence: (batch, n, d_model) -> (batch, n, d_model).

    With a cache, n_k counts all tokens in it. The tap receives ``input``, ``q``, ``k``, ``v``,
    and the quantities of `attend`.
    """
    x = tap("input", x)
    q, (k, v) = queries(p, c, x), keys_values(p, c, x)
    if context.rotation is not None:
        q, k = rotate(q, context.rotation), rotate(k, context.rotation)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    if context.cache is not None:
        k, v = context.cache.append(k, v)
    return attend(p, c, x, q, k, v, mask=context.mask, bias=context.bias, tap=tap)


def cross_attention(
    p: AttentionParams, c: AttentionConfig, x: Array, context: CrossContext, tap: Tap = no_tap
) -> Array:
    """Target tokens attend to the source: (batch, n_target, d_model) -> (batch, n_target, d_model).

    The tap receives ``input``, ``q``, and the quantities of `attend`.
    """
    x = tap("input", x)
    q = tap("q", queries(p, c, x))
    return attend(p, c, x, q, context.k, context.v, mask=context.mask, bias=None, tap=tap)


def queries(p: AttentionParams, c: AttentionConfig, x: Array) -> Array:
    """Queries of each head: (batch, n, d_model) -> (batch, n_heads, n, d_k)."""
    return normalize(p.q_norm, c.qk_norm, split_heads(linear(x, p.w_q, p.b_q), c.n_heads))


def keys_values(p: AttentionParams, c: AttentionConfig, x: Array) -> tuple[Array, Array]:
    """Keys (batch, n_kv_heads, n, d_k) and values (batch, n_kv_heads, n, d_v) of each head."""
    k = split_heads(linear(x, p.w_k, p.b_k), c.n_kv_heads)
    v = split_heads(linear(x, p.w_v, p.b_v), c.n_kv_heads)
    return normalize(p.k_norm, c.qk_norm, k), v


def attend(
    p: AttentionParams,
    c: AttentionConfig,
    x: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None,
    bias: Array | None,
    tap: Tap = no_tap,
) -> Array:
    """Attention of all heads, gates, and the output projection: (batch, n, d_model).

    Only gates use ``x``. The tap receives ``scores``, ``weights``, ``heads``, ``gate`` and ``out``.
    """
    if p.learned_k is not None:
        k, v, mask, bias = _with_learned(p, k, v, mask, bias)
    if c.n_kv_heads < c.n_heads:
        k, v = _one_per_head(c, k), _one_per_head(c, v)
    heads = attention(q, k, v, scale=c.scale, mask=mask, bias=bias, softcap=c.softcap, tap=tap)
    if p.head_scale is not None:
        heads = heads * p.head_scale
    if c.gate == "per_head":
        gate = tap("gate", linear(x, p.w_gate, p.b_gate))
        heads = heads * split_heads(sigmoid(gate), c.n_heads)
    merged = merge_heads(heads)
    if c.gate == "per_value":
        merged = merged * sigmoid(tap("gate", linear(x, p.w_gate, p.b_gate)))
    return tap("out", linear(merged, p.w_o, p.b_o))


def split_heads(x: Array, n_heads: int) -> Array:
    """(batch, n, n_heads * d) -> (batch, n_heads, n, d): head h has columns h d to (h+1) d - 1."""
    batch, n, width = x.shape
    return x.reshape(batch, n, n_heads, width // n_heads).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """(batch, n_heads, n, d) -> (batch, n, n_heads * d), the inverse of `split_heads`."""
    batch, n_heads, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, n, n_heads * d)


def _one_per_head(c: AttentionConfig, x: Array) -> Array:
    """Repeat key-value heads so that each query head has its own."""
    xp, share = array_namespace(x), c.n_heads // c.n_kv_heads
    if c.kv_head_order == "grouped":
        return xp.repeat(x, share, axis=1)
    return xp.tile(x, (1, share, 1, 1))


def _with_learned(
    p: AttentionParams, k: Array, v: Array, mask: Array | None, bias: Array | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """Prepend the learned key-value pairs: every query may attend to them, without a bias."""
    xp = array_namespace(k)
    n = p.learned_k.shape[1]  # type: ignore[union-attr]

    def before(learned: Array, x: Array) -> Array:
        return xp.concat([xp.broadcast_to(learned, (x.shape[0], *learned.shape)), x], axis=2)

    def widened(x: Array, fill: float) -> Array:
        return xp.concat([xp.full((*x.shape[:-1], n), fill, dtype=x.dtype), x], axis=-1)

    return (
        before(p.learned_k, k),
        before(p.learned_v, v),
        None if mask is None else widened(mask, True),
        None if bias is None else widened(bias, 0),
    )
