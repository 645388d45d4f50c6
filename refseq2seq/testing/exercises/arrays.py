"""Exercises on rows of numbers: softmax, norms, GELU."""
# mypy: allow-untyped-defs, allow-untyped-calls

import math

import numpy as np

from ... import ops
from ...erf import gelu_erf
from .exercise import Exercise, Mistakes


def softmax(
    x, mask=None, *, axis=-1, keepdims=True, keep_top=True, shift="allowed", divide=True,
    invert=False, masked="before", fill=-math.inf, nan=False,
):  # fmt: skip
    """Softmax; ``masked`` says where the mask acts, ``shift`` what is subtracted."""
    mask = np.True_ if mask is None else ~mask if invert else mask
    scores = x + np.where(mask, 0.0, -1e9) if masked == "added" else x
    scores = np.where(mask, x, fill) if masked == "before" else scores
    below = {"all": x, "none": 0 * x}.get(shift, scores)
    top = below.max(None if shift == "whole" else axis, keepdims=keep_top)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis, keepdims=keepdims) if divide else np.ones(1)
    weights = powers / (total if nan else np.where(total == 0, 1.0, total))
    return weights * mask if masked == "after" else weights


def softmax_inputs(rng):
    """Rows, batches, masks; then large numbers, and a row that may use nothing."""
    draw = rng.standard_normal
    for shape in (1, 3, (2, 2), (2, 3)):
        yield (draw(shape),)
    yield draw(3), np.array([True, False, True])
    yield draw((2, 3)), np.array([False, True, True])
    yield (draw((2, 7)).astype("float32"),)
    yield draw((2, 3, 5)), np.arange(5) < np.array([[[2]], [[3]]])
    yield (np.array([[1000.0, 999.0, -3.0], [0.0, 1.0, 2.0]]),)
    yield np.array([1.0, 1000.0, 0.0]), np.array([True, False, True])
    yield draw((2, 3)), np.array([[True, False, True], [False, False, False]])


OF_THE_SUM: Mistakes = {
    "the exponentials are not divided by their sum": {"divide": False},
    "the sum is over axis 0: it must be over the last axis": {"axis": 0},
    "the sum is over axis 1: it must be over the last axis, axis=-1": {"axis": 1},
    "the sum is over the whole array: it must be over the last axis": {"axis": None},
}
OF_KEEPDIMS: Mistakes = {
    "the sum needs keepdims=True: each row is divided by its own sum": {"keepdims": False},
    "the largest element needs keepdims=True: each row has its own": {"keep_top": False},
}
OF_THE_MASK: Mistakes = {
    "the mask is inverted: True = takes part": {"invert": True},
    "the mask is not used": {"masked": "never"},
    "the mask is applied after the softmax: the rest no longer sums to 1": {"masked": "after"},
    "masked scores are set to 0, and e^0 = 1: set them to -inf": {"fill": 0.0},
    "exp overflows: subtract the largest element of the row first": {"shift": "none"},
    "the largest of all rows is subtracted: take that of each row": {"shift": "whole", "nan": True},
    "small rows become 0: subtract the largest element of each row, not of all": {"shift": "whole"},
    "a row that may use nothing has NaN: it must be zeros": {"nan": True},
    "a row that may use nothing is uniform: it must be zeros (-inf, not -1e9)": {"fill": -1e9},
    "-1e9 is added: a row that may use nothing is unmasked, it must be zeros": {"masked": "added"},
}  # fmt: skip
SOFTMAX = Exercise(
    reference=ops.softmax,
    written=softmax,
    inputs=softmax_inputs,
    mistakes={
        **OF_THE_SUM,
        **OF_KEEPDIMS,
        **OF_THE_MASK,
        "the largest element is taken before the mask: -inf goes in first": {"shift": "all"},
    },
    properties={
        "a row sums to 1, or to 0 if it may use nothing": lambda f, x, *mask: (
            np.sum(f(x, *mask), axis=-1),
            np.broadcast_to(mask[0] if mask else True, x.shape).any(axis=-1),
        ),
        "a number added to x changes nothing": lambda f, x, *mask: (f(x + 2, *mask), f(x, *mask)),
    },
)


def layer_norm(
    x, gain, bias, eps, *, centre=True, subtract=True, axis=-1, keepdims=True, keep_mean=True,
    ddof=0, mean=True, eps_is=None, eps_at="inside", root=True, swap=False, use_gain=True, more=0,
    use_bias=True, bias_first=False,
):  # fmt: skip
    """Layer norm; ``eps_at`` says on which side of the root eps is added."""
    above = x - x.mean(axis, keepdims=keep_mean) if centre and subtract else x
    squares = (x - x.mean(axis, keepdims=True) if centre else x) ** 2
    n, eps = x.size if axis is None else x.shape[axis], eps_is or eps
    inside = squares.sum(axis, keepdims=keepdims) / np.float64(n - ddof if mean else 1)
    inside = inside + eps if eps_at == "inside" else inside
    below = np.sqrt(inside) if root else inside
    below = below + eps if eps_at == "outside" else below
    gain, bias = (bias, gain) if swap else (gain, bias)
    gain, bias = gain + more if use_gain else 1.0, bias if use_bias else 0.0
    return (above / below + bias) * gain if bias_first else above / below * gain + bias


