"""The operations of a Transformer on arrays: products, softmax, norms, activations.

Every function acts on the last axis, preserves the dtype and does not modify its arguments.
Scalars are Python floats: a NumPy float64 scalar would promote float32 arrays to float64.
Functions marked ``widened`` compute float16 in float32 and round the result once. A norm whose
squares overflow returns NaN, never plausible finite numbers.
"""

import math

from .backend import Array, array_namespace, elementwise, widened
from .config import NormConfig
from .erf import gelu_erf
from .params import NormParams


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Affine map x W + b, or x W without a bias; W has shape (d_in, d_out).

    Parameters
    ----------
    x : array, shape (..., d_in)
    weight : array, shape (d_in, d_out)
        The transpose of ``torch.nn.Linear.weight``.
    bias : array, shape (d_out,), optional

    Returns
    -------
    array, shape (..., d_out)

    Notes
    -----
    The product is 2-D: matmul would compute a (batch, 1, d_in) stack as ``batch`` small products.

    Examples
    --------
    >>> import numpy as np
    >>> linear(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    y = x.reshape(-1, x.shape[-1]) @ weight
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[-1])


@widened
def softmax(x: Array, mask: Array | None = None) -> Array:
    r"""Probabilities proportional to exp(x) over the elements that the mask allows, or zeros.

    .. math:: \mathrm{softmax}(x)_i = \frac{m_i e^{x_i}}{\sum_j m_j e^{x_j}}

    Parameters
    ----------
    x : array, shape (..., n)
    mask : boolean array, shape broadcastable to (..., n), optional
        True = allowed.

    Returns
    -------
    array, shape (..., n)
        Zeros in a row whose mask is all False. NaN in a row whose allowed elements are all
        -inf, which has no distribution.

    Notes
    -----
    The maximum is subtracted first, so no finite input overflows. For a fully masked row
    PyTorch returns NaN; adding -1e9 instead of masking gives a uniform distribution.

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.log([1.0, 3.0, 4.0]), np.array([True, True, False]))
    array([0.25, 0.75, 0.  ])
    """
    xp = array_namespace(x)
    if mask is None:
        top = x.max(axis=-1, keepdims=True)
    else:
        x = xp.where(mask, x, -math.inf)
        top = xp.where(xp.any(mask, axis=-1, keepdims=True), x.max(axis=-1, keepdims=True), 0.0)
    exponentials = _shifted_exp(x, top)
    return _normalised(exponentials, exponentials.sum(axis=-1, keepdims=True))


@elementwise
def _shifted_exp(x: Array, top: Array) -> Array:
    """e^(x - top)."""
    return array_namespace(x).exp(x - top)


@elementwise
def _normalised(x: Array, total: Array) -> Array:
    """x / total. The maximum adds e^0 = 1 to the total, so only a row of zeros has less."""
    return x / array_namespace(x).maximum(total, 1.0)  # not 0 / 0


@widened
def log_softmax(x: Array) -> Array:
    r"""Logarithm of the softmax, in nats, without forming probabilities that underflow.

    .. math:: \log\mathrm{softmax}(x)_i = x_i - \log \sum_j e^{x_j}

    Parameters
    ----------
    x : array, shape (..., n)
        At least one finite element in each row; -inf stays -inf.

    Returns
    -------
    array, shape (..., n)

    Examples
    --------
    >>> import numpy as np
    >>> log_softmax(np.array([0.0, -1000.0]))
    array([    0., -1000.])
    """
    xp = array_namespace(x)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))


@widened
def logsumexp(x: Array) -> Array:
    r"""Logarithm of the sum of exponentials over the last axis, which is kept with length 1.

    .. math:: \max_i x_i + \log \sum_j e^{x_j - \max_i x_i}

    Parameters
    ----------
    x : array, shape (..., n)
        At least one finite element in each row.

    Returns
    -------
    array, shape (..., 1)
    """
    top = x.max(axis=-1, keepdims=True)
    return _top_plus_log(top, _shifted_exp(x, top).sum(axis=-1, keepdims=True))


