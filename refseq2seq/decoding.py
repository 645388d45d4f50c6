"""The step-by-step loop: encode once, then one token at a time until each row has ended.

    for step in decode_steps(model, source, max_new_tokens=20):
        print(step.index, step.tokens, step.log_probs)

`generate` only drains that loop; what it gives is what the steps said.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self

import numpy as np

from .backend import Array, array_namespace, to_numpy
from .constraints import rules_of
from .decoder import Amateur, start_decoder
from .model import Model
from .ops import logsumexp
from .request import Request, as_request
from .sampling import Chooser, State, draw_uniforms, greedy
from .tokens import Tokens
from .trace import Tap, no_tap

SAMPLE_ID = 2**32  # sample j of a source has the source's row id plus j times this


class NonFiniteLogitsError(ValueError):
    """No token can be chosen: the model's logits, or the processors' scores, are not finite."""


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
    finished: np.ndarray  # (batch,) True from the step of a row's EOS, or of its `stop`, on
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
    num_return_sequences: int = 1,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    uniforms: Array | None = None,
    amateurs: Sequence[Amateur] = (),
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
    num_return_sequences : int
        How many targets to draw for each source, which is encoded once. Every batch below
        then counts ``len(source) * num_return_sequences`` rows, those of a source together.
    seed : int
        Of the uniform numbers, for a chooser that samples.
    row_ids : sequence of int, optional
        The name, below 2^32, by which each source's row draws its uniforms; 0, 1, 2, ... by
        default. Sample number j of a source draws by the name plus j * 2^32, so that it
        does not depend on how many there are.
    uniforms : array, shape (batch, max_new_tokens), optional
        Used instead of drawn ones: column t for a row's new token number t, from 0. There
        may be more columns.
    amateurs : sequence of Amateur
        Models whose logits correct the model's own: contrastive decoding, see
        `refseq2seq.amateur`. A step's ``logits`` are then the corrected ones.
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
        While iterating, if a row's logits are NaN or infinite, or the processors leave it
        no token.
    """
    request = as_request(
        model, source, source_mask, prefix, max_new_tokens, min_new_tokens, eos_ids
    )
    choose = greedy() if choose is None else choose
    if not isinstance(choose, Chooser):
        raise TypeError(f"choose must be a Chooser, such as rs.greedy(), got {choose!r}")
    if stop is not None and not callable(stop):
        raise TypeError(f"stop must be a function of a Step, got {stop!r}")
    rules = rules_of(request, model.config)
    choose = replace(choose, processors=(*rules, *choose.processors))
    if not isinstance(num_return_sequences, int | np.integer) or num_return_sequences < 1:
        raise ValueError(
            f"num_return_sequences must be an int of at least 1, got {num_return_sequences!r}"
        )
    copies = int(num_return_sequences)
    draw = _uniforms_of(request, copies, seed, row_ids, uniforms)
    return _loop(model, request, copies, choose, draw, stop, amateurs, use_cache, tap)


def _loop(
    model: Model,
    request: Request,
    copies: int,
    choose: Chooser,
    draw: Callable[[np.ndarray], np.ndarray],
    stop: Callable[[Step], Any] | None,
    amateurs: Sequence[Amateur],
    use_cache: bool,
    tap: Tap,
) -> Iterator[Step]:
    decoder = start_decoder(
        model, request, amateurs=amateurs, copies=copies, use_cache=use_cache, tap=tap
    )
    request = request.repeated(copies)
    target = np.full((request.batch, request.end), model.config.pad_id, dtype=np.int64)
    target[:, : request.start] = request.prefix[:, : request.start]
    n = request.start  # target tokens so far, the same for every row
    n_new = np.zeros(request.batch, dtype=np.int64)
    finished = np.zeros(request.batch, dtype=bool)
    while not (finished | (n_new == request.max_new_tokens)).all():
        index = n - request.start
        at = tap.at(f"step.{index}")

        # The distribution of the next token of every row.
        logits = decoder.next_logits(target[:, :n], at)

        # A choice from it. Rows still in their prefix take its token; rows that have ended, pad.
        forced, given = request.forced(n, otherwise=model.config.pad_id)
        emitted = ~forced & ~finished & (n_new < request.max_new_tokens)
        state = State(
            tokens=target[:, :n],
            n_new=n_new,
            emitting=emitted,
            rows=np.arange(request.batch) // copies,
            source=request.source,
            source_mask=request.source_mask,
            uniforms=partial(draw, n_new),
        )
        with np.errstate(all="ignore"):  # what is not finite is reported below, by row
            scores = logits
            for process in choose.processors:
                scores = process(scores, state)
            scores = at("scores", scores)
            chosen = at("chosen", choose.pick(scores, state))
            tokens, log_probs, best, margin = _read(logits, scores, chosen, given, emitted)
        _check_finite(log_probs, best, forced, emitted)
        log_probs = at("log_probs", log_probs)

        # One token more.
        target[:, n] = tokens
        n += 1
        n_new = n_new + emitted
        finished = finished | (emitted & np.isin(tokens, request.eos_ids))
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
        if stop is not None:
            finished = finished | _checked_stop(stop(step), request.batch)
            step = replace(step, finished=finished)
        yield step


