"""A model, written out: the program of one checkpoint, derived from the forward pass of all."""

import os
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array, asarray_like
from ..checks import check_int
from ..files.writing import replacing
from ..model import Model, check_model
from ..params import named_arrays
from . import templates
from .comments import ENCODE, STEP, comment, sizes
from .lines import Body
from .recording import record
from .sources import Copies


class Program:
    """The program of one model; its functions are callable here, on the model's arrays.

    Attributes
    ----------
    source : str
        The text. It imports NumPy, or for a model on a device CuPy, and the standard library.
    """

    def __init__(self, source: str, model: Model) -> None:
        self.source = source
        self._of = model
        self._defined: dict[str, Any] = {"__name__": "program"}
        exec(compile(source, "<program>", "exec"), self._defined)
        self._defined["np"] = model.xp
        self._model = self._defined["tree"](dict(named_arrays(model.params)))

    def __repr__(self) -> str:
        return f"<Program of {self._of!r}, {self.source.count(chr(10))} lines>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the text to a file."""
        with replacing(path) as file:
            file.write(self.source.encode())

    def encode(
        self, source: Array, mask: Array | None = None
    ) -> tuple[Array, list[Array], list[Array]]:
        """The mask, and the keys and values of the source for each decoder layer.

        Parameters
        ----------
        source : integer array, shape (batch, n); or float array, shape (batch, n, n_features)
            Tokens and frames are not validated, here and in `step` and `greedy`. Keys and values at
            padding are those of `refseq2seq.encode` if its ids or frames are 0.
        mask : boolean array, shape (batch, n), optional
            True = real token.
        """
        return self._defined["encode"](self._model, *self._masked(source, mask))

    def new_cache(self, batch: int, capacity: int) -> list[list[Array]]:
        """The cache of `step` before the first token: its own keys, then values, of each layer."""
        xp, c = self._of.xp, self._of.config.decoder
        a, shape = c.self_attention, (batch, c.self_attention.n_kv_heads, capacity)
        widths = (a.d_k, a.d_v)
        return [[xp.empty((*shape, d), self._of.dtype) for _ in range(c.n_layers)] for d in widths]

    def step(self, ids: Array, t: int, memory: Any, cache: list[list[Array]]) -> Array:
        """The logits after one more token of each row: (batch, 1, vocab_size).

        Parameters
        ----------
        ids : integer array, shape (batch, 1)
        t : int
            The position of these tokens: 0 for the start token.
        memory : tuple
            From `encode`.
        cache : list
            From `new_cache`; the keys and values of these tokens are stored in it.
        """
        return self._defined["step"](self._model, ids, t, memory, cache)

    def greedy(self, source: Array, mask: Array | None = None, *, limit: int) -> Array:
        """Up to ``limit`` new tokens, each of the largest logit: integers (batch, up to limit).

        At near-ties `refseq2seq.generate` may choose another token: it drops rows that have ended,
        and the number of rows changes the last bits of a product.
        """
        limit = check_int("limit", limit, 1)
        return self._defined["greedy"](self._model, *self._masked(source, mask), limit)

    def _masked(self, source: Array, mask: Array | None) -> tuple[Array, Array]:
        xp, source = self._of.xp, self._of.xp.asarray(source)
        if source.ndim == 3:
            source = asarray_like(source, self._of.params.decoder.embedding)
        mask = xp.ones(source.shape[:2], dtype="bool") if mask is None else xp.asarray(mask)
        return source, mask


def write_out(model: Model) -> Program:
    r"""Write a model out as one program of NumPy: what this checkpoint computes, and nothing else.

    The forward pass runs once on arrays that record each operation; ``encode`` and ``step`` of the
    program are these operations. They have no option and no branch that the model does not take,
    and compute the bits of `refseq2seq.encode` and of `refseq2seq.decode` with a cache.

    Parameters
    ----------
    model : Model
        For a model on a device, the program imports CuPy instead of NumPy.

    Returns
    -------
    Program

    Raises
    ------
    WriteOutError
        If the forward pass cannot be written as a loop over equal layers, without branches on
        sizes. No model of `refseq2seq.convert` or `refseq2seq.presets` is refused.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> program = rs.write_out(rs.load("g2p"))
    >>> print(program.source[program.source.index("        scores = ") :].partition("\n")[0])
            scores = q @ k.mT * 0.15811388300841897  # 1 / sqrt(d_k); (batch, n_heads, n, n)
    """
    check_model(model)
    return Program(_source(model), model)


def _source(model: Model) -> str:
    with np.errstate(all="ignore"):  # the numbers of the recorded run do not matter
        core, encode, step = record(model)
    calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in [*encode, *step]:
        if node.kind == "operation":
            calls[node.name].append(node.keywords)
    copies, c = Copies(core, calls), model.config
    comment_encode, comment_step = (partial(comment, c, sizes, {}) for sizes in (ENCODE, STEP))
    code = [
        templates.encode(c, Body(encode, copies.call, comment_encode).text),
        templates.STEP.format(body=Body(step, copies.call, comment_step).text("ids")),
        templates.greedy(c, model.dtype.name),
        *(line + "\n" for line in copies.lines()),
        templates.ending(model),
    ]
    return templates.head(model, sizes(c), copies.imports, "".join(code)) + "".join(code)
