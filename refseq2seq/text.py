"""Conversion between text and token ids."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import index
from string import ascii_lowercase
from typing import Protocol, TypeVar

import numpy as np

from .config import Config
from .shown import SYMBOLS

T = TypeVar("T")


class UnknownSymbolError(ValueError):
    """A text contains a symbol that is not in the vocabulary."""


class Tokenizer(Protocol):
    """The interface of a model's tokenizers. A `Vocabulary` has it."""

    @property
    def symbols(self) -> Sequence[str]:
        """The printable form of each id."""

    @property
    def definition(self) -> str:
        """A string that determines the results of `encode` and `decode`."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special symbols."""


def symbol(tokenizer: Tokenizer, token: int) -> str:
    """The printable form of a token, or ``<id>`` for a token beyond the vocabulary."""
    symbols = tokenizer.symbols
    return symbols[token] if token < len(symbols) else f"<{token}>"


def name_tokens(result: T, tokenizer: Tokenizer | None) -> T:
    """The same result, which then shows the tokenizer's symbols in the place of token ids."""
    if tokenizer is not None:
        SYMBOLS[result] = partial(symbol, tokenizer)
    return result


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Config):
    """A list of symbols; the id of a symbol is its index in the list.

    Parameters
    ----------
    symbols : tuple of str
        All different.
    separator : str
        The text between symbols; ``""`` if each character is a symbol.
    special : tuple of str
        Symbols that do not represent text, such as ``<pad>``. `encode` never returns their
        ids, and `decode` omits them.
    replacements : tuple of (character, text) pairs
        Replacements in a text before its symbols are looked up: ``("A", "a")`` changes a letter
        to lower case, ``("2", "two")`` spells out a digit.

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

    def _check(self) -> None:
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError("Vocabulary.symbols must all be different")
        if unknown := sorted(set(self.special) - set(self.symbols)):
            raise ValueError(f"Vocabulary.special must be among the symbols, got {unknown}")
        for pair in self.replacements:
            if len(pair[0]) != 1 or len(pair[1]) > 100:
                raise ValueError(
                    "Vocabulary.replacements must be pairs of a character and a text of at most "
                    f"100 characters, got {reprlib.repr(pair)}"
                )

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def definition(self) -> str:
        """The fields of the vocabulary as JSON."""
        return json.dumps(self.to_dict())

    @cached_property
    def _ids(self) -> dict[str, int]:
        special = set(self.special)
        return {s: i for i, s in enumerate(self.symbols) if s not in special}

    def encode(self, text: str) -> list[int]:
        """The ids of the text's symbols; [] for an empty text.

        Raises
        ------
        TypeError
            If ``text`` is not a string.
        UnknownSymbolError
            If the text contains symbols that are not in the vocabulary. The message names them.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, got {type(text).__name__}")
        replaced = text.translate({ord(character): new for character, new in self.replacements})
        symbols = replaced.split(self.separator) if self.separator and replaced else list(replaced)
        ids = self._ids
        if unknown := sorted({s for s in symbols if s not in ids}):
            names = _listed(unknown).replace("' '", "' ' (space)")
            known = _listed(ids) if len(ids) <= 60 else f"{len(ids)} symbols"
            raise UnknownSymbolError(f"{text!r} has unknown symbols: {names}. Known are: {known}")
        return [ids[s] for s in symbols]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special symbols.

        Raises
        ------
        TypeError
            If an id is not an integer.
        ValueError
            If an id is out of range.
        """
        if outside := [i for i in map(index, ids) if not 0 <= i < len(self)]:
            raise ValueError(f"the vocabulary has ids 0 to {len(self) - 1}, got {outside[0]}")
        symbols = (self.symbols[i] for i in ids)
        return self.separator.join(s for s in symbols if s not in self.special)


def _listed(symbols: Iterable[str]) -> str:
    """Symbols in quotes, and ``'a' to 'z'`` for the alphabet."""
    listed, alphabet = (", ".join(map(repr, x)) for x in (symbols, ascii_lowercase))
    return listed.replace(alphabet, "'a' to 'z'")


@dataclass(frozen=True)
class MultilingualTokenizer:
    """A tokenizer of texts in several languages, each of which has a token.

    ``pieces`` encodes a text with its end token, and `encode` adds the token of the language.
    """

    pieces: Tokenizer
    language_ids: Mapping[str, int]  # the token of each code
    language: str  # of a text whose language is not given
    language_first: bool  # True: before the text; False: after its end token
    starts_target: bool  # True: the target starts with its language; False: it is forced

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes, in the order of their tokens."""
        return tuple(sorted(self.language_ids, key=self.language_ids.__getitem__))

    @property
    def symbols(self) -> Sequence[str]:
        """The printable form of each id."""
        return self.pieces.symbols

    @property
    def definition(self) -> str:
        """A string that determines the results of `encode` and `decode`."""
        return repr(replace(self, pieces=self.pieces.definition))  # type: ignore[arg-type]

    def language_id(self, code: str, argument: str = "language") -> int:
        """The token of a language. If there is none, a ValueError names the argument."""
        if code in self.language_ids:
            return self.language_ids[code]
        from difflib import get_close_matches  # here, because it is rarely needed

        near = get_close_matches(code, self.languages, n=3, cutoff=0.4)
        raise ValueError(
            f"{argument} = {code!r} is none of the tokenizer's {len(self.languages)} languages, "
            f"such as {', '.join(near or self.languages[:3])}"
        )

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """The ids of a text in a language, by default ``self.language``."""
        code = self.language_id(self.language if language is None else language, "source_language")
        ids = self.pieces.encode(text)
        return [code, *ids] if self.language_first else [*ids, code]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special tokens and languages."""
        languages = set(self.language_ids.values())
        return self.pieces.decode([int(i) for i in ids if int(i) not in languages])
