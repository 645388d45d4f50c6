"""A trial: one change of a scene that may explain a fault. A knob: a number with other values."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....config import AttentionConfig
from ..replay import Change, Scene, member, with_member

Apply = Callable[[Scene], Scene]


@dataclass(frozen=True)
class Trial:
    """A change of the scene; ``field`` and ``value`` if it is one of the config.

    ``inexact`` is a parameter that the other implementation stores with another offset, so that
    ours has an error of one rounding. If ``later``, the change holds only in the steps of a loop
    after the first.
    """

    flag: str  # in `refseq2seq.testing.mistakes`
    text: str
    apply: Apply
    field: str | None = None
    value: Any = None
    inexact: str | None = None
    later: bool = False

    @property
    def key(self) -> object:
        """Equal for trials of the same config: a field enters several quantities."""
        return id(self) if self.field is None else (self.text, self.value)


@dataclass(frozen=True)
class Knob:
    """A number: the usual ``values`` by name are tried, then the one that fits best."""

    current: float
    values: dict[str, float]
    trial: Callable[[float, str], Trial]

    @property
    def key(self) -> object:
        """Equal for knobs of the same number."""
        return self.trial(self.current, "").text


def of_field(path: str, current: Any, value: Any, flag: str, called: str = "") -> Trial:
    """Another value of a config field."""
    told = f"{path.rpartition('.')[2]} is {named(value, called)}; the model has {shown(current)}"
    return Trial(flag, f"{told} ({path})", with_config(path, value), path, value)


def of_quantity(flag: str, text: str, name: str, change: Change) -> Trial:
    """Another function of the quantities in the place of ``name``."""
    return Trial(flag, text, lambda s: s.changing(name, change))


def computed(f: Callable[..., np.ndarray], *names: str) -> Change:
    """The change to a function of other quantities."""
    return lambda _, values: f(*(values[name] for name in names))


def applied(f: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The change to a function of the quantity itself."""
    return lambda x, _: f(x)


def factor_of(scene: Scene, name: str, told: str) -> Knob:
    """A factor of the quantity ``name``."""
    return Knob(
        1.0,
        usual_numbers(scene, name),
        lambda r, called: of_quantity(
            "Factor", f"{told} is multiplied by {named(r, called)}", name, lambda x, _: x * r
        ),
    )


def with_config(path: str, value: Any) -> Apply:
    """The scene with another config field."""
    return lambda s: replace(s, config=with_member(s.config, path, value))


def with_param(path: str, value: Any) -> Apply:
    """The scene with another parameter, or other parameters."""
    return lambda s: replace(s, params=with_member(s.params, path, value))


def with_mask(place: str, mask: np.ndarray) -> Apply:
    """The scene with another mask of an attention, in the place of the windows of its layers."""
    stack, _, kind = place.partition(".")

    def change(s: Scene) -> Scene:
        is_self = kind == "self_attention"
        config = with_member(s.config, f"{stack}.windows", ()) if is_self else s.config
        return replace(s, config=config, masks=s.masks | {place: mask})

    return change


def found(root: Any, path: str) -> Any:
    """The `member`, or None."""
    try:
        return member(root, path)
    except (AttributeError, IndexError, KeyError, ValueError):  # not an index of a layer
        return None


def shown(value: Any) -> str:
    """A value as the report shows it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(shown, value)) if isinstance(value, tuple) else str(value)


def named(value: Any, called: str) -> str:
    """A value and its name, such as ``0.5 (1 / sqrt(d_k))``."""
    return shown(value) if called in ("", shown(value)) else f"{shown(value)} ({called})"


def usual_numbers(scene: Scene, path: str) -> dict[str, float]:
    """Numbers that are often factors, by name: those of the stack and sublayer of ``path``."""
    parts = path.split(".")
    side = scene.config.encoder if parts[0] == "encoder" else scene.config.decoder
    own = getattr(side, parts[-2], None) if len(parts) > 1 else None
    attention = own if isinstance(own, AttentionConfig) else side.self_attention
    numbers = {"0": 0.0, "1": 1.0, "-1": -1.0, "2": 2.0, "0.5": 0.5}
    for name, n in {"d_model": side.d_model, "d_k": attention.d_k}.items():
        root = math.sqrt(n)
        numbers |= {f"sqrt({name})": root, f"1 / sqrt({name})": 1 / root, f"1 / {name}": 1 / n}
    return numbers
