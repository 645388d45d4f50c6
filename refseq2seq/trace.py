"""Looking inside: every named quantity passes a tap.

A function that computes named quantities takes ``tap=no_tap`` and writes
``scores = tap("scores", ...)``. A tap is called with a name and an array and returns the
array that the computation goes on with: the same one, to watch, or another, to see what a
fault does. ``tap.at("decoder.layers.0")`` is the tap that puts this prefix before names.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol, Self

from .backend import Array, to_numpy
from .watching.patterns import check_pattern


class Tap(Protocol):
    """What a tap can do."""

    def __call__(self, name: str, x: Array) -> Array:
        """The array to go on with in the place of ``x``."""

    def at(self, place: object) -> "Tap":
        """The tap whose names all begin with ``place`` and a dot."""


class NoTap:
    """The tap that lets everything pass."""

    def __call__(self, name: str, x: Array) -> Array:
        return x

    def at(self, place: object) -> "NoTap":
        return self


no_tap = NoTap()


def check_tap(tap: Any) -> None:
    """Raise unless ``tap`` is a tap; `FunctionTap` makes one of a function."""
    if not (callable(tap) and callable(getattr(tap, "at", None))):
        cure = "write rs.FunctionTap(function)" if callable(tap) else "such as rs.Trace()"
        raise TypeError(f"tap must be a Tap, got {type(tap).__name__}: {cure}")


class RoundingTap:
    """Rounds each named quantity to float16 once, and continues in float32.

    A float16 model computes under this tap; ``tap`` sees the float16 arrays.
    """

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def __call__(self, name: str, x: Array) -> Array:
        return self._tap(name, x.astype("float16")).astype("float32")

    def at(self, place: object) -> "RoundingTap":
        return RoundingTap(self._tap.at(place))


class FunctionTap:
    """A tap made of a function ``(full name, array) -> array``.

    Examples
    --------
    A fault: the scores of the first layer's cross-attention, doubled.

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


class Trace(Mapping[str, Array]):
    """A tap that keeps what passes: a mapping from full names to arrays, in order.

    Parameters
    ----------
    *patterns : str
        Keep only names that match one of these shell patterns; all names if none given.

    Raises
    ------
    ValueError
        If a pattern matches the name of no quantity of `refseq2seq.watching.quantities`, or when a
        name passes twice: use one trace for one computation.
    TypeError
        If a pattern is no str.

    Examples
    --------
    >>> import numpy as np
    >>> trace = Trace("*.scores")
    >>> x = trace.at("decoder")("scores", np.ones(2))
    >>> list(trace)
    ['decoder.scores']
    """

    def __init__(self, *patterns: str) -> None:
        for pattern in patterns:
            check_pattern(pattern)
        self._patterns = patterns or ("*",)
        self._arrays: dict[str, Array] = {}
        self._tap = FunctionTap(self._keep)

    def _keep(self, name: str, x: Array) -> Array:
        if any(fnmatchcase(name, pattern) for pattern in self._patterns):
            if name in self._arrays:
                raise ValueError(f"{name} has passed already: use one Trace per computation")
            self._arrays[name] = x
        return x

    def __call__(self, name: str, x: Array) -> Array:
        return self._keep(name, x)

    def at(self, place: object) -> FunctionTap:
        return self._tap.at(place)

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            raise KeyError(f"{name} is not among the {len(self)} arrays that {self._patterns} kept")
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} arrays>"

    def _repr_html_(self) -> str:
        from .watching import notebook

        return notebook.trace(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the arrays to an ``.npz`` file, uncompressed, under their names and in order.

        An existing file is replaced in one step, or stays as it is when writing fails.
        """
        from .files import npz  # here, because it imports much that is seldom needed

        npz.write(path, ((f"{name}.npy", to_numpy(x)) for name, x in self.items()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The trace that `save` wrote, on the host.

        Numbers may be infinite or NaN: scores are -inf where a token is removed, and a trace
        may be that of a fault.

        Raises
        ------
        FileError
            If the file is not an ``.npz`` file of numbers that is not compressed, such as
            ``numpy.savez`` writes it.
        """
        from .files import npz
        from .files.reading import file_errors

        trace = cls()
        with file_errors(path), npz.entries(path) as entries:
            for name, entry in entries.items():
                trace(name.removesuffix(".npy"), entry.array().copy("K"))
        return trace
