"""The arguments of a converter: checks, and conversion of the arrays to NumPy.

``torch.compile`` adds a prefix to the names of arrays; these functions remove it.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..checks import UnsupportedFeature
from ..files.safetensors import Stored

# Parts of names that the package peft adds where it wraps a module or extends or replaces a layer.
_OF_ADAPTERS = re.compile(
    r"(?:^|\.)(?:lora_\w+|base_layer|base_model\.model|modules_to_save)(?:\.|$)"
)


def arrays_and_options(
    given: Any,
    options: Any,
    what: str,
    packages: str,
    reader: Callable[[], Callable[[Any], tuple[dict[str, np.ndarray], Mapping[str, Any]]]],
) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The arrays and options of a mapping of arrays with options, or of a live module without.

    ``what`` describes the options; ``reader`` imports ``packages`` and returns the function that
    reads a module.
    """
    if isinstance(given, Mapping):
        if not isinstance(options, Mapping):
            raise TypeError(
                f"arrays need options: a mapping with the {what}, got {type(options).__name__}"
            )
        return numpy_arrays(given), options
    if options is not None:
        raise TypeError(
            f"options are for a mapping of arrays, got them with {type(given).__name__}: "
            "leave them out, since a module has its own"
        )
    try:
        read_module = reader()
    except ImportError as error:
        raise ImportError(
            f"{type(given).__qualname__} is not a mapping of arrays, and converting a live "
            f"module needs {packages}: pip install 'refseq2seq[peers]' ({error})"
        ) from error
    return read_module(given)


def numpy_arrays(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arrays of a mapping, such as a state dict; the keys are those of `plain_name`."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            "expected a mapping of names to arrays, such as a state dict, got "
            f"{type(given).__name__} {' '.join(repr(given).split())[:60]}"
        )
    if name := next(filter(_OF_ADAPTERS.search, given), None):
        raise adapters(name)
    names = {plain_name(name): name for name in given}
    if twice := sorted(given.keys() - names.values()):
        raise ValueError(f"{twice[0]} and {names[plain_name(twice[0])]} name the same array")
    return {name: numpy_array(theirs, given[theirs]) for name, theirs in names.items()}


def numpy_array(name: str, x: Any) -> Any:
    """Convert a PyTorch tensor or another array to a NumPy array.

    A floating-point dtype that NumPy lacks, such as bfloat16, becomes float32, which represents
    its numbers exactly.
    """
    if not hasattr(x, "dtype"):
        is_mapping = isinstance(x, Mapping)
        cure = "pass that mapping itself" if is_mapping else "convert it with numpy.asarray"
        raise TypeError(
            f"{name} must be an array of NumPy or PyTorch, got {type(x).__name__}: {cure}"
        )
    if isinstance(x, Stored):
        return x  # read when it is needed
    if not hasattr(x, "detach"):
        x = to_numpy(x)
        return x if _numpy_has(x.dtype) else x.astype("float32")
    if x.is_meta:
        raise ValueError(
            f"{name} is on the meta device, which stores no values: load the weights into the "
            "module first"
        )
    x = x.detach().cpu()
    return np.asarray(x if _numpy_has(x.dtype) else x.float())


def _numpy_has(dtype: Any) -> bool:
    """False for a floating-point dtype of PyTorch or ml_dtypes that NumPy lacks (bfloat16)."""
    name = str(dtype).removeprefix("torch.")
    return "float" not in name or hasattr(np, name)


def plain_name(name: str) -> str:
    """The name that an array or a submodule had before ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def plain_module(module: Any) -> Any:
    """The module that was passed to ``torch.compile``; any other module is returned unchanged.

    A module of peft, which wraps another module and adds adapters, raises an error.
    """
    inner = getattr(module, "_orig_mod", module)
    for part in (module, inner):
        if type(part).__module__.partition(".")[0] == "peft":
            raise adapters(type(part).__qualname__)
    return inner


def adapters(found: str) -> UnsupportedFeature:
    """The error for adapters that are not merged into the weights; ``found`` names one."""
    return UnsupportedFeature(
        f"adapters, such as those of LoRA, that are not merged ({found}): call peft's "
        "module.merge_and_unload() first, and convert or save the module that it returns"
    )


def wrong_module(argument: str, kinds: str, given: Any) -> TypeError:
    """The error for an argument that is neither one of ``kinds`` nor a mapping of arrays."""
    is_path = isinstance(given, str | bytes | os.PathLike)
    found = f"the path {given!r}: load the file first" if is_path else type(given).__qualname__
    return TypeError(f"{argument} must be {kinds}, or a mapping of names to arrays; got {found}")
