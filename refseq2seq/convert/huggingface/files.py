"""A directory that ``save_pretrained`` wrote, read without PyTorch; pickles are never read."""

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ...files import safetensors
from ...files.reading import PICKLES, FileError, cure_of_format, file_errors, opened, read_json
from ..given import adapters
from .common import Arrays

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"


def check_directory(path: Path) -> None:
    """Raise unless the path is the directory of a complete model."""
    if path.is_file():
        cure = cure_of_format(path) or "Give the directory that contains it and its config.json"
        raise NotADirectoryError(errno.ENOTDIR, f"a file. {cure}", str(path))
    if not path.is_dir():
        why = "no such directory; nothing is downloaded: give a local directory or a live model"
        raise FileNotFoundError(errno.ENOENT, why, str(path))
    if os.path.lexists(path / ADAPTER_CONFIG):
        raise adapters(str(path / ADAPTER_CONFIG))
    if not (path / CONFIG).exists():
        if weights := sorted(path.glob("adapter_model.*")):
            raise adapters(str(weights[0]))
        why = "no such file; give a directory that save_pretrained of transformers wrote"
        raise FileNotFoundError(errno.ENOENT, why, str(path / CONFIG))


def stored_arrays(directory: Path, files: ExitStack, advance: Callable[[int], object]) -> Arrays:
    """The arrays of ``model.safetensors``, or of the files that the index names.

    The files stay open until ``files`` is closed, and only their headers are read: an array is
    read when NumPy needs it, and then must be finite. ``lexists`` finds broken links, which are
    errors and not missing files.
    """
    if os.path.lexists(directory / WEIGHTS):
        names = [WEIGHTS]
    elif os.path.lexists(directory / INDEX):
        names = _shards(directory / INDEX)
    else:
        raise _no_weights(directory)

    def check(entry: safetensors.Stored, x: np.ndarray) -> None:
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            path = Path(entry.file.name).name
            raise FileError(f"{path}: {entry.name} contains numbers that are NaN or infinite")
        advance(x.size * entry.dtype_of_file.itemsize)

    arrays: dict[str, Any] = {}
    for name in names:
        with file_errors(directory / name):
            file = files.enter_context(opened(directory / name))
            found = safetensors.stored(file, check)
        if twice := sorted(arrays.keys() & found.keys()):
            raise FileError(f"{name} contains {twice[0]}, which another file contains too")
        arrays |= found
    return arrays


def _shards(index: Path) -> list[str]:
    """The names of the files that an index lists."""
    with file_errors(index):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise FileError("it has no weight_map, the file name of each array")
        for array, name in weight_map.items():
            if not isinstance(name, str) or name in ("", "..") or Path(name).name != name[:255]:
                raise FileError(f"{array} is in {name!r:.300}; expected a file of this directory")
    return sorted(set(weight_map.values()))


def _no_weights(directory: Path) -> Exception:
    if pickles := sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES):
        return ValueError(
            f"{directory} has its weights in {pickles[0]}, a pickle, which can run any code when "
            "it is opened and is never read here. If you trust it, convert it with transformers: "
            f"AutoModelForSeq2SeqLM.from_pretrained({str(directory)!r}).save_pretrained(...)"
        )
    return FileNotFoundError(f"{directory} has neither {WEIGHTS} nor {INDEX}")
