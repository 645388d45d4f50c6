"""Beam search: a decoding loop that continues the best few targets of every row.

    for step in beam_steps(model, source, beams=4): ...
    out = beam_search(model, source, beams=4, n_best=2)

The rules, which Hugging Face and CTranslate2 share:

1. A row begins with one live beam, the prefix, with score 0. The score of a beam is the sum of
   the log-probabilities of its new tokens, after the processors. Where a row has fewer than B
   live beams, the other places have the score -inf and copies of the best live beam. No candidate
   comes from them, and ``emitted`` of a processor's state is False there.
2. Each step continues every live beam by every token. The best 2B of these candidates are
   considered, (n + 1) B with n > 1 EOS ids, so that at least B do not end. They are ordered by
   score, then beam, then token.
3. Candidates among the best B that end with EOS become hypotheses. The best B candidates that
   do not end are the next live beams.
4. Hypotheses compare by their normalised score, sum / length ** length_penalty, where the
   length counts new tokens, EOS included. The pool of a row keeps the B best.
5. At the maximum length the best B candidates become hypotheses; so do the live beams of a row
   that ``stop`` ends.
6. A row with a full pool is done, by ``early_stopping``: at once (True); when the best live
   beam, normalised by its own length, does not beat the worst hypothesis of the pool (False);
   when it could not beat it at any length that it may still reach ("never").
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from ..backend import Array, array_namespace, freeze, read
from ..checks import Source, Tokens, check_int, check_number
from ..model import Model, check_model, encode_checked
from ..ops import top_indices
from ..shown import Shown
from ..taps import Tap, no_tap
from ..text import name_tokens
from .contrastive import Amateur
from .failures import no_token
from .inference import Inference
from .request import Request, as_request, check_options, stopped, warn_of_settings, with_rules
from .sampling import Processor, State, apply, check_processors, to_log_probs

EarlyStopping = bool | Literal["never"]
LengthPenalty = float | Callable[[int], float]
"""The exponent of the length, or a function from a length to the divisor of a score."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Hypotheses(Shown):
    """The targets of each row and their scores. Arrays are on the host.

    An index without a target has the score -inf.
    """

    tokens: np.ndarray  # (batch, k, n) new tokens, EOS kept, pad_id after them; n steps were made
    log_probs: np.ndarray  # (batch, k, n) after the processors, in nats; 0 after the end
    lengths: np.ndarray  # (batch, k) new tokens, EOS counted
    scores: np.ndarray  # (batch, k)

    @classmethod
    def none(cls, batch: int, k: int, n: int, pad_id: int) -> Self:
        """k missing targets of n tokens in each row."""
        return cls(
            tokens=np.full((batch, k, n), pad_id),
            log_probs=np.zeros((batch, k, n)),
            lengths=np.zeros((batch, k), dtype=np.int64),
            scores=np.full((batch, k), -np.inf),
        )

    def take(self, indices: np.ndarray) -> Self:
        """The targets at ``indices`` (batch, new_k) of each row."""
        rows = np.arange(len(indices))[:, None]
        return type(self)(**{name: x[rows, indices] for name, x in vars(self).items()})

    def longer(self, pad_id: int) -> Self:
        """The same targets, with room for one more token."""
        room = (*self.scores.shape, 1)
        return replace(
            self,
            tokens=np.concatenate([self.tokens, np.full(room, pad_id)], axis=2),
            log_probs=np.concatenate([self.log_probs, np.zeros(room)], axis=2),
        )

    def extended(self, c: "Candidates", emitted: np.ndarray, pad_id: int) -> Self:
        """The candidates as targets, one token longer than their beams in the rows ``emitted``."""
        parents = self.take(c.beams).longer(pad_id)
        rows, n_new = np.flatnonzero(emitted), self.lengths[emitted, :1]
        indices = np.arange(c.beams.shape[1])
        parents.tokens[rows[:, None], indices, n_new] = c.tokens[emitted]
        parents.log_probs[rows[:, None], indices, n_new] = c.log_probs[emitted]
        lengths = parents.lengths + emitted[:, None]
        return replace(parents, lengths=lengths, scores=c.scores)

    def best(self, k: int, others: Self) -> Self:
        """The k best of these and others, best first; of equal scores, these come first."""
        pairs = {name: [x, getattr(others, name)] for name, x in vars(self).items()}
        both = type(self)(**{name: np.concatenate(pair, axis=1) for name, pair in pairs.items()})
        return both.take(np.argsort(-both.scores, axis=1, kind="stable")[:, :k])


