"""The expected values of a decoding loop, from those of teacher forcing.

A cache changes no value: step t computes the part of a forward pass over the whole target that
belongs to the tokens of step t.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...watching.quantities import is_of_the_source
from ..expected import Expected


def by_step(reference: Mapping[str, Expected], lengths: Sequence[int]) -> dict[str, Expected]:
    """A forward pass under the names of a loop that reads ``lengths[t]`` tokens in step t."""
    steps = {name: e for name, e in reference.items() if is_of_the_source(name)}
    ends = np.cumsum(lengths)
    for step, (end, n) in enumerate(zip(ends, lengths, strict=True)):
        for name, e in reference.items():
            if not is_of_the_source(name):
                part = _part(e, np.s_[..., end - n : end, :])
                if name.endswith(("self_attention.scores", "self_attention.weights")):
                    part = _without_last_keys(part, int(ends[-1] - end))
                steps[f"step.{step}.{name}"] = part
    return steps


def while_same(logits: Expected, tokens: np.ndarray, fed: np.ndarray) -> Expected:
    """The expected logits after each of ``tokens``, compared only while they equal ``fed``.

    After a token that differs, a row has another history, and the rest of it is not compared.

    Parameters
    ----------
    logits : Expected
        After each token of ``fed``.
    tokens : integer array, shape (batch, n)
        What the run without hooks read.
    fed : integer array, shape (batch, n_fed)
        What the run with hooks read; its last n are aligned with ``tokens``.
    """
    first = fed.shape[1] - tokens.shape[1]
    last = _part(logits, np.s_[..., first:, :])
    same = np.logical_and.accumulate(tokens == fed[:, first:], axis=1)
    return replace(last, where=last.where & same[..., None])


def _part(e: Expected, index: Any) -> Expected:
    """The same part of every array; positions are the second-to-last axis."""
    found = {field.name: getattr(e, field.name) for field in dataclasses.fields(e)}
    arrays = {name: x for name, x in found.items() if isinstance(x, np.ndarray)}
    return replace(e, **{name: x[index] for name, x in arrays.items()})


def _without_last_keys(e: Expected, n: int) -> Expected:
    """``e`` without its last ``n`` keys.

    The causal mask excludes these keys, so their errors are 0; sigma, a root mean square over
    the row, is rescaled to the number of remaining elements.
    """
    kept = e.value.shape[-1] - n
    part = _part(e, np.s_[..., :kept])
    counted = [np.sum(of.where, axis=-1, keepdims=True) for of in (e, part)]
    return replace(part, sigma=e.sigma * np.sqrt(counted[0] / np.maximum(counted[1], 1)))
