"""Test vectors: the computations of a model in files, for tests without Python.

    refseq2seq vectors make DIR
    refseq2seq vectors check DIR THEIRS

A case is a folder with a configuration, weights, inputs, and every quantity of a forward pass and
of a short generation. Sums are in a fixed order (`Model.exact`), so that another language can
reproduce the same bits. docs/vectors.md describes the files byte for byte.
"""

from ...files import safetensors
from .checking import Checked, check
from .families import FAMILIES
from .making import make

__all__ = ["FAMILIES", "Checked", "check", "make", "safetensors"]
