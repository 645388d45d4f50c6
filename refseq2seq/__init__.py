"""refseq2seq: reference implementation of encoder-decoder Transformer generation.

Importing the package imports only NumPy. ``refseq2seq.convert``, ``refseq2seq.explain``,
``refseq2seq.speech`` and ``refseq2seq.testing`` are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import backend, config, presets
from .backend import BackendError, array_namespace, to_cupy, to_numpy
from .checks import UnsupportedFeature
from .config import ModelConfig
from .files import FileError
from .frames import patches
from .generation import like
from .generation.beam import (
    BeamSearch,
    BeamStep,
    Candidates,
    Hypotheses,
    beam_search,
    beam_steps,
    gnmt_penalty,
)
from .generation.configured import ConfiguredGeneration, as_configured, generate_as_configured
from .generation.constraints import (
    allowed_tokens,
    bad_words,
    begin_suppress,
    encoder_no_repeat_ngram,
    encoder_repetition_penalty,
    exponential_decay,
    forced_bos,
    forced_eos,
    minimum_length,
    no_repeat_ngram,
    repetition_penalty,
    sequence_bias,
    suppress,
)
from .generation.contrastive import Amateur, amateur, amateur_of_li
from .generation.failures import NonFiniteLogitsError, NoTokenLeftError
from .generation.filters import (
    epsilon,
    eta,
    min_p,
    renormalize_logits,
    temperature,
    top_a,
    top_fraction,
    top_k,
    top_p,
    typical,
)
from .generation.loop import (
    Generation,
    Step,
    decode_steps,
    generate,
    generate_text,
)
from .generation.noise import exponential_race, gumbel_top_k
from .generation.sampling import (
    Chooser,
    Processor,
    State,
    draw_uniforms,
    greedy,
    sample,
)
from .generation.scoring import Scores, score
from .generation.timestamps import timestamp_rules
from .model import Memory, Model, decode, encode, forward, new_cache, project_memory
from .params import random_params
from .settings import Settings
from .taps import FunctionTap, Tap, no_tap
from .text import UnknownSymbolError, Vocabulary
from .watching.trace import Trace

if TYPE_CHECKING:
    from . import convert, explain, speech, testing
    from .files.checkpoint import CheckpointError, load, save
    from .written import Program, write_out

__version__ = "0.2.0.dev0"

__all__ = [
    "Amateur", "BackendError", "BeamSearch", "BeamStep", "Candidates", "CheckpointError", "Chooser",
    "ConfiguredGeneration", "FileError", "FunctionTap", "Generation", "Hypotheses", "Memory",
    "Model", "ModelConfig", "NoTokenLeftError", "NonFiniteLogitsError", "Processor", "Program",
    "Scores", "Settings", "State", "Step", "Tap", "Trace", "UnknownSymbolError",
    "UnsupportedFeature", "Vocabulary", "allowed_tokens", "amateur", "amateur_of_li",
    "array_namespace", "as_configured", "backend", "bad_words", "beam_search", "beam_steps",
    "begin_suppress", "config", "convert", "decode", "decode_steps", "draw_uniforms", "encode",
    "encoder_no_repeat_ngram", "encoder_repetition_penalty", "epsilon", "eta", "explain",
    "exponential_decay", "exponential_race", "forced_bos", "forced_eos", "forward", "generate",
    "generate_as_configured", "generate_text", "gnmt_penalty", "greedy", "gumbel_top_k", "like",
    "load", "min_p", "minimum_length", "new_cache", "no_repeat_ngram", "no_tap", "patches",
    "presets", "project_memory", "random_params", "renormalize_logits", "repetition_penalty",
    "sample", "save", "score", "sequence_bias", "speech", "suppress", "temperature", "testing",
    "timestamp_rules", "to_cupy", "to_numpy", "top_a", "top_fraction", "top_k", "top_p", "typical",
    "write_out",
]  # fmt: skip


_LATER = {
    "CheckpointError": ".files.checkpoint",
    "load": ".files.checkpoint",
    "save": ".files.checkpoint",
    "Program": ".written",
    "write_out": ".written",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name], __name__), name)
    if name in ("convert", "explain", "speech", "testing"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
