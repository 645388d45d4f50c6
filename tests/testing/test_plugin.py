"""The pytest plugin, in a pytest of its own: the fixture, its table and its option."""

import re
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["refseq2seq.testing.plugin"]'
COMPARED = """
import numpy as np
import refseq2seq as rs
from refseq2seq.testing.cases import Case, conventions

case = Case(conventions(**{"decoder.n_layers": 2}), dtype="float32", source=[[3, 1]])

def trace(scale=1.0, of="decoder.layers.1.self_attention.v"):
    kept = rs.Trace()
    tap = rs.FunctionTap(lambda name, x: kept(name, x * scale if name == of else x))
    case.logits(tap=tap)
    return kept

def spread():
    return rs.testing.spread(case.model, case.source, [[0]], dtype="float32")
"""


@pytest.fixture
def run(pytester):
    """Runs these tests with the plugin."""

    def run(tests, *options, ini="[pytest]\n"):
        pytester.makeconftest(CONFTEST)
        pytester.makeini(ini)
        pytester.makepyfile(COMPARED + tests)
        return pytester.runpytest("-p", "no:cacheprovider", *options)

    return run


def test_comparisons_that_agree_pass(run):
    result = run("""
def test_trace(refseq2seq_compare):
    assert refseq2seq_compare(trace(), trace()) is None

def test_spread(refseq2seq_compare):
    assert refseq2seq_compare(spread(), trace()) is None

def test_array(refseq2seq_compare):
    assert refseq2seq_compare(spread(), case.logits()) is None
    assert refseq2seq_compare(case.logits(), case.logits()) is None
""")
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*first differences*")


def test_the_table_has_every_difference(run):
    result = run("""
def test_mine(refseq2seq_compare):
    refseq2seq_compare(trace(), trace())
    found = refseq2seq_compare(trace(), trace(1.5))
    assert found.name == "decoder.layers.1.self_attention.v"
    refseq2seq_compare(spread(), trace(1.5), label="in spreads")
    refseq2seq_compare(case.logits(), case.logits()[:, :0], label="cut")
    refseq2seq_compare(case.logits(), case.logits() * np.nan, label="NaN")
    print("to the end")
""")
    result.assert_outcomes(failed=1)
    lines = result.stdout.lines
    start = next(i for i, line in enumerate(lines) if "refseq2seq: first differences" in line)
    head, *rows = lines[start + 1 : start + 6]
    assert " ".join(head.split()) == "comparison quantity off by allowed at reference other"
    name = "decoder.layers.1.self_attention.v"
    assert rows[0].startswith(f"comparison 2  {name}  0.5 of its row")
    assert rows[1].startswith(f"in spreads    {name}  ")
    assert rows[1].split()[4:6] == ["spreads", "6"]
    reference, other = map(float, rows[0].split()[-2:])
    assert other == pytest.approx(1.5 * reference, rel=1e-6)
    assert re.fullmatch(r"cut +logits +shape \(1, 0, 5\) instead of \(1, 1, 5\)", rows[2])
    assert rows[3].split()[:4] == ["NaN", "logits", "not", "finite"]
    assert rows[3].endswith("nan")
    result.stdout.fnmatch_lines(["comparison 2: decoder.layers.1*differs; the 47*agree"])
    result.stdout.fnmatch_lines(["to the end"])


SLIGHTLY = """
def test_it(refseq2seq_compare):
    expected = spread()
    off = expected["logits"].value.copy()
    off[0, 0, 2] += 1.9 * expected["logits"].element_sigma[0, 0, 2]
    refseq2seq_compare(expected, off)
"""


@pytest.mark.parametrize(
    ("options", "ini", "outcome"),
    [
        ([], "", "passed"),
        (["--refseq2seq-z=1.8"], "", "failed"),
        ([], "refseq2seq_z = 1.8\n", "failed"),
        (["--refseq2seq-z", "2"], "refseq2seq_z = 1.8\n", "passed"),
    ],
    ids=["default", "option", "ini", "option over ini"],
)
def test_z_is_an_option(run, options, ini, outcome):
    run(SLIGHTLY, *options, ini=f"[pytest]\n{ini}").assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize("z", ["0", "-1", "nan", "inf", "six"])
def test_z_must_be_a_positive_number(run, z):
    result = run(SLIGHTLY, f"--refseq2seq-z={z}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--refseq2seq-z *'{z}'"])


def test_a_failure_of_the_test_itself_is_shown_with_the_table(run):
    result = run("""
def test_it(refseq2seq_compare):
    refseq2seq_compare(trace(), trace(2.0))
    assert 1 == 2, "my own"

def test_the_next(refseq2seq_compare):
    refseq2seq_compare(trace(), trace())

def test_rtol_of_a_comparison(refseq2seq_compare):
    refseq2seq_compare(trace(), trace(1.5), rtol=0.9)
""")
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(["*AssertionError: my own*", "*refseq2seq: first differences*"])


def test_it_is_not_loaded_unless_asked_for(pytester):
    pytester.makepyfile("def test_it(request):\n    request.getfixturevalue('refseq2seq_compare')")
    result = pytester.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*fixture 'refseq2seq_compare' not found*"])


def test_it_imports_pytest_and_refseq2seq_testing_only():
    program = """
import sys
import pytest, refseq2seq.testing
before = set(sys.modules)
import refseq2seq.testing.plugin
heavy = {"hypothesis", "torch", "transformers", "cupy"} & set(sys.modules)
sys.exit(str(heavy | set(sys.modules) - before - {"refseq2seq.testing.plugin"} or 0))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.stderr.strip() == "0"
