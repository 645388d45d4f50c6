"""The command line: text in, text out, one output line for each input line.

    refseq2seq generate oracle transformer seq2seq
    refseq2seq generate < words.txt > pronunciations.txt
    refseq2seq generate oracle --steps
    refseq2seq info

Mistakes of the user are one line on standard error, never a traceback.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .backend import BackendError, to_numpy
from .beam import BeamStep, EarlyStopping, beam_search, beam_steps
from .checkpoint import load
from .config import AlibiPositions, BucketedPositions, RotaryPositions, StackConfig
from .constraints import no_repeat_ngram, repetition_penalty
from .decoding import Step, decode_steps, generate
from .model import Model
from .ops import softmax
from .params import param_shapes
from .sampling import Processor, greedy, min_p, sample, temperature, top_a, top_k, top_p
from .text import UnknownSymbolError

SHOWN = 5  # candidates per step of --steps
EARLY_STOPPING: dict[str | None, EarlyStopping] = {"true": True, "false": False, "never": "never"}


class Line(NamedTuple):
    """One line of input: its number, counted from 0, and its text."""

    number: int
    text: str


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the result is the exit status: 0, 1 for an error, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if by SIGPIPE
    except (ValueError, OSError, BackendError) as error:
        print(f"refseq2seq: {_in_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refseq2seq", description="Encoder-decoder Transformer generation, step by step."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("generate", help="generate one output for each input line")
    command.set_defaults(run=_generate, usage_error=command.error)
    command.add_argument("texts", nargs="*", metavar="TEXT", help="input; standard input if none")
    command.add_argument("--input", type=Path, metavar="FILE", help="read the lines of FILE")
    _add_model_options(command)
    command.add_argument("--batch-size", type=_count, default=32, metavar="N")
    command.add_argument("--max-new-tokens", type=_count, metavar="N")
    command.add_argument("--min-new-tokens", type=_count, default=0, metavar="N")
    command.add_argument("--repetition-penalty", type=float, metavar="R")
    command.add_argument("--no-repeat-ngram", type=_count, metavar="N")
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one JSON object per input line")
    shown.add_argument("--steps", action="store_true", help="a table of the decoding steps")
    sampling = command.add_argument_group("sampling", "filters apply in the order listed here")
    sampling.add_argument("--temperature", type=float, metavar="T")
    sampling.add_argument("--top-k", type=_count_or_fraction, metavar="K", help="5, or 0.1 of all")
    sampling.add_argument("--top-p", type=float, metavar="P")
    sampling.add_argument("--min-p", type=float, metavar="R")
    sampling.add_argument("--top-a", type=float, metavar="R")
    sampling.add_argument("--seed", type=int, metavar="SEED", help="0 by default")
    sampling.add_argument(
        "--num-samples", type=_count, default=1, metavar="N", help="per line, separated by tabs"
    )

    search = command.add_argument_group("beam search", "instead of sampling")
    search.add_argument("--beams", type=_count, metavar="B")
    search.add_argument("--n-best", type=_count, metavar="N", help="per line, separated by tabs")
    search.add_argument("--length-penalty", type=float, metavar="A", help="1 by default")
    search.add_argument(
        "--early-stopping", choices=["true", "false", "never"], help="false by default"
    )

    command = commands.add_parser("info", help="show what a checkpoint is")
    command.set_defaults(run=_info)
    command.add_argument("model", nargs="?", default="g2p", metavar="MODEL")
    return parser


def _add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="g2p", help="g2p, or the path of a checkpoint")
    command.add_argument("--backend", choices=["numpy", "cupy"], default="numpy")
    command.add_argument("--dtype", choices=["float16", "float32", "float64"])


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return count


def _count_or_fraction(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _generate(options: argparse.Namespace) -> None:
    method = _method(options)
    model = _model(options)
    lines = _lines(options)
    for batch in _batches(lines, 1 if options.steps else options.batch_size):
        if options.steps:
            _print_steps(model, batch[0], method, options)
        else:
            _print_outputs(model, batch, method, options)
        sys.stdout.flush()


def _method(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that say how tokens are chosen: of `beam_steps`, or of `decode_steps`."""
    penalties = _processors(
        (repetition_penalty, options.repetition_penalty),
        (no_repeat_ngram, options.no_repeat_ngram),
    )
    filters = _processors(
        (temperature, options.temperature),
        (top_k, options.top_k),
        (top_p, options.top_p),
        (min_p, options.min_p),
        (top_a, options.top_a),
    )
    samples = bool(filters) or options.num_samples > 1
    length = {"max_new_tokens": options.max_new_tokens, "min_new_tokens": options.min_new_tokens}
    searches = {
        "n_best": options.n_best,
        "length_penalty": options.length_penalty,
        "early_stopping": EARLY_STOPPING.get(options.early_stopping),
    }
    searches = {name: value for name, value in searches.items() if value is not None}
    if options.beams is None and searches:
        options.usage_error(f"--{next(iter(searches)).replace('_', '-')} needs --beams")
    if options.seed is not None and not samples:
        options.usage_error("--seed needs something to sample: for example --temperature 1")
    if options.beams is not None:
        if samples:
            options.usage_error("--beams searches, the options of sampling draw: choose one")
        return {"beams": options.beams, "processors": penalties, **searches, **length}
    return {
        "choose": sample(*penalties, *filters) if samples else greedy(*penalties),
        "num_return_sequences": options.num_samples,
        "seed": options.seed or 0,
        **length,
    }


