"""Batch-invariant arithmetic: the bits of a row do not depend on the rest of its batch.

Floating-point addition is not associative, and the order in a fast product or sum depends on
shapes: a row differs in its last bits when its batch or padding changes, or when it is computed
with a cache. An `ExactArray` adds terms in the order of the index:

    (a @ b)[i, j] = ((a[i, 0] b[0, j] + a[i, 1] b[1, j]) + a[i, 2] b[2, j]) + ...

Each product and each sum is rounded separately (no fused multiply-add), so that any
IEEE 754 machine and any language can reproduce the bits. Zeros that padding adds at either
end change nothing. The model's code is the same: the array type defines the arithmetic.
"""

from typing import Any

import numpy as np


class ExactArray(np.ndarray):
    """A NumPy array with sequential ``@`` and sums. Its floating-point results have this type."""

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
    """A view of ``x`` as an `ExactArray`.

    Raises
    ------
    TypeError
        If ``x`` is not a NumPy array: scans on a GPU add in another order.
    """
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"exact arithmetic needs a NumPy array, got {type(x).__name__}: "
            "use model.to('numpy').exact()"
        )
    return x.view(ExactArray)


def sequential_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b for arrays of at least two dimensions, with products added in the order of k."""
    total = np.zeros(1, dtype=np.result_type(a, b))
    for k in range(a.shape[-1]):
        total = total + a[..., :, k, None] * b[..., None, k, :]
    return total


def sequential_sum(
    x: np.ndarray, axis: int = 0, dtype: Any = None, keepdims: bool = False, **options: Any
) -> np.ndarray:
    """The sum over ``axis``, with terms added in the order of the index."""
    if options.get("out") is not None or options.get("where", True) is not True:
        raise TypeError(f"an exact sum does not take {sorted(options)}")
    total = np.take(np.cumsum(x, axis=axis, dtype=dtype), [-1], axis=axis)
    return total if keepdims else np.squeeze(total, axis=axis)


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, ExactArray) else x


def _exact(x: Any) -> Any:
    return x.view(ExactArray) if type(x) is np.ndarray and x.dtype.kind == "f" else x
