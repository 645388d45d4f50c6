"""The facts about each quantity that a model computes, and the line of code that computes it."""

import linecache
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .. import taps
from ..backend import Array
from ..config import FrameInput
from ..generation.loop import decode_steps
from ..model import Model
from ..watching.quantities import Quantity, inputs_of, quantity

PACKAGE = Path(taps.__file__).parent

CHAPTERS = (
    ("encoder.frame*", "1. Tokens and positions"),
    ("*.tokens", "1. Tokens and positions"),
    ("*.positions", "1. Tokens and positions"),
    ("*.embed", "1. Tokens and positions"),
    ("*self_attention.*", "2. Attention"),
    ("encoder.*", "3. The encoder"),
    ("*feed_forward*", "3. The encoder"),
    ("*after_self_attention", "3. The encoder"),
    ("decoder.*", "4. The decoder and cross-attention"),
    ("logits", "4. The decoder and cross-attention"),
    ("log_probs", "5. Generation, step by step"),
    ("*", "6. Choosing tokens"),
)
"""The chapter of the course of each quantity: that of the first pattern that matches its name."""


@dataclass(frozen=True)
class Fact:
    """What a model computes under one name.

    Attributes
    ----------
    name : str
        With ``*`` for the index of a layer.
    shape, equation, meaning : str
        As in `refseq2seq.watching.quantities.Quantity`.
    inputs : tuple of str
        The names of the quantities from which this model computes it.
    source : str
        File of the package and line, such as ``attention.py:61``.
    code : str
        The text of that line.
    chapter : str
        Number and title of the chapter of the course that explains it.
    """

    name: str
    shape: str
    equation: str
    meaning: str
    inputs: tuple[str, ...]
    source: str
    code: str
    chapter: str


def facts(model: Model) -> dict[str, Fact]:
    """The facts about each quantity of one step of `refseq2seq.decode_steps`, by name.

    The model decodes one token from the shortest source, and a tap looks at the lines that
    call it.

    Parameters
    ----------
    model : Model

    Returns
    -------
    dict of str to Fact
        In order of execution, without what only contrastive decoding and beam search compute.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> found = facts(rs.load("g2p"))["decoder.layers.*.cross_attention.weights"]
    >>> found.code
    'weights = tap("weights", softmax(scores, mask))'
    >>> found.equation, found.inputs
    ('softmax(scores)', ('decoder.layers.*.cross_attention.scores',))
    """
    lines: dict[str, tuple[str, str]] = {}

    def look(name: str, x: Array) -> Array:
        lines[name] = _line(sys._getframe(1))
        return x

    next(decode_steps(model, _shortest_source(model), max_new_tokens=1, tap=taps.FunctionTap(look)))
    inputs: dict[Quantity, dict[str, None]] = {}
    for name in lines:
        others = [quantity(other).name for other in inputs_of(name, lines)]
        inputs.setdefault(quantity(name), {}).update(dict.fromkeys(others))
    code = {quantity(name).name: line for name, line in lines.items()}
    return {row.name: _fact(row, tuple(inputs[row]), *code[row.name]) for row in inputs}


def _fact(row: Quantity, inputs: tuple[str, ...], source: str, code: str) -> Fact:
    chapter = next(title for pattern, title in CHAPTERS if fnmatchcase(row.name, pattern))
    return Fact(row.name, row.shape, row.equation, row.meaning, inputs, source, code, chapter)


def _line(frame: Any) -> tuple[str, str]:
    """The file and line that called a tap, and its text."""
    while frame.f_code.co_filename == taps.__file__:
        frame = frame.f_back
    path, n = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(path, n, frame.f_globals).partition("  # type: ignore")[0].strip()
    return f"{Path(path).relative_to(PACKAGE).as_posix()}:{n}", code


def _shortest_source(model: Model) -> Any:
    """One token, or the fewest frames that fill a window of each layer."""
    c = model.config.encoder.input
    if not isinstance(c, FrameInput):
        return [[0]]
    return np.zeros((1, next(n for n in count(1) if c.length(n)), c.n_features))
