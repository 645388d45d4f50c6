"""Functions that cannot be fused into one elementwise kernel: for the guards to find.

NumPy takes them all; `ghosts.py` asks CuPy by their names.
"""

import numpy as np

from refseq2seq.backend import array_namespace, elementwise


@elementwise
def length(x):
    return x * x.shape[-1]


@elementwise
def total(x):
    return x / x.sum()


@elementwise
def row_total(x):
    return x / array_namespace(x).sum(x, axis=-1, keepdims=True)


@elementwise
def place(x):
    return x[..., :1] + x


@elementwise
def assigned(x):
    y = x + 0
    y[..., 0] = 1
    return y


@elementwise
def turned(x):
    return x.reshape(-1)


@elementwise
def product(x):
    return x @ x


@elementwise
def decided(x):
    return x if x.max() > 0 else -x


@elementwise
def constant(x):
    return x + np.ones(3)


def with_the_hosts(x):
    return shifted(x, np.ones(3))


@elementwise
def shifted(x, by):
    return x + by


NAMES = ["length", "total", "row_total", "place", "assigned", "turned", "product", "decided",
         "constant", "with_the_hosts"]  # fmt: skip
