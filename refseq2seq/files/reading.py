"""Reading a file that a stranger may have made.

Every loader goes through here: a file is regular once links are followed, it is bounded before
anything is built from it, and what is wrong with it is a `FileError` that begins with its path.
"""

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TEXT_BYTES = 2**26
"""The largest file that is read as a whole; tokenizers of 250,000 pieces have 35 million bytes."""

JSON_VALUES = 2**22
"""The most values of a JSON file: in memory each takes up to 100 bytes, in the file 2 may do."""


class FileError(ValueError):
    """A file does not hold what it should; the message begins with its path."""


@contextmanager
def about(path: str | os.PathLike[str], *kinds: type[ValueError]) -> Iterator[None]:
    """Errors about what a file holds begin with its path; those that are none of ``kinds``
    become the last of them, `FileError` if none are given.
    """
    try:
        yield
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        kinds = kinds or (FileError,)
        kind = next((kind for kind in kinds if isinstance(error, kind)), kinds[-1])
        told = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise kind(f"{path}: {told:.800}") from error


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
        content = file.read(TEXT_BYTES + 1)
    if len(content) > TEXT_BYTES:
        raise FileError(f"{path}: larger than {TEXT_BYTES:,} bytes")
    return content


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
