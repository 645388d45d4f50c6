"""The native checkpoint format: one ``.npz`` file with arrays and a JSON entry, without pickles.

The file is an uncompressed zip. The entry ``checkpoint.json`` contains the format's version, the
model's dtype, the configuration, the vocabularies and the generation settings. Each array is an
entry ``NAME.npy``, in C order and little-endian; `refseq2seq.params.param_shapes` gives the names.
Therefore ``numpy.load`` reads the file, ``unzip`` unpacks it, and programs in other languages can
read it without this package.

Files are not trusted. Sizes are compared with those that the configuration declares before
memory is allocated, and every entry has a checksum. A `CheckpointError` names what does not fit.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..backend import c_ordered, outline, to_numpy
from ..config import ModelConfig, StackConfig
from ..model import Model
from ..params import MIN_LAYER, build_params, named_arrays, param_shapes
from ..settings import Settings
from ..text import Tokenizer, Vocabulary
from . import npz
from .reading import FileError, cure_of_format, file_errors, parse_json

FORMAT = "refseq2seq"
VERSION = 4
HEADER = "checkpoint.json"
DTYPES = ("float16", "float32", "float64")

# The names in a file of version 1 that changed in version 2, of fields and of arrays.
_RENAMED = {
    "n_memory_kv": "n_learned_kv",
    "n_memory_tokens": "n_register_tokens",
    "memory_k": "learned_k",
    "memory_v": "learned_v",
    "memory_tokens": "register_tokens",
}

T = TypeVar("T")


class CheckpointError(FileError):
    """A file is not a complete and valid checkpoint."""


def save(model: Model, path: str | os.PathLike[str], *, stored_dtype: str | None = None) -> None:
    """Write a model to one file; on an error, no file is written or changed.

    Parameters
    ----------
    model : Model
    path : path
        An existing file is replaced in one step.
    stored_dtype : "float16", "float32" or "float64", optional
        The dtype of the arrays in the file, by default the model's. A narrower dtype rounds
        them; `load` converts them back to the model's dtype.

    Raises
    ------
    ValueError
        If parameters or vocabularies do not fit the config, or a parameter is not finite in
        ``stored_dtype``.
    TypeError
        If the model has a tokenizer that is not a `Vocabulary`. Tokenizers of other programs
        have their own files.
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
        "settings": None if model.settings is None else model.settings.asked,
    }
    arrays = dict(named_arrays(model.params))

    def members() -> Iterator[tuple[str, bytes | np.ndarray]]:
        yield HEADER, json.dumps(header, indent=1).encode()
        for name in param_shapes(model.config):
            with np.errstate(all="ignore"):  # infinity is reported by name below
                array = to_numpy(arrays[name]).astype(stored.newbyteorder("<"), order="C")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite as {stored.name}: nothing was written")
            yield f"{name}.npy", array

    npz.write(path, members())


def _fields(side: str, tokenizer: Tokenizer | None, c: StackConfig) -> dict[str, Any] | None:
    """The header's entry for a vocabulary."""
    if tokenizer is None:
        return None
    if not isinstance(tokenizer, Vocabulary):
        raise TypeError(
            f"the format supports only a Vocabulary, but the model's {side} tokenizer is a "
            f"{type(tokenizer).__name__}: keep its file, and save dataclasses.replace(model, "
            "source_vocabulary=None, target_vocabulary=None)"
        )
    if len(tokenizer) != c.vocab_size:
        raise ValueError(
            f"the {side} vocabulary has {len(tokenizer)} symbols, the config {c.vocab_size}"
        )
    return tokenizer.to_dict()


def load(path: str | os.PathLike[str], *, advance: Callable[[int], object] | None = None) -> Model:
    """Read a model: ``"g2p"``, which is included, or a native checkpoint, or the directory of a
    Hugging Face model or of CTranslate2 (see `refseq2seq.convert.from_huggingface` and
    `refseq2seq.convert.from_ctranslate2`).

    Parameters
    ----------
    path : str or path
    advance : function, optional
        Called with the number of bytes of each array that has been read, for a progress bar.

    Raises
    ------
    FileNotFoundError
        If there is no such file or directory. Nothing is downloaded.
    CheckpointError
        If the file is not a complete and valid checkpoint.
    TypeError, ValueError
        If ``path`` is not a path, or empty. For a directory, also the errors of
        `from_huggingface` or `from_ctranslate2`.

    Examples
    --------
    >>> load("g2p").dtype
    dtype('float32')
    """
    return _load(path, True, advance or (lambda n: None))


def load_outline(path: str | os.PathLike[str]) -> Model:
    """The model that `load` returns, with zeros that take no memory: only headers are read.

    Of a directory, arrays are read that the converter compares: two token tables, sinusoids.
    """
    return _load(path, False, lambda n: None)


