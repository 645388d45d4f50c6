"""``python tests/peers/planted_page.py`` writes docs/planted-bugs.md, in some twenty minutes.

It tests the properties of every faulty module too. The tests compute only the results of
`diagnose`, and compare the page with them.
"""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import planted_huggingface
import planted_pytorch
import planted_x_transformers
import pytest
from planted import Fault, one_thread

from refseq2seq.testing import properties
from refseq2seq.testing.diagnosis import Diagnosis

PAGE = Path(__file__).parents[2] / "docs" / "planted-bugs.md"
FAMILIES = {
    "x-transformers": planted_x_transformers.FAULTS.all,
    "Hugging Face transformers": planted_huggingface.FAULTS.all,
    "torch.nn.Transformer": planted_pytorch.FAULTS.all,
}
FAULTS = [fault for faults in FAMILIES.values() for fault in faults]
RIGHT = {fault.where: fault.make for fault in FAULTS}

INTRODUCTION = """\
# Planted bugs

Each row of the tables is a mistake that programmers make, planted in a correct live PyTorch
module, and the result of `refseq2seq.testing.diagnose`: the first quantity that deviates from
the reference, and by how many [spreads](tolerances.md) of float32 rounding an element of it is
off. Eight are allowed, fewer where a whole row is off. Names that begin with `step.` are of
greedy generation with the module's own cache. In rows with the bug *none*, the module is
unchanged.

The last column lists the [properties](properties.md) that fail, without reference weights:
cached against uncached, a row alone against the row in a batch, padding against none, and so
on. They detect a mistake that breaks such a relation. They cannot detect a mistake that makes
another, consistent model, nor one that their random trials did not meet.

`python tests/peers/planted_page.py` writes this page; the tests check it against the results of
`diagnose`.
"""
"""Before the tables."""


class Row(NamedTuple):
    """A row of the table: all text."""

    fault: str
    where: str
    first: str
    spreads: str
    expected: str
    properties: str

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


HEAD = str(Row("bug", "model", "first deviation", "spreads", "expected", "properties that fail"))


@cache
def diagnosis(i: int) -> Diagnosis:
    """The result for fault number i."""
    fault = FAULTS[i]
    with pytest.MonkeyPatch.context() as patch:
        return fault.planted(patch).diagnose(fault.max_new_tokens)


def broken(fault: Fault | None, where: str) -> list[str]:
    """The properties that fail, of the module with the fault or without one."""
    with pytest.MonkeyPatch.context() as patch:
        subject = RIGHT[where]() if fault is None else fault.planted(patch)
        return properties.examine(subject.implementation).failed


def spreads(found: Diagnosis) -> str:
    """The size of a deviation; another shape has none."""
    size = found.difference.spreads
    return "another shape" if size is None else f"{size:.1e}" if size >= 1000 else f"{size:.0f}"


def page() -> str:
    """The whole page."""
    rows: list[Row] = []
    for where in RIGHT:
        failed = broken(None, where)
        rows.append(Row("*none*", where, "none", "", "none", ", ".join(failed)))
    for i, fault in enumerate(FAULTS):
        found = diagnosis(i)
        failed = broken(fault, fault.where)
        expected = " or ".join(f"`{place}`" for place in fault.expected)
        first = "none" if found.first is None else f"`{found.first}`"
        rows.append(
            Row(fault.name, fault.where, first, spreads(found), expected, ", ".join(failed))
        )
        print(f"{fault.name}: {found.first}; {failed}", file=sys.stderr)
    return f"{INTRODUCTION}\n{summary(rows)}\n{tables(rows)}"


def summary(rows: list[Row]) -> str:
    """How many are found, by either way, and which properties find most."""
    at_place = sum(fault.is_found(diagnosis(i).first) for i, fault in enumerate(FAULTS))
    counted = Counter(name for row in rows for name in row.properties.split(", ") if name)
    most = ", ".join(f"`{name}` ({n})" for name, n in counted.most_common(6))
    return (
        f"Of {len(FAULTS)} bugs, `diagnose` finds {at_place} at the expected quantity. The "
        f"properties alone\nfind {sum(bool(row.properties) for row in rows)}; those that fail "
        f"most often are {most}.\n"
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
