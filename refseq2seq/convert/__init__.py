"""Converters from models of other libraries: live modules, or arrays with their options.

`convert_params` converts the arrays of a library that has no converter here: see
``docs/your-own-model.md``.
"""

from ..checks import UnsupportedFeature
from .ctranslate2 import from_ctranslate2
from .huggingface import from_huggingface
from .openai import from_whisper
from .pytorch import from_pytorch
from .table import convert_params, numbered, same, transposed
from .x_transformers import from_x_transformers

__all__ = [
    "UnsupportedFeature", "convert_params", "from_ctranslate2", "from_huggingface", "from_pytorch",
    "from_whisper", "from_x_transformers", "numbered", "same", "transposed",
]  # fmt: skip
