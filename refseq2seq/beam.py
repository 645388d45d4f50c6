"""Beam search: the same loop, with the best few histories of every row kept alive.

    for step in beam_steps(model, source, beams=4): ...
    out = beam_search(model, source, beams=4, n_best=2)

The rules, which Hugging Face and CTranslate2 share:

1. A row begins with one live beam, the prefix, of score 0. A score is the sum of the
   log-probabilities of new tokens, after the processors. A beam whose score is -inf cannot be
   chosen: it repeats the best live one, and ``emitting`` of a processor's state is False.
2. In each step every live beam is continued by every token. Of these candidates the best
   2B are considered (more with several EOS ids, so that B always remain that do not end),
   ordered by score, then beam, then token.
3. Those of the best B that end with EOS become hypotheses. The best B that do not end are
   the next live beams.
4. A hypothesis competes by its normalised score, sum / length ** length_penalty, where
   the length counts new tokens, EOS included. A row's pool keeps the B best.
5. At the maximum length the best B candidates become hypotheses as they are; so do the live
   beams of a row that ``stop`` ends.
6. A row is done when its pool is full and, by ``early_stopping``: at once (True); when the
   best live beam, normalised by its own length, does not beat the worst of the pool
   (False); when it could not beat it at any length it may still reach ("never").
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from .backend import Array, array_namespace, freeze, read
from .checks import check_int, check_number
from .constraints import with_rules
from .decoder import Amateur, ShrinkingDecoder, check_amateurs, start_decoder
from .failures import no_token
from .filters import renormalize_logits
from .model import Model
from .options import check_options
from .request import Request, as_request, check_stop, stopped
from .sampling import Processor, State, apply, check_processors, no_uniforms
from .tokens import Tokens
from .trace import Tap, check_tap, no_tap

EarlyStopping = bool | Literal["never"]
LengthPenalty = float | Callable[[int], float]
"""The exponent of the length, or the function from a length to what a score is divided by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hypotheses:
    """Some targets of each row and their scores. Arrays are on the host.

    A place that holds no target has the score -inf.
    """

    tokens: np.ndarray  # (batch, k, n) new tokens, EOS kept, pad_id after them; n steps were made
    log_probs: np.ndarray  # (batch, k, n) after the processors, in nats; 0 after the end
    lengths: np.ndarray  # (batch, k) new tokens, EOS counted
    scores: np.ndarray  # (batch, k)

    @classmethod
    def none(cls, batch: int, k: int, n: int, pad_id: int) -> Self:
        """Places for k targets of n tokens in each row, that hold none."""
        return cls(
            tokens=np.full((batch, k, n), pad_id),
            log_probs=np.zeros((batch, k, n)),
            lengths=np.zeros((batch, k), dtype=np.int64),
            scores=np.full((batch, k), -np.inf),
        )

    def take(self, places: np.ndarray) -> Self:
        """Those at ``places`` (batch, new_k) of each row."""
        rows = np.arange(len(places))[:, None]
        return type(self)(
            tokens=self.tokens[rows, places],
            log_probs=self.log_probs[rows, places],
            lengths=self.lengths[rows, places],
            scores=self.scores[rows, places],
        )

    def longer(self, pad_id: int) -> Self:
        """These, with a place for one more token."""
        place = (*self.scores.shape, 1)
        return replace(
            self,
            tokens=np.concatenate([self.tokens, np.full(place, pad_id)], axis=2),
            log_probs=np.concatenate([self.log_probs, np.zeros(place)], axis=2),
        )

    def extended(self, c: "Candidates", emitted: np.ndarray, pad_id: int) -> Self:
        """These, continued as the candidates say: one more token in the rows ``emitted``."""
        parents = self.take(c.beams).longer(pad_id)
        rows, n_new = np.flatnonzero(emitted), self.lengths[emitted, :1]
        places = np.arange(c.beams.shape[1])
        parents.tokens[rows[:, None], places, n_new] = c.tokens[emitted]
        parents.log_probs[rows[:, None], places, n_new] = c.log_probs[emitted]
        lengths = parents.lengths + emitted[:, None]
        return replace(parents, lengths=lengths, scores=c.scores)

    def best(self, k: int, others: Self) -> Self:
        """The k best of these and others, best first; of equal ones, these go before."""
        both = type(self)(
            tokens=np.concatenate([self.tokens, others.tokens], axis=1),
            log_probs=np.concatenate([self.log_probs, others.log_probs], axis=1),
            lengths=np.concatenate([self.lengths, others.lengths], axis=1),
            scores=np.concatenate([self.scores, others.scores], axis=1),
        )
        return both.take(np.argsort(-both.scores, axis=1, kind="stable")[:, :k])


