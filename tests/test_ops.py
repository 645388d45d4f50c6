"""The operations: by hand, their invariances, dtypes and shapes."""

import math

import numpy as np
import pytest
from close import assert_close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refseq2seq import ops

U = 2.0**-53  # half a unit in the last place of 1
numbers = st.floats(-9, 9)
rows = arrays(
    np.float64, array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=7), elements=numbers
)
norms = pytest.mark.parametrize("norm", ops.NORMS.values(), ids=ops.NORMS)


# linear


def test_linear_by_hand():
    x = np.array([[[1.0, 2.0]], [[0.0, 1.0]]])
    w = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    y = ops.linear(x, w, np.array([0.5, 0.0, -0.5]))
    assert y.tolist() == [[[5.5, 50.0, 499.5]], [[2.5, 20.0, 199.5]]]
    assert ops.linear(x, w).tolist() == [[[5.0, 50.0, 500.0]], [[2.0, 20.0, 200.0]]]


@given(data=st.data())
def test_linear_is_a_sum_of_products(data):
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, max_side=5))
    x = data.draw(arrays(np.float64, shape, elements=numbers))
    w = data.draw(arrays(np.float64, (shape[-1], 3), elements=numbers))
    b = data.draw(arrays(np.float64, (3,), elements=numbers))
    y = ops.linear(x, w, b)
    assert y.shape == (*shape[:-1], 3)
    for at in np.ndindex(y.shape):
        terms = [float(v) * float(u) for v, u in zip(x[at[:-1]], w[:, at[-1]], strict=True)]
        bound = (len(terms) + 2) * U * (sum(map(abs, terms)) + abs(b[at[-1]]))
        assert abs(y[at] - math.fsum([*terms, b[at[-1]]])) <= bound


# softmax


def test_softmax_by_hand():
    assert_close(ops.softmax(np.log([1.0, 3.0, 4.0])), [1 / 8, 3 / 8, 1 / 2], rtol=4 * U)
    assert_close(
        ops.log_softmax(np.log([1.0, 3.0, 4.0])), np.log([1 / 8, 3 / 8, 1 / 2]), rtol=8 * U
    )
    assert_close(ops.logsumexp(np.log([1.0, 3.0, 4.0])), [math.log(8)], rtol=4 * U)
    assert ops.softmax(np.array([7.0])).tolist() == [1.0]


@given(x=rows, shift=st.integers(-1000, 1000))
def test_softmax_is_a_distribution_and_ignores_a_constant(x, shift):
    p = ops.softmax(x)
    assert_close(p.sum(axis=-1), np.ones(x.shape[:-1]), rtol=8 * U)
    assert (p > 0).all()
    # x + shift is rounded: an error of 1009 U in x is one of 1009 U, relative, in exp(x).
    assert_close(ops.softmax(x + shift), p, rtol=2200 * U)
    assert_close(ops.log_softmax(x + shift), ops.log_softmax(x), atol=2200 * U)
    assert_close(np.exp(ops.log_softmax(x)), p, rtol=64 * U)
    assert_close(
        ops.logsumexp(x), np.log(np.exp(x).sum(axis=-1, keepdims=True)), atol=64 * U, rtol=64 * U
    )


@given(x=rows)
def test_softmax_is_monotone(x):
    p = ops.softmax(x)
    differences = x[..., :, None] - x[..., None, :]
    assert (np.sign(p[..., :, None] - p[..., None, :]) * differences >= 0).all()


@given(data=st.data())
def test_masked_entries_are_as_if_removed(data):
    x = data.draw(arrays(np.float64, (3, 7), elements=numbers))
    mask = data.draw(arrays(np.bool_, (3, 7)))
    p = ops.softmax(x, mask)
    assert np.isfinite(p).all()
    assert not p[~mask].any()
    for row, row_p, row_mask in zip(x, p, mask, strict=True):
        if row_mask.any():
            assert_close(row_p[row_mask], ops.softmax(row[row_mask]), rtol=8 * U)
    noise = data.draw(st.sampled_from([1e300, -1e300, 0.0, math.inf, -math.inf, math.nan]))
    np.testing.assert_array_equal(ops.softmax(np.where(mask, x, noise), mask), p)


