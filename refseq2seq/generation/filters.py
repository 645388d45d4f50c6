"""Filters: processors that reshape the distribution of the next token.

    sample(temperature(0.7), top_k(50), top_p(0.9))

Filters apply in the order of the arguments. Libraries disagree about order, ties and boundaries:
each filter documents its rule, and ``rs.like`` has the pipelines of other libraries. Probabilities
are compared in at least float32, because float16 has no number between 0 and 6e-8.
"""

import math
from collections.abc import Callable

from ..backend import Array, array_namespace, at_least_float32, widened
from ..checks import check_int, check_number
from ..ops import keep, log_softmax, softmax
from .sampling import Processor, makes_processor, to_log_probs


@makes_processor
def temperature(t: float) -> Processor:
    """Divide the scores by t: below 1 sharpens the distribution, above 1 flattens it.

    Parameters
    ----------
    t : float
        Positive and finite. The limit t -> 0 is `greedy`, which x-transformers uses at 0.
    """
    t = check_number("temperature", t, "(0, inf)")
    return widened(lambda scores, state: scores / t)


def _keeping(kept: Callable[[Array], Array]) -> Processor:
    """Keep the scores where ``kept(scores)`` is True."""
    return lambda scores, state: keep(scores, kept(scores))


@makes_processor
def top_k(k: int, *, keep_ties: bool = False) -> Processor:
    """Keep the k best scores (Fan, Lewis and Dauphin 2018, section 5).

    Parameters
    ----------
    k : int
        At least 1; a smaller vocabulary is kept whole.
    keep_ties : bool
        By default exactly k tokens are kept, with the lowest ids of equal scores. True keeps
        all tokens whose score equals the k-th best, as Hugging Face does. PyTorch's `topk`, in
        x-transformers, keeps exactly k and does not specify which.
    """
    k = check_int("top_k's k", k, 1)

    def at_least_kth(scores: Array) -> Array:
        count = min(k, scores.shape[-1])
        return scores >= array_namespace(scores).sort(scores, axis=-1)[..., -count, None]

    return _keeping(at_least_kth if keep_ties else lambda scores: ranks(scores) < k)


@makes_processor
def top_fraction(fraction: float) -> Processor:
    """Keep the best fraction of the vocabulary: `top_k` with k rounded up, as in x-transformers.

    Parameters
    ----------
    fraction : float
        In (0, 1]. The product with the vocabulary's size is a float64, so 0.07 of 100 tokens is
        7.000000000000001 and keeps 8.
    """
    fraction = check_number("top_fraction's fraction", fraction, "(0, 1]")

    return _keeping(lambda scores: ranks(scores) < math.ceil(fraction * scores.shape[-1]))


@makes_processor
def top_p(p: float) -> Processor:
    """Keep the smallest set of best tokens whose probabilities add up to at least p
    (nucleus sampling; Holtzman et al. 2020, section 3.1).

    Parameters
    ----------
    p : float
        In (0, 1]; 1 keeps everything.

    Notes
    -----
    A token is kept if the probabilities of those before it, best first and lowest id first
    among equals, add up to less than p; so the best is always kept. x-transformers also keeps
    one more where the sum is exactly p; Hugging Face adds up from the least probable, and so
    keeps the highest ids among equals. ``rs.like`` has both rules.
    """
    p = check_number("top_p's p", p, "(0, 1]")
    if p == 1:
        return lambda scores, state: scores
    return _keeping(lambda scores: probability_before(scores) < p)


@makes_processor
def min_p(ratio: float) -> Processor:
    """Keep tokens at least ``ratio`` times as probable as the best one (Nguyen et al. 2024).

    Parameters
    ----------
    ratio : float
        In [0, 1]. A token exactly at the limit is kept, as in Hugging Face and x-transformers.
    """
    ratio = check_number("min_p's ratio", ratio, "[0, 1]")

    def kept(scores: Array) -> Array:
        probs = softmax(at_least_float32(scores))
        return probs >= ratio * probs.max(axis=-1, keepdims=True)

    return _keeping(kept)


@makes_processor
def top_a(ratio: float, power: float = 2.0) -> Processor:
    """Keep tokens whose probability is at least ratio * (best probability) ** power.

    A more certain model keeps fewer tokens. From x-transformers, whose default ratio is 0.02.

    Parameters
    ----------
    ratio : float
        In [0, 1]. A token exactly at the limit is kept.
    power : float
        At least 1, so that the best token is always kept.
    """
    ratio = check_number("top_a's ratio", ratio, "[0, 1]")
    power = check_number("top_a's power", power, "[1, inf)")

    def kept(scores: Array) -> Array:
        probs = softmax(at_least_float32(scores))
        return probs >= ratio * probs.max(axis=-1, keepdims=True) ** power

    return _keeping(kept)


