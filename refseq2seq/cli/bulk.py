"""``refseq2seq generate --input FILE --output FILE``: many lines, in a run that may be killed.

The input is read in windows. The lines of a window are sorted by length, so that a batch
has little padding; when all are answered, the window is appended to ``OUTPUT.part`` in the
order of the input. So memory holds one window, and a killed run has lost one at most: the
same command again drops an unfinished window and goes on from there, in the same
batches, to the same bytes. ``OUTPUT.run`` says what the run was asked for; another
request is refused. At the end ``OUTPUT.part`` becomes ``OUTPUT``.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import __version__
from ..backend import to_numpy
from ..failures import NonFiniteLogitsError
from ..model import Model, check_fits
from ..params import named_arrays
from .lines import Line, encoded, outputs

NOT_ASKED = {"run", "usage_error", "texts", "input", "output", "model", "json", "steps"}
"""Options that do not change a line of the output; input and model are told by what they hold."""

ERROR = b', "error": '  # between quotes of a text it would be escaped

Answer = dict[str, Any]
"""What is written for a line: ``input``, and ``samples`` or ``error``."""


def generate_file(model: Model, method: dict[str, Any], options: argparse.Namespace) -> None:
    """Answer every line of the input in a line of the output, or go on where a run ended.

    Raises
    ------
    ValueError
        If the input is no file, or changed while it was read; if the output is there already or
        belongs to another run; and, when all is written, if some lines have no answer.
    """
    output: Path = options.output
    if options.input.exists() and not options.input.is_file():
        raise ValueError(f"--output needs a file as --input, to read it twice; got {options.input}")
    part, run = (output.with_name(f"{output.name}.{end}") for end in ("part", "run"))
    digest, total = _digest_of_file(options.input)
    _begin(output, part, run, _asked(model, digest, options))
    if not output.exists():
        with open(part, "a+b") as file:
            _lock(file)
            done = _keep_whole_windows(file, options.window)
            with _progress(done, total) as advance:
                for window in _windows(options.input, done, options.window):
                    _append(file, _answers(model, window, method, options.batch_size, advance))
        if _digest_of_file(options.input) != (digest, total):
            raise ValueError(
                f"{options.input} changed while it was read: remove {part.name} and {run.name} "
                "to begin anew"
            )
        os.replace(part, output)
    run.unlink()
    _report_failures(output)


def _begin(output: Path, part: Path, run: Path, asked: dict[str, Any]) -> None:
    """Note what the run is asked for, or check that it is what was noted."""
    if not run.exists():
        for path in (output, part):
            if path.exists():
                raise ValueError(f"{path} is there already: choose another output")
        new = run.with_name(f"{run.name}.new")
        new.write_text(json.dumps(asked, indent=1), encoding="utf-8")
        os.replace(new, run)
    begun = json.loads(run.read_text(encoding="utf-8"))
    for name in begun | asked:
        if begun.get(name) != asked.get(name):
            raise ValueError(
                f"{name} is not what {part} was begun with: it was {begun.get(name)}, now it is "
                f"{asked.get(name)}. Ask for the same again, or remove {part.name} and "
                f"{run.name} to begin anew"
            )


def _asked(model: Model, digest: str, options: argparse.Namespace) -> dict[str, Any]:
    """All that the bytes of the output depend on, but the machine and its threads."""
    given = {name: value for name, value in vars(options).items() if name not in NOT_ASKED}
    return {
        "the input": digest,
        "the model": _digest_of_model(model),
        **{f"--{name.replace('_', '-')}": value for name, value in sorted(given.items())},
        "the version of refseq2seq": __version__,
        "the version of NumPy": np.__version__,
    }


def _digest_of_file(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and how many lines it has."""
    digest, n, last = hashlib.sha256(), 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            n, last = n + block.count(b"\n"), block[-1:]
    return f"of SHA-256 {digest.hexdigest()}", n + (last != b"\n")


