"""The tokenizers in a model's directory, with the interface `refseq2seq.text.Tokenizer`."""

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
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ...files.reading import FileError, file_errors, parse_json, read_bytes, read_json
from ...text import MultilingualTokenizer, Tokenizer, UnknownSymbolError
from .common import Fields

JSON, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPIECE, BPE = "spiece.model", "sentencepiece.bpe.model"
VOCAB, TARGET_VOCAB = "vocab.json", "target_vocab.json"
MARIAN = ("source.spm", "target.spm")


class Form(NamedTuple):
    """How a class of tokenizers marks the languages of source and target."""

    token: str  # a regular expression that matches the tokens of languages; its group is the code
    default: str  # the source's language if tokenizer_config.json has no src_lang
    language_first: bool
    starts_target: bool


FORMS = {
    "M2M100Tokenizer": Form(r"__([a-z]{2,3})__", "en", True, False),
    "NllbTokenizer": Form(r"([a-z]{3}_[A-Z][a-z]{3})", "eng_Latn", True, False),
    "MBart50Tokenizer": Form(r"([a-z]{2}_[A-Z]{2})", "en_XX", True, False),
    "MBartTokenizer": Form(r"([a-z]{2}_[A-Z]{2})", "en_XX", False, True),
}

LANGUAGES_OF_M2M100 = {  # in the order of their ids, which no file states
    "m2m100": """af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga
        gd gl gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk
        ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th
        tl tn tr uk ur uz vi wo xh yi yo zh zu""",
    "wmt21": "en ha is ja cs ru zh de",
}

LANGUAGES_OF_MBART = {
    "MBartTokenizer": """ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX
        kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN """
}
LANGUAGES_OF_MBART["MBart50Tokenizer"] = (
    LANGUAGES_OF_MBART["MBartTokenizer"]
    + """af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF
        pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"""
)


class Vocabularies(TypedDict, total=False):
    """The fields of `Model` that a directory may fill."""

    source_vocabulary: Tokenizer
    target_vocabulary: Tokenizer


def read_tokenizers(directory: Path, c: Fields) -> Vocabularies:
    """The tokenizers of source and target, if the directory has some that can be read.

    M2M100 has a SentencePiece model and ``vocab.json``. ``tokenizer.json`` is preferred for every
    other model; then the SentencePiece models of mBART, T5, mT5, UMT5 and Marian, and ByT5, which
    has no file. The ids of the other families' pieces are not stated in any file.
    """

    def has(*names: str) -> bool:
        return all(os.path.lexists(directory / name) for name in names)

    settings = read_json(directory / SETTINGS) if has(SETTINGS) else {}
    kind, model_type, vocab_size = _tokenizer_class(settings, c), c["model_type"], c["vocab_size"]
    form = FORMS.get(kind)
    if model_type == "whisper":  # it reads speech
        if not has(JSON):
            return {}
        return {"target_vocabulary": JsonTokenizer.of_whisper(directory / JSON, vocab_size)}
    source: Tokenizer
    if kind == "M2M100Tokenizer" and has(VOCAB, BPE):
        source = SentencePieceTokenizer.of_m2m100(directory, settings, vocab_size)
    elif has(JSON):
        source = JsonTokenizer.read(directory / JSON, vocab_size, form)
    elif kind in LANGUAGES_OF_MBART and has(BPE):
        source = SentencePieceTokenizer.of_mbart(directory / BPE, kind, vocab_size)
    elif kind == "ByT5Tokenizer":
        source = ByteTokenizer()
    elif model_type in ("t5", "mt5", "umt5") and has(SPIECE):
        source = SentencePieceTokenizer.of_t5(directory / SPIECE)
    elif model_type == "marian" and has(*MARIAN, VOCAB):
        ids = _read_ids(directory / VOCAB, vocab_size)
        target = _read_ids(directory / TARGET_VOCAB, vocab_size) if has(TARGET_VOCAB) else ids
        return {
            "source_vocabulary": SentencePieceTokenizer.of_marian(directory / MARIAN[0], ids),
            "target_vocabulary": SentencePieceTokenizer.of_marian(directory / MARIAN[1], target),
        }
    else:
        return {}
    if form:
        source = _multilingual(source, kind, settings)
    return {"source_vocabulary": source, "target_vocabulary": source}


