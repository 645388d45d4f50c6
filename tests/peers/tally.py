"""Verdicts on logits, ours beside those of `torch.testing.assert_close`, and their count."""

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch_forward import MISTAKES, TorchTransformer

from refseq2seq.testing import first_difference


@dataclass
class Tally:
    """What was tried, and how many of it were rejected."""

    n: int = 0
    ours: int = 0
    defaults: int = 0
    worst: float = 0.0  # of what was accepted or rejected, in gates: 1 is as far as allowed
    evident: int = 0  # mistakes whose effect exceeds two gates
    evident_missed: int = 0
    said: list = field(default_factory=list)

    def row(self, name, dtype):
        """Of implementations that are right: how many were rejected, how near the worst came."""
        return f"| {name} | {dtype} | {self.n} | {self.ours} | {self.worst:.2f} | {self.defaults} |"

    def row_of_a_mistake(self, name, dtype):
        """How often it was made, was evident, evident and missed, missed, missed by defaults."""
        numbers = (self.n, self.evident, self.evident_missed, self.n - self.ours)
        told = " | ".join(map(str, (*numbers, self.n - self.defaults)))
        return f"| {name} | {dtype} | {told} |"


def in_gates(expected, actual):
    """How far off, in units of what is allowed: over 1 is rejected."""
    error = np.abs(actual - expected.value) * expected.where
    rms = np.sqrt(np.mean(error**2, axis=-1, keepdims=True)) / expected.sigma
    return max((error / expected.element_sigma).max() / 6, (rms / expected.rms_limit(6)).max())


def close_by_default(actual, value):
    try:
        torch.testing.assert_close(actual, torch.tensor(value).to(actual))
    except AssertionError:
        return False
    return True


def judge(tally, spread_of, tensor, effect=None):
    """Both verdicts on logits; ``effect`` are those of a mistake without any rounding."""
    expected = spread_of["logits"]
    found = first_difference(spread_of, {"logits": tensor})
    actual = tensor.double().cpu().numpy()
    assert (found is not None) == (not in_gates(expected, actual) <= 1)
    tally.n += 1
    tally.ours += found is not None
    tally.defaults += not close_by_default(tensor, expected.value)
    tally.worst = max(tally.worst, in_gates(expected, actual))
    if effect is not None and in_gates(expected, effect) > 2:
        tally.evident += 1
        tally.evident_missed += found is None
    elif effect is None and found is not None:
        tally.said.append(str(found))


def judge_mistakes(tallies, within, model, inputs, dtype, device="cpu"):
    """`judge` every mistake that this model gives occasion to make."""
    right = TorchTransformer(model, torch.float64)(*inputs).numpy()
    for mistake in MISTAKES:
        effect = TorchTransformer(model, torch.float64, mistake=mistake)(*inputs).numpy()
        if not np.array_equal(effect, right):
            logits = TorchTransformer(model, dtype, device, mistake)(*inputs)
            judge(tallies[mistake], within, logits, effect)


def generator(*seed):
    return np.random.default_rng([zlib.crc32(repr(seed).encode())])
