"""How objects show themselves: as a line by ``repr``, and as a table in a notebook."""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

SYMBOLS: WeakKeyDictionary[Any, Callable[[int], str]] = WeakKeyDictionary()
"""The printable form of the tokens of a result, if its model has a vocabulary. It is no field of
the result, so that all fields are arrays, and a pickle has no vocabulary."""


class Shown:
    """Base of the classes whose line and table are in `refseq2seq.watching.notebook`."""

    __slots__ = ()

    def __repr__(self) -> str:
        from .watching import notebook

        return f"<{notebook.described(self).caption}>".replace("\n", "\\n")

    def _repr_html_(self) -> str:
        from .watching import notebook

        return notebook.html(notebook.described(self))

    def symbols_of(self, tokens: Iterable[int]) -> list[str]:
        """The printable form of tokens; their ids if the model has no vocabulary."""
        return [*map(SYMBOLS.get(self, str), tokens)]