def _tokenizer_class(settings: Mapping[str, Any], c: Fields) -> str:
    """The name of the class in transformers, without the ending ``Fast`` of older versions."""
    of_type = {"m2m_100": "M2M100Tokenizer", "mbart": "MBartTokenizer"}.get(c["model_type"])
    stated = settings.get("tokenizer_class") or c.get("tokenizer_class") or of_type
    return str(stated).removesuffix("Fast")


def _multilingual(
    pieces: Tokenizer, kind: str, settings: Mapping[str, Any]
) -> MultilingualTokenizer:
    """The tokenizer that adds the token of a language to those of ``pieces``.

    As in transformers, the class determines the place of this token, not ``tokenizer.json``.
    """
    form = FORMS[kind]
    found = [(re.fullmatch(form.token, token), i) for i, token in enumerate(pieces.symbols)]
    if not (ids := {match[1]: i for match, i in found if match}):
        raise FileError(
            f"no token of the tokenizer is a language, such as {form.default}, which {kind} needs: "
            "correct tokenizer_class in tokenizer_config.json"
        )
    stated = settings.get("src_lang")
    if stated is not None and stated not in list(ids):
        raise FileError(
            f"tokenizer_config.json: src_lang = {stated!r:.99} is none of its {len(ids)} languages"
        )
    return MultilingualTokenizer(
        pieces,
        ids,
        language=stated or form.default,
        language_first=form.language_first and settings.get("legacy_behaviour") is not True,
        starts_target=form.starts_target,
    )


