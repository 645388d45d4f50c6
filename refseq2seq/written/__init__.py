"""Models, written out: the program of one checkpoint, derived from the one forward pass."""

from .program import Program, write_out

__all__ = ["Program", "write_out"]
