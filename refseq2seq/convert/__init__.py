"""Models of other libraries as ours: from a live module, or from its arrays and options."""

from .huggingface import from_huggingface
from .pytorch import from_pytorch
from .table import UnsupportedFeature
from .x_transformers import from_x_transformers

__all__ = ["UnsupportedFeature", "from_huggingface", "from_pytorch", "from_x_transformers"]
