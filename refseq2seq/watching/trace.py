"""A trace: the quantities of one computation under their names."""

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Self

from ..backend import Array, to_numpy
from ..shown import Shown
from ..taps import FunctionTap
from .patterns import check_pattern


class Trace(Shown, Mapping[str, Array]):
    """A tap that records quantities: a mapping from full names to arrays, in order.

    Parameters
    ----------
    *patterns : str
        Record only names that match one of these shell patterns; by default all names.

    Raises
    ------
    ValueError
        If a pattern matches no name in `refseq2seq.watching.quantities`, or when a name is recorded
        twice: use one trace for each computation.
    TypeError
        If a pattern is not a str.

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

    def __call__(self, name: str, x: Array) -> Array:
        if any(fnmatchcase(name, pattern) for pattern in self._patterns):
            if name in self._arrays:
                raise ValueError(f"{name} has passed already: use one Trace per computation")
            self._arrays[name] = x
        return x

    def at(self, place: object) -> FunctionTap:
        return FunctionTap(self).at(place)

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            raise KeyError(f"{name} is not among the {len(self)} arrays that {self._patterns} kept")
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the arrays to an ``.npz`` file, uncompressed, under their names and in order.

        An existing file is replaced in one step, or stays as it is when writing fails.
        """
        from ..files import npz  # here, because its many imports are rarely needed

        npz.write(path, ((f"{name}.npy", to_numpy(x)) for name, x in self.items()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The trace that `save` wrote, on the host.

        Numbers may be infinite or NaN: scores are -inf where a token is removed, and a trace
        may record a fault.

        Raises
        ------
        FileError
            If the file is not an uncompressed ``.npz`` file of numbers, as written by
            ``numpy.savez``.
        """
        from ..files import npz
        from ..files.reading import file_errors

        trace = cls()
        with file_errors(path), npz.entries(path) as entries:
            for name, entry in entries.items():
                trace(name.removesuffix(".npy"), entry.array())
        return trace