def _load(path: Any, values: bool, advance: Callable[[int], object]) -> Model:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or an os.PathLike, got {type(path).__name__}")
    if path == "":
        raise ValueError("path is empty: give the path of a checkpoint or a directory, or 'g2p'")
    if path == "g2p":
        from importlib.resources import as_file, files  # here: a third of the import time

        with as_file(files("refseq2seq") / "g2p" / "model.npz") as shipped:
            return _load(shipped, values, advance)
    path = Path(path)
    if path.is_dir():
        # Here, since nothing else in the core needs converters.
        from ..convert.ctranslate2 import from_ctranslate2, is_ctranslate2
        from ..convert.huggingface import converted

        if is_ctranslate2(path):
            return from_ctranslate2(path)
        return converted(path, take=c_ordered if values else outline, advance=advance)
    if not path.exists():
        why = (
            "No such file or directory; the only built-in name is 'g2p', and nothing is "
            "downloaded: give the path of a checkpoint or of a directory"
        )
        raise FileNotFoundError(errno.ENOENT, why, str(path))
    try:
        with file_errors(path, CheckpointError), npz.entries(path) as entries:
            return _read(entries, values, advance)
    except CheckpointError as error:
        cure = cure_of_format(path)
        raise CheckpointError(f"{error}. {cure}" if cure else str(error)) from error


def _read(
    entries: Mapping[str, npz.Entry], values: bool, advance: Callable[[int], object]
) -> Model:
    if HEADER not in entries:
        raise CheckpointError(f"it has no {HEADER}, so it is not a refseq2seq checkpoint")
    header = _header(entries[HEADER].read())
    if header["version"] == 1:
        header["config"] = _with_new_names(header["config"])
        entries = {_new_name(name): entry for name, entry in entries.items()}
    if header["version"] < 4:
        header["config"] = completed(header["config"])
    config = _parsed("config", ModelConfig.from_dict, header["config"])
    if MIN_LAYER * (config.encoder.n_layers + config.decoder.n_layers) > len(entries):
        raise CheckpointError("its config has more layers than the file has arrays for")
    names = {f"{name}.npy" for name in _parsed("config", param_shapes, config)}
    if missing := sorted(names - entries.keys()):
        raise CheckpointError(f"it lacks {_list(missing)}")
    if unknown := sorted(entries.keys() - names - {HEADER}):
        raise CheckpointError(f"it has entries that its config does not have: {_list(unknown)}")

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        stored = entries[f"{name}.npy"].array(values)
        if stored.shape != shape:
            raise CheckpointError(f"{name} must have shape {shape}, got {stored.shape}")
        if stored.dtype.str not in ("<f2", "<f4", "<f8") or stored.flags.fnc:
            raise CheckpointError(
                f"{name} must be little-endian float in C order, got {stored.dtype.str} with "
                f"strides {stored.strides}"
            )
        if not values:
            return np.broadcast_to(np.zeros((), header["dtype"]), shape)
        advance(stored.nbytes)
        with np.errstate(all="ignore"):  # an overflow is reported by name below
            converted = stored.astype(header["dtype"], copy=False)
        if not np.isfinite(converted).all():
            raise CheckpointError(f"{name} is not finite as {header['dtype']}")
        return converted

    return Model(
        config=config,
        params=build_params(config, array),
        source_vocabulary=_vocabulary(header, "source", config.encoder),
        target_vocabulary=_vocabulary(header, "target", config.decoder),
        settings=_parsed("settings", _settings, header["settings"]),
    )


def _settings(fields: Any) -> Settings | None:
    if not isinstance(fields, dict | None):
        raise TypeError(f"settings must be a dict of fields, got {type(fields).__name__}")
    return None if fields is None else Settings().with_fields(fields)


def _with_new_names(fields: Any) -> Any:
    """Nested fields of a file of version 1 under their names of version 2."""
    if not isinstance(fields, dict):
        return fields
    return {_new_name(name): _with_new_names(value) for name, value in fields.items()}


def completed(fields: Any) -> Any:
    """Nested fields of a file of version 1 to 3 with those that version 4 added."""
    if not isinstance(fields, dict):
        return fields
    if early := fields.keys() & {"input", "windows", "softcap", "logits_softcap"}:
        raise CheckpointError(f"it has a version below 4, which does not have {early.pop()!r}")
    fields = {name: completed(value) for name, value in fields.items()}
    if "vocab_size" in fields:
        tokens = {"type": "tokens", "vocab_size": fields.pop("vocab_size")}
        return fields | {"input": tokens, "windows": []}
    added = {"head_scale": "softcap", "logits_bias": "logits_softcap"}
    return fields | {new: None for old, new in added.items() if old in fields}


def _new_name(name: str) -> str:
    words = name.split(".")
    if unknown := [word for word in words if word in _RENAMED.values()]:
        raise CheckpointError(f"it has version 1, which does not have {unknown[0]!r}")
    return ".".join(_RENAMED.get(word, word) for word in words)


def _header(text: bytes) -> dict[str, Any]:
    header = _parsed(HEADER, parse_json, text)
    expected = {
        "format", "version", "dtype", "config", "source_vocabulary", "target_vocabulary",
        "settings",
    }  # fmt: skip
    if header.get("format") != FORMAT:
        raise CheckpointError(f"its {HEADER} is not that of a refseq2seq checkpoint")
    if header.get("version") not in range(1, VERSION + 1) or header["version"] is True:
        raise CheckpointError(
            f"it has version {header.get('version')!r}; this package reads 1 to {VERSION}"
        )
    if header["version"] < 3:  # older versions have no settings
        header["settings"] = header.get("settings")
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


def _parsed(what: str, parse: Callable[[Any], T], value: Any) -> T:
    try:
        return parse(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its {what} cannot be read: {error}") from error


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
