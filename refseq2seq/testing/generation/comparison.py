"""The comparison of outputs with those of the reference, up to near-ties."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ...backend import Array
from ...checks import as_source
from ...generation.beam import BeamSearch
from ...generation.loop import Generation, Step
from ...generation.sampling import State
from ..agreement import Divergence, TokenAgreement
from ..tolerance import Spread, spread
from .outputs import Outputs, Request

PERTURBED = 16
"""The number of searches with logits that are off by rounding, where hypotheses compete closely."""


class Deviation(Exception):
    """A difference that rounding does not explain."""


def compared(request: Request, theirs: Outputs, dtype: str, z: float) -> TokenAgreement:
    """Raise a `Deviation` unless all outputs agree."""
    comparison = _Comparison(request, theirs, dtype, z)
    return comparison.of_search() if request.searches else comparison.of_loop()


def is_given_by(request: Request, theirs: Outputs, dtype: str, z: float) -> bool:
    """Whether a request gives these very tokens, and the scores up to rounding."""
    if request.searches:
        own = request.search()
        ours = [_hypotheses(own, row) for row in range(len(own.tokens))]
    else:
        found = Generation.from_steps(request.steps(), request.model.config.pad_id)
        rows = [row[:n].tolist() for row, n in zip(found.tokens, found.lengths, strict=True)]
        ours = [rows[i : i + request.n] for i in range(0, len(rows), request.n)]
    if any(
        b and a != b
        for row in zip(theirs.tokens, ours, strict=True)
        for a, b in zip(*row, strict=True)
    ):
        return False
    try:
        compared(request, theirs, dtype, z)
    except Deviation:
        return False
    return True


class _Comparison:
    """One request, and the outputs that are compared with the reference's."""

    def __init__(self, request: Request, theirs: Outputs, dtype: str, z: float) -> None:
        self._request, self._theirs, self._dtype, self._z = request, theirs, dtype, z

    def _spread(self, rows: list[list[int]]) -> Spread:
        """The spread of the logits after the prefixes and these new tokens."""
        request, prefixes = self._request, self._request.prefixes
        encoder, given = request.model.config.encoder, request.how.get("source_mask")
        source, mask = as_source(encoder, request.source, given)
        per_row = len(rows) // len(prefixes)
        target = [prefixes[i // per_row] + row[:-1] for i, row in enumerate(rows)]
        sources = np.repeat(source, per_row, axis=0), np.repeat(mask, per_row, axis=0)
        return spread(request.model, sources[0], target, sources[1], dtype=self._dtype)

    def of_loop(self) -> TokenAgreement:
        """Compare the tokens of a loop, and their log-probabilities."""
        steps = list(self._request.steps())
        own = Generation.from_steps(steps, self._pad_id)
        ours = [row[:n].tolist() for row, n in zip(own.tokens, own.lengths, strict=True)]
        theirs = [tokens for row in self._theirs.tokens for tokens in row]
        n_compared, diverged = 0, []
        within: Spread | None = None
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            equal = [x == y for x, y in zip(a, b, strict=False)]
            agreed = [*equal, False].index(False)
            n_compared += agreed
            if agreed == len(a) == len(b):
                continue
            if agreed in (len(a), len(b)):
                told = f"ends after {agreed} new tokens" if agreed == len(a) else "does not end"
                raise Deviation(f"row {i} {told}; the reference has {len(b)} new tokens")
            within = within or self._spread(ours)
            diverged.append(self._divergence(steps, within, i, agreed, a[agreed], b[agreed]))
        self._check_log_probs(own, ours, theirs, within)
        return TokenAgreement(n_compared, sum(map(len, ours)), tuple(diverged))

    def _divergence(
        self, steps: list[Step], within: Spread, row: int, t: int, token: int, own: int
    ) -> Divergence:
        """The near-tie of two tokens; raise a `Deviation` if it is none."""
        emitting = [step for step in steps if step.emitted[row]]
        step, vocab_size = emitting[t], steps[0].scores.shape[-1]
        where = f"new token {t} of row {row} is {token}; the reference chose {own}"
        if not 0 <= token < vocab_size:
            raise Deviation(f"{where}, and the ids of the vocabulary are 0 to {vocab_size - 1}")
        if step.scores[row, token] == -np.inf:
            raise Deviation(f"{where}, and its processors exclude {token} here")
        n_prefix = len(self._request.prefixes[row // self._request.n])
        sigma = within["logits"].element_sigma[row, n_prefix - 1 + t]
        both = float(np.hypot(sigma[own], sigma[token]))
        margin = float(step.scores[row, own] - step.scores[row, token])
        found = Divergence(row, t, token, own, margin, margin / both)
        for moved in _moved(sigma * self._z, own, token):
            bump = _Bump(row, t, moved)
            last = list(islice(self._request.steps(bump), step.index + 1))[-1]
            if last.tokens[row] == token:
                return found
        if margin < 0:  # a choice that is not that of the best score
            raise Deviation(f"{where}; no logits that are off by rounding give {token}")
        raise Deviation(f"{found}; rounding to {self._dtype} explains at most {self._z:g}")

    def _check_log_probs(
        self, own: Generation, ours: list[list[int]], theirs: list[list[int]], within: Spread | None
    ) -> None:
        if self._theirs.log_probs is None:
            return
        within = within or self._spread(ours)
        limits = self._z * within["logits"].element_sigma.max(axis=-1) * 2
        for i, found in enumerate(x for row in self._theirs.log_probs for x in row):
            n_prefix = len(self._request.prefixes[i // self._request.n])
            for t, (a, b) in enumerate(zip(theirs[i], ours[i], strict=False)):
                if a != b:
                    break
                expected = own.log_probs[i, t]
                limit = limits[i, n_prefix - 1 + t] + 2e-7 * abs(expected)
                if not abs(found[t] - expected) <= limit:
                    raise Deviation(
                        f"the log-probability of new token {t} of row {i} is {found[t]:.9g}; the "
                        f"reference has {expected:.9g}, and rounding explains {limit:.2g}"
                    )

    def of_search(self) -> TokenAgreement:
        """Compare the hypotheses of beam search, and their scores."""
        own = self._request.search()
        ours = [_hypotheses(own, row) for row in range(len(own.tokens))]
        longest = max(len(tokens) for row in ours for tokens in row)
        sigma = self._spread([row[0] for row in ours])["logits"].element_sigma.max(axis=(1, 2))
        limits = self._z * math.sqrt(2 * longest) * sigma  # of a sum of log-probabilities
        n_compared, diverged = 0, []
        for row, (a, b) in enumerate(zip(self._theirs.tokens, ours, strict=True)):
            differing = [k for k, tokens in enumerate(b) if tokens and tokens != a[k]]
            if not differing:  # where there is no hypothesis, theirs may be any
                n_compared += sum(map(len, b))
                self._check_scores(row, own, float(limits[row]))
                continue
            k, gap = differing[0], float(own.margin[row])
            if gap > limits[row] or not self._is_near(row, a, float(sigma[row])):
                raise Deviation(
                    f"hypothesis {k} of row {row} is {a[k]}; the reference has {b[k]}, with the "
                    f"score {own.scores[row, k]:.9g}. The smallest gap of scores that it compared "
                    f"in this row is {gap:.2g}; rounding explains at most {limits[row]:.2g}"
                )
            t = next(t for t in range(longest) if a[k][t : t + 1] != b[k][t : t + 1])
            token, chosen = (x[t] if t < len(x) else self._pad_id for x in (a[k], b[k]))
            spreads = gap / float(sigma[row])
            diverged.append(Divergence(row, t, token, chosen, gap, spreads))
        return TokenAgreement(n_compared, sum(len(x) for row in ours for x in row), tuple(diverged))

    @property
    def _pad_id(self) -> int:
        return self._request.model.config.pad_id

    def _is_near(self, row: int, tokens: list[list[int]], sigma: float) -> bool:
        """Whether a search with logits that are off by rounding gives these hypotheses."""
        noises = (_Noise(sigma * self._z / 2, seed) for seed in range(PERTURBED))
        return any(_hypotheses(self._request.search(noise), row) == tokens for noise in noises)

    def _check_scores(self, row: int, own: BeamSearch, limit: float) -> None:
        """Raise if a score or a log-probability of a row is off by more than rounding."""
        theirs = self._theirs
        for k, expected in enumerate(own.scores[row]):
            if expected == -np.inf:
                continue
            total = own.log_probs[row, k].sum()
            divisor = total / expected if expected else 1.0
            if theirs.scores is not None:
                found = theirs.scores[row][k]
                allowed = limit / divisor + 2e-6 * abs(expected)
                if not abs(found - expected) <= allowed:
                    raise Deviation(
                        f"the score of hypothesis {k} of row {row} is {found:.9g}; the reference "
                        f"has {expected:.9g}, and rounding explains {allowed:.2g}"
                    )
            if theirs.log_probs is not None:
                of_tokens = theirs.log_probs[row][k]
                ours = own.log_probs[row, k, : len(of_tokens)]
                if not (np.abs(of_tokens - ours) <= limit + 2e-6 * np.abs(ours)).all():
                    raise Deviation(
                        f"the log-probabilities of hypothesis {k} of row {row} are {of_tokens}; "
                        f"the reference has {ours}"
                    )


@dataclass(frozen=True)
class _Bump:
    """A processor that moves the logits of one token of one row."""

    row: int
    t: int  # index of the new token
    by: np.ndarray  # (vocab_size,)

    def __call__(self, scores: Array, state: State) -> Array:
        if not state.emitted[self.row] or state.n_new[self.row] != self.t:
            return scores
        moved = scores.copy()
        moved[self.row] += self.by
        return moved


@dataclass(frozen=True)
class _Noise:
    """A processor that moves all logits at random."""

    size: float
    seed: int

    def __call__(self, scores: Array, state: State) -> Array:
        rng = np.random.default_rng([self.seed, state.tokens.shape[1]])
        return scores + self.size * rng.uniform(-1, 1, scores.shape)


def _moved(limit: np.ndarray, own: int, token: int) -> Iterator[np.ndarray]:
    """Errors of logits, within their limits, that favour ``token`` over ``own``.

    The first moves the two tokens only, the second the cumulative distribution, by which a sampled
    token is drawn, and the third both.
    """
    single = np.zeros_like(limit)
    both = math.hypot(limit[own], limit[token])
    if both > 0:
        single[own], single[token] = -(limit[own] ** 2) / both, limit[token] ** 2 / both
    yield single
    below = np.arange(len(limit)) < max(own, token)  # of the cumulative distribution
    shift = np.where(below, -limit, limit) * (1 if token > own else -1)
    yield shift
    yield np.clip(shift + single, -limit, limit)


def _hypotheses(found: BeamSearch, row: int) -> list[list[int]]:
    """The new tokens of the hypotheses of a row."""
    lengths = found.lengths[row]
    return [tokens[:n].tolist() for tokens, n in zip(found.tokens[row], lengths, strict=True)]
