"""The native format: one ``.npz`` file, arrays and a JSON entry, never a pickle.

The file is an uncompressed zip. ``checkpoint.json`` holds the format's version, the
model's dtype, the configuration and the vocabularies; each array is ``NAME.npy``, in C
order and little-endian, under its name in `refseq2seq.params.param_shapes`. So
``numpy.load`` reads it, ``unzip`` unpacks it, and other languages need no help from us.

A file is not trusted: sizes are compared with what the configuration declares before
anything of that size is allocated, every byte is covered by the zip's checksums, and
what does not fit is a `CheckpointError` that says what.
"""

import contextlib
import json
import os
import zipfile
from importlib.resources import as_file, files
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from .backend import to_numpy
from .config import ModelConfig
from .model import Model
from .params import build_params, named_arrays, param_shapes
from .text import Vocabulary

FORMAT = "refseq2seq"
VERSION = 1
HEADER = "checkpoint.json"
DTYPES = ("float16", "float32", "float64")


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
        If a parameter is not finite, or does not fit ``stored_dtype``.
    """
    stored = np.dtype(stored_dtype or model.dtype)
    if stored.name not in DTYPES:
        raise ValueError(f"stored_dtype must be one of {DTYPES}, got {stored_dtype!r}")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": model.dtype.name,
        "config": model.config.to_dict(),
        "source_vocabulary": model.source_vocabulary and model.source_vocabulary.to_dict(),
        "target_vocabulary": model.target_vocabulary and model.target_vocabulary.to_dict(),
    }
    arrays = dict(named_arrays(model.params))
    with _replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(HEADER), json.dumps(header, indent=1).encode())
        for name in param_shapes(model.config):
            with np.errstate(over="ignore"):  # infinity is reported by name below
                array = to_numpy(arrays[name]).astype(stored.newbyteorder("<"), order="C")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite as {stored.name}: nothing was written")
            with archive.open(_entry(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model: ``"g2p"``, the one that ships, or the path of a native checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is not a whole and sound checkpoint.

    Examples
    --------
    >>> load("g2p").dtype
    dtype('float32')
    """
    if path == "g2p":
        with as_file(files("refseq2seq") / "g2p" / "model.npz") as shipped:
            return load(shipped)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, os.path.getsize(path))
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{os.fspath(path)} is not a whole zip file: {error}") from error


def _read(archive: zipfile.ZipFile, file_size: int) -> Model:
    entries = _sound_entries(archive, file_size)
    header = _header(archive, entries)
    config = _parsed("config", ModelConfig.from_dict, header["config"])
    if config.encoder.n_layers + config.decoder.n_layers > len(entries):
        raise CheckpointError("its config has more layers than the file has arrays")
    shapes = _parsed("config", param_shapes, config)
    names = {f"{name}.npy" for name in shapes}
    if missing := sorted(names - entries.keys()):
        raise CheckpointError(f"it lacks {_list(missing)}")
    if unknown := sorted(entries.keys() - names - {HEADER}):
        raise CheckpointError(f"it has entries that its config does not: {_list(unknown)}")

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        entry = entries[f"{name}.npy"]
        with archive.open(entry) as member:
            return _array(member, entry.file_size, name, shape).astype(header["dtype"])

    return Model(
        config=config,
        params=build_params(config, array),
        source_vocabulary=_vocabulary(header, "source", config.encoder.vocab_size),
        target_vocabulary=_vocabulary(header, "target", config.decoder.vocab_size),
    )


def _sound_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name: stored as they are, all different, no more bytes than the file."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise CheckpointError("two of its entries have the same name")
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries.values()):
        raise CheckpointError("it has compressed or encrypted entries; a checkpoint has none")
    if sum(e.file_size for e in entries.values()) > file_size:
        raise CheckpointError("its entries overlap: they declare more bytes than the file has")
    if HEADER not in entries:
        raise CheckpointError(f"it has no {HEADER}, so it is not a refseq2seq checkpoint")
    return entries


def _header(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    header = _parsed(HEADER, json.loads, archive.read(entries[HEADER]))
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


def _vocabulary(header: dict[str, Any], side: str, vocab_size: int) -> Vocabulary | None:
    fields = header[f"{side}_vocabulary"]
    if fields is None:
        return None
    vocabulary = _parsed(f"{side}_vocabulary", Vocabulary.from_dict, fields)
    if len(vocabulary) != vocab_size:
        raise CheckpointError(
            f"its {side} vocabulary has {len(vocabulary)} symbols, its config {vocab_size}"
        )
    return vocabulary


def _array(member: IO[bytes], size: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise CheckpointError(f"{name} has the .npy version {version}, not (1, 0)")
        declared, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
    except CheckpointError:
        raise
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{name} has no readable .npy header: {error}") from error
    if declared != shape:
        raise CheckpointError(f"{name} must have shape {shape}, got {declared}")
    if fortran_order or dtype.str not in ("<f2", "<f4", "<f8"):
        raise CheckpointError(f"{name} must be little-endian float in C order, got {dtype.str}")
    if size - member.tell() != prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{name} has {size - member.tell()} bytes, not those of its shape")
    array = np.frombuffer(member.read(), dtype=dtype).reshape(shape)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} has NaN or infinite entries")
    return array


def _parsed(what: str, parse: Any, value: Any) -> Any:
    try:
        return parse(value)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"its {what} cannot be read: {error}") from error


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _entry(name: str) -> zipfile.ZipInfo:
    """A zip entry with a fixed date: the same model gives the same bytes."""
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


@contextlib.contextmanager
def _replacing(path: Path) -> Any:
    """A file that takes the place of ``path`` when all went well, and is gone otherwise."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
