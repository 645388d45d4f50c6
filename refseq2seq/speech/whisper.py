"""The tokens around Whisper's text: the prompt before it, and the timestamps in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..checks import check_number, on_host
from ..text import Tokenizer

START, END, NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
TASKS = ("transcribe", "translate")
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
END_OF_GPT2 = 50_256  # also <|endoftext|> of the models of English only, tiny.en to medium.en
STEP = 0.02  # seconds between successive timestamps, and between outputs of the encoder


@dataclass(frozen=True)
class Segment:
    """A segment of speech. Times are in seconds."""

    start: float
    end: float | None  # None: unfinished
    tokens: tuple[int, ...]  # of the text, without timestamps
    text: str


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of each token ``<|...|>`` of a Whisper tokenizer, such as ``<|endoftext|>``.

    Many tokenizers lack timestamps, whose ids are those above ``<|notimestamps|>``. Raises
    ValueError for a tokenizer of another model, and for what is none.
    """
    symbols = getattr(tokenizer, "symbols", ())
    ids = {s: i for i, s in enumerate(symbols) if s[:2] == "<|" and s[-2:] == "|>"}
    if missing := [name for name in (START, END, NO_TIMESTAMPS) if name not in ids]:
        raise ValueError(
            "tokenizer must be that of a Whisper model, such as model.target_vocabulary, but "
            f"{type(tokenizer).__name__} has no {missing[0]}"
        )
    return ids


def prompt(
    tokenizer: Tokenizer,
    language: str | None = None,
    task: str = "transcribe",
    *,
    timestamps: bool = False,
) -> list[int]:
    """The prefix for Whisper: ``<|startoftranscript|><|de|><|transcribe|><|notimestamps|>``.

    That of an English-only model, recognised by GPT-2's id of ``<|endoftext|>``, has no language
    and no task.

    Parameters
    ----------
    tokenizer : Tokenizer
        That of the model.
    language : str, optional
        The code of the spoken language, such as ``"de"``. Required for a multilingual model.
    task : {"transcribe", "translate"}
        Transcribe, or translate into English.
    timestamps : bool
        True leaves out ``<|notimestamps|>``. See also `refseq2seq.timestamp_rules`.

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If the tokenizer does not have the language or the task.

    Examples
    --------
    >>> from refseq2seq import Vocabulary
    >>> names = "endoftext startoftranscript de en translate transcribe notimestamps".split()
    >>> symbols = ("a", *(f"<|{name}|>" for name in names))
    >>> tokens = Vocabulary(symbols=symbols, separator="", special=symbols[1:], replacements=())
    >>> prompt(tokens, "de", "translate")
    [2, 3, 5, 7]
    """
    if not isinstance(timestamps, bool):
        raise TypeError(f"timestamps must be a bool, got {timestamps!r:.99}")
    ids = special_ids(tokenizer)
    spoken = {match[1]: i for name, i in ids.items() if (match := LANGUAGE.fullmatch(name))}
    tasks = {task: ids[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in ids}
    end = [] if timestamps else [ids[NO_TIMESTAMPS]]
    is_english = ids[END] == END_OF_GPT2 or not spoken
    known = TASKS if is_english else tuple(tasks)  # no dict, because anything might be given
    if task not in known:
        raise ValueError(f"task must be one of {', '.join(known)}; got {task!r:.99}")
    if is_english:
        if language not in (None, "en") or task != "transcribe":
            raise ValueError(
                f"language = {language!r:.99} and task = {task!r:.99} need a multilingual model, "
                "but this one is English-only: leave them out"
            )
        return [ids[START], *end]
    if language not in tuple(spoken):
        raise ValueError(f"language must be one of {', '.join(spoken)}; got {language!r:.99}")
    return [ids[START], spoken[language], tasks[task], *end]


def segments(
    tokens: Sequence[int] | np.ndarray, tokenizer: Tokenizer, *, duration: float = 30.0
) -> list[Segment]:
    """Split Whisper's tokens into timed segments, between two successive timestamps.

    Parameters
    ----------
    tokens : sequence of int, or integer array, shape (n,)
        The new tokens of one window, without the prefix, up to ``<|endoftext|>``.
    tokenizer : Tokenizer
        That of the model.
    duration : float
        The length of the sound in seconds: the end of a text without timestamps.

    Returns
    -------
    list of Segment
        At least one. Only the last of several may have no end, if the text is cut off; it may be
        empty. Continue a longer sound where the segment before it ends, otherwise where this
        window ends.

    Raises
    ------
    TypeError, ValueError
        If the tokens are not one row of ids, or an id is above the timestamp of 30 s.

    Notes
    -----
    openai/whisper's ``transcribe`` has the same rules but drops an unfinished segment. There, a
    single segment always starts at 0, and ends at its last timestamp even if it begins with it.

    Examples
    --------
    >>> from refseq2seq import Vocabulary
    >>> names = "endoftext startoftranscript notimestamps 0.00 0.02 0.04".split()
    >>> symbols = ("a", "b", *(f"<|{name}|>" for name in names))
    >>> tokens = Vocabulary(symbols=symbols, separator="", special=symbols[2:], replacements=())
    >>> for segment in segments([5, 0, 6, 6, 1, 7, 2], tokens):
    ...     print(segment.start, segment.end, segment.text)
    0.0 0.02 a
    0.02 0.04 b
    """
    duration = check_number("duration", duration, "(0, 30]")
    ids = special_ids(tokenizer)
    end_id, first = ids[END], ids[NO_TIMESTAMPS] + 1
    array, last = on_host("tokens", tokens), first + round(30 / STEP)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"tokens must be integers (n,), such as out.tokens[0], got {array.dtype} {array.shape}"
        )
    given = array.tolist()
    if not all(0 <= token <= last for token in given):
        raise ValueError(f"tokens must be from 0 to {last}, which is 30 s, got {given!r:.99}")
    given = given[: given.index(end_id)] if end_id in given else given

    pieces = [given[:1]]
    for before, token in pairwise(given):
        if before >= first and token >= first:
            pieces.append([])
        pieces[-1].append(token)

    def segment(piece: list[int]) -> Segment:
        end: float | None
        times = [round((token - first) * STEP, 2) for token in piece if token >= first]
        start = times.pop(0) if piece and piece[0] >= first else 0.0
        if len(pieces) == 1:
            end = times[-1] if times else duration
        else:
            end = times[-1] if times and piece[-1] >= first else None
        text = tuple(token for token in piece if token < end_id)
        return Segment(start, end, text, tokenizer.decode(text))

    return [segment(piece) for piece in pieces]