class Candidates(NamedTuple):
    """Continuations of live beams, best first: arrays (batch, n_candidates) on the host."""

    beams: np.ndarray  # the live beam that each continues
    tokens: np.ndarray
    log_probs: np.ndarray  # of the token, after the processors
    scores: np.ndarray  # sums of the log-probabilities of new tokens


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BeamStep(Shown):
    """One step of the search, with the data to draw its tree. Arrays are on the host, and those
    that the search uses again are read-only.
    """

    index: int  # 0 for the first step
    candidates: Candidates  # those considered
    finishing: np.ndarray  # (batch, n_candidates) True = a hypothesis now
    survivors: np.ndarray  # (batch, B) the candidate that each live beam is
    live: Hypotheses  # k = B; scores are sums
    pool: Hypotheses  # k = B, best first; scores are normalised
    done: np.ndarray  # (batch,)
    forced: np.ndarray  # (batch,) the row took a token of its prefix
    margin: np.ndarray  # (batch,) smallest gap between scores that were compared

    def __post_init__(self) -> None:
        freeze(self.done, *vars(self.live).values(), *vars(self.pool).values())


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BeamSearch(Shown):
    """The best hypotheses of each row, best first."""

    tokens: np.ndarray  # (batch, n_best, n) new tokens, EOS kept, pad_id after them
    lengths: np.ndarray  # (batch, n_best) new tokens, EOS counted
    scores: np.ndarray  # (batch, n_best) normalised; -inf where a row has fewer hypotheses
    log_probs: np.ndarray  # (batch, n_best, n) score = their sum divided by the length penalty
    margin: np.ndarray  # (batch,) smallest gap between scores that the search compared


def beam_steps(
    model: Model,
    source: Source,
    *,
    beams: int = 4,
    length_penalty: LengthPenalty = 1.0,
    early_stopping: EarlyStopping = False,
    logits_processors: Sequence[Processor] = (),
    processors: Sequence[Processor] = (),
    stop: Callable[[BeamStep], Any] | None = None,
    source_mask: Array | None = None,
    prefix: Tokens | None = None,
    forced_bos_ids: Sequence[int] | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int = 0,
    eos_ids: Sequence[int] | None = None,
    amateurs: Sequence[Amateur] = (),
    use_cache: bool = True,
    tap: Tap = no_tap,
) -> Iterator[BeamStep]:
    r"""The steps of beam search, by the rules at the top of this module.

    .. math:: \mathrm{score}(y) = \frac{1}{|y|^\alpha} \sum_t \log P(y_t \mid y_{<t}, x)

    Parameters
    ----------
    model, source, source_mask, prefix, forced_bos_ids, max_new_tokens, min_new_tokens, eos_ids
        As in `refseq2seq.decode_steps`.
    beams : int
        B, the number of live beams. It may exceed the size of the vocabulary.
    length_penalty : float, or function of a length
        The exponent alpha of the length, 0 for plain sums; or a function that returns the
        divisor of a score, such as `gnmt_penalty`.
    early_stopping : True, False or "never"
        When a row with a full pool is done: see rule 6.
    logits_processors : sequence of Processor
        Applied to logits, before the log-softmax, as CTranslate2 does. The rules of the model's
        config act after the log-softmax.
    processors : sequence of Processor
        Applied to log-probabilities, as Hugging Face does in beam search (in greedy decoding and
        sampling both libraries apply them to logits). The result is not normalised again,
        unless the last processor is `renormalize_logits`.
    stop : function of BeamStep, optional
        Called after each step; True ends all rows, a boolean array (batch,) ends the rows
        where it is True.
    amateurs, use_cache, tap
        As in `refseq2seq.decode_steps`.

    Returns
    -------
    iterator of BeamStep

    Raises
    ------
    TypeError, ValueError, NonFiniteLogitsError, NoTokenLeftError
        As in `refseq2seq.decode_steps`.
    """
    beams = check_int("beams", beams, 1)
    logits_processors = check_processors(logits_processors, instead="logits_processors=[{}]")
    processors = check_processors(processors, instead="processors=[{}]")
    if not isinstance(early_stopping, bool) and str(early_stopping) != "never":
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    request = as_request(
        model,
        source,
        source_mask=source_mask,
        prefix=prefix,
        forced_bos_ids=forced_bos_ids,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_ids=eos_ids,
        copies=beams,
        amateurs=amateurs,
        use_cache=use_cache,
        stop=stop,
        tap=tap,
    )
    of_logits = (*logits_processors, to_log_probs)
    settings = _Settings(
        n_beams=beams,
        n_considered=max(2, 1 + len(request.eos_ids)) * beams,
        divisors=_divisors(length_penalty, request.max_new_tokens),
        early_stopping=early_stopping,
        processors=with_rules(request, model.config, processors, of_logits),
    )
    return _search(model, request, settings)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Settings:
    """The settings of a search."""

    n_beams: int
    n_considered: int
    divisors: np.ndarray  # (max_new_tokens + 1,) the divisor of a score of this length
    early_stopping: EarlyStopping
    processors: Sequence[Processor]  # from logits to log-probabilities


