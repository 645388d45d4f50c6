"""The step-by-step loop: encode once, then one token at a time until each row has ended.

    for step in decode_steps(model, source, max_new_tokens=20):
        print(step.index, step.tokens, step.log_probs)

`generate` only drains that loop; what it gives is what the steps said.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from .backend import Array, array_namespace, to_numpy
from .model import Model, decode, encode, new_cache
from .ops import logsumexp
from .sampling import Chooser, State, draw_uniforms, greedy
from .tokens import Tokens, as_tokens
from .trace import Tap, no_tap


class NonFiniteLogitsError(ValueError):
    """The model gave NaN or infinite logits, from which no token can be chosen."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of the loop. ``logits`` and ``scores`` are arrays of the model's backend.

    In each step a row is in one of three states: ``forced``, when the token comes from
    its prefix; ``emitted``, when the token is new; neither, when the row has ended, and
    the token is ``pad_id``.
    """

    index: int  # 0 for the first step
    tokens: np.ndarray  # (batch,) int64
    logits: Array  # (batch, vocab_size) as the model gives them
    scores: Array  # (batch, vocab_size) after the processors
    log_probs: np.ndarray  # (batch,) of the token under softmax(logits), in nats; 0 after the end
    margin: np.ndarray  # (batch,) best minus second best score; inf if only one is left
    finished: np.ndarray  # (batch,) True from the step of a row's EOS on
    forced: np.ndarray  # (batch,)
    emitted: np.ndarray  # (batch,)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """New tokens of each row, left-aligned: no prefix, EOS kept, ``pad_id`` after it."""

    tokens: np.ndarray  # (batch, n) int64
    lengths: np.ndarray  # (batch,) new tokens of each row, EOS counted
    log_probs: np.ndarray  # (batch, n) under softmax(logits), in nats; 0 after the end
    finished: np.ndarray  # (batch,) True = ended by EOS or by `stop`, False = cut off

    @classmethod
    def from_steps(cls, steps: Iterable[Step], pad_id: int) -> Self:
        """What some steps of `decode_steps`, from the first on, have generated.

        Raises
        ------
        ValueError
            If there are no steps.
        """
        steps = list(steps)
        if not steps:
            raise ValueError("no steps: at least one is needed to know the batch")
        emitted = np.stack([step.emitted for step in steps], axis=1)
        lengths = emitted.sum(axis=1)
        rows = np.arange(len(lengths))
        tokens = np.full((len(rows), lengths.max()), pad_id, dtype=np.int64)
        log_probs = np.zeros(tokens.shape)
        column = np.zeros_like(lengths)
        for step in steps:
            now = rows[step.emitted]
            tokens[now, column[now]] = step.tokens[now]
            log_probs[now, column[now]] = step.log_probs[now]
            column[now] += 1
        return cls(tokens=tokens, lengths=lengths, log_probs=log_probs, finished=steps[-1].finished)


def generate(model: Model, source: Tokens, **options: Any) -> Generation:
    """Encode the source once and decode until every row has ended.

    Takes the arguments of `decode_steps`, and gives its steps in one piece.

    Returns
    -------
    Generation

    Examples
    --------
    >>> import refseq2seq as rs
    >>> model = rs.load("g2p")
    >>> out = rs.generate(model, [model.source_vocabulary.encode("cat")])
    >>> model.target_vocabulary.decode(out.tokens[0])
    'K AE T'
    """
    return Generation.from_steps(decode_steps(model, source, **options), model.config.pad_id)


def decode_steps(
    model: Model,
    source: Tokens,
    *,
    source_mask: Array | None = None,
    prefix: Tokens | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int = 0,
    eos_ids: Sequence[int] | None = None,
    stop: Callable[[Step], Any] | None = None,
    choose: Chooser | None = None,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    uniforms: Array | None = None,
    use_cache: bool = True,
    tap: Tap = no_tap,
) -> Iterator[Step]:
    r"""Decode one token per row and step.

    .. math:: y_t \sim P(y_t \mid y_{<t}, \mathrm{Encoder}(x))

    Parameters
    ----------
    model : Model
    source : integer array (batch, n_source), or list of lists of token ids
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.
    prefix : integer array (batch, n), or list of lists of token ids, optional
        How each target begins, the start token included; that alone by default. Rows may
        differ in length: decoding starts after the shortest, and the others' tokens are
        forced until they are used up. An EOS in the prefix ends nothing.
    max_new_tokens : int, optional
        New tokens per row at most, EOS counted, prefix not. By default as many as the
        position table serves; a model without one must be told.
    min_new_tokens : int
        EOS cannot be chosen before a row has this many new tokens.
    eos_ids : sequence of int, optional
        Any of these ends a row. The config's by default; ``()`` for none.
    stop : function of Step, optional
        Called after each step; True ends everything, a boolean array (batch,) ends the
        rows where it is True.
    choose : Chooser
        `greedy()` by default.
    seed : int
        Of the uniform numbers, for a chooser that samples.
    row_ids : sequence of int, optional
        The name by which each row draws its uniforms; 0, 1, 2, ... by default.
    uniforms : array, shape (batch, max_new_tokens), optional
        Used instead of drawn ones: column t for a row's new token number t, from 0.
    use_cache : bool
        False computes the whole target anew in each step: slower, and the same numbers.
    tap : Tap
        Sees ``encoder...`` and then ``step.0.decoder...``, ``step.1.decoder...``.

    Returns
    -------
    iterator of Step
        What it has yielded stays valid when it is abandoned.

    Raises
    ------
    TypeError, ValueError
        At once, for arguments of the wrong kind or a request that cannot fit.
    NonFiniteLogitsError
        While iterating, if the model's logits are NaN or infinite.
    """
    c = model.config.decoder
    host_source, host_mask = as_tokens(
        "source", source, model.config.encoder.vocab_size, source_mask
    )
    batch = len(host_source)
    start = np.full((batch, 1), model.config.decoder_start_id)
    host_prefix, prefix_mask = as_tokens(
        "prefix", start if prefix is None else prefix, c.vocab_size
    )
    if len(host_prefix) != batch:
        raise ValueError(f"prefix has {len(host_prefix)} rows, source has {batch}")
    if prefix_mask is None:
        prefix_mask = np.ones(host_prefix.shape, dtype=bool)
    n_prefix = prefix_mask.sum(axis=1)
    max_new_tokens = _fitting(max_new_tokens, int(n_prefix.max()), c.max_length)
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(
            f"min_new_tokens must be from 0 to max_new_tokens = {max_new_tokens}, "
            f"got {min_new_tokens}"
        )
    ends = _checked_eos(model.config.eos_ids if eos_ids is None else eos_ids, c.vocab_size)
    row_ids = range(batch) if row_ids is None else row_ids
    if len(row_ids) != batch:
        raise ValueError(f"row_ids has {len(row_ids)} entries, source has {batch} rows")
    if uniforms is not None:
        uniforms = _checked_uniforms(uniforms, (batch, max_new_tokens))
    else:
        draw_uniforms(seed, row_ids, 0)  # complain now, not at the first draw

    def uniforms_of(n_new: np.ndarray) -> np.ndarray:
        nonlocal uniforms
        if uniforms is None:
            uniforms = draw_uniforms(seed, row_ids, max_new_tokens)
        return uniforms[np.arange(batch), np.minimum(n_new, max_new_tokens - 1)]

    request = _Request(
        source=host_source,
        source_mask=np.ones(host_source.shape, dtype=bool) if host_mask is None else host_mask,
        prefix=host_prefix,
        n_prefix=n_prefix,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_ids=ends,
        stop=stop,
        choose=greedy() if choose is None else choose,
        uniforms=uniforms_of,
        use_cache=use_cache,
    )
    return _loop(model, request, tap)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The arguments of `decode_steps`, checked and complete."""

    source: np.ndarray  # (batch, n_source)
    source_mask: np.ndarray  # (batch, n_source)
    prefix: np.ndarray  # (batch, longest prefix)
    n_prefix: np.ndarray  # (batch,)
    max_new_tokens: int
    min_new_tokens: int
    eos_ids: np.ndarray  # (n_eos,)
    stop: Callable[[Step], Any] | None
    choose: Chooser
    uniforms: Callable[[np.ndarray], np.ndarray]  # of n_new (batch,)
    use_cache: bool


