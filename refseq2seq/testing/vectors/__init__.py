"""Test vectors: what a model computes, in files, for those who test without Python.

    refseq2seq vectors make DIR
    refseq2seq vectors check DIR THEIRS

A case is a folder: a configuration, weights, inputs, and every quantity of a forward pass and
of a short generation, with sums in order (`Model.exact`) so that another language can have
the same bits. The files are described byte for byte in docs/vectors.md.
"""

from ...files import safetensors
from .checking import Checked, check
from .families import FAMILIES
from .making import make

__all__ = ["FAMILIES", "Checked", "check", "make", "safetensors"]
