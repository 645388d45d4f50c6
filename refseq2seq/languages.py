"""The languages of a text and of its translation, for models whose tokenizer knows languages.

The token of the source's language is part of the source. That of the target's language is
forced as the first new token (M2M100, NLLB, mBART-50), or starts the target (mBART-cc25).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .model import Model
from .text import Tokenizer

Language = str | Sequence[str]
"""The code of a language such as ``"de"``, or a code for each text."""


@dataclass(frozen=True)
class MultilingualTokenizer:
    """A tokenizer of texts whose language is one of several, each with a token of its own.

    ``pieces`` encodes a text with its end token; `encode` adds the token of its language.
    """

    pieces: Tokenizer
    language_ids: Mapping[str, int]  # the token of each code
    language: str  # of texts for which none is given
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
        """The token of a language; ValueError, which names the argument, if there is none."""
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


def encode_texts(model: Model, texts: Sequence[str], language: Language | None) -> list[list[int]]:
    """The ids of each text in its language, by default the tokenizer's."""
    tokenizer: Any = model.source_vocabulary
    if language is None:
        return [tokenizer.encode(text) for text in texts]
    codes = _checked("source_language", language, tokenizer, len(texts))
    return [tokenizer.encode(text, code) for text, code in zip(texts, codes, strict=True)]


def toward(model: Model, language: Language, n_texts: int) -> dict[str, Any]:
    """The option of `refseq2seq.decode_steps` for the target's language."""
    tokenizer: Any = model.target_vocabulary
    codes = _checked("target_language", language, tokenizer, n_texts)
    ids = [tokenizer.language_ids[code] for code in codes]
    return {"prefix": [[i] for i in ids]} if tokenizer.starts_target else {"forced_bos_ids": ids}


def between(model: Model, source: str | None, target: str | None) -> Model:
    """The same model with other languages by default; None keeps its own."""
    tokenizer: Any
    if source is not None:
        tokenizer = model.source_vocabulary
        _checked("source_language", source, tokenizer, 1)
        model = replace(model, source_vocabulary=replace(tokenizer, language=source))
    if target is not None:
        tokenizer = model.target_vocabulary
        _checked("target_language", target, tokenizer, 1)
        field: Any = "decoder_start_id" if tokenizer.starts_target else "forced_bos_id"
        token = {field: tokenizer.language_ids[target]}
        model = replace(model, config=replace(model.config, **token))
    return model


def _checked(argument: str, language: Any, tokenizer: Any, n_texts: int) -> Sequence[str]:
    """The code of the language of each text."""
    if not isinstance(tokenizer, MultilingualTokenizer):
        raise ValueError(
            f"{argument} = {language!r:.99} is for a tokenizer that knows languages, such as that "
            f"of NLLB, M2M100 or mBART, got {type(tokenizer).__name__}: leave it out"
        )
    codes = [language] * n_texts if isinstance(language, str) else language
    if not (isinstance(codes, Sequence) and all(isinstance(code, str) for code in codes)):
        raise TypeError(f"{argument} must be a code, or one for each text, got {language!r:.200}")
    if len(codes) != n_texts:
        raise ValueError(
            f"{argument} must have a code for each of {n_texts} texts, got {len(codes)}"
        )
    for code in codes:
        tokenizer.language_id(code, argument)
    return codes