def _loop(model: Model, r: _Request, tap: Tap) -> Iterator[Step]:
    pad_id = model.config.pad_id
    memory = encode(model, r.source, r.source_mask, tap=tap)
    n = int(r.n_prefix.min())  # target tokens so far, the same for every row
    n_end = int(r.n_prefix.max()) + r.max_new_tokens
    target = np.full((memory.batch, n_end), pad_id, dtype=np.int64)
    target[:, :n] = r.prefix[:, :n]
    cache = new_cache(model, memory.batch, n_end) if r.use_cache else None
    fed = 0  # of the target tokens, those that the cache holds
    n_new = np.zeros(memory.batch, dtype=np.int64)
    finished = np.zeros(memory.batch, dtype=bool)
    while not (finished | (n_new == r.max_new_tokens)).all():
        index = n - int(r.n_prefix.min())
        at = tap.at(f"step.{index}")

        # the distribution of the next token
        logits = decode(model, target[:, fed:n], memory, cache=cache, tap=at)[:, -1]
        fed = n if r.use_cache else 0

        # rows in their prefix take its token, rows that have ended take pad, others choose
        forced = n < r.n_prefix
        emitted = ~forced & ~finished & (n_new < r.max_new_tokens)
        given = r.prefix[:, n] if forced.any() else np.full(len(forced), pad_id)
        given = np.where(forced, given, pad_id)
        state = State(
            tokens=target[:, :n],
            n_new=n_new,
            source=r.source,
            source_mask=r.source_mask,
            uniforms=partial(r.uniforms, n_new),
        )
        with np.errstate(invalid="ignore"):  # what is not finite is reported, by row
            scores = at("scores", _process(logits, state, r))
            chosen = r.choose.pick(scores, state)
            tokens, log_probs, margin = _read(logits, scores, chosen, given, emitted)
        _check_finite(log_probs, margin, forced, emitted)

        target[:, n] = tokens
        n += 1
        n_new = n_new + emitted
        finished = finished | (emitted & np.isin(tokens, r.eos_ids))
        step = Step(
            index=index,
            tokens=tokens,
            logits=logits,
            scores=scores,
            log_probs=np.where(forced | emitted, log_probs, 0.0),
            margin=margin,
            finished=finished,
            forced=forced,
            emitted=emitted,
        )
        if r.stop is not None:
            finished = finished | np.asarray(r.stop(step), dtype=bool)
            step = replace(step, finished=finished)
        yield step


