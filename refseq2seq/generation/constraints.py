"""Processors that depend on the target so far or on the source: penalties, bans, forced tokens.

Each function returns a processor, ``(scores, state) -> scores``, for greedy decoding, sampling
and beam search. Hugging Face has a processor of the same name for each (in
``generation/logits_process.py``), with the same rules except where documented.

The same processors, made from a model's config and ``min_new_tokens``, are the rules of a
decoding. Bans act before the caller's processors and forced tokens after them: a forced token
overrides every other processor, and top-k does not spend its k tokens on banned ones. The
result is that of Hugging Face's order (penalties, n-gram bans, bad words, minimum lengths,
allowed tokens; then forced tokens; then suppressed ones; then filters), because a ban changes
no other score, and a token that is both forced and suppressed raises an error. A caller's own
function is the exception: it acts before forced tokens here, and after them in Hugging Face.
"""

import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import Array, array_namespace, widened
from ..checks import UnsupportedFeature, check_int, check_number
from ..ops import keep
from .sampling import Processor, State, makes_processor

TokenIds = Collection[int] | np.ndarray
Biases = Mapping[tuple[int, ...], float] | Iterable[tuple[TokenIds, float]]


@makes_processor
def repetition_penalty(penalty: float) -> Processor:
    """Make tokens that the target already contains less likely (Keskar et al. 2019, section 4.1).

    A positive score is divided by the penalty, a negative one is multiplied by it. In greedy
    decoding and sampling, scores are logits. In beam search they are log-probabilities, all
    negative, so the same penalty acts differently there, as it does in Hugging Face; among
    ``logits_processors`` it acts on logits, as it does in CTranslate2.

    Parameters
    ----------
    penalty : float
        Positive; above 1 discourages, below 1 encourages. The prefix counts.
    """
    penalty = check_number("repetition_penalty's penalty", penalty, "(0, inf)")
    return _penalty(penalty, lambda state: state.tokens)


@makes_processor
def encoder_repetition_penalty(penalty: float) -> Processor:
    """Make tokens of the source more likely: the inverse of `repetition_penalty`.

    Source and target must share a vocabulary.

    Parameters
    ----------
    penalty : float
        Positive; above 1 encourages copying, below 1 discourages it. Padding does not
        count (in Hugging Face it does).
    """
    penalty = check_number("encoder_repetition_penalty's penalty", penalty, "(0, inf)")

    def tokens_of(state: State) -> np.ndarray:
        ids, mask = _source_of(state, "encoder_repetition_penalty")
        return np.where(mask, ids, -1)

    return _penalty(1 / penalty, tokens_of)


