"""The grade of a function: its first fault with the numbers, and the mistake that explains it."""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .exercise import Arguments, Exercise
from .values import Row, changed, compared, numbers, shown, tolerance

Function = Callable[..., Any]
CURES = {
    "truth value of an array": "an array has no single truth value: write `if mask is not None`, "
    "and np.where to choose by element",
    "to Python scalar": "one number is needed, not an array: np.vectorize(f) applies f to each",
    "boolean index did not": "an index does not broadcast as a mask does: use np.where",
    "'float' object cannot be interpreted": "integers are needed: divide by //",
    "negative integer powers": "a float is needed, such as 10000.0",
    "axes don't match|for array of dimension|too many (indices|subscripts)": "an array has other "
    "axes than you count on: count from the end (axis=-1, x[..., i], np.swapaxes(x, -1, -2))",
    "values to unpack": "if this is a shape, the number of axes varies: shape[-1] is the last",
    "kth\\(=|index .* is out of bounds for axis": "an axis is shorter than you count on: the last "
    "one is -1, and it may have fewer elements than you ask for",
    "shapes \\((.+),\\d+\\) \\(\\1,?\\)": "the second array lacks the last axis of the first: "
    "keepdims=True or [..., None] keeps it",
}
"""What to do about an exception, by a pattern of its text; each is true whenever it matches."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one call."""

    what: str
    rows: list[Row] = field(default_factory=list)
    error: Exception | None = None
    cures: list[str] = field(default_factory=list)


def grade(exercise: Exercise, function: Function) -> None:
    """Raise an AssertionError that explains the first fault; return None if there is none."""
    inputs = [*exercise.inputs(np.random.default_rng(0))]
    for arguments in inputs:
        fault = fault_of(exercise, function, arguments)
        if fault:
            found = fault.rows and explained(exercise, function, [arguments, *inputs])
            found, rows = found or fault.cures, fault.rows
            if not found and rows:
                rows = [] if fault.error else rows + _broken(exercise, function, arguments)
            what = "; and ".join(found) or fault.what
            raise AssertionError(_message(exercise, arguments, what, rows)) from fault.error
    for arguments in inputs:
        broken = _broken(exercise, function, arguments)
        if broken:
            what = "the values are right, a property is not"
            raise AssertionError(_message(exercise, arguments, what, broken))


def _message(exercise: Exercise, arguments: Arguments, what: str, rows: list[Row]) -> str:
    rows = [*((n, shown(x)) for n, x in zip(exercise.names, arguments, strict=False)), *rows]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:{width}}  {text}" for label, text in rows]
    return "\n  ".join([f"{exercise.signature}: {what}", *lines])


def called(function: Function, arguments: Arguments) -> Any:
    """The result, without warnings: what they would tell is in the values."""
    with np.errstate(all="ignore"):
        return function(*arguments)


def fault_of(exercise: Exercise, function: Function, arguments: Arguments) -> Fault | None:
    """What is wrong with the result of these arguments."""
    given = copied(arguments)
    try:
        result = called(function, given)
    except Exception as error:
        return _raised(error, without_mask="mask" in exercise.names[len(arguments) :])
    for name, before, after in zip(exercise.names, arguments, given, strict=False):
        if isinstance(before, np.ndarray) and before.tobytes() != after.tobytes():
            return Fault(f"it changes its argument {name}: compute with a copy")
    n = len(exercise.returns)
    if n > 1 and not (isinstance(result, tuple | list) and len(result) == n):
        found = "None" if result is None else f"an object of type {type(result).__name__}"
        return Fault(f"it returns {found}: return {', '.join(exercise.returns)}")
    return next(_faults_of_result(exercise, result, arguments), None)


def _raised(error: Exception, *, without_mask: bool) -> Fault:
    """What an exception says, and the cure if it is known."""
    says = f"{type(error).__name__}: {error}"
    cures = [cure for pattern, cure in CURES.items() if re.search(pattern, says)]
    if without_mask and "NoneType" in says:
        cures = ["if this None is the mask, everything takes part: ask `if mask is not None`"]
    return Fault(f"it raises {says}", [("raises", says)], error, cures[:1])