def _process(logits: Array, state: State, r: _Request) -> Array:
    """The scores: logits without an EOS that comes too early, through the processors."""
    scores = logits
    early = state.n_new < r.min_new_tokens
    if early.any() and len(r.eos_ids):
        xp = array_namespace(logits)
        is_eos = np.isin(np.arange(logits.shape[-1]), r.eos_ids)
        scores = xp.where(xp.asarray(early[:, None] & is_eos), -math.inf, scores)
    for process in r.choose.processors:
        scores = process(scores, state)
    return scores


def _read(
    logits: Array, scores: Array, chosen: Array, given: np.ndarray, emitted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their log-probabilities and the margins, in the step's one device-to-host read.

    Rows that emit take the chosen token, the others the given one.
    """
    xp = array_namespace(logits)
    token = xp.where(xp.asarray(emitted), chosen, xp.asarray(given))[:, None]
    log_probs = xp.take_along_axis(logits, token, axis=-1) - logsumexp(logits)
    best = xp.argmax(scores, axis=-1)[:, None]
    others = xp.where(xp.arange(scores.shape[-1]) == best, -math.inf, scores)
    margin = xp.take_along_axis(scores, best, axis=-1) - xp.max(others, axis=-1, keepdims=True)
    columns = xp.concat([token.astype("float64"), log_probs, margin], axis=-1)
    tokens, host_log_probs, host_margin = to_numpy(columns).T
    return tokens.astype(np.int64), host_log_probs, host_margin


def _check_finite(
    log_probs: np.ndarray, margin: np.ndarray, forced: np.ndarray, emitted: np.ndarray
) -> None:
    if (unfit := np.isnan(log_probs) & (forced | emitted)).any():
        raise NonFiniteLogitsError(
            f"the model's logits of row {unfit.argmax()} are NaN or infinite: "
            "they are no distribution"
        )
    if (empty := np.isnan(margin) & emitted).any():
        raise NonFiniteLogitsError(
            f"the processors left no token for row {empty.argmax()}: all its scores are -inf"
        )


def _fitting(max_new_tokens: int | None, n_prefix: int, max_length: int | None) -> int:
    """``max_new_tokens``, if prefix and new tokens fit; the last token is never fed back."""
    if max_new_tokens is None:
        if max_length is None:
            raise ValueError("max_new_tokens is needed: the model has no position table to end at")
        max_new_tokens = max(max_length + 1 - n_prefix, 1)
    if not isinstance(max_new_tokens, int | np.integer) or isinstance(max_new_tokens, bool):
        raise TypeError(f"max_new_tokens must be an int, got {type(max_new_tokens).__name__}")
    if max_length is not None and n_prefix + max_new_tokens - 1 > max_length:
        raise ValueError(
            f"a prefix of {n_prefix} tokens and max_new_tokens = {max_new_tokens} need "
            f"{n_prefix + max_new_tokens - 1} positions; the model's table serves {max_length}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    return int(max_new_tokens)


def _checked_eos(eos_ids: Sequence[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(eos_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"eos_ids must be a sequence of token ids, got {eos_ids!r}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"eos_ids must be from 0 to {vocab_size - 1}, got {eos_ids!r}")
    return ids.astype(np.int64)


def _checked_uniforms(uniforms: Array, shape: tuple[int, int]) -> np.ndarray:
    host = to_numpy(uniforms).astype(np.float64)
    if host.ndim != 2 or host.shape[0] != shape[0] or host.shape[1] < shape[1]:
        raise ValueError(
            f"uniforms must have the shape (batch, max_new_tokens) = {shape}, got {host.shape}"
        )
    if not ((host >= 0) & (host < 1)).all():
        raise ValueError("uniforms must be in [0, 1)")
    return host


def generate_text(model: Model, texts: Sequence[str], **options: Any) -> list[str]:
    """From text to text: encode each with the source vocabulary, generate, decode.

    Parameters
    ----------
    model : Model
        With vocabularies, such as ``rs.load("g2p")``.
    texts : sequence of str
    **options
        As for `decode_steps`.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import refseq2seq as rs
    >>> rs.generate_text(rs.load("g2p"), ["oracle"])
    ['AO R AH K AH L']
    """
    if model.source_vocabulary is None or model.target_vocabulary is None:
        raise ValueError("the model has no vocabularies: give token ids to rs.generate instead")
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, got one string: put it in a list")
    source = [model.source_vocabulary.encode(text) for text in texts]
    out = generate(model, source, **options)
    return [
        model.target_vocabulary.decode(row[:length])
        for row, length in zip(out.tokens, out.lengths, strict=True)
    ]