def _source_of(state: State, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The source's token ids and their mask. Raise if the source has none."""
    if state.source is None or state.source_mask is None:
        raise UnsupportedFeature(
            f"{name} needs the token ids of the source, got frames, embeddings or a Memory: leave "
            "it out"
        )
    return state.source, state.source_mask


def _penalty(penalty: float, tokens_of: Callable[[State], np.ndarray]) -> Processor:
    """Penalise the tokens of each row of ``tokens_of(state)`` (batch, n), except -1."""

    @widened
    def process(scores: Array, state: State) -> Array:
        xp, vocab_size, tokens = array_namespace(scores), scores.shape[-1], tokens_of(state)
        # The last column takes -1 and ids beyond the vocabulary.
        among = np.zeros((len(tokens), vocab_size + 1), dtype=bool)
        np.put_along_axis(among, np.where(tokens < vocab_size, tokens, -1), True, axis=1)
        seen = xp.asarray(among[:, :-1])
        return xp.where(seen, xp.where(scores < 0, scores * penalty, scores / penalty), scores)

    return process


@makes_processor
def no_repeat_ngram(n: int) -> Processor:
    """Ban each token that would complete an n-gram that the target already contains.

    Parameters
    ----------
    n : int
        At least 1. The prefix counts.
    """
    n = check_int("no_repeat_ngram's n", n, 1)

    def banned(state: State, row: int) -> set[int]:
        return _completions(state.tokens[row], state.tokens[row], n)

    return _ban("no_repeat_ngram", banned)


@makes_processor
def encoder_no_repeat_ngram(n: int) -> Processor:
    """Ban each token that would complete an n-gram of the source.

    Parameters
    ----------
    n : int
        At least 1. Source and target must share a vocabulary.
    """
    n = check_int("encoder_no_repeat_ngram's n", n, 1)

    def banned(state: State, row: int) -> set[int]:
        ids, mask = _source_of(state, "encoder_no_repeat_ngram")
        return _completions(ids[row][mask[row]], state.tokens[row], n)

    return _ban("encoder_no_repeat_ngram", banned)


@makes_processor
def suppress(ids: TokenIds) -> Processor:
    """Ban tokens at every step.

    Parameters
    ----------
    ids : collection of int
    """
    ids = _checked_ids("suppress's ids", ids)
    return _ban("suppress", lambda state, row: ids)


@makes_processor
def begin_suppress(ids: TokenIds, *, after: int | np.ndarray = 0) -> Processor:
    """Ban tokens at one position only: as a row's new token number ``after``.

    Parameters
    ----------
    ids : collection of int
    after : int, or integer array (n_sources,)
        Counted from 0: by default the first new token.
    """
    ids = _checked_ids("begin_suppress's ids", ids)
    n = _one_or_each("begin_suppress's after", after)

    def banned(state: State, row: int) -> tuple[int, ...]:
        return ids if state.n_new[row] == (n[state.source_index[row]] if n.ndim else n) else ()

    return _ban("begin_suppress", banned)


@makes_processor
def bad_words(sequences: Sequence[TokenIds]) -> Processor:
    """Ban the last token of each sequence where the target ends with the tokens before it.

    Parameters
    ----------
    sequences : sequence of sequences of int
        A single token is banned everywhere, unless it ends a row: such a sequence is
        ignored, as in Hugging Face. `suppress` bans end tokens too.
    """
    if not isinstance(sequences, Iterable):
        raise TypeError(f"bad_words' sequences must be sequences of token ids, got {sequences!r}")
    words = [_checked_ids("bad_words' sequences", word) for word in sequences]

    def banned(state: State, row: int) -> set[int]:
        tokens = tuple(state.tokens[row].tolist())
        ends = [(token,) for token in state.eos_ids]
        return {
            word[-1]
            for word in words
            if tokens[len(tokens) - len(word) + 1 :] == word[:-1] and word not in ends
        }

    return _ban("bad_words", banned)


@makes_processor
def sequence_bias(biases: Biases) -> Processor:
    """Add a bias to the score of a sequence's last token where the target ends with the others.

    Parameters
    ----------
    biases : mapping of sequences of int to float, or sequence of such pairs
        The bias of each sequence of token ids, added to the logit or, in beam search, to the
        log-probability: positive favours the sequence. A sequence of one token always has its
        bias.

    Examples
    --------
    >>> sequence_bias([([7], 2.0), ([4, 7], -1.0)])
    sequence_bias([([7], 2.0), ([4, 7], -1.0)])
    """
    try:
        pairs = dict(biases) if isinstance(biases, Mapping) else {tuple(x): y for x, y in biases}
    except (TypeError, ValueError) as error:
        told = "sequence_bias's biases must be pairs of token ids and a bias"
        raise TypeError(f"{told}, got {reprlib.repr(biases)}") from error
    found = {
        _checked_ids("sequence_bias's sequences", word): check_number(
            "sequence_bias's bias", bias, "(-inf, inf)"
        )
        for word, bias in pairs.items()
    }

    @widened
    def process(scores: Array, state: State) -> Array:
        added = np.zeros(scores.shape, dtype=scores.dtype)
        for row in np.flatnonzero(state.emitted):
            tokens = tuple(state.tokens[row].tolist())
            for word, bias in found.items():
                (last,) = _in_vocabulary("sequence_bias", word[-1:], scores.shape[-1])
                if tokens[len(tokens) - len(word) + 1 :] == word[:-1]:
                    added[row, last] += bias
        return scores + array_namespace(scores).asarray(added)

    return process


@makes_processor
def exponential_decay(start: int, factor: float) -> Processor:
    """Make the end of a row more likely with each token after the first ``start`` new ones.

    In a row with ``start + k`` new tokens, k > 0, the score s of each token that ends a row
    becomes s + abs(s) (factor ** k - 1).

    Parameters
    ----------
    start : int
    factor : float
        Positive; below 1 makes the end less likely.
    """
    start = check_int("exponential_decay's start", start, 0)
    factor = check_number("exponential_decay's factor", factor, "(0, inf)")

    @widened
    def process(scores: Array, state: State) -> Array:
        xp = array_namespace(scores)
        growth = factor ** np.maximum(state.n_new - start, 0) - 1
        is_end = np.isin(np.arange(scores.shape[-1]), state.eos_ids)
        growth = xp.asarray((growth[:, None] * is_end).astype(scores.dtype))
        finite = xp.where(xp.isfinite(scores), scores, 0.0)
        return scores + xp.abs(finite) * growth

    return process


@makes_processor
def minimum_length(n: int, eos_ids: TokenIds | None = None) -> Processor:
    """Ban the tokens ``eos_ids`` in rows that have fewer than ``n`` new tokens.

    ``min_new_tokens`` of `refseq2seq.decode_steps` applies it before all other processors.

    Parameters
    ----------
    n : int
    eos_ids : collection of int, optional
        By default the tokens that end a row.
    """
    n = check_int("minimum_length's n", n, 0)
    given = None if eos_ids is None else _checked_ids("minimum_length's eos_ids", eos_ids)

    def banned(state: State, row: int) -> Iterable[int]:
        if state.n_new[row] >= n:
            return ()
        return state.eos_ids if given is None else given

    return _ban("minimum_length", banned)


@makes_processor
def forced_bos(token: int | np.ndarray) -> Processor:
    """Force ``token`` as the second token of every target that has one token, with score 0.

    M2M100, NLLB and mBART-50 put the token of a language first in this way. As in Hugging
    Face, it has no effect after a prefix of several tokens.

    Parameters
    ----------
    token : int, or integer array (n_sources,)
        In an array, a negative number forces none. In Hugging Face it is the same for all sources.
    """

    def has_one_token(state: State) -> np.ndarray:
        return np.full(len(state.tokens), state.tokens.shape[1] == 1)

    return _force("forced_bos", token, has_one_token)


@makes_processor
def forced_eos(token: int, max_new_tokens: int) -> Processor:
    """Force ``token`` as the last new one of rows that reach ``max_new_tokens``, with score 0.

    Parameters
    ----------
    token, max_new_tokens : int
    """
    max_new_tokens = check_int("forced_eos's max_new_tokens", max_new_tokens, 1)
    return _force("forced_eos", token, lambda state: state.n_new == max_new_tokens - 1)


@makes_processor
def allowed_tokens(function: Callable[[int, np.ndarray], Iterable[int]]) -> Processor:
    """Allow only the tokens that a function returns for the target so far.

    Hugging Face's ``prefix_allowed_tokens_fn``.

    Parameters
    ----------
    function : function of (row, tokens) to token ids
        ``row`` is the index of the source in the batch, the same for all its beams;
        ``tokens`` (n,) are prefix and new tokens. It is called only for targets that take a
        token now: not for rows that have ended, nor for beams that cannot be chosen.
    """
    if not callable(function):
        raise TypeError(f"allowed_tokens takes a function of (row, tokens), got {function!r}")

    def process(scores: Array, state: State) -> Array:
        allowed = np.zeros(scores.shape, dtype=bool)
        for row in np.flatnonzero(state.emitted):
            ids = function(int(state.source_index[row]), state.tokens[row])
            allowed[row, _in_vocabulary("allowed_tokens", ids, scores.shape[-1])] = True
        allowed[~state.emitted] = True
        return keep(scores, array_namespace(scores).asarray(allowed))

    return process


def _ban(name: str, banned: Callable[[State, int], Iterable[int]]) -> Processor:
    def process(scores: Array, state: State) -> Array:
        allowed = np.ones(scores.shape, dtype=bool)
        for row in np.flatnonzero(state.emitted).tolist():
            ids = _in_vocabulary(name, banned(state, row), scores.shape[-1])
            allowed[row, ids] = False
        if allowed.all():
            return scores
        return keep(scores, array_namespace(scores).asarray(allowed))

    return process


def _force(name: str, token: Any, when: Callable[[State], np.ndarray]) -> Processor:
    if not isinstance(token, np.ndarray):
        (token,) = _checked_ids("a forced token", [token])
    token = _one_or_each(f"{name}'s token", token)

    def process(scores: Array, state: State) -> Array:
        xp = array_namespace(scores)
        tokens = token[state.source_index] if token.ndim else np.full(len(scores), token)
        now = when(state) & (tokens >= 0)
        if not now.any():
            return scores
        _in_vocabulary(name, tokens[now].tolist(), scores.shape[-1])
        is_forced = xp.arange(scores.shape[-1]) == xp.asarray(tokens)[:, None]
        forced = xp.where(is_forced, 0.0, -np.inf).astype(scores.dtype)
        return xp.where(xp.asarray(now)[:, None], forced, scores)

    return process


def _one_or_each(name: str, given: int | np.ndarray) -> np.ndarray:
    """A number for all sources, (), or one for each, (n_sources,)."""
    if not isinstance(given, np.ndarray):
        return np.array(check_int(name, given, 0))
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be an int, or integers (n_sources,), got {given.dtype} {given.shape}"
        )
    return given


