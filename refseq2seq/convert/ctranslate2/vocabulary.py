"""The vocabularies and tokenizers of a directory of CTranslate2."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from ...checks import UnsupportedFeature
from ...config import check_type, from_json
from ...files.reading import FileError, file_errors, parse_json, read_bytes
from ...text import Tokenizer, UnknownSymbolError
from ..huggingface.tokenizer import JSON, MARIAN, JsonTokenizer, SentencePieceTokenizer

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class SpacedTokens:
    """Texts of tokens separated by spaces, the input of CTranslate2. A text may have any token.

    `encode` adds the engine's tokens ``first`` and ``last``, and replaces unknown tokens with
    ``unknown``. `decode` omits the tokens in ``special``, and ids without a token.
    """

    symbols: Tokens
    first: Tokens
    last: Tokens
    unknown: str
    special: Tokens

    @property
    def definition(self) -> str:
        """The fields as JSON."""
        return json.dumps([self.symbols, self.first, self.last, self.unknown, self.special])

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token, or the first id where tokens are equal."""
        return {token: i for i, token in reversed(list(enumerate(self.symbols)))}

    def id(self, token: str) -> int:
        """The id of a token; FileError if it is not in the vocabulary."""
        if token not in self.ids:
            raise FileError(f"{token!r} is not in the vocabulary")
        return self.ids[token]

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        words = [*self.first, *(text.split(" ") if text else []), *self.last]
        ids = [self.ids.get(word, self.ids.get(self.unknown, -1)) for word in words]
        if -1 in ids:
            raise UnknownSymbolError(f"{text!r} has unknown tokens: {words[ids.index(-1)]!r}")
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The tokens of the ids."""
        tokens = (self.symbols[i] for i in map(int, ids) if i < len(self.symbols))
        return " ".join(token for token in tokens if token not in self.special)


def read_tokens(directory: Path, stems: Sequence[str], size: int) -> Tokens:
    """The token of each id, from the first file of these names that exists, as JSON or text."""
    names = [f"{stem}.{kind}" for stem in stems for kind in ("json", "txt")]
    path = next((directory / n for n in names if os.path.lexists(directory / n)), None)
    if path is None:
        raise FileError(f"it has none of {', '.join(names)}")
    with file_errors(path):
        content = read_bytes(path)
        if path.suffix == ".json":
            tokens: Tokens = from_json("tokens", Tokens, parse_json(content, list))
            check_type("tokens", Tokens, tokens)
        else:
            lines = content.decode().removesuffix("\n").split("\n")
            if all(line.endswith("\r") for line in lines):  # otherwise it belongs to a token
                lines = [line[:-1] for line in lines]
            tokens = tuple(lines)
        if len(tokens) != size:
            raise FileError(f"it has {len(tokens)} tokens, but model.bin has {size}")
    return tokens


def tokenizers(
    directory: Path, source: SpacedTokens, target: SpacedTokens, is_marian: bool
) -> list[Tokenizer | None]:
    """The tokenizers of the source and the target, from the files beside the model."""
    sides = (source, target)
    if os.path.lexists(directory / JSON):
        if source.first or source.last:
            raise UnsupportedFeature(f"{JSON} where config.json adds tokens too: remove {JSON}")
        tokenizer = JsonTokenizer.read(directory / JSON, len(source.symbols))
        for side in sides:
            _check_same(tokenizer, side)
        return [tokenizer, tokenizer]
    if is_marian and not source.first and all(os.path.lexists(directory / n) for n in MARIAN):
        for side, token in product(sides, ("<unk>", "</s>")):
            side.id(token)  # raises unless it is there
        models = (directory / name for name in MARIAN)
        return [
            SentencePieceTokenizer.of_marian(m, s.ids) for m, s in zip(models, sides, strict=True)
        ]
    # With a space inside a token, a text does not determine the tokens.
    return [None if " " in "".join(side.symbols) else side for side in sides]


def tokenizer_of_speech(directory: Path, target: SpacedTokens) -> Tokenizer:
    """The tokenizer of Whisper's texts, from ``tokenizer.json`` if there is one."""
    if not os.path.lexists(directory / JSON):
        return target
    tokenizer = JsonTokenizer.of_whisper(directory / JSON, len(target.symbols))
    _check_same(tokenizer, target)
    return tokenizer


def _check_same(tokenizer: JsonTokenizer, side: SpacedTokens) -> None:
    for i, (a, b) in enumerate(zip(tokenizer.symbols, side.symbols, strict=False)):
        if a not in ("", b):
            raise FileError(f"the token {i} is {a!r} in {JSON}, but {b!r} in a vocabulary")
