"""A pytest plugin that compares results with the reference and prints a table of differences.

To load it, add this to the ``conftest.py`` at the root of your tests:

    pytest_plugins = ["refseq2seq.testing.plugin"]

It provides a fixture:

    def test_my_decoder(refseq2seq_compare):
        spread = rs.testing.spread(model, source, target, dtype="float32")
        refseq2seq_compare(spread, my_trace)

A difference does not end the test. All comparisons are made; then the test fails, and a section
of its report lists the first quantity that differs in each comparison. The option
``--refseq2seq-z``, or ``refseq2seq_z`` in the configuration file, sets the largest allowed error
of an element in spreads; the default is 6.
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
    """Add the command line option and the configuration file entry."""
    text = "largest allowed error of an element in refseq2seq_compare, in spreads (default: 6)"
    parser.getgroup("refseq2seq").addoption("--refseq2seq-z", metavar="Z", help=text)
    parser.addini("refseq2seq_z", text, default="6")


def pytest_configure(config: pytest.Config) -> None:
    """Reject an invalid ``z`` before any test runs."""
    _allowed(config)


@pytest.fixture
def refseq2seq_compare(request: pytest.FixtureRequest) -> Compare:
    """A function ``(reference, other, *, name="logits", label="", z=None, rtol=None)``.

    ``reference`` is a `refseq2seq.testing.Spread`, a trace, or an array. ``other`` is a trace,
    complete or partial, or the array called ``name``. ``label`` names the comparison in the
    table. The other arguments are those of `refseq2seq.testing.first_difference`; ``z``
    defaults to the value of the option. The function returns the `Difference`, or None, and
    does not raise if there is one.
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
    """Fail the test after its last line if it found differences."""
    result = yield
    if found := item.stash.get(_FOUND, []):
        story = "\n\n".join(f"{label}: {difference}" for label, difference in found)
        pytest.fail(story, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the table to the report of a test that found differences."""
    report = yield
    found = item.stash.get(_FOUND, [])
    if report.when == "call" and found:
        report.sections.append((TITLE, table(found)))
    return report


def table(found: list[tuple[str, Any]]) -> str:
    """One line per difference: comparison, quantity, error, limit, index and both values."""
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
    """The error and the limit, as text."""
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
