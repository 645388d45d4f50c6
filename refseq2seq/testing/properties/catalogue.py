"""The properties: what must hold of every encoder-decoder, whatever its weights.

A property is a generator of claims about a random trial. Its docstring is its statement.
Claims of equality must hold in every trial, up to rounding; a claim that something makes a
difference must hold in one trial at least.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .implementation import Claim, Trial


@dataclass(frozen=True)
class Property:
    """One property: its name, what it says, and which faults break it."""

    name: str
    statement: str
    catches: str
    needs: tuple[str, ...]  # fields of the implementation, or sides of padding
    claims: Callable[[Trial], Iterator[Claim]]


def catches(
    faults: str, *, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Trial], Iterator[Claim]]], Property]:
    """Make a property of a generator of claims; ``faults`` are those that break it."""

    def make(claims: Callable[[Trial], Iterator[Claim]]) -> Property:
        spoken = claims.__name__.replace("_", " ")  # python -OO takes docstrings away
        statement = (claims.__doc__ or spoken).rstrip(".")
        return Property(claims.__name__, statement, faults, needs, claims)

    return make
