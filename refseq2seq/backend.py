"""NumPy and CuPy: the module that selects between them.

There is no global switch. A function gets the array namespace from its arguments,
``xp = array_namespace(x)``, and uses only functions that NumPy 2 and CuPy 14 share.
"""

from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import Any

import numpy as np

Array = Any
"""A NumPy or CuPy array. Shapes and dtypes are documented where an array is used."""

PIECE = 16384  # elements: 128 KiB of float64
TILE = 256  # rows and columns: 256 KiB of float32


class BackendError(RuntimeError):
    """The CuPy backend was requested but cannot be used here."""


class CuPyNotInstalled(BackendError):
    """CuPy cannot be imported."""


class NoCudaDevice(BackendError):
    """CuPy is installed but finds no usable CUDA device."""


class CudaLibrariesMissing(BackendError):
    """CuPy finds a device but not the CUDA libraries that products and kernels need."""


def array_namespace(x: Array) -> ModuleType:
    """The array namespace of ``x``: numpy, cupy, or the result of ``x.__array_namespace__()``.

    Raises
    ------
    TypeError
        If ``x`` is not an array of a known library.

    Examples
    --------
    >>> array_namespace(np.zeros(2)).__name__
    'numpy'
    """
    if isinstance(x, np.ndarray):
        return np
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    if _is_cupy(x):  # CuPy 14 has no __array_namespace__
        import cupy

        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}")


def to_numpy(x: Array) -> np.ndarray:
    """``x`` as a plain NumPy array on the host. A device array is waited for and copied."""
    return x.get() if _is_cupy(x) else np.asarray(x)


def asarray_like(x: Any, like: Array) -> Array:
    """``x`` as an array of the backend, the type and the dtype of ``like``."""
    result = array_namespace(like).asarray(x, dtype=like.dtype)
    return result.view(type(like)) if isinstance(like, np.ndarray) else result


def c_ordered(x: Any) -> np.ndarray:
    """A copy in C order of a NumPy array, or of what NumPy makes an array of."""
    if not (isinstance(x, np.ndarray) and x.ndim == 2 and x.flags.fnc):
        return np.array(x, order="C")
    result = np.empty(x.shape, x.dtype)
    copy_transposed(x.T, result)
    return result


def outline(x: Any) -> np.ndarray:
    """Zeros of the shape and dtype of ``x`` that take no memory."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def copy_transposed(x: np.ndarray, result: np.ndarray) -> None:
    """``result[:] = x.T`` for matrices in C order, in tiles that stay in the processor's cache.

    NumPy alone takes ten times as long. The rows of the buffer are longer than those of a tile:
    numbers whose addresses differ by a power of two share a few places of the cache.
    """
    buffer = np.empty((TILE, TILE + 4), x.dtype)
    for i in range(0, x.shape[0], TILE):
        for j in range(0, x.shape[1], TILE):
            tile = x[i : i + TILE, j : j + TILE]
            copy = buffer[: tile.shape[0], : tile.shape[1]]
            copy[...] = tile
            result[j : j + TILE, i : i + TILE] = copy.T


def freeze(*arrays: Any) -> None:
    """Make the NumPy arrays among the arguments read-only."""
    for x in arrays:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False


def read(first: Array, *others: Array) -> list[np.ndarray]:
    """Arrays of one shape as float64 on the host, read from a device in one copy and one wait."""
    xp = array_namespace(first)
    if xp is np:
        return [np.asarray(x, dtype=np.float64) for x in (first, *others)]
    return list(to_numpy(xp.stack([first.astype("float64"), *others])))


def to_cupy(x: Array) -> Array:
    """``x`` as a CuPy array on the current device.

    Raises
    ------
    CuPyNotInstalled, NoCudaDevice, CudaLibrariesMissing
        Each message names the cure.
    """
    return _usable_cupy().asarray(x)


def widened(function: Callable[..., Array]) -> Callable[..., Array]:
    """Decorator for functions of an array: float16 is computed in float32 and rounded once.

    float16 has the maximum 65504 and 11 significant bits: intermediate squares, sums and
    exponentials can exceed its range although the result does not.
    """

    @wraps(function)
    def apply(x: Array, *others: Any, **named: Any) -> Array:
        if x.dtype != "float16":
            return function(x, *others, **named)
        return function(at_least_float32(x), *others, **named).astype(x.dtype)

    return apply


def at_least_float32(x: Array) -> Array:
    """float16 as float32, which represents it exactly; wider dtypes unchanged."""
    return x.astype("float32") if x.dtype == "float16" else x


def elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    """Decorator for elementwise functions of an array, and of others that broadcast to it.

    A formula of many operations allocates as many temporary arrays and, on a device, launches
    as many kernels, each of which costs more to launch than to run. CuPy fuses the formula into
    one kernel. NumPy processes a large array in pieces, so that the temporary arrays are small
    and stay in the processor's cache; with other arguments, which broadcast, it does not.
    """

    @cache
    def kernel(cupy: ModuleType) -> Callable[..., Array]:
        return cupy.fuse(kernel_name=f"fused_{function.__name__}")(function)

    @wraps(function)
    def apply(x: Array, *others: Array | float | None) -> Array:
        if type(x) is np.ndarray:
            if others or x.size <= PIECE:
                return function(x, *others)
            return _in_pieces(function, x)
        if _is_cupy(x):
            return kernel(array_namespace(x))(x, *others)
        return function(x, *others)

    return apply


def _in_pieces(function: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1)
    first = function(flat[:PIECE])
    result = np.empty(x.shape, first.dtype)
    pieces = result.reshape(-1)
    pieces[:PIECE] = first
    for begin in range(PIECE, x.size, PIECE):
        pieces[begin : begin + PIECE] = function(flat[begin : begin + PIECE])
    return result


def _is_cupy(x: Array) -> bool:
    return type(x).__module__.partition(".")[0] == "cupy"


def _usable_cupy() -> ModuleType:
    try:
        import cupy
    except ImportError as error:
        raise CuPyNotInstalled(
            "the cupy backend needs CuPy: pip install 'refseq2seq[cuda12]' or "
            f"'refseq2seq[cuda13]', whichever nvidia-smi shows ({error})"
        ) from error
    if not cupy.is_available():
        raise NoCudaDevice(
            f"CuPy {cupy.__version__} is installed but finds no usable CUDA device: "
            f"{_why_no_device(cupy)}. Install or update the NVIDIA driver, or stay with numpy"
        )
    try:
        probe = cupy.ones((2, 2))
        cupy.exp(probe @ probe)
    except Exception as error:  # ImportError without cuBLAS, RuntimeError without NVRTC, ...
        raise CudaLibrariesMissing(
            f"CuPy {cupy.__version__} finds a device but cannot compute on it. The CUDA "
            "libraries that it needs (cuBLAS, NVRTC) come with pip install 'refseq2seq[cuda12]' "
            f"or 'refseq2seq[cuda13]', or with the CUDA toolkit ({str(error).strip()})"
        ) from error
    return cupy


def _why_no_device(cupy: ModuleType) -> str:
    try:
        return f"it counts {cupy.cuda.runtime.getDeviceCount()} devices"
    except RuntimeError as error:  # cudaErrorInsufficientDriver and its relatives
        return str(error)
