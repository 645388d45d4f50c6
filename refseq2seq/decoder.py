"""A model in the middle of decoding: its memory of the source, its cache of the target.

A loop asks it one question, the logits after a target that grows by a token each time, and
gives it one order, to let its rows continue others. Contrastive decoding answers the same
question from several models at once, so that loops need not know of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .backend import Array, array_namespace, elementwise, widened
from .checks import check_number
from .filters import keep
from .model import Memory, Model, check_model, decode_checked, encode, new_cache, remember
from .request import Request
from .trace import Tap, no_tap


class Decoder(Protocol):
    """What a loop needs of a model."""

    def next_logits(self, target: np.ndarray, tap: Tap) -> Array:
        """Logits (batch, vocab_size) after ``target`` (batch, n), a token longer each time."""

    def reorder(self, rows: np.ndarray) -> None:
        """Let row i continue the target of row ``rows[i]``; both have the same source."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only, in ascending order."""


class ModelDecoder:
    """One model, with a cache of ``capacity`` tokens, or without one when that is None."""

    def __init__(self, model: Model, memory: Memory, capacity: int | None) -> None:
        self._model = model
        self._memory = memory
        self._cache = None if capacity is None else new_cache(model, memory.batch, capacity)

    def next_logits(self, target: np.ndarray, tap: Tap) -> Array:
        model, cache = self._model, self._cache
        ids = model.xp.asarray(target[:, cache[0].length if cache else 0 :])
        with np.errstate(over="ignore", invalid="ignore"):  # the loop reports what is not finite
            logits = decode_checked(model, ids, self._memory, cache=cache, tap=tap)[:, -1]
            return _marked(logits, logits.min(axis=-1, keepdims=True))

    def reorder(self, rows: np.ndarray) -> None:
        for layer in self._cache or ():
            layer.reorder(rows)

    def keep(self, rows: np.ndarray) -> None:
        self._memory = self._memory.take(self._model.xp.asarray(rows))
        self.reorder(rows)


@elementwise
def _marked(logits: Array, least: Array) -> Array:
    """The logits, NaN in rows where one is -inf: that is an overflow, and not a token ruled out."""
    return logits + (least - least)


class ShrinkingDecoder:
    """A decoder in which rows that have ended cost nothing: they leave, and get logits of 0.

    Each departure copies what the others remember, so it waits until a quarter can go.
    Rows that are watched stay: what passes a tap has the whole batch.
    """

    def __init__(self, decoder: Decoder, batch: int, watched: bool) -> None:
        self._decoder = decoder
        self._rows = np.arange(batch)  # those that have not left
        self._watched = watched

    def next_logits(self, target: np.ndarray, tap: Tap) -> Array:
        if len(self._rows) == len(target):
            return self._decoder.next_logits(target, tap)
        logits = self._decoder.next_logits(target[self._rows], tap)
        xp = array_namespace(logits)
        whole = xp.zeros_like(logits, shape=(len(target), logits.shape[1]))
        whole[xp.asarray(self._rows)] = logits
        return whole

    def reorder(self, rows: np.ndarray) -> None:
        places = np.searchsorted(self._rows, rows[self._rows])
        self._decoder.reorder(places)

    def drop(self, ended: np.ndarray) -> None:
        """Let go of rows that have ended (batch,), if they are many."""
        going = ended[self._rows]
        if not self._watched and 4 * going.sum() >= len(going) and not going.all():
            self._decoder.keep(np.flatnonzero(~going))
            self._rows = self._rows[~going]


@dataclass(frozen=True, kw_only=True)
class Amateur:
    r"""A weaker model whose preferences are taken from an expert's.

    .. math:: s = w_e s_e - w_a s_a \quad\text{where}\quad
        s_e \ge \max s_e + \log \alpha, \qquad -\infty \text{ elsewhere}

    Make one with `amateur` or `amateur_of_li`.
    """

    model: Model
    alpha: float  # tokens less than alpha times as probable as the expert's best are out
    expert_weight: float
    amateur_weight: float
    reads_source: bool  # False = takes the expert's encoding, as in x-transformers

    def __post_init__(self) -> None:
        check_model(self.model)
        check_number("an amateur's alpha", self.alpha, 0, 1, low_open=True)
        for name in ("expert_weight", "amateur_weight"):
            weight = getattr(self, name)
            check_number(f"an amateur's {name}", weight, -math.inf, math.inf, True, True)


