"""Exercises on loops of decoding: greedy decoding and beam search.

The reference is written here, because the loops of the package take a model, not a function.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

from itertools import chain, islice, product

import numpy as np

from ...ops import log_softmax
from .exercise import Exercise


class Language:
    """A table in the place of a model: the sum of the tokens is the row of the logits."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype="float64")
        self._calls = 0

    def __call__(self, tokens):
        """The numbers of the next token."""
        if np.ndim(tokens) != 1:
            raise TypeError(f"the model takes one list of all tokens, not {tokens!r}")
        self._calls += 1
        if self._calls > 1_000:
            raise RuntimeError("the model is called without end: stop after `limit` new tokens")
        return self.table[sum(int(t) for t in tokens) % len(self.table)].copy()

    def copy(self):
        """The same table, not called yet."""
        return Language(self.table)

    def __repr__(self):
        rows = " ".join(np.array2string(self.table, precision=2, separator=", ").split())
        return f"lambda tokens: table[sum(tokens) % {len(self.table)}], table = {rows}"


def greedy(
    next_logits, start, end, limit, *, keep_end=True, keep_start=False, stop=True, more=0,
    least=0, lose=False, sees="all", best=np.argmax,
):  # fmt: skip
    """Greedy decoding; ``sees`` says which tokens the model gets."""
    tokens = [start]
    for _ in range(max(limit + more, least)):
        seen = {"all": tokens, "newest": tokens[-1:], "new": tokens[1:]}[sees]
        token = int(best(next_logits(seen)))
        if token != end or keep_end:
            tokens.append(token)
        if token == end and stop:
            break
    return tokens[not keep_start : -1 if lose else None]


def greedy_inputs(rng):
    """An end at once, an end later, equal logits, no end, and a limit of 0."""
    yield Language([[0, 1], [0, 1]]), 0, 1, 1
    yield Language([[1, 0], [0, 1]]), 0, 1, 3
    yield Language([[0, 1, 0], [1, 0, 0], [0, 0, 2]]), 1, 2, 2
    yield Language(np.zeros((3, 3))), 2, 1, 3
    for n in (3, 5, 5):
        yield Language(rng.standard_normal((n, n))), 1, 0, 11
    yield Language([[0, 1], [0, 1]]), 0, 1, 0


def _best_of_each(f, language, start, *how):
    """The logit of each token, and the largest one."""
    tokens = f(language, start, *how)
    logits = [language([start, *tokens[:i]]) for i in range(len(tokens))]
    return [x[t] for x, t in zip(logits, tokens, strict=True)], [x.max() for x in logits]


GREEDY = Exercise(
    reference=greedy,
    written=greedy,
    inputs=greedy_inputs,
    mistakes={
        "the end token is not kept": {"keep_end": False},
        "the start token is returned too: return the new tokens": {"keep_start": True},
        "it goes on after the end token": {"stop": False},
        "it generates limit + 1 tokens": {"more": 1},
        "it generates limit - 1 tokens": {"more": -1},
        "it generates a token although the limit is 0": {"least": 1},
        "the last token is lost": {"lose": True},
        "next_logits gets the newest token alone: it needs all tokens": {"sees": "newest"},
        "next_logits does not get the start token": {"sees": "new"},
        "it takes the smallest logit": {"best": np.argmin},
        "of equal logits it takes the highest id": {"best": lambda x: np.where(x == max(x))[0][-1]},
    },
    properties={"each token has the largest logit": _best_of_each},
)


def beam_search(
    next_log_probs, start, end, beams, limit, *, width=2, divide=True, count_end=True, stop=True,
    keep_end=True, keep_start=False, count_start=False, each=False, ended="all", unfinished=True,
    early=0, swap=False, one=False, by_sum=False,
):  # fmt: skip
    """Beam search; ``width`` times ``beams`` candidates are considered in a step."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    beams = 1 if one else beams

    def score(hypothesis):
        tokens, total = hypothesis
        n = len(tokens) - (tokens[-1] == end and not count_end) + (keep_start or count_start)
        return total / max(n, 1) if divide else total

    for _ in range(limit):
        per_beam = [
            [([*tokens, t], total + x) for t, x in enumerate(next_log_probs([start, *tokens]))]
            for tokens, total in live
        ]
        if each:
            per_beam = [[max(candidates, key=score)] for candidates in per_beam]
        best = sorted(chain.from_iterable(per_beam), key=lambda c: -c[1])[: width * beams]
        over = best if ended == "all" else best[:beams]
        done += [c for c in over if c[0][-1] == end and stop]
        live = [c for c in best if c[0][-1] != end or not stop][:beams]
        if not live or (early and len(done) >= early):
            break
    best_by = (lambda hypothesis: hypothesis[1]) if by_sum else score
    chosen = max([*done, *(live if unfinished or not done else [])], key=best_by)
    tokens = [t for t in chosen[0] if t != end or keep_end]
    results = [start, *tokens] if keep_start else tokens, float(score(chosen))
    return results[::-1] if swap else results


def beam_search_inputs(rng):
    """One beam; a second beam that wins although an end takes the first place; larger ones."""
    yield from islice(_drawn(rng, 2, 1, 2), 1)
    table = np.log([[0.98, 0.01, 0.01], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]])
    yield Language(table), 1, 0, 2, 2
    for n, beams, limit, how_many in [(3, 2, 3, 3), (5, 2, 5, 4), (5, 3, 7, 4)]:
        yield from islice(_drawn(rng, n, beams, limit), how_many)


def _drawn(rng, n, beams, limit):
    """Arguments with which the free rules of beam search make no difference.

    Free are: whether every candidate that ends is a hypothesis, or only those among the best
    beams; whether targets that have not ended at the limit are hypotheses; and when to stop.
    """
    while True:
        drawn = Language(log_softmax(rng.normal(0, 1.5, (n, n)))), 1, 0, beams, limit
        rules = product(("all", "best"), (True, False), (0, beams))
        found = [
            beam_search(*drawn, ended=ended, unfinished=unfinished, early=early)[0]
            for ended, unfinished, early in rules
        ]
        if all(tokens == found[0] for tokens in found) and len(found[0]) >= beams:
            yield drawn


BEAM_SEARCH = Exercise(
    reference=beam_search,
    written=beam_search,
    inputs=beam_search_inputs,
    returns=("tokens", "score"),
    mistakes={
        "the score is not divided by the number of new tokens": {"divide": False},
        "the end token is not counted": {"count_end": False},
        "the end token is not kept": {"keep_end": False},
        "the start token is returned and counted": {"keep_start": True},
        "the start token is counted": {"count_start": True},
        "it stops at the first end token: other beams may still win": {"early": 1},
        "`beams` is not used: one beam is searched": {"one": True},
        "the hypothesis with the best sum is returned: choose by the score": {"by_sum": True},
        "the score is returned before the tokens": {"swap": True},
        "hypotheses go on after the end token": {"stop": False},
        "only `beams` candidates are considered: those that end leave too few": {"width": 1},
        "each beam keeps its own best token: compare the candidates of all": {"each": True},
    },
    properties={
        "the score is the mean of the log-probabilities": lambda f, *arguments: (
            np.mean(_best_of_each(lambda *a: f(*a)[0], *arguments)[0]),
            f(*arguments)[1],
        ),
    },
)