def _processors(*settings: tuple[Callable[[Any], Processor], Any]) -> list[Processor]:
    return [processor(value) for processor, value in settings if value is not None]


def _model(options: argparse.Namespace) -> Model:
    model = load(options.model)
    if model.source_vocabulary is None or model.target_vocabulary is None:
        raise ValueError(f"{options.model} has no vocabularies: it cannot read or write text")
    if options.dtype:
        model = model.astype(options.dtype)
    return model.to(options.backend)


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
    outputs = dict(zip(lines, _outputs(model, lines, method), strict=True)) if lines else {}
    for line in batch:
        samples = outputs.get(line, [])
        if options.json:
            print(json.dumps({"input": line.text, "samples": samples}, ensure_ascii=False))
        else:
            print("\t".join(sample["text"] for sample in samples))


def _outputs(model: Model, lines: list[Line], method: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The samples, or the hypotheses with their scores, of each line."""
    source = [_encoded(model, line) for line in lines]
    if "beams" in method:
        found = beam_search(model, source, **method)
        places = [(row, k) for row in range(len(lines)) for k in range(found.scores.shape[1])]
        flat = [
            _output(model, found.tokens[p], found.log_probs[p], found.lengths[p])
            | {"score": float(found.scores[p])}
            for p in places
            if found.scores[p] > -np.inf
        ]
        counts = (found.scores > -np.inf).sum(axis=1).tolist()
    else:
        out = generate(model, source, row_ids=[line.number for line in lines], **method)
        flat = [
            _output(model, tokens, log_probs, n) | {"finished": bool(finished)}
            for tokens, log_probs, n, finished in zip(
                out.tokens, out.log_probs, out.lengths, out.finished, strict=True
            )
        ]
        counts = [method["num_return_sequences"]] * len(lines)
    remaining = iter(flat)
    return [list(islice(remaining, n)) for n in counts]


def _encoded(model: Model, line: Line) -> list[int]:
    try:
        return model.source_vocabulary.encode(line.text)  # type: ignore[union-attr]
    except UnknownSymbolError as error:
        raise UnknownSymbolError(f"line {line.number + 1}: {error}") from error


def _output(model: Model, tokens: np.ndarray, log_probs: np.ndarray, n: int) -> dict[str, Any]:
    return {
        "text": model.target_vocabulary.decode(tokens[:n]),  # type: ignore[union-attr]
        "tokens": tokens[:n].tolist(),
        "log_probs": log_probs[:n].tolist(),
    }


def _print_steps(
    model: Model, line: Line, method: dict[str, Any], options: argparse.Namespace
) -> None:
    """The loop as it runs."""
    print(line.text)
    if not line.text:
        return
    source = [_encoded(model, line)]
    if "beams" in method:
        search = {name: value for name, value in method.items() if name != "n_best"}
        _print_beam_steps(model, beam_steps(model, source, **search))
        return
    steps = decode_steps(model, source, row_ids=[line.number], **method)
    if options.num_samples == 1:
        _print_token_steps(model, steps, 0)
    else:
        kept = list(steps)
        for row in range(options.num_samples):
            _print_token_steps(model, (step for step in kept if step.emitted[row]), row)


def _print_token_steps(model: Model, steps: Iterable[Step], row: int) -> None:
    """Per step the choice, its log-probability, and the best candidates."""
    print(f"  step  {'chosen':8} {'log-prob':>8}  candidates after the filters")
    total = 0.0
    for step in steps:
        total += step.log_probs[row]
        symbol = _symbol(model, step.tokens[row])
        candidates = "  ".join(_candidates(model, step, row))
        print(f"  {step.index:4}  {symbol:8} {step.log_probs[row]:8.3f}  {candidates}")
        sys.stdout.flush()
    print(f"  {'sum':4}  {'':8} {total:8.3f}")


def _print_beam_steps(model: Model, steps: Iterable[BeamStep]) -> None:
    """Per step the live beams with their sums of log-probabilities, and what has finished."""
    for step in steps:
        print(f"  step {step.index}")
        n = step.live.lengths[0, 0]
        for tokens, score in zip(step.live.tokens[0], step.live.scores[0], strict=True):
            if score > -np.inf:
                symbols = " ".join(_symbol(model, token) for token in tokens[:n])
                print(f"    {score:8.3f}  {symbols}")
        c = step.candidates
        for place in np.flatnonzero(step.finishing[0]):
            print(
                f"    {c.scores[0, place]:8.3f}  finished with {_symbol(model, c.tokens[0, place])}"
            )
        sys.stdout.flush()
    print("  pool, by normalised score")
    pool = step.pool
    for tokens, length, score in zip(pool.tokens[0], pool.lengths[0], pool.scores[0], strict=True):
        if score > -np.inf:
            print(f"    {score:8.3f}  {' '.join(_symbol(model, t) for t in tokens[:length])}")


def _candidates(model: Model, step: Step, row: int) -> Iterator[str]:
    probs = to_numpy(softmax(step.scores[row].astype("float64")))
    for token in np.argsort(-probs, kind="stable")[:SHOWN]:
        if probs[token] > 0:
            yield f"{_symbol(model, token):4} {probs[token]:.3f}"


def _symbol(model: Model, token: int) -> str:
    symbols = model.target_vocabulary.symbols  # type: ignore[union-attr]
    return symbols[token] if token < len(symbols) else f"<{token}>"  # T5 pads its vocabulary


def _info(options: argparse.Namespace) -> None:
    model = load(options.model)
    c = model.config
    n_parameters = sum(int(np.prod(shape)) for shape in param_shapes(c).values())
    rows = [
        ("model", options.model),
        ("parameters", f"{n_parameters:,} in {model.dtype}"),
        ("encoder", _describe(c.encoder)),
        ("decoder", _describe(c.decoder)),
        ("logits", "tied to the decoder's embedding" if c.tied_logits else "own matrix"),
        ("tokens", f"start {c.decoder_start_id}, end {list(c.eos_ids)}, pad {c.pad_id}"),
    ]
    for name, vocabulary in (
        ("source", model.source_vocabulary),
        ("target", model.target_vocabulary),
    ):
        if vocabulary is not None:
            rows.append((name, " ".join(vocabulary.symbols[:60])))
    for name, text in rows:
        print(f"{name:11} {text}")


def _describe(c: StackConfig) -> str:
    a = c.self_attention
    positions = type(c.positions).__name__.removesuffix("Positions").lower() if c.positions else ""
    relative = {RotaryPositions: "rotary", AlibiPositions: "alibi", BucketedPositions: "bucketed"}
    kinds = [positions, relative.get(type(c.relative_positions), "")]
    return (
        f"{c.n_layers} layers, width {c.d_model}, {a.n_heads} heads of {a.d_k}, "
        f"feed-forward {c.feed_forward.d_ff} ({c.feed_forward.activation}), "
        f"{c.norm.kind} {'+'.join(c.norm_positions)}, vocabulary {c.vocab_size}, "
        f"positions: {' and '.join(filter(None, kinds)) or 'none'}"
    )


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
