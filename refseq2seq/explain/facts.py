"""The facts about each quantity that a model computes, and the code that computes it."""

import ast
import inspect
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import count
from pathlib import Path
from textwrap import dedent
from types import CodeType
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
        File of the package and line, such as ``attention.py:61``, that hands it to the tap.
    code : str
        The text of that line. If it hands over a variable, the lines that compute the variable
        come first.
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
        lines[name] = _source(name, sys._getframe(1))
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


def _source(name: str, frame: Any) -> tuple[str, str]:
    """The file and line that called a tap, and the code that computes what the tap received."""
    while frame.f_code.co_filename == taps.__file__:
        frame = frame.f_back
    path, n = Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix(), frame.f_lineno
    return f"{path}:{n}", _code(frame.f_code, n, name.rpartition(".")[2])


@cache
def _code(compiled: CodeType, line: int, name: str) -> str:
    """The text of a line with ``tap(name, x)``, from the last assignment to the variable x on.

    Assignments in branches do not count. If x is an argument, from the first statement on.
    """
    lines, start = inspect.getsourcelines(compiled)
    function: Any = ast.parse(dedent("".join(lines))).body[0]
    first = n = line - start + 1
    if tapped := re.search(rf'"{name}", (\w+)\)', lines[n - 1]):
        stored = f"id='{tapped[1]}', ctx=Store()"
        above = [s for s in function.body if s.lineno < n and not isinstance(s, ast.If)]
        begin = function.body[ast.get_docstring(function) is not None].lineno
        first = max((s.lineno for s in above if stored in ast.dump(s)), default=begin)
    return re.sub("  # type: ignore.*", "", dedent("".join(lines[first - 1 : n])).rstrip())


def _shortest_source(model: Model) -> Any:
    """One token, or the fewest frames that fill a window of each layer."""
    c = model.config.encoder.input
    if not isinstance(c, FrameInput):
        return [[0]]
    return np.zeros((1, next(n for n in count(1) if c.length(n)), c.n_features))