def _digest_of_model(model: Model) -> str:
    """The SHA-256 of conventions, symbols and numbers."""
    vocabularies = [
        list(v.symbols) if v else None for v in (model.source_vocabulary, model.target_vocabulary)
    ]
    digest = hashlib.sha256(json.dumps([model.config.to_dict(), vocabularies]).encode())
    for name, array in named_arrays(model.params):
        digest.update(f"{name} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(to_numpy(array)).data)
    return f"of SHA-256 {digest.hexdigest()}"


def _lock(file: IO[bytes]) -> None:
    """Hold the file for this process, where the system can."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{file.name} is being written by another process") from error


def _keep_whole_windows(file: IO[bytes], size: int) -> int:
    """Cut off what comes after the last whole window; how many lines are left."""
    file.seek(0)
    kept = end = place = 0
    for n, line in enumerate(file, start=1):
        place += len(line)
        if n % size == 0 and line.endswith(b"\n"):
            kept, end = n, place
    file.truncate(end)
    return kept


@contextmanager
def _progress(done: int, total: int) -> Iterator[Callable[[int], object]]:
    """A function to say that so many lines more are done: a bar where somebody watches."""
    if sys.stderr.isatty():
        with suppress(ImportError):
            from tqdm import tqdm

            with tqdm(initial=done, total=total, unit=" lines", delay=1) as bar:
                yield bar.update
                return
    yield lambda n: None


def _windows(path: Path, done: int, size: int) -> Iterator[list[tuple[int, bytes]]]:
    """The lines after the first ``done``, with their numbers, ``size`` at a time."""
    with open(path, "rb") as file:
        numbered = islice(enumerate(file), done, None)
        while window := list(islice(numbered, size)):
            yield window


def _answers(
    model: Model,
    window: list[tuple[int, bytes]],
    method: dict[str, Any],
    batch_size: int,
    advance: Callable[[int], object],
) -> list[Answer]:
    """What is written for each line of a window; lines of similar length share a batch."""
    answers: list[Answer] = []
    to_do: list[tuple[int, list[int], Answer]] = []
    for number, content in window:
        answer, ids = _read(model, number, content)
        answers.append(answer)
        if ids:
            to_do.append((number, ids, answer))
    advance(len(window) - len(to_do))
    to_do.sort(key=lambda entry: -len(entry[1]))  # the longest first: memory shows at once
    for start in range(0, len(to_do), batch_size):
        batch = to_do[start : start + batch_size]
        _answer(model, batch, method)
        advance(len(batch))
    return answers


def _read(model: Model, number: int, content: bytes) -> tuple[Answer, list[int]]:
    """The beginning of a line's answer and its token ids; none if it is empty or unfit."""
    text = content.rstrip(b"\r\n").decode("utf-8-sig" if number == 0 else "utf-8", "replace")
    if not text:
        return {"input": text, "samples": []}, []
    try:
        content.decode("utf-8")
        ids = encoded(model, Line(number, text))
        check_fits("source", len(ids), model.config.encoder)
    except ValueError as error:
        told = str(error).removeprefix(f"line {number + 1}: ")
        return {"input": text, "error": f"line {number + 1}: {told}"}, []
    return {"input": text}, ids


def _answer(model: Model, batch: list[tuple[int, list[int], Answer]], method: Any) -> None:
    """Complete the answers of a batch; lines are told apart where the model gives no numbers."""
    numbers, source, answers = zip(*batch, strict=True)
    try:
        found = outputs(model, source, numbers, method)
    except NonFiniteLogitsError as error:
        if len(batch) > 1:
            for entry in batch:
                _answer(model, [entry], method)
        else:
            answers[0]["error"] = f"line {numbers[0] + 1}: {error}"
        return
    for answer, samples in zip(answers, found, strict=True):
        answer["samples"] = samples


def _append(file: IO[bytes], answers: list[Answer]) -> None:
    """Write a window, and wait until it is on the disk."""
    file.write(b"".join(json.dumps(a, ensure_ascii=False).encode() + b"\n" for a in answers))
    file.flush()
    os.fsync(file.fileno())


def _report_failures(output: Path) -> None:
    with open(output, "rb") as file:
        failed = [n for n, line in enumerate(file, start=1) if ERROR in line]
    if failed:
        raise ValueError(
            f"lines of {output} without samples: {len(failed)}; the first is line {failed[0]}, "
            "whose error says why"
        )
