"""When two backends' results agree: to the error that rounding may have, and no more."""

from typing import Any

import numpy as np
from backends.double import Device
from backends.journeys import Journey

import refseq2seq as rs

LEVEL = 2.0**-30
"""The unit of rounding at which errors are tried: small, and great beside float64's own."""

HostResults = dict[str, np.ndarray]


def results(journey: Journey, dtype: str, backend: str) -> HostResults:
    """A journey's results, on the host."""
    found = journey.go(journey.model(dtype).to(backend))
    return {name: rs.to_numpy(x) for name, x in found.items()}


def spread(journey: Journey, runs: int = 3) -> HostResults:
    """How far rounding moves each row of each result, in units: measured, on the double.

    The journey is made in float64 with errors of `LEVEL` in each operation.
    """
    exact = results(journey, "float64", "numpy")
    moved = {name: np.zeros(()) for name, x in exact.items() if x.dtype.kind == "f"}
    for seed in range(runs):
        with Device(jitter=LEVEL, seed=seed).installed():
            shaken = results(journey, "float64", "cupy")
        for name, before in moved.items():
            moved[name] = np.maximum(before, _row_errors(shaken[name], exact[name]) / LEVEL)
    return moved


def assert_agree(actual: HostResults, expected: HostResults, tolerance: HostResults) -> None:
    """The same dtypes, shapes, integers and infinities; other numbers within ``tolerance``.

    It has an absolute number for each row, that is for the last axis, of each result.
    """
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        got = actual[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want, err_msg=name)
            continue
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
        assert not np.isnan(want).any(), name
        error = _row_errors(got, want)
        assert (error <= tolerance[name]).all(), f"{name} is off by {np.max(error)}"


def tolerance_of(
    dtype: str, expected: HostResults, units: HostResults, factor: float = 8
) -> HostResults:
    """``factor`` times the spread at the dtype's unit, and some units of a row's largest number."""
    unit = float(np.finfo(dtype).eps) / 2
    return {
        name: factor * unit * (units[name] + _row_sizes(x))
        for name, x in expected.items()
        if x.dtype.kind == "f"
    }


def _row_errors(a: np.ndarray, b: np.ndarray) -> Any:
    finite = np.isfinite(a) & np.isfinite(b)
    errors = np.abs(np.where(finite, a, 0).astype("float64") - np.where(finite, b, 0))
    return errors.max(axis=-1) if errors.ndim else errors


def _row_sizes(x: np.ndarray) -> Any:
    sizes = np.abs(np.where(np.isfinite(x), x, 0)).astype("float64")
    return sizes.max(axis=-1) if sizes.ndim else sizes
