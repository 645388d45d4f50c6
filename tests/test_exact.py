"""`refseq2seq.exact`: sums in order, and what they promise of a whole model."""

from dataclasses import replace
from functools import reduce
from operator import add

import arrangements
import numpy as np
import pytest
import relations
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from naming import raises_naming

import refseq2seq as rs
from refseq2seq.config import WindowConfig
from refseq2seq.exact import ExactArray, as_exact, sequential_matmul, sequential_sum
from refseq2seq.ops import layer_norm, softmax
from refseq2seq.testing import strategies

DTYPES = ("float32", "float64")
# No sum of these is without rounding, so an order of additions shows in the last bit.
numbers = st.floats(-1, 1, width=32).map(lambda x: x / 3)


def same_bits(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert np.isfinite(expected).all()
    return actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relation", relations.ALL, ids=lambda relation: relation.__name__)
@settings(max_examples=12)
@given(data=st.data())
def test_relations_hold_to_the_last_bit(relation, dtype, data):
    model = data.draw(strategies.models(dtype=dtype), label="model").exact()
    actual, expected = relation(data, model)
    assert isinstance(actual, ExactArray)
    assert actual.dtype == dtype
    assert same_bits(actual, expected)


WINDOWS = {  # of the encoder's two layers and the decoder's three
    "narrow": ([(1, 1), (0, 2)], [(0, 0), (1, 0), (2, 0)]),
    "some": ([None, (2, 1)], [(1, 0), None, (3, 3)]),
}


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("relation", relations.ALL, ids=lambda relation: relation.__name__)
@settings(max_examples=12)
@given(data=st.data())
def test_windows_and_caps_hold_to_the_last_bit(relation, kind, data):
    """Any chunks with a cache, any padding, later tokens, other rows: no bit of windows changes."""
    sides = {}
    for side, limits in zip(("encoder", "decoder"), WINDOWS[kind], strict=True):
        stack = getattr(arrangements.t5_like, side)
        windows = tuple(x and WindowConfig(back=x[0], ahead=x[1]) for x in limits)
        capped = replace(stack.self_attention, softcap=0.5)
        sides[side] = replace(stack, windows=windows, self_attention=capped)
    config = replace(arrangements.t5_like, logits_softcap=3.0, **sides)
    model = rs.Model(config=config, params=rs.random_params(config, 3)).exact()
    assert same_bits(*relation(data, model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_relations_need_exact_sums(dtype):
    """BLAS and pairwise sums do change bits: otherwise the test above would show nothing."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, 211)).astype(dtype), rng.standard_normal((211, 67)).astype(dtype)
    assert not same_bits((x @ w)[:1], x[:1] @ w)
    assert same_bits((as_exact(x) @ w)[:1], as_exact(x)[:1] @ w)
    padded = np.concatenate([np.zeros((8, 5), dtype), x], axis=1)
    assert not same_bits(padded.sum(axis=1), x.sum(axis=1))
    assert same_bits(as_exact(padded).sum(axis=1), as_exact(x).sum(axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_products_are_added_one_after_the_other(dtype, data):
    n, m, k = (data.draw(st.integers(1, 5)) for _ in range(3))
    a = data.draw(arrays(dtype, (2, n, k), elements=numbers.map(np.dtype(dtype).type)))
    b = data.draw(arrays(dtype, (2, k, m), elements=numbers.map(np.dtype(dtype).type)))
    expected = np.zeros((2, n, m), dtype)
    for at in np.ndindex(2, n, m):
        total = np.dtype(dtype).type(0)
        for i in range(k):
            total = total + a[at[0], at[1], i] * b[at[0], i, at[2]]
        expected[at] = total
    assert same_bits(sequential_matmul(a, b), expected)
    assert same_bits(as_exact(a) @ as_exact(b), expected)
    assert same_bits(as_exact(a) @ b, expected)
    assert same_bits(a @ as_exact(b), expected)
    assert same_bits(as_exact(a)[0] @ b[0], expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_sums_are_added_one_after_the_other(dtype, data):
    x = data.draw(arrays(dtype, (3, 11, 2), elements=numbers.map(np.dtype(dtype).type)))
    expected = np.zeros((3, 2), dtype)
    for at in np.ndindex(3, 2):
        total = x[at[0], 0, at[1]]
        for i in range(1, 11):
            total = total + x[at[0], i, at[1]]
        expected[at] = total
    assert same_bits(sequential_sum(x, axis=1), expected)
    assert same_bits(sequential_sum(x, axis=1, keepdims=True), expected[:, None])
    assert same_bits(as_exact(x).sum(axis=1), expected)
    assert same_bits(np.sum(as_exact(x), axis=-2, keepdims=True), expected[:, None])
    assert same_bits(np.mean(as_exact(x), axis=1), expected / 11)


def test_ops_use_sequential_sums():
    """A tenth added ten times is less than 1, and so is everything that is made of it."""
    x = as_exact(np.full((1, 10), 0.1))
    total = reduce(add, [0.1] * 10)  # the built-in sum compensates from Python 3.12 on
    assert total != 1.0
    assert np.mean(x, axis=-1).item() == total / 10
    e = as_exact(np.arange(10.0) / 3)
    exponentials = [float(y) for y in np.exp(np.arange(10.0) / 3 - 3.0)]
    assert softmax(e).tolist() == [y / sum(exponentials) for y in exponentials]
    mean = sum((np.arange(10.0) / 3).tolist()) / 10
    centred = [y - mean for y in (np.arange(10.0) / 3).tolist()]
    variance = sum(y * y for y in centred) / 10
    assert layer_norm(e, None, None, 0.5).tolist() == [y / np.sqrt(variance + 0.5) for y in centred]


@settings(max_examples=12)
@given(data=st.data())
def test_an_exact_model_has_the_same_logits_up_to_rounding(data):
    model = data.draw(strategies.models())
    source = data.draw(strategies.sources(model))
    target = data.draw(strategies.targets(model, source.batch))
    exact = rs.forward(model.exact(), source.tokens, target, source.mask)
    plain = rs.forward(model.exact().to("numpy"), source.tokens, target, source.mask)
    assert isinstance(exact, ExactArray)
    assert type(plain) is np.ndarray
    assert same_bits(plain, rs.forward(model, source.tokens, target, source.mask))
    scale = np.abs(plain).max(axis=-1, keepdims=True)
    assert (np.abs(exact - plain) <= 1e-10 * scale).all()  # near: test_model.py says how near


def test_results_of_exact_arrays_are_exact():
    x = as_exact(np.ones((2, 3)))
    for y in (x.T, x[0], x + 1, 1 - x, np.exp(x), np.concatenate([x, x]), np.where(True, x, 0.0)):
        assert isinstance(y, ExactArray)
    assert type(x > 0) is not ExactArray  # masks and indices need no sums
    x += 1
    x *= as_exact(np.full(3, 2.0))
    assert isinstance(x, ExactArray)
    assert x.tolist() == [[4.0] * 3] * 2


def test_as_exact_copies_and_changes_nothing():
    x = np.arange(3.0)[None]
    x.setflags(write=False)
    assert np.shares_memory(as_exact(x), x)
    assert (as_exact(x) @ as_exact(np.ones((3, 1)))).tolist() == [[3.0]]


X = as_exact(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: np.sum(X, axis=1, where=np.array([True, False, True])), "where"),
        (lambda: np.sum(X, axis=1, out=np.empty(2)), "out"),
        (lambda: np.matmul(X, X.T, out=np.empty((2, 2))), "out"),
        (lambda: as_exact([1.0, 2.0]), "NumPy"),
    ],
)
def test_arguments_that_exact_arrays_do_not_take_raise(call, name):
    with raises_naming(TypeError, name):
        call()