def _search(model: Model, request: Request, settings: _Settings) -> Iterator[BeamStep]:
    with np.errstate(over="ignore", invalid="ignore"):  # each step reports non-finite numbers
        memory = encode_checked(model, request.source, request.source_mask, tap=request.tap)
        inference = Inference(model, memory, request)
    beams = _Beams(request, model.config.pad_id)
    index = 0
    while not beams.done.all():
        step = _step(model, inference, beams, settings, index, request.tap.at(f"step.{index}"))
        if request.stop is not None:
            ended = stopped(request.stop, step, request.batch) & ~beams.done
            beams.pool = _with_finished(beams.pool, beams.live, ended[:, None], settings)
            beams.done = beams.done | ended
            step = replace(step, pool=beams.pool, done=beams.done)
        if request.tap is no_tap:  # a tap receives the whole batch in every step
            inference.drop(np.repeat(beams.done, settings.n_beams))
        index += 1
        yield name_tokens(step, model.target_vocabulary)


def _step(
    model: Model, inference: Inference, beams: "_Beams", settings: _Settings, index: int, tap: Tap
) -> BeamStep:
    forced, forced_tokens = beams.request.forced(beams.n, beams.done, beams.pad_id)
    emitted = ~forced & ~beams.done

    # The candidates: continuations of every live beam, by the log-probabilities of tokens.
    logits = inference.next_logits(beams.rows, tap)
    considered, gap = _considered(model, logits, beams, emitted, settings, index, tap)
    considered = _carry_unchanged(considered, beams.live, ~emitted, forced_tokens)
    seen = {name: tap(f"candidates.{name}", x) for name, x in considered._asdict().items()}
    considered = Candidates(**seen)

    # The candidates that end, and those that survive.
    last = beams.live.lengths[:, 0] + 1 == beams.request.max_new_tokens
    is_eos = np.isin(considered.tokens, beams.request.eos_ids)
    ends = emitted[:, None] & (is_eos | last[:, None])
    in_top = np.arange(considered.tokens.shape[1]) < settings.n_beams
    finishing = ends & in_top & (considered.scores > -np.inf)
    survivors = np.argsort(ends, axis=1, kind="stable")[:, : settings.n_beams]

    # Candidates that finish enter the pool; the best of the others are the next live beams.
    extended = beams.live.extended(considered, emitted, beams.pad_id)
    pool = _with_finished(beams.pool.longer(beams.pad_id), extended, finishing, settings)
    beams.pool = replace(pool, scores=tap("pool.scores", pool.scores))
    parents = beams.advance(considered, extended, survivors, ends)
    inference.reorder(parents)
    improvable, stop_gap = _improvable(beams.live, beams.pool, settings)
    beams.done = beams.done | (emitted & (last | ~improvable))
    return BeamStep(
        index=index,
        candidates=considered,
        finishing=finishing,
        survivors=survivors,
        live=beams.live,
        pool=beams.pool,
        done=beams.done,
        forced=forced,
        margin=np.where(emitted, np.minimum(gap, stop_gap), np.inf),
    )


def _considered(
    model: Model,
    logits: Array,
    beams: "_Beams",
    emitted: np.ndarray,
    settings: _Settings,
    index: int,
    tap: Tap,
) -> tuple[Candidates, np.ndarray]:
    """The best candidates, from the logits (batch * B, vocab_size), and their smallest gap."""
    state = beams.state(emitted)
    with np.errstate(all="ignore"):  # non-finite numbers are reported below, by row
        log_probs = tap("log_probs", apply(settings.processors, logits, state))
    considered, gap = _candidates(log_probs, beams.live.scores, settings.n_considered)
    unfit = ~np.isfinite(considered.scores[:, 0]) & emitted
    if unfit.any():
        row = int(unfit.argmax())
        place = row * settings.n_beams + int(considered.beams[row, 0])
        raise no_token(
            model,
            beams.request,
            settings.processors,
            logits,
            state,
            place=place,
            row=row,
            step=index,
        )
    return considered, gap


