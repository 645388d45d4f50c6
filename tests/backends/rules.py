"""What CuPy 14 takes, and what it costs: the functions and methods that the double knows.

Signatures are CuPy's own; `test_binding.py` compares them with an installed CuPy. A cost is the
number of things that are put into the device's queue: kernels, copies, fills. Costs follow
CuPy's source; `test_gpu.py` compares them with a device's own trace.
"""

import functools
import inspect
import math
from collections.abc import Callable

import numpy as np

Cost = int | Callable[..., int]
"""Launches of a call, or the function of its arguments, as CuPy names them, that gives them."""

UFUNCS = {
    **dict.fromkeys(["abs", "negative", "invert", "isfinite", "isnan", "rint", "sign"], 1),
    **dict.fromkeys(["exp", "exp2", "expm1", "log", "sqrt", "sin", "cos", "tanh"], 1),
    **dict.fromkeys(["add", "subtract", "multiply", "divide", "floor_divide", "remainder"], 2),
    **dict.fromkeys(["power", "maximum", "minimum", "copysign"], 2),
    **dict.fromkeys(["bitwise_and", "bitwise_or", "bitwise_xor", "logical_and", "logical_or"], 2),
    **dict.fromkeys(["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"], 2),
}
"""Elementwise functions and how many arrays they take; of keywords only out, dtype, casting."""

