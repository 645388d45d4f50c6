"""The step-by-step loop: encode once, then one token at a time until each row has ended.

    for step in decode_steps(model, source, max_new_tokens=20):
        print(step.index, step.tokens, step.log_probs)

`generate` only drains that loop; what it gives is what the steps said.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from typing import Any, Self

import numpy as np

from .backend import Array, array_namespace, at_least_float32, freeze, read, to_numpy
from .checks import check_int
from .constraints import with_rules
from .decoder import Amateur, ShrinkingDecoder, check_amateurs, start_decoder
from .failures import no_token
from .model import Model
from .notebook import decimals, listed, table
from .ops import logsumexp
from .options import check_options
from .request import Request, as_request, check_stop, stopped
from .sampling import Chooser, State, apply, check_chooser, draw_uniforms, greedy
from .tokens import Tokens, on_host
from .trace import Tap, check_tap, no_tap

SAMPLE_STRIDE = 2**32  # sample j of a source has the source's row id plus j times this


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Step:
    """One turn of the loop. ``logits`` and ``scores`` are arrays of the model's backend; the
    others are on the host, and cannot be written to.

    In each step a row is in one of three states: ``forced``, when the token comes from
    its prefix; ``emitted``, when the token is new; neither, when the row has ended, and
    the token is ``pad_id``.
    """

    index: int  # 0 for the first step
    tokens: np.ndarray  # (batch,) int64
    logits: Array  # (batch, vocab_size) as the model gives them; anything where a row has ended
    scores: Array  # (batch, vocab_size) after the processors
    log_probs: np.ndarray  # (batch,) of the token under softmax(logits), in nats; 0 after the end
    margin: np.ndarray  # (batch,) best minus second best score; inf if there is no second
    finished: np.ndarray  # (batch,) True from the step of a row's EOS, or of its `stop`, on
    forced: np.ndarray  # (batch,)
    emitted: np.ndarray  # (batch,)

    def __post_init__(self) -> None:
        freeze(self.tokens, self.log_probs, self.margin)
        freeze(self.finished, self.forced, self.emitted)

    def __repr__(self) -> str:
        return f"<Step {self.index}: tokens {listed(self.tokens)}>"

    def _repr_html_(self) -> str:
        head = ("row", "token", "log-probability", "margin", "state")
        states = np.where(self.emitted, np.where(self.finished, "new, the last", "new"), "ended")
        states = np.where(self.forced, "in its prefix", states)
        columns = (self.tokens, decimals(self.log_probs), decimals(self.margin), states)
        return table(f"step {self.index}", head, [*zip(count(), *columns, strict=False)])


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Generation:
    """New tokens of each row, left-aligned: no prefix, EOS kept, ``pad_id`` after it."""

    tokens: np.ndarray  # (batch, n) int64
    lengths: np.ndarray  # (batch,) new tokens of each row, EOS counted
    log_probs: np.ndarray  # (batch, n) under softmax(logits), in nats; 0 after the end
    finished: np.ndarray  # (batch,) True = ended by EOS or by `stop`, False = cut off

    def __repr__(self) -> str:
        least, most = self.lengths.min(), self.lengths.max()
        return (
            f"<Generation of {len(self.lengths)} rows, {least} to {most} tokens, "
            f"{self.finished.sum()} finished>"
        )

    def _repr_html_(self) -> str:
        tokens = [listed(row[:n]) for row, n in zip(self.tokens, self.lengths, strict=True)]
        ended = ["yes" if finished else "no: cut off" for finished in self.finished]
        columns = (tokens, decimals(self.log_probs.sum(axis=1)), ended)
        head = ("row", "tokens", "log-probability", "ended")
        return table(repr(self).strip("<>"), head, [*zip(count(), *columns, strict=False)])

    @classmethod
    def from_steps(cls, steps: Iterable[Step], pad_id: int) -> Self:
        """What some steps of `decode_steps`, from the first on, have generated.

        Raises
        ------
        ValueError
            If there are no steps.
        """
        kept = []  # not whole steps: their logits would fill the memory
        for step in steps:
            kept.append((step.tokens, step.log_probs, step.emitted))
        if not kept:
            raise ValueError("no steps: at least one is needed to know the batch")
        chosen, their_log_probs, emitted = (np.stack(x, axis=1) for x in zip(*kept, strict=True))
        lengths = emitted.sum(axis=1)
        is_new = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.full(is_new.shape, pad_id, dtype=np.int64)
        log_probs = np.zeros(is_new.shape)
        tokens[is_new] = chosen[emitted]  # both in the order of rows, and in a row of steps
        log_probs[is_new] = their_log_probs[emitted]
        return cls(tokens=tokens, lengths=lengths, log_probs=log_probs, finished=step.finished)


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
    check_options("generate", options, decode_steps)
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
        EOS cannot be chosen before a row has this many new tokens, except where the config's
        ``forced_eos_id`` forces it.
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
    uniforms : array, shape (rows, n_uniforms), optional
        Used instead of drawn ones: column t for a row's new token number t, from 0, and so
        at least ``max_new_tokens`` columns.
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
        At once, for arguments of the wrong kind, a request that cannot fit, or a config that
        forces a token where it is suppressed.
    NonFiniteLogitsError
        While iterating, if a row's logits are NaN or infinite: names the row, the step and
        the first quantity that is not finite.
    NoTokenLeftError
        While iterating, if the processors leave a row no token: names the row, the step and
        the processor or rule. A subclass of NonFiniteLogitsError.

    Notes
    -----
    The rules of the model's config, and ``min_new_tokens``, act around the processors of
    ``choose``: bans before them, forced tokens after them; ``refseq2seq/constraints.py`` says why.
    """
    choose = greedy() if choose is None else choose
    check_chooser(choose)
    check_stop(stop)
    check_tap(tap)
    check_amateurs(amateurs, model)
    request = as_request(
        model,
        source,
        source_mask,
        prefix,
        max_new_tokens,
        min_new_tokens,
        eos_ids,
        copies=check_int("num_return_sequences", num_return_sequences, 1),
        amateurs=amateurs,
        use_cache=use_cache,
    )
    processors = with_rules(request, model.config, choose.processors)
    draw = _uniforms_of(request, seed, row_ids, uniforms)
    return _loop(model, request, replace(choose, processors=processors), draw, stop, tap)


