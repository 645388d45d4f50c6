"""The arrays of the double: what `cupy.ndarray` lets one do, and no more."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from backends import rules


class DeviceArray:
    """What `cupy.ndarray` lets one do, for the methods in `rules.METHODS`."""

    __array_ufunc__ = None  # np.exp(x) and host * x are refused
    __hash__ = None  # type: ignore[assignment] # as CuPy's, of no dimension too

    def __init__(self, device: Any, host: np.ndarray) -> None:
        self._device, self._host = device, host

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    shape = property(lambda self: self._layout.shape)
    size = property(lambda self: self._layout.size)
    nbytes = property(lambda self: self._layout.nbytes)
    strides = property(lambda self: self._layout.strides)
    flags = property(lambda self: self._layout.flags)
    T = property(lambda self: DeviceArray(self._device, self._layout.T))
    mT = property(lambda self: DeviceArray(self._device, self._layout.mT))  # noqa: N815

    @property
    def _layout(self) -> np.ndarray:
        """What a kernel that is being made cannot know."""
        self._device.refuse_in_a_kernel("a shape")
        return self._host

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__") or name not in rules.METHODS:
            raise AttributeError(f"the double of CuPy knows no array method {name!r}: see rules.py")
        return lambda *args, **kwargs: self._device.run("method", name, (self, *args), kwargs)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("iterating over a device array launches kernels one by one")

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to "
            "construct a NumPy array explicitly."
        )

    def get(self) -> np.ndarray:
        return self._device.read(self._host)

    def item(self) -> Any:
        return self._device.read(self._host).item()

    def __bool__(self) -> bool:
        return bool(self._device.read(self._host))

    def __int__(self) -> int:
        return int(self._device.read(self._host))

    def __float__(self) -> float:
        return float(self._device.read(self._host))

    def __index__(self) -> int:
        return operator.index(self._device.read(self._host))

    def __getitem__(self, index: Any) -> "DeviceArray":
        return self._device.take(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._device.put(self, index, value)


DeviceArray.__module__ = "cupy"


def _add_operators() -> None:
    def forward(name: str) -> Callable[..., Any]:
        return lambda *args: args[0]._device.run("operator", name, args, {})

    def reflected(name: str) -> Callable[..., Any]:
        return lambda self, other: self._device.run("operator", name, (other, self), {})

    def in_place(name: str) -> Callable[..., Any]:
        return lambda self, other: self._device.run_in_place(name, self, other)

    for name, ufunc in rules.OPERATORS.items():
        bare = name.strip("_")
        setattr(DeviceArray, f"__{bare}__", forward(name))
        if rules.UFUNCS.get(ufunc) != 1 and bare not in ("eq", "ne", "lt", "le", "gt", "ge"):
            setattr(DeviceArray, f"__r{bare}__", reflected(name))
            setattr(DeviceArray, f"__i{bare}__", in_place(f"i{bare}"))


_add_operators()
