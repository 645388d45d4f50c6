"""Checks of numbers that a caller gives; ``name`` is what the error calls them.

They return the number as Python has it: a NumPy scalar would wrap around at the end of its
range, or turn float32 arrays into float64.
"""

from typing import Any

import numpy as np


def check_int(name: str, x: Any, low: int) -> int:
    """``x`` as an int. Raise unless it is an integer of at least ``low``; a bool is not one."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    if x < low:
        raise ValueError(f"{name} must be at least {low}, got {x}")
    return int(x)


def check_number(
    name: str, x: Any, low: float, high: float, low_open: bool = False, high_open: bool = False
) -> float:
    """``x`` as a float. Raise unless it is a number from ``low`` to ``high``; an open end is
    left out, and NaN is never in between.
    """
    if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}")
    if not (low < x if low_open else low <= x) or not (x < high if high_open else x <= high):
        interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
        raise ValueError(f"{name} must be in {interval}, got {x}")
    try:
        return float(x)
    except OverflowError as error:
        raise ValueError(f"{name} must be a number that a float can hold") from error
