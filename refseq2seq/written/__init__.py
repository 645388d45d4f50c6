"""Models, written out: the program of one checkpoint, derived from the one forward pass."""

from .layout import WriteOutError
from .program import Program, write_out
from .templates import reads_text

__all__ = ["Program", "WriteOutError", "reads_text", "write_out"]