class Candidates(NamedTuple):
    """Continuations of live beams, best first: arrays (batch, n_candidates) on the host."""

    beams: np.ndarray  # the live beam that each continues
    tokens: np.ndarray
    log_probs: np.ndarray  # of the token, after the processors
    scores: np.ndarray  # sum of the log-probabilities of new tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class BeamStep:
    """One turn of the search: enough to draw its tree. Arrays are on the host, and those that
    the search goes on with cannot be written to.
    """

    index: int  # 0 for the first step
    candidates: Candidates  # those considered
    finishing: np.ndarray  # (batch, n_candidates) True = a hypothesis now
    survivors: np.ndarray  # (batch, B) the candidate that each live beam is
    live: Hypotheses  # k = B; scores are sums
    pool: Hypotheses  # k = B, best first; scores are normalised
    done: np.ndarray  # (batch,)
    forced: np.ndarray  # (batch,) the row took a token of its prefix
    margin: np.ndarray  # (batch,) least gap between scores that were compared

    def __post_init__(self) -> None:
        freeze(self.done, *vars(self.live).values(), *vars(self.pool).values())


@dataclass(frozen=True, kw_only=True, eq=False)
class BeamSearch:
    """The best hypotheses of each row, best first."""

    tokens: np.ndarray  # (batch, n_best, n) new tokens, EOS kept, pad_id after them
    lengths: np.ndarray  # (batch, n_best) new tokens, EOS counted
    scores: np.ndarray  # (batch, n_best) normalised; -inf where a row has fewer hypotheses
    log_probs: np.ndarray  # (batch, n_best, n) their sum over the length penalty is the score
    margin: np.ndarray  # (batch,) the least gap between scores that the search compared


