"""The decoding loop: encode once, then add one token at a time until each row has ended.

    for step in decode_steps(model, source, max_new_tokens=20):
        print(step.index, step.tokens, step.log_probs)

`generate` runs that loop to its end and returns the tokens of all steps.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from ..backend import Array, array_namespace, at_least_float32, freeze, read, to_numpy
from ..checks import Source, Tokens, check_int
from ..config import FrameInput
from ..languages import Language, encode_texts, toward
from ..model import Model, check_model, encode_checked
from ..ops import logsumexp
from ..shown import SYMBOLS, Shown
from ..taps import Tap, no_tap
from ..text import name_tokens
from .contrastive import Amateur
from .failures import no_token
from .inference import Inference
from .request import Request, as_request, check_options, stopped, warn_of_settings, with_rules
from .sampling import GREEDY, Chooser, Pick, Processor, State, Uniforms, apply, check_chooser


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Step(Shown):
    """One step of the loop. ``logits`` and ``scores`` are arrays of the model's backend; the
    others are on the host and cannot be written to.

    A row is in one of three states: ``forced``, its token comes from its prefix; ``emitted``,
    its token is new; neither, it has ended before and its token is ``pad_id``.
    """

    index: int  # 0 for the first step
    tokens: np.ndarray  # (batch,) int64
    logits: Array  # (batch, vocab_size) before the processors; arbitrary where a row has ended
    scores: Array  # (batch, vocab_size) after the processors
    log_probs: np.ndarray  # (batch,) of the token under softmax(logits), in nats; 0 after the end
    margin: np.ndarray  # (batch,) best minus second best score; inf if there is no second
    finished: np.ndarray  # (batch,) True from the step of the EOS or `stop` that ends the row
    forced: np.ndarray  # (batch,)
    emitted: np.ndarray  # (batch,)

    def __post_init__(self) -> None:
        freeze(self.tokens, self.log_probs, self.margin)
        freeze(self.finished, self.forced, self.emitted)


def decode_steps(
    model: Model,
    source: Source,
    *,
    source_mask: Array | None = None,
    prefix: Tokens | None = None,
    forced_bos_ids: Sequence[int] | None = None,
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
    source : array (batch, n_source) or (batch, n_source, d), or list of rows
        Token ids, frames or embeddings: see `refseq2seq.encode`. Or a `Memory` from `encode`, or
        from `project_memory` for the output of another encoder.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.
    prefix : integer array (batch, n), or list of lists of token ids, optional
        The first tokens of each target, including the start token; by default only that. One
        row is the prefix of every source. Rows may differ in length: decoding starts after the
        shortest prefix, and the remaining tokens of longer ones are forced. An EOS in the prefix
        does not end a row.
    forced_bos_ids : sequence of int, optional
        The token forced as the first new one, one for each source, -1 for none: a language in
        M2M100, NLLB and mBART-50. By default the config's ``forced_bos_id``. It counts as a new
        token, and needs a prefix of one token.
    max_new_tokens : int, optional
        The maximum number of new tokens of a row, with EOS and without the prefix. By default
        as many as the position table allows; required for a model without one.
    min_new_tokens : int
        EOS cannot be chosen before a row has this many new tokens, except where the config's
        ``forced_eos_id`` forces it.
    eos_ids : sequence of int, optional
        Any of these ends a row. The config's by default; ``()`` for none.
    stop : function of Step, optional
        Called after each step; True ends all rows, a boolean array (batch,) ends the rows
        where it is True.
    choose : Chooser
        Greedy by default.
    num_return_sequences : int
        The number of targets for each source, which is encoded once. The batch of a step then
        has ``len(source) * num_return_sequences`` rows, those of a source together.
    seed : int
        Seed of the uniform numbers, for a chooser that samples.
    row_ids : sequence of int, optional
        The id, below 2^32, that keys the uniforms of each source; 0, 1, 2, ... by default.
        Sample j of a source uses the id plus j * 2^32, so that it does not depend on
        ``num_return_sequences``.
    uniforms : array, shape (rows, n_uniforms), optional
        Replaces the drawn numbers: column t is for a row's new token number t, counted from 0,
        so at least ``max_new_tokens`` columns are needed.
    amateurs : sequence of Amateur
        Models whose logits correct the model's own: contrastive decoding, see
        `refseq2seq.amateur`. The ``logits`` of a step are then the corrected ones.
    use_cache : bool
        False recomputes the whole target in each step: slower, and equal up to rounding.
    tap : Tap
        Receives ``encoder...`` and then ``step.0.decoder...``, ``step.1.decoder...``.

    Returns
    -------
    iterator of Step
        Steps stay valid when the iterator is abandoned.

    Raises
    ------
    TypeError, ValueError
        At once, for arguments of the wrong type, a request that exceeds the position table, or
        a token that is forced where the config or a processor suppresses it.
    NonFiniteLogitsError
        While iterating, if the logits of a row are NaN or infinite. The error names the row,
        the step and the first quantity that is not finite.
    NoTokenLeftError
        While iterating, if the processors remove every token of a row. The error names the row,
        the step and the processor or rule. A subclass of NonFiniteLogitsError.

    Notes
    -----
    The bans of the model's config, and ``min_new_tokens``, act before the processors of
    ``choose``; forced tokens act after them. The module ``constraints`` explains it.
    """
    choose = GREEDY if choose is None else check_chooser(choose)
    request = as_request(
        model,
        source,
        source_mask=source_mask,
        prefix=prefix,
        forced_bos_ids=forced_bos_ids,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_ids=eos_ids,
        copies=check_int("num_return_sequences", num_return_sequences, 1),
        amateurs=amateurs,
        use_cache=use_cache,
        stop=stop,
        tap=tap,
    )
    drawn = Uniforms(
        seed,
        row_ids,
        uniforms,
        batch=request.batch,
        copies=request.copies,
        n_steps=request.max_new_tokens,
    )
    processors = with_rules(request, model.config, choose.processors)
    return _loop(model, request, processors, choose.pick, drawn)


