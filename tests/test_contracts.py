"""The checker of documented shapes: calls that fit pass, all others raise."""

import contracts
import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.attention import attention, split_heads
from refseq2seq.ops import linear


def product(x, w, bias=None, mask=None):
    """A product.

    Parameters
    ----------
    x : array, shape (..., d_in)
    w : array, shape (d_in, n_heads * d_out)
    bias : array, shape (d_out,) or (), optional
    mask : boolean array, shape broadcastable to (..., d_in), optional

    Returns
    -------
    array, shape (..., n_heads * d_out)
    """
    return x @ w


def halves(x):
    """Two halves, the first one shorter.

    Parameters
    ----------
    x : array, shape ([batch,] n)

    Returns
    -------
    a, b : arrays, shapes ([batch,] 2) and ([batch,] n - 2)
    """
    return x[..., :2], x[..., 2:]


CHECKED, HALVES = contracts.watched(product), contracts.watched(halves)
X, W = np.ones((5, 3, 7)), np.ones((7, 6))


def test_calls_that_fit_are_counted():
    name = f"{__name__}.product"
    before = contracts.CALLS[name]
    np.testing.assert_array_equal(CHECKED(X, W), np.full((5, 3, 6), 7.0))
    CHECKED(X, W, bias=np.ones(()), mask=np.ones((3, 7), dtype=bool))
    CHECKED(X[0, 0], W, bias=None)
    assert contracts.CALLS[name] == before + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, np.ones((5, 7, 6))), "w is documented with the shape"),
        ((X, W, np.ones((2, 2))), "bias is documented"),
        ((X, W, None, np.ones((3, 7))), "mask is documented as boolean"),
        ((X, W, None, np.ones((4, 5), dtype=bool)), "mask is documented with the shape"),
    ],
)
def test_arguments_and_results_that_do_not_fit_raise(arguments, message):
    with pytest.raises(contracts.ContractError, match=message):
        CHECKED(*arguments)
    wrong = contracts.watched(lambda x, w: np.swapaxes(x @ w, -1, -2), product.__doc__)
    with pytest.raises(contracts.ContractError, match="its result"):
        wrong(X, W)


def test_optional_axes_and_several_results():
    HALVES(np.ones(5))
    HALVES(np.ones((3, 5)))
    wrong = contracts.watched(lambda x: (x[..., :3], x[..., 3:]), halves.__doc__)
    with pytest.raises(contracts.ContractError, match="its result"):
        wrong(np.ones((3, 5)))


def test_functions_of_the_package_are_watched_in_every_module():
    assert hasattr(linear, "__wrapped__")
    assert hasattr(rs.forward, "__wrapped__")
    assert hasattr(rs.ops.NORMS["rms_norm"], "__wrapped__")
    assert rs.attention.softmax is rs.ops.softmax
    with pytest.raises(contracts.ContractError, match="bias is documented"):
        linear(X, W, np.ones((1, 6)))
    with pytest.raises(contracts.ContractError, match=r"attention: v .*'n_k': 3"):
        attention(X, X, np.ones((1, 3, 2)), scale=1.0)  # matmul would repeat it
    with pytest.raises(ValueError, match="unpack"):  # refused by the function itself
        split_heads(X[0], 2)
    with pytest.raises(contracts.ContractError, match=r"Memory\.mask"):
        rs.Memory(hidden=X, mask=np.ones((5, 4), dtype=bool), keys=(), values=())


def test_most_of_the_core_documents_its_shapes():
    core = ("ops", "attention", "positions", "masks", "cache", "model", "erf", "generation")
    assert sum(name.split(".")[1] in core for name in contracts.CALLS) >= 25