@dataclass(frozen=True)
class JsonTokenizer:
    """A ``tokenizer.json``. ``encode`` adds its special tokens to a text."""

    tokenizer: Any  # tokenizers.Tokenizer

    @classmethod
    def read(cls, path: Path, vocab_size: int, form: Form | None = None) -> "JsonTokenizer":
        """Read a file with the package tokenizers. With a form, ``encode`` adds only ``</s>``."""
        with _reading("tokenizers", path) as (tokenizers, content):
            parse_json(content)  # raises unless it is a JSON object of limited size
            with _package_errors("tokenizers"):
                tokenizer = tokenizers.Tokenizer.from_buffer(content)
                tokenizer.no_truncation()
                tokenizer.no_padding()
                ids = tokenizer.get_vocab(with_added_tokens=True)
                if form:
                    languages = [token for token in ids if re.fullmatch(form.token, token)]
                    tokenizer.add_special_tokens(languages)  # each is one token in a text
                    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                        single=["$A", "</s>"], special_tokens=[("</s>", ids["</s>"])]
                    )
            _check_ids(ids, vocab_size)
        return cls(tokenizer)

    @classmethod
    def of_whisper(cls, path: Path, vocab_size: int) -> "JsonTokenizer":
        """As `read`; times such as ``<|0.02|>`` are special tokens too, as for transformers."""
        read = cls.read(path, vocab_size)
        times = [token for token in read.symbols if re.fullmatch(r"<\|\d+\.\d+\|>", token)]
        read.tokenizer.add_special_tokens(times)
        return read

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
    """A SentencePiece model and the id of each piece. ``encode`` appends ``</s>``.

    A special token that a text contains, such as ``</s>``, is text here, unlike in transformers.
    """

    processor: Any  # sentencepiece.SentencePieceProcessor
    ids: Mapping[str, int]
    special: frozenset[str]
    strips: bool = True  # whether decode removes spaces around a text
    is_marian: bool = False  # True: a text may begin with a language code such as >>fr<<

    @classmethod
    def of_t5(cls, path: Path) -> "SentencePieceTokenizer":
        """The tokenizer of T5. Ids are those of the model, without ``<extra_id_0>`` and so on."""
        processor, pieces = _processor(path)
        ids = {piece: i for i, piece in enumerate(pieces)}
        special = frozenset(
            piece for piece, i in ids.items() if processor.is_control(i) or processor.is_unknown(i)
        )
        return cls(processor, ids, special, strips=False)

    @classmethod
    def of_marian(cls, path: Path, ids: Mapping[str, int]) -> "SentencePieceTokenizer":
        """The model of one of Marian's languages, with the ids of its pieces."""
        return cls(_processor(path)[0], ids, frozenset(("</s>", "<unk>", "<pad>")), is_marian=True)

    @classmethod
    def of_mbart(cls, path: Path, kind: str, vocab_size: int) -> "SentencePieceTokenizer":
        """The ids of mBART, which no file states: fairseq's special tokens replace the model's."""
        processor, pieces = _processor(path)
        special = ("<s>", "<pad>", "</s>", "<unk>")
        languages = LANGUAGES_OF_MBART[kind].split()
        tokens = [*special, *pieces[3:], *languages, "<mask>"]
        if len(tokens) > vocab_size:
            raise FileError(
                f"{path}: its {len(pieces)} pieces and the {len(languages)} languages of {kind} "
                f"make {len(tokens)} tokens, but the model has {vocab_size}"
            )
        ids = {token: i for i, token in enumerate(tokens)}
        return cls(processor, ids, frozenset((*special, "<mask>")))

    @classmethod
    def of_m2m100(
        cls, directory: Path, settings: Mapping[str, Any], vocab_size: int
    ) -> "SentencePieceTokenizer":
        """M2M100's ids of pieces are in a file; those of languages follow, in a fixed order."""
        ids = _read_ids(directory / VOCAB, vocab_size)
        name = str(settings.get("language_codes", "m2m100"))
        if name not in LANGUAGES_OF_M2M100:
            known = ", ".join(LANGUAGES_OF_M2M100)
            raise FileError(
                f"tokenizer_config.json: language_codes = {name!r:.99}; known are {known}"
            )
        codes = LANGUAGES_OF_M2M100[name].split()
        languages = {f"__{code}__": len(ids) + i for i, code in enumerate(codes)}
        special = frozenset(("<s>", "</s>", "<unk>", "<pad>"))
        return cls(_processor(directory / BPE)[0], ids | languages, special)

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
        """The ids of a text. A code such as ``>>fr<<`` at the start of Marian's is one token."""
        codes = re.findall(r"^>>.+?<<", text) if self.is_marian else []
        text = text.removeprefix("".join(codes))
        with _package_errors("sentencepiece", UnknownSymbolError):
            encoded = self.processor.encode(text, out_type=str)
        pieces = [*codes, *encoded, "</s>"]
        unknown = self.ids["<unk>"]
        return [self.ids.get(piece, unknown) for piece in pieces]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, without special tokens and ids that have no piece."""
        pieces = [self.symbols[i] for i in map(int, ids) if i < len(self.symbols)]
        text = str(self.processor.decode([p for p in pieces if p and p not in self.special]))
        if self.is_marian:  # a piece of the other language, which this model does not know
            text = text.replace("\u2581", " ")
        return text.strip() if self.strips else text


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
        for token, purpose in (("<unk>", "for pieces without an id"), ("</s>", "for the end")):
            if token not in ids:
                raise FileError(f"it has no {token}, the token {purpose}")
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
    """An optional package, and the content of the file at ``path`` that it reads."""
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
    """Reraise an error of a package as a ``kind``. A Rust panic is one, though no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"the package {package} cannot process it: {error}") from error


def _by_id(ids: Mapping[str, int]) -> tuple[str, ...]:
    tokens = {i: token for token, i in ids.items()}
    return tuple(tokens.get(i, "") for i in range(max(tokens) + 1))
