"""Errors for unknown keyword arguments, with the spelling to use instead.

`generate` and `beam_search` pass their options on to other functions. An unknown option raises an
error that names it; for an option of Hugging Face transformers, the error gives the equivalent.
"""

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

# Keywords of transformers that correspond to a processor, ...
PROCESSORS = {
    "temperature": "rs.temperature({})",
    "top_k": "rs.top_k({}, keep_ties=True)",
    "top_p": "rs.top_p({})",
    "min_p": "rs.min_p({})",
    "typical_p": "rs.typical({})",
    "epsilon_cutoff": "rs.epsilon({})",
    "eta_cutoff": "rs.eta({})",
    "repetition_penalty": "rs.repetition_penalty({})",
    "encoder_repetition_penalty": "rs.encoder_repetition_penalty({})",
    "no_repeat_ngram_size": "rs.no_repeat_ngram({})",
    "encoder_no_repeat_ngram_size": "rs.encoder_no_repeat_ngram({})",
    "bad_words_ids": "rs.bad_words({})",
    "suppress_tokens": "rs.suppress({})",
    "begin_suppress_tokens": "rs.begin_suppress({})",
    "forced_bos_token_id": "rs.forced_bos({})",
    "forced_eos_token_id": "rs.forced_eos({}, max_new_tokens)",
    "prefix_allowed_tokens_fn": "rs.allowed_tokens({})",
    "renormalize_logits": "rs.renormalize_logits()",
    "logits_processor": "a_function_of_scores_and_state",
}
# ... or to an argument.
ARGUMENTS = {
    "input_ids": "source={}",
    "inputs": "source={}",
    "attention_mask": "source_mask={}, boolean, True = real token",
    "decoder_input_ids": "prefix={}",
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


def check_options(call: str, options: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """Raise a TypeError for the first of ``options`` that none of the ``functions`` takes.

    Parameters
    ----------
    call : str
        The name, in the error, of the function that received the options.
    options : mapping of names to values
    *functions : callable
        The functions that it passes options on to, and itself if it has keyword-only arguments.
    """
    known = _keywords(functions)
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"rs.{call} has no argument {name!r}: {_instead(name, value, known)}")


@cache
def _keywords(functions: tuple[Callable[..., Any], ...]) -> list[str]:
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _instead(name: str, value: Any, known: Sequence[str]) -> str:
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
