"""Processors that look at what has been decoded, or at the source: penalties, bans, orders.

Each is a function of its settings that gives a processor, ``(scores, state) -> scores``, for
greedy decoding, sampling and beam search alike. Hugging Face has one of the same name for
each (in ``generation/logits_process.py``), and the rules are its rules except where said.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .backend import Array, array_namespace
from .config import ModelConfig
from .filters import check_number, keep, minimum_length
from .request import Request
from .sampling import Processor, State

TokenIds = Sequence[int] | np.ndarray


def rules_of(request: Request, c: ModelConfig) -> list[Processor]:
    """The processors that a request and a model's own rules ask for, before any others."""
    rules: list[Processor] = []
    if request.min_new_tokens:
        rules.append(minimum_length(request.min_new_tokens, request.eos_ids))
    if c.suppressed_ids:
        rules.append(suppress(c.suppressed_ids))
    if c.begin_suppressed_ids:
        rules.append(begin_suppress(c.begin_suppressed_ids, after=int(c.forced_bos_id is not None)))
    if c.forced_bos_id is not None:
        rules.append(forced_bos(c.forced_bos_id))
    if c.forced_eos_id is not None:
        rules.append(forced_eos(c.forced_eos_id, request.max_new_tokens))
    return rules


def repetition_penalty(penalty: float) -> Processor:
    """Make tokens that the target already has less likely (Keskar et al. 2019, section 4.1).

    A positive score is divided by the penalty, a negative one multiplied with it. In greedy
    decoding and sampling scores are logits; in beam search they are log-probabilities, all
    negative, so the same penalty acts differently there, as it does in Hugging Face.

    Parameters
    ----------
    penalty : float
        Positive; above 1 discourages, below 1 encourages. The prefix counts.
    """
    return _penalty("repetition_penalty's penalty", penalty, lambda state: state.tokens)


def encoder_repetition_penalty(penalty: float) -> Processor:
    """Make tokens that the source has more likely: `repetition_penalty` turned over.

    Source and target must share a vocabulary.

    Parameters
    ----------
    penalty : float
        Positive; above 1 encourages copying, below 1 discourages it. Padding does not
        count (in Hugging Face it does).
    """
    check_number("encoder_repetition_penalty's penalty", penalty, 0, np.inf, True, True)

    def real_source(state: State) -> np.ndarray:
        return np.where(state.source_mask, state.source, -1)

    return _penalty("encoder_repetition_penalty's penalty", 1 / penalty, real_source)


def _penalty(name: str, penalty: float, tokens_of: Callable[[State], np.ndarray]) -> Processor:
    check_number(name, penalty, 0, np.inf, low_open=True, high_open=True)
    penalty = float(penalty)

    def process(scores: Array, state: State) -> Array:
        xp = array_namespace(scores)
        seen = xp.asarray(_members(tokens_of(state), scores.shape[-1]))
        return xp.where(seen, xp.where(scores < 0, scores * penalty, scores / penalty), scores)

    return process


def no_repeat_ngram(n: int) -> Processor:
    """Ban each token that would complete n tokens in a row which the target already has.

    Parameters
    ----------
    n : int
        At least 1. The prefix counts.
    """
    _check_count("no_repeat_ngram's n", n)
    return _ban(lambda state, row: _completions(state.tokens[row], state.tokens[row], n))


def encoder_no_repeat_ngram(n: int) -> Processor:
    """Ban each token that would complete n tokens in a row which the source has.

    Parameters
    ----------
    n : int
        At least 1. Source and target must share a vocabulary.
    """
    _check_count("encoder_no_repeat_ngram's n", n)

    def banned(state: State, row: int) -> set[int]:
        return _completions(state.source[row][state.source_mask[row]], state.tokens[row], n)

    return _ban(banned)


def suppress(ids: TokenIds) -> Processor:
    """Ban tokens at every step."""
    ids = _checked_ids("suppress's ids", ids)
    return _ban(lambda state, row: ids)


def begin_suppress(ids: TokenIds, *, after: int = 0) -> Processor:
    """Ban tokens as the new one number ``after`` of a row, counted from 0: the first by default."""
    ids = _checked_ids("begin_suppress's ids", ids)
    return _ban(lambda state, row: ids if state.n_new[row] == after else ())


