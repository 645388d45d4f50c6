"""The file format of the vectors: safetensors, read and written from its description.

    8 bytes     n, an unsigned integer, the length of the header
    n bytes     a JSON object: per array its dtype, its shape, and where its bytes begin and end,
                counted from the end of the header; spaces at its end
    the rest    the bytes of the arrays, one after the other, in C order

Everything is little-endian, nothing is compressed, no byte is without a meaning.
"""

import json
import os
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WHAT_TO_DO = (
    f"the format has {', '.join(DTYPES)}: widen any other float, such as BF16, to float32 (F32), "
    "which holds it exactly"
)


def write(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write the arrays to a file, in their order.

    Raises
    ------
    TypeError
        If the dtype of an array is none of `DTYPES`.
    """
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
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(data))


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a file, in the order of their bytes.

    Raises
    ------
    ValueError
        If the file is not of this format, or not whole, or the dtype of an array is none of
        `DTYPES`.
    """
    with open(path, "rb") as file:
        content = file.read()
    n = int.from_bytes(content[:8], "little")
    data = content[8 + n :]
    if len(content) < 8 + n or n == 0:
        raise ValueError(f"{path} is not a whole safetensors file: its header is cut off")
    try:
        header = json.loads(content[8 : 8 + n])
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        others = [(name, e["dtype"]) for name, e in entries if e["dtype"] not in DTYPES]
        arrays = {} if others else {name: _array(name, entry, data) for name, entry in entries}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    for name, dtype in others:
        raise ValueError(f"{path}: {name} has dtype {dtype}; {WHAT_TO_DO}")
    if sum(x.nbytes for x in arrays.values()) != len(data):
        raise ValueError(f"{path} is not a whole safetensors file: it has bytes of no array")
    return arrays


def _array(name: str, entry: dict[str, Any], data: bytes) -> np.ndarray:
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} cannot lie at {begin} to {end}")
    return np.frombuffer(data[begin:end], dtype=dtype).reshape(shape)
