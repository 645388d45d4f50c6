"""Faults that are planted in live PyTorch modules, for the tests and docs/planted-bugs.md.

Each is a mistake that programmers make: a function that changes a correct module, and the
names at which `diagnose` must find it. The faults are in `planted_x_transformers`,
`planted_huggingface` and `planted_pytorch`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import refseq2seq as rs
from refseq2seq.testing import properties
from refseq2seq.testing.diagnosis import Diagnosis, diagnose

# Sources of different lengths; 9 is far enough for the wide buckets of relative positions.
MASK = np.arange(9) < np.array([[9], [6], [4]])
SOURCE = np.random.default_rng(31).integers(3, 11, MASK.shape)
TARGET = np.random.default_rng(37).integers(3, 11, (3, 5))
TARGET[:, 0] = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """These modules are so small that PyTorch's threads only wait for each other."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@dataclass
class Subject:
    """A module, what it should be, and how to run it."""

    module: Any  # as diagnose takes it
    model: rs.Model  # converted before anything was planted
    implementation: properties.Implementation | None  # the same module, for the properties
    run: Callable[..., Any] | None = None  # for nn.Transformer
    net: Any = None  # what the user of an nn.Transformer puts around it
    patch: pytest.MonkeyPatch | None = None  # for faults in functions of a library
    source: np.ndarray = field(default_factory=SOURCE.copy)
    source_mask: np.ndarray | None = field(default_factory=MASK.copy)

    def diagnose(self, max_new_tokens: int | None = None, runs: int = 16) -> Diagnosis:
        """All that deviates, forced to the target or generating."""
        return diagnose(
            self.module,
            self.source,
            TARGET if max_new_tokens is None else TARGET[:, :1],
            self.source_mask,
            model=self.model,
            run=self.run,
            max_new_tokens=max_new_tokens,
            runs=runs,
        )


@dataclass(frozen=True)
class Fault:
    """A mistake, the module it is made in, and where and as what it must be found."""

    name: str
    make: Callable[[], Subject]
    where: str  # the module, in words
    plant: Callable[[Subject], None]
    expected: tuple[str, ...]  # patterns of names, one of which the first deviation must match
    flags: tuple[str, ...]  # in `refseq2seq.testing.mistakes`, one of which its cause must have
    max_new_tokens: int | None

    def planted(self, patch: pytest.MonkeyPatch | None = None, *others: "Fault") -> Subject:
        """A module with this fault, and with ``others`` of the same module."""
        subject = self.make()
        subject.patch = patch
        for fault in (self, *others):
            fault.plant(subject)
        return subject

    def is_found(self, first: str | None) -> bool:
        """Whether ``first`` is a place of this fault."""
        return first is not None and any(fnmatchcase(first, pattern) for pattern in self.expected)


def assign(module: Any, **values: Any) -> None:
    """Set attributes."""
    for name, value in values.items():
        setattr(module, name, value)


def swap(module: Any, a: str, b: str) -> None:
    """Exchange two attributes."""
    assign(module, **{a: getattr(module, b), b: getattr(module, a)})


def wrap(module: Any, change: Callable[..., Any], name: str = "forward") -> None:
    """Replace a method by ``change``, whose first argument is the method that was there."""
    assign(module, **{name: partial(change, getattr(module, name))})


def given(module: Any, **changes: Any) -> None:
    """Let ``module`` be given other keyword arguments: functions of all that it is given."""

    def change(_: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {name: new(*args, **kwargs) for name, new in changes.items()}

    module.register_forward_pre_hook(change, with_kwargs=True)


def nothing(*args: Any, **kwargs: Any) -> None:
    """What a forgotten argument is."""


def implementation(**functions: Any) -> properties.Implementation:
    """A module as functions, with the tokens of `SOURCE` and `TARGET`."""
    vocabulary = {"source_vocab_size": 11, "target_vocab_size": 11, "start_id": 1}
    return properties.Implementation(**vocabulary, **functions)


class Faults:
    """A list that grows by decorated functions."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def on(self, make: Callable[[], Subject], where: str) -> Callable[..., Any]:
        """The decorator for faults in one module: @it("the mistake", "name or name", "Flag")."""

        def plant(name: str, expected: str, flag: str, max_new_tokens: int | None = None) -> Any:
            def add(function: Any) -> Any:
                places, flags = (tuple(text.split(" or ")) for text in (expected, flag))
                self.all.append(Fault(name, make, where, function, places, flags, max_new_tokens))
                return function

            return add

        return plant
