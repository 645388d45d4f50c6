"""The result of a diagnosis: faults, their causes, and the report."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from ...config import ModelConfig
from ..compare import Difference, as_json
from .entering import entering
from .explain import Cause
from .story import by_place, unseen

UNHOOKED = "unhooked.logits"
"""The logits of a run without hooks, compared with those of the run with hooks."""


MOST_TOLD = 12
"""The most faults that a report describes; of more, it lists the places."""


@dataclass(frozen=True)
class Fault:
    """A quantity that deviates, computed from the other implementation's preceding quantities."""

    name: str
    difference: Difference
    causes: tuple[Cause, ...]  # verified explanations, the first those of most faults; or none

    @property
    def cause(self) -> Cause | None:
        """The first of the causes; None if no explanation was verified."""
        return self.causes[0] if self.causes else None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result of `diagnose` or `diagnose_arrays`; ``print(diagnosis.report())`` prints it."""

    faults: tuple[Fault, ...]  # in order of execution; that of "unhooked.logits" is the last
    compared: tuple[str, ...]  # names of the quantities that were compared, in order
    not_compared: tuple[str, ...]  # names of quantities that are not among the arrays
    not_judged: tuple[str, ...]  # computed from arrays of another shape or not finite, or a choice
    unhooked_agrees: bool | None  # logits of a run without hooks and the model's; None without one
    changed_by_hooks: tuple[str, ...]  # code that runs differently, or not at all, with hooks
    dtype: str  # number format whose rounding is allowed
    z: float  # largest allowed error of an element, in spreads
    config: ModelConfig

    def __repr__(self) -> str:
        found = f"the first fault is in {self.first}" if self.faults else "no fault"
        return f"<Diagnosis of {len(self.compared)} quantities: {found}>"

    @property
    def first(self) -> str | None:
        """The name of the first quantity that deviates; None if all agree."""
        return self.faults[0].name if self.faults else None

    @property
    def difference(self) -> Difference | None:
        """The difference in the first quantity that deviates; None if all agree."""
        return self.faults[0].difference if self.faults else None

    @property
    def unhooked(self) -> Difference | None:
        """The difference of the logits of the run without hooks; None if they agree."""
        return next((f.difference for f in self.faults if f.name == UNHOOKED), None)

    def report(self) -> str:
        """A text that lists the faults. Those with the same causes count once."""
        groups, of = list(self.groups()), _counted(len(self.compared), "compared quantity")
        if not groups:
            lines = [f"No fault in {of}, {self._allowed()}."]
        else:
            lines = [
                f"{_counted(len(groups), 'fault')} in {of}, each computed from the quantities "
                f"before it, {self._allowed()}."
            ]
        if groups and self.unhooked_agrees is not None:
            agree = "agree with" if self.unhooked_agrees else "deviate from"
            lines.append(f"The logits of a run without hooks {agree} those of the model.")
        for i, group in enumerate(groups[:MOST_TOLD], start=1):
            lines += ["", *self._told(i, group)]
        if more := [fault.name for group in groups[MOST_TOLD:] for fault in group]:
            lines += ["", f"{_counted(len(more), 'quantity')} more:"]
            lines += [f"  {line}" for line in by_place(more)]
        if self.not_judged:
            lines += [
                "",
                "Not judged, because they depend on an array that has another shape or is",
            ]
            lines += ["not finite, or belong to the loop:"]
            lines += [f"  {line}" for line in by_place(self.not_judged)]
        return "\n".join(lines)

    def groups(self) -> Iterable[list[Fault]]:
        """The faults, those of the same causes together, in the order of the first of each."""
        found: dict[object, list[Fault]] = {}
        for fault in self.faults:
            key = tuple(cause.text for cause in fault.causes) or fault.name
            found.setdefault(key, []).append(fault)
        return found.values()

    def _told(self, i: int, group: list[Fault]) -> list[str]:
        """The lines of faults with the same cause."""
        first = group[0]
        if first.name == UNHOOKED:
            return [f"{i}. {UNHOOKED}", *(f"   {line}" for line in self._without_hooks(first))]
        places = by_place(fault.name for fault in group)
        lines = [f"{i}. {first.name}"]
        if len(group) > 1:
            lines += [f"   {len(group)} quantities:", *(f"     {place}" for place in places)]
        for n, cause in enumerate(first.causes):
            lines.append(f"   {'   or:' if n else 'Cause:'} {cause.text}")
        if first.causes:
            n = first.causes[0].inputs
            worst = max(cause.spreads for fault in group for cause in fault.causes[:1])
            inputs = "this input" if n == 1 else f"{n} inputs"
            agree = "the quantity agrees" if len(group) == 1 else "the quantities agree"
            which = "the first" if first.causes[1:] else "it"
            lines.append(f"   With {which} {agree} on {inputs}, up to {worst:.2g} spreads.")
        hidden = unseen(first.name, self.compared, self.not_compared)
        lines += [
            *(f"   {line}" for line in str(first.difference).splitlines()[1:]),
            *(f"     intermediate, not compared: {line}" for line in by_place(hidden)),
        ]
        if not first.causes:
            lines += ["   No explanation was verified. The quantity depends on:"]
            lines += [f"     {line}" for line in entering(self.config, [*hidden, first.name])]
        return lines

    def _without_hooks(self, fault: Fault) -> list[str]:
        """The lines of logits that differ from those of the run with hooks."""
        return [
            "The logits of a run without hooks are not those of the run with hooks.",
            *str(fault.difference).splitlines()[1:],
            "Changed by hooks:",
            *(f"  {line}" for line in self.changed_by_hooks),
            "Not captured by hooks:",
            *(f"  {line}" for line in by_place(self.not_compared) or ["nothing"]),
        ]

    def _allowed(self) -> str:
        """The tolerance, and the number of quantities that were not compared."""
        n = len(self.not_compared)
        missing = f"{n} more were not compared" if n else "every quantity was compared"
        return f"up to {self.z:g} spreads of rounding to {self.dtype}; {missing}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, without ``config``."""
        faults = [
            {
                "name": fault.name,
                "difference": fault.difference.to_dict(),
                "causes": [
                    {
                        n: as_json(getattr(cause, n))
                        for n in ("flag", "text", "spreads", "inputs", "field")
                    }
                    | {
                        "value": cause.value
                        if isinstance(cause.value, int | float | str)
                        else str(cause.value)
                    }
                    for cause in fault.causes
                ],
            }
            for fault in self.faults
        ]
        names = [f.name for f in fields(self) if f.name not in ("faults", "config")]
        return {"first": self.first, "faults": faults} | {
            n: as_json(getattr(self, n)) for n in names
        }


def _counted(n: int, noun: str) -> str:
    """A number and a noun, such as ``2 quantities``."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{n} {noun if n == 1 else plural}"
