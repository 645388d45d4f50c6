"""The number of threads for matrix products; NumPy's BLAS uses one per core by default.

The products of a narrow model are too small to divide. Two threads are about a tenth faster on
idle cores, but take twice the time or more if other programs use the cores, because each product
waits for a thread that has no core (docs/performance.md).
"""

import ctypes
import os
import sys

from ..model import Model

NARROW = 192
"""The largest d_model with one thread by default; from 256 on, two are faster on idle cores."""

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
SETTERS = (  # OpenBLAS in NumPy's wheels, OpenBLAS of the system, MKL
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)


def use_threads(asked: int | None, model: Model) -> None:
    """Use ``asked`` threads. None means one for a narrow model, and the setting of the environment
    or the BLAS for any other model.
    """
    if asked is None:
        width = max(model.config.encoder.d_model, model.config.decoder.d_model)
        if width <= NARROW and not any(name in os.environ for name in VARIABLES):
            _set_threads(1)
    elif not _set_threads(asked):
        raise ValueError(
            f"--threads {asked}: this NumPy's BLAS reads its number of threads only from the "
            f"environment: set OMP_NUM_THREADS={asked} instead"
        )


def _set_threads(n: int) -> bool:
    """Set the number of threads of NumPy's BLAS; False if the BLAS has no such function."""
    module = sys.modules["numpy._core._multiarray_umath"]
    library = ctypes.CDLL(module.__file__)  # also finds functions of the libraries it links to
    for name in SETTERS:
        if hasattr(library, name):
            getattr(library, name)(ctypes.c_int(n))
            return True
    return False
