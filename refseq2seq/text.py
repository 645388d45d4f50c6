"""Between text and token ids."""

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Protocol

import numpy as np

from .config import Config


class UnknownSymbolError(ValueError):
    """A text has a symbol that the vocabulary lacks."""


class Tokenizer(Protocol):
    """What a model needs to read and write text: a `Vocabulary`, or another's tokenizer."""

    @property
    def symbols(self) -> Sequence[str]:
        """How each id is shown."""

    @property
    def definition(self) -> str:
        """A string that determines what `encode` and `decode` compute."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special symbols are left out."""


def symbol(tokenizer: Tokenizer, token: int) -> str:
    """How a token is shown; a model's table may be longer than its vocabulary, as T5's is."""
    symbols = tokenizer.symbols
    return symbols[token] if token < len(symbols) else f"<{token}>"


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Config):
    """A list of symbols; the id of a symbol is its place, counted from 0.

    Parameters
    ----------
    symbols : tuple of str
        All different.
    separator : str
        What stands between symbols in a text; ``""`` when each character is a symbol.
    special : tuple of str
        Symbols that mean something else than text, such as ``<pad>``: never read from a
        text, left out of one.
    replacements : tuple of (character, text) pairs
        Made in a text before its symbols are looked up: ``("A", "a")`` folds a letter,
        ``("2", "two")`` spells a digit out.

    Examples
    --------
    >>> letters = Vocabulary(
    ...     symbols=("<pad>", "a", "b"),
    ...     separator="",
    ...     special=("<pad>",),
    ...     replacements=(("A", "a"),),
    ... )
    >>> letters.encode("Abba")
    [1, 2, 2, 1]
    >>> letters.decode([1, 2, 0])
    'ab'
    """

    symbols: tuple[str, ...]
    separator: str
    special: tuple[str, ...]
    replacements: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError("Vocabulary.symbols must all be different")
        if unknown := sorted(set(self.special) - set(self.symbols)):
            raise ValueError(f"Vocabulary.special must be among the symbols, got {unknown}")
        for pair in self.replacements:
            if len(pair) != 2 or len(pair[0]) != 1 or len(pair[1]) > 100:
                raise ValueError(
                    "Vocabulary.replacements must be pairs of a character and a text of at most "
                    f"100, got {reprlib.repr(pair)}"
                )

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def definition(self) -> str:
        """Its fields as JSON."""
        return json.dumps(self.to_dict())

    @cached_property
    def _ids(self) -> dict[str, int]:
        special = set(self.special)
        return {s: i for i, s in enumerate(self.symbols) if s not in special}

    def encode(self, text: str) -> list[int]:
        """The ids of the text's symbols; an empty text has none.

        Raises
        ------
        UnknownSymbolError
            Naming the symbols that the vocabulary lacks.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, got {type(text).__name__}")
        replaced = text.translate({ord(character): new for character, new in self.replacements})
        symbols = replaced.split(self.separator) if self.separator and replaced else list(replaced)
        ids = self._ids
        if unknown := sorted({s for s in symbols if s not in ids}):
            names = ", ".join(map(repr, unknown))
            known = ", ".join(map(repr, ids)) if len(ids) <= 60 else f"{len(ids)} symbols"
            raise UnknownSymbolError(f"{text!r} has unknown symbols: {names}. Known are: {known}")
        return [ids[s] for s in symbols]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special symbols are left out.

        Raises
        ------
        TypeError, ValueError
            If an id is not an integer, or out of range.
        """
        if outside := [i for i in map(index, ids) if not 0 <= i < len(self)]:
            raise ValueError(f"the vocabulary has ids 0 to {len(self) - 1}, got {outside[0]}")
        symbols = (self.symbols[i] for i in ids)
        return self.separator.join(s for s in symbols if s not in self.special)
