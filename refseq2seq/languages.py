"""The languages of sources and targets, for models whose tokenizer knows languages.

The token of the source's language is part of the source. The token of the target's language is
forced as the first new token (M2M100, NLLB, mBART-50) or starts the target (mBART-cc25).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .model import Model
from .text import MultilingualTokenizer

Language = str | Sequence[str]
"""The code of a language such as ``"de"``, or a code for each text."""


def encode_texts(model: Model, texts: Sequence[str], language: Language | None) -> list[list[int]]:
    """The ids of each text in its language, by default the tokenizer's."""
    tokenizer: Any = model.source_vocabulary
    if language is None:
        return [tokenizer.encode(text) for text in texts]
    codes = _checked("source_language", language, tokenizer, len(texts))
    return [tokenizer.encode(text, code) for text, code in zip(texts, codes, strict=True)]


def toward(model: Model, language: Language, n_texts: int) -> dict[str, Any]:
    """The option of `refseq2seq.decode_steps` for the languages of the targets."""
    tokenizer: Any = model.target_vocabulary
    codes = _checked("target_language", language, tokenizer, n_texts)
    ids = [tokenizer.language_ids[code] for code in codes]
    return {"prefix": [[i] for i in ids]} if tokenizer.starts_target else {"forced_bos_ids": ids}


def between(model: Model, source: str | None, target: str | None) -> Model:
    """The model with other default languages. None keeps its own."""
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
