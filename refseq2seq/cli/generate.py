"""``refseq2seq generate``: one output line for each input line."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ..beam import beam_steps
from ..decoding import decode_steps
from ..model import Model
from .bulk import generate_file
from .lines import Line, encoded, outputs
from .options import add_method_options, add_model_options, count, method_of, model_of
from .steps import print_beam_steps, print_token_steps


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("generate", help="generate one output for each input line")
    command.set_defaults(run=_generate, usage_error=command.error)
    command.add_argument("texts", nargs="*", metavar="TEXT", help="input; standard input if none")
    command.add_argument("--input", type=Path, metavar="FILE", help="read the lines of FILE")
    add_model_options(command)
    command.add_argument("--batch-size", type=count, default=32, metavar="N")
    bulk = command.add_argument_group(
        "in bulk", "a file of answers as JSON lines; after a kill, the same command goes on"
    )
    bulk.add_argument("--output", type=Path, metavar="FILE", help="answers to the lines of --input")
    together = "lines sorted and written together (%(default)s)"
    bulk.add_argument("--window", type=count, default=256, metavar="N", help=together)
    add_method_options(command)
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one JSON object per input line")
    shown.add_argument("--steps", action="store_true", help="a table of the decoding steps")


def _generate(options: argparse.Namespace) -> None:
    method = method_of(options)
    if options.output and (options.input is None or options.texts or options.steps):
        options.usage_error("--output needs --input FILE alone, and writes JSON lines")
    model = model_of(options)
    if options.output:
        generate_file(model, method, options)
        return
    lines = _lines(options)
    for batch in _batches(lines, 1 if options.steps else options.batch_size):
        if options.steps:
            _print_steps(model, batch[0], method, options)
        else:
            _print_outputs(model, batch, method, options)
        sys.stdout.flush()


def _lines(options: argparse.Namespace) -> Iterator[Line]:
    """The input lines, behind a progress bar where somebody waits for a file."""
    if options.texts and options.input:
        options.usage_error("give the input as arguments or with --input, not both")
    if options.texts:
        yield from map(Line, range(len(options.texts)), options.texts)
        return
    with open(options.input or 0, encoding="utf-8") as file:
        numbered = (Line(i, line.rstrip("\r\n")) for i, line in enumerate(file))
        yield from _with_progress(numbered) if options.input else numbered


def _with_progress(lines: Iterable[Line]) -> Iterable[Line]:
    if sys.stderr.isatty() and not sys.stdout.isatty():
        with suppress(ImportError):
            from tqdm import tqdm

            return tqdm(lines, unit=" lines", delay=1)
    return lines


def _batches(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    """Batches of lines; single ones where a person types, who wants to see each at once."""
    size = 1 if sys.stdin.isatty() and not sys.stdout.isatty() else size
    while batch := list(islice(lines, size)):
        yield batch


def _print_outputs(
    model: Model, batch: list[Line], method: dict[str, Any], options: argparse.Namespace
) -> None:
    """One output line for each of the batch; an empty input line gives an empty one."""
    lines = [line for line in batch if line.text]
    source = [encoded(model, line) for line in lines]
    found = outputs(model, source, [line.number for line in lines], method) if lines else []
    samples_of = dict(zip(lines, found, strict=True))
    for line in batch:
        samples = samples_of.get(line, [])
        if options.json:
            print(json.dumps({"input": line.text, "samples": samples}, ensure_ascii=False))
        else:
            print("\t".join(sample["text"] for sample in samples))


def _print_steps(
    model: Model, line: Line, method: dict[str, Any], options: argparse.Namespace
) -> None:
    """The loop as it runs."""
    print(line.text)
    if not line.text:
        return
    source = [encoded(model, line)]
    if "beams" in method:
        search = {name: value for name, value in method.items() if name != "n_best"}
        print_beam_steps(model, beam_steps(model, source, **search))
        return
    steps = decode_steps(model, source, row_ids=[line.number], **method)
    if options.num_samples == 1:
        print_token_steps(model, steps, 0)
    else:
        kept = list(steps)
        for row in range(options.num_samples):
            print_token_steps(model, (step for step in kept if step.emitted[row]), row)
