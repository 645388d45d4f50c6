"""The properties: what must hold of every encoder-decoder, whatever its weights.

A property is a generator of claims about a random trial. Its statement is no docstring,
which ``python -OO`` would take away. Claims of equality must hold in every trial, up to
rounding; a claim that something makes a difference must hold in one trial at least.
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


def states(
    statement: str, *, catches: str, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Trial], Iterator[Claim]]], Property]:
    """Make a property of a generator of claims, named as that is."""

    def make(claims: Callable[[Trial], Iterator[Claim]]) -> Property:
        return Property(claims.__name__, statement, catches, needs, claims)

    return make
