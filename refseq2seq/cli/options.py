"""Options that several commands share: those of the model and of the decoding method."""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from ..checks import UnsupportedFeature, check_number
from ..config import annotations
from ..generation.beam import EarlyStopping
from ..generation.configured import as_configured
from ..generation.constraints import MAKERS
from ..generation.filters import min_p, temperature, top_a, top_fraction, top_k, top_p
from ..generation.sampling import Processor, greedy, sample
from ..generation.timestamps import timestamp_rules
from ..languages import between
from ..model import Model
from ..settings import Settings
from ..speech import special_ids
from ..speech.whisper import END, NO_TIMESTAMPS
from .progress import load, tell
from .sounds import reads_frames, with_prompt
from .threads import NARROW, use_threads

EARLY_STOPPING: dict[str, EarlyStopping] = {"true": True, "false": False, "never": "never"}
OF_BEAMS = ("n_best", "length_penalty", "early_stopping")

MODEL_HELP = (
    "g2p, which is included, or the path of a checkpoint, or of a directory of Hugging Face or "
    "CTranslate2"
)
THREADS_HELP = (
    "number of CPU threads for matrix products; by default 1 for a model of width up to "
    f"{NARROW}, and set by the environment or the number of cores for a wider one"
)


class Parser(argparse.ArgumentParser):
    """A parser whose error message is one line."""

    def error(self, message: str) -> NoReturn:
        """End the program with status 2."""
        tell(f"{message} (usage: {self.prog} --help)")
        self.exit(2)


def add_command(commands: Any, name: str, summary: str, *examples: str) -> Any:
    """Add a command to the parser; its help ends with ``examples``, which are its arguments."""
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n  ".join(["examples:", *(f"refseq2seq {name} {x}".rstrip() for x in examples)]),
    )
    command.set_defaults(usage_error=command.error)
    return command