def test_a_masked_row_is_zeros_and_a_row_that_overflowed_is_nan():
    x = np.array([[1.0, 2.0], [-math.inf, -math.inf]])
    assert ops.softmax(x, np.zeros((1, 1), dtype=bool)).tolist() == [[0, 0], [0, 0]]
    with np.errstate(invalid="ignore"):
        some = ops.softmax(x, np.array([[False, False], [True, False]]))
        assert np.isnan(ops.softmax(x)[1]).all()
    assert some[0].tolist() == [0, 0]
    assert np.isnan(some[1]).any()


@pytest.mark.parametrize("big", [1e4, 1e300])
def test_softmax_of_large_numbers(big):
    assert ops.softmax(np.array([big, big, -big])).tolist() == [0.5, 0.5, 0.0]
    assert ops.log_softmax(np.array([big, big])).tolist() == [-math.log(2)] * 2
    assert ops.log_softmax(np.array([0.0, -big])).tolist() == [0.0, -big]
    assert ops.logsumexp(np.array([-big, -big])).tolist() == [math.log(2) - big]
    assert ops.log_softmax(np.array([0.0, -math.inf])).tolist() == [0.0, -math.inf]


# norms


@given(x=rows, scale=st.sampled_from([-8.0, -1.0, 0.25, 4.0]))
@norms
def test_norms_ignore_the_scale(norm, x, scale):
    """A power of two changes no bit, a sign only the sign, when nothing is added."""
    x = x + np.linspace(0, 1, x.shape[-1])  # no row of equal numbers
    x = np.where(np.abs(x) < 1e-290, 0.0, x)  # a number that is subnormal, or becomes so, rounds
    y = norm(x, None, None, 0.0)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(norm(scale * x, None, None, 0.0), np.sign(scale) * y)


@given(x=rows, shift=st.integers(-9, 9))
@pytest.mark.parametrize("norm", [ops.layer_norm, ops.std_norm])
def test_centred_norms_ignore_a_constant(norm, x, shift):
    x = x + np.linspace(0, 1, x.shape[-1])
    y = norm(x, None, None, 0.0)
    # Rounding x + shift moves it by 18 U; a row's deviation may be as small as 0.05.
    assert_close(norm(x + shift, None, None, 0.0), y, atol=20_000 * U)
    assert_close(y.mean(axis=-1), np.zeros(x.shape[:-1]), atol=2_000 * U)


@given(x=rows)
def test_mean_squares_of_normed_rows(x):
    x = x + np.linspace(0, 1, x.shape[-1])
    d, ones = x.shape[-1], np.ones(x.shape[:-1])
    assert_close((ops.layer_norm(x, None, None, 0.0) ** 2).mean(axis=-1), ones, rtol=32 * U)
    assert_close((ops.std_norm(x, None, None, 0.0) ** 2).sum(axis=-1), (d - 1) * ones, rtol=32 * U)
    assert_close((ops.rms_norm(x, None, None, 0.0) ** 2).mean(axis=-1), ones, rtol=32 * U)
    assert_close((ops.l2_norm(x, None, None, 0.0) ** 2).sum(axis=-1), d * ones, rtol=32 * U)


def test_eps_of_each_norm_by_hand():
    """The row 3, -1 has mean 1, variance 4, mean square 5 and unbiased deviation sqrt(8)."""
    x = np.array([3.0, -1.0])
    assert_close(ops.layer_norm(x, None, None, 5.0), [2 / 3, -2 / 3], rtol=4 * U)
    assert_close(ops.rms_norm(x, None, None, 4.0), [1, -1 / 3], rtol=4 * U)
    assert_close(ops.std_norm(x, None, None, 2.0), np.array([2, -2]) / (8**0.5 + 2), rtol=4 * U)
    assert_close(ops.l2_norm(x, None, None, 3.0), np.array([3, -1]) / 5**0.5, rtol=4 * U)
    assert_close(ops.l2_norm(x, None, None, 6.0), np.array([3, -1]) / 6 * 2**0.5, rtol=4 * U)


