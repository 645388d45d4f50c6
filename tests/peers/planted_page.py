"""``python tests/peers/planted_page.py`` writes docs/planted-bugs.md, in some four minutes.

The properties of a faulty module are tested only if the page has no row for it; those of all take
twenty minutes more. The tests compute only the results of `diagnose`, and compare the page with
them.
"""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import planted_huggingface
import planted_pytorch
import planted_whisper
import planted_x_transformers
import pytest
from planted import Fault, one_thread

from refseq2seq.testing import properties
from refseq2seq.testing.diagnosis import Diagnosis

PAGE = Path(__file__).parents[2] / "docs" / "planted-bugs.md"
FAMILIES = {
    "x-transformers": planted_x_transformers.FAULTS.all,
    "Hugging Face transformers": planted_huggingface.FAULTS.all,
    "Whisper of Hugging Face transformers": planted_whisper.FAULTS.all,
    "torch.nn.Transformer": planted_pytorch.FAULTS.all,
}
FAULTS = [fault for faults in FAMILIES.values() for fault in faults]
RIGHT = {fault.where: fault.make for fault in FAULTS}

INTRODUCTION = """\
# Planted bugs

Each row of the tables is a mistake that programmers make, planted in a correct live PyTorch
module, and the result of `refseq2seq.testing.diagnose`: the first quantity that deviates, by how
many [spreads](tolerances.md) of float32 rounding an element of it is off, and the cause, if one is
verified. Eight spreads are allowed, fewer where a whole row is off. Each quantity is computed from
those that the module computed before it, so that a quantity deviates only where a mistake is made.
Names that begin with `step.` are of greedy generation with the module's own cache. In rows with the
bug *none*, the module is unchanged.

The last column lists the [properties](properties.md) that fail, without reference weights:
cached against uncached, a row alone against the row in a batch, padding against none, and so
on. They detect a mistake that breaks such a relation. They cannot detect a mistake that makes
another, consistent model, nor one that their random trials did not meet. The column
is empty for Whisper, whose properties were not examined.

`python tests/peers/planted_page.py` writes this page; the tests check it against the results of
`diagnose`.
"""
"""Before the tables."""


class Row(NamedTuple):
    """A row of the table: all text."""

    fault: str
    cause: str
    first: str
    spreads: str
    where: str
    properties: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


HEAD = str(Row("bug", "cause", "first deviation", "spreads", "model", "properties that fail"))


@cache
def diagnosis(*indices: int) -> Diagnosis:
    """The result for the faults with these numbers, planted in one module."""
    fault, *others = (FAULTS[i] for i in indices)
    with pytest.MonkeyPatch.context() as patch:
        return fault.planted(patch, *others).diagnose(fault.max_new_tokens)


def together(n: int, size: int) -> list[tuple[int, ...]]:
    """``n`` sets of faults of one module, in different sublayers, drawn by chance."""
    rng, found = np.random.default_rng(size), []
    while len(found) < n:
        drawn = tuple(sorted(map(int, rng.choice(len(FAULTS), size, replace=False))))
        faults = [FAULTS[i] for i in drawn]
        places = {fault.expected[0].rpartition(".")[0] for fault in faults}
        one_module = len({fault.where for fault in faults}) == 1
        looped = any(fault.max_new_tokens for fault in faults)
        if one_module and not looped and len(places) == size and drawn not in found:
            found.append(drawn)
    return found


def are_listed(indices: tuple[int, ...]) -> bool:
    """Whether faults together are found at the quantities of each alone, and nowhere else."""
    alone = [{fault.name for fault in diagnosis(i).faults} for i in indices]
    return {fault.name for fault in diagnosis(*indices).faults} == set().union(*alone)


def told(found: Diagnosis) -> str:
    """The causes of the first fault."""
    return " or ".join(cause.text for cause in found.faults[0].causes).replace("|", "\\|")


