"""A pytest plugin: comparisons by the tolerance of the command line, and a table when they fail.

It is loaded where it is asked for, in the ``conftest.py`` at the root of your tests:

    pytest_plugins = ["refseq2seq.testing.plugin"]

and gives tests a fixture:

    def test_my_decoder(refseq2seq_compare):
        spread = rs.testing.spread(model, source, target, dtype="float32")
        refseq2seq_compare(spread, my_trace)

A difference does not end the test: all comparisons are made, then the test fails, and its
report has a section with the first quantity that differs of each. ``--refseq2seq-z``, or
``refseq2seq_z`` in the configuration file, says how many spreads are allowed, 6 by default.
"""

import math
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .compare import Difference

Compare = Callable[..., "Difference | None"]
TITLE = "refseq2seq: first differences"
_FOUND = pytest.StashKey[list[tuple[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the entry of the configuration file."""
    text = "spreads that an element may be off in refseq2seq_compare (6 by default)"
    parser.getgroup("refseq2seq").addoption("--refseq2seq-z", metavar="Z", help=text)
    parser.addini("refseq2seq_z", text, default="6")


def pytest_configure(config: pytest.Config) -> None:
    """Complain of a value that is no number before any test runs."""
    _allowed(config)


@pytest.fixture
def refseq2seq_compare(request: pytest.FixtureRequest) -> Compare:
    """A function ``(reference, other, *, name="logits", label="", z=None, rtol=None)``.

    ``reference`` is a `refseq2seq.testing.Spread`, a trace, or an array; ``other`` a trace,
    all of it or some, or the array called ``name``. ``label`` says in the table which
    comparison it was. The rest is as in `refseq2seq.testing.first_difference`, ``z`` by
    default the option's. It gives the `Difference`, or None, and goes on.
    """
    found = request.node.stash.setdefault(_FOUND, [])
    allowed = _allowed(request.config)
    made = 0

    def compare(
        reference: Any,
        other: Any,
        *,
        name: str = "logits",
        label: str = "",
        z: float | None = None,
        rtol: float | None = None,
    ) -> "Difference | None":
        from .compare import first_difference

        nonlocal made
        made += 1
        difference = first_difference(
            _named(name, reference), _named(name, other), z=allowed if z is None else z, rtol=rtol
        )
        if difference is not None:
            found.append((label or f"comparison {made}", difference))
        return difference

    return compare


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the test after its last line if it has found differences."""
    result = yield
    if found := item.stash.get(_FOUND, []):
        story = "\n\n".join(f"{label}: {difference}" for label, difference in found)
        pytest.fail(story, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Put the table into the report of a test that has found differences."""
    report = yield
    found = item.stash.get(_FOUND, [])
    if report.when == "call" and found:
        report.sections.append((TITLE, table(found)))
    return report


def table(found: list[tuple[str, Any]]) -> str:
    """One line per difference: which comparison, the quantity, how far, where, both values."""
    lines = [("comparison", "quantity", "off by", "allowed", "at", "reference", "other")]
    for label, d in found:
        off, allowed = _off(d)
        values = [f"{value:.7g}" for value in d.pairs[0][1:]] if d.pairs else ["", ""]
        place = str(d.place) if d.pairs else ""
        lines.append((label, d.name, off, allowed, place, *values))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _off(d: Any) -> tuple[str, str]:
    """How far off, and what is allowed."""
    if d.reason == "shape":
        return f"shape {d.other_shape} instead of {d.shape}", ""
    if d.reason != "values":
        return d.reason, ""
    if d.spreads is None:
        return f"{d.max_relative:.2g} of its row", f"{d.limit:.2g}"
    if d.spreads > d.limit:
        return f"{d.spreads:.3g} spreads", f"{d.limit:g}"
    return f"{d.rms_spreads:.3g} spreads rms", f"{d.rms_limit:.3g}"


def _allowed(config: pytest.Config) -> float:
    text = config.getoption("--refseq2seq-z") or config.getini("refseq2seq_z")
    try:
        z = float(text)
    except ValueError:
        z = math.nan
    if not 0 < z < math.inf:
        raise pytest.UsageError(f"--refseq2seq-z must be a positive number, got {text!r}")
    return z


def _named(name: str, x: Any) -> Mapping[str, Any]:
    return x if isinstance(x, Mapping) else {name: x}
