"""Reading of untrusted files.

Every loader uses these functions. A path must lead to a regular file; links are followed. The
size of the file is checked before anything is built from it. The message of a `FileError` begins
with the path.
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

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of pickle files, which can run any code when they are opened and are never read."""

_PICKLE = (
    "Pickles of PyTorch can run any code when they are opened, and are never read here: load "
    "the model with its own library, and convert it with refseq2seq.convert"
)
_CURES = dict.fromkeys(PICKLES, _PICKLE) | {
    ".safetensors": "For safetensors, give the directory that contains it and its config.json",
    ".json": "For a model of transformers, give the directory that contains its config.json",
    ".gguf": "GGUF is not read here: give the directory of the model that it was made from",
}

MAX_BYTES = 2**26
"""The maximum size, in bytes, of a file that is read at once; a tokenizer of 250,000 pieces has
35 MB."""

MAX_JSON_VALUES = 2**22
"""The maximum number of values of a JSON file: one may take 100 bytes in memory, and only 2 in
the file."""

MAX_EMPTY_SIZE = 2**24
"""The maximum product of an empty array's other axes: a sum over the empty axis has that size."""


class FileError(ValueError):
    """The content of a file is invalid; the message begins with its path."""


@contextmanager
def file_errors(path: str | os.PathLike[str], *kinds: type[ValueError]) -> Iterator[None]:
    """Reraise an error about a file's content as one printable line that begins with the path.

    An error of one of ``kinds`` keeps its type; any other becomes the last of them, by default
    `FileError`.
    """
    try:
        yield
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        kinds = kinds or (FileError,)
        kind = next((kind for kind in kinds if isinstance(error, kind)), kinds[-1])
        raise kind(f"{path}: {one_line(str(error).removeprefix(f'{path}: '))}") from error


def cure_of_format(path: str | os.PathLike[str]) -> str:
    """Advice for a file that another program wrote, by its suffix; empty for other suffixes."""
    return _CURES.get(os.path.splitext(path)[1].lower(), "")


def one_line(message: str, length: int = 800) -> str:
    """A message with untrusted text, as one printable line of at most ``length`` characters."""
    line = " ".join(message[: 8 * length].split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= length else f"{line[: length - 3]}..."


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file. A pipe or a device, which may never end, raises an error."""
    mode = os.stat(path).st_mode  # of the target of a link: caches consist of links
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a directory; expected a file", str(path))
    if not stat.S_ISREG(mode):
        raise FileError(f"{path}: not a regular file, but a pipe, a socket or a device")
    return open(path, "rb")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file of at most `MAX_BYTES`."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise FileError(f"{path}: larger than {MAX_BYTES:,} bytes")
        return file.read(size)


def fits(shape: Sequence[int], itemsize: int, n_bytes: int) -> bool:
    """Whether an array of this shape has ``n_bytes`` bytes, and at most 64 axes, as in NumPy.

    The number of bytes does not limit the other axes of an empty array; `MAX_EMPTY_SIZE` does.
    """
    if len(shape) > 64 or prod(n or 1 for n in shape) > max(n_bytes, MAX_EMPTY_SIZE):
        return False
    return prod(shape) * itemsize == n_bytes


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file of at most `MAX_BYTES`."""
    with file_errors(path):
        fields: dict[str, Any] = parse_json(read_bytes(path))
        return fields


def parse_json(content: bytes, kind: type = dict) -> Any:
    """The object, or list, in JSON text of at most `MAX_JSON_VALUES` values."""
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise FileError(f"more than {MAX_JSON_VALUES:,} values")
    try:
        fields = json.loads(content)
    except RecursionError as error:
        raise FileError("not JSON: nested too deeply") from error
    except ValueError as error:  # syntax, encoding, or an integer with too many digits
        raise FileError(f"not JSON: {error}") from error
    if not isinstance(fields, kind):
        name = "object" if kind is dict else kind.__name__
        raise FileError(f"must contain a JSON {name}, got {type(fields).__name__}")
    return fields
