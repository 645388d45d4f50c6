"""Explanations of a fault: what may stand in the place of each thing that enters a quantity.

A quantity is computed from config fields, parameters, positions, masks and other quantities;
`entering` lists them. Each kind of thing has alternatives, in a file of its own: a field has other
values, a bias may be left out, a mask inverted, an input exchanged. They are of several kinds, and
the next kind is tried only if none of the one before explains the fault.
"""

from collections.abc import Iterator

from ..replay import Scene
from . import fields, forms, frames, masks, positions, quantities, weights
from .trial import Knob, Trial

__all__ = ["LONGEST", "Knob", "Trial", "explanations"]


LONGEST = 24
"""The most unseen quantities before a fault through which all explanations are tried."""


def explanations(scene: Scene, name: str, hidden: list[str]) -> Iterator[Iterator[Trial | Knob]]:
    """What may explain a fault at ``name``, computed through the unseen ``hidden``, by kind."""
    names = [*hidden, name]
    if len(hidden) > LONGEST:
        yield _of_all_layers(scene, names)
    else:
        yield _conventions(scene, names)
        yield _exchanges(scene, names)
        yield _factors(scene, names)
    yield iter([quantities.factor_of_output(scene, name)])


def _of_all_layers(scene: Scene, names: list[str]) -> Iterator[Trial | Knob]:
    """What another model computes everywhere: other fields, positions and masks."""
    for name in names:
        yield from fields.other_values(scene, name)
        yield from positions.other_positions(scene, name)
        yield from masks.other_masks(scene, name)


def _conventions(scene: Scene, names: list[str]) -> Iterator[Trial | Knob]:
    """What another model computes: also other functions and heads, and parts left out."""
    yield from _of_all_layers(scene, names)
    for name in names:
        yield from weights.left_out(scene, name)
        yield from weights.other_norms(scene, name)
        yield from weights.other_heads(scene, name)
        yield from frames.other_windows(scene, name)
        yield from forms.other_functions(scene, name)
        yield from quantities.swapped_inputs(scene, name)
    yield from weights.biases_left_out(scene, names)
    yield from weights.bias_added(scene, names[-1])


def _exchanges(scene: Scene, names: list[str]) -> Iterator[Trial | Knob]:
    """Arrays and quantities in the place of each other, moved, rounded or left out."""
    for name in names:
        yield from weights.other_arrays(scene, name)
        yield from quantities.other_inputs(scene, name, names[-1])
        yield from quantities.other_places(scene, name)
    yield from quantities.other_tokens(scene, names)
    yield from frames.other_frames(scene, names)
    yield from quantities.other_output(scene, names[-1])
    yield from quantities.swapped_axes(scene, names)


def _factors(scene: Scene, names: list[str]) -> Iterator[Trial | Knob]:
    """Bare factors."""
    for name in names:
        yield from weights.factors(scene, name)
        yield from quantities.factors(scene, name)
