"""Errors of the benchmark of a device."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*options):
    return subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        cwd=PROGRAM.parents[2],
        env={"PYTHONPATH": str(PROGRAM.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_device_it_exits_with_the_reason():
    if find_spec("cupy") is not None and __import__("cupy").is_available():
        pytest.skip("there is a CUDA device")
    done = run("--size", "d128", "d256", "--batch", "1", "16", "--new", "8")
    missing = "CuPyNotInstalled: the cupy backend needs CuPy"
    if find_spec("cupy") is not None:
        missing = "is installed but finds no usable CUDA device"
    assert done.returncode == 1
    assert missing in done.stderr
    assert done.stdout == ""


def test_an_unknown_size_is_named():
    done = run("--size", "d1")
    assert done.returncode == 2
    assert "'d1'" in done.stderr