@norms
def test_gain_multiplies_then_bias_is_added(norm):
    x = np.array([[3.0, -1.0, 5.0], [0.5, 0.25, 7.0]])
    gain, bias = np.array([2.0, -1.0, 0.5]), np.array([10.0, 20.0, 30.0])
    bare = norm(x, None, None, 1e-5)
    np.testing.assert_array_equal(norm(x, gain, None, 1e-5), bare * gain)
    np.testing.assert_array_equal(norm(x, None, bias, 1e-5), bare + bias)
    np.testing.assert_array_equal(norm(x, gain, bias, 1e-5), bare * gain + bias)
    np.testing.assert_array_equal(norm(x, np.array(2.0), None, 1e-5), bare * 2)


@norms
def test_a_row_of_zeros_stays_finite(norm):
    assert norm(np.zeros((2, 3)), None, None, 1e-5).tolist() == [[0.0] * 3] * 2


# activations. GELU's accuracy, its tails included, is in test_erf.py.


@pytest.mark.parametrize(
    ("activation", "at_one", "at_minus_two"),
    [
        (ops.relu, 1.0, 0.0),
        (ops.relu_squared, 1.0, 0.0),
        (ops.silu, 0.7310585786300049, -0.2384058440442351),
        (ops.gelu_erf, 0.8413447460685429, -0.045500263896358414),
        (ops.gelu_tanh, 0.8411919906082768, -0.04540230591222494),
    ],
)
def test_activations_at_known_points(activation, at_one, at_minus_two):
    """SiLU is x / (1 + e^-x); GELU x Phi(x), with Phi(1) and Phi(-2) from tables."""
    actual = activation(np.array([1.0, -2.0, 0.0]))
    # gelu_tanh(-2) is -1 + tanh(-1.70): cancellation leaves 2 / 0.09 units.
    assert_close(actual, [at_one, at_minus_two, 0.0], rtol=32 * U)


def test_relu_squared_squares():
    assert ops.relu_squared(np.array([3.0, -3.0])).tolist() == [9.0, 0.0]


@given(x=arrays(np.float64, 5, elements=st.floats(-40, 40)))
def test_gates_of_x_and_of_minus_x_sum_to_one(x):
    """g(x) x - g(-x) (-x) = x where g(x) + g(-x) = 1."""
    bound = 8 * U * np.abs(x)
    assert (np.abs(ops.sigmoid(x) + ops.sigmoid(-x) - 1) <= 4 * U).all()
    assert (np.abs(ops.silu(x) - ops.silu(-x) - x) <= bound).all()
    assert (np.abs(ops.gelu_erf(x) - ops.gelu_erf(-x) - x) <= bound).all()
    assert (np.abs(ops.gelu_tanh(x) - ops.gelu_tanh(-x) - x) <= bound).all()
    np.testing.assert_array_equal(ops.relu(x) - ops.relu(-x), x)


def test_the_two_gelus_differ_by_at_most_4_8e_4():
    x = np.linspace(-9, 9, 100_001)
    assert 4.7e-4 < np.abs(ops.gelu_erf(x) - ops.gelu_tanh(x)).max() < 4.8e-4


@given(x=st.floats(-745, 745))
def test_sigmoid_keeps_its_digits_in_both_tails(x):
    # exp(-x) is formed where it does not overflow; then it is right to the bit or two.
    expected = math.exp(x) / (1 + math.exp(x)) if x < 0 else 1 / (1 + math.exp(-x))
    assert_close(ops.sigmoid(np.array(x)), expected, atol=5e-324, rtol=8 * U)


