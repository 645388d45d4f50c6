"""Diagnosis of a row without a token to choose: a non-finite quantity, or a processor.

A loop only detects that a row's best score is not finite. To find the first quantity that is
not finite, the row is recomputed alone, with a tap; to find the processor that removed the last
token, all processors are applied again, one at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..backend import Array, to_numpy
from ..model import Memory, Model, encode_checked
from ..ops import logsumexp
from ..taps import FunctionTap
from .inference import Inference
from .request import Request, named
from .sampling import Processor, State, apply


class NonFiniteLogitsError(ValueError):
    """No token can be chosen: the model's logits are not finite, or the processors' scores."""


class NoTokenLeftError(NonFiniteLogitsError):
    """The logits are finite, but the processors leave no token for a row: every score is -inf,
    or one is NaN or +inf. A subclass, so that one ``except`` catches both.
    """


def no_token(
    model: Model,
    request: Request,
    processors: Sequence[Processor],
    logits: Array,
    state: State,
    *,
    row: int,
    step: int,
    place: int | None = None,
) -> NonFiniteLogitsError:
    """The error for row ``place`` of ``logits`` (batch, vocab_size), called ``row`` in its text.

    By default both are the same; in beam search a row has several places. ``processors`` are all
    that turn logits into scores, including rules.
    """
    place = row if place is None else place
    where = f"row {row} in step {step}"
    with np.errstate(all="ignore"):
        if np.isnan(to_numpy(logsumexp(logits[place : place + 1]))).any():
            index = state.source_index[place : place + 1]
            row_alone = request.take(index)
            if isinstance(request.source, Memory):
                alone = request.source.take(model.xp.asarray(index))
                row_alone = replace(row_alone, source=alone)
            first = _first_not_finite(model, row_alone, state.tokens[place : place + 1])
            return NonFiniteLogitsError(
                f"the model's logits of {where} are NaN or infinite: they define no distribution"
                + (f"; {first} is the first quantity that is not finite" if first else "")
                + (_cure(model) if first else "")
            )
        process, best = _first_to_fail(processors, logits, state, place)
    if process is None:
        return NoTokenLeftError(f"{where} has no finite score to choose a token by")
    if best == -math.inf:
        return NoTokenLeftError(f"no token is left for {where}: {named(process)} removes the last")
    return NoTokenLeftError(
        f"{named(process)} gives {where} the score {best}: scores must be finite, or -inf to "
        "remove a token"
    )


def _first_not_finite(model: Model, request: Request, tokens: np.ndarray) -> str | None:
    """The first quantity that is NaN or infinite when a whole target is recomputed."""
    found: list[str] = []

    def note(name: str, x: Array) -> Array:
        if not found and not np.isfinite(to_numpy(x)).all():
            found.append(name)
        return x

    request = replace(request, tap=FunctionTap(note))
    memory = encode_checked(model, request.source, request.source_mask, tap=request.tap)
    Inference(model, memory, request).next_logits(tokens, request.tap)
    return found[0] if found else None


def _cure(model: Model) -> str:
    wider = {"float16": "float32", "float32": "float64"}.get(model.dtype.name)
    return f" (if it overflows {model.dtype}, try model.astype('{wider}'))" if wider else ""


def _first_to_fail(
    processors: Sequence[Processor], scores: Array, state: State, place: int
) -> tuple[Processor | None, float]:
    """The first processor after which the row's best score is never finite, and that score."""
    failed, found = None, 0.0
    for process in processors:
        scores = apply([process], scores, state)
        best = float(to_numpy(scores[place].max()))
        if math.isfinite(best):
            failed = None
        elif failed is None:
            failed, found = process, best
    return failed, found
