"""Mistakes in live modules: each is found, and at its place."""

import re

import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

from planted_page import (
    FAULTS,
    N_SHOWN,
    PAGE,
    RIGHT,
    are_listed,
    broken,
    diagnosis,
    read_rows,
    together,
    told,
)

from refseq2seq.testing.mistakes import MISTAKES


@pytest.mark.parametrize("where", RIGHT)
def test_nothing_deviates_in_a_module_that_is_right(where):
    forced = RIGHT[where]().diagnose()
    assert forced.first is None, forced.report()
    assert len(forced.compared) > 40
    if "nn.Transformer" not in where:
        generated = RIGHT[where]().diagnose(max_new_tokens=4)
        assert generated.first is None, generated.report()
        assert any(name.startswith("step.3.") for name in generated.compared)


@pytest.mark.parametrize("i", range(len(FAULTS)), ids=[f"{f.where}: {f.name}" for f in FAULTS])
def test_a_mistake_is_found_at_its_place(i):
    found = diagnosis(i)
    assert FAULTS[i].is_found(found.first), found.report()
    assert found.first in found.report()
    assert FAULTS[i].flags[0] in MISTAKES
    assert {cause.flag for cause in found.faults[0].causes} & set(FAULTS[i].flags), found.report()
    assert all(fault.cause is None or fault.cause.inputs == 2 for fault in found.faults)


@pytest.mark.parametrize("size", [2, 3])
def test_several_mistakes_at_once_are_all_listed(size):
    assert all(are_listed(indices) for indices in together(N_SHOWN, size))


def test_there_are_many():
    assert len(FAULTS) > 100
    assert len({(fault.name, fault.where) for fault in FAULTS}) == len(FAULTS)


def test_the_page_says_what_is_found():
    """``python tests/peers/planted_page.py`` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    rows = list(read_rows(text))
    written = {(row.fault, row.where): (row.first, row.cause) for row in rows}
    found = {("*none*", where): ("none", "") for where in RIGHT}
    for i, fault in enumerate(FAULTS):
        found[fault.name, fault.where] = f"`{diagnosis(i).first}`", told(diagnosis(i))
    assert written == found
    faults = [row for row in rows if row.fault != "*none*"]
    n, at_place, explained, by_properties = re.search(
        r"Of (\d+) bugs, `diagnose` finds (\d+) at .* cause of (\d+)\..*\nfind (\d+)", text
    ).groups()
    assert (int(n), int(at_place), int(explained)) == (len(FAULTS),) * 3
    assert int(by_properties) == sum(bool(row.properties) for row in faults)
    assert not any(row.properties for row in rows if row.fault == "*none*")


@pytest.mark.parametrize(
    ("name", "is_seen"),
    [
        ("causal mask off by one: next token visible", True),
        ("no key bias", False),
    ],
)
def test_the_page_says_which_the_properties_find(name, is_seen):
    fault = next(fault for fault in FAULTS if fault.name == name)
    row = next(
        row
        for row in read_rows(PAGE.read_text(encoding="utf-8"))
        if (row.fault, row.where) == (fault.name, fault.where)
    )
    failed = broken(fault, fault.where)
    assert bool(failed) == is_seen
    assert row.properties == ", ".join(failed)
