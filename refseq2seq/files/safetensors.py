"""The safetensors format of Hugging Face, which test vectors use too.

    8 bytes     n, an unsigned integer, the length of the header
    n bytes     a JSON object: for each array its dtype, its shape, and the begin and end of its
                bytes, counted from the end of the header; padded with spaces
    the rest    the bytes of the arrays, one after the other, in C order

Everything is little-endian and nothing is compressed. Every byte is part of the header or an array.
"""

import io
import json
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ..backend import TILE, copy_transposed
from .reading import MAX_BYTES, FileError, file_errors, fits, opened, parse_json
from .writing import replacing

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "BOOL": np.dtype("?"),
}
Check = Callable[["Stored", np.ndarray], None]
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WHAT_TO_DO = (
    f"expected {', '.join(DTYPES)} or BF16: widen a narrower float to float32 (F32), which is exact"
)


def write(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write arrays to a file, in the order of the mapping. Each has one of the `DTYPES`."""
    header, data, end = {}, [], 0
    for name, array in arrays.items():
        x = np.asarray(array)
        dtype = x.dtype.newbyteorder("<")
        if dtype not in NAMES:
            raise TypeError(f"{name} has dtype {x.dtype}; {WHAT_TO_DO}")
        data.append(x.astype(dtype).tobytes())
        begin, end = end, end + len(data[-1])
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(x.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(data))


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a file, in the order of their bytes.

    BF16, the upper half of a float32, is read as float32, because NumPy has no such dtype.
    """
    with file_errors(path), opened(path) as file:
        return {name: np.asarray(x) for name, x in stored(file).items()}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An array in an open file. Each conversion to an array of NumPy reads it again.

    The file is not mapped to memory: truncating a mapped file ends the program (SIGBUS), and a
    model must not depend on a file that may be replaced.
    """

    file: io.BufferedReader
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dtype_of_file: np.dtype[Any]  # BF16 is read as integers
    begin: int  # the place of its first byte in the file
    check: Check
    is_transposed: bool = False

    @property
    def T(self) -> "Stored":  # noqa: N802 - as an array of NumPy
        """The transpose of a matrix. It is read in C order too."""
        return replace(self, shape=self.shape[::-1], is_transposed=not self.is_transposed)

    def reshape(self, shape: int) -> "Stored":
        """The same numbers in one row, as of ``reshape(-1)``."""
        return replace(self, shape=(prod(self.shape),))

    def astype(self, dtype: Any, copy: bool = True) -> "Stored":
        """The same numbers, converted when they are read."""
        return replace(self, dtype=np.dtype(dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.file.seek(self.begin)
        if not self.is_transposed:
            return self._next(self.shape).astype(self.dtype, copy=False)
        result = np.empty(self.shape, self.dtype)
        for i in range(0, self.shape[1], TILE):
            columns = result[:, i : i + TILE]
            copy_transposed(self._next(columns.T.shape), columns)
        return result

    def _next(self, shape: tuple[int, ...]) -> np.ndarray:
        """The next numbers of the file."""
        x = np.empty(shape, self.dtype_of_file)
        if self.file.readinto(x.data) != x.nbytes:
            raise FileError(f"{self.file.name}: it ends before the last number of {self.name}")
        if x.dtype == "<u2":
            x = (x.astype("<u4") << 16).view("<f4")
        self.check(self, x)
        return x


def stored(file: io.BufferedReader, check: Check = lambda entry, x: None) -> dict[str, Stored]:
    """The arrays of an open file, in the order of their bytes. Only the header is read here.

    Later each part of an array that is read is passed to ``check``.
    """
    size = os.fstat(file.fileno()).st_size
    n = int.from_bytes(file.read(8), "little")
    if not 0 < n <= min(size - 8, MAX_BYTES):
        raise FileError("not a complete safetensors file: its header is cut off or too long")
    try:
        return _checked(parse_json(file.read(n)), file, size - 8 - n, check)
    except (KeyError, AttributeError, TypeError) as error:
        raise FileError(f"not a complete safetensors file: its header: {error!r}") from error


def _checked(
    header: dict[str, Any], file: io.BufferedReader, n_bytes: int, check: Check
) -> dict[str, Stored]:
    header.pop("__metadata__", None)
    arrays, place, start = {}, 0, file.tell()
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = np.dtype("<u2") if code == "BF16" else DTYPES.get(code)
        if dtype is None:
            raise FileError(f"{name} has dtype {code}; {WHAT_TO_DO}")
        shown = reprlib.repr(shape)
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise FileError(f"{name} must have a shape and offsets of integers >= 0, got {shown}")
        if begin != place or end > n_bytes or not fits(shape, dtype.itemsize, end - begin):
            raise FileError(f"{name} of shape {shown} does not fit bytes {begin} to {end}")
        arrays[name] = Stored(
            file=file,
            name=name,
            shape=tuple(shape),
            dtype=np.dtype("<f4") if code == "BF16" else dtype,
            dtype_of_file=dtype,
            begin=start + begin,
            check=check,
        )
        place = end
    if place != n_bytes:
        raise FileError("not a complete safetensors file: it has bytes that belong to no array")
    return arrays
