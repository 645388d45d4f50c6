"""One result beside the right one: shape, dtype, and values up to rounding."""

import math
import reprlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .exercise import Arguments

KINDS = {
    "b": "booleans (dtype=bool)", "i": "integers", "u": "integers", "f": "floating-point numbers",
}  # fmt: skip
FEW = 12
"""An array of at most so many elements is shown whole."""


def tolerance(right: np.ndarray, moved: list[Any], arguments: Arguments) -> float:
    """How far rounding may move the elements of a right result.

    A sum of n terms has a relative error of at most n u (Higham 2002, section 4.2), u the unit
    roundoff. ``moved`` are the results for arguments that change by u; the result itself is
    rounded too. The factor 16 is the number of operations that follow each other.
    """
    if right.dtype.kind != "f":
        return 0.0
    lengths = [n for x in arguments if isinstance(x, np.ndarray) for n in x.shape]
    differences = np.stack([apart(np.asarray(x), right) for x in moved])
    rounded = float(np.finfo(right.dtype).eps) * largest(np.abs(right[np.isfinite(right)]))
    return 16 * max(8, *lengths, 0) * (largest(differences[np.isfinite(differences)]) + rounded)


def changed(arguments: Arguments, eps: float) -> Iterator[Arguments]:
    """The arguments three times, each number of an array times 1 plus at most eps."""
    for rng in map(np.random.default_rng, range(3)):
        yield tuple(
            x * (1 + eps * rng.uniform(-1, 1, x.shape))
            if isinstance(x, np.ndarray) and x.dtype.kind != "b"
            else x
            for x in arguments
        )


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute differences; 0 between equal infinities, inf where one side is not finite."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.subtract(a, b, dtype="float64"))
    return np.where(a == b, 0.0, np.nan_to_num(difference, nan=math.inf, posinf=math.inf))


def largest(x: np.ndarray) -> float:
    """The largest element; 0 without any."""
    return float(x.max(initial=0.0))


Row = tuple[str, str]
"""A line of a message: its label and its text."""


def compared(got: Any, right: Any, allowed: float) -> tuple[str, list[Row]] | None:
    """What is wrong with ``got`` in one line, and the numbers; None if nothing is."""
    x, expected = numbers(got), np.asarray(right)
    if x is None:
        found = "None" if got is None else f"no numbers, but {reprlib.repr(got)}"
        forms = {list: "a list of integers", float: "a number"}
        form = forms.get(type(right), f"an array of shape {expected.shape}")
        return f"it returns {found}: return {form}", []
    what = _wrong_form(x, expected)
    if what:
        return what, [("expected", shown(expected)), ("got", shown(x))]
    difference = apart(x, expected)
    if largest(difference) <= allowed:
        return None
    what = "the result has NaN" if np.isnan(x).any() else "the values are wrong"
    return what, [*_worst(x, expected, difference, allowed)]


def numbers(got: Any) -> np.ndarray | None:
    """The array of a result; None if it is none of numbers."""
    try:
        x = np.asarray(got)
    except (ValueError, TypeError, RuntimeError):  # uneven rows; tensors that NumPy cannot read
        return None
    return x if x.dtype.kind in KINDS else None


def _wrong_form(x: np.ndarray, expected: np.ndarray) -> str | None:
    """What is wrong with the shape or the dtype. A wider floating-point dtype is right."""
    if x.shape != expected.shape:
        return f"the shape is {x.shape}, not {expected.shape}"
    if x.size and KINDS[x.dtype.kind] != KINDS[expected.dtype.kind]:
        return f"the result must be {KINDS[expected.dtype.kind]}, not {KINDS[x.dtype.kind]}"
    if x.size and x.dtype.kind == "f" and x.dtype.itemsize < expected.dtype.itemsize:
        return f"the result is {x.dtype}, not {expected.dtype}: keep the dtype of the arguments"
    return None


def _worst(
    x: np.ndarray, expected: np.ndarray, difference: np.ndarray, allowed: float
) -> Iterator[Row]:
    """Both arrays, or their worst element if they are large, and the difference."""
    at = np.unravel_index(difference.argmax(), difference.shape)
    place = f" at {[int(i) for i in at]}" if at else ""
    if expected.size > FEW:
        yield "expected", f"{expected[at]:.9g}{place}"
        yield "got", f"{x[at]:.9g}"
    else:
        yield "expected", shown(expected)
        yield "got", shown(x)
    if allowed and math.isfinite(difference[at]):
        text = f"by {difference[at]:.2g}{place}; rounding explains at most {allowed:.1g}"
        yield "differs", text


def shown(x: Any) -> str:
    """An argument or a result in one line: the elements if they are few, otherwise the shape."""
    if not isinstance(x, np.ndarray):
        return repr(x)
    if x.size > FEW:
        return f"{x.dtype} array of shape {x.shape}"
    text = np.array2string(x, precision=5, separator=", ", max_line_width=10**6)
    return " ".join(text.split()) + (f" ({x.dtype})" if x.dtype == "float32" else "")