def _loop(
    model: Model, request: Request, processors: Sequence[Processor], pick: Pick, uniforms: Uniforms
) -> Iterator[Step]:
    with np.errstate(over="ignore", invalid="ignore"):  # each step reports non-finite numbers
        memory = encode_checked(model, request.source, request.source_mask, tap=request.tap)
        inference = Inference(model, memory, request)
    targets = _Targets(request, model.config.pad_id, uniforms)
    index = 0
    while not targets.ended.all():
        tap = request.tap.at(f"step.{index}")
        step = _step(model, inference, targets, processors, pick, index, tap)
        if request.stop is not None:
            ends = stopped(request.stop, step, len(step.tokens)) & (step.forced | step.emitted)
            targets.finished = targets.finished | ends
            step = replace(step, finished=targets.finished)
        if request.tap is no_tap:  # a tap receives the whole batch in every step
            inference.drop(targets.ended)
        index += 1
        yield name_tokens(step, model.target_vocabulary)


def _step(
    model: Model,
    inference: Inference,
    targets: "_Targets",
    processors: Sequence[Processor],
    pick: Pick,
    index: int,
    tap: Tap,
) -> Step:
    # The distribution of the next token of every row.
    logits = inference.next_logits(targets.tokens[:, : targets.n], tap)

    # A choice from it. Rows in their prefix take its token; rows that have ended take padding.
    ended = targets.ended
    forced, forced_tokens = targets.per_target.forced(targets.n, ended, targets.pad_id)
    emitted = ~forced & ~ended
    state = targets.state(emitted)
    with np.errstate(all="ignore"):  # non-finite numbers are reported below, by row
        filtered = tap("scores", apply(processors, logits, state))
        chosen = tap("chosen", pick(filtered, state))
        tokens, log_probs, best, margin = _read(logits, filtered, chosen, forced_tokens, emitted)
    # Logits that define no distribution, or no token left to choose.
    unfit = (np.isnan(log_probs) & ~ended) | (~np.isfinite(best) & emitted)
    if unfit.any():
        row = int(unfit.argmax())
        raise no_token(model, targets.request, processors, logits, state, row=row, step=index)
    log_probs = tap("log_probs", log_probs)

    # One more token.
    targets.append(tokens, emitted)
    return Step(
        index=index,
        tokens=tokens,
        logits=logits,
        scores=filtered,
        log_probs=np.where(ended, 0.0, log_probs),
        margin=np.where(ended, np.inf, margin),
        finished=targets.finished,
        forced=forced,
        emitted=emitted,
    )