def amateur(
    model: Model, *, alpha: float = 0.1, beta: float = 0.5, reads_source: bool = True
) -> Amateur:
    """(1 + beta) expert - beta amateur (O'Brien and Lewis 2023, Algorithm 2; x-transformers).

    Parameters
    ----------
    model : Model
        With the expert's target vocabulary.
    alpha, beta : float
    reads_source : bool
        True encodes the source with the amateur's own encoder. False gives its decoder
        the expert's encoding, which must have the same width: what x-transformers does.
    """
    beta = check_number("an amateur's beta", beta, -math.inf, math.inf, True, True)
    return Amateur(
        model=model,
        alpha=alpha,
        expert_weight=1 + beta,
        amateur_weight=beta,
        reads_source=reads_source,
    )


def amateur_of_li(model: Model, *, alpha: float = 0.1, reads_source: bool = True) -> Amateur:
    """Expert minus amateur (Li et al. 2022, eq. 3), which as logits differs by a constant."""
    return Amateur(
        model=model, alpha=alpha, expert_weight=1.0, amateur_weight=1.0, reads_source=reads_source
    )


class ContrastiveDecoder:
    """An expert and its amateurs. Each amateur corrects what the ones before it left."""

    def __init__(self, expert: Decoder, amateurs: Sequence[tuple[Amateur, Decoder]]) -> None:
        self._expert = expert
        self._amateurs = amateurs

    def next_logits(self, target: np.ndarray, tap: Tap) -> Array:
        logits = self._expert.next_logits(target, tap)
        for i, (how, decoder) in enumerate(self._amateurs):
            theirs = decoder.next_logits(target, tap.at(f"amateur.{i}"))
            logits = contrast(logits, theirs, how)
        return tap("contrast", logits)

    def reorder(self, rows: np.ndarray) -> None:
        for decoder in (self._expert, *(theirs for _, theirs in self._amateurs)):
            decoder.reorder(rows)

    def keep(self, rows: np.ndarray) -> None:
        for decoder in (self._expert, *(theirs for _, theirs in self._amateurs)):
            decoder.keep(rows)


@widened
def contrast(expert: Array, amateur: Array, how: Amateur) -> Array:
    """Logits of the expert corrected by those of an amateur, both (batch, vocab_size)."""
    best = expert.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # the loop reports what is not finite
        contrasted = float(how.expert_weight) * expert - float(how.amateur_weight) * amateur
    return keep(contrasted, expert >= best + math.log(how.alpha))


def start_decoder(model: Model, request: Request, tap: Tap = no_tap) -> ShrinkingDecoder:
    """Encode the request's sources, once, and give the decoder of all their targets."""
    capacity = request.end if request.use_cache else None
    rows = np.repeat(np.arange(request.batch), request.copies)

    def decoder(model: Model, memory: Memory) -> Decoder:
        memory = memory if request.copies == 1 else memory.take(model.xp.asarray(rows))
        return ModelDecoder(model, memory, capacity)

    contrasted = []
    with np.errstate(over="ignore", invalid="ignore"):  # the loop reports what is not finite
        memory = encode(model, request.source, request.source_mask, tap=tap)
        whole: Decoder = decoder(model, memory)
        for i, how in enumerate(request.amateurs):
            at = tap.at(f"amateur.{i}")
            if how.reads_source:
                theirs = encode(how.model, request.source, request.source_mask, tap=at)
            else:
                theirs = remember(how.model, memory.hidden, memory.mask, tap=at)
            contrasted.append((how, decoder(how.model, theirs)))
    if contrasted:
        whole = ContrastiveDecoder(whole, contrasted)
    return ShrinkingDecoder(whole, len(rows), watched=tap is not no_tap)


def check_amateurs(amateurs: Sequence[Amateur], expert: Model) -> None:
    """Raise unless they can correct the expert."""
    check_model(expert)
    if not isinstance(amateurs, Sequence):
        raise TypeError(
            f"amateurs must be a sequence, such as [rs.amateur(model)], got {amateurs!r}"
        )
    for how in amateurs:
        if not isinstance(how, Amateur):
            raise TypeError(f"amateurs must be such as rs.amateur(model) gives, got {how!r}")
        _check_fits(how, expert)


def _check_fits(how: Amateur, expert: Model) -> None:
    ours, theirs = expert.config, how.model.config
    if theirs.decoder.vocab_size != ours.decoder.vocab_size:
        raise ValueError(
            f"an amateur must have the expert's target vocabulary of {ours.decoder.vocab_size} "
            f"tokens, got {theirs.decoder.vocab_size}"
        )
    if not how.reads_source and theirs.encoder.d_model != ours.encoder.d_model:
        raise ValueError(
            f"an amateur that takes the expert's encoding must have its width "
            f"{ours.encoder.d_model}, got {theirs.encoder.d_model}"
        )
