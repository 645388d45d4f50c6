"""The causes of faults: explanations that are tried, and named only if they are verified.

An explanation is tried by `replay` in float64. If the result is near the array of the other
implementation, its own spread is simulated, and it is a cause if the array is within that. It must
hold on every scene: on all inputs of a live module.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ...config import ModelConfig
from ...taps import FunctionTap
from ...watching.quantities import is_of_the_source
from ..arithmetic import Arithmetic, low_precision
from ..compare import difference_of, row_magnitude
from ..expected import Errors
from ..rounding import FORMATS, round_to
from ..simulation import Rounding, blurred, enters_gelu
from ..tolerance import arithmetic_of
from .causes import LONGEST, Knob, Trial, explanations
from .entering import last_word
from .replay import Scene, member, replay, with_member

RUNS = 16
"""The number of runs with random rounding that verify an explanation."""
LEAST = 8
"""From fewer elements no number is fitted: it would explain anything."""
MOST = 5
"""The most causes that are told of one fault."""


@dataclass(frozen=True)
class Cause:
    """An explanation of a fault with which the quantity agrees, as it was computed."""

    flag: str  # its entry in the catalogue, `refseq2seq.testing.mistakes.MISTAKES`
    text: str  # what is computed, what the model asks for, and the field
    spreads: float  # largest error of an element with it, in spreads
    inputs: int  # the number of inputs on which it was verified
    field: str | None = None  # path of the config field that has another value
    value: object = None  # the value with which the quantity agrees
    config: ModelConfig | None = None  # that of the model with this value, if it is one

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A scene, and the array of the other implementation for each fault."""

    scene: Scene
    theirs: dict[str, np.ndarray]
    own: dict[str, np.ndarray]  # what the model computes in its place
    where: dict[str, np.ndarray]  # meaningful elements of each quantity


def causes_of(
    hidden: dict[str, list[str]],
    evidence: Sequence[Evidence],
    dtype: str,
    z: float,
    *,
    is_exact: bool,
) -> dict[str, tuple[Cause, ...]]:
    """The verified causes of each fault, those that explain most faults first.

    ``hidden`` has the faults, and the unseen quantities through which each is computed.
    """
    found = {
        name: list(_verified(_Tried(name, unseen, evidence, dtype, z, is_exact)))
        for name, unseen in hidden.items()
    }
    counts = Counter(cause.text for causes in found.values() for cause in causes)
    return {
        name: tuple(sorted(causes, key=lambda c: (-counts[c.text], c.spreads))[:MOST])
        for name, causes in found.items()
    }


UNCHANGED = Trial("LowPrecision", "", lambda scene: scene)


