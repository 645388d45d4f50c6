"""What of the package needs nothing but the array API standard, held to it.

`array_api_strict` knows nothing but the standard. Arrays stand on a device of its that is not
the default: any number that was made or read elsewhere is refused. It has functions only; the
methods by which the package calls some of them are given to its arrays here.

The rest of the package needs what NumPy and CuPy share and the standard lacks or spells
otherwise: ``argsort(kind=)``, ``partition``, ``cumsum``, ``rint``, dtypes by name in functions,
``transpose`` of several axes, integer arrays as indices.
"""

import numpy as np
import pytest
from arrangements import frame_layer

import refseq2seq as rs
from refseq2seq import frames, masks, ops
from refseq2seq.attention import attention
from refseq2seq.config import WindowConfig
from refseq2seq.generation import filters

strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")

rng = np.random.default_rng(0)
X, G, W, Q = (rng.normal(size=shape) for shape in ((2, 3, 5), 5, (5, 5), (2, 7, 5)))
ACTIVATIONS = {name: f for name, f in ops.ACTIVATIONS.items() if name != "gelu_erf"}
WINDOW, LAYER = WindowConfig(back=1, ahead=1), frame_layer(5, window=3, stride=2, padding=1)
SCORES = rng.normal(size=(3, 11))

STANDARD = {
    "linear": (ops.linear, (X, W, G)),
    "softmax": (ops.softmax, (X, X > 0)),
    "log_softmax": (ops.log_softmax, (X,)),
    "logsumexp": (ops.logsumexp, (X,)),
    "attention": (
        lambda q, k, v, m, b: attention(q, k, v, scale=0.5, mask=m, bias=b),
        (Q, X, X, Q[..., :3] > 0, Q[..., 2:]),
    ),
    **{name: (lambda x, g, f=norm: f(x, g, g, 1e-5), (X, G)) for name, norm in ops.NORMS.items()},
    **{name: (function, (X,)) for name, function in ACTIVATIONS.items()},
    "padding_mask": (masks.padding_mask, (X[0] > 0,)),
    "soft_cap": (lambda x: ops.soft_cap(x, 1.5), (X,)),
    "window_mask": (lambda q, k: masks.window_mask(q, k, WINDOW), (np.arange(2, 5), np.arange(5))),
    "mask_of_windows": (lambda m: frames.mask_of_windows(m, LAYER), (np.arange(9)[None] < 7,)),
    "prepend": (lambda learned, x: frames.prepend(learned, x, None)[0], (W, X)),
    "causal_mask": (masks.causal_mask, (np.arange(2, 5), np.arange(5))),
    "entropy": (filters.entropy, (SCORES,)),
    "temperature": (lambda x: rs.temperature(0.7)(x, None), (SCORES,)),
    "min_p": (lambda x: rs.min_p(0.1)(x, None), (SCORES,)),
    "top_a": (lambda x: rs.top_a(0.3)(x, None), (SCORES,)),
    "epsilon": (lambda x: rs.epsilon(0.05)(x, None), (SCORES,)),
    "eta": (lambda x: rs.eta(0.05)(x, None), (SCORES,)),
    "greedy": (lambda x: rs.greedy().pick(x, None), (SCORES,)),
}


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    """Standard functions, called as methods."""

    def reshape(x, *shape):
        return strict.reshape(x, shape)

    def astype(x, dtype):
        return strict.astype(x, getattr(strict, dtype) if isinstance(dtype, str) else dtype)

    array = type(strict.asarray(0.0))
    reductions = strict.max, strict.min, strict.sum, strict.mean, strict.argmax
    for function in (*reductions, reshape, astype):
        monkeypatch.setattr(array, function.__name__, function, raising=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "arrays"), STANDARD.values(), ids=STANDARD)
def test_functions_that_need_the_standard_only(function, arrays, dtype):
    arrays = [x.astype(dtype) if x.dtype.kind == "f" else x for x in arrays]
    device = strict.Device("device1")
    result = function(*(strict.asarray(x, device=device) for x in arrays))
    assert result.device == device
    on_host = np.asarray(result.to_device(strict.Device("CPU_DEVICE")))
    np.testing.assert_array_equal(on_host, function(*arrays), strict=True)


def test_arrays_of_another_device_raise():
    x = strict.asarray(X, device=strict.Device("device1"))
    with pytest.raises((TypeError, ValueError)):
        ops.softmax(x, strict.asarray(X > 0))
