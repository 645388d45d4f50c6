"""Reading input lines and answering them; every kind of input uses this definition of a line."""

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from ..checks import as_tokens
from ..files.reading import one_line
from ..generation.beam import beam_search, beam_steps
from ..generation.loop import decode_steps, generate
from ..model import Model, check_fits
from .sounds import read_frames, reads_frames

Answer = dict[str, Any]
"""The ``input`` of a line, and its ``samples`` with their ``text``, ``tokens`` and ``log_probs`` in
nats, or the ``error`` that explains why there are none. A sound has ``seconds``."""


@dataclass(frozen=True)
class Line:
    """A line of input: its number, counted from 0, its text, and an error if it is not UTF-8."""

    number: int
    text: str
    error: str | None = None


def read_lines(file: Iterable[bytes], first: int = 0) -> Iterator[Line]:
    r"""The lines of a binary file, numbered from ``first``.

    Only LF or CRLF ends a line: a lone CR, a form feed or U+2028 is text. A byte order mark at
    the start of line 0 is skipped. A line that is not UTF-8 has an error.

    Examples
    --------
    >>> [line.text for line in read_lines([b"\xef\xbb\xbfcat\r\n", b"a\rb\n", b"dog"])]
    ['cat', 'a\rb', 'dog']
    """
    for number, line in enumerate(file, start=first):
        content = line[:-1].removesuffix(b"\r") if line.endswith(b"\n") else line
        content = content.removeprefix(codecs.BOM_UTF8) if number == 0 else content
        try:
            yield Line(number, content.decode())
        except UnicodeDecodeError as error:
            yield Line(number, content.decode(errors="replace"), f"not UTF-8: {error}")


def check_method(model: Model, method: dict[str, Any]) -> None:
    """Raise if the model does not support the method, independently of the input."""
    steps = beam_steps if "beams" in method else decode_steps
    width = getattr(model.config.encoder.input, "n_features", None)
    source = [np.zeros((1, width))] if width else [[0]]
    steps(model, source, **{name: x for name, x in method.items() if name != "n_best"})


def encoded(model: Model, line: Line) -> tuple[list[int] | np.ndarray, Answer]:
    """The token ids or frames of a line, [] if it is empty, and further fields of its answer.

    Raises ValueError if the model cannot encode it.
    """
    if line.error:
        raise ValueError(line.error)
    if not line.text:
        return [], {}
    if reads_frames(model):
        frames, seconds = read_frames(model, line.text)
        return frames, {"seconds": seconds}
    if line.text.lower().endswith(".wav") and os.path.exists(line.text):
        raise ValueError(
            f"{line.text} is a sound; the model reads texts: give a Whisper to --model"
        )
    ids = model.source_vocabulary.encode(line.text)  # type: ignore[union-attr]
    if not ids:
        raise ValueError(f"{line.text!r} has no tokens")
    as_tokens("source", [ids], model.config.encoder.vocab_size)
    check_fits("source", len(ids), model.config.encoder)
    return ids, {}


def failure(number: int, error: Exception) -> str:
    """The error message of a line; messages count lines from 1."""
    return f"line {number + 1}: {one_line(str(error)) or 'out of memory'}"


def answers(
    model: Model,
    lines: Iterable[Line],
    method: dict[str, Any],
    batch_size: int,
    advance: Callable[[int], object] = lambda n: None,
) -> list[Answer]:
    """Compute the answers, in the order of the lines; lines of similar length share a batch.

    ``method`` has the arguments of `beam_search` if it has ``beams``, otherwise of `generate`.
    ``advance`` is called with the number of lines that were answered since the last call.
    """
    found: list[Answer] = []
    to_do: list[tuple[int, Any, Answer]] = []
    for line in lines:
        answer: Answer = {"input": line.text}
        found.append(answer)
        try:
            source, fields = encoded(model, line)
            answer |= fields
            if len(source):
                to_do.append((line.number, source, answer))
            else:
                answer["samples"] = []
        except ValueError as error:
            answer["error"] = failure(line.number, error)
    advance(len(found) - len(to_do))
    to_do.sort(key=lambda entry: -len(entry[1]))  # longest first: too little memory fails early
    for start in range(0, len(to_do), batch_size):
        batch = to_do[start : start + batch_size]
        _answer(model, batch, method)
        advance(len(batch))
    return found


def _answer(model: Model, batch: list[tuple[int, Any, Answer]], method: Any) -> None:
    """Complete the answers of a batch; if that fails, answer its lines one at a time."""
    numbers, source, answers = zip(*batch, strict=True)
    try:
        found = _outputs(model, list(source), numbers, method)
    except (ValueError, MemoryError) as error:
        if len(batch) > 1:
            for entry in batch:
                _answer(model, [entry], method)
        else:
            answers[0]["error"] = failure(numbers[0], error)
        return
    for answer, samples in zip(answers, found, strict=True):
        answer["samples"] = samples


def _outputs(
    model: Model, source: Sequence[Any], numbers: Sequence[int], method: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    """The samples, or the hypotheses with their scores, of each row.

    The random numbers of a sample depend only on the number of its line and the seed. The method
    contains what the model's settings ask for.
    """
    model = replace(model, settings=None)
    if "beams" in method:
        found = beam_search(model, source, **method)
        tokens, log_probs, lengths = found.tokens, found.log_probs, found.lengths
        return [
            [
                _output(model, tokens[i, k], log_probs[i, k], lengths[i, k]) | {"score": score}
                for k, score in enumerate(scores)
                if score > -np.inf
            ]
            for i, scores in enumerate(found.scores.tolist())
        ]
    out = generate(model, source, row_ids=numbers, **method)
    rows = zip(out.tokens, out.log_probs, out.lengths, out.finished.tolist(), strict=True)
    samples = (_output(model, *row) | {"finished": finished} for *row, finished in rows)
    return [list(islice(samples, method["num_return_sequences"])) for _ in source]


def _output(model: Model, tokens: np.ndarray, log_probs: np.ndarray, n: int) -> dict[str, Any]:
    return {
        "text": model.target_vocabulary.decode(tokens[:n]),  # type: ignore[union-attr]
        "tokens": tokens[:n].tolist(),
        "log_probs": log_probs[:n].tolist(),
    }