def _read(
    logits: Array, filtered: Array, chosen: Array, forced_tokens: np.ndarray, emitted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their log-probabilities, best scores and margins, each (batch,).

    Rows that emit take the chosen token, others the forced one. The step has no other
    device-to-host read.
    """
    xp, (batch, vocab_size) = array_namespace(logits), logits.shape
    if not hasattr(chosen, "dtype"):
        raise TypeError(f"choose must pick an array of token ids, got {type(chosen).__name__}")
    if chosen.dtype.kind == "u":  # mixed with signed ids, it would be promoted to float64
        chosen = chosen.astype("int64")
    if chosen.shape != (batch,) or chosen.dtype.kind not in "iu":
        raise ValueError(
            f"choose must pick a token id for each row, integers ({batch},), "
            f"got {chosen.dtype} {chosen.shape}"
        )
    rows, best_token = xp.arange(batch), filtered.argmax(axis=-1)
    others = filtered.copy()
    others[rows, best_token] = -math.inf
    best = filtered[rows, best_token]
    token = xp.where(xp.asarray(emitted), chosen, xp.asarray(forced_tokens))
    wide = at_least_float32(logits)
    try:
        log_probs = wide[rows, token] - logsumexp(wide)[:, 0]
    except IndexError as error:  # from NumPy; CuPy wraps the index, which is checked below
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


class _Targets:
    """The growing targets: the state of the loop, on the host."""

    def __init__(self, request: Request, pad_id: int, uniforms: Uniforms) -> None:
        self.request, self.pad_id, self.uniforms = request, pad_id, uniforms
        self.per_target = request.take(request.source_index)  # a row for each target
        batch, start = self.per_target.batch, request.start
        self.tokens = np.full((batch, request.end), pad_id, dtype=np.int64)
        self.tokens[:, :start] = self.per_target.prefix[:, :start]
        self.n = start  # tokens so far, the same number in every row
        self.n_new = np.zeros(batch, dtype=np.int64)
        self.finished = np.zeros(batch, dtype=bool)

    @property
    def ended(self) -> np.ndarray:
        """Rows that take no more tokens (batch,): finished, or at their full length."""
        return self.finished | (self.n_new == self.request.max_new_tokens)

    def state(self, emitted: np.ndarray) -> State:
        """What processors and choosers may use."""
        uniforms = partial(self.uniforms, self.n_new)
        tokens, index = self.tokens[:, : self.n], self.request.source_index
        return self.per_target.state(tokens, self.n_new, emitted, index, uniforms)

    def append(self, tokens: np.ndarray, emitted: np.ndarray) -> None:
        """Append one token to every row."""
        self.tokens[:, self.n] = tokens
        self.n += 1
        self.n_new = self.n_new + emitted
        is_eos = (tokens[:, None] == self.request.eos_ids).any(axis=1)
        self.finished = self.finished | (emitted & is_eos)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Generation(Shown):
    """New tokens of each row, left-aligned: no prefix, EOS kept, ``pad_id`` after it."""

    tokens: np.ndarray  # (batch, n) int64
    lengths: np.ndarray  # (batch,) new tokens of each row, EOS counted
    log_probs: np.ndarray  # (batch, n) under softmax(logits), in nats; 0 after the end
    finished: np.ndarray  # (batch,) True = ended by EOS or by `stop`, False = cut off

    @classmethod
    def from_steps(cls, steps: Iterable[Step], pad_id: int) -> Self:
        """The result of the first steps of `decode_steps`, or of all of them.

        Raises
        ------
        ValueError
            If there are no steps.
        """
        kept = []  # without the logits of the steps, which are large
        for step in steps:
            kept.append((step.tokens, step.log_probs, step.emitted))
        if not kept:
            raise ValueError("steps is empty: at least one step is needed to know the batch")
        chosen, their_log_probs, emitted = (np.stack(x, axis=1) for x in zip(*kept, strict=True))
        lengths = emitted.sum(axis=1)
        is_new = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.full(is_new.shape, pad_id, dtype=np.int64)
        log_probs = np.zeros(is_new.shape)
        tokens[is_new] = chosen[emitted]  # both ordered by row, then by step
        log_probs[is_new] = their_log_probs[emitted]
        out = cls(tokens=tokens, lengths=lengths, log_probs=log_probs, finished=step.finished)
        if step in SYMBOLS:
            SYMBOLS[out] = SYMBOLS[step]
        return out


def generate(model: Model, source: Source, **options: Any) -> Generation:
    """Encode the source once and decode until every row has ended.

    Takes the arguments of `decode_steps` and returns the result of all its steps. The model's
    settings do not apply: `generate_as_configured` decodes by them.

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
    check_model(model)
    warn_of_settings("generate", model, options)
    return Generation.from_steps(decode_steps(model, source, **options), model.config.pad_id)


def generate_text(
    model: Model,
    texts: Sequence[str],
    *,
    source_language: Language | None = None,
    target_language: Language | None = None,
    **options: Any,
) -> list[str]:
    """Generate texts from texts: encode with the source vocabulary, generate, decode.

    Parameters
    ----------
    model : Model
        With vocabularies, such as ``rs.load("g2p")``.
    texts : sequence of str
    source_language, target_language : str or sequence of str, optional
        The code of a language, or a code for each text, for a tokenizer that knows languages:
        of NLLB, M2M100 or mBART. By default the source's is that of the tokenizer's files, and
        the target's that of the model's generation config. Hugging Face's translation pipeline
        forces the target's language for mBART-cc25 too; here it is the start token.
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
    check_model(model)
    if isinstance(model.config.encoder.input, FrameInput):
        raise ValueError(
            "the model reads frames, not texts: call rs.generate(model, frames), and decode each "
            "row of its tokens with model.target_vocabulary"
        )
    if model.source_vocabulary is None or model.target_vocabulary is None:
        raise ValueError("the model has no vocabularies: give token ids to rs.generate instead")
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, got one string: put it in a list")
    check_options("generate_text", options, decode_steps, generate_text)
    warn_of_settings("generate_text", model, options)
    source = encode_texts(model, texts, source_language)
    if target_language is not None:
        toward_target = toward(model, target_language, len(texts))
        for name in ("prefix", "forced_bos_ids"):
            if options.get(name) is not None:
                raise ValueError(f"{name} and target_language set the same tokens: leave one out")
        options |= toward_target
    out = Generation.from_steps(decode_steps(model, source, **options), model.config.pad_id)
    return [
        model.target_vocabulary.decode(row[:length])
        for row, length in zip(out.tokens, out.lengths, strict=True)
    ]
