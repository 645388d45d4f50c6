"""The ``.npz`` files of NumPy, zip files of ``.npy`` entries; files are untrusted when read.

Entries are stored without compression, so that the size of a file limits the memory of its
arrays. Their headers must have the one form that NumPy writes, and are never evaluated. Nothing
is unpickled.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from .reading import MAX_BYTES, FileError, fits, opened
from .writing import replacing

MAX_ENTRIES = 2**16
"""The maximum number of entries of a file: a large model has some thousands."""

_START = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': '([^']*)', 'fortran_order': (True|False), "
    r"'shape': (\((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?\)), \} *\n"
)
_DTYPES = {np.dtype(order + code).str for code in "?bBhHiIqQefdFD" for order in "<>"}


@dataclass(frozen=True)
class Entry:
    """One entry of an archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self) -> bytes:
        """The content, of at most `MAX_BYTES` bytes."""
        if self.info.file_size > MAX_BYTES:
            raise FileError(f"{self.info.filename} is larger than {MAX_BYTES:,} bytes")
        return self.archive.read(self.info)

    def array(self, values: bool = True) -> np.ndarray:
        """The array of an ``.npy`` entry; its dtype and shape are checked before it is read.

        Without ``values``, it is not read: the zeros of the result take no memory.
        """
        name = self.info.filename.removesuffix(".npy")
        with self.archive.open(self.info) as member:
            start = member.read(10)
            header = member.read(int.from_bytes(start[8:], "little")).decode("latin-1")
            match = _HEADER.fullmatch(header)
            if start[:8] != _START or match is None:
                raise FileError(f"{name} has no .npy header of version 1.0")
            if match[1] not in _DTYPES:
                raise FileError(f"{name} must contain numbers, got dtype {match[1]!r}")
            dtype, shape = np.dtype(match[1]), [int(n) for n in re.findall("[0-9]+", match[3])]
            n_bytes = self.info.file_size - len(start) - len(header)
            if not fits(shape, dtype.itemsize, n_bytes):
                raise FileError(f"{name} has {n_bytes} bytes, which do not fit shape {match[3]}")
            order: Literal["F", "C"] = "F" if match[2] == "True" else "C"
            if not values:
                return np.broadcast_to(np.zeros((), dtype), shape)
            x, n = np.empty(prod(shape), dtype), 2**18  # a piece stays in the processor's cache
            for i in range(0, x.size, n):
                x[i : i + n] = np.frombuffer(member.read(n * dtype.itemsize), dtype)
            return x.reshape(shape, order=order)


@contextmanager
def entries(path: str | os.PathLike[str]) -> Iterator[dict[str, Entry]]:
    """The entries of a zip file by name; they are uncompressed, unique and do not overlap."""
    with opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield _sound_entries(archive, os.fstat(file.fileno()).st_size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise FileError(f"not a complete zip file: {error!r:.500}") from error


def _sound_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, Entry]:
    if len(archive.infolist()) > MAX_ENTRIES:
        raise FileError(f"it has more than {MAX_ENTRIES:,} entries")
    found = {info.filename: Entry(archive, info) for info in archive.infolist()}
    if len(found) != len(archive.infolist()):
        raise FileError("two of its entries have the same name")
    for name, entry in found.items():
        info = entry.info
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FileError(
                f"{name} is compressed or encrypted: write the file with numpy.savez, which does "
                "neither"
            )
        inside = 0 <= info.header_offset <= file_size - info.file_size
        if not inside or info.file_size != info.compress_size:
            raise FileError(f"the zip directory has a wrong offset or size for {name}")
    if sum(entry.info.file_size for entry in found.values()) > file_size:
        raise FileError("its entries overlap: they declare more bytes than the file has")
    return found


def write(path: str | os.PathLike[str], members: Iterable[tuple[str, bytes | np.ndarray]]) -> None:
    """Write a file of bytes and of arrays, in one step; the same members give the same bytes."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            if isinstance(content, bytes):
                archive.writestr(info, content)
                continue
            # zip64, as in numpy.savez: an array may be larger than 2 GiB
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, content, version=(1, 0), allow_pickle=False)