@makes_processor
def typical(mass: float, *, keep_ties: bool = False) -> Processor:
    """Keep the tokens whose surprise is nearest to the entropy, until they add up to ``mass``
    (locally typical sampling; Meister et al. 2023, eq. 9).

    The surprise of a token is -log of its probability; its expected value is the entropy.

    Parameters
    ----------
    mass : float
        In (0, 1]. At least one token is kept, not necessarily the best.
    keep_ties : bool
        Also keep all tokens that are as near as the last one kept, as Hugging Face does. Otherwise
        the lowest ids of equally near ones are kept.
    """
    mass = check_number("typical's mass", mass, "(0, 1]")
    if mass == 1:
        return lambda scores, state: scores

    def kept(scores: Array) -> Array:
        log_probs = log_softmax(at_least_float32(scores))
        xp = array_namespace(scores)
        distance = xp.abs(-log_probs - entropy(log_probs))
        near = probability_before(scores, -distance) < mass
        if not keep_ties:
            return near
        return distance <= xp.where(near, distance, 0.0).max(axis=-1, keepdims=True)

    return _keeping(kept)


@makes_processor
def epsilon(cutoff: float) -> Processor:
    """Keep tokens at least as probable as ``cutoff``, and the best (Hewitt et al. 2022, sec. 3).

    Parameters
    ----------
    cutoff : float
        In [0, 1].
    """
    cutoff = check_number("epsilon's cutoff", cutoff, "[0, 1]")
    return _keeping(lambda scores: (softmax(at_least_float32(scores)) >= cutoff) | _is_best(scores))


@makes_processor
def eta(cutoff: float) -> Processor:
    """Keep tokens at least as probable as min(cutoff, sqrt(cutoff) exp(-entropy)), and the best
    (eta-sampling; Hewitt et al. 2022, eq. 6): a flatter distribution has a lower threshold.

    Parameters
    ----------
    cutoff : float
        In [0, 1].
    """
    cutoff = check_number("eta's cutoff", cutoff, "[0, 1]")

    def kept(scores: Array) -> Array:
        xp = array_namespace(scores)
        log_probs = log_softmax(at_least_float32(scores))
        bar = xp.minimum(math.sqrt(cutoff) * xp.exp(-entropy(log_probs)), cutoff)
        return (xp.exp(log_probs) >= bar) | _is_best(scores)

    return _keeping(kept)


@widened
def entropy(log_probs: Array) -> Array:
    """The entropy in nats of distributions over the last axis, which is kept with length 1.

    Examples
    --------
    >>> import numpy as np
    >>> entropy(np.log(np.array([0.5, 0.5]))) / math.log(2)
    array([1.])
    """
    xp = array_namespace(log_probs)
    finite = xp.where(log_probs == -math.inf, 0.0, log_probs)  # 0 log 0 is 0
    return -xp.sum(xp.exp(log_probs) * finite, axis=-1, keepdims=True)


def _is_best(scores: Array) -> Array:
    return scores == scores.max(axis=-1, keepdims=True)


@makes_processor
def renormalize_logits() -> Processor:
    """Turn scores into log-probabilities: their log-softmax, in nats.

    Hugging Face's option of this name acts after all other processors: beam search then scores
    hypotheses by the distribution after the processors.
    """
    return to_log_probs


def ranks(scores: Array) -> Array:
    """The rank of each token, from 0: best first, lowest id first among equals.

    Examples
    --------
    >>> import numpy as np
    >>> ranks(np.array([[1.0, 3.0, 1.0]]))
    array([[1, 0, 2]])
    """
    xp = array_namespace(scores)
    return xp.argsort(xp.argsort(-scores, axis=-1, kind="stable"), axis=-1)


def probability_before(scores: Array, preference: Array | None = None) -> Array:
    """The total probability of the tokens before each one, in the order of `ranks`.

    Tokens are ranked by ``preference``, by default the scores. Sums are in float64, so that
    their error is far below any probability of interest.

    Examples
    --------
    >>> import numpy as np
    >>> probability_before(np.log(np.array([[0.25, 0.5, 0.25]]))).round(12)
    array([[0.5 , 0.  , 0.75]])
    """
    xp = array_namespace(scores)
    preference = scores if preference is None else preference
    order = xp.argsort(-preference, axis=-1, kind="stable")
    probs = xp.take_along_axis(softmax(scores.astype("float64")), order, axis=-1)
    up_to = xp.cumsum(probs, axis=-1)
    before = xp.concat([xp.zeros_like(up_to[:, :1]), up_to[:, :-1]], axis=-1)
    return xp.take_along_axis(before, xp.argsort(order, axis=-1), axis=-1)
