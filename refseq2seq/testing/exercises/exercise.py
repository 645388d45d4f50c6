"""What an exercise consists of: inputs, the right function, properties, and named mistakes."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A function to write.

    ``written`` is the same function as ``reference``, written out, with keyword switches. Each
    mistake sets some of them, so two mistakes can be made at once.
    """

    signature: str
    reference: Callable[..., Any]
    written: Callable[..., Any]
    inputs: Callable[[np.random.Generator], Iterator[Arguments]]  # of ascending size
    mistakes: Mapping[str, Mapping[str, Any]]
    properties: Mapping[str, Callable[..., tuple[Any, Any]]]  # (function, *arguments) -> equal pair
    returns: tuple[str, ...] = field(default=("result",))  # the names of the results

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments."""
        parameters = inspect.signature(self.written).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)

    def drawn(self) -> list[Arguments]:
        """The inputs, always the same ones."""
        return [*self.inputs(np.random.default_rng(0))]
