"""The native format: one ``.npz`` file, arrays and a JSON entry, never a pickle.

The file is an uncompressed zip. ``checkpoint.json`` holds the format's version, the
model's dtype, the configuration and the vocabularies; each array is ``NAME.npy``, in C
order and little-endian, under its name in `refseq2seq.params.param_shapes`. So
``numpy.load`` reads it, ``unzip`` unpacks it, and other languages need no help from us.

A file is not trusted: sizes are compared with what the configuration declares before
anything of that size is allocated, every entry is covered by its checksum, and what does
not fit is a `CheckpointError` that says what.
"""

import errno
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from .backend import to_numpy
from .config import ModelConfig, StackConfig
from .model import Model
from .params import build_params, named_arrays, param_shapes
from .text import Tokenizer, Vocabulary

FORMAT = "refseq2seq"
VERSION = 1
HEADER = "checkpoint.json"
DTYPES = ("float16", "float32", "float64")

_NPY_START = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    r"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': (\([0-9, ]*\)), \} *\n"
)

# Advice for files that another program wrote, appended to the error.
_PICKLE = (
    ". Pickles of PyTorch can run any code when they are opened, and are never read here: load "
    "the model with its own library, and convert it with refseq2seq.convert"
)
_CURES = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl"), _PICKLE) | {
    ".safetensors": ". Of a safetensors file, give the directory that holds it and its config.json"
}

T = TypeVar("T")


class CheckpointError(ValueError):
    """A file is not a whole and sound checkpoint."""


def save(model: Model, path: str | os.PathLike[str], *, stored_dtype: str | None = None) -> None:
    """Write a model to one file, whole or not at all.

    Parameters
    ----------
    model : Model
    path : path
        An existing file is replaced in one step.
    stored_dtype : "float16", "float32" or "float64", optional
        Of the arrays in the file, the model's own by default. A narrower one rounds
        them; `load` widens them back to the model's dtype.

    Raises
    ------
    ValueError
        If parameters or vocabularies do not fit the config, or a parameter is not finite in
        ``stored_dtype``.
    TypeError
        If the model has a tokenizer that is not a `Vocabulary`: other programs' tokenizers
        have files of their own.
    """
    stored = np.dtype(stored_dtype or model.dtype)
    if stored.name not in DTYPES:
        raise ValueError(f"stored_dtype must be one of {DTYPES}, got {stored_dtype!r}")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": model.dtype.name,
        "config": model.config.to_dict(),
        "source_vocabulary": _fields("source", model.source_vocabulary, model.config.encoder),
        "target_vocabulary": _fields("target", model.target_vocabulary, model.config.decoder),
    }
    arrays = dict(named_arrays(model.params))
    with _replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(HEADER), json.dumps(header, indent=1).encode())
        for name in param_shapes(model.config):
            with np.errstate(all="ignore"):  # infinity is reported by name below
                array = to_numpy(arrays[name]).astype(stored.newbyteorder("<"), order="C")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite as {stored.name}: nothing was written")
            # zip64, as numpy.savez has it: an array may be longer than 2 GiB
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _fields(side: str, tokenizer: Tokenizer | None, c: StackConfig) -> dict[str, Any] | None:
    """What the header says of a vocabulary."""
    if tokenizer is None:
        return None
    if not isinstance(tokenizer, Vocabulary):
        raise TypeError(
            f"the format holds a Vocabulary only, and the model's {side} tokenizer is a "
            f"{type(tokenizer).__name__}: keep its file, and save dataclasses.replace(model, "
            "source_vocabulary=None, target_vocabulary=None)"
        )
    if len(tokenizer) != c.vocab_size:
        raise ValueError(
            f"the {side} vocabulary has {len(tokenizer)} symbols, the config {c.vocab_size}"
        )
    return tokenizer.to_dict()


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model: ``"g2p"``, the one that ships, or the path of a native checkpoint, or
    the directory of a Hugging Face model (see `refseq2seq.convert.from_huggingface`).

    Raises
    ------
    FileNotFoundError
        If there is no such file or directory. Nothing is looked for elsewhere.
    CheckpointError
        If the file is not a whole and sound checkpoint.
    TypeError, ValueError
        If ``path`` is not a path, or empty. Of a directory, all that `from_huggingface` raises.

    Examples
    --------
    >>> load("g2p").dtype
    dtype('float32')
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or an os.PathLike, got {type(path).__name__}")
    if path == "":
        raise ValueError("path is empty: give that of a checkpoint or of a directory, or 'g2p'")
    if path == "g2p":
        from importlib.resources import as_file, files  # a third of the package's import time

        with as_file(files("refseq2seq") / "g2p" / "model.npz") as shipped:
            return load(shipped)
    path = Path(path)
    if path.is_dir():
        from .convert import from_huggingface  # the core needs converters nowhere else

        return from_huggingface(path)
    if not path.exists():
        why = (
            "No such file or directory; the only built-in name is 'g2p', and nothing is "
            "downloaded: give the path of a checkpoint or of a directory"
        )
        raise FileNotFoundError(errno.ENOENT, why, str(path))
    cure = _CURES.get(path.suffix.lower(), "")
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive, os.fstat(file.fileno()).st_size)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error!s:.500}{cure}") from error
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path} is not a whole zip file: {error!r:.500}{cure}"
            ) from error


