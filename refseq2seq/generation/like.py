"""The exact sampling pipelines of other libraries, and the counterparts of their keywords.

Order, ties and boundaries are those of the other library.
"""

import reprlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Literal

from ..backend import Array, array_namespace
from ..checks import check_number
from ..config import annotations
from ..ops import keep, softmax
from ..settings import Settings
from . import filters
from .sampling import Chooser, Processor, State, greedy, makes_processor, sample

XTransformersFilter = Literal["top_k", "top_p", "top_a", "min_p"]


def x_transformers(
    *,
    temperature: float = 1.0,
    filter_logits_fn: XTransformersFilter | Processor = "top_k",
    filter_kwargs: dict[str, float] | None = None,
    pick: Callable[..., Chooser] = sample,
) -> Chooser:
    """The choice of tokens in ``AutoregressiveWrapper.generate`` of x-transformers 2.31.

    Filter the raw logits, then divide by the temperature, then draw; at temperature 0 pick
    the best raw logit. Arguments have that function's names and defaults: by default, the
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
    ``thres`` in `refseq2seq.top_p`). Which of equal scores its top_k and its top_p keep depends
    on PyTorch; here the lowest ids.
    """
    if temperature == 0:
        return greedy()
    if not callable(filter_logits_fn):
        if filter_logits_fn not in _X_TRANSFORMERS_FILTERS:
            raise ValueError(
                f"filter_logits_fn must be one of {list(_X_TRANSFORMERS_FILTERS)} or a processor, "
                f"got {filter_logits_fn!r}"
            )
        filter_logits_fn = _X_TRANSFORMERS_FILTERS[filter_logits_fn](**(filter_kwargs or {}))
    elif filter_kwargs:
        raise TypeError("filter_kwargs are for a filter given by name; a processor has its own")
    return pick(filter_logits_fn, filters.temperature(temperature))


def _x_transformers_top_k(*, frac_num_tokens: float = 0.1, k: int | None = None) -> Processor:
    return filters.top_fraction(frac_num_tokens) if k is None else filters.top_k(k)


@makes_processor
def _x_transformers_top_p(*, thres: float = 0.9) -> Processor:
    """Remove a token if those before it, best first, add up to more than ``thres``."""
    thres = check_number("top_p's thres", thres, "[0, 1]")

    def kept(xp: ModuleType, sums: Array) -> Array:
        return xp.concat([xp.zeros_like(sums[:, :1]), sums[:, :-1]], axis=-1) <= thres

    return _keeping_by_sums(kept, best_first=True)


def _x_transformers_top_a(*, min_p_pow: float = 2.0, min_p_ratio: float = 0.02) -> Processor:
    return filters.top_a(min_p_ratio, min_p_pow)


def _x_transformers_min_p(*, min_p: float = 0.1) -> Processor:
    return filters.min_p(min_p)


_X_TRANSFORMERS_FILTERS: dict[Any, Callable[..., Processor]] = {
    "top_k": _x_transformers_top_k,
    "top_p": _x_transformers_top_p,
    "top_a": _x_transformers_top_a,
    "min_p": _x_transformers_min_p,
}


def huggingface(
    *,
    processors: Sequence[Processor] = (),
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float | None = None,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
    pick: Callable[..., Chooser] = sample,
) -> Chooser:
    """The choice of tokens in ``GenerationMixin.generate`` of Hugging Face transformers 5.

    Round the logits to float32, then apply the processors. Without ``do_sample``, greedy. With it:
    temperature, then top-k (ties stay), then top-p (added up from the least probable), then
    min-p, typical, epsilon and eta, then draw. Arguments have that function's names and defaults;
    as there, a filter at its neutral value is omitted: temperature 1, top_k 0, top_p 1, min_p
    None, typical_p 1, epsilon_cutoff and eta_cutoff 0.

    Parameters
    ----------
    processors : sequence of Processor
        Such as penalties and bans.
    do_sample : bool
    temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff : float
    pick : function of processors
        `sample`, or ``partial(exponential_race, noise)`` to replay PyTorch's draws.

    Notes
    -----
    Which of equal scores its top-p removes first depends on PyTorch; here the lowest ids.
    """
    if not do_sample:
        return greedy(_to_float32, *processors)
    settings: tuple[tuple[Any, Any, Callable[[Any], Processor]], ...] = (
        (temperature, 1, filters.temperature),
        (top_k, 0, partial(filters.top_k, keep_ties=True)),
        (top_p, 1, _huggingface_top_p),
        (min_p, None, filters.min_p),
        (typical_p, 1, partial(filters.typical, keep_ties=True)),
        (epsilon_cutoff, 0, filters.epsilon),
        (eta_cutoff, 0, filters.eta),
    )
    made = [make(value) for value, neutral, make in settings if value != neutral]
    return pick(_to_float32, *processors, *made)


def _to_float32(scores: Array, state: State) -> Array:
    return scores.astype("float32")


@makes_processor
def _huggingface_top_p(p: float) -> Processor:
    """Remove the least probable tokens while they add up to at most 1 - p; keep the best."""
    p = check_number("top_p", p, "[0, 1]")

    def kept(xp: ModuleType, sums: Array) -> Array:
        return (sums > 1 - p) | (xp.arange(sums.shape[-1]) == sums.shape[-1] - 1)

    return _keeping_by_sums(kept, best_first=False)


