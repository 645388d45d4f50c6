"""`refseq2seq.testing.arithmetic`: which operations round, to which format, and how far."""

import numpy as np
import pytest

from refseq2seq.exact import sequential_matmul, sequential_sum
from refseq2seq.testing.arithmetic import Arithmetic, LowPrecisionArray, low_precision
from refseq2seq.testing.rounding import round_to, step_at


def arithmetic(stored="float32", operands=None, computed="float32"):
    return Arithmetic(stored, operands or stored, computed, np.random.default_rng(0))


def of_the_format(x, dtype):
    return np.array_equal(round_to(x, dtype), x)


@pytest.mark.parametrize(
    "operation",
    [
        *(lambda x: x + 1.7, lambda x: 1 - x, lambda x: x * x[:1], lambda x: x / 3.0),
        *(lambda x: np.sqrt(np.abs(x)), np.exp, np.tanh, lambda x: x**2),
    ],
)
def test_elementwise_operations_round_to_the_computed_format(operation):
    x = round_to(np.random.default_rng(1).standard_normal((5, 7)), "bfloat16")
    found = operation(low_precision(x, arithmetic("bfloat16", computed="float16")))
    assert isinstance(found, LowPrecisionArray)
    found = np.asarray(found)
    assert of_the_format(found, "float16")
    assert not of_the_format(found, "bfloat16")
    near = np.abs(found - operation(x))
    assert (near <= 2 * step_at(np.maximum(np.abs(found), 1), "float16")).all()
    assert near.any()


def test_a_sum_of_two_tensors_is_rounded_to_the_stored_format():
    rng = np.random.default_rng(1)
    x, y = (low_precision(rng.standard_normal((5, 7)), arithmetic("bfloat16")) for _ in range(2))
    assert of_the_format(np.asarray(x + y), "bfloat16")
    assert not of_the_format(np.asarray(x + y[0]), "bfloat16")  # a bias


def test_constants_are_rounded_to_the_format():
    ones = low_precision(np.ones((2, 3)), arithmetic())
    for constant in (0.1, np.full(3, 0.1)):
        assert (np.asarray(ones * constant) == np.float64(np.float32(0.1))).all()


def test_exact_operations_do_not_round():
    x = low_precision(np.array([[1.0, -2.0, 0.5]]), arithmetic())
    for found, expected in ((-x, [-1, 2, -0.5]), (np.maximum(x, 0), [1, 0, 0.5]), (x.T.T, x[0])):
        assert np.asarray(found).tolist() == [list(expected)]
    assert type(x > 0) is np.ndarray
    assert x.mean() == pytest.approx(-1 / 6, rel=1e-6)


@pytest.mark.parametrize("n", [17, 64, 500])
@pytest.mark.parametrize("mean", [0.0, 0.5, 3.0])
def test_errors_of_products_and_sums_are_those_of_float32(n, mean):
    """The simulation has sqrt(2) of the spread of sums in order, whatever the signs of terms."""
    rng, by = np.random.default_rng(n), arithmetic()
    a, b = (rng.standard_normal(shape) + mean for shape in ((200, n), (n, 50)))
    a, b = round_to(a, "float32"), round_to(b, "float32")
    simulated = np.asarray(low_precision(a, by) @ low_precision(b, by))
    real = sequential_matmul(a.astype("float32"), b.astype("float32"))

    def rms(error):
        return np.sqrt(np.mean(error**2))

    assert rms(simulated - a @ b) / rms(real - a @ b) == pytest.approx(2**0.5, rel=0.25)
    simulated = np.stack([np.asarray(low_precision(a, by).sum(axis=-1)) for _ in range(20)])
    real = sequential_sum(a.astype("float32"), axis=-1)
    exact = a.sum(axis=-1)
    assert rms(simulated - exact) / rms(real - exact) == pytest.approx(2**0.5, rel=0.5)


def test_tf32_rounds_the_operands_of_products():
    x = np.full((20, 3), 1 + 2.0**-13)
    by = arithmetic(operands="tf32")
    found = np.asarray(low_precision(x, by) @ low_precision(np.eye(3), by))
    assert found.min() == pytest.approx(1, abs=1e-6)
    assert found.max() == pytest.approx(1 + 2.0**-10, abs=1e-6)
    assert np.asarray(low_precision(x, by) + 0.0).max() == 1 + 2.0**-13


def test_operations_inside_are_exact_if_far_finer_than_the_format():
    x = np.random.default_rng(0).standard_normal((3, 5))
    by = arithmetic("bfloat16")
    found = low_precision(x, by)
    assert np.array_equal(np.asarray(found @ found.T), x @ x.T)
    assert np.array_equal(np.asarray(np.exp(found)), np.exp(x))
