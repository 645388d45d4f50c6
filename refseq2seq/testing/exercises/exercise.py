"""What an exercise consists of: inputs, the right function, properties, and named mistakes."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]
Mistakes = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A function to write.

    ``written`` computes what ``reference`` computes. Its keyword switches make mistakes, and so
    it can make several at once.
    """

    reference: Callable[..., Any]
    written: Callable[..., Any]
    inputs: Callable[[np.random.Generator], Iterator[Arguments]]  # of ascending size
    mistakes: Mistakes
    properties: Mapping[str, Callable[..., tuple[Any, Any]]]  # (function, *arguments) -> equal pair
    returns: tuple[str, ...] = ("result",)  # the names of the results

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return tuple(inspect.getfullargspec(self.written).args)

    @property
    def signature(self) -> str:
        """The name of the function and its arguments, without the switches."""
        whole = f"{self.written.__name__}{inspect.signature(self.written)}"
        return whole.partition(", *")[0] + ")"