@pytest.mark.parametrize("f", [ops.sigmoid, *ops.ACTIVATIONS.values()])
def test_activations_do_not_overflow(f):
    for dtype, big in ("float16", 200.0), ("float32", 1e15), ("float64", 1e150):  # squares fit
        y = f(np.array([-big, big], dtype=dtype))
        assert y[0] == 0
        assert np.isfinite(y).all()


# dtypes, shapes, and leaving things alone


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_in_is_dtype_out(dtype):
    x = np.linspace(-2, 2, 10, dtype=dtype).reshape(2, 5)
    x.setflags(write=False)
    g, w, mask = x[0], x.T, x > 0
    results = [
        ops.linear(x, w), ops.linear(x, w, x[0, :2]), ops.softmax(x), ops.softmax(x, mask),
        ops.log_softmax(x), ops.logsumexp(x), ops.sigmoid(x),
        *(norm(x, g, g, 1e-5) for norm in ops.NORMS.values()),
        *(norm(x, None, None, 1e-5) for norm in ops.NORMS.values()),
        *(f(x) for f in ops.ACTIVATIONS.values()),
    ]  # fmt: skip
    for y in results:
        assert y.dtype == dtype
        assert np.isfinite(y).all()
        assert y.shape[:-1] == (2,)


def test_float32_results_are_rounded_float64_results():
    """To a few units: no operation falls back on less than it was given."""
    x = np.random.default_rng(0).standard_normal((7, 31)).astype("float32")
    functions = [
        ops.softmax, ops.log_softmax, ops.logsumexp, ops.sigmoid, *ops.ACTIVATIONS.values(),
        *(lambda x, norm=norm: norm(x, None, None, 1e-5) for norm in ops.NORMS.values()),
    ]  # fmt: skip
    for f in functions:
        expected = f(x.astype("float64"))
        scale = np.abs(expected).max(axis=-1, keepdims=True)
        assert np.isfinite(expected).all()
        assert (np.abs(f(x) - expected) <= 16 * 2.0**-24 * scale).all()


# soft_cap


def test_soft_cap_by_hand():
    """2 tanh(x / 2), where tanh(ln 3) = (9 - 1) / (9 + 1)."""
    x = np.array([0.0, 2 * math.log(3), -2 * math.log(3), np.inf, -np.inf])
    assert_close(ops.soft_cap(x, 2.0), [0.0, 1.6, -1.6, 2.0, -2.0], rtol=4 * U)
    assert ops.soft_cap(x, None) is x


@given(x=rows, cap=st.sampled_from((0.5, 3.0, 50.0)))
def test_soft_cap_is_odd_bounded_and_rising(x, cap):
    y = ops.soft_cap(x, cap)
    assert np.array_equal(ops.soft_cap(-x, cap), -y)
    assert (np.abs(y) <= np.minimum(np.abs(x) * (1 + 4 * U) + 1e-300, cap)).all()
    assert (np.diff(y.ravel()[np.argsort(x, axis=None)]) >= 0).all()
    assert np.isnan(ops.soft_cap(np.array([np.nan]), cap)).all()


@given(x=st.floats(-1e-3, 1e-3), cap=st.sampled_from((0.5, 3.0, 50.0)))
def test_soft_cap_changes_numbers_near_0_by_a_cube(x, cap):
    """c tanh(x / c) = x - x^3 / (3 c^2) + O(x^5)."""
    y = float(ops.soft_cap(np.array([x]), cap)[0])
    assert abs(y - (x - x**3 / (3 * cap**2))) <= 4 * U * abs(x) + abs(x) ** 5 / cap**4 + 1e-300


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_soft_cap_keeps_the_dtype(dtype):
    x = np.array([-7.0, 0.3, 1.0, 30000.0], dtype)
    y = ops.soft_cap(x, 50.0)
    assert y.dtype == dtype
    exact = [50 * math.tanh(v / 50) for v in x.tolist()]
    assert_close(y.astype("float64"), exact, rtol=4 * np.finfo(dtype).eps)
