"""The tokenizers that lie beside a model, with the methods of `refseq2seq.text.Tokenizer`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ...text import Tokenizer
from .files import missing_extra, read_json

JSON = "tokenizer.json"
SENTENCEPIECE = "spiece.model"
MARIAN = ("source.spm", "target.spm", "vocab.json")


class Vocabularies(TypedDict, total=False):
    """The fields of `Model` that a directory may fill."""

    source_vocabulary: Tokenizer
    target_vocabulary: Tokenizer


def read_tokenizers(directory: Path, model_type: str) -> Vocabularies:
    """The source's and the target's tokenizer, where there is one that can be read.

    ``tokenizer.json`` comes first, whatever the model; then ByT5, which has no file; then
    the SentencePiece models of T5, mT5, UMT5 and Marian. The other families number their
    pieces in ways that no file states.
    """
    source: Tokenizer
    target: Tokenizer
    if (directory / JSON).exists():
        source = target = JsonTokenizer.read(directory / JSON)
    elif _tokenizer_class(directory) == "ByT5Tokenizer":
        source = target = ByteTokenizer()
    elif model_type in ("t5", "mt5", "umt5") and (directory / SENTENCEPIECE).exists():
        source = target = SentencePieceTokenizer.of_t5(directory / SENTENCEPIECE)
    elif model_type == "marian" and all((directory / name).exists() for name in MARIAN):
        source, target = SentencePieceTokenizer.pair_of_marian(directory)
    else:
        return {}
    return {"source_vocabulary": source, "target_vocabulary": target}


def _tokenizer_class(directory: Path) -> str | None:
    path = directory / "tokenizer_config.json"
    return read_json(path).get("tokenizer_class") if path.exists() else None


@dataclass(frozen=True)
class JsonTokenizer:
    """A ``tokenizer.json``, with the special tokens that it adds around a text."""

    tokenizer: Any  # tokenizers.Tokenizer

    @classmethod
    def read(cls, path: Path) -> "JsonTokenizer":
        """Read a file; the package tokenizers does it."""
        try:
            import tokenizers
        except ImportError as error:
            raise missing_extra("tokenizers", path) from error
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The token of each id."""
        return _by_id(self.tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special tokens are left out."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model and the id of each piece; ``</s>`` is added to a text."""

    processor: Any  # sentencepiece.SentencePieceProcessor
    ids: Mapping[str, int]
    special: frozenset[str]

    @classmethod
    def of_t5(cls, path: Path) -> "SentencePieceTokenizer":
        """T5 numbers the pieces as their model does; its ``<extra_id_0>`` are no pieces."""
        processor = _processor(path)
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        special = {
            piece
            for i, piece in enumerate(pieces)
            if processor.is_control(i) or processor.is_unknown(i)
        }
        return cls(processor, {piece: i for i, piece in enumerate(pieces)}, frozenset(special))

    @classmethod
    def pair_of_marian(
        cls, directory: Path
    ) -> tuple["SentencePieceTokenizer", "SentencePieceTokenizer"]:
        """Marian has a model for each language, and numbers the pieces in a file of its own."""
        special = frozenset(("</s>", "<unk>", "<pad>"))
        source_ids = read_json(directory / "vocab.json")
        target = directory / "target_vocab.json"
        target_ids = read_json(target) if target.exists() else source_ids
        return (
            cls(_processor(directory / "source.spm"), source_ids, special),
            cls(_processor(directory / "target.spm"), target_ids, special),
        )

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The piece of each id."""
        return _by_id(self.ids)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. One that begins with ``>>fr<<`` begins with that token."""
        code, text = re.fullmatch(r"(>>.+?<<)?(.*)", text, re.DOTALL).groups(default="")  # type: ignore[union-attr]
        pieces = [code] * bool(code) + self.processor.encode(text, out_type=str) + ["</s>"]
        unknown = self.ids["<unk>"]
        return [self.ids.get(piece, unknown) for piece in pieces]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special tokens, and ids that no piece has, are left out."""
        pieces = [self.symbols[i] for i in map(int, ids) if i < len(self.symbols)]
        return str(self.processor.decode([p for p in pieces if p and p not in self.special]))


@dataclass(frozen=True)
class ByteTokenizer:
    """ByT5's: the bytes of a text in UTF-8, each plus 3, and 1 for its end."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Special tokens, then the bytes."""
        return ("<pad>", "</s>", "<unk>", *(chr(byte) for byte in range(256)))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [byte + 3 for byte in text.encode()] + [1]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; what is not UTF-8 is left out."""
        return bytes(int(i) - 3 for i in ids if 3 <= i < 259).decode(errors="ignore")


def _processor(path: Path) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise missing_extra("sentencepiece", path) from error
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _by_id(ids: Mapping[str, int]) -> tuple[str, ...]:
    tokens = {i: token for token, i in ids.items()}
    return tuple(tokens.get(i, "") for i in range(max(tokens) + 1))
