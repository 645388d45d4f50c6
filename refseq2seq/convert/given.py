"""What a caller gives to a converter, as NumPy arrays under the names of an uncompiled module."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import to_numpy
from .table import UnsupportedFeature

# In names: what the package peft puts around a module, beside a layer, or in its place.
_OF_ADAPTERS = re.compile(
    r"(?:^|\.)(?:lora_\w+|base_layer|base_model\.model|modules_to_save)(?:\.|$)"
)


def numpy_arrays(given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a mapping, such as a state dict, by the names that `plain_name` gives.

    Raises
    ------
    UnsupportedFeature
        If the names are those of adapters.
    ValueError
        If two names are the same there.
    TypeError, ValueError
        As from `numpy_array`.
    """
    if name := next(filter(_OF_ADAPTERS.search, given), None):
        raise adapters(name)
    names = {plain_name(name): name for name in given}
    if twice := sorted(given.keys() - names.values()):
        raise ValueError(f"{twice[0]} and {names[plain_name(twice[0])]} name the same array")
    return {name: numpy_array(theirs, given[theirs]) for name, theirs in names.items()}


def numpy_array(name: str, x: Any) -> np.ndarray:
    """Convert a tensor of PyTorch, or another array, to a NumPy array.

    Floating-point numbers that NumPy lacks, such as bfloat16, become float32, which holds
    them exactly.

    Raises
    ------
    TypeError
        If it is not an array.
    ValueError
        If it is a tensor on the meta device, which has no data.
    """
    if not hasattr(x, "dtype"):
        is_mapping = isinstance(x, Mapping)
        cure = "pass that mapping itself" if is_mapping else "convert it with numpy.asarray"
        raise TypeError(
            f"{name} must be an array of NumPy or PyTorch, got {type(x).__name__}: {cure}"
        )
    if not hasattr(x, "detach"):
        x = to_numpy(x)
        return x if _numpy_has(x.dtype) else x.astype("float32")
    if x.is_meta:
        raise ValueError(
            f"{name} is on the meta device, which holds no numbers: load the weights into the "
            "module first"
        )
    x = x.detach().cpu()
    return np.asarray(x if _numpy_has(x.dtype) else x.float())


def _numpy_has(dtype: Any) -> bool:
    """Of a dtype of NumPy or PyTorch; ml_dtypes adds bfloat16 and others to NumPy's."""
    name = str(dtype).removeprefix("torch.")
    return "float" not in name or hasattr(np, name)


def plain_name(name: str) -> str:
    """The name of an array or a part in the module before ``torch.compile``."""
    return name.replace("_orig_mod.", "")


def plain_module(module: Any) -> Any:
    """What was given to ``torch.compile``; another module as it is.

    Raises
    ------
    UnsupportedFeature
        If it is a module with adapters around another.
    """
    inner = getattr(module, "_orig_mod", module)
    for part in (module, inner):
        if type(part).__module__.partition(".")[0] == "peft":
            raise adapters(type(part).__qualname__)
    return inner


def adapters(found: str) -> UnsupportedFeature:
    """The error for adapters that are not merged into the weights; ``found`` names one."""
    return UnsupportedFeature(
        f"adapters, such as LoRA's, that are not merged ({found}): call peft's "
        "module.merge_and_unload() first, and convert or save what it returns"
    )


def wrong_module(argument: str, kinds: str, given: Any) -> TypeError:
    """The error for an argument that is none of these kinds, nor a mapping of arrays."""
    is_path = isinstance(given, str | bytes | os.PathLike)
    found = f"the path {given!r}: load the file first" if is_path else type(given).__qualname__
    return TypeError(f"{argument} must be {kinds}, or a mapping of names to arrays; got {found}")


def missing_peers(module: Any, packages: str, error: ImportError) -> ImportError:
    """The error for a live module that cannot be read without packages of the extra ``peers``."""
    return ImportError(
        f"{type(module).__qualname__} is no mapping of arrays, and a live module needs "
        f"{packages}: pip install 'refseq2seq[peers]' ({error})"
    )
