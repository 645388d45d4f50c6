"""Testing the properties on an implementation, and reporting the outcomes."""

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
"""Every property, in the order in which they are tested."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one property."""

    property: Property
    status: str  # "passed", "failed", "not applicable" or "skipped"
    worst: float = 0.0  # largest difference where results must be equal, relative to its row
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
        """Names of the properties that were tested and hold."""
        return [o.property.name for o in self.outcomes if o.status == "passed"]

    def __str__(self) -> str:
        return "\n".join(str(o) for o in self.outcomes if o.status != "skipped")


class PropertyError(AssertionError):
    """Raised if properties fail; ``report`` has all outcomes."""

    def __init__(self, report: Report) -> None:
        failures = [str(o) for o in report.outcomes if o.status == "failed"]
        head = f"{len(failures)} of {len(failures) + len(report.passed)} properties failed"
        again = f"properties.examine(implementation, only={report.failed}, seed={report.seed})"
        super().__init__("\n".join([head, *failures, f"To repeat only these: {again}"]))
        self.report = report


def check(implementation: Implementation, **options: Any) -> Report:
    """Test the properties on an implementation and raise if one fails.

    The arguments and the result are those of `examine`.

    Raises
    ------
    PropertyError
        An AssertionError that lists the failed properties with counterexamples.
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
    """Test the properties on an implementation and report the outcome of each.

    Parameters
    ----------
    implementation : Implementation
    only, skip : collection of str
        Names of the properties to test, by default all, and of those to skip.
    trials : int
        Number of random trials per property, in order of increasing size. A property stops at
        its first counterexample, so that the counterexample is small.
    seed : int
        Seed of the trials. The trials of a property do not depend on which others are tested.
    rtol : float, optional
        Largest allowed difference of numbers that must be equal, relative to the largest
        magnitude of their row (the last axis). The default is 256 eps of the logits' dtype, but
        at most the square root of eps: 6e-14 in float64, 3e-5 in float32, 0.03 in float16.
        Tokens must be equal whatever ``rtol`` is.

    Returns
    -------
    Report

    Raises
    ------
    Exception
        Any exception of the implementation in a first simple call; ValueError or TypeError if
        its logits have the wrong shape or dtype. Later exceptions make a property fail.
    """
    known = {p.name for p in ALL}
    if unknown := {*(only or ()), *skip} - known:
        raise ValueError(
            f"only and skip must name properties, got {sorted(unknown)}: the names are "
            f"{', '.join(sorted(known))}"
        )
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
    """The smaller of 256 eps of ``dtype`` and the square root of eps."""
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
        return Outcome(p, "not applicable", story="no trial tested it")
    return Outcome(p, "passed", worst)


def _failure(p: Property, distance: float, how: str, inputs: dict[str, Any]) -> Outcome:
    plain = {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    shown = [f"      {name} = {value!r}" for name, value in plain.items()]
    return Outcome(p, "failed", distance, "\n".join([f"    {how}", *shown]))


def table(properties: Iterable[Property] = ALL) -> str:
    """The properties, their statements and the faults that break them, as a Markdown table."""
    lines = ["| property | statement | faults that it catches |", "|---|---|---|"]
    lines += [f"| `{p.name}` | {p.statement} | {p.catches} |" for p in properties]
    return "\n".join(lines)
