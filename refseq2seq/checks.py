"""Validation of arguments on the host: numbers, token ids, masks.

Numbers become Python ints and floats: a NumPy integer wraps around on overflow, and a NumPy
float64 promotes float32 arrays to float64. Token ids are checked because CuPy silently wraps an
index that is out of range, and a negative index selects another token's row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import to_numpy

Tokens = Any
"""An integer array (batch, n), or a list of lists of ints, which may differ in length."""


class UnsupportedFeature(ValueError):
    """A model uses a feature, named in the message, that refseq2seq does not implement."""


def check_int(name: str, x: Any, low: int) -> int:
    """``x`` as an int. Raise unless it is an integer, not a bool, of at least ``low``."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    if x < low:
        raise ValueError(f"{name} must be at least {low}, got {x}")
    return int(x)


def check_number(name: str, x: Any, interval: str) -> float:
    """``x`` as a float. Raise unless it is a number in the interval; NaN is in no interval.

    Examples
    --------
    >>> check_number("top_p's p", 1, "(0, 1]")
    1.0
    """
    if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}")
    low, high = map(float, interval[1:-1].split(","))
    above = low < x if interval[0] == "(" else low <= x
    below = x < high if interval[-1] == ")" else x <= high
    if not (above and below):
        raise ValueError(f"{name} must be in {interval}, got {x}")
    try:
        return float(x)
    except OverflowError as error:
        raise ValueError(f"{name} must be a number that a float can hold") from error


def as_tokens(
    name: str, tokens: Tokens, vocab_size: int, mask: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and their mask as arrays on the host, both (batch, n).

    Parameters
    ----------
    name : str
        The name of the argument in errors: ``source``, ``target``, ``prefix``.
    tokens : integer array (batch, n), or list of lists of ints
        Lists of different lengths are padded on the right.
    vocab_size : int
        Ids are 0 to vocab_size - 1. Masked positions may hold any integer.
    mask : boolean array (batch, n), optional
        True = real token; by default all are real. Not allowed with lists of different lengths,
        which are masked by their lengths.

    Returns
    -------
    ids : int64 array, shape (batch, n)
        0 where masked.
    mask : boolean array, shape (batch, n)

    Raises
    ------
    TypeError
        If ids are not integers, or the mask is not boolean; if either is a masked array, whose
        mask would be lost.
    ValueError
        If the shape is not (batch, n), a row is empty, or an id is out of range.
    """
    if isinstance(tokens, str):
        raise TypeError(f"{name} must hold token ids, got a str: rs.generate_text takes texts")
    if isinstance(tokens, Sequence):
        ids, lengths_mask = _from_lists(name, tokens)
        if mask is not None and lengths_mask is not None:
            raise ValueError(
                f"{name}_mask cannot be given with lists of different lengths, "
                f"which are masked by their lengths; pad {name} yourself, or leave the mask out"
            )
        mask = lengths_mask if mask is None else mask
    else:
        ids = on_host(name, tokens)
    if 0 in ids.shape:
        raise ValueError(f"{name} is empty: its shape is {ids.shape}")
    if ids.ndim != 2:
        raise ValueError(f"{name} must have shape (batch, n), got {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} must hold integer token ids, got dtype {ids.dtype}")
    mask = np.ones(ids.shape, bool) if mask is None else _as_mask(f"{name}_mask", mask, ids.shape)
    ids = np.where(mask, ids, 0)
    if ids.min() < 0 or ids.max() >= vocab_size:
        row, position = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
        raise ValueError(
            f"{name} holds token id {ids[row, position]} at row {row}, position {position}; "
            f"the vocabulary has ids 0 to {vocab_size - 1}"
        )
    return ids.astype(np.int64), mask


def on_host(name: str, x: Any) -> np.ndarray:
    """``x`` as a NumPy array. Raise for a masked array, and for lists of different shapes."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: pass x.filled(...), and the mask "
            "as its own argument, such as source_mask=~np.ma.getmaskarray(x)"
        )
    try:
        return to_numpy(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array, or lists of one shape, got {_short(x)}"
        ) from error


def _from_lists(name: str, rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = [on_host(name, row) for row in rows]
    if any(row.ndim != 1 for row in arrays):
        raise ValueError(
            f"{name} must have one list of token ids per row, such as [[4, 9], [7]]; "
            f"got {_short(rows)}"
        )
    lengths = [len(row) for row in arrays]
    if 0 in lengths:
        raise ValueError(f"{name} row {lengths.index(0)} is empty")
    if len(set(lengths)) <= 1:
        return np.asarray(arrays), None
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    flat = np.concatenate(arrays)
    ids = np.zeros(mask.shape, dtype=flat.dtype)
    ids[mask] = flat
    return ids, mask


def _as_mask(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    mask = on_host(name, mask)
    if mask.dtype != np.bool_:
        raise TypeError(
            f"{name} must be boolean, True = real token, got dtype {mask.dtype}; "
            f"for a mask of ones and zeros pass mask.astype(bool)"
        )
    if mask.shape != shape:
        raise ValueError(f"{name} must have the tokens' shape {shape}, got {mask.shape}")
    return mask


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