def _completions(text: np.ndarray, tokens: np.ndarray, n: int) -> set[int]:
    """All tokens that follow the last n - 1 of ``tokens`` somewhere in ``text``."""
    if len(tokens) < n - 1 or len(text) < n:
        return set()
    windows = np.lib.stride_tricks.sliding_window_view(text, n)
    ending = tokens[len(tokens) - n + 1 :]
    return set(windows[(windows[:, :-1] == ending).all(axis=1), -1].tolist())


def _checked_ids(name: str, ids: TokenIds) -> tuple[int, ...]:
    found = list(ids) if isinstance(ids, Collection | np.ndarray) else []
    if not found or not all(_is_id(x) for x in found):
        raise ValueError(f"{name} must be token ids, at least one, got {reprlib.repr(ids)}")
    return tuple(int(x) for x in found)


def _in_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> list[int]:
    found = list(ids) if isinstance(ids, Iterable) else [ids]
    for token in found:
        if not _is_id(token) or token >= vocab_size:
            raise ValueError(
                f"{name} names token id {token!r}; the vocabulary has ids 0 to {vocab_size - 1}"
            )
    return found


def _is_id(x: Any) -> bool:
    return isinstance(x, int | np.integer) and not isinstance(x, bool) and int(x) >= 0


# Fields of `refseq2seq.settings.Settings` that ask for a processor, in the order of application.
MAKERS: dict[str, Callable[[Any], Processor]] = {
    "sequence_bias": sequence_bias,
    "encoder_repetition_penalty": encoder_repetition_penalty,
    "repetition_penalty": repetition_penalty,
    "no_repeat_ngram": no_repeat_ngram,
    "encoder_no_repeat_ngram": encoder_no_repeat_ngram,
    "bad_words": bad_words,
    "exponential_decay": lambda pair: exponential_decay(*pair),
}
