"""Exercises on filters of logits: top-k and top-p."""
# mypy: allow-untyped-defs, allow-untyped-calls

import math

import numpy as np

from ...generation import filters
from .arrays import softmax
from .exercise import Exercise, Mistakes


def _ordered(x, *, ties="lowest", worst=False):
    """The indices of each row, best first, and the place of each element in this order."""
    flip = ties == "highest"
    key = np.flip(x, -1) if flip else x
    order = np.argsort(key if worst else -key, axis=-1, kind="stable")
    order = x.shape[-1] - 1 - order if flip else order
    return order, np.argsort(order, axis=-1)


OF_FILTERS: Mistakes = {
    "removed logits are 0: they must be -inf": {"removed": 0.0},
    "removed logits are a large negative number: they must be -inf": {"removed": -1e9},
    "the worst tokens are kept: sort -logits": {"worst": True},
    "the order of sorting is not undone: what is kept are places, not tokens": {"undo": False},
    "among equal logits the highest ids are kept: the lowest must be": {"ties": "highest"},
}


def _lowest(f, x, k):
    """Whether a token is removed although a higher id with an equal logit is kept."""
    kept = np.isfinite(f(x, k))
    equal = np.triu(x[..., :, None] == x[..., None, :])
    return (equal & ~kept[..., :, None] & kept[..., None, :]).any(), False


def top_k(
    logits, k, *, removed=-math.inf, undo=True, less=0, ties="lowest", worst=False, whole=False
):
    """Top-k; ``undo`` returns from the sorted order to that of the tokens."""
    shape, logits = logits.shape, logits.ravel() if whole else logits
    order, rank = _ordered(logits, ties=ties, worst=worst)
    kept = (rank if undo else order) < k - less
    if ties == "all":
        kept = logits >= np.sort(logits, axis=-1)[..., -min(k, logits.shape[-1]), None]
    return np.where(kept, logits, removed).reshape(shape)


def top_k_inputs(rng):
    """A row, rows, a k above the size; then equal logits."""
    for shape, k in [(1, 1), (2, 1), (3, 2), (5, 3), ((2, 7), 3), ((3, 5), 1), (3, 5)]:
        yield rng.standard_normal(shape), k
    yield rng.standard_normal((2, 11)).astype("float32"), 5
    yield np.array([-math.inf, 2.0, -math.inf, 1.0]), 3
    yield np.array([1.0, 2.0, 1.0, 1.0, 0.0]), 2


TOP_K = Exercise(
    reference=lambda logits, k: filters.top_k(k)(logits, None),  # type: ignore[arg-type]
    written=top_k,
    inputs=top_k_inputs,
    mistakes={
        **OF_FILTERS,
        "only k - 1 logits are kept": {"less": 1},
        "k + 1 logits are kept": {"less": -1},
        "k logits of the whole array are kept: keep k of each row": {"whole": True},
        "all that equal the k-th are kept: keep k, those with the lowest ids": {"ties": "all"},
    },
    properties={
        "of equal logits the lowest ids are kept (argsort with kind='stable')": _lowest,
        "exactly k logits are kept": lambda f, x, k: (
            np.isfinite(f(x, k)).sum(axis=-1),
            np.minimum(k, np.isfinite(x).sum(axis=-1)),
        ),
    },
)


def top_p(
    logits, p, *, removed=-math.inf, undo=True, more=0, until=None, first=False, rest=False,
    of="probabilities", ties="lowest", worst=False,
):  # fmt: skip
    """Top-p; a token is kept if those before it have a probability below p."""
    order, rank = _ordered(logits, ties=ties, worst=worst)
    probs = logits if of == "logits" else softmax(logits)
    best = np.take_along_axis(probs, order, axis=-1)
    sums, p = np.cumsum(best, axis=-1), 1 - p if rest else p
    kept = until(sums, p) if until else (sums - best < p) | (p == 1)
    kept = kept | np.roll(kept, 1, axis=-1) if more else kept
    kept = kept | (np.arange(kept.shape[-1]) == 0) if first else kept
    if of == "each":
        return np.where(probs >= p, logits, removed)
    return np.where(np.take_along_axis(kept, rank, axis=-1) if undo else kept, logits, removed)


def top_p_inputs(rng):
    """A row, rows, p = 1; then equal logits. No sum of probabilities is near p."""
    for shape, p in [(1, 0.5), (2, 0.7), (3, 0.8), (5, 0.9), ((2, 7), 0.6), ((3, 5), 0.1), (5, 1)]:
        yield 2 * rng.standard_normal(shape), p
    yield rng.standard_normal((2, 11)).astype("float32"), 0.75
    yield np.array([1.0, 2.0, 1.0, 1.0, 0.0]), 0.6
    yield np.zeros(4), 1


def _top_p(logits, p):
    rows = logits.reshape(-1, logits.shape[-1])
    kept = filters.top_p(p)(rows, None)  # type: ignore[arg-type]
    return kept.reshape(logits.shape)


TOP_P = Exercise(
    reference=_top_p,
    written=top_p,
    inputs=top_p_inputs,
    mistakes={
        **OF_FILTERS,
        "sum < p: the token that reaches p is lost": {"until": np.less},
        "sum > p keeps the tail: keep the best tokens": {"until": np.greater},
        "sum <= p: the token that reaches p is lost": {"until": np.less_equal},
        "sum < p or the first: what reaches p is lost": {"until": np.less, "first": 1},
        "sum <= p or the first: what reaches p is lost": {"until": np.less_equal, "first": 1},
        "what is kept has a sum of 1 - p: it must reach p": {"rest": True},
        "one token too many is kept: the sum before a token must be below p": {"more": 1},
        "the logits are summed: sum their softmax": {"of": "logits"},
        "the probability of each token is compared with p: compare sums": {"of": "each"},
    },
    properties={
        "of equal logits the lowest ids are kept (argsort with kind='stable')": _lowest,
        "what is kept has a probability of at least p": lambda f, x, p: (
            (softmax(x) * np.isfinite(f(x, p))).sum(axis=-1) >= p - 1e-6,
            np.ones(x.shape[:-1], bool),
        ),
    },
)