def beam_search(
    model: Model, source: Tokens, *, beams: int = 4, n_best: int = 1, **options: Any
) -> BeamSearch:
    """Search for the most probable targets with several beams.

    Takes the arguments of `beam_steps`, and ``n_best``: how many hypotheses to give for
    each row, at most ``beams``.

    Returns
    -------
    BeamSearch

    Notes
    -----
    If another implementation's scores differ by less than half of a row's ``margin``, it
    must give the same targets for that row; otherwise they may differ.

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
    return BeamSearch(
        tokens=best.tokens[:, :, :longest],
        lengths=best.lengths,
        scores=best.scores,
        log_probs=best.log_probs[:, :, :longest],
        margin=margin,
    )


def beam_steps(
    model: Model,
    source: Tokens,
    *,
    beams: int = 4,
    length_penalty: LengthPenalty = 1.0,
    early_stopping: EarlyStopping = False,
    logits_processors: Sequence[Processor] = (),
    processors: Sequence[Processor] = (),
    stop: Callable[[BeamStep], Any] | None = None,
    source_mask: Array | None = None,
    prefix: Tokens | None = None,
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
    model, source, source_mask, prefix, max_new_tokens, min_new_tokens, eos_ids
        As in `refseq2seq.decode_steps`.
    beams : int
        B, the number of live beams; may exceed the vocabulary.
    length_penalty : float, or function of a length
        The exponent alpha of the length, 0 for plain sums; or what a score is divided by,
        such as `gnmt_penalty`.
    early_stopping : True, False or "never"
        When a row with a full pool is done: rule 6.
    logits_processors : sequence of Processor
        Applied to logits, whose log-softmax then gives the log-probabilities of the tokens
        that remain: as CTranslate2 does. The rules of the model's config act after it.
    processors : sequence of Processor
        Applied to log-probabilities, as Hugging Face does in beam search (in greedy and
        sampling both libraries apply them to logits), and not normalised again, unless the
        last is `renormalize_logits`.
    stop : function of BeamStep, optional
        Called after each step; True ends everything, a boolean array (batch,) ends the
        rows where it is True.
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
    check_stop(stop)
    check_tap(tap)
    check_amateurs(amateurs, model)
    if not isinstance(early_stopping, bool) and str(early_stopping) != "never":
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    request = as_request(
        model,
        source,
        source_mask,
        prefix,
        max_new_tokens,
        min_new_tokens,
        eos_ids,
        copies=beams,
        amateurs=amateurs,
        use_cache=use_cache,
    )
    of_logits = (*logits_processors, renormalize_logits())
    settings = _Settings(
        n_beams=beams,
        n_considered=max(2, 1 + len(request.eos_ids)) * beams,
        divisors=_divisors(length_penalty, request.max_new_tokens),
        early_stopping=early_stopping,
        processors=with_rules(request, model.config, processors, of_logits),
        stop=stop,
    )
    return _search(model, request, settings, tap)


def gnmt_penalty(alpha: float) -> Callable[[int], float]:
    """The length penalty ((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14), as in t5x.

    Examples
    --------
    >>> gnmt_penalty(0.5)(19)
    2.0
    """
    alpha = check_number("gnmt_penalty's alpha", alpha, -math.inf, math.inf, True, True)
    return partial(_gnmt, alpha)


def _gnmt(alpha: float, length: int) -> float:
    return float(((5 + length) / 6) ** alpha)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Settings:
    """How to search."""

    n_beams: int
    n_considered: int
    divisors: np.ndarray  # (max_new_tokens + 1,) what a score of this length is divided by
    early_stopping: EarlyStopping
    processors: Sequence[Processor]  # from logits to log-probabilities
    stop: Callable[[BeamStep], Any] | None


class _Beams:
    """The live beams and the pools while they grow: the state of the search, on the host."""

    def __init__(self, request: Request, pad_id: int) -> None:
        batch, start, n_beams = request.batch, request.start, request.copies
        self.request, self.pad_id = request, pad_id
        # The tokens so far, as many for every beam: (batch, B, n).
        self.tokens = np.repeat(request.prefix[:, None, :start], n_beams, axis=1)
        self.live = Hypotheses.none(batch, n_beams, 0, pad_id)
        self.live.scores[:, 0] = 0  # one live beam, the prefix
        self.pool = Hypotheses.none(batch, n_beams, 0, pad_id)
        self.done = np.zeros(batch, dtype=bool)

    @property
    def n(self) -> int:
        """How many tokens there are so far."""
        return int(self.tokens.shape[2])

    @property
    def rows(self) -> np.ndarray:
        """The targets of all beams, those of a source together: (batch * B, n)."""
        return self.tokens.reshape(-1, self.n)

    def state(self, emitted: np.ndarray) -> State:
        """What processors may look at."""
        batch, n_beams, _ = self.tokens.shape
        sources = np.repeat(np.arange(batch), n_beams)
        can_be_chosen = self.live.scores.reshape(-1) > -np.inf
        return State(
            tokens=self.rows,
            n_new=self.live.lengths[sources, 0],
            emitting=emitted[sources] & can_be_chosen,
            rows=sources,
            source=self.request.source[sources],
            source_mask=self.request.source_mask[sources],
            uniforms=no_uniforms,
            eos_ids=self.request.eos_ids,
        )

    def append(self, parents: np.ndarray, tokens: np.ndarray) -> None:
        """One token more in every beam, after the beams that are continued: both (batch, B)."""
        so_far = np.take_along_axis(self.tokens, parents[:, :, None], axis=1)
        self.tokens = np.concatenate([so_far, tokens[:, :, None]], axis=2)


def _search(model: Model, request: Request, settings: _Settings, tap: Tap) -> Iterator[BeamStep]:
    decoder = start_decoder(model, request, tap)  # encodes the sources, once
    beams = _Beams(request, model.config.pad_id)
    index = 0
    while not beams.done.all():
        step = _step(model, decoder, beams, settings, index, tap.at(f"step.{index}"))
        if settings.stop is not None:
            ended = stopped(settings.stop, step, request.batch) & ~beams.done
            beams.pool = _with_finished(beams.pool, beams.live, ended[:, None], settings)
            beams.done = beams.done | ended
            step = replace(step, pool=beams.pool, done=beams.done)
        decoder.drop(np.repeat(beams.done, settings.n_beams))
        index += 1
        yield step


def _step(
    model: Model,
    decoder: ShrinkingDecoder,
    beams: _Beams,
    settings: _Settings,
    index: int,
    tap: Tap,
) -> BeamStep:
    live, n_new = beams.live, beams.live.lengths[:, 0]
    forced, given = beams.request.forced(beams.n, beams.done, otherwise=beams.pad_id)
    emitted = ~forced & ~beams.done

    # The candidates: continuations of every live beam, by the log-probabilities of tokens.
    logits = decoder.next_logits(beams.rows, tap)
    state = beams.state(emitted)
    with np.errstate(all="ignore"):  # what is not finite is reported below, by row
        log_probs = tap("log_probs", apply(settings.processors, logits, state))
    considered, gap = _candidates(log_probs, live.scores, settings.n_considered)
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
    considered = _held(considered, live, ~emitted, given)
    seen = {name: tap(f"candidates.{name}", x) for name, x in considered._asdict().items()}
    considered = Candidates(**seen)

    # Which of them end, and which live on.
    last = n_new + 1 == beams.request.max_new_tokens
    is_eos = np.isin(considered.tokens, beams.request.eos_ids)
    ends = emitted[:, None] & (is_eos | last[:, None])
    in_top = np.arange(considered.tokens.shape[1]) < settings.n_beams
    finishing = ends & in_top & (considered.scores > -np.inf)
    survivors = np.argsort(ends, axis=1, kind="stable")[:, : settings.n_beams]

    # The pool takes those that finish; the best that do not are the next live beams.
    extended = live.extended(considered, emitted, beams.pad_id)
    pool = beams.pool.longer(beams.pad_id)
    pool = _with_finished(pool, extended, finishing, settings)
    beams.pool = replace(pool, scores=tap("pool.scores", pool.scores))
    live = extended.take(survivors)
    has_ended = np.take_along_axis(ends, survivors, axis=1)
    beams.live = replace(live, scores=np.where(has_ended, -np.inf, live.scores))
    continued = np.where(beams.live.scores > -np.inf, survivors, survivors[:, :1])  # rule 1
    parents, tokens = (
        np.take_along_axis(x, continued, axis=1) for x in (considered.beams, considered.tokens)
    )
    beams.append(parents, tokens)
    decoder.reorder((np.arange(len(parents))[:, None] * settings.n_beams + parents).reshape(-1))
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


def _with_finished(
    pool: Hypotheses, targets: Hypotheses, finishing: np.ndarray, settings: _Settings
) -> Hypotheses:
    """The pool's best together with those of ``targets`` that finish now."""
    normalised = targets.scores / settings.divisors[targets.lengths]
    hypotheses = replace(targets, scores=np.where(finishing, normalised, -np.inf))
    return pool.best(settings.n_beams, hypotheses)


def _candidates(log_probs: Array, live_scores: np.ndarray, n: int) -> tuple[Candidates, np.ndarray]:
    """The n best continuations, by score, then beam, then token, and the least gap among them.

    One device-to-host read. The gap counts the best one not considered.
    """
    xp, (batch, n_beams) = array_namespace(log_probs), live_scores.shape
    vocab_size = log_probs.shape[-1]
    log_probs = log_probs.astype("float64").reshape(batch, n_beams * vocab_size)
    scores = xp.repeat(xp.asarray(live_scores), vocab_size, axis=1)
    scores = xp.where(scores > -math.inf, scores + log_probs, -math.inf)
    scores = xp.where(xp.isnan(scores), math.inf, scores)  # first, where it cannot be overlooked
    n_read = min(n + 1, scores.shape[1])
    places = best_places(scores, n_read)
    chosen = (xp.take_along_axis(x, places, axis=1) for x in (scores, log_probs))
    flat, best, steps = read(places, *chosen)
    flat = flat.astype(np.int64)
    candidates = Candidates(
        beams=flat[:, :n] // vocab_size,
        tokens=flat[:, :n] % vocab_size,
        log_probs=steps[:, :n],
        scores=best[:, :n],
    )
    return candidates, _least_gap(best)


def best_places(scores: Array, n: int) -> Array:
    """The places of the n greatest entries of each row, in order; of equal ones, the first.

    Parameters
    ----------
    scores : array, shape (batch, m)
    n : int
        At most m.

    Returns
    -------
    integer array, shape (batch, n)

    Notes
    -----
    The n-th greatest is found by partition. Marked 0 above it, 1 at it and 2 below, the
    entries are sorted by their marks in linear time, and only n of them by value.

    Examples
    --------
    >>> best_places(np.array([[1.0, 5.0, 2.0, 5.0, 2.0]]), 3)
    array([[1, 3, 2]])
    """
    xp = array_namespace(scores)
    worst = -xp.partition(-scores, n - 1, axis=1)[:, n - 1, None]
    marks = 2 - (scores >= worst).astype("uint8") - (scores > worst).astype("uint8")
    chosen = xp.argsort(marks, axis=1, kind="stable")[:, :n]
    chosen = xp.sort(chosen, axis=1)
    order = xp.argsort(-xp.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return xp.take_along_axis(chosen, order, axis=1)


def _held(c: Candidates, live: Hypotheses, held: np.ndarray, given: np.ndarray) -> Candidates:
    """In rows in their prefix, or done: each live beam continued by the given token, at no cost."""
    if not held.any():
        return c
    n_beams, n = live.scores.shape[1], c.tokens.shape[1]
    places = np.arange(n)
    scores = np.where(places < n_beams, live.scores[:, np.minimum(places, n_beams - 1)], -np.inf)
    rows = held[:, None]
    return Candidates(
        beams=np.where(rows, places % n_beams, c.beams),
        tokens=np.where(rows, given[:, None], c.tokens),
        log_probs=np.where(rows, 0.0, c.log_probs),
        scores=np.where(rows, scores, c.scores),
    )


def _improvable(
    live: Hypotheses, pool: Hypotheses, settings: _Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a row's pool may still change (batch,), by rule 6, and how close it was."""
    best, worst = live.scores.max(axis=1), pool.scores[:, -1]
    full, n_new = worst > -np.inf, live.lengths[:, 0]
    if settings.early_stopping is True:
        return ~full & (best > -np.inf), np.full(len(full), np.inf)
    if settings.early_stopping == "never":
        reachable = np.array([settings.divisors[n:].max() for n in n_new])
    else:
        reachable = settings.divisors[n_new]
    with np.errstate(invalid="ignore"):  # a row with nothing live and nothing found
        gap = np.where(full & (best > -np.inf), np.abs(best / reachable - worst), np.inf)
    return best / reachable > worst, gap


def _divisors(length_penalty: LengthPenalty, longest: int) -> np.ndarray:
    """What the score of a hypothesis of each length, 0 to ``longest``, is divided by."""
    if callable(length_penalty):
        penalty = length_penalty
    elif isinstance(length_penalty, int | float | np.integer | np.floating):
        penalty = partial(_power, float(length_penalty))
    else:
        raise TypeError(
            "length_penalty must be a number, or a function of a length such as "
            f"rs.gnmt_penalty(0.6), got {length_penalty!r}"
        )
    refused = f"length_penalty must give positive finite numbers, got {length_penalty!r}"
    try:
        divisors = np.array([1.0, *(float(penalty(n)) for n in range(1, longest + 1))])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{refused}: {error}") from error
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise ValueError(refused)
    return divisors


def _power(exponent: float, length: int) -> float:
    return length**exponent


def _least_gap(scores: np.ndarray) -> np.ndarray:
    """The least difference of neighbours in rows of descending scores; -inf has none."""
    real = scores[:, 1:] > -np.inf
    with np.errstate(invalid="ignore"):
        gaps = np.where(real, scores[:, :-1] - scores[:, 1:], np.inf)
    return gaps.min(axis=1, initial=np.inf)