OPERATORS = {
    "neg": "negative", "abs": "abs", "invert": "invert",
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "matmul": "matmul",
    "and_": "bitwise_and", "or_": "bitwise_or", "xor": "bitwise_xor",
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
"""Names in the module `operator`, and the function that each stands for."""

ATTRIBUTES = {
    *("float16", "float32", "float64", "int32", "int64", "uint8", "bool_"),
    *("inf", "nan", "pi", "newaxis", "finfo", "iinfo", "isdtype", "result_type"),
}
"""What a namespace has beside functions of arrays. None of it touches the device."""


EXACT = {
    *("asarray", "array", "arange", "zeros", "ones", "full", "zeros_like", "ones_like", "empty"),
    *("concat", "stack", "repeat", "tile", "where", "take", "take_along_axis", "clip"),
    *("sort", "partition", "max", "min", "maximum", "minimum"),
    *("astype", "copy", "reshape", "ravel"),
    *("abs", "negative", "copysign", "rint", "sign"),
}
"""Functions that move or choose numbers, and round none."""


def copied(x: np.ndarray) -> int:
    """Launches that make an array contiguous."""
    return 0 if x.flags.c_contiguous else 1


def reshaped(x: np.ndarray, *shape: object) -> int:
    """Launches of reshape: none if the result can be a view."""
    return 0 if np.may_share_memory(x, x.reshape(*shape)) else 1


def product(a: np.ndarray, b: np.ndarray) -> int:
    """Of matmul. Stacks are copied unless contiguous, and multiplied in one batched product.

    Two matrices are one product; a transposed one is read in place.
    """
    if max(a.ndim, b.ndim) <= 2:
        return 1 + sum(not (x.flags.c_contiguous or x.flags.f_contiguous) for x in (a, b))
    copies = copied(a) + copied(b)
    lead = [(1,) * (max(a.ndim, b.ndim) - x.ndim) + x.shape[:-2] for x in (a, b)]
    pointers = 0 if lead[0] == lead[1] else 3 * len(lead[0])  # broadcast: tables of addresses
    return copies + pointers + 1


def gathered(shape: tuple[int, ...], n_indices: int) -> int:
    """Of indexing with integer arrays: several are first reduced to one."""
    return 0 if n_indices == 0 else 1 if n_indices == 1 else n_indices + 2


def sorting(a: np.ndarray, **_: object) -> int:
    """Of sort: a copy, rows' numbers, a sort of blocks, and two for each merge of them."""
    blocks = math.ceil(a.size / 1024)
    return 3 + 2 * math.ceil(math.log2(max(blocks, 1)))


def parting(a: np.ndarray, kth: int, **_: object) -> int:
    """Of partition, along the last axis: the parts of a row, and their merges. Or it sorts."""
    n, kept = a.shape[-1], max(32, 1 << kth.bit_length())
    parts = 512
    while parts and n // parts < kept + 128:
        parts //= 2
    if n < 32 or parts * (a.size // n) <= 32 or kept >= 1024:
        return sorting(a)
    return 2 + math.ceil(math.log2(parts))


def _converted(x: np.ndarray, dtype: object) -> int:
    return 0 if dtype is None or x.dtype == np.dtype(dtype) else 1


def _scanned(a: np.ndarray, **_: object) -> int:
    return 2 if a.shape[-1] <= 512 else 4  # rows longer than a block are scanned twice


FUNCTIONS: dict[str, tuple[str, Cost]] = {
    # New arrays. An array from the host is one copy to the device.
    "asarray": ("a, dtype=None, order=None, *, copy=None, blocking=False", 1),
    "array": ("obj, dtype=None, copy=True, order='K', subok=False, ndmin=0, *, blocking=False", 1),
    "arange": ("start, stop=None, step=1, dtype=None", 1),
    "empty": ("shape, dtype=float, order='C'", 0),
    "zeros": ("shape, dtype=float, order='C'", 1),
    "ones": ("shape, dtype=float, order='C'", 1),
    "full": ("shape, fill_value, dtype=None, order='C'", 1),
    "zeros_like": ("a, dtype=None, order='K', subok=None, shape=None", 1),
    "ones_like": ("a, dtype=None, order='K', subok=None, shape=None", 1),
    # Views.
    "broadcast_to": ("array, shape", 0),
    "expand_dims": ("a, axis", 0),
    "matrix_transpose": ("x, /", 0),
    "moveaxis": ("a, source, destination", 0),
    "squeeze": ("a, axis=None", 0),
    "swapaxes": ("a, axis1, axis2", 0),
    "reshape": ("a, newshape, order='C', *, copy=None",
                lambda a, newshape, **_: reshaped(a, newshape)),
    # Pieces put together: each piece is copied.
    "concat": ("tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
               lambda tup, **_: len(tup)),
    "stack": ("tup, axis=0, out=None, *, dtype=None, casting='same_kind'",
              lambda tup, **_: len(tup)),
    "repeat": ("a, repeats, axis=None", 1),
    "tile": ("A, reps", 1),
    # Reductions. A mean is a sum and a division.
    "sum": ("a, axis=None, dtype=None, out=None, keepdims=False", 1),
    "max": ("a, axis=None, out=None, keepdims=False", 1),
    "min": ("a, axis=None, out=None, keepdims=False", 1),
    "any": ("a, axis=None, out=None, keepdims=False", 1),
    "all": ("a, axis=None, out=None, keepdims=False", 1),
    "argmax": ("a, axis=None, dtype=None, out=None, keepdims=False", 1),
    "argmin": ("a, axis=None, dtype=None, out=None, keepdims=False", 1),
    "mean": ("a, axis=None, dtype=None, out=None, keepdims=False", 2),
    "var": ("a, axis=None, dtype=None, out=None, ddof=0, keepdims=False", 4),
    "cumsum": ("a, axis=None, dtype=None, out=None", _scanned),
    # Choosing and ordering.
    "where": ("condition, x=None, y=None", lambda condition, **_: 1 + _converted(condition, bool)),
    "clip": ("a, a_min, a_max, out=None", 1),
    "take": ("a, indices, axis=None, out=None", 1),
    "take_along_axis": ("a, indices, axis",
                        lambda a, **_: (a.ndim - 1) + gathered(a.shape, a.ndim)),
    "searchsorted": ("a, v, side='left', sorter=None", 2),
    "sort": ("a, axis=-1, kind=None", sorting),
    "argsort": ("a, axis=-1, kind=None", lambda a, **_: 1 + sorting(a)),
    "partition": ("a, kth, axis=-1", parting),
    "matmul": ("x1, x2, /, out=None, **kwargs", lambda x1, x2, **_: product(x1, x2)),
}  # fmt: skip

METHODS: dict[str, tuple[str, Cost]] = {
    "astype": ("dtype, order='K', casting=None, subok=None, copy=True",
               lambda self, dtype, copy=True, **_: 1 if copy else _converted(self, dtype)),
    "copy": ("order='C'", 1),
    "fill": ("value", 1),
    "reshape": ("*shape, order='C', copy=None", lambda self, shape, **_: reshaped(self, *shape)),
    "ravel": ("order='C'", lambda self, **_: copied(self)),
    "transpose": ("*axes", 0),
    "squeeze": ("axis=None", 0),
    "swapaxes": ("axis1, axis2", 0),
    "sum": ("axis=None, dtype=None, out=None, keepdims=False", 1),
    "mean": ("axis=None, dtype=None, out=None, keepdims=False", 2),
    "max": ("axis=None, out=None, keepdims=False", 1),
    "min": ("axis=None, out=None, keepdims=False", 1),
    "any": ("axis=None, out=None, keepdims=False", 1),
    "all": ("axis=None, out=None, keepdims=False", 1),
    "argmax": ("axis=None, out=None, dtype=None, keepdims=False", 1),
    "cumsum": ("axis=None, dtype=None, out=None", lambda self, **_: _scanned(self)),
}  # fmt: skip


@functools.cache
def signature(parameters: str) -> inspect.Signature:
    """The signature of a function with these parameters.

    Examples
    --------
    >>> str(signature("a, axis=None"))
    '(a, axis=None)'
    """
    return inspect.signature(eval(f"lambda {parameters}: None", {"float": float}))


def reads(shape: tuple[int, ...]) -> int:
    """Launches of a copy to the host."""
    return 1 if math.prod(shape) else 0
