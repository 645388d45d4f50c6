"""The quantities of a decoding loop as those of teacher forcing, and the reverse.

A cache changes no value: step t computes the part of a forward pass over the whole target that
belongs to the tokens of step t.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...watching.quantities import is_of_the_source
from ..expected import Expected

KEYED = ("self_attention.scores", "self_attention.weights")
"""Their last axis counts the tokens so far."""


def by_step(reference: Mapping[str, Expected], lengths: Sequence[int]) -> dict[str, Expected]:
    """A forward pass under the names of a loop that reads ``lengths[t]`` tokens in step t."""
    steps = {name: e for name, e in reference.items() if is_of_the_source(name)}
    ends = np.cumsum(lengths)
    for step, (end, n) in enumerate(zip(ends, lengths, strict=True)):
        for name, e in reference.items():
            if not is_of_the_source(name):
                part = _part(e, np.s_[..., end - n : end, :])
                if name.endswith(KEYED):
                    part = _without_last_keys(part, int(ends[-1] - end))
                steps[f"step.{step}.{name}"] = part
    return steps


def joined(arrays: Mapping[str, np.ndarray], lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """The quantities of a loop that reads ``lengths[t]`` tokens in step t, as those of one pass.

    A quantity that is missing in a step is omitted. One whose steps have shapes that do not belong
    together becomes an empty array, which has the shape of no quantity.
    """
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(re.sub(r"^step\.\d+\.", "", name) for name in arrays):
        steps = [arrays.get(f"step.{t}.{name}") for t in range(len(lengths))]
        if is_of_the_source(name):
            found[name] = arrays[name]
        elif all(x is not None for x in steps):
            found[name] = _joined(name, steps, lengths)  # type: ignore[arg-type]
    return found


def _joined(name: str, steps: Sequence[np.ndarray], lengths: Sequence[int]) -> np.ndarray:
    parts, total = [], sum(lengths)
    for x, n, end in zip(steps, lengths, np.cumsum(lengths), strict=True):
        if x.ndim < 2 or x.shape[-2] != n:
            return np.empty(0)
        later = total - int(end) if name.endswith(KEYED) else 0
        parts.append(np.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, later)]))
    one_shape = len({(*x.shape[:-2], x.shape[-1]) for x in parts}) == 1
    return np.concatenate(parts, axis=-2) if one_shape else np.empty(0)


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