def _candidates(
    log_probs: Array, sum_log_probs: np.ndarray, n: int
) -> tuple[Candidates, np.ndarray]:
    """The n best continuations, by score, then beam, then token, and the smallest gap of scores.

    The gap includes the best continuation that is not considered. The step has no other
    device-to-host read.
    """
    xp, (batch, n_beams) = array_namespace(log_probs), sum_log_probs.shape
    vocab_size = log_probs.shape[-1]
    log_probs = log_probs.astype("float64").reshape(batch, n_beams * vocab_size)
    sums = xp.repeat(xp.asarray(sum_log_probs), vocab_size, axis=1)
    sums = xp.where(sums > -math.inf, sums + log_probs, -math.inf)
    sums = xp.where(xp.isnan(sums), math.inf, sums)  # NaN comes first, and is reported
    indices = top_indices(sums, min(n + 1, sums.shape[1]))
    chosen = (xp.take_along_axis(x, indices, axis=1) for x in (sums, log_probs))
    flat, best, steps = read(indices, *chosen)
    flat = flat.astype(np.int64)
    candidates = Candidates(
        beams=flat[:, :n] // vocab_size,
        tokens=flat[:, :n] % vocab_size,
        log_probs=steps[:, :n],
        scores=best[:, :n],
    )
    return candidates, _least_gap(best)


def _carry_unchanged(
    c: Candidates, live: Hypotheses, carried: np.ndarray, forced_tokens: np.ndarray
) -> Candidates:
    """In ``carried`` rows, every live beam plus the forced token, with log-probability 0."""
    if not carried.any():
        return c
    n_beams, n = live.scores.shape[1], c.tokens.shape[1]
    indices = np.arange(n)
    scores = np.where(indices < n_beams, live.scores[:, np.minimum(indices, n_beams - 1)], -np.inf)
    rows = carried[:, None]
    return Candidates(
        beams=np.where(rows, indices % n_beams, c.beams),
        tokens=np.where(rows, forced_tokens[:, None], c.tokens),
        log_probs=np.where(rows, 0.0, c.log_probs),
        scores=np.where(rows, scores, c.scores),
    )


def _with_finished(
    pool: Hypotheses, targets: Hypotheses, finishing: np.ndarray, settings: _Settings
) -> Hypotheses:
    """The best of the pool and of the ``targets`` that are ``finishing``."""
    normalised = targets.scores / settings.divisors[targets.lengths]
    hypotheses = replace(targets, scores=np.where(finishing, normalised, -np.inf))
    return pool.best(settings.n_beams, hypotheses)


