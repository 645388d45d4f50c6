"""The exact sampling pipelines of the peers: their order, their ties, their boundaries."""

from collections.abc import Callable
from typing import Literal

from . import sampling
from .backend import Array, array_namespace
from .ops import softmax
from .sampling import Chooser, Processor, State, greedy, keep, probability_before, sample

XTransformersFilter = Literal["top_k", "top_p", "top_a", "min_p"]


def x_transformers(
    *,
    temperature: float = 1.0,
    filter_logits_fn: XTransformersFilter | Processor = "top_k",
    filter_kwargs: dict[str, float] | None = None,
    pick: Callable[..., Chooser] = sample,
) -> Chooser:
    """What ``AutoregressiveWrapper.generate`` of x-transformers 2.31 does with logits.

    Filter the raw logits, then divide by the temperature, then draw; at temperature 0 take
    the best raw logit. Arguments have that function's names and defaults: without any, the
    best tenth of the vocabulary (rounded up) is kept.

    Parameters
    ----------
    temperature : float
        0 is greedy.
    filter_logits_fn : "top_k", "top_p", "top_a", "min_p", or a processor
    filter_kwargs : dict, optional
        ``frac_num_tokens`` or ``k`` for top_k, ``thres`` for top_p, ``min_p_pow`` and
        ``min_p_ratio`` for top_a, ``min_p`` for min_p.
    pick : function of processors
        `sample`, or ``partial(exponential_race, noise)`` to replay PyTorch's draws.

    Notes
    -----
    Its top_p keeps a token while the probability before it is at most ``thres`` (less than
    it, in `refseq2seq.top_p`). Which of equal scores its top_k keeps is up to PyTorch.
    """
    if temperature == 0:
        return greedy()
    if callable(filter_logits_fn):
        return pick(filter_logits_fn, sampling.temperature(temperature))
    filters: dict[str, Callable[..., Processor]] = {
        "top_k": lambda frac_num_tokens=0.1, k=None: sampling.top_k(
            frac_num_tokens if k is None else k
        ),
        "top_p": lambda thres=0.9: _top_p_x_transformers(thres),
        "top_a": lambda min_p_pow=2.0, min_p_ratio=0.02: sampling.top_a(min_p_ratio, min_p_pow),
        "min_p": lambda min_p=0.1: sampling.min_p(min_p),
    }
    if filter_logits_fn not in filters:
        raise ValueError(
            f"filter_logits_fn must be one of {list(filters)} or a processor, "
            f"got {filter_logits_fn!r}"
        )
    process = filters[filter_logits_fn](**(filter_kwargs or {}))
    return pick(process, sampling.temperature(temperature))


def _top_p_x_transformers(thres: float) -> Processor:
    return lambda scores, state: keep(scores, probability_before(scores) <= thres)


def huggingface(
    *,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float | None = None,
    pick: Callable[..., Chooser] = sample,
) -> Chooser:
    """What ``GenerationMixin.generate`` of Hugging Face transformers 5 does with logits.

    Without ``do_sample``, greedy. With it: temperature, then top-k (ties stay), then top-p
    (added up from the least probable), then min-p, then draw. Arguments have that
    function's names and defaults; a filter at its neutral value is left out, as there:
    temperature 1, top_k 0, top_p 1, min_p None.

    Parameters
    ----------
    do_sample : bool
    temperature, top_k, top_p, min_p : float
    pick : function of processors
        `sample`, or ``partial(exponential_race, noise)`` to replay PyTorch's draws.
    """
    if not do_sample:
        return greedy()
    processors: list[Processor] = []
    if temperature != 1:
        processors.append(sampling.temperature(temperature))
    if top_k != 0:
        processors.append(sampling.top_k(top_k, keep_ties=True))
    if top_p < 1:
        processors.append(_top_p_huggingface(top_p))
    if min_p is not None:
        processors.append(sampling.min_p(min_p))
    return pick(*processors)


def _top_p_huggingface(p: float) -> Processor:
    """Remove the least probable tokens while they add up to at most 1 - p; the best stays."""

    def process(scores: Array, state: State) -> Array:
        xp = array_namespace(scores)
        order = xp.argsort(scores, axis=-1, kind="stable")
        mass = xp.cumsum(softmax(xp.take_along_axis(scores, order, axis=-1)), axis=-1)
        last = xp.arange(scores.shape[-1]) == scores.shape[-1] - 1
        kept = (mass > 1 - p) | last
        return keep(scores, xp.take_along_axis(kept, xp.argsort(order, axis=-1), axis=-1))

    return process