def broken(fault: Fault | None, where: str) -> list[str]:
    """The properties that fail, of the module with the fault or without one."""
    with pytest.MonkeyPatch.context() as patch:
        subject = RIGHT[where]() if fault is None else fault.planted(patch)
        of = subject.implementation
        return [] if of is None else properties.examine(of).failed


def spreads(found: Diagnosis) -> str:
    """The size of a deviation; another shape has none."""
    size = found.difference.spreads
    return "another shape" if size is None else f"{size:.1e}" if size >= 1000 else f"{size:.0f}"


def page() -> str:
    """The whole page."""
    rows: list[Row] = []
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    known = {(row.fault, row.where): row.properties.split(", ") for row in read_rows(old)}
    for where in RIGHT:
        failed = known.get(("*none*", where)) or broken(None, where)
        rows.append(Row("*none*", "", "none", "", where, ", ".join(failed)))
    for i, fault in enumerate(FAULTS):
        found = diagnosis(i)
        failed = known.get((fault.name, fault.where)) or broken(fault, fault.where)
        first = "none" if found.first is None else f"`{found.first}`"
        rows.append(
            Row(fault.name, told(found), first, spreads(found), fault.where, ", ".join(failed))
        )
        print(f"{fault.name}: {found.first}; {failed}", file=sys.stderr)
    return f"{INTRODUCTION}\n{summary(rows)}\n{tables(rows)}\n{pairs()}"


N_PAIRS, N_TRIPLES, N_SHOWN = 60, 40, 12


def pairs() -> str:
    """The section on several faults in one module."""
    sets = {size: together(n, size) for size, n in ((2, N_PAIRS), (3, N_TRIPLES))}
    right = {size: sum(map(are_listed, of_size)) for size, of_size in sets.items()}
    lines = [
        "## Several bugs at once",
        "",
        f"Of {N_PAIRS} pairs of bugs in different sublayers of one module, drawn by chance, "
        f"{right[2]} are found at exactly",
        f"the quantities of both, and of {N_TRIPLES} triples {right[3]}. Some of the pairs:",
        "",
        "| bugs | model | deviations and causes |",
        "|---|---|---|",
    ]
    for indices in sets[2][:N_SHOWN]:
        found = diagnosis(*indices)
        causes = [
            f"`{group[0].name}`: {group[0].cause.text if group[0].cause else 'no cause found'}"
            for group in found.groups()
        ]
        names = "; ".join(FAULTS[i].name for i in indices)
        lines.append(f"| {names} | {FAULTS[indices[0]].where} | {'<br>'.join(causes)} |")
    return "\n".join([*lines, ""])


def summary(rows: list[Row]) -> str:
    """How many are found, by either way, and which properties find most."""
    at_place = sum(fault.is_found(diagnosis(i).first) for i, fault in enumerate(FAULTS))
    flags = [{c.flag for c in diagnosis(i).faults[0].causes} for i in range(len(FAULTS))]
    explained = sum(bool(flags[i] & set(fault.flags)) for i, fault in enumerate(FAULTS))
    counted = Counter(name for row in rows for name in row.properties.split(", ") if name)
    most = ", ".join(f"`{name}` ({n})" for name, n in counted.most_common(6))
    seen = sum(bool(row.properties) for row in rows)
    return (
        f"Of {len(FAULTS)} bugs, `diagnose` finds {at_place} at the expected quantity, and names "
        f"the cause of {explained}. The properties alone\nfind {seen}; those that fail most often "
        f"are {most}.\n"
    )


def tables(rows: list[Row]) -> str:
    """One table for each library."""
    parts = []
    for family, faults in FAMILIES.items():
        wheres = {fault.where for fault in faults}
        lines = [str(row) for row in rows if row.where in wheres]
        parts.append("\n".join([f"## {family}", "", HEAD, "|---|---|---|---|---|---|", *lines, ""]))
    return "\n".join(parts)


def read_rows(text: str) -> Iterator[Row]:
    """The rows of the tables in a page."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and cells[0] != "bug" and not cells[0].startswith("---"):
            yield Row(*cells)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    with one_thread():
        PAGE.write_text(page(), encoding="utf-8")
