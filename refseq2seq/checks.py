"""Validation of arguments on the host: numbers, token ids, masks.

Numbers become Python ints and floats: a NumPy integer wraps around on overflow, and a NumPy
float64 promotes float32 arrays to float64. Token ids are checked because CuPy silently wraps an
index that is out of range, and a negative index selects another token's row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import to_numpy
from .config import FrameInput, StackConfig

Tokens = Any
"""An integer array (batch, n), or a list of lists of ints, which may differ in length."""

Source = Any
"""`Tokens`; or vectors: a float array (batch, n, d), or a list of arrays (n, d), which may differ
in length."""


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
    ids, mask = _as_rows(name, tokens, mask, "(batch, n)", f"{name}_mask")
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} must hold integer token ids, got dtype {ids.dtype}")
    ids = np.where(mask, ids, 0)
    if ids.min() < 0 or ids.max() >= vocab_size:
        row, position = np.argwhere((ids < 0) | (ids >= vocab_size))[0]
        raise ValueError(
            f"{name} holds token id {ids[row, position]} at row {row}, position {position}; "
            f"the vocabulary has ids 0 to {vocab_size - 1}"
        )
    return ids.astype(np.int64), mask


def as_source(
    c: StackConfig, source: Source, mask: Any = None, dtype: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """A source that the encoder ``c`` reads, and its mask (batch, n), on the host.

    Returns
    -------
    source : array, shape (batch, n) or (batch, n, d)
        Token ids in int64, or vectors, in ``dtype`` if it is given; 0 where masked.
    mask : boolean array, shape (batch, n)

    Raises
    ------
    TypeError, ValueError
        As `as_tokens`; also if a vector is not finite or does not have the encoder's width, if a
        row has too few frames for a window of each layer, or if padding precedes a frame.
    """
    frames = c.input if isinstance(c.input, FrameInput) else None
    if frames is None and not _holds_vectors(source):
        return as_tokens("source", source, c.vocab_size, mask)
    width = frames.n_features if frames else c.d_model
    vectors, mask = as_vectors("source", source, width, mask, dtype=dtype)
    lengths = mask.sum(axis=1)
    joins = frames is not None and any(x.window > 1 or x.stride > 1 for x in frames.layers)
    if joins and (mask != (np.arange(mask.shape[1]) < lengths[:, None])).any():
        raise ValueError("source_mask must have the real frames first: True, then False")
    for row, n in enumerate(lengths.tolist()):
        if frames and not frames.length(n):
            raise ValueError(f"source row {row} has {n} frames, too few for the encoder's windows")
    return vectors, mask


def _holds_vectors(source: Any) -> bool:
    """Whether a source consists of vectors, not of token ids."""
    if isinstance(source, Sequence) and source and not isinstance(source, str):
        return np.ndim(source[0]) == 2
    return getattr(source, "ndim", 0) == 3


def as_vectors(
    name: str, vectors: Any, width: int, mask: Any = None, *, dtype: Any = None, of_mask: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (batch, n, width), 0 where masked, and their mask (batch, n), on the host.

    Raise unless they are floats and finite in ``dtype``. Errors call the mask ``of_mask``, by
    default ``name`` and ``_mask``.
    """
    x, mask = _as_rows(name, vectors, mask, f"(batch, n, {width})", of_mask or f"{name}_mask")
    if x.dtype.kind != "f":
        raise TypeError(f"{name} must hold floats, vectors of width {width}, got dtype {x.dtype}")
    if x.shape[-1] != width:
        swapped = ": swap its last two axes" if x.shape[1] == width else ""
        raise ValueError(f"{name} must have shape (batch, n, {width}), got {x.shape}{swapped}")
    with np.errstate(over="ignore"):  # what overflows the dtype is refused below
        x = np.where(mask[:, :, None], x, 0).astype(dtype or x.dtype, copy=False)
    if not np.isfinite(x).all():
        row, position, _ = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"{name} is not finite in {x.dtype} at row {row}, position {position}")
    return x, mask


def _as_rows(
    name: str, rows: Any, mask: Any, shape: str, of_mask: str
) -> tuple[np.ndarray, np.ndarray]:
    """An array of a shape such as (batch, n), padded if its rows are lists, and its mask."""
    ndim = shape.count(",") + 1
    if isinstance(rows, Sequence):
        x, lengths_mask = _from_lists(name, rows, shape)
        if mask is not None and lengths_mask is not None:
            raise ValueError(
                f"{of_mask} cannot be given with lists of different lengths, "
                f"which are masked by their lengths; pad {name} yourself, or leave the mask out"
            )
        mask = lengths_mask if mask is None else mask
    else:
        x = on_host(name, rows)
    if 0 in x.shape:
        raise ValueError(f"{name} is empty: its shape is {x.shape}")
    if x.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}{_cure(name, x, shape)}")
    return x, np.ones(x.shape[:2], bool) if mask is None else as_mask(of_mask, mask, x.shape[:2])


def _cure(name: str, x: np.ndarray, shape: str) -> str:
    """The rest of an error about a row, or another array with fewer axes than vectors have."""
    if shape == "(batch, n)" or x.ndim >= 3:
        return ""
    if x.ndim == 2 and x.dtype.kind == "f" and shape.endswith(f" {x.shape[1]})"):
        return f": write {name}[None] for one row"
    if name != "source":
        return ""
    return ": the model reads frames, which rs.speech.log_mel makes of sounds, rs.patches of images"


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


def _from_lists(name: str, rows: Sequence[Any], shape: str) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = [on_host(name, row) for row in rows]
    if shape == "(batch, n)":
        if any(row.ndim != 1 for row in arrays):
            raise ValueError(
                f"{name} must have one list of token ids per row, such as [[4, 9], [7]]; "
                f"got {_short(rows)}"
            )
    elif any(row.ndim != 2 for row in arrays) or len({row.shape[1:] for row in arrays}) > 1:
        shapes = _short([row.shape for row in arrays])
        cure = _cure(name, arrays[0], shape) if arrays[0].ndim < 2 else ""
        of_row = shape.replace("batch, ", "")
        raise ValueError(f"{name} must have one array {of_row} per row, got shapes {shapes}{cure}")
    lengths = [len(row) for row in arrays]
    if 0 in lengths:
        raise ValueError(f"{name} row {lengths.index(0)} is empty")
    if len(set(lengths)) <= 1:
        return np.asarray(arrays), None
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    flat = np.concatenate(arrays)
    ids = np.zeros((*mask.shape, *flat.shape[1:]), dtype=flat.dtype)
    ids[mask] = flat
    return ids, mask


def as_mask(name: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A boolean mask of this shape on the host. Raise unless ``mask`` is one."""
    mask = on_host(name, mask)
    if mask.dtype != np.bool_:
        raise TypeError(
            f"{name} must be boolean, True = real token, got dtype {mask.dtype}; "
            f"for a mask of ones and zeros pass mask.astype(bool)"
        )
    if mask.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {mask.shape}")
    return mask


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
