"""A model's directory, as ``save_pretrained`` writes it: read without PyTorch, and no pickle."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..given import adapters
from .common import Arrays

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_directory(path: Path) -> None:
    """That it is a directory of a whole model."""
    if path.is_file():
        why = "a file; give the directory that holds it and its config.json"
        raise NotADirectoryError(errno.ENOTDIR, why, str(path))
    if not path.is_dir():
        why = "no such directory; a hub is not asked: give a local directory or a live model"
        raise FileNotFoundError(errno.ENOENT, why, str(path))
    if (path / ADAPTER_CONFIG).exists():
        raise adapters(str(path / ADAPTER_CONFIG))
    if not (path / CONFIG).exists():
        why = "no such file; give a directory that save_pretrained of transformers wrote"
        raise FileNotFoundError(errno.ENOENT, why, str(path / CONFIG))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(fields).__name__}")
    return fields


def read_arrays(directory: Path) -> Arrays:
    """The arrays of ``model.safetensors``, or of the files that its index names.

    bfloat16 becomes float32, of which it is the upper half.
    """
    if (directory / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (directory / INDEX).exists():
        names = sorted(set(_weight_map(directory / INDEX).values()))
    else:
        raise _no_weights(directory)
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{directory / INDEX} names {name!r}, which is not a file beside it")
        arrays |= _read_safetensors(directory / name)
    return arrays


def missing_extra(package: str, path: Path) -> ImportError:
    """The error for a file that a package of the extra ``huggingface`` would read."""
    return ImportError(
        f"reading {path} needs the package {package}: "
        'python -m pip install "refseq2seq[huggingface]"'
    )


def _weight_map(index: Path) -> dict[str, str]:
    fields = read_json(index)
    if "weight_map" not in fields:
        raise ValueError(f"{index} has no weight_map, which says where each array is")
    return dict(fields["weight_map"])


def _read_safetensors(path: Path) -> Arrays:
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise missing_extra("safetensors", path) from error
    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return {name: _array(name, entry).reshape(entry["shape"]) for name, entry in entries}


def _array(name: str, entry: dict[str, Any]) -> np.ndarray:
    if entry["dtype"] == "BF16":
        halves = np.frombuffer(entry["data"], dtype="<u2")
        return (halves.astype("<u4") << 16).view("<f4")
    dtypes = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    if entry["dtype"] not in dtypes:
        raise ValueError(f"{name} must be floating-point, got {entry['dtype']}")
    return np.frombuffer(entry["data"], dtype=dtypes[entry["dtype"]])


def _no_weights(directory: Path) -> Exception:
    if pickles := sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES):
        return ValueError(
            f"{directory} has its weights in {pickles[0]}, a pickle, which can run any code when "
            "it is opened and is never read here. If you trust it, convert it with transformers: "
            f"AutoModelForSeq2SeqLM.from_pretrained({str(directory)!r}).save_pretrained(...)"
        )
    return FileNotFoundError(f"{directory} has neither {WEIGHTS} nor {INDEX}")
