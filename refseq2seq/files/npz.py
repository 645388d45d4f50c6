"""The ``.npz`` files of NumPy: a zip of ``.npy`` entries, read without trust.

Entries are stored, not compressed, so that the size of a file bounds what is built from it;
their headers must be in the one form that NumPy writes, and are never evaluated; nothing is
unpickled.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np

from .reading import TEXT_BYTES, FileError, fits, opened

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
        """All of its bytes, of which there are at most `TEXT_BYTES`."""
        if self.info.file_size > TEXT_BYTES:
            raise FileError(f"{self.info.filename} is larger than {TEXT_BYTES:,} bytes")
        return self.archive.read(self.info)

    @contextmanager
    def array(self) -> Iterator["StoredArray"]:
        """The array of an ``.npy`` entry, of which the header is read, and the numbers are not."""
        with self.archive.open(self.info) as member:
            yield StoredArray(self.info, member)


class StoredArray:
    """An array in a file: what its header says, before it is read.

    Attributes
    ----------
    dtype : str, such as "<f4"
    fortran_order : bool
    shape : tuple of int
    """

    def __init__(self, info: zipfile.ZipInfo, member: IO[bytes]) -> None:
        self._name, self._member = info.filename.removesuffix(".npy"), member
        start = member.read(10)
        header = member.read(int.from_bytes(start[8:], "little")).decode("latin-1")
        match = _HEADER.fullmatch(header)
        if start[:8] != _START or match is None:
            raise FileError(
                f"{self._name} has no .npy header of version 1.0 for an array of numbers"
            )
        self.dtype, self.fortran_order = match[1], match[2] == "True"
        self.shape = tuple(int(n) for n in re.findall("[0-9]+", match[3]))
        self._n_bytes = info.file_size - len(start) - len(header)

    def read(self) -> np.ndarray:
        """The numbers, once it is clear that the entry has as many."""
        if self.dtype not in _DTYPES:
            raise FileError(f"{self._name} must hold numbers, got dtype {self.dtype!r}")
        dtype = np.dtype(self.dtype)
        if not fits(self.shape, dtype.itemsize, self._n_bytes):
            raise FileError(f"{self._name} has {self._n_bytes} bytes, not those of its shape")
        order: Literal["F", "C"] = "F" if self.fortran_order else "C"
        return np.frombuffer(self._member.read(), dtype=dtype).reshape(self.shape, order=order)


@contextmanager
def entries(path: str | os.PathLike[str]) -> Iterator[dict[str, Entry]]:
    """The entries of a zip file by name: stored, all different, no more bytes than the file.

    Raises
    ------
    FileError
        If they are not, or the file is no whole zip file.
    """
    with opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield _sound_entries(archive, os.fstat(file.fileno()).st_size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise FileError(f"not a whole zip file: {error!r:.500}") from error


def _sound_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, Entry]:
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
            raise FileError(f"its directory misplaces {name}")
    if sum(entry.info.file_size for entry in found.values()) > file_size:
        raise FileError("its entries overlap: they declare more bytes than the file has")
    return found
