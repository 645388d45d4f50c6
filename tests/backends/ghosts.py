"""Would CuPy take these calls? Answered by CuPy itself, on a machine without a device.

A program: it reads a pickled list of `calls.Call`, and writes a list of what is wrong with each
(empty if nothing is) as JSON. Where there is a device it makes no call.

CuPy builds an array over any address, and looks at its arguments before it asks for a device. So
each call is made with arrays over memory of the host, which is not read: a call that CuPy takes
ends at the missing device, any other in a TypeError or its like.
"""

import contextlib
import inspect
import json
import pickle
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from backends.calls import ArrayKind, Call

REFUSALS = (
    TypeError,
    AttributeError,
    ValueError,
    IndexError,
    NotImplementedError,
    AssertionError,  # a fused function, of an array of the host
)


def ghost(cupy: Any, kind: ArrayKind) -> Any:
    """An array of CuPy over the host's memory: all views of it work, nothing else does."""
    extent = sum(abs(s) * (n - 1) for n, s in zip(kind.shape, kind.strides, strict=True) if n)
    owner = np.empty(2 * extent + np.dtype(kind.dtype).itemsize, dtype="uint8")
    memory = cupy.cuda.UnownedMemory(owner.ctypes.data, owner.nbytes, owner, device_id=0)
    start = cupy.cuda.MemoryPointer(memory, extent)  # strides may be negative
    return cupy.ndarray(kind.shape, kind.dtype, start, strides=kind.strides)


def complaint(cupy: Any, call: Call) -> str:
    """Why CuPy refuses the call, or nothing."""
    try:
        if call.how == "function":
            _check_signature(cupy, call)
        with _fusing(cupy) if call.how == "fused" else contextlib.nullcontext():
            call.make(cupy, lambda kind: ghost(cupy, kind))
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"
    except (ImportError, RuntimeError):  # no device, or no libraries for one
        return ""
    return ""


@contextlib.contextmanager
def _fusing(cupy: Any) -> Iterator[None]:
    """Let CuPy write a kernel, for which it wants empty arrays, up to its compilation.

    What is not done to each number by itself it gives to a second, slow way of fusing: refused.
    """

    def host(n_bytes: int) -> Any:
        return ghost(cupy, ArrayKind((n_bytes,), "|u1", (1,))).data

    def refuse(function: Any, name: str) -> None:
        raise TypeError(f"{name} does something else than to each number by itself")

    with mock.patch("cupy._core.new_fusion.Fusion", refuse), cupy.cuda.using_allocator(host):
        yield


def _check_signature(cupy: Any, call: Call) -> None:
    """What CuPy would say only after it has asked for a device."""
    function, names = getattr(cupy, call.name), {name for name, _ in call.kwargs}
    if isinstance(function, cupy.ufunc):
        if unknown := names - {"out", "dtype", "casting"}:
            raise TypeError(f"{sorted(unknown)} are no arguments of an elementwise function")
        if not function.nin <= len(call.args) <= function.nargs:
            raise TypeError(f"{len(call.args)} arguments, not {function.nin}")
        if bad := [x for x in call.args if isinstance(x, ArrayKind) and x.on_host]:
            raise TypeError(f"arrays of the host: {bad}")
    elif inspect.isfunction(function):
        inspect.signature(function).bind(*call.args, **dict(call.kwargs))


def parameters(cupy: Any, name: str) -> str | list[str] | None:
    """What CuPy says of a function's arguments: "ufunc", names, or nothing. See rules.py."""
    function = getattr(cupy, name)
    if isinstance(function, cupy.ufunc):
        return "ufunc"
    return [*inspect.signature(function).parameters] if inspect.isfunction(function) else None


def main() -> None:
    import cupy

    if cupy.is_available():
        sys.exit("there is a device: a call on these arrays would reach it")
    made, names = pickle.load(sys.stdin.buffer)
    complaints = [complaint(cupy, call) for call in made]
    json.dump([complaints, {name: parameters(cupy, name) for name in names}], sys.stdout)


if __name__ == "__main__":
    main()
