"""What the comparisons with live PyTorch modules share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import refseq2seq as rs
from refseq2seq.params import named_arrays

EPS32 = 2.0**-23


@dataclass
class Batch:
    """What is decoded: sources, the mask of their real tokens, and targets to force."""

    source: np.ndarray  # (batch, n_source)
    mask: np.ndarray | None  # (batch, n_source)
    target: np.ndarray  # (batch, n_target)


def assert_same_model(a: rs.Model, b: rs.Model) -> None:
    """The same conventions and, to the last bit, the same arrays."""
    assert a.config == b.config
    found, expected = dict(named_arrays(a.params)), dict(named_arrays(b.params))
    assert list(found) == list(expected)
    for path, x in found.items():
        assert x.dtype == expected[path].dtype
        assert x.tobytes() == expected[path].tobytes(), path


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest logit."""
    assert np.isfinite(ours).all()
    assert np.isfinite(theirs).all()
    assert ours.shape == theirs.shape
    return abs(ours - theirs).max() / abs(theirs).max()


def count_near_ties(
    steps: Sequence[rs.Step], theirs: np.ndarray, pad_id: int, is_tie: Callable[..., bool]
) -> int:
    """How many rows differ, each of them only from a step on at which ``is_tie`` holds.

    It is given the step, the row and the new tokens before, which are the same in both.
    """
    ours = rs.Generation.from_steps(steps, pad_id=pad_id).tokens
    width = max(ours.shape[1], theirs.shape[1])
    ours, theirs = (
        np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=pad_id) for x in (ours, theirs)
    )
    rows = np.flatnonzero((ours != theirs).any(axis=1))
    for row in rows:
        first = int((ours[row] != theirs[row]).argmax())
        step = [step for step in steps if step.emitted[row]][first]
        assert is_tie(step, row, ours[row, :first]), f"row {row}: {ours[row]} is not {theirs[row]}"
    return len(rows)


def compiled(module: nn.Module) -> Any:
    """By torch.compile, without generating code."""
    return torch.compile(module, backend="eager")


# Adapters, as the package peft names and places them: around a module, or beside a projection.

MERGE = r"adapters.*merge_and_unload\(\)"


def peft_model() -> nn.Module:
    """A module of peft's class."""
    return type("PeftModel", (nn.Module,), {"__module__": "peft.peft_model"})()


def add_lora(parent: nn.Module, name: str) -> None:
    """Put LoRA beside the projection ``name``."""
    adapted = nn.Module()
    adapted.base_layer = getattr(parent, name)
    adapted.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
    setattr(parent, name, adapted)