@elementwise
def _top_plus_log(top: Array, total: Array) -> Array:
    """top + log(total)."""
    return top + array_namespace(top).log(total)


def keep(scores: Array, kept: Array) -> Array:
    """The scores where ``kept`` is True, -inf elsewhere."""
    return array_namespace(scores).where(kept, scores, -math.inf)


def top_indices(scores: Array, n: int) -> Array:
    """The indices of the n largest elements of each row, largest first, then lowest index first.

    Parameters
    ----------
    scores : array, shape (batch, m)
    n : int
        At most m.

    Returns
    -------
    integer array, shape (batch, n)

    Notes
    -----
    A partition finds the n-th largest element. Elements get the mark 0 if above it, 1 if equal
    and 2 if below, and are sorted by mark in linear time; only n of them are sorted by value.

    Examples
    --------
    >>> import numpy as np
    >>> top_indices(np.array([[1.0, 5.0, 2.0, 5.0, 2.0]]), 3)
    array([[1, 3, 2]])
    """
    xp = array_namespace(scores)
    worst = -xp.partition(-scores, n - 1, axis=1)[:, n - 1, None]
    marks = 2 - (scores >= worst).astype("uint8") - (scores > worst).astype("uint8")
    chosen = xp.argsort(marks, axis=1, kind="stable")[:, :n]
    chosen = xp.sort(chosen, axis=1)
    order = xp.argsort(-xp.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return xp.take_along_axis(chosen, order, axis=1)


@widened
def mean(x: Array) -> Array:
    """Mean over the last axis, which is kept with length 1."""
    return _mean(x)


def _mean(x: Array) -> Array:
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


@widened
def layer_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    r"""Layer normalisation (Ba, Kiros and Hinton 2016, eq. 4).

    .. math:: \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, g + b

    Parameters
    ----------
    x : array, shape (..., d)
    gain, bias : array, shape broadcastable to (..., d), or None
        (n_heads, 1, d) for a norm of each head. The gain is the full factor; x-transformers
        stores ``gamma``, the gain minus one.
    eps : float
        Added to the variance, inside the square root. The variance is the biased one,
        the mean of squared deviations.

    Returns
    -------
    array, shape (..., d)
        NaN in rows whose squares overflow float32 or float64, as in every norm here.
        PyTorch's ``rms_norm`` and ``normalize`` return zeros.
    """
    centred = x - _mean(x)
    variance = _mean(centred * centred)
    return _over_root(centred, variance, eps, gain, bias)


@widened
def rms_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    r"""Root-mean-square normalisation (Zhang and Sennrich 2019, eq. 4), as in T5.

    .. math:: \frac{x}{\sqrt{\frac{1}{d} \sum_i x_i^2 + \epsilon}}\, g + b

    Arguments as in `layer_norm`. Hugging Face's ``T5LayerNorm`` is this function;
    ``RMSNorm`` of x-transformers is `l2_norm`.
    """
    return _over_root(x, _mean(x * x), eps, gain, bias)


@widened
def l2_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    r"""Scaling to Euclidean length sqrt(d), times the gain.

    .. math:: \sqrt{d}\,\frac{x}{\max(\lVert x \rVert_2, \epsilon)}\, g + b

    Arguments as in `layer_norm`; ``gain`` may be a single number. With a vector gain this
    is x-transformers' ``RMSNorm``, with a scalar one its ``ScaleNorm`` (Nguyen and
    Salazar 2019, eq. 5), with none its ``SimpleRMSNorm``. The length is clamped from
    below by eps; eps is not added to it.
    """
    xp = array_namespace(x)
    length = _nan_if_infinite(xp.sqrt((x * x).sum(axis=-1, keepdims=True)))
    return _affine(x / xp.maximum(length, eps) * math.sqrt(x.shape[-1]), gain, bias)


@widened
def std_norm(x: Array, gain: Array | None, bias: Array | None, eps: float) -> Array:
    r"""The layer norm of "The Annotated Transformer".

    .. math:: \frac{x - \mu}{s + \epsilon}\, g + b,
        \qquad s^2 = \frac{1}{d - 1} \sum_i (x_i - \mu)^2

    Arguments as in `layer_norm`. Unlike there, the standard deviation is the unbiased one,
    and eps is added to it outside the square root.
    """
    xp = array_namespace(x)
    centred = x - _mean(x)
    variance = (centred * centred).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return _affine(centred / (_nan_if_infinite(xp.sqrt(variance)) + eps), gain, bias)


@elementwise
def _over_root(
    x: Array, mean_square: Array, eps: float, gain: Array | None, bias: Array | None
) -> Array:
    """x / sqrt(mean_square + eps) * gain + bias."""
    root = _nan_if_infinite(array_namespace(x).sqrt(mean_square + eps))
    return _affine(x / root, gain, bias)


def _nan_if_infinite(root: Array) -> Array:
    """A root >= 0, but NaN where its squares overflowed: x / inf would be 0."""
    return root % math.inf  # % inf: NaN if infinite


def _affine(x: Array, gain: Array | None, bias: Array | None) -> Array:
    scaled = x if gain is None else x * gain
    return scaled if bias is None else scaled + bias


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN."""
    return array_namespace(x).maximum(x, 0)


def relu_squared(x: Array) -> Array:
    """The square of max(x, 0) (So et al. 2021, Primer)."""
    return relu(x) ** 2


@widened
@elementwise
def sigmoid(x: Array) -> Array:
    """Logistic function 1 / (1 + e^-x), computed as e^x / (1 + e^x) where x < 0.

    It neither overflows nor loses digits in the left tail.
    """
    xp = array_namespace(x)
    small = xp.exp(-xp.abs(x))
    return xp.where(x < 0, small, 1.0) / (1 + small)


@widened
@elementwise
def silu(x: Array) -> Array:
    """x sigmoid(x), also called swish (Hendrycks and Gimpel 2016, section 2).

    At -inf it returns the limit 0, where PyTorch returns NaN.
    """
    return array_namespace(x).maximum(x, -800.0) * sigmoid(x)  # sigmoid(-800) is 0


@widened
@elementwise
def gelu_tanh(x: Array) -> Array:
    r"""The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2).

    .. math:: \tfrac{x}{2}\left(1 + \tanh\left(\sqrt{2/\pi}\,(x + 0.044715 x^3)\right)\right)

    Hugging Face's ``gelu_new``, PyTorch's ``approximate="tanh"``. It differs from `gelu_erf` by
    up to 4.8e-4. At -inf it returns the limit 0, where PyTorch returns NaN.
    """
    xp = array_namespace(x)
    x = xp.maximum(x, -30.0)  # tanh is -1 or 1 outside -30 to 30; clamping keeps cubes finite
    near = xp.minimum(x, 30.0)
    inner = math.sqrt(2 / math.pi) * (near + 0.044715 * (near * near * near))
    return 0.5 * x * (1 + xp.tanh(inner))


def soft_cap(x: Array, cap: float | None) -> Array:
    r"""Bound x smoothly to (-cap, cap), as Gemma 2 bounds scores and logits; None has no effect.

    .. math:: c \tanh(x / c)
    """
    return x if cap is None else _soft_capped(x, cap)


@widened
@elementwise
def _soft_capped(x: Array, cap: float) -> Array:
    return cap * array_namespace(x).tanh(x / cap)


NORMS = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "l2_norm": l2_norm,
    "std_norm": std_norm,
}


def normalize(p: NormParams | None, c: NormConfig | None, x: Array) -> Array:
    """Apply the norm ``c`` with the parameters ``p``; without such a norm, return ``x``."""
    return x if p is None or c is None else NORMS[c.kind](x, p.gain, p.bias, c.eps)


ACTIVATIONS = {
    "relu": relu,
    "relu_squared": relu_squared,
    "silu": silu,
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
}
