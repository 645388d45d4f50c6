"""Processors that look at the target so far, or at the source: penalties, bans, forced tokens.

Each is a function of its settings that gives a processor, ``(scores, state) -> scores``, for
greedy decoding, sampling and beam search alike. Hugging Face has one of the same name for
each (in ``generation/logits_process.py``), and the rules are its rules except where said.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .backend import Array, array_namespace
from .checks import check_int, check_number
from .config import ModelConfig
from .filters import keep
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
    check_int("no_repeat_ngram's n", n, 1)

    def banned(state: State, row: int) -> set[int]:
        return _completions(state.tokens[row], state.tokens[row], n)

    return _ban("no_repeat_ngram", banned)


def encoder_no_repeat_ngram(n: int) -> Processor:
    """Ban each token that would complete n tokens in a row which the source has.

    Parameters
    ----------
    n : int
        At least 1. Source and target must share a vocabulary.
    """
    check_int("encoder_no_repeat_ngram's n", n, 1)

    def banned(state: State, row: int) -> set[int]:
        return _completions(state.source[row][state.source_mask[row]], state.tokens[row], n)

    return _ban("encoder_no_repeat_ngram", banned)


def suppress(ids: TokenIds) -> Processor:
    """Ban tokens at every step."""
    ids = _checked_ids("suppress's ids", ids)
    return _ban("suppress", lambda state, row: ids)


def begin_suppress(ids: TokenIds, *, after: int = 0) -> Processor:
    """Ban tokens at one place only: as a row's new token number ``after``, by default the first."""
    ids = _checked_ids("begin_suppress's ids", ids)
    check_int("begin_suppress's after", after, 0)
    return _ban("begin_suppress", lambda state, row: ids if state.n_new[row] == after else ())


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

    return _ban("bad_words", banned)


def minimum_length(n: int, eos_ids: Sequence[int] | np.ndarray) -> Processor:
    """Remove the tokens ``eos_ids`` from rows that have fewer than ``n`` new tokens.

    What ``min_new_tokens`` of `refseq2seq.decode_steps` puts before all other processors.
    """
    check_int("minimum_length's n", n, 0)

    def process(scores: Array, state: State) -> Array:
        early = state.n_new < n
        if not early.any():
            return scores
        _in_vocabulary("minimum_length", list(eos_ids), scores.shape[-1])
        is_eos = np.isin(np.arange(scores.shape[-1]), eos_ids)
        return keep(scores, array_namespace(scores).asarray(~(early[:, None] & is_eos)))

    return process


def forced_bos(token: int) -> Processor:
    """Make ``token`` the first new one of every row, with score 0.

    This is how M2M100, NLLB and mBART put the token of its language first in a target.
    Hugging Face does so only after a prefix of one token; here it is so after any.
    """
    return _force("forced_bos", token, lambda state: state.n_new == 0)


def forced_eos(token: int, max_new_tokens: int) -> Processor:
    """Make ``token`` the last new one of rows that reach ``max_new_tokens``, with score 0."""
    check_int("forced_eos's max_new_tokens", max_new_tokens, 1)
    return _force("forced_eos", token, lambda state: state.n_new == max_new_tokens - 1)


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


def _ban(name: str, banned: Callable[[State, int], Iterable[int]]) -> Processor:
    def process(scores: Array, state: State) -> Array:
        allowed = np.ones(scores.shape, dtype=bool)
        for row in np.flatnonzero(state.emitting).tolist():
            ids = list(banned(state, row))
            allowed[row, _in_vocabulary(name, ids, scores.shape[-1])] = False
        if allowed.all():
            return scores
        return keep(scores, array_namespace(scores).asarray(allowed))

    return process


def _force(name: str, token: int, when: Callable[[State], np.ndarray]) -> Processor:
    (token,) = _checked_ids("a forced token", [token])

    def process(scores: Array, state: State) -> Array:
        xp, now = array_namespace(scores), when(state)
        if not now.any():
            return scores
        _in_vocabulary(name, [token], scores.shape[-1])
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


def _checked_ids(name: str, ids: TokenIds) -> tuple[int, ...]:
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(f"{name} must be token ids, at least one, got {ids!r}")
    return tuple(array.tolist())


def _in_vocabulary(name: str, ids: list[int], vocab_size: int) -> list[int]:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"{name} names token id {token}; the vocabulary has ids 0 to {vocab_size - 1}"
            )
    return ids
