"""Trying the properties on an implementation, and saying what came of it."""

import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks import check_int, check_number
from . import of_decoding, of_forward
from .catalogue import Property
from .implementation import Claim, Implementation, Trial

ALL = tuple(
    p
    for module in (of_forward, of_decoding)
    for p in vars(module).values()
    if isinstance(p, Property)
)
"""Every property, in the order in which they are tried."""


@dataclass(frozen=True)
class Outcome:
    """What came of one property."""

    property: Property
    status: str  # "passed", "failed", "not applicable" or "skipped"
    worst: float = 0.0  # the greatest difference that had to be none, relative to its row
    story: str = ""  # why it failed, with the counterexample, or why it does not apply

    def __str__(self) -> str:
        head = f"{self.status:<15}{self.property.name:<22}{self.property.statement}"
        return f"{head}\n{self.story}" if self.status == "failed" else head


@dataclass(frozen=True)
class Report:
    """The outcomes of all properties, in the order of the catalogue."""

    outcomes: tuple[Outcome, ...]
    seed: int

    @property
    def failed(self) -> list[str]:
        """Names of the properties that failed."""
        return [o.property.name for o in self.outcomes if o.status == "failed"]

    @property
    def passed(self) -> list[str]:
        """Names of the properties that were tried and held."""
        return [o.property.name for o in self.outcomes if o.status == "passed"]

    def __str__(self) -> str:
        return "\n".join(str(o) for o in self.outcomes if o.status != "skipped")


class PropertyError(AssertionError):
    """Some properties failed; ``report`` has all outcomes."""

    def __init__(self, report: Report) -> None:
        failures = [str(o) for o in report.outcomes if o.status == "failed"]
        head = f"{len(failures)} of {len(failures) + len(report.passed)} properties failed"
        again = f"properties.examine(implementation, only={report.failed}, seed={report.seed})"
        super().__init__("\n".join([head, *failures, f"To see only these again: {again}"]))
        self.report = report


def check(implementation: Implementation, **options: Any) -> Report:
    """Hold an implementation to the properties; takes what `examine` takes.

    Raises
    ------
    PropertyError
        An AssertionError that lists the properties that failed, with counterexamples.
    """
    report = examine(implementation, **options)
    if report.failed:
        raise PropertyError(report)
    return report


def examine(
    implementation: Implementation,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    trials: int = 8,
    seed: int = 0,
    rtol: float | None = None,
) -> Report:
    """Try the properties on an implementation and report what came of each.

    Parameters
    ----------
    implementation : Implementation
    only, skip : names of properties
        Those to try, all by default, and those to leave out.
    trials : int
        Random trials per property, from small ones to greater; a property stops at its first
        counterexample, so that it is a small one.
    seed : int
        The same seed gives the same trials, whichever properties are tried.
    rtol : float, optional
        How far apart numbers that should be equal may be, as a part of the greatest magnitude
        of their row (the last axis). By default 256 eps of the logits' dtype and at most the
        square root of eps: 6e-14 in float64, 3e-5 in float32, 0.03 in float16. Tokens are
        equal or not, whatever it is.

    Returns
    -------
    Report

    Raises
    ------
    Exception
        What the implementation raises in a first plain call, or ValueError or TypeError if the
        logits are of another shape or kind. What it raises later is a failure of a property.
    """
    known = {p.name for p in ALL}
    if unknown := {*(only or ()), *skip} - known:
        raise ValueError(f"no properties of these names: {sorted(unknown)}; have {sorted(known)}")
    trials, seed = check_int("trials", trials, 1), check_int("seed", seed, 0)
    if rtol is not None:
        rtol = check_number("rtol", rtol, "[0, inf)")
    first = Trial(implementation, 0, np.random.default_rng(seed))
    logits = first.forward(first.source, first.target)
    rtol = default_rtol(logits.dtype) if rtol is None else rtol
    outcomes = []
    for p in ALL:
        if p.name in skip or (only is not None and p.name not in only):
            outcomes.append(Outcome(p, "skipped"))
        elif lacking := [need for need in p.needs if implementation.lacks(need)]:
            outcomes.append(Outcome(p, "not applicable", story=f"it needs {', '.join(lacking)}"))
        else:
            outcomes.append(_outcome(p, implementation, trials, seed, rtol))
    return Report(tuple(outcomes), seed)


def default_rtol(dtype: Any) -> float:
    """256 eps of ``dtype``, and at most the square root of eps."""
    eps = float(np.finfo(dtype).eps)
    return min(256 * eps, eps**0.5)


def _outcome(
    p: Property, implementation: Implementation, trials: int, seed: int, rtol: float
) -> Outcome:
    worst, tried = 0.0, False
    differences: dict[str, tuple[float, Claim]] = {}
    for index in range(trials):
        rng = np.random.default_rng([seed, zlib.crc32(p.name.encode()), index])
        trial = Trial(implementation, index, rng)
        try:
            claims = list(p.claims(trial))
        except Exception as error:
            return _failure(p, np.inf, f"trial {index} raises {error!r}", trial.inputs)
        for claim in claims:
            distance, limit = claim.distance(), claim.slack * rtol
            if claim.differ:
                before = differences.get(claim.differ, (-1.0, claim))
                differences[claim.differ] = max(before, (distance, claim), key=lambda pair: pair[0])
            elif not distance <= limit:
                how = f"trial {index}: {claim.explain()}; the limit is {limit:.2g}"
                return _failure(p, distance, how, claim.inputs)
            else:
                worst, tried = max(worst, distance), True
    for what, (distance, claim) in differences.items():
        if not rtol < distance < np.inf:
            how = f"{what} makes no difference in {trials} trials; {claim.explain()}"
            return _failure(p, worst, how, claim.inputs)
    if not (tried or differences):
        return Outcome(p, "not applicable", story="no trial had a case of it")
    return Outcome(p, "passed", worst)


def _failure(p: Property, distance: float, how: str, inputs: dict[str, Any]) -> Outcome:
    shown = [f"      {name} = {_plain(value)!r}" for name, value in inputs.items()]
    return Outcome(p, "failed", distance, "\n".join([f"    {how}", *shown]))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def table(properties: Iterable[Property] = ALL) -> str:
    """The properties as a Markdown table."""
    lines = ["| property | what holds | what it catches |", "|---|---|---|"]
    lines += [f"| `{p.name}` | {p.statement} | {p.catches} |" for p in properties]
    return "\n".join(lines)
