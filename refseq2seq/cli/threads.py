"""How many threads multiply matrices: NumPy's BLAS takes one for each core.

The products of a narrow model are too small to share: two threads gain about a tenth on idle
cores, and take twice the time or more beside other work, where each product waits for a thread
that has no core (docs/performance.md).
"""

import ctypes
import os
import sys

from ..model import Model

NARROW = 192
"""The largest width that uses one thread by default; from 256 on, two are faster on idle cores."""

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
SETTERS = (  # of the OpenBLAS in NumPy's wheels, of one of the system, of MKL
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)


def use_threads(asked: int | None, model: Model) -> None:
    """Use as many threads as ``asked``; by default one for a narrow model, and what the
    environment or the BLAS says for another.

    Raises
    ------
    ValueError
        If a number is given and the BLAS has no function that sets it.
    """
    if asked is None:
        width = max(model.config.encoder.d_model, model.config.decoder.d_model)
        if width <= NARROW and not any(name in os.environ for name in VARIABLES):
            _set_threads(1)
    elif not _set_threads(asked):
        raise ValueError(
            f"--threads {asked}: this NumPy's BLAS takes its number of threads from the "
            f"environment only: set OMP_NUM_THREADS={asked} instead"
        )


def _set_threads(n: int) -> bool:
    """Set the number of threads of NumPy's BLAS; False if the BLAS has no such function."""
    module = sys.modules["numpy._core._multiarray_umath"]
    library = ctypes.CDLL(module.__file__)  # looks into what it is linked with, too
    for name in SETTERS:
        if hasattr(library, name):
            getattr(library, name)(ctypes.c_int(n))
            return True
    return False