def add_options(group: Any, *rows: tuple[str, Callable[[str], Any] | list[str], str, str]) -> None:
    """Add options to a group: name, type or choices, metavar, help."""
    for name, kind, metavar, meaning in rows:
        if isinstance(kind, list):
            group.add_argument(name, choices=kind, help=meaning)
        else:
            group.add_argument(name, type=kind, metavar=metavar, help=meaning)


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the options for the model, its device, dtype and threads."""
    add_options(
        command.add_argument_group("model"),
        ("--model", str, "MODEL", MODEL_HELP),
        ("--backend", ["numpy", "cupy"], "", "the CPU (numpy, the default) or a CUDA device"),
        ("--dtype", ["float16", "float32", "float64"], "", "dtype of the model (default: its own)"),
        ("--threads", count, "N", THREADS_HELP),
        ("--source-language", str, "CODE", "of the input, if the tokenizer knows languages, such "
         "as fra_Latn (NLLB), fr (M2M100), fr_XX (mBART), or fr, the spoken language (Whisper); by "
         "default that of its files"),
        ("--target-language", str, "CODE", "of the output; by default that of the model's files; "
         "en translates speech"),
    )  # fmt: skip
    command.set_defaults(model="g2p", backend="numpy", timestamps=False)


def model_of(options: argparse.Namespace) -> Model:
    """The model that the options name, with its vocabularies."""
    model = load(options.model)
    vocabularies = [model.target_vocabulary, model.source_vocabulary]
    if None in vocabularies[: 1 if reads_frames(model) else 2]:
        raise ValueError(
            f"{options.model} has no vocabularies: it cannot read or write text. A directory of "
            "Hugging Face needs tokenizer.json, or its family's files in docs/checkpoints.md"
        )
    if reads_frames(model):
        model = with_prompt(model, options)
    elif options.timestamps:
        raise ValueError(
            f"--timestamps: {options.model} reads texts: pass a Whisper as --model, or leave it out"
        )
    else:
        model = between(model, options.source_language, options.target_language)
    use_threads(options.threads, model)
    if options.dtype:
        model = model.astype(options.dtype)
    return model.to(options.backend)


def add_method_options(command: argparse.ArgumentParser) -> None:
    """Add all options that `method_of` reads."""
    sampling, search = add_choice_options(command)
    add_options(
        sampling, ("--num-samples", size, "N", "outputs per line, separated by tabs (default 1)")
    )
    add_options(search, ("--n-best", count, "N", "outputs per line, best first, separated by tabs"))


def add_choice_options(command: argparse.ArgumentParser) -> tuple[Any, Any]:
    """Add those for one output; return the groups of sampling and of beam search."""
    command.set_defaults(num_samples=None, n_best=None)
    add_options(
        command.add_argument_group(
            "length and repetition",
            "defaults, here and below, are replaced by the settings of a checkpoint that has some",
        ),
        ("--max-new-tokens", size, "N", "maximum number of tokens in an output, including the end "
         "token (default: as many as the model has positions for; of Whisper, half of them)"),
        ("--min-new-tokens", whole, "N", "minimum number of tokens before the end (default 0)"),
        ("--repetition-penalty", float, "R", "divide positive scores of tokens that the output "
         "already has by R, and multiply negative ones by R; scores are logits, or with --beams "
         "log-probabilities; 1 changes nothing"),
        ("--no-repeat-ngram", count, "N", "allow no sequence of N tokens to occur twice"),
    )  # fmt: skip
    sampling = command.add_argument_group("sampling", "filters are applied in the order below")
    add_options(
        sampling,
        ("--temperature", float, "T", "divide the logits by T, which must be positive"),
        ("--top-k", _count_or_fraction, "K", "keep the K most probable tokens, or a fraction of "
         "all: 5, or 0.1"),
        ("--top-p", float, "P", "keep the fewest tokens whose probabilities sum to at least P, in "
         "(0, 1]"),
        ("--min-p", float, "R", "keep tokens of at least R times the highest probability"),
        ("--top-a", float, "R", "keep tokens of at least R times the highest probability squared"),
        ("--seed", whole, "SEED", "seed of the random numbers (default 0)"),
    )  # fmt: skip
    search = command.add_argument_group("beam search", "cannot be combined with sampling")
    add_options(
        search,
        ("--beams", size, "B", "number of hypotheses to keep in each step"),
        ("--length-penalty", float, "A", "divide a score, in nats, by the number of tokens to the "
         "power A (default 1)"),
        ("--early-stopping", [*EARLY_STOPPING], "", "stop when B hypotheses have ended (true), "
         "when no live one is likely to score better (false, the default), or when none can "
         "(never)"),
    )  # fmt: skip
    return sampling, search


def method_of(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """The arguments of `beam_search` or `generate` that determine how tokens are chosen.

    They are those of the model's settings, with the options in their place, or, if the model
    has none, only the options. A wrong combination of options ends the program with exit
    status 2.
    """
    try:
        _check(options, model.settings)
        return _method(options) if model.settings is None else _configured(options, model)
    except UnsupportedFeature:
        raise
    except (ValueError, OverflowError) as error:
        options.usage_error(str(error))
        raise  # not reached: usage_error ends the program


def _method(options: argparse.Namespace) -> dict[str, Any]:
    length = {
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens or 0,
    }
    penalties = [MAKERS[name](value) for name, value in _given(options, *MAKERS).items()]
    if options.beams is not None:
        return {"processors": penalties, **_given(options, "beams", *OF_BEAMS), **length}
    pick = sample if _samples(options) else greedy
    return {
        "choose": pick(*penalties, *_filters(options)),
        "num_return_sequences": options.num_samples or 1,
        "seed": options.seed or 0,
        **length,
    }


def _configured(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Options replace settings; those of sampling or beam search also select the method."""
    overrides = _given(options, *annotations(Settings))
    further = _filters(options, "top_a")
    if isinstance(options.top_k, float):  # no setting corresponds to a fraction
        further, overrides["top_k"] = [top_fraction(options.top_k), *further], 0
    if options.timestamps:
        ids = special_ids(model.target_vocabulary)  # type: ignore[arg-type]
        overrides["processors"] = [timestamp_rules(ids[NO_TIMESTAMPS], ids[END])]
    if n := options.n_best or options.num_samples:
        overrides["num_return_sequences"] = n
    if _samples(options):
        overrides |= {"do_sample": True, "beams": 1}
    elif options.beams is not None:
        overrides["do_sample"] = False
    method = as_configured(model, **overrides)
    if choose := method.get("choose"):
        method["choose"] = replace(choose, processors=(*choose.processors, *further))
        method["seed"] = options.seed or 0
    return method


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that exist and have a value."""
    values: dict[str, Any] = {name: getattr(options, name, None) for name in names}
    if values.get("early_stopping"):
        values["early_stopping"] = EARLY_STOPPING[values["early_stopping"]]
    return {name: value for name, value in values.items() if value is not None}


def _check(options: argparse.Namespace, settings: Settings | None) -> None:
    """Raise for a value or a combination of options that is wrong for the model's settings."""
    settings, samples = settings or Settings(), _samples(options)
    if options.beams is None and (samples or settings.beams == 1):
        for name in _given(options, *OF_BEAMS):
            raise ValueError(f"--{name.replace('_', '-')} needs --beams")
    if (options.min_new_tokens or 0) > (options.max_new_tokens or math.inf):
        raise ValueError(
            f"--min-new-tokens must be at most --max-new-tokens = {options.max_new_tokens}, "
            f"got {options.min_new_tokens}"
        )
    if options.seed is not None and not samples and (options.beams or not settings.do_sample):
        raise ValueError("--seed needs sampling, which --temperature 1, for example, selects")
    if options.length_penalty is not None:
        check_number("--length-penalty", options.length_penalty, "(-inf, inf)")
    if options.beams is not None and samples:
        raise ValueError("--beams cannot be combined with sampling, such as --temperature")
    if options.beams is not None and options.beams < (options.n_best or 1):
        raise ValueError(
            f"--n-best must be at most --beams = {options.beams}, got {options.n_best}"
        )


def _samples(options: argparse.Namespace) -> bool:
    return bool(_filters(options)) or (options.num_samples or 1) > 1


def _filters(options: argparse.Namespace, *names: str) -> list[Processor]:
    """The filters of sampling in order of application: those of ``names``, by default all."""
    given = _given(options, *(names or FILTERS))
    return [FILTERS[name](value) for name, value in given.items()]


def _top(k: int | float) -> Processor:
    return top_k(k) if isinstance(k, int) else top_fraction(k)


FILTERS: dict[str, Callable[[Any], Processor]] = {
    "temperature": temperature,
    "top_k": _top,
    "top_p": top_p,
    "min_p": min_p,
    "top_a": top_a,
}


def _integer(low: int, bits: int = 31) -> Callable[[str], int]:
    """A parser for options that are integers in [``low``, 2**``bits``)."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text[:11]) < 2**bits):
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {low} and less than 2**{bits}, got {text:.40}"
            )
        return int(text)

    return parse


whole, count = _integer(0), _integer(1)
size = _integer(1, bits=16)  # the size of an array's axis: more takes minutes, or all memory


def _count_or_fraction(text: str) -> int | float:
    try:
        return count(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected 5, or 0.1, got {text:.40}") from None