def layer_norm_inputs(rng):
    """Rows, batches; a large eps, and rows of equal numbers."""
    draw = rng.standard_normal
    for shape, eps in [((1,), 1e-5), ((2,), 1e-5), ((2, 2), 0.1), ((2, 3), 1e-5), ((3, 5), 0.1)]:
        yield 1 + 2 * draw(shape), draw(shape[-1]), draw(shape[-1]), eps
    yield *(x.astype("float32") for x in (draw((2, 7)), draw(7), draw(7))), 1e-5
    yield 3 * draw((2, 3, 5)), draw(5), draw(5), 1e-5
    yield np.full((2, 3), 7.0), draw(3), draw(3), 1e-5


OF_NORMS: Mistakes = {
    "the mean is over axis 0: it must be over the last axis": {"axis": 0},
    "the mean is over axis 1: it must be over the last axis, axis=-1": {"axis": 1},
    "the mean is over the whole array: it must be over the last axis": {"axis": None},
    "the mean of the squares needs keepdims=True: each row has its own": {"keepdims": False},
    "eps is added to the root: add it inside, before the root": {"eps_at": "outside"},
    "eps is not added": {"eps_at": "nowhere"},
    "eps is always 1e-5: use the argument": {"eps_is": 1e-5},
    "eps is always 1e-6: use the argument": {"eps_is": 1e-6},
    "the square root is left out": {"root": False},
    "the squares are summed: take their mean": {"mean": False},
    "the gain is left out": {"use_gain": False},
    "1 is added to the gain: use it as it is": {"more": 1},
}
LAYER_NORM = Exercise(
    reference=ops.layer_norm,
    written=layer_norm,
    inputs=layer_norm_inputs,
    mistakes={
        **OF_NORMS,
        "the mean is not subtracted": {"centre": False},
        "the mean is subtracted for the variance only: subtract it from x too": {"subtract": False},
        "the mean needs keepdims=True: each row has its own": {"keep_mean": False},
        "the variance is divided by d - 1: divide by d": {"ddof": 1},
        "the bias is left out": {"use_bias": False},
        "gain and bias are exchanged": {"swap": True},
        "the bias is added before the gain": {"bias_first": True},
    },
    properties={
        "with gain 1 and bias 0 each row has mean 0": lambda f, x, gain, bias, eps: (
            np.mean(f(x, gain**0, 0 * bias, eps), axis=-1),
            np.zeros(x.shape[:-1]),
        ),
        "with gain 1, bias 0, eps 0 each row has variance 1": lambda f, x, gain, bias, eps: (
            np.var(f(x, gain**0, 0 * bias, 1e-30), axis=-1),
            np.ptp(x, axis=-1) > 0,
        ),
        "a number added to x changes nothing": lambda f, x, *more: (f(x + 2, *more), f(x, *more)),
    },
)


def rms_norm(x, gain, eps, **switches):
    """Root-mean-square norm: layer norm without the mean and the bias."""
    return layer_norm(x, gain, 0.0, eps, **{"centre": False, **switches})


RMS_NORM = Exercise(
    reference=lambda x, gain, eps: ops.rms_norm(x, gain, None, eps),
    written=rms_norm,
    inputs=lambda rng: ((x, gain, eps) for x, gain, _, eps in layer_norm_inputs(rng)),
    mistakes={**OF_NORMS, "the mean is subtracted: only layer_norm does that": {"centre": True}},
    properties={
        "with gain 1 and eps 0 the mean of the squares is 1": lambda f, x, gain, eps: (
            np.square(f(x, gain**0, 0.0)).mean(axis=-1),
            np.ones(x.shape[:-1]),
        ),
        "twice x gives the same if eps is 0": lambda f, x, gain, eps: (
            f(2 * x, gain, 0.0),
            f(x, gain, 0.0),
        ),
    },
)


SQRT_2 = math.sqrt(2)


def gelu(x, *, form="erf", sigma=SQRT_2, factor=True, times=1):
    """GELU, x Phi(x)."""
    if form != "erf":
        return ops.gelu_tanh(x) if form == "tanh" else x * ops.sigmoid(1.702 * x)
    below = times * np.vectorize(lambda y: math.erfc(-y / sigma) / 2, otypes="d")(x)
    return x * below if factor else below


def gelu_inputs(rng):
    """A number, rows, a curve, and both tails."""
    yield (np.array([0.0]),)
    yield (rng.standard_normal(1),)
    yield (rng.standard_normal((2, 3)),)
    yield (rng.standard_normal((2, 7)).astype("float32"),)
    yield (np.linspace(-7, 7, 29),)
    yield (np.array([-1000.0, -30.0, -3.0, 3.0, 30.0, 1000.0]),)


GELU = Exercise(
    reference=gelu_erf,
    written=gelu,
    inputs=gelu_inputs,
    mistakes={
        "this is the approximation with tanh: use erf": {"form": "tanh"},
        "this is the approximation x sigmoid(1.702 x): use erf": {"form": "sigmoid"},
        "x is not divided by sqrt(2) inside erf": {"sigma": 1.0},
        "x is multiplied by sqrt(2) inside erf: divide": {"sigma": 1 / SQRT_2},
        "the sign inside erf is wrong: 1 + erf(x / sqrt(2))": {"sigma": -SQRT_2},
        "the factor x is left out: this is Phi(x)": {"factor": False},
        "the factor 1/2 is left out": {"times": 2},
    },
    properties={"gelu(x) - gelu(-x) = x": lambda f, x: (f(x) - f(-x), x)},
)
