"""A model during decoding: the memory of the sources and the cache of the targets.

A loop requests the logits after targets that grow by one token at a time, and reorders their
rows. In contrastive decoding (`refseq2seq.amateur`) the logits of weaker models, the amateurs,
correct those of the model, the expert.
"""

from dataclasses import replace

import numpy as np

from ..backend import Array, elementwise
from ..model import Memory, Model, decode_checked, encode_checked, new_cache, project_memory
from ..taps import Tap
from .contrastive import Amateur, contrast
from .request import Request


class Inference:
    """A model, its amateurs if it has any, and the targets that they decode.

    Each amateur corrects the result of the previous one. Rows that have ended can be dropped.
    """

    def __init__(self, model: Model, memory: Memory, request: Request) -> None:
        self._amateurs = []
        for i, amateur in enumerate(request.amateurs):
            theirs = _memory_of(amateur, memory, request, request.tap.at(f"amateur.{i}"))
            alone = replace(request, amateurs=())
            self._amateurs.append((amateur, Inference(amateur.model, theirs, alone)))
        if request.copies > 1:
            memory = memory.take(model.xp.asarray(request.source_index))
        batch = len(memory.hidden)
        self._model, self._memory = model, memory
        self._cache = new_cache(model, batch, request.end) if request.use_cache else None
        self._rows = np.arange(batch)  # the rows that have not been dropped

    def next_logits(self, targets: np.ndarray, tap: Tap) -> Array:
        """Logits (batch, vocab_size) after ``targets`` (batch, n), one token longer each time.

        They are 0 in dropped rows, and NaN in a row where a logit has overflowed to -inf.
        """
        xp, cache, rows = self._model.xp, self._cache, self._rows
        new = xp.asarray(targets[rows, cache[0].length if cache else 0 :])
        with np.errstate(over="ignore", invalid="ignore"):  # the loop reports non-finite numbers
            logits = decode_checked(self._model, new, self._memory, cache=cache, tap=tap)[:, -1]
            logits = _nan_where_overflowed(logits, logits.min(axis=-1, keepdims=True))
        if len(rows) < len(targets):
            whole = xp.zeros_like(logits, shape=(len(targets), logits.shape[1]))
            whole[xp.asarray(rows)] = logits
            logits = whole
        for i, (amateur, inference) in enumerate(self._amateurs):
            theirs = inference.next_logits(targets, tap.at(f"amateur.{i}"))
            logits = contrast(logits, theirs, amateur)
        return tap("contrast", logits) if self._amateurs else logits

    def reorder(self, rows: np.ndarray) -> None:
        """Replace the target of row i by that of row ``rows[i]``, which has the same source."""
        index = np.searchsorted(self._rows, rows[self._rows])  # rows of a source drop together
        for layer in self._cache or ():
            layer.reorder(index)
        for _, inference in self._amateurs:
            inference.reorder(rows)

    def drop(self, ended: np.ndarray) -> None:
        """Drop the rows that have ended (batch,), once they are a quarter of the remaining rows.

        Dropping copies the memory and the cache of the other rows.
        """
        staying = np.flatnonzero(~ended[self._rows])
        if 0 < 4 * len(staying) <= 3 * len(self._rows):
            self._memory = self._memory.take(self._model.xp.asarray(staying))
            for layer in self._cache or ():
                layer.reorder(staying)
            self._rows = self._rows[staying]
        for _, inference in self._amateurs:
            inference.drop(ended)


@elementwise
def _nan_where_overflowed(logits: Array, minimum: Array) -> Array:
    """The logits; NaN in rows whose minimum is -inf, which is an overflow, not a removed token."""
    return logits + (minimum - minimum)


def _memory_of(amateur: Amateur, memory: Memory, request: Request, tap: Tap) -> Memory:
    """The amateur's memory of the sources: its own encoding, or the expert's, projected."""
    if amateur.reads_source:
        return encode_checked(amateur.model, request.source, request.source_mask, tap=tap)
    return project_memory(amateur.model, memory.hidden, memory.mask, tap=tap)
