"""CuPy itself takes every call that the package makes: asked without a device, see ghosts.py."""

import ast
import json
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from backends import calls, ghosts, journeys, rules, unfit
from backends.double import Device

import refseq2seq

PACKAGE, TESTS = Path(refseq2seq.__file__).parent, Path(__file__).parents[1]

X = np.arange(6.0).reshape(2, 3)
I = np.array([[0, 2], [1, 1]])  # noqa: E741 - indices

# What NumPy takes and CuPy does not: a function, its arguments, and those by name.
DEFECTS = {
    "errstate": ("errstate", (), {"all": "ignore"}),
    "insert": ("insert", (X, 0, 1.0), {"axis": 0}),
    "vecdot": ("vecdot", (X, X), {}),
    "unstack": ("unstack", (X,), {}),
    "clip by min=": ("clip", (X,), {"min": 1.0, "max": 2.0}),
    "sum where=": ("sum", (X,), {"where": X > 1}),
    "mean where=": ("mean", (X,), {"where": X > 1}),
    "max initial=": ("max", (X,), {"initial": 0.0}),
    "any where=": ("any", (X > 1,), {"where": X > 2}),
    "argsort stable=": ("argsort", (X,), {"stable": True}),
    "sort stable=": ("sort", (X,), {"stable": True}),
    "take mode=": ("take", (X, I), {"mode": "clip"}),
    "exp where=": ("exp", (X,), {"where": X > 1, "out": None}),
    "reshape shape=": ("reshape", (X,), {"shape": (3, 2)}),
    "zeros device=": ("zeros", ((2, 3),), {"device": "cpu"}),
    "asarray device=": ("asarray", (X,), {"device": "cpu"}),
    "take_along_axis without an axis": ("take_along_axis", (X, I), {}),
    "var correction=": ("var", (X,), {"correction": 1}),
    "count_nonzero keepdims=": ("count_nonzero", (X,), {"keepdims": True}),
    "unique sorted=": ("unique", (X,), {"sorted": False}),
    "astype device=": ("astype", (X, "float32"), {"device": "cpu"}),
    "isin of a number": ("isin", (2.0, X), {}),
    "broadcast_to subok=": ("broadcast_to", (X, (4, 2, 3)), {"subok": True}),
}


def written_down(defect):
    return calls.written_down("function", *defect, calls.kind_of)


def fused(name):
    """A call of a function that is made into one kernel."""
    return calls.written_down("fused", f"backends.unfit:{name}", (np.eye(3),), {}, calls.kind_of)


UNFIT = {name: written_down(defect) for name, defect in DEFECTS.items()}
UNFIT |= {f"{name}, fused": fused(name) for name in unfit.NAMES}


@pytest.fixture(scope="session")
def recorded(double, travelled):
    """The double, after every journey in float64, and functions of float32 that are others."""
    for name, journey in journeys.ALL.items():
        travelled(journey)
        if "operations" in name:
            with double.installed():
                journey.go(journey.model("float32").to("cupy"))
    return double


@pytest.fixture(scope="session")
def answers(recorded):
    """CuPy's complaints about the recorded calls and the defects, and its signatures."""
    if find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    made = [*recorded.calls, *UNFIT.values()]
    done = subprocess.run(
        [sys.executable, ghosts.__file__],
        input=pickle.dumps((made, [*rules.UFUNCS, *rules.FUNCTIONS])),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(TESTS)])},
        capture_output=True,
        check=False,
    )
    if b"there is a device" in done.stderr:
        pytest.skip("there is a CUDA device: nothing is to be replayed on the host's memory")
    assert done.returncode == 0, done.stderr.decode()
    complaints, signatures = json.loads(done.stdout)
    return dict(zip(made, complaints, strict=True)), signatures


def test_cupy_takes_every_call_of_the_package(recorded, answers):
    assert len(recorded.calls) > 1000
    refused = {str(call): answers[0][call] for call in recorded.calls if answers[0][call]}
    assert refused == {}


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_calls_that_cupy_does_not_take_numpy_takes_and_the_double_not(defect):
    name, args, kwargs = defect
    getattr(np, name)(*args, **kwargs)
    cupy = Device().cupy

    def there(x):
        return cupy.asarray(x) if isinstance(x, np.ndarray) else x

    with pytest.raises((TypeError, AttributeError)):
        getattr(cupy, name)(*map(there, args), **{k: there(x) for k, x in kwargs.items()})


@pytest.mark.parametrize("call", UNFIT.values(), ids=UNFIT)
def test_calls_that_cupy_does_not_take_are_found(answers, call):
    assert answers[0][call]


def test_journeys_call_fused_functions(recorded):
    made = {call.name for call in recorded.calls if call.how == "fused"}
    assert {"refseq2seq.ops:silu", "refseq2seq.erf:gelu_erf"} < made


@pytest.mark.parametrize("name", unfit.NAMES)
def test_functions_that_cannot_be_fused_numpy_computes_and_the_double_not(double, name):
    function = getattr(unfit, name)
    function(np.eye(3))
    with double.installed(), pytest.raises((NotImplementedError, TypeError)):
        function(double.cupy.asarray(np.eye(3)))


def test_the_double_knows_cupys_signatures(answers):
    theirs = answers[1]
    for name in rules.UFUNCS:
        assert theirs[name] == "ufunc", name
    for name, (parameters, _) in rules.FUNCTIONS.items():
        if theirs[name] is not None:  # compiled functions do not say
            assert list(rules.signature(parameters).parameters) == theirs[name], name


def uses(path):
    """Each (function, name) of ``xp.name`` in a source file, however xp was come by."""

    def walk(node, place):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            place = [*place, node.name]
        if isinstance(node, ast.Attribute) and _is_namespace(node.value):
            yield ".".join(place), node.attr
        for child in ast.iter_child_nodes(node):
            yield from walk(child, place)

    return set(walk(ast.parse(path.read_text("utf-8")), []))


def _is_namespace(node):
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return (
        (isinstance(node, ast.Name) and node.id == "xp")
        or (isinstance(node, ast.Attribute) and node.attr == "xp")
        or (called and node.func.id == "array_namespace")
    )


def test_every_use_of_the_namespace_was_recorded(recorded):
    """A call that no journey makes is one that CuPy was not asked about."""
    made = {(file, place.replace("<locals>.", ""), name) for file, place, name in recorded.sites}
    found = {
        (str(path), place, name) for path in PACKAGE.rglob("*.py") for place, name in uses(path)
    }
    assert len(found) > 100
    assert sorted(f"{path}: xp.{name} in {place}" for path, place, name in found - made) == []


def test_the_scan_finds_a_use(tmp_path):
    source = tmp_path / "example.py"
    source.write_text("""
def f(x):
    xp = array_namespace(x)
    def g():
        return [xp.exp(y) for y in x]
    return (lambda: array_namespace(x).log(x)), model.xp.float64
""")
    assert uses(source) == {("f.g", "exp"), ("f", "log"), ("f", "float64")}
