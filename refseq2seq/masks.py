"""Boolean masks: True = may attend. PyTorch's ``key_padding_mask`` is the opposite."""

from .backend import Array, array_namespace
from .config import WindowConfig


def padding_mask(mask: Array) -> Array:
    """A key mask that broadcasts to scores: (batch, n_k) -> (batch, 1, 1, n_k).

    True = a real token, which every head and query may attend to.
    """
    return mask[:, None, None, :]


def causal_mask(q_positions: Array, k_positions: Array) -> Array:
    """True where the key is not after the query: shape (n_q, n_k).

    Parameters
    ----------
    q_positions, k_positions : integer arrays, shapes (n_q,) and (n_k,)

    Examples
    --------
    >>> import numpy as np
    >>> causal_mask(np.array([1, 2]), np.array([0, 1, 2]))
    array([[ True,  True, False],
           [ True,  True,  True]])
    """
    return k_positions[None, :] <= q_positions[:, None]


def window_mask(q_positions: Array, k_positions: Array, c: WindowConfig) -> Array:
    """True where the key is at most ``back`` before and ``ahead`` after the query.

    Parameters
    ----------
    q_positions, k_positions : integer arrays, shapes ([batch,] n_q) and ([batch,] n_k)
    c : WindowConfig

    Returns
    -------
    boolean array, shape ([batch,] 1, n_q, n_k)
    """
    distance = k_positions[..., None, None, :] - q_positions[..., None, :, None]
    return (distance >= -c.back) & (distance <= c.ahead)


def real_positions(mask: Array) -> Array:
    """Positions that count real tokens only, shape (batch, n): padding never shifts them.

    Padding gets the position of the last real token before it, or 0; it is masked, so this
    value has no effect.

    Examples
    --------
    >>> import numpy as np
    >>> real_positions(np.array([[False, True, True, False]]))
    array([[0, 0, 1, 1]])
    """
    xp = array_namespace(mask)
    return xp.maximum(xp.cumsum(mask.astype("int64"), axis=-1) - 1, 0)