def _read(
    logits: Array, scores: Array, chosen: Array, given: np.ndarray, emitted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their log-probabilities, best scores and margins, in the step's one
    device-to-host read.

    Rows that emit take the chosen token, the others the given one.
    """
    xp = array_namespace(logits)
    token = xp.where(xp.asarray(emitted), chosen, xp.asarray(given))[:, None]
    log_probs = xp.take_along_axis(logits, token, axis=-1) - logsumexp(logits)
    best = xp.max(scores, axis=-1, keepdims=True)
    is_best = xp.arange(scores.shape[-1]) == xp.argmax(scores, axis=-1)[:, None]
    margin = best - xp.max(xp.where(is_best, -math.inf, scores), axis=-1, keepdims=True)
    columns = xp.concat([token.astype("float64"), log_probs, best, margin], axis=-1)
    tokens, host_log_probs, host_best, host_margin = to_numpy(columns).T
    return tokens.astype(np.int64), host_log_probs, host_best, host_margin


def _check_finite(
    log_probs: np.ndarray, best: np.ndarray, forced: np.ndarray, emitted: np.ndarray
) -> None:
    if (unfit := np.isnan(log_probs) & (forced | emitted)).any():
        raise NonFiniteLogitsError(
            f"the model's logits of row {unfit.argmax()} are NaN or infinite: "
            "they are no distribution"
        )
    if (unfit := ~np.isfinite(best) & emitted).any():
        raise NonFiniteLogitsError(
            f"the processors left row {unfit.argmax()} no token to choose: "
            f"its best score is {best[unfit.argmax()]}"
        )


def _uniforms_of(
    request: Request, copies: int, seed: int, row_ids: Sequence[int] | None, given: Array | None
) -> Callable[[np.ndarray], np.ndarray]:
    """The function from n_new (rows,) to the uniform numbers of that step, (rows,).

    Numbers are drawn when the first are asked for: a greedy generation draws none.
    """
    names = range(request.batch) if row_ids is None else row_ids
    if len(names) != request.batch:
        raise ValueError(f"row_ids has {len(names)} entries, source has {request.batch} rows")
    if copies > 1 and max(names) >= SAMPLE_ID:
        raise ValueError(f"row_ids must be below 2**32 for several samples, got {max(names)}")
    row_names = [name + SAMPLE_ID * j for name in names for j in range(copies)]
    shape = (len(row_names), request.max_new_tokens)
    if given is not None:
        table = cache(partial(_checked_uniforms, given, shape))
        table()  # complain now, not at the first draw
    else:
        draw_uniforms(seed, row_names, 0)
        table = cache(partial(draw_uniforms, seed, row_names, request.max_new_tokens))
    rows = np.arange(len(row_names))
    return lambda n_new: table()[rows, np.minimum(n_new, request.max_new_tokens - 1)]


def _checked_uniforms(uniforms: Array, shape: tuple[int, int]) -> np.ndarray:
    host = to_numpy(uniforms).astype(np.float64)
    if host.ndim != 2 or host.shape[0] != shape[0] or host.shape[1] < shape[1]:
        raise ValueError(
            f"uniforms must have the shape (batch, max_new_tokens) = {shape}, "
            f"or more columns, got {host.shape}"
        )
    if not ((host >= 0) & (host < 1)).all():
        raise ValueError("uniforms must be in [0, 1)")
    return host


def _checked_stop(answer: Any, batch: int) -> np.ndarray:
    ended = to_numpy(answer).astype(bool)
    if ended.shape not in ((), (batch,)):
        raise ValueError(f"stop must give a boolean or an array ({batch},), got {ended.shape}")
    return ended


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
