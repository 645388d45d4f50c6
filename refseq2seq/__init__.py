"""refseq2seq: reference implementation of encoder-decoder Transformer generation.

Importing it imports NumPy and nothing else.
"""

from . import backend, config, convert, like, presets
from .backend import BackendError, array_namespace, to_cupy, to_numpy
from .beam import BeamSearch, BeamStep, beam_search, beam_steps, gnmt_penalty
from .checkpoint import CheckpointError, load, save
from .config import ModelConfig
from .decoding import (
    Generation,
    NonFiniteLogitsError,
    Step,
    decode_steps,
    generate,
    generate_text,
)
from .model import Memory, Model, decode, encode, forward, new_cache
from .params import random_params
from .sampling import (
    Chooser,
    State,
    draw_uniforms,
    exponential_race,
    greedy,
    min_p,
    sample,
    temperature,
    top_a,
    top_k,
    top_p,
)
from .text import UnknownSymbolError, Vocabulary
from .trace import FunctionTap, Trace, no_tap

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BeamSearch",
    "BeamStep",
    "CheckpointError",
    "Chooser",
    "FunctionTap",
    "Generation",
    "Memory",
    "Model",
    "ModelConfig",
    "NonFiniteLogitsError",
    "State",
    "Step",
    "Trace",
    "UnknownSymbolError",
    "Vocabulary",
    "array_namespace",
    "backend",
    "beam_search",
    "beam_steps",
    "config",
    "convert",
    "decode",
    "decode_steps",
    "draw_uniforms",
    "encode",
    "exponential_race",
    "forward",
    "generate",
    "generate_text",
    "gnmt_penalty",
    "greedy",
    "like",
    "load",
    "min_p",
    "new_cache",
    "no_tap",
    "presets",
    "random_params",
    "sample",
    "save",
    "temperature",
    "to_cupy",
    "to_numpy",
    "top_a",
    "top_k",
    "top_p",
]
