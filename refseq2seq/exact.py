"""Sums in order: arithmetic that gives a row the same bits in any company.

Floating-point addition is not associative, and a fast product or sum picks its order by
the shapes it is given: the same row comes out different in its last bits when it stands in
another batch, is padded, or is computed with a cache. An `ExactArray` adds one term after
the other, in the order of the index:

    (a @ b)[i, j] = ((a[i, 0] b[0, j] + a[i, 1] b[1, j]) + a[i, 2] b[2, j]) + ...

Each product and each sum is rounded separately (no fused multiply-add), so that any
IEEE 754 machine and any language can reproduce the bits. Zeros that padding adds at either
end change nothing. The model's code is the same: arithmetic is the array's business.
"""

from typing import Any

import numpy as np


class ExactArray(np.ndarray):
    """A NumPy array whose ``@`` and sums are sequential, and all that is computed from it."""

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        plain = tuple(_plain(x) for x in inputs)
        if out is not None:
            options["out"] = tuple(_plain(x) for x in out)
        if ufunc is np.matmul:
            result = sequential_matmul(*plain, **options)
        elif ufunc is np.add and method == "reduce":
            result = sequential_sum(*plain, **options)
        else:
            result = getattr(ufunc, method)(*plain, **options)
        return _exact(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _exact(super().__array_function__(func, types, args, kwargs))


def as_exact(x: Any) -> ExactArray:
    """A view of ``x`` with exact arithmetic.

    Raises
    ------
    TypeError
        For an array that is not NumPy's: a GPU's scans add in an order of their own.
    """
    if not isinstance(x, np.ndarray):
        raise TypeError("exact arithmetic is NumPy's only: use model.to('numpy').exact()")
    return x.view(ExactArray)


def sequential_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, for arrays of at least two dimensions, the products added in the order of k."""
    total = np.zeros(1, dtype=np.result_type(a, b))
    for k in range(a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., None, k, :]
    return total


def sequential_sum(
    x: np.ndarray, axis: int = 0, dtype: Any = None, keepdims: bool = False, **options: Any
) -> np.ndarray:
    """The sum over ``axis``, its terms added in the order of the index."""
    if options.get("out") is not None or options.get("where", True) is not True:
        raise TypeError(f"an exact sum does not take {sorted(options)}")
    total = np.take(np.cumsum(x, axis=axis, dtype=dtype), [-1], axis=axis)
    return total if keepdims else np.squeeze(total, axis=axis)


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, ExactArray) else x


def _exact(x: Any) -> Any:
    return x.view(ExactArray) if type(x) is np.ndarray and x.dtype.kind == "f" else x
