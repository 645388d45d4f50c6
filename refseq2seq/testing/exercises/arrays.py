"""Exercises on rows of numbers: softmax, norms, GELU."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import ops
from ...erf import gelu_erf
from .exercise import Arguments, Exercise


def softmax(
    x: Any,
    mask: Any = None,
    *,
    axis: Any = -1,
    keepdims: bool = True,
    shift: str = "row",
    divide: bool = True,
    invert: bool = False,
    masked: str = "before",
    fill: float = -math.inf,
    empty: float = 0.0,
) -> Any:
    """Softmax with mistakes."""
    allowed = np.True_ if mask is None else ~mask if invert else mask
    before = np.where(allowed, x, fill) if masked == "before" else x
    top = {"row": before, "all": x, "none": np.zeros_like(x)}[shift].max(axis, keepdims=True)
    powers = np.exp(before - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis, keepdims=keepdims) if divide else 1.0
    if divide and fill == -math.inf and masked == "before":
        total = np.where(total == 0, 1.0 if empty == 0 else 0.0, total)
    weights = powers / total
    return weights * allowed if masked == "after" else weights


OF_THE_SUM: dict[str, dict[str, Any]] = {
    "the exponentials are not divided by their sum": {"divide": False},
    "the sum is over axis 0: it must be over the last axis": {"axis": 0},
    "the sum is over the whole array: it must be over the last axis": {"axis": None},
}
OF_THE_MASK: dict[str, dict[str, Any]] = {
    "the mask is inverted: True = takes part": {"invert": True},
    "the mask is not used": {"masked": "never"},
    "the mask is applied after the softmax: the rest no longer sums to 1": {"masked": "after"},
    "masked scores are set to 0, and e^0 = 1: set them to -inf": {"fill": 0.0},
    "exp overflows: subtract the largest element of the row first": {"shift": "none"},
    "a row that may use nothing has NaN: it must be zeros": {"empty": math.nan},
    "a row that may use nothing is uniform: it must be zeros (-inf, not -1e9)": {"fill": -1e9},
}


def softmax_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """Rows, batches, masks; then large numbers, and a row that may use nothing."""
    draw = rng.standard_normal
    yield (draw(1),)
    yield (draw(3),)
    yield (draw((2, 2)),)
    yield (draw((2, 3)),)
    yield draw(3), np.array([True, False, True])
    yield draw((2, 3)), np.array([False, True, True])
    yield (draw((2, 7), dtype="float32"),)
    yield draw((2, 3, 5)), np.arange(5) < np.array([[[2]], [[3]]])
    yield (np.array([1000.0, 999.0, -3.0]),)
    yield np.array([1.0, 1000.0, 0.0]), np.array([True, False, True])
    yield draw((2, 3)), np.array([[True, False, True], [False, False, False]])


def _rows(f: Any, x: Any, mask: Any = None) -> Any:
    return np.sum(f(x) if mask is None else f(x, mask), axis=-1), (
        np.ones(x.shape[:-1]) if mask is None else np.broadcast_to(mask, x.shape).any(axis=-1)
    )


def _shifted(f: Any, x: Any, *mask: Any) -> Any:
    return f(x + 2, *mask), f(x, *mask)


SOFTMAX = Exercise(
    signature="softmax(x, mask=None)",
    reference=ops.softmax,
    written=softmax,
    inputs=softmax_inputs,
    mistakes={
        **OF_THE_SUM,
        **OF_THE_MASK,
        "the sum needs keepdims=True: it is divided into columns": {"keepdims": False},
        "the largest element is taken before the mask: -inf goes in first": {"shift": "all"},
    },
    properties={
        "each row sums to 1, or to 0 if it may use nothing": _rows,
        "a number added to x changes nothing": _shifted,
    },
)


def norm(
    x: Any,
    gain: Any,
    bias: Any,
    eps: float,
    *,
    centre: bool = True,
    axis: Any = -1,
    ddof: int = 0,
    n: str = "mean",
    eps_at: str = "inside",
    root: bool = True,
    use_gain: bool = True,
    bias_first: bool = False,
    use_bias: bool = True,
) -> Any:
    """Layer or root-mean-square norm with mistakes."""
    centred = x - x.mean(axis, keepdims=True) if centre else x
    count = math.prod(x.shape) if axis is None else x.shape[axis]
    square = (centred**2).sum(axis, keepdims=True) / (1 if n == "sum" else np.float64(count - ddof))
    inside = square + (eps if eps_at == "inside" else 0.0)
    below = (inside**0.5 if root else inside) + (eps if eps_at == "outside" else 0.0)
    gain, bias = gain if use_gain else 1.0, bias if use_bias else 0.0
    return (centred / below + bias) * gain if bias_first else centred / below * gain + bias


OF_NORMS: dict[str, dict[str, Any]] = {
    "the mean is over axis 0: it must be over the last axis": {"axis": 0},
    "the mean is over the whole array: it must be over the last axis": {"axis": None},
    "eps is added to the root: add it inside, before the root": {"eps_at": "outside"},
    "eps is not added": {"eps_at": "nowhere"},
    "the square root is left out": {"root": False},
    "the squares are summed: take their mean": {"n": "sum"},
    "the gain is left out": {"use_gain": False},
}


def layer_norm_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """Rows, batches; a large eps, and rows of equal numbers."""
    draw = rng.standard_normal
    for shape, eps in [((1,), 1e-5), ((2,), 1e-5), ((2, 2), 0.1), ((2, 3), 1e-5), ((3, 5), 0.1)]:
        yield 1 + 2 * draw(shape), draw(shape[-1]), draw(shape[-1]), eps
    yield *(x.astype("float32") for x in (draw((2, 7)), draw(7), draw(7))), 1e-5
    yield 3 * draw((2, 3, 5)), draw(5), draw(5), 1e-5
    yield np.full((2, 3), 7.0), draw(3), draw(3), 1e-5


LAYER_NORM = Exercise(
    signature="layer_norm(x, gain, bias, eps)",
    reference=ops.layer_norm,
    written=norm,
    inputs=layer_norm_inputs,
    mistakes={
        **OF_NORMS,
        "the mean is not subtracted": {"centre": False},
        "the variance is divided by d - 1: divide by d": {"ddof": 1},
        "the bias is left out": {"use_bias": False},
        "the bias is added before the gain": {"bias_first": True},
    },
    properties={
        "with gain 1 and bias 0 each row has mean 0": lambda f, x, gain, bias, eps: (
            np.mean(f(x, np.ones_like(gain), np.zeros_like(bias), eps), axis=-1),
            np.zeros(x.shape[:-1]),
        ),
        "with gain 1, bias 0, eps 0 each row has variance 1": lambda f, x, gain, bias, eps: (
            np.var(f(x, np.ones_like(gain), np.zeros_like(bias), 1e-30), axis=-1),
            np.where(np.ptp(x, axis=-1) > 0, 1.0, 0.0),
        ),
        "a number added to x changes nothing": lambda f, x, *more: (f(x + 2, *more), f(x, *more)),
    },
)


def rms(x: Any, gain: Any, eps: float, **switches: Any) -> Any:
    """Root-mean-square norm with mistakes."""
    return norm(x, gain, 0.0, eps, **{"centre": False, **switches})


RMS_NORM = Exercise(
    signature="rms_norm(x, gain, eps)",
    reference=lambda x, gain, eps: ops.rms_norm(x, gain, None, eps),
    written=rms,
    inputs=lambda rng: ((x, gain, eps) for x, gain, _, eps in layer_norm_inputs(rng)),
    mistakes={**OF_NORMS, "the mean is subtracted: only layer_norm does that": {"centre": True}},
    properties={
        "with gain 1 and eps 0 the mean of the squares is 1": lambda f, x, gain, eps: (
            np.mean(np.square(f(x, np.ones_like(gain), 0.0)), axis=-1),
            np.ones(x.shape[:-1]),
        ),
        "x times 2 changes nothing if eps is 0": lambda f, x, gain, eps: (
            f(2 * x, gain, 0.0),
            f(x, gain, 0.0),
        ),
    },
)


def gelu(x: Any, *, form: str = "erf", sigma: float = 1.0, factor: bool = True) -> Any:
    """GELU with mistakes."""
    if form == "tanh":
        return ops.gelu_tanh(x)
    if form == "sigmoid":
        return x * ops.sigmoid(1.702 * x)
    below = np.vectorize(lambda y: math.erfc(-y / sigma) / 2, otypes="d")(x)
    return x * below if factor else below


def gelu_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """A number, rows, and both tails."""
    yield (np.array([0.0]),)
    yield (rng.standard_normal(1),)
    yield (rng.standard_normal((2, 3)),)
    yield (rng.standard_normal((2, 7), dtype="float32"),)
    yield (np.array([-1000.0, -30.0, -3.0, 3.0, 30.0, 1000.0]),)


GELU = Exercise(
    signature="gelu(x)",
    reference=gelu_erf,
    written=lambda x, **switches: gelu(x, **{"sigma": math.sqrt(2), **switches}),
    inputs=gelu_inputs,
    mistakes={
        "this is the approximation with tanh: use erf": {"form": "tanh"},
        "this is the approximation x sigmoid(1.702 x): use erf": {"form": "sigmoid"},
        "x is not divided by sqrt(2) inside erf": {"sigma": 1.0},
        "the factor x is left out: this is Phi(x)": {"factor": False},
    },
    properties={"gelu(x) - gelu(-x) = x": lambda f, x: (np.subtract(f(x), f(-x)), x)},
)

EXERCISES = {"softmax": SOFTMAX, "layer_norm": LAYER_NORM, "rms_norm": RMS_NORM, "gelu": GELU}