def _read(archive: zipfile.ZipFile, file_size: int) -> Model:
    entries = _sound_entries(archive, file_size)
    header = _header(archive.read(entries[HEADER]))
    config = _parsed("config", ModelConfig.from_dict, header["config"])
    if config.encoder.n_layers + config.decoder.n_layers > len(entries):
        raise CheckpointError("its config has more layers than the file has arrays")
    names = {f"{name}.npy" for name in _parsed("config", param_shapes, config)}
    if missing := sorted(names - entries.keys()):
        raise CheckpointError(f"it lacks {_list(missing)}")
    if unknown := sorted(entries.keys() - names - {HEADER}):
        raise CheckpointError(f"it has entries that its config does not: {_list(unknown)}")

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        entry = entries[f"{name}.npy"]
        with archive.open(entry) as member:
            return _array(member, entry.file_size, name, shape, header["dtype"])

    return Model(
        config=config,
        params=build_params(config, array),
        source_vocabulary=_vocabulary(header, "source", config.encoder),
        target_vocabulary=_vocabulary(header, "target", config.decoder),
    )


def _sound_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name: stored as they are, all different, no more bytes than the file."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise CheckpointError("two of its entries have the same name")
    for entry in entries.values():
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError("it has compressed or encrypted entries; a checkpoint has none")
        inside = 0 <= entry.header_offset <= file_size - entry.file_size
        if not inside or entry.file_size != entry.compress_size:
            raise CheckpointError(f"its directory misplaces {entry.filename}")
    if sum(entry.file_size for entry in entries.values()) > file_size:
        raise CheckpointError("its entries overlap: they declare more bytes than the file has")
    if HEADER not in entries:
        raise CheckpointError(f"it has no {HEADER}, so it is not a refseq2seq checkpoint")
    return entries


def _header(text: bytes) -> dict[str, Any]:
    header = _parsed(HEADER, json.loads, text)
    expected = {"format", "version", "dtype", "config", "source_vocabulary", "target_vocabulary"}
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"its {HEADER} is not that of a refseq2seq checkpoint")
    if header.get("version") != VERSION:
        raise CheckpointError(f"it has version {header.get('version')!r}; this is for {VERSION}")
    if header.keys() != expected:
        raise CheckpointError(f"its {HEADER} must have the entries {sorted(expected)}")
    if header["dtype"] not in DTYPES:
        raise CheckpointError(f"its dtype must be one of {DTYPES}, got {header['dtype']!r}")
    return header


def _vocabulary(header: dict[str, Any], side: str, c: StackConfig) -> Vocabulary | None:
    fields = header[f"{side}_vocabulary"]
    if fields is None:
        return None
    vocabulary = _parsed(f"{side}_vocabulary", Vocabulary.from_dict, fields)
    if len(vocabulary) != c.vocab_size:
        raise CheckpointError(
            f"its {side} vocabulary has {len(vocabulary)} symbols, its config {c.vocab_size}"
        )
    return vocabulary


def _array(
    member: IO[bytes], size: int, name: str, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """The array of an ``.npy`` entry of ``size`` bytes, once it is clear that it fits.

    Its header is not parsed, as NumPy would, but must be in the one form that NumPy writes.
    """
    start = member.read(10)
    header = member.read(int.from_bytes(start[8:], "little")).decode("latin-1")
    match = _NPY_HEADER.fullmatch(header)
    if start[:8] != _NPY_START or match is None:
        raise CheckpointError(f"{name} has no .npy header of version 1.0")
    stored, fortran_order, declared = match.groups()
    if declared != str(shape):
        raise CheckpointError(f"{name} must have shape {shape}, got {declared}")
    if stored not in ("<f2", "<f4", "<f8") or fortran_order == "True":
        raise CheckpointError(
            f"{name} must be little-endian float in C order, "
            f"got {stored} with fortran_order = {fortran_order}"
        )
    n_bytes = size - len(start) - len(header)
    if n_bytes != prod(shape) * np.dtype(stored).itemsize:
        raise CheckpointError(f"{name} has {n_bytes} bytes, not those of its shape")
    array = np.frombuffer(member.read(), dtype=stored).reshape(shape)
    with np.errstate(all="ignore"):  # what overflows is reported by name
        array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} is not finite as {dtype}")
    return array


def _parsed(what: str, parse: Callable[[Any], T], value: Any) -> T:
    try:
        return parse(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its {what} cannot be read: {error}") from error


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _entry(name: str) -> zipfile.ZipInfo:
    """A zip entry without date and system: the same model gives the same bytes."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    return entry


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when all went well, and is gone otherwise."""
    path = path.resolve()  # of a link, what it points to
    temporary = path.parent / f".{os.urandom(8).hex()}.part"
    try:
        with open(temporary, "xb") as file:  # not tempfile's: permissions follow the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