class _Targets:
    """The targets while they grow: the state of the loop, all on the host."""

    def __init__(
        self, asked: Request, pad_id: int, draw: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        request = asked.one_per_target()
        batch, start = request.batch, request.start
        self.asked, self.request, self.pad_id, self.draw = asked, request, pad_id, draw
        self.sources = np.arange(batch) // asked.copies  # (batch,) each row's source
        self.tokens = np.full((batch, request.end), pad_id, dtype=np.int64)
        self.tokens[:, :start] = request.prefix[:, :start]
        self.n = start  # tokens so far, the same for every row
        self.n_new = np.zeros(batch, dtype=np.int64)
        self.finished = np.zeros(batch, dtype=bool)

    @property
    def ended(self) -> np.ndarray:
        """Rows that take no more tokens (batch,): finished, or at their full length."""
        return self.finished | (self.n_new == self.request.max_new_tokens)

    def state(self, emitted: np.ndarray) -> State:
        """What processors and choosers may look at."""
        return State(
            tokens=self.tokens[:, : self.n],
            n_new=self.n_new,
            emitting=emitted,
            rows=self.sources,
            source=self.request.source,
            source_mask=self.request.source_mask,
            uniforms=partial(self.draw, self.n_new),
            eos_ids=self.request.eos_ids,
        )

    def append(self, tokens: np.ndarray, emitted: np.ndarray) -> None:
        """One token more in every row."""
        self.tokens[:, self.n] = tokens
        self.n += 1
        self.n_new = self.n_new + emitted
        is_eos = (tokens[:, None] == self.request.eos_ids).any(axis=1)
        self.finished = self.finished | (emitted & is_eos)


def _loop(
    model: Model,
    request: Request,
    choose: Chooser,
    draw: Callable[[np.ndarray], np.ndarray],
    stop: Callable[[Step], Any] | None,
    tap: Tap,
) -> Iterator[Step]:
    decoder = start_decoder(model, request, tap)  # encodes the sources, once
    targets = _Targets(request, model.config.pad_id, draw)
    index = 0
    while not targets.ended.all():
        step = _step(model, decoder, targets, choose, index, tap.at(f"step.{index}"))
        if stop is not None:
            targets.finished = targets.finished | stopped(stop, step, len(step.tokens))
            step = replace(step, finished=targets.finished)
        decoder.drop(targets.ended)
        index += 1
        yield step


def _step(
    model: Model,
    decoder: ShrinkingDecoder,
    targets: _Targets,
    choose: Chooser,
    index: int,
    tap: Tap,
) -> Step:
    # The distribution of the next token of every row.
    logits = decoder.next_logits(targets.tokens[:, : targets.n], tap)

    # A choice from it. Rows still in their prefix take its token; rows that have ended, pad.
    ended = targets.ended
    forced, given = targets.request.forced(targets.n, ended, otherwise=targets.pad_id)
    emitted = ~forced & ~ended
    state = targets.state(emitted)
    with np.errstate(all="ignore"):  # what is not finite is reported below, by row
        scores = tap("scores", apply(choose.processors, logits, state))
        chosen = tap("chosen", choose.pick(scores, state))
        tokens, log_probs, best, margin = _read(logits, scores, chosen, given, emitted)
    unfit = np.isnan(log_probs) & (forced | emitted) | ~np.isfinite(best) & emitted
    if unfit.any():
        row = int(unfit.argmax())
        raise no_token(
            model, targets.asked, choose.processors, logits, state, place=row, row=row, step=index
        )
    log_probs = tap("log_probs", log_probs)

    # One token more.
    targets.append(tokens, emitted)
    return Step(
        index=index,
        tokens=tokens,
        logits=logits,
        scores=scores,
        log_probs=np.where(forced | emitted, log_probs, 0.0),
        margin=np.where(forced | emitted, margin, np.inf),
        finished=targets.finished,
        forced=forced,
        emitted=emitted,
    )


def _read(
    logits: Array, scores: Array, chosen: Array, given: np.ndarray, emitted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their log-probabilities, best scores and margins, in the step's one
    device-to-host read.

    Rows that emit take the chosen token, the others the given one.
    """
    xp, (batch, vocab_size) = array_namespace(logits), logits.shape
    if not hasattr(chosen, "dtype"):
        raise TypeError(f"choose must pick an array of token ids, got {type(chosen).__name__}")
    if chosen.dtype.kind == "u":  # with signed ids these would become floating-point numbers
        chosen = chosen.astype("int64")
    if chosen.shape != (batch,) or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"choose must pick a token id for each row, integers ({batch},), "
            f"got {chosen.dtype} {chosen.shape}"
        )
    rows, best_token = xp.arange(batch), scores.argmax(axis=-1)
    others = scores.copy()
    others[rows, best_token] = -math.inf
    best = scores[rows, best_token]
    token = xp.where(xp.asarray(emitted), chosen, xp.asarray(given))
    wide = at_least_float32(logits)
    try:
        log_probs = wide[rows, token] - logsumexp(wide)[:, 0]
    except IndexError as error:  # NumPy's: an index that CuPy wraps around is found below
        raise _unknown(to_numpy(token), vocab_size) from error
    margin = best - others.max(axis=-1)
    tokens, log_probs, best, margin = read(token, log_probs, best, margin)
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise _unknown(tokens, vocab_size)
    return tokens.astype(np.int64), log_probs, best, margin


def _unknown(tokens: np.ndarray, vocab_size: int) -> ValueError:
    row = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
    return ValueError(
        f"choose must pick token ids from 0 to {vocab_size - 1}, got {tokens[row]:.0f} for row "
        f"{row}"
    )


def _uniforms_of(
    request: Request, seed: int, row_ids: Sequence[int] | None, given: Array | None
) -> Callable[[np.ndarray], np.ndarray]:
    """The function from n_new (rows,) to the uniform numbers of that step, (rows,).

    Numbers are drawn when the first are asked for: a greedy generation draws none.
    """
    ids = range(request.batch) if row_ids is None else on_host("row_ids", row_ids).tolist()
    if not isinstance(ids, list | range):
        raise TypeError(f"row_ids must be a sequence of ints, got {row_ids!r}")
    if len(ids) != request.batch:
        raise ValueError(f"row_ids has {len(ids)} entries, source has {request.batch} rows")
    draw_uniforms(seed, ids, 0)  # draws none: only complains, now
    copies = request.copies
    if copies > 1 and max(ids) >= SAMPLE_STRIDE:
        raise ValueError(f"row_ids must be below 2**32 for several samples, got {max(ids)}")
    stream_ids = [int(row_id) + SAMPLE_STRIDE * j for row_id in ids for j in range(copies)]
    shape = (len(stream_ids), request.max_new_tokens)
    if given is not None:
        table = cache(partial(_checked_uniforms, given, shape))
        table()  # complain now, not at the first draw
    else:
        table = cache(partial(draw_uniforms, seed, stream_ids, request.max_new_tokens))
    rows = np.arange(len(stream_ids))
    return lambda n_new: table()[rows, np.minimum(n_new, request.max_new_tokens - 1)]


def _checked_uniforms(uniforms: Array, shape: tuple[int, int]) -> np.ndarray:
    host = on_host("uniforms", uniforms)
    if host.dtype.kind not in "fiu":
        raise TypeError(f"uniforms must be numbers, got {host.dtype}")
    host = host.astype(np.float64)
    if host.ndim != 2 or host.shape[0] != shape[0] or host.shape[1] < shape[1]:
        raise ValueError(
            f"uniforms must have the shape (batch, max_new_tokens) = {shape}, "
            f"or more columns, got {host.shape}"
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
    check_options("generate_text", options, decode_steps)
    source = [model.source_vocabulary.encode(text) for text in texts]
    out = generate(model, source, **options)
    return [
        model.target_vocabulary.decode(row[:length])
        for row, length in zip(out.tokens, out.lengths, strict=True)
    ]
