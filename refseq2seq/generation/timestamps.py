"""Whisper's rules for the tokens of timestamps, as a processor."""

import math

import numpy as np

from ..backend import Array, array_namespace, at_least_float32
from ..checks import check_int
from ..ops import keep, softmax
from .sampling import Processor, State, makes_processor


@makes_processor
def timestamp_rules(no_timestamps: int, eos: int, *, max_initial: int | None = 50) -> Processor:
    """Constrain Whisper's timestamps to be in order, in pairs, and wherever they are likely.

    The ids above ``no_timestamps`` are timestamps. They mark the start and the end of each
    segment of text. The rules apply to new tokens; the prefix does not count.

    - The first token is a timestamp of at most ``max_initial`` steps.
    - Text and a timestamp are followed by another timestamp, the start of the next segment, or by
      a special token such as ``eos``.
    - Two timestamps, or the first one, are not followed by a timestamp.
    - Timestamps do not decrease, and a segment does not end where it starts.
    - ``<|notimestamps|>`` is banned.
    - If the remaining timestamps together are more probable than every other remaining token, the
      token is a timestamp.

    Parameters
    ----------
    no_timestamps : int
        The id of ``<|notimestamps|>``, just below the timestamps.
    eos : int
        The id of ``<|endoftext|>``. Smaller ids are text.
    max_initial : int, optional
        The largest first timestamp, in steps of 0.02 s; None = no limit. The default is 1 s, as
        in openai/whisper.

    Notes
    -----
    The rules are those of ``ApplyTimestampRules`` in openai/whisper and of
    ``WhisperTimeStampLogitsProcessor`` in transformers, which takes ``max_initial`` from the
    generation config, None if it is missing. Apply them after `suppress` and `begin_suppress`, as
    both libraries do: the last rule compares the remaining tokens. In beam search, ``processors``
    act on log-probabilities, as in transformers; ``logits_processors`` act on logits, so that the
    probabilities of allowed tokens sum to 1, as in openai/whisper.

    Examples
    --------
    >>> timestamp_rules(50362, 50256)
    timestamp_rules(50362, 50256)
    """
    first = check_int("timestamp_rules' no_timestamps", no_timestamps, 0) + 1
    eos = check_int("timestamp_rules' eos", eos, 0)
    if eos > no_timestamps:
        raise ValueError(f"eos must be at most no_timestamps = {no_timestamps}, got {eos}")
    initial = math.inf if max_initial is None else check_int("max_initial", max_initial, 0)

    def process(scores: Array, state: State) -> Array:
        if scores.shape[-1] <= first:
            raise ValueError(
                f"timestamp_rules' no_timestamps = {no_timestamps} must be below the vocabulary's "
                f"last id, {scores.shape[-1] - 1}: timestamps follow it"
            )
        xp = array_namespace(scores)
        allowed = _allowed(state, scores.shape[-1], first, eos, initial)
        scores = keep(scores, xp.asarray(allowed))

        probs = softmax(at_least_float32(scores))
        likely = probs[:, first:].sum(axis=-1) > probs[:, :first].max(axis=-1)
        is_time = xp.arange(scores.shape[-1]) >= first
        return keep(scores, is_time | ~(likely & xp.asarray(state.emitted))[:, None])

    return process


def _allowed(state: State, vocab_size: int, first: int, eos: int, max_initial: float) -> np.ndarray:
    """The tokens that may follow the tokens so far: boolean (batch, vocab_size)."""
    before, last = _kinds(state, first)
    latest = _latest(state, first)
    ids = np.arange(vocab_size)
    is_time, is_text = ids >= first, ids < eos

    ends = (last & ~before)[:, None]  # the last token is the end of a segment
    starts = (last & before)[:, None]  # or the start of one
    is_first = (state.n_new == 0)[:, None]

    banned = (starts & is_time) | (ends & is_text) | (ids == first - 1)
    banned |= is_time & np.where(ends, ids < latest, ids <= latest)
    banned |= is_first & (~is_time | (ids > first + max_initial))
    return ~banned | ~state.emitted[:, None]


def _kinds(state: State, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether the last token but one, or none, and the last are timestamps: both (batch,)."""
    padded = np.pad(state.tokens, ((0, 0), (2, 0)))
    before = (state.n_new < 2) | (padded[:, -2] >= first)
    last = (state.n_new > 0) & (padded[:, -1] >= first)
    return before, last


def _latest(state: State, first: int) -> np.ndarray:
    """The last new timestamp of each row, or -1: (batch, 1)."""
    n = state.tokens.shape[1]
    is_new = np.arange(n) >= n - state.n_new[:, None]
    is_time = is_new & (state.tokens >= first)
    last = np.where(is_time, np.arange(n), -1).max(axis=1, keepdims=True)
    return np.where(last < 0, -1, np.take_along_axis(state.tokens, np.maximum(last, 0), axis=1))
