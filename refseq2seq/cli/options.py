"""What commands share: the options that name a model and a way to choose tokens."""

import argparse
from collections.abc import Callable
from typing import Any

from ..beam import EarlyStopping
from ..checkpoint import load
from ..constraints import no_repeat_ngram, repetition_penalty
from ..filters import min_p, temperature, top_a, top_k, top_p
from ..model import Model
from ..sampling import Processor, greedy, sample

EARLY_STOPPING: dict[str | None, EarlyStopping] = {"true": True, "false": False, "never": "never"}


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Which model, where and how precise."""
    command.add_argument("--model", default="g2p", help="g2p, or the path of a checkpoint")
    command.add_argument("--backend", choices=["numpy", "cupy"], default="numpy")
    command.add_argument("--dtype", choices=["float16", "float32", "float64"])


def model_of(options: argparse.Namespace) -> Model:
    """The model that the options name, with its vocabularies."""
    model = load(options.model)
    if model.source_vocabulary is None or model.target_vocabulary is None:
        raise ValueError(f"{options.model} has no vocabularies: it cannot read or write text")
    if options.dtype:
        model = model.astype(options.dtype)
    return model.to(options.backend)


def add_method_options(command: argparse.ArgumentParser) -> None:
    """How long, how many, and how tokens are chosen: `method_of` reads these."""
    sampling, search = add_choice_options(command)
    sampling.add_argument(
        "--num-samples", type=count, default=1, metavar="N", help="per line, separated by tabs"
    )
    search.add_argument("--n-best", type=count, metavar="N", help="per line, separated by tabs")


def add_choice_options(command: argparse.ArgumentParser) -> tuple[Any, Any]:
    """The same for one output of one input: the groups of sampling and of beam search."""
    command.set_defaults(num_samples=1, n_best=None)
    command.add_argument("--max-new-tokens", type=count, metavar="N")
    command.add_argument("--min-new-tokens", type=count, default=0, metavar="N")
    command.add_argument("--repetition-penalty", type=float, metavar="R")
    command.add_argument("--no-repeat-ngram", type=count, metavar="N")
    sampling = command.add_argument_group("sampling", "filters apply in the order listed here")
    sampling.add_argument("--temperature", type=float, metavar="T")
    sampling.add_argument("--top-k", type=_count_or_fraction, metavar="K", help="5, or 0.1 of all")
    sampling.add_argument("--top-p", type=float, metavar="P")
    sampling.add_argument("--min-p", type=float, metavar="R")
    sampling.add_argument("--top-a", type=float, metavar="R")
    sampling.add_argument("--seed", type=int, metavar="SEED", help="0 by default")
    search = command.add_argument_group("beam search", "instead of sampling")
    search.add_argument("--beams", type=count, metavar="B")
    search.add_argument("--length-penalty", type=float, metavar="A", help="1 by default")
    search.add_argument(
        "--early-stopping", choices=["true", "false", "never"], help="false by default"
    )
    return sampling, search


def method_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that say how tokens are chosen: of `beam_steps`, or of `decode_steps`."""
    penalties, filters = [*penalties_of(options).values()], [*filters_of(options).values()]
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


def penalties_of(options: argparse.Namespace) -> dict[str, Processor]:
    """What acts before the filters, and in beam search too, by the words that ask for it."""
    return _processors(
        ("repetition penalty", repetition_penalty, options.repetition_penalty),
        ("no repeated n-gram", no_repeat_ngram, options.no_repeat_ngram),
    )


def filters_of(options: argparse.Namespace) -> dict[str, Processor]:
    """The filters of sampling in their order, by the words that ask for them."""
    return _processors(
        ("temperature", temperature, options.temperature),
        ("top-k", top_k, options.top_k),
        ("top-p", top_p, options.top_p),
        ("min-p", min_p, options.min_p),
        ("top-a", top_a, options.top_a),
    )


def _processors(*settings: tuple[str, Callable[[Any], Processor], Any]) -> dict[str, Processor]:
    return {f"{word} {value}": make(value) for word, make, value in settings if value is not None}


def count(text: str) -> int:
    """A number of something, at least 1."""
    if (n := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return n


def _count_or_fraction(text: str) -> int | float:
    return float(text) if "." in text else int(text)
