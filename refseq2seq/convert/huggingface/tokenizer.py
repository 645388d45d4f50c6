"""The tokenizers in a model's directory, with the methods of `refseq2seq.text.Tokenizer`."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ...files.reading import FileError, file_errors, parse_json, read_bytes, read_json
from ...text import Tokenizer, UnknownSymbolError
from .common import Fields

JSON = "tokenizer.json"
SENTENCEPIECE = "spiece.model"
MARIAN = ("source.spm", "target.spm", "vocab.json")


class Vocabularies(TypedDict, total=False):
    """The fields of `Model` that a directory may fill."""

    source_vocabulary: Tokenizer
    target_vocabulary: Tokenizer


def read_tokenizers(directory: Path, c: Fields) -> Vocabularies:
    """The source's and the target's tokenizer, if the directory has one that can be read.

    ``tokenizer.json`` is preferred for every model; then ByT5, which has no file; then the
    SentencePiece models of T5, mT5, UMT5 and Marian. The ids of the other families' pieces
    are not stated in any file.
    """
    source: Tokenizer
    target: Tokenizer
    model_type = c["model_type"]
    if os.path.lexists(directory / JSON):
        source = target = JsonTokenizer.read(directory / JSON, c["vocab_size"])
    elif _tokenizer_class(directory) == "ByT5Tokenizer":
        source = target = ByteTokenizer()
    elif model_type in ("t5", "mt5", "umt5") and os.path.lexists(directory / SENTENCEPIECE):
        source = target = SentencePieceTokenizer.of_t5(directory / SENTENCEPIECE)
    elif model_type == "marian" and all(os.path.lexists(directory / name) for name in MARIAN):
        source, target = SentencePieceTokenizer.pair_of_marian(directory, c["vocab_size"])
    else:
        return {}
    return {"source_vocabulary": source, "target_vocabulary": target}


def _tokenizer_class(directory: Path) -> Any:
    path = directory / "tokenizer_config.json"
    return read_json(path).get("tokenizer_class") if os.path.lexists(path) else None


@dataclass(frozen=True)
class JsonTokenizer:
    """A ``tokenizer.json``; ``encode`` adds its special tokens to a text."""

    tokenizer: Any  # tokenizers.Tokenizer

    @classmethod
    def read(cls, path: Path, vocab_size: int) -> "JsonTokenizer":
        """Read a file with the package tokenizers."""
        with _reading("tokenizers", path) as (tokenizers, content):
            parse_json(content)  # raises unless it is a JSON object of limited size
            with _package_errors("tokenizers"):
                tokenizer = tokenizers.Tokenizer.from_buffer(content)
                tokenizer.no_truncation()
                tokenizer.no_padding()
                ids = tokenizer.get_vocab(with_added_tokens=True)
            _check_ids(ids, vocab_size)
        return cls(tokenizer)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The token of each id."""
        return _by_id(self.tokenizer.get_vocab(with_added_tokens=True))

    @property
    def definition(self) -> str:
        """The ``tokenizer.json`` as the package writes it."""
        return str(self.tokenizer.to_str())

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        with _package_errors("tokenizers", UnknownSymbolError):
            return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special tokens."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """A SentencePiece model and the id of each piece; ``encode`` appends ``</s>``."""

    processor: Any  # sentencepiece.SentencePieceProcessor
    ids: Mapping[str, int]
    special: frozenset[str]

    @classmethod
    def of_t5(cls, path: Path) -> "SentencePieceTokenizer":
        """Ids of T5, which are those of the model; ``<extra_id_0>`` and so on are not pieces."""
        processor, pieces = _processor(path)
        special = {
            piece
            for i, piece in enumerate(pieces)
            if processor.is_control(i) or processor.is_unknown(i)
        }
        return cls(processor, {piece: i for i, piece in enumerate(pieces)}, frozenset(special))

    @classmethod
    def pair_of_marian(
        cls, directory: Path, vocab_size: int
    ) -> tuple["SentencePieceTokenizer", "SentencePieceTokenizer"]:
        """Marian has a model for each language, and the ids of the pieces in a separate file."""
        source_ids = _read_ids(directory / "vocab.json", vocab_size)
        target = directory / "target_vocab.json"
        target_ids = _read_ids(target, vocab_size) if os.path.lexists(target) else source_ids
        return (
            cls.of_marian(directory / "source.spm", source_ids),
            cls.of_marian(directory / "target.spm", target_ids),
        )

    @classmethod
    def of_marian(cls, path: Path, ids: Mapping[str, int]) -> "SentencePieceTokenizer":
        """The model of one of Marian's languages, with the ids of its pieces."""
        return cls(_processor(path)[0], ids, frozenset(("</s>", "<unk>", "<pad>")))

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The piece of each id."""
        return _by_id(self.ids)

    @property
    def definition(self) -> str:
        """JSON of the SHA-256 of the model, the ids and the special tokens."""
        model = hashlib.sha256(self.processor.serialized_model_proto()).hexdigest()
        return json.dumps([model, dict(self.ids), sorted(self.special)])

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A language code such as ``>>fr<<`` at its start is one token."""
        code, text = re.fullmatch(r"(>>.+?<<)?(.*)", text, re.DOTALL).groups(default="")  # type: ignore[union-attr]
        with _package_errors("sentencepiece", UnknownSymbolError):
            encoded = self.processor.encode(text, out_type=str)
        pieces = [code] * bool(code) + encoded + ["</s>"]
        unknown = self.ids["<unk>"]
        return [self.ids.get(piece, unknown) for piece in pieces]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special tokens and ids that have no piece."""
        pieces = [self.symbols[i] for i in map(int, ids) if i < len(self.symbols)]
        return str(self.processor.decode([p for p in pieces if p and p not in self.special]))


@dataclass(frozen=True)
class ByteTokenizer:
    """The tokenizer of ByT5: the UTF-8 bytes of a text, each plus 3, then 1 for the end."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Three special tokens, then the 256 bytes."""
        return ("<pad>", "</s>", "<unk>", *(chr(byte) for byte in range(256)))

    @property
    def definition(self) -> str:
        """A constant, since ByT5 has no variants."""
        return "ByT5"

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [byte + 3 for byte in text.encode()] + [1]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special tokens and bytes that are not valid UTF-8."""
        return bytes(int(i) - 3 for i in ids if 3 <= i < 259).decode(errors="ignore")


def _processor(path: Path) -> tuple[Any, list[str]]:
    """A SentencePiece model, and its pieces in the order of their ids."""
    with _reading("sentencepiece", path) as (sentencepiece, content):
        if not content:  # the package accepts an empty file
            raise FileError("it is empty")
        with _package_errors("sentencepiece"):
            processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            return processor, [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def _read_ids(path: Path, vocab_size: int) -> dict[str, int]:
    """The id of each piece, from a JSON file."""
    with file_errors(path):
        ids = read_json(path)
        _check_ids(ids, vocab_size)
        if "<unk>" not in ids:
            raise FileError("it has no <unk>, the token for pieces without an id")
    return ids


def _check_ids(ids: Mapping[str, Any], vocab_size: int) -> None:
    """Raise unless ids are integers in [0, vocab_size + len(ids)); gaps are allowed."""
    if not ids:
        raise FileError("it has no tokens")
    for token, i in ids.items():
        if type(i) is not int or not 0 <= i < vocab_size + len(ids):
            raise FileError(
                f"{token!r} has id {i!r}; expected an integer from 0, and less than "
                f"{vocab_size + len(ids)} for {len(ids)} tokens of a model with {vocab_size}"
            )


@contextmanager
def _reading(package: str, path: Path) -> Iterator[tuple[Any, bytes]]:
    """An optional package that reads the file at ``path``, and the content of the file."""
    try:
        module = import_module(package)
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the package {package}: "
            'python -m pip install "refseq2seq[huggingface]"'
        ) from error
    with file_errors(path):
        yield module, read_bytes(path)


@contextmanager
def _package_errors(package: str, kind: type[ValueError] = FileError) -> Iterator[None]:
    """Reraise any error of a package as a ``kind``, also a Rust panic, which is no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"the package {package} cannot process it: {error}") from error


def _by_id(ids: Mapping[str, int]) -> tuple[str, ...]:
    tokens = {i: token for token, i in ids.items()}
    return tuple(tokens.get(i, "") for i in range(max(tokens) + 1))
