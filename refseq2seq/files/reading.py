"""Reading a file that a stranger may have made.

Every loader goes through here: a file is regular once links are followed, it is bounded before
anything is built from it, and what is wrong with it is a `FileError` that begins with its path.
"""

import errno
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

TEXT_BYTES = 2**26
"""The largest file that is read as a whole; tokenizers of 250,000 pieces have 35 million bytes."""

JSON_VALUES = 2**22
"""The most values of a JSON file: in memory each takes up to 100 bytes, in the file 2 may do."""

EMPTY_SHAPE = 2**24
"""The greatest product of an empty array's other axes: sums along the empty one have as many."""


class FileError(ValueError):
    """A file does not hold what it should; the message begins with its path."""


@contextmanager
def about(path: str | os.PathLike[str], *kinds: type[ValueError]) -> Iterator[None]:
    """Errors about what a file holds begin with its path and are one printable line; those that
    are none of ``kinds`` become the last of them, `FileError` if none are given.
    """
    try:
        yield
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        kinds = kinds or (FileError,)
        kind = next((kind for kind in kinds if isinstance(error, kind)), kinds[-1])
        told = " ".join(str(error).removeprefix(f"{path}: ").split())[:800]
        told = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in told)
        raise kind(f"{path}: {told:.800}") from error


def present(path: str | os.PathLike[str]) -> bool:
    """Whether a directory has such an entry: a link that leads nowhere is one, and an error to
    open, not a file that the directory lacks.
    """
    return os.path.lexists(path)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """A regular file: a pipe or a device, which may never end, is refused unopened."""
    mode = os.stat(path).st_mode  # of what a link leads to: caches are made of links
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a directory; expected a file", str(path))
    if not stat.S_ISREG(mode):
        raise FileError(f"{path}: not a regular file, but a pipe, a socket or a device")
    with open(path, "rb") as file:
        yield file


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file of at most `TEXT_BYTES`."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > TEXT_BYTES:
            raise FileError(f"{path}: larger than {TEXT_BYTES:,} bytes")
        return file.read(size)


def fits(shape: Sequence[int], itemsize: int, n_bytes: int) -> bool:
    """Whether an array of such a shape has ``n_bytes``, and no more axes than NumPy allows.

    The axes of an empty array have no bytes behind them: `EMPTY_SHAPE` bounds their product.
    """
    if len(shape) > 64 or prod(n or 1 for n in shape) > max(n_bytes, EMPTY_SHAPE):
        return False
    return prod(shape) * itemsize == n_bytes


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file."""
    with about(path):
        return parse_json(read_bytes(path))


def parse_json(content: bytes) -> dict[str, Any]:
    """The object in JSON text.

    Raises
    ------
    FileError
        If it is not JSON, nested too deeply, no object, or has more than `JSON_VALUES` values.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > JSON_VALUES:
        raise FileError(f"more than {JSON_VALUES:,} values")
    try:
        fields = json.loads(content)
    except RecursionError as error:
        raise FileError("not JSON: nested too deeply") from error
    except ValueError as error:  # of syntax, of encoding, of an integer with too many digits
        raise FileError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise FileError(f"must hold a JSON object, got {type(fields).__name__}")
    return fields
