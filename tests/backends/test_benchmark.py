"""The benchmark of the device says what it lacks, where it lacks it."""

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


def test_without_a_device_it_says_so():
    if find_spec("cupy") is not None and __import__("cupy").is_available():
        pytest.skip("there is a CUDA device")
    done = run("--size", "d128", "d256", "--batch", "1", "16", "--new", "8")
    missing = "CuPyNotInstalled: the cupy backend needs CuPy"
    if find_spec("cupy") is not None:
        missing = "is installed but finds no usable CUDA device"
    assert done.returncode == 1
    assert missing in done.stderr
    assert done.stdout == ""


def test_a_size_that_it_does_not_know():
    done = run("--size", "d1")
    assert done.returncode == 2
    assert "invalid choice: 'd1'" in done.stderr