class _Tried:
    """Trials of one fault."""

    def __init__(
        self,
        name: str,
        hidden: list[str],
        evidence: Sequence[Evidence],
        dtype: str,
        z: float,
        is_exact: bool,
    ) -> None:
        self.name, self.names, self.hidden = name, [*hidden, name], hidden
        self.evidence, self.dtype, self.z, self.is_exact = evidence, dtype, z, is_exact
        # Spreads are simulated for errors below `near`, which must also be less than unexplained.
        self.near = max(2e-4, 16 * FORMATS[dtype].eps)
        self.nearer = min(self.near, 0.9 * self.apart(UNCHANGED))

    def result(
        self, trial: Trial, one: Evidence, tap: FunctionTap | None = None
    ) -> np.ndarray | None:
        """The quantity under a trial; None where the ingredients do not fit each other."""
        kept: dict[str, np.ndarray] = {}

        def keep(name: str, x: np.ndarray) -> np.ndarray:
            x = x if tap is None else tap(name, x)
            kept[name] = np.asarray(x)
            return x

        try:
            replay(trial.apply(one.scene), self.names, FunctionTap(keep))
            x = kept.get(self.name)
            if x is not None and trial.later:
                later = (np.arange(x.shape[-2]) >= one.scene.first)[:, None]
                x = np.where(later, x, one.own[self.name])
        except (ValueError, TypeError, IndexError):  # shapes that do not broadcast
            return None
        return x

    def apart(self, trial: Trial, one: Evidence | None = None) -> float:
        """The largest error of a row under a trial, relative to its largest magnitude."""
        one = one or self.evidence[0]
        x, theirs = self.result(trial, one), one.theirs[self.name]
        if x is None or x.shape != theirs.shape:
            return math.inf
        where = self.where(one)
        alike = (x == theirs) | (np.isnan(x) & np.isnan(theirs)) | ~where
        error = np.where(alike, 0.0, np.abs(x - theirs))
        size = row_magnitude(np.where(where, theirs, 0.0))
        relative = np.where(error == 0, 0.0, error / size)
        return math.inf if np.isnan(relative).any() else float(relative.max(initial=0.0))

    def causes(self, trials: list[Trial]) -> dict[str, Cause]:
        """The trials that are verified, in all steps or in later ones, by their texts."""
        found, scene = {}, self.evidence[0].scene
        looped = scene.first < scene.length("decoder") and not is_of_the_source(self.name)
        for trial in trials:
            ways = [trial]
            if looped:
                text = f"{trial.text}, in the steps after the first"
                flag = "CachePosition" if trial.flag == "OtherPositions" else trial.flag
                ways.append(replace(trial, flag=flag, text=text, later=True))
            way = next((way for way in ways if self.apart(way) <= self.nearer), None)
            if way is not None and (cause := self.cause(way)) is not None:
                found[way.text] = cause
        return found

    def where(self, one: Evidence) -> np.ndarray:
        theirs, where = one.theirs[self.name], one.where[self.name]
        return where if where.shape == theirs.shape else np.ones(theirs.shape, bool)

    def cause(self, trial: Trial) -> Cause | None:
        """The trial as a cause, if the quantity agrees with it on all inputs."""
        errors = []
        for one in self.evidence:
            error = self.spreads(trial, one) if self.apart(trial, one) <= self.near else None
            if error is None:
                return None
            errors.append(error)
        changed = None
        if trial.field is not None:
            try:
                changed = with_member(self.evidence[0].scene.config, trial.field, trial.value)
            except (TypeError, ValueError):  # a value that no config may have
                changed = None
        return Cause(
            trial.flag, trial.text, max(errors), len(errors), trial.field, trial.value, changed
        )

    def spreads(self, trial: Trial, one: Evidence, dtype: str | None = None) -> float | None:
        """The largest error under a trial in its own spreads; None if it is not within them."""
        dtype = dtype or self.dtype
        value, theirs = self.result(trial, one), one.theirs[self.name]
        assert value is not None
        finite = np.isfinite(value) & np.isfinite(theirs)
        where = self.where(one) & finite
        if trial.later:
            where = where & (np.arange(where.shape[-2]) >= one.scene.first)[:, None]
        value, theirs = np.where(finite, value, 0.0), np.where(finite, theirs, 0.0)
        errors, by = Errors(value, where), arithmetic_of(dtype, stepwise=True)
        changed = trial.apply(one.scene)
        positions = {side: q for side, (q, _) in changed.positions.items()}
        for _ in range(RUNS):
            scene = _in_low_precision(changed, by, blur=not self.is_exact)
            seen = {n: np.asarray(x) for n, x in scene.passed.items() if n not in self.names}
            own = replace(trial, apply=partial(_inexact, scene, trial.inexact, by))
            tap = Rounding(scene.config, positions, len(scene.source), errors={}, by=by, given=seen)
            x = self.result(own, one, FunctionTap(tap))
            if x is None:
                return None
            errors.add(np.where(finite, x, 0.0)[None])
        expected = errors.expected(dtype)
        if difference_of(expected, theirs, self.z, None) is not None:
            return None
        error = np.where(where, np.abs(theirs - value), 0.0)
        unit = np.where(error > 0, expected.element_sigma, 1.0)
        return float(np.max(error / unit, initial=0.0))


def _in_low_precision(scene: Scene, by: Arithmetic, *, blur: bool) -> Scene:
    """The scene with arrays that round every operation by ``by``.

    Inputs of the erf form of GELU stay float64: the steps inside our erfc are our own.
    """

    def passed(name: str, x: np.ndarray) -> np.ndarray:
        x = blurred(x, by) if blur and name in scene.seen else x
        return x if enters_gelu(scene.config, name) else low_precision(x, by)

    return replace(
        scene,
        params=_mapped(scene.params, lambda x: low_precision(x, by)),
        passed={name: passed(name, x) for name, x in scene.passed.items()},
    )