def _keeping_by_sums(kept: Callable[[ModuleType, Array], Array], *, best_first: bool) -> Processor:
    """Keep tokens by the sums of the probabilities up to and including each, in one order.

    ``kept(xp, sums)`` returns a mask (batch, vocab_size) in that order. The sums are those of
    PyTorch on the CPU: in float64, each rounded to the scores' dtype.
    """

    def process(scores: Array, state: State) -> Array:
        xp = array_namespace(scores)
        order = xp.argsort(-scores if best_first else scores, axis=-1, kind="stable")
        probs = softmax(xp.take_along_axis(scores, order, axis=-1))
        sums = xp.cumsum(probs, axis=-1, dtype="float64").astype(probs.dtype)
        places = xp.argsort(order, axis=-1)
        return keep(scores, xp.take_along_axis(kept(xp, sums), places, axis=-1))

    return process


# Fields of `refseq2seq.settings.Settings` that have another name in transformers.
_THEIR_NAMES = {
    "beams": "num_beams",
    "typical": "typical_p",
    "epsilon": "epsilon_cutoff",
    "eta": "eta_cutoff",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "encoder_no_repeat_ngram": "encoder_no_repeat_ngram_size",
    "bad_words": "bad_words_ids",
    "exponential_decay": "exponential_decay_length_penalty",
}
# Fields of a generation config of transformers -> fields of `refseq2seq.settings.Settings`.
SETTINGS = {
    _THEIR_NAMES.get(name, name): name
    for name in annotations(Settings)
    if name not in ("prefix", "not_implemented")
}

# Keywords of transformers that correspond to a processor, ...
PROCESSORS = {
    "temperature": "rs.temperature({})",
    "top_k": "rs.top_k({}, keep_ties=True)",
    "top_p": "rs.top_p({})",
    "min_p": "rs.min_p({})",
    "typical_p": "rs.typical({}, keep_ties=True)",
    "epsilon_cutoff": "rs.epsilon({})",
    "eta_cutoff": "rs.eta({})",
    "repetition_penalty": "rs.repetition_penalty({})",
    "encoder_repetition_penalty": "rs.encoder_repetition_penalty({})",
    "no_repeat_ngram_size": "rs.no_repeat_ngram({})",
    "encoder_no_repeat_ngram_size": "rs.encoder_no_repeat_ngram({})",
    "bad_words_ids": "rs.bad_words({})",
    "suppress_tokens": "rs.suppress({})",
    "begin_suppress_tokens": "rs.begin_suppress({})",
    "forced_eos_token_id": "rs.forced_eos({}, max_new_tokens)",
    "prefix_allowed_tokens_fn": "rs.allowed_tokens({})",
    "sequence_bias": "rs.sequence_bias({})",
    "exponential_decay_length_penalty": "rs.exponential_decay(*{})",
    "renormalize_logits": "rs.renormalize_logits()",
    "logits_processor": "a_function_of_scores_and_state",
}
# ... or to an argument.
ARGUMENTS = {
    "input_ids": "source={}",
    "inputs": "source={}",
    "attention_mask": "source_mask={}, boolean, True = real token",
    "decoder_input_ids": "prefix={}",
    "forced_bos_token_id": "forced_bos_ids=[{}] * len(source)",
    "max_length": "max_new_tokens=..., which does not count the start token",
    "min_length": "min_new_tokens=..., which does not count the start token",
    "eos_token_id": "eos_ids=[{}]",
    "stopping_criteria": "stop=..., a function of a step",
    "do_sample": "choose=rs.sample(...) in rs.generate; beam search does not sample",
    "num_beams": "rs.beam_search(model, source, beams={})",
    "length_penalty": "rs.beam_search(model, source, length_penalty={})",
    "early_stopping": "rs.beam_search(model, source, early_stopping={})",
    "num_return_sequences": "n_best={} in rs.beam_search, num_return_sequences={} in rs.generate",
    "processors": "choose=rs.greedy(...) or rs.sample(...) with the processors inside",
    "choose": "processors=[...]: beam search chooses by its own rules",
    "seed": "processors=[rs.gumbel_top_k(...)] for stochastic beams: beam search never samples",
    "row_ids": "processors=[rs.gumbel_top_k(...)] for stochastic beams: beam search never samples",
    "uniforms": "processors=[rs.gumbel_top_k(..., noise=...)] for stochastic beams",
}


def instead(name: str, value: Any, known: Sequence[str]) -> str:
    """The text to suggest for an unknown option, which may be one of Hugging Face.

    Parameters
    ----------
    name, value : str, any
        The option.
    known : sequence of str
        The options of the function that received it.
    """
    from difflib import get_close_matches  # here, because it is rarely needed

    shown = reprlib.repr(value)
    if name in PROCESSORS:
        processor = PROCESSORS[name].replace("{}", shown)
        if "processors" in known:
            return f"write processors=[{processor}]"
        return f"write choose=rs.sample({processor}), or rs.greedy({processor}) without sampling"
    if name in ARGUMENTS:
        return f"write {ARGUMENTS[name].replace('{}', shown)}"
    if near := get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    return f"its arguments are {', '.join(known)}"