def _improvable(
    live: Hypotheses, pool: Hypotheses, settings: _Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a row's pool may still change, by rule 6, and the gap of that test: both (batch,)."""
    best, worst = live.scores.max(axis=1), pool.scores[:, -1]
    full, n_new = worst > -np.inf, live.lengths[:, 0]
    if settings.early_stopping is True:
        return ~full & (best > -np.inf), np.full(len(full), np.inf)
    if settings.early_stopping == "never":
        divisor = np.array([settings.divisors[n:].max() for n in n_new])
    else:
        divisor = settings.divisors[n_new]
    with np.errstate(invalid="ignore"):  # a row without live beams and hypotheses
        gap = np.where(full & (best > -np.inf), np.abs(best / divisor - worst), np.inf)
    return best / divisor > worst, gap


def _least_gap(scores: np.ndarray) -> np.ndarray:
    """The smallest difference of neighbours in rows of descending scores, ignoring -inf."""
    real = scores[:, 1:] > -np.inf
    with np.errstate(invalid="ignore"):
        gaps = np.where(real, scores[:, :-1] - scores[:, 1:], np.inf)
    return gaps.min(axis=1, initial=np.inf)


class _Beams:
    """The live beams and the pools: the state of the search, on the host."""

    def __init__(self, request: Request, pad_id: int) -> None:
        batch, start, n_beams = request.batch, request.start, request.copies
        self.request, self.pad_id = request, pad_id
        self.per_target = request.take(request.source_index)  # a row for each beam
        # The tokens so far, the same number in every beam: (batch, B, n).
        self.tokens = np.repeat(request.prefix[:, None, :start], n_beams, axis=1)
        self.live = Hypotheses.none(batch, n_beams, 0, pad_id)
        self.live.scores[:, 0] = 0  # rule 1
        self.pool = Hypotheses.none(batch, n_beams, 0, pad_id)
        self.done = np.zeros(batch, dtype=bool)

    @property
    def n(self) -> int:
        """The number of tokens so far."""
        return int(self.tokens.shape[2])

    @property
    def rows(self) -> np.ndarray:
        """The targets of all beams, those of a source together: (batch * B, n)."""
        return self.tokens.reshape(-1, self.n)

    def state(self, emitted: np.ndarray) -> State:
        """What processors may use."""
        index, n_new = self.request.source_index, self.live.lengths[:, 0]
        emitted = emitted[index] & (self.live.scores.reshape(-1) > -np.inf)
        return self.per_target.state(self.rows, n_new[index], emitted, index)

    def advance(
        self, c: Candidates, extended: Hypotheses, survivors: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """Append one token to every beam; return the row that each continues, (batch * B,)."""
        live, has_ended = extended.take(survivors), np.take_along_axis(ends, survivors, axis=1)
        self.live = replace(live, scores=np.where(has_ended, -np.inf, live.scores))
        continued = np.where(self.live.scores > -np.inf, survivors, survivors[:, :1])  # rule 1
        parents, tokens = (np.take_along_axis(x, continued, axis=1) for x in (c.beams, c.tokens))
        so_far = np.take_along_axis(self.tokens, parents[:, :, None], axis=1)
        self.tokens = np.concatenate([so_far, tokens[:, :, None]], axis=2)
        batch, n_beams = parents.shape
        return (np.arange(batch)[:, None] * n_beams + parents).reshape(-1)


def beam_search(
    model: Model, source: Source, *, beams: int = 4, n_best: int = 1, **options: Any
) -> BeamSearch:
    """Search for the most probable targets with several beams.

    Takes the arguments of `beam_steps`, and ``n_best``, the number of hypotheses to return for
    each row, at most ``beams``.

    Returns
    -------
    BeamSearch

    Notes
    -----
    If the scores of another implementation differ by less than half of a row's ``margin``, it
    must find the same targets for that row; otherwise the targets may differ.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> model = rs.load("g2p")
    >>> source = [model.source_vocabulary.encode("read")]
    >>> out = rs.beam_search(model, source, beams=4, n_best=2)
    >>> [model.target_vocabulary.decode(tokens) for tokens in out.tokens[0]]
    ['R EH D', 'R IY D']
    """
    check_options("beam_search", options, beam_steps, beam_search)
    check_model(model)
    warn_of_settings("beam_search", model, {"beams", "n_best", *options})
    steps = beam_steps(model, source, beams=beams, **options)
    n_best = check_int("n_best", n_best, 1)
    if n_best > beams:
        raise ValueError(f"n_best must be at most beams = {beams}, got {n_best}")
    margin = np.array(np.inf)
    for last in steps:
        margin = np.minimum(margin, last.margin)
    batch = len(last.done)
    best = last.pool.take(np.broadcast_to(np.arange(n_best), (batch, n_best)))
    longest = best.lengths.max()
    out = BeamSearch(
        tokens=best.tokens[:, :, :longest],
        lengths=best.lengths,
        scores=best.scores,
        log_probs=best.log_probs[:, :, :longest],
        margin=margin,
    )
    return name_tokens(out, model.target_vocabulary)


def gnmt_penalty(alpha: float) -> Callable[[int], float]:
    """The length penalty ((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14), as in t5x.

    Examples
    --------
    >>> gnmt_penalty(0.5)(19)
    2.0
    """
    alpha = check_number("gnmt_penalty's alpha", alpha, "(-inf, inf)")
    return partial(_gnmt, alpha)


def _gnmt(alpha: float, length: int) -> float:
    return float(((5 + length) / 6) ** alpha)


def _divisors(length_penalty: LengthPenalty, longest: int) -> np.ndarray:
    """The divisor of the score of a hypothesis of each length, 0 to ``longest``."""
    if callable(length_penalty):
        penalty = length_penalty
    elif isinstance(length_penalty, int | float | np.integer | np.floating):
        penalty = partial(_power, float(length_penalty))
    else:
        raise TypeError(
            "length_penalty must be a number, or a function of a length such as "
            f"rs.gnmt_penalty(0.6), got {length_penalty!r}"
        )
    refused = f"length_penalty must return positive finite numbers, got {length_penalty!r}"
    try:
        divisors = np.array([1.0, *(float(penalty(n)) for n in range(1, longest + 1))])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{refused}: {error}") from error
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise ValueError(refused)
    return divisors


def _power(exponent: float, length: int) -> float:
    return length**exponent
