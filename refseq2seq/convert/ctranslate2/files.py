"""The file ``model.bin`` of CTranslate2, version 6.

    uint32      6, the version
    string      the name of the specification
    uint32      its revision
    uint32      the number of variables, and for each:
        string      its name
        uint8       the number of its axes, and the size of each as uint32
        uint8       its dtype, an index of `DTYPES`
        uint32      the number of its bytes, and the bytes, in C order
    uint32      the number of aliases, and for each:
        string      a name
        string      the name of the variable that it stands for

A string is a uint16, the number of its bytes, and the bytes, of which the last is zero. Everything
is little-endian. A weight w of int8 or int16 stands for the numbers w / w_scale; int8 has one scale
for each row, or for each output of a convolution, and int16 one for all.
"""

import os
from pathlib import Path
from typing import IO

import numpy as np

from ...checks import UnsupportedFeature
from ...files.reading import FileError, fits, opened

VERSION = 6
SPECS = {"TransformerSpec": range(5, 8), "WhisperSpec": range(3, 4)}  # and their revisions
DTYPES = ("<f4", "i1", "<i2", "<i4", "<f2", "<u2")
BFLOAT16 = 5
"""The upper halves of float32, which are read as integers, since NumPy has no such dtype."""

MAX_ALIASED = 8
"""The maximum number of elements of aliases, in multiples of the elements in the file."""


def has_header(path: Path) -> bool:
    """Whether a file begins with a version up to 255, unlike a pickle or a zip file."""
    if not path.is_file():
        return False
    with opened(path) as file:
        return 0 < int.from_bytes(file.read(4), "little") < 256


def read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The specification's name and the variables, aliases included. Weights are float32."""
    with opened(path) as file:
        reader = _Reader(file)
        if (version := reader.integer(4)) != VERSION:
            raise UnsupportedFeature(
                f"version {version} of model.bin: only {VERSION} is read, which CTranslate2 "
                "writes since 3.0; convert the model again"
            )
        spec, revision = reader.string(), reader.integer(4)
        if revision not in SPECS.get(spec, ()):
            known = ", ".join(f"{name} of {list(of)}" for name, of in SPECS.items())
            raise UnsupportedFeature(
                f"{spec} of revision {revision}: supported are the encoder-decoders {known}"
            )
        stored: dict[str, np.ndarray] = {}
        for _ in range(reader.integer(4)):
            name = reader.string()
            if name in stored:
                raise FileError(f"it has two variables {name}")
            stored[name] = reader.array(name)
        stored = _dequantised(stored)
        arrays = dict(stored)
        for _ in range(reader.integer(4)):
            alias, name = reader.string(), reader.string()
            if alias in arrays or name not in stored:
                raise FileError(f"its alias {alias} of {name} is not a new name of a variable")
            arrays[alias] = stored[name]  # they share memory until they are converted
        if reader.left:
            raise FileError(f"it has {reader.left} bytes that belong to no variable")
    n_stored, n_elements = (sum(x.size for x in of.values()) for of in (stored, arrays))
    if n_elements > (1 + MAX_ALIASED) * n_stored:
        raise FileError(f"its aliases stand for {n_elements} numbers, but it has {n_stored}")
    return spec, arrays


class _Reader:
    """Reads a file from its beginning. ``left`` is the number of bytes that are not read yet."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, os.fstat(file.fileno()).st_size

    def bytes(self, n: int) -> bytes:
        content = self.file.read(min(n, self.left))
        if len(content) < n:
            raise FileError(f"it is cut off: {n} bytes must follow, but there are {self.left}")
        self.left -= n
        return content

    def integer(self, n_bytes: int) -> int:
        return int.from_bytes(self.bytes(n_bytes), "little")

    def string(self) -> str:
        content = self.bytes(self.integer(2))
        if content[-1:] != b"\0":
            raise FileError("it has a name that does not end with a zero byte")
        return content[:-1].decode()

    def array(self, name: str) -> np.ndarray:
        shape = [self.integer(4) for _ in range(self.integer(1))]
        code, n_bytes = self.integer(1), self.integer(4)
        if code >= len(DTYPES):
            raise FileError(f"{name} has dtype {code}; expected 0 to {len(DTYPES) - 1}")
        dtype = np.dtype(DTYPES[code])
        if not fits(shape, dtype.itemsize, n_bytes):
            raise FileError(f"{name} of shape {shape} and {dtype} cannot have {n_bytes} bytes")
        x = np.frombuffer(self.bytes(n_bytes), dtype=dtype).reshape(shape)
        return (x.astype("<u4") << 16).view("<f4") if code == BFLOAT16 else x


def _dequantised(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Floats as float32; a quantised weight as w * (1 / scale), as CTranslate2 computes it."""
    arrays = {
        name: x.astype("<f4", copy=False) if x.dtype.kind == "f" else x
        for name, x in stored.items()
    }
    for name, x in stored.items():
        if x.ndim == 0 or x.dtype.kind == "f":
            continue
        scale = stored.get(f"{name}_scale")
        if scale is None or x.dtype == "int32":
            raise UnsupportedFeature(
                f"{name} of {x.dtype}: only int8 and int16 weights with a scale are supported, "
                "which CTranslate2's converters write, not those of AWQ"
            )
        expected = x.shape[:1] if x.dtype == "int8" else ()
        if x.ndim not in (2, 3) or scale.shape != expected or scale.dtype != "float32":
            raise FileError(
                f"{name}_scale of {scale.dtype}, shape {scale.shape}, does not fit {name}"
            )
        with np.errstate(all="ignore"):  # infinity is reported by name below
            arrays[name] = x.astype("<f4") * (
                np.float32(1) / scale.reshape(-1, *[1] * (x.ndim - 1))
            )
        del arrays[f"{name}_scale"]
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise FileError(f"{name} contains numbers that are NaN or infinite")
    return arrays
