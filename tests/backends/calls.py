"""A call of the array library, written down: what was called, with arrays of which kind.

The double writes calls down as it makes them; `ghosts.py` makes them again with CuPy's arrays.
"""

import operator
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ArrayKind:
    """All of an array but its numbers."""

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    on_host: bool = False


@dataclass(frozen=True)
class Call:
    """``how`` is "function", "method", "operator" or "fused"; arguments are `ArrayKind` or values.

    A fused call names a function of the package that is made into one kernel.
    """

    how: str
    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        given = [*map(_shown, self.args), *(f"{k}={_shown(v)}" for k, v in self.kwargs)]
        return f"{self.how} {self.name}({', '.join(given)})"

    def make(self, library: Any, array: Callable[[ArrayKind], Any]) -> Any:
        """Call it again, in ``library``, with arrays that ``array`` makes of their kinds."""
        args = [_unfrozen(x, array) for x in self.args]
        kwargs = {name: _unfrozen(x, array) for name, x in self.kwargs}
        if self.how == "function":
            return getattr(library, self.name)(*args, **kwargs)
        if self.how == "method":
            return getattr(args[0], self.name)(*args[1:], **kwargs)
        if self.how == "fused":
            return pkgutil.resolve_name(self.name)(*args)
        return getattr(operator, self.name)(*args)


def written_down(how: str, name: str, args: Any, kwargs: Any, kind: Callable[[Any], Any]) -> Call:
    """The call of these arguments; ``kind`` gives the `ArrayKind` of an array, else None."""
    frozen = tuple((key, _frozen(x, kind)) for key, x in sorted(kwargs.items()))
    return Call(how, name, tuple(_frozen(x, kind) for x in args), frozen)


def kind_of(x: Any) -> ArrayKind | None:
    """The kind of a NumPy array, which stands for one of the device."""
    return ArrayKind(x.shape, x.dtype.str, x.strides) if isinstance(x, np.ndarray) else None


@dataclass(frozen=True)
class _Other:
    """A container or a slice of arguments, or a dtype: what cannot be hashed, or is no value."""

    type: type
    parts: tuple[Any, ...]


def _frozen(x: Any, kind: Callable[[Any], Any]) -> Any:
    if (array := kind(x)) is not None:
        return array
    if isinstance(x, np.dtype):
        return _Other(np.dtype, (x.str,))
    if isinstance(x, list | tuple):
        return _Other(type(x), tuple(_frozen(part, kind) for part in x))
    if isinstance(x, slice):
        return _Other(slice, (x.start, x.stop, x.step))
    return x


def _unfrozen(x: Any, array: Callable[[ArrayKind], Any]) -> Any:
    if isinstance(x, ArrayKind):
        return np.zeros(x.shape, x.dtype) if x.on_host else array(x)
    if not isinstance(x, _Other):
        return x
    parts = [_unfrozen(part, array) for part in x.parts]
    return x.type(parts) if x.type in (list, tuple) else x.type(*parts)


def _shown(x: Any) -> str:
    if isinstance(x, ArrayKind):
        return f"{'host ' * x.on_host}{np.dtype(x.dtype)}{list(x.shape)}"
    if isinstance(x, _Other):
        return f"{x.type.__name__}({', '.join(map(_shown, x.parts))})"
    return repr(x)
