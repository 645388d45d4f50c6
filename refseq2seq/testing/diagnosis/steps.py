"""What is expected of a loop, from what is expected of a forced target.

A cache changes no number: what step t computes is the part of a forward pass over the
whole target that belongs to the tokens of step t.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...watching.quantities import is_of_the_source
from ..expected import Expected


def by_step(reference: Mapping[str, Expected], lengths: Sequence[int]) -> dict[str, Expected]:
    """The same expectations under the names of a loop that reads ``lengths[t]`` tokens in step t.

    Parameters
    ----------
    reference : mapping of names to Expected
        Of a forward pass over all the tokens.
    lengths : sequence of int
    """
    steps = {name: e for name, e in reference.items() if is_of_the_source(name)}
    ends = np.cumsum(lengths)
    for step, (end, n) in enumerate(zip(ends, lengths, strict=True)):
        for name, e in reference.items():
            if not is_of_the_source(name):
                part = _positions(e, int(end - n), int(end))
                if name.endswith(("self_attention.scores", "self_attention.weights")):
                    part = _without_last_keys(part, int(ends[-1] - end))
                steps[f"step.{step}.{name}"] = part
    return steps


def while_same(logits: Expected, tokens: np.ndarray, fed: np.ndarray) -> Expected:
    """What is expected after each of ``tokens``, the last of those that are fed.

    A row in which another token was read goes on with another text: from there on it is not
    compared.

    Parameters
    ----------
    logits : Expected
        After each token of ``fed``.
    tokens : integer array (batch, n)
    fed : integer array (batch, n_fed)
    """
    n = fed.shape[1]
    first = n - tokens.shape[1]
    last = _positions(logits, first, n)
    same = np.logical_and.accumulate(tokens == fed[:, first:], axis=1)
    return replace(last, where=last.where & same[..., None])


def _positions(e: Expected, start: int, end: int) -> Expected:
    """Of every quantity, positions are the last axis but one."""
    return replace(e, **{name: x[..., start:end, :] for name, x in _arrays(e)})


def _without_last_keys(e: Expected, n: int) -> Expected:
    """Keys that are not there yet had no part in the errors, and no longer in their mean."""
    kept = e.value.shape[-1] - n
    part = replace(e, **{name: x[..., :kept] for name, x in _arrays(e)})
    counted = [np.sum(of.where, axis=-1, keepdims=True) for of in (e, part)]
    return replace(part, sigma=e.sigma * np.sqrt(counted[0] / np.maximum(counted[1], 1)))


def _arrays(e: Expected) -> list[tuple[str, Any]]:
    fields = ((f.name, getattr(e, f.name)) for f in dataclasses.fields(e))
    return [(name, x) for name, x in fields if isinstance(x, np.ndarray)]
