"""Definition of a property: a statement that holds for every encoder-decoder, with any weights.

A property is a generator of claims about a random trial. Its docstring is its statement.
A claim of equality must hold in every trial, up to rounding. A claim that something makes a
difference must hold in at least one trial.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .implementation import Claim, Trial


@dataclass(frozen=True)
class Property:
    """One property: its name, its statement, and the faults that break it."""

    name: str
    statement: str
    catches: str  # faults that break it
    needs: tuple[str, ...]  # required fields of the `Implementation`, or sides of padding
    claims: Callable[[Trial], Iterator[Claim]]


def catches(
    faults: str, *, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Trial], Iterator[Claim]]], Property]:
    """Decorator that turns a generator of claims into a property; ``faults`` break it."""

    def make(claims: Callable[[Trial], Iterator[Claim]]) -> Property:
        spoken = claims.__name__.replace("_", " ")  # python -OO removes docstrings
        statement = (claims.__doc__ or spoken).rstrip(".")
        return Property(claims.__name__, statement, faults, needs, claims)

    return make
