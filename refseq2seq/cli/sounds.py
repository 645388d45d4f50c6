"""Sounds instead of texts: for Whisper, a line is the path of a WAV file."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..config import FrameInput
from ..files.reading import file_errors
from ..generation.configured import PROMPT
from ..model import Model
from ..settings import Settings
from ..speech import log_mel, prompt, read_wav, segments, special_ids
from ..speech.mel import WINDOW
from ..speech.sound import RATE
from ..speech.whisper import NO_TIMESTAMPS


def reads_frames(model: Model) -> bool:
    """Whether the model reads frames, not tokens."""
    return isinstance(model.config.encoder.input, FrameInput)


def read_frames(model: Model, path: str) -> tuple[np.ndarray, float]:
    """The features (n_frames, n_mels) of a WAV file, and its length in seconds.

    All errors are ValueErrors that name the path.
    """
    try:
        with file_errors(path):
            waveform = read_wav(path).astype(np.float64)
            seconds = len(waveform) / RATE
            if len(waveform) > WINDOW:
                raise ValueError(
                    f"it has {seconds:.2f} s of sound, and Whisper reads at most 30 s: see "
                    "docs/examples/transcribe.py for longer ones (docs/speech.md)"
                )
            return log_mel(waveform, model.config.encoder.input.n_features), seconds  # type: ignore[union-attr]
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; the model reads speech: give paths of WAV files"
        ) from error


def with_prompt(model: Model, options: argparse.Namespace) -> Model:
    """The model, with the prompt of the options or its own as ``settings.prefix``.

    Without settings, as from CTranslate2, it decodes greedily, up to half as many tokens as it has
    positions for.
    """
    tokenizer: Any = model.target_vocabulary
    language, target = options.source_language, options.target_language
    try:
        no_timestamps = special_ids(tokenizer)[NO_TIMESTAMPS]
    except ValueError as error:
        raise ValueError(
            f"{options.model} reads frames and is not a Whisper: compute its frames in Python, and "
            "call rs.generate(model, frames)"
        ) from error
    if target not in (None, "en", language):
        raise ValueError(f"--target-language must be en, to translate into English, got {target}")

    most = (model.config.decoder.max_length or 448) // 2
    settings = model.settings or Settings(max_new_tokens=most, top_k=0)
    prefix, moot = list(settings.prefix), set()
    if options.timestamps:
        prefix, moot = [i for i in prefix if i != no_timestamps], {"return_timestamps"}
    lacks_one = model.settings is None or "language" in dict(settings.not_implemented)
    if (language, target) != (None, None) or lacks_one:
        task = "translate" if target == "en" != language else "transcribe"
        try:
            prefix = prompt(tokenizer, language, task, timestamps=options.timestamps)[1:]
        except ValueError as error:
            raise ValueError(f"--source-language, --target-language: {error}") from error
        moot |= PROMPT
    left = tuple(field for field in settings.not_implemented if field[0] not in moot)
    return replace(model, settings=replace(settings, prefix=tuple(prefix), not_implemented=left))


def add_segments(model: Model, answers: Iterable[dict[str, Any]]) -> None:
    """Add to each sample its ``segments``, with the fields of `refseq2seq.speech.Segment`."""
    tokenizer: Any = model.target_vocabulary
    for answer in answers:
        for sample in answer.get("samples", ()):
            found = segments(sample["tokens"], tokenizer, duration=answer["seconds"])
            sample["segments"] = [asdict(segment) for segment in found]


def segment_lines(samples: Iterable[dict[str, Any]]) -> Iterable[str]:
    """A line for each segment: its start, its end (- if it is unfinished) and its text."""
    for part in (part for sample in samples for part in sample["segments"]):
        end = "-" if part["end"] is None else f"{part['end']:.2f}"
        yield f"{part['start']:.2f} {end} {part['text'].strip()}"
