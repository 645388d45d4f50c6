"""A double of CuPy: NumPy's numbers under CuPy's rules, and a count of what a device would do.

    device = Device()
    with device.installed():                 # import cupy now gives device.cupy
        rs.generate(model.to("cupy"), ...)
    device.launches.total(), device.reads

It knows the functions in `rules` and refuses all others. It refuses what CuPy refuses: arrays of
the host among those of the device, conversion without ``get``. It refuses too what CuPy lets
pass and should not: indices from the host (a hidden copy in each step), duplicate targets of an
assignment (any may win), NumPy's functions on the device's arrays. Out-of-range indices wrap,
as CuPy's do, and memory that was not written is NaN.
"""

import contextlib
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from backends import calls, rules
from backends.arrays import DeviceArray


class Namespace(ModuleType):
    """The module cupy: what `rules` knows, and no more."""

    __version__ = "14 (a double)"

    def __init__(self, device: "Device") -> None:
        super().__init__("cupy")
        self._device = device

    def is_available(self) -> bool:
        return True

    def fuse(self, kernel_name: str) -> Callable[..., Callable[..., Any]]:
        """One kernel of a function of each number by itself."""
        return lambda function: lambda *args: self._device.run_fused(function, args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._device.use(name, sys._getframe(1))
        if name in rules.ATTRIBUTES:
            return getattr(np, name)
        if name not in rules.UFUNCS and name not in rules.FUNCTIONS:
            raise AttributeError(f"the double of CuPy knows no function {name!r}: see rules.py")
        return lambda *args, **kwargs: self._device.run("function", name, args, kwargs)


class Device:
    """Where arrays live, what was done to them, and how often.

    Parameters
    ----------
    jitter : float
        A unit of rounding. Results get random errors of this size, products more, as a sum of
        their terms in another order would: results that stay the same need no equal bits.
    seed : int
        Of those errors.
    records : bool
        Whether to fill ``calls`` and ``sites``, which takes its time.

    Attributes
    ----------
    cupy : Namespace
    launches : Counter of function names
        What was put into the device's queue.
    reads : int
        How often the host waited for the device.
    calls : dict with `calls.Call` as keys, in order
    sites : set of (file, function, name)
        Where in the code which name of the namespace was used.
    fusing : bool
        Whether a function is being made into one kernel. It may do to its arrays what is done to
        each number by itself, and not look at their shape.
    """

    def __init__(self, jitter: float = 0.0, seed: int = 0, records: bool = False) -> None:
        self.cupy = Namespace(self)
        self.launches: Counter[str] = Counter()
        self.reads = 0
        self.calls: dict[calls.Call, None] = {}
        self.sites: set[tuple[str, str, str]] = set()
        self.fusing = False
        self._records = records
        self._jitter, self._random = jitter, np.random.default_rng(seed)

    @contextlib.contextmanager
    def installed(self) -> Iterator[ModuleType]:
        """Let ``import cupy`` give this double."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "cupy", self.cupy)
            yield self.cupy

    def use(self, name: str, frame: Any) -> None:
        """Note that the code of ``frame`` has used a name of the namespace."""
        if self._records:
            self.sites.add((*_place(frame), name))

    def run_fused(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """All that the function does, in one kernel; within another, a part of that one."""
        if self.fusing:
            return function(*args)
        if bad := [x for x in args if not isinstance(x, DeviceArray | int | float | None)]:
            raise TypeError(f"a kernel takes arrays of the device, numbers and None: {bad}")
        self._write_down("fused", f"{function.__module__}:{function.__qualname__}", args, {})
        self.fusing = True
        try:
            result = function(*args)
        finally:
            self.fusing = False
        self._launch("fused", 1)
        return result

    def run(self, how: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call, checked, written down, counted and made."""
        self._write_down(how, name, args, kwargs)
        target = rules.OPERATORS[name] if how == "operator" else name
        if target not in rules.UFUNCS and target not in ("where", "astype"):
            self.refuse_in_a_kernel(target)
        creates = target in ("asarray", "array")
        given = [self._on_host(x, creates) for x in args]
        options = {key: self._on_host(x, creates) for key, x in kwargs.items()}
        cost = self._cost(how, target, given, options)
        if creates and isinstance(args[0], DeviceArray):
            return args[0]
        function = getattr(given[0], name) if how == "method" else getattr(np, target)
        with np.errstate(all="ignore"):  # a device does not warn
            result = function(*given[how == "method" :], **options)
        self._launch(target, cost)
        if self._jitter and target not in rules.EXACT and np.asarray(result).dtype.kind == "f":
            result = result + self._jitter * self._errors(target, result, given)
        return self._result(target, result, given)

    def _errors(self, name: str, result: Any, given: list[Any]) -> Any:
        """Errors of rounding, in units. Those of a product's sums add up as at random."""
        size = np.where(np.isfinite(result), np.abs(result), 0)
        if name == "matmul":
            a, b = given
            size = size + np.sqrt(0.1 * a.shape[-1] * ((a * a) @ (b * b)))
        return size * self._random.uniform(-1, 1, np.shape(result))

    def run_in_place(self, name: str, x: DeviceArray, other: Any) -> DeviceArray:
        """``x += other`` and its like: one kernel that writes to x."""
        self._write_down("operator", name, (x, other), {})
        host, value = self._on_host(x), self._on_host(other)
        with np.errstate(all="ignore"):
            getattr(operator, name)(host, value)
        self._launch(name, 1)
        return x

    def read(self, host: np.ndarray) -> np.ndarray:
        """A copy on the host, for which it waits."""
        self.refuse_in_a_kernel("reading")
        self.reads += 1
        self._launch("get", rules.copied(host) + rules.reads(host.shape))
        return host.copy()

    def take(self, x: DeviceArray, index: Any) -> DeviceArray:
        self.refuse_in_a_kernel("indexing")
        self._write_down("operator", "getitem", (x, index), {})
        places = self._index(x, index)
        n_indices = sum(isinstance(place, np.ndarray) for place in places)
        self._launch("getitem", rules.gathered(x.shape, n_indices))
        return self._wrap(x._host[places])

    def put(self, x: DeviceArray, index: Any, value: Any) -> None:
        self.refuse_in_a_kernel("assignment")
        self._write_down("operator", "setitem", (x, index, value), {})
        if isinstance(value, np.ndarray | list) and np.ndim(value):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        places = self._index(x, index)
        arrays = [place for place in places if isinstance(place, np.ndarray)]
        if arrays:
            rows = np.stack(np.broadcast_arrays(*arrays)).reshape(len(arrays), -1)
            if len(np.unique(rows, axis=1).T) != rows.shape[1]:
                raise ValueError("an assignment to duplicate indices: any of them may win")
        self._launch("setitem", max(1, rules.gathered(x.shape, len(arrays))))
        x._host[places] = self._on_host(value)

    def refuse_in_a_kernel(self, what: str) -> None:
        if self.fusing:
            raise NotImplementedError(f"{what} has no place in a kernel for each number by itself")

    def _launch(self, name: str, cost: int) -> None:
        if not self.fusing:
            self.launches[name] += cost

    def _write_down(self, how: str, name: str, args: Any, kwargs: Any) -> None:
        if self._records and not self.fusing:
            self.calls.setdefault(calls.written_down(how, name, args, kwargs, _kind))

    def _cost(self, how: str, name: str, args: list[Any], kwargs: dict[str, Any]) -> int:
        """Check the call against CuPy's signature, and give what it launches."""
        if name in rules.UFUNCS:
            n_in = rules.UFUNCS[name]
            if unknown := kwargs.keys() - {"out", "dtype", "casting"}:
                raise TypeError(f"Wrong arguments {sorted(unknown)} for the ufunc {name}")
            if not n_in <= len(args) <= n_in + 1:
                raise TypeError(f"Wrong number of arguments for {name}")
            return 1
        parameters, cost = (rules.METHODS if how == "method" else rules.FUNCTIONS)[name]
        parameters = f"self, {parameters}" if how == "method" else parameters
        bound = rules.signature(parameters).bind(*args, **kwargs).arguments
        if isinstance(cost, int):
            return cost
        return cost(**bound)

    def _on_host(self, x: Any, creates: bool = False) -> Any:
        """What NumPy is given for an argument."""
        if isinstance(x, DeviceArray):
            if x._device is not self:
                raise ValueError("an array of another device")
            return x._host
        if isinstance(x, np.ndarray) and not creates:
            raise TypeError(f"Unsupported type {type(x)}: an array of the host")
        if isinstance(x, list | tuple):
            return type(x)(self._on_host(part, creates) for part in x)
        return x

    def _index(self, x: DeviceArray, index: Any) -> tuple[Any, ...]:
        """An index for NumPy, with integers wrapped as CuPy wraps them."""
        index = index if isinstance(index, tuple) else (index,)
        n_places = sum(place is not None and place is not Ellipsis for place in index)
        places, axis = [], 0
        for place in index:
            if isinstance(place, list | np.ndarray):
                raise TypeError("an index from the host: CuPy would copy it in each call")
            if not isinstance(place, DeviceArray):
                places.append(place)
            elif place.dtype == bool:
                self.reads += 1  # how many are True decides the shape
                places.append(place._host)
            else:
                places.append(place._host % x.shape[axis])
            axis += 0 if place is None else x.ndim - n_places if place is Ellipsis else 1
        return tuple(places)

    def _result(self, name: str, result: Any, given: list[Any]) -> Any:
        if isinstance(result, bool | np.dtype):
            return result
        host = np.array(result) if name in ("asarray", "array") else np.asarray(result)
        if name == "empty":
            host.fill(np.nan if host.dtype.kind == "f" else np.iinfo(np.int8).max)
        inputs = [x for part in given for x in (part if isinstance(part, list | tuple) else [part])]
        is_view = any(isinstance(x, np.ndarray) and np.may_share_memory(x, host) for x in inputs)
        return self._wrap(host if is_view else np.asarray(host, order="C"))

    def _wrap(self, host: Any) -> DeviceArray:
        return DeviceArray(self, np.asarray(host))


def _kind(x: Any) -> calls.ArrayKind | None:
    if isinstance(x, DeviceArray):
        return calls.ArrayKind(x.shape, x.dtype.str, x.strides)
    if isinstance(x, np.ndarray):
        return calls.ArrayKind(x.shape, x.dtype.str, x.strides, on_host=True)
    return None


def _place(frame: Any) -> tuple[str, str]:
    """The file and the function that run in a frame; what is in a lambda counts as its owner's."""
    parts = frame.f_code.co_qualname.split(".")
    named = [part for part in parts if not part.startswith("<")]
    return frame.f_code.co_filename, ".".join(named)
