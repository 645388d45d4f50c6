"""``refseq2seq generate``: one output line for each input line."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..generation.beam import beam_steps
from ..generation.loop import decode_steps
from ..model import Model
from .lines import Answer, Line, answers, check_method, encoded, failure, read_lines
from .options import (
    add_command,
    add_method_options,
    add_model_options,
    add_options,
    count,
    method_of,
    model_of,
)
from .progress import progress, tell
from .sounds import add_segments, reads_frames, segment_lines
from .steps import print_beam_steps, print_token_steps

ESCAPES = str.maketrans({"\n": r"\n", "\r": r"\r", "\t": r"\t"})
"""Escapes in the output, where LF ends a line and a tab separates the samples of a line."""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "generate",
        "generate one output line for each input line",
        "oracle transformer",
        "--beams 4 --n-best 2 --json < words.txt",
        "--input words.txt --output answers.jsonl",
        "--model path/of/whisper sound.wav --timestamps",
    )
    command.set_defaults(run=_generate)
    command.add_argument(
        "texts", nargs="*", metavar="TEXT", help="inputs; by default, lines of stdin; for Whisper, "
        "paths of WAV files of at most 30 s, one channel, 16 kHz"
    )  # fmt: skip
    lines = command.add_argument_group("input and output")
    add_options(
        lines,
        ("--input", Path, "FILE", "read lines of UTF-8 that end with LF or CRLF; - is stdin"),
        ("--batch-size", count, "N", "lines per batch (default 32, or 1 sound); 1 from a terminal"),
    )
    skip = "print an empty line, with --json the error, for a line that fails; exit status 3"
    lines.add_argument("--skip-errors", action="store_true", help=skip)
    times = "print a line for each segment of speech, such as 0.00 4.20 Hello., then an empty one"
    lines.add_argument("--timestamps", action="store_true", help=times)
    shown = lines.add_mutually_exclusive_group()
    shown.add_argument(
        "--json", action="store_true", help="print a JSON object per line, log_probs in nats"
    )
    shown.add_argument("--steps", action="store_true", help="print a table of the decoding steps")
    add_options(
        command.add_argument_group("bulk", "after a kill, the same command continues the run"),
        ("--output", Path, "FILE", "write a JSON object per line of --input; - is stdout"),
        ("--window", count, "N", "lines to sort by length and save together (default 256, or 8 "
         "sounds)"),
    )  # fmt: skip
    add_model_options(command)
    add_method_options(command)


def _generate(options: argparse.Namespace) -> int:
    if options.texts and options.input:
        options.usage_error("give the input as arguments or with --input, not both")
    if options.output and options.steps:
        options.usage_error("--output writes answers, --steps prints steps: choose one")
    if options.input == Path("-"):
        options.input = None
    if options.output == Path("-"):
        options.output, options.json = None, True
    if options.output and not options.input:
        options.usage_error("--output FILE needs --input FILE")
    model = model_of(options)
    method = method_of(options, model)
    check_method(model, method)
    batch_size, window = (1, 8) if reads_frames(model) else (32, 256)
    options.batch_size, options.window = options.batch_size or batch_size, options.window or window
    several = method.get("n_best", method.get("num_return_sequences", 1)) > 1
    if options.timestamps and several and not (options.json or options.output):
        options.usage_error("--timestamps prints one output: add --json for several")
    if options.output:
        from .bulk import generate_file  # here, because it imports sqlite3

        return generate_file(model, method, options)
    return _print_all(model, method, options)


def _print_all(model: Model, method: dict[str, Any], options: argparse.Namespace) -> int:
    """Print the answers, line by line or batch by batch, and return the exit status."""
    failed = False
    with (
        _input(options) as (file, interactive),
        progress(0, None, not interactive and not sys.stdout.isatty()) as advance,
    ):
        lines, size = read_lines(file), 1 if interactive or options.steps else options.batch_size
        while batch := list(islice(lines, size)):
            if options.steps:
                found = [_print_steps(model, batch[0], method)]
            else:
                found = answers(model, batch, method, options.batch_size, advance)
            if options.timestamps:
                add_segments(model, found)
            for answer in found:
                if error := answer.get("error"):
                    if not options.skip_errors:
                        raise ValueError(error)
                    tell(error)
                    failed = True
                if options.json:
                    print(json.dumps(answer, ensure_ascii=False))
                elif not options.steps:
                    print("\n".join(_lines(answer, options.timestamps)))
            sys.stdout.flush()
    return 3 if failed else 0


def _lines(answer: Answer, timestamps: bool) -> list[str]:
    """The samples in one line, or a line for each segment, and an empty one after the last."""
    samples = answer.get("samples", ())
    if timestamps:
        return [*(line.translate(ESCAPES) for line in segment_lines(samples)), ""]
    texts = [sample["text"].translate(ESCAPES) for sample in samples]
    return ["\t".join(text.strip() if "seconds" in answer else text for text in texts)]


@contextmanager
def _input(options: argparse.Namespace) -> Iterator[tuple[IO[bytes], bool]]:
    """The input as a binary file, and True if it is a terminal, where batches have one line."""
    if options.texts:
        yield io.BytesIO(b"".join(os.fsencode(text) + b"\n" for text in options.texts)), False
    elif options.input:
        with open(options.input, "rb") as file:
            yield file, False
    elif sys.stdin is None:
        raise ValueError("standard input is closed: give TEXT, or --input FILE")
    else:
        yield sys.stdin.buffer, sys.stdin.isatty()


def _print_steps(model: Model, line: Line, method: dict[str, Any]) -> Answer:
    """Print the steps of a line while they are computed; the result has an ``error``, if any."""
    print(line.text)
    try:
        source, _ = encoded(model, line)
        if not len(source):
            return {}
        if "beams" in method:
            search = {name: value for name, value in method.items() if name != "n_best"}
            print_beam_steps(model, beam_steps(model, [source], **search))
        else:
            steps = decode_steps(model, [source], row_ids=[line.number], **method)
            n = method["num_return_sequences"]
            kept = [*steps] if n > 1 else steps
            for row in range(n):
                print_token_steps(model, (step for step in kept if step.emitted[row]), row)
    except (ValueError, MemoryError) as error:
        return {"error": failure(line.number, error)}
    return {}
