"""Taps: functions that observe or change the named quantities of a computation.

A function that computes named quantities takes ``tap=no_tap`` and writes
``scores = tap("scores", ...)``. A tap is called with a name and an array, and returns the array
that the computation continues with: the same one, to observe it, or another, to see the effect
of a fault. ``tap.at("decoder.layers.0")`` is a tap that prepends this prefix to names.
"""

from collections.abc import Callable
from typing import Any, Protocol

from .backend import Array


class Tap(Protocol):
    """The methods of a tap."""

    def __call__(self, name: str, x: Array) -> Array:
        """The array to continue with instead of ``x``."""

    def at(self, place: object) -> "Tap":
        """A tap that prepends ``place`` and a dot to names."""


class NoTap:
    """A tap that returns every array unchanged."""

    def __call__(self, name: str, x: Array) -> Array:
        return x

    def at(self, place: object) -> "NoTap":
        return self


no_tap = NoTap()


def check_tap(tap: Any) -> None:
    """Raise unless ``tap`` is a tap; for a function, suggest `FunctionTap`."""
    if not (callable(tap) and callable(getattr(tap, "at", None))):
        cure = "write rs.FunctionTap(function)" if callable(tap) else "such as rs.Trace()"
        raise TypeError(f"tap must be a Tap, got {type(tap).__name__}: {cure}")


class RoundingTap:
    """A tap that rounds each named quantity to float16 once and continues in float32.

    Float16 models use this tap; ``tap`` receives the float16 arrays.
    """

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def __call__(self, name: str, x: Array) -> Array:
        return self._tap(name, x.astype("float16")).astype("float32")

    def at(self, place: object) -> "RoundingTap":
        return RoundingTap(self._tap.at(place))


class FunctionTap:
    """A tap that calls a function ``(full name, array) -> array``.

    Examples
    --------
    A fault that doubles the scores of the first layer's cross-attention:

    >>> def double(name, x):
    ...     return 2 * x if name == "decoder.layers.0.cross_attention.scores" else x
    >>> tap = FunctionTap(double).at("decoder.layers.0.cross_attention")
    >>> tap("scores", 3.0), tap("weights", 3.0)
    (6.0, 3.0)
    """

    def __init__(self, function: Callable[[str, Array], Array], prefix: str = "") -> None:
        self._function = function
        self._prefix = prefix

    def __call__(self, name: str, x: Array) -> Array:
        return self._function(self._prefix + name, x)

    def at(self, place: object) -> "FunctionTap":
        return FunctionTap(self._function, f"{self._prefix}{place}.")