def copied(arguments: Arguments) -> Arguments:
    """The arguments, with copies of the arrays, without the negative strides PyTorch refuses."""
    return tuple(x.copy() if hasattr(x, "copy") else x for x in arguments)


def _faults_of_result(exercise: Exercise, result: Any, arguments: Arguments) -> Iterator[Fault]:
    right = parts(exercise, exercise.reference(*arguments))
    rounded = any(np.asarray(x).dtype.kind == "f" for x in right)
    others = changed(arguments, coarsest(arguments)) if rounded else ()
    moved = (parts(exercise, exercise.reference(*x)) for x in others)
    results = zip(exercise.returns, parts(exercise, result), right, *moved, strict=True)
    for name, got, expected, *near in results:
        wrong = compared(got, expected, tolerance(np.asarray(expected), near, arguments))
        if wrong:
            yield Fault(f"{name}: {wrong[0]}" if len(right) > 1 else wrong[0], wrong[1])


def parts(exercise: Exercise, result: Any) -> tuple[Any, ...]:
    """The results, of which most functions have one."""
    return (result,) if len(exercise.returns) == 1 else tuple(result)


def explained(exercise: Exercise, function: Function, inputs: list[Arguments]) -> list[str]:
    """The fewest mistakes, at most three, with which the written function gives the same.

    The first input is the one with the fault.
    """
    outcomes = [_outcome(function, x) for x in inputs]

    def explain(names: tuple[str, ...]) -> bool:
        switches = {k: v for name in names for k, v in exercise.mistakes[name].items()}
        wrong = functools.partial(exercise.written, **switches)
        pairs = (
            (mine, _outcome(wrong, x), coarsest(x))
            for mine, x in zip(outcomes, inputs, strict=True)
        )
        same = all(_same(exercise, *pair) for pair in pairs)
        return same and fault_of(exercise, wrong, inputs[0]) is not None

    for n in (1, 2, 3):
        found = [names for names in itertools.combinations(exercise.mistakes, n) if explain(names)]
        if found:
            return list(found[0]) if len(found) == 1 else []
    return []


def _outcome(function: Function, arguments: Arguments) -> Any:
    try:
        return called(function, copied(arguments))
    except Exception as error:
        return error


def _same(exercise: Exercise, a: Any, b: Any, eps: float) -> bool:
    """Whether two outcomes agree in half of their digits, or are exceptions of equal words."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b) and sorted(str(a).split()) == sorted(str(b).split())
    pairs = zip(parts(exercise, a), parts(exercise, b), strict=False)
    return all(alike(x, y, eps) for x, y in pairs)


def alike(a: Any, b: Any, eps: float) -> bool:
    """Whether two results have one shape, and agree in half of their digits."""
    x, y = numbers(a), numbers(b)
    if x is None or y is None or x.shape != y.shape:
        return False
    size = np.abs(y[np.isfinite(y)]).max(initial=1.0)
    return np.allclose(x, y, rtol=0, atol=math.sqrt(eps) * size, equal_nan=True)


def coarsest(arguments: Arguments) -> float:
    """The largest distance from 1 to the next number, in the dtypes of the arguments."""
    kinds = {x.dtype for x in arguments if isinstance(x, np.ndarray) and x.dtype.kind == "f"}
    return max(float(np.finfo(dtype).eps) for dtype in {np.dtype("float64"), *kinds})


def _broken(exercise: Exercise, function: Function, arguments: Arguments) -> list[Row]:
    """The first property that does not hold."""

    def of_arrays(*given: Any) -> Any:
        results = [*map(np.asarray, parts(exercise, function(*copied(given))))]
        return results[0] if len(results) == 1 else results

    for statement, pair in exercise.properties.items():
        try:
            got, right = called(pair, (of_arrays, *copied(arguments)))
            if not alike(got, right, coarsest(arguments)):
                return [("not true", statement)]
        except Exception as error:
            return [("not true", f"{statement} (it raises {type(error).__name__}: {error})")]
    return []