def bad_words(sequences: Sequence[TokenIds]) -> Processor:
    """Ban the last token of each sequence wherever the target ends with the others.

    Parameters
    ----------
    sequences : sequence of sequences of int
        A single token is banned everywhere.
    """
    words = [_checked_ids("bad_words' sequences", word) for word in sequences]

    def banned(state: State, row: int) -> set[int]:
        tokens = tuple(int(token) for token in state.tokens[row])
        return {word[-1] for word in words if (tokens[len(tokens) - len(word) + 1 :] == word[:-1])}

    return _ban(banned)


def forced_bos(token: int) -> Processor:
    """Make ``token`` the first new one of every row, with score 0.

    M2M100, NLLB and mBART begin a target so with the token of its language. Hugging Face
    does it only after a prefix of one token; here it is after any prefix.
    """
    return _force(token, lambda state: state.n_new == 0)


def forced_eos(token: int, max_new_tokens: int) -> Processor:
    """Make ``token`` the last new one of rows that reach ``max_new_tokens``, with score 0."""
    _check_count("forced_eos's max_new_tokens", max_new_tokens)
    return _force(token, lambda state: state.n_new == max_new_tokens - 1)


def allowed_tokens(function: Callable[[int, np.ndarray], Iterable[int]]) -> Processor:
    """Allow only the tokens that a function names for the target so far.

    Hugging Face's ``prefix_allowed_tokens_fn``.

    Parameters
    ----------
    function : function of (row, tokens) to token ids
        ``row`` is the place of the source in the batch, the same for all its beams;
        ``tokens`` (n,) are prefix and new tokens.
    """

    def process(scores: Array, state: State) -> Array:
        allowed = np.zeros(scores.shape, dtype=bool)
        for row in np.flatnonzero(state.emitting):
            ids = list(function(int(state.rows[row]), state.tokens[row]))
            allowed[row, _in_vocabulary("allowed_tokens", ids, scores.shape[-1])] = True
        allowed[~state.emitting] = True
        return keep(scores, array_namespace(scores).asarray(allowed))

    return process


def _ban(banned: Callable[[State, int], Iterable[int]]) -> Processor:
    def process(scores: Array, state: State) -> Array:
        allowed = np.ones(scores.shape, dtype=bool)
        for row in np.flatnonzero(state.emitting).tolist():
            ids = list(banned(state, row))
            allowed[row, _in_vocabulary("a ban", ids, scores.shape[-1])] = False
        if allowed.all():
            return scores
        return keep(scores, array_namespace(scores).asarray(allowed))

    return process


def _force(token: int, when: Callable[[State], np.ndarray]) -> Processor:
    (token,) = _checked_ids("a forced token", [token])

    def process(scores: Array, state: State) -> Array:
        xp, now = array_namespace(scores), when(state)
        if not now.any():
            return scores
        _in_vocabulary("a forced token", [token], scores.shape[-1])
        forced = xp.where(xp.arange(scores.shape[-1]) == token, 0.0, -np.inf)
        return xp.where(xp.asarray(now)[:, None], forced.astype(scores.dtype), scores)

    return process


def _completions(text: np.ndarray, tokens: np.ndarray, n: int) -> set[int]:
    """Every token that follows, somewhere in ``text``, the last n - 1 of ``tokens``."""
    if len(tokens) < n - 1 or len(text) < n:
        return set()
    windows = np.lib.stride_tricks.sliding_window_view(text, n)
    ending = tokens[len(tokens) - n + 1 :]
    return set(windows[(windows[:, :-1] == ending).all(axis=1), -1].tolist())


def _members(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Which ids each row of ``tokens`` (batch, n) has: (batch, vocab_size); -1 is none."""
    members = np.zeros((len(tokens), vocab_size + 1), dtype=bool)
    np.put_along_axis(members, np.where(tokens < vocab_size, tokens, -1), True, axis=1)
    return members[:, :-1]


def _check_count(name: str, n: int) -> None:
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"{name} must be an int, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"{name} must be at least 1, got {n}")


def _checked_ids(name: str, ids: TokenIds) -> tuple[int, ...]:
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(f"{name} must be token ids, at least one, got {ids!r}")
    return tuple(array.tolist())


def _in_vocabulary(name: str, ids: list[int], vocab_size: int) -> list[int]:
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(f"{name} names the token {max(ids)}; the vocabulary has {vocab_size}")
    return ids