def _inexact(scene: Scene, path: str | None, by: Arithmetic, _: Scene) -> Scene:
    """The scene with the parameter at ``path`` off by a rounding of numbers near 1."""
    if path is None:
        return scene
    x = member(scene.params, path)
    error = by.unit * by.rng.uniform(-1, 1, x.shape)
    return replace(scene, params=with_member(scene.params, path, low_precision(x + error, by)))


def _mapped(part: Any, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Nested parameters with ``function`` applied to each array."""
    if isinstance(part, tuple):
        return tuple(_mapped(member, function) for member in part)
    if is_dataclass(part):
        members = {f.name: _mapped(getattr(part, f.name), function) for f in fields(part)}
        return replace(part, **members)  # type: ignore[type-var]
    return None if part is None else function(part)


def _verified(tried: _Tried) -> Iterator[Cause]:
    """The causes of the fault: verified explanations of the first kind that has any."""
    for kind in explanations(tried.evidence[0].scene, tried.name, tried.hidden):
        options = {option.key: option for option in kind}  # some enter in several places
        causes: dict[str, Cause] = {}
        for option in options.values():
            if isinstance(option, Trial):
                causes |= tried.causes([option])
            else:
                causes |= tried.causes(_usual(option)) or tried.causes(_fitted(option, tried))
        if causes:
            yield from causes.values()
            return
    yield from _coarser(tried)


def _coarser(tried: _Tried) -> Iterator[Cause]:
    """A coarser format, in which all numbers are, and whose rounding allows the error."""
    for dtype in ("float16", "bfloat16"):
        arrays = [one.theirs[tried.name] for one in tried.evidence]
        if tried.dtype != dtype and all(np.array_equal(x, round_to(x, dtype)) for x in arrays):
            errors = [
                tried.spreads(UNCHANGED, one, dtype)
                for one in tried.evidence
                if one.theirs[tried.name].shape == one.own[tried.name].shape
            ]
            known = [error for error in errors if error is not None]
            if known and len(known) == len(errors):
                text = (
                    f"{last_word(tried.name)} is computed in {dtype}; the format is {tried.dtype}"
                )
                yield Cause("LowPrecision", text, max(known), len(known))


def _usual(knob: Knob) -> list[Trial]:
    """The trials of the usual values of a number."""
    values = {n: v for n, v in knob.values.items() if not math.isclose(v, knob.current)}
    return [knob.trial(value, name) for name, value in values.items()]


def _fitted(knob: Knob, tried: _Tried) -> list[Trial]:
    """The value of the knob with the least squared error, by Gauss-Newton steps."""
    one = tried.evidence[0]
    theirs, where = one.theirs[tried.name], tried.where(one)
    size = row_magnitude(np.where(where, theirs, 0.0))
    if len(tried.hidden) > LONGEST or np.sum(where & (theirs != 0)) < LEAST:
        return []

    def residual(value: float) -> np.ndarray | None:
        x = tried.result(knob.trial(value, ""), one)
        if x is None or x.shape != theirs.shape:
            return None
        found = np.where(where, (x - theirs) / np.where(size > 0, size, 1.0), 0.0).ravel()
        return found if np.isfinite(found).all() else None

    logarithmic = 0 < knob.current < 1e-2 or knob.current > 20  # eps, or the base of a rotation
    value = knob.current
    for _ in range(8):
        step = 1e-3 * abs(value) if value else 1e-3
        here, there = residual(value), residual(value + step)
        if here is None or there is None:
            return []
        slope = (there - here) / step
        if not (slope @ slope) > 0:
            return []
        change = -float(slope @ here) / float(slope @ slope)
        if logarithmic:
            change = value * (math.exp(max(-3.0, min(3.0, change / value))) - 1)
        value += change
        if not math.isfinite(value) or abs(value) > 1e9:
            return []
        if abs(change) <= 1e-10 * abs(value):
            break
    return [knob.trial(value, "")] if not math.isclose(value, knob.current, rel_tol=1e-7) else []
