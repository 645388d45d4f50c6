"""The table from our parameter names to another library's, and conversion with its checks."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from ..backend import Array, c_ordered
from ..config import ModelConfig
from ..files.safetensors import Stored
from ..params import Params, build_params, param_shapes

Transform = Callable[[Array], Array]
"""Converts an array from the other library's layout to ours."""

Table = Mapping[str, tuple[str, Transform]]
"""Our name -> (their name, transform). No other code renames, transposes or offsets arrays."""


def same(x: Array) -> Array:
    """Return the array unchanged."""
    return x


def transposed(x: Array) -> Array:
    """Transpose a matrix: PyTorch's ``Linear`` stores (d_out, d_in), we store (d_in, d_out)."""
    return x.T


def kernel(x: Array) -> Array:
    """The matrix that multiplies `refseq2seq.frames.windows`, from a kernel of PyTorch's Conv1d.

    The kernel's axes are d_out, d_in and window.
    """
    x = np.asarray(x)
    if x.ndim != 3:
        return x.reshape(-1)  # which has the wrong shape, whatever is expected
    return x.T.reshape(x.shape[2] * x.shape[1], x.shape[0])


class SpecialTokens(TypedDict):
    """The fields of `ModelConfig` with tokens."""

    decoder_start_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    forced_bos_id: int | None
    forced_eos_id: int | None
    suppressed_ids: tuple[int, ...]
    begin_suppressed_ids: tuple[int, ...]


def special_tokens(decoder_start_id: int, eos_ids: Sequence[int], pad_id: int) -> SpecialTokens:
    """The tokens of a library that forces and suppresses none."""
    if not isinstance(eos_ids, Sequence | np.ndarray):
        raise TypeError(f"eos_ids must be a sequence of token ids, such as (2,), got {eos_ids!r}")
    return {
        "decoder_start_id": decoder_start_id,
        "eos_ids": tuple(eos_ids),
        "pad_id": pad_id,
        "forced_bos_id": None,
        "forced_eos_id": None,
        "suppressed_ids": (),
        "begin_suppressed_ids": (),
    }


def module_rows(ours: str, theirs: str, names: Mapping[str, str], **parts: Any) -> Table:
    """The rows of a table for the arrays of PyTorch's modules.

    ``names`` maps our name of a module to theirs, of three kinds:

    - a linear map: ``self_attention.q`` stands for the arrays ``w_q`` and ``b_q``;
    - an array, if their name ends with ``.weight``: it is taken unchanged;
    - any other is a norm, with a gain and a bias.

    ``ours`` and ``theirs`` are prefixes, and ``parts`` the values of each ``{part}`` in the names.
    """
    table: dict[str, tuple[str, Transform]] = {}
    for our_name, their_name in names.items():
        our, their = (ours + our_name).format(**parts), (theirs + their_name).format(**parts)
        path, _, last = our.rpartition(".")
        if their.endswith(".weight"):
            table[our] = their, same
        elif last in ("q", "k", "v", "o", "in", "gate", "out"):
            table[f"{path}.w_{last}"] = f"{their}.weight", transposed
            table[f"{path}.b_{last}"] = f"{their}.bias", same
        else:
            table[f"{our}.gain"] = f"{their}.weight", same
            table[f"{our}.bias"] = f"{their}.bias", same
    return table


def numbered(config: ModelConfig, table: Table) -> Table:
    """Replace ``*`` in a table by layer numbers, and keep the rows that ``config`` needs."""
    rows = {}
    for ours in param_shapes(config):
        number = re.search(r"(?<=\.)\d+(?=\.|$)", ours)
        if ours in table or number is None:
            rows[ours] = table[ours]
        else:
            theirs, transform = table[f"{ours[: number.start()]}*{ours[number.end() :]}"]
            rows[ours] = theirs.replace("*", number[0]), transform
    return rows


def convert_params(
    config: ModelConfig,
    table: Table,
    arrays: Mapping[str, Any],
    unused: Collection[str] = (),
    take: Transform = c_ordered,
) -> Params:
    """Convert another library's arrays to the parameters of ``config``.

    Parameters
    ----------
    config : ModelConfig
    table : Table
        With a row for each parameter of ``config``.
    arrays : mapping of their names to arrays
        All of one dtype: float16, float32 or float64.
    unused : collection of str
        Their names of arrays that the model has but generation does not need.
    take : function, optional
        Returns the parameter for a converted array. By default it is a copy, so that further
        training does not change our model.

    Raises
    ------
    ValueError
        If an array is missing, left over, or of the wrong shape or dtype. The message names it.
    """
    used: dict[str, str] = {}  # their name -> dtype

    def array(ours: str, shape: tuple[int, ...]) -> Array:
        theirs, transform = table[ours]
        if theirs not in arrays:
            longer = next((name for name in arrays if name.endswith(f".{theirs}")), None)
            cure = f"; it may be {longer}: remove the prefix from all names" if longer else ""
            raise ValueError(f"there is no array {theirs}, from which {ours} is made{cure}")
        given = arrays[theirs]
        stored = given if isinstance(given, Stored) else np.asarray(given)
        if stored.dtype.name not in ("float16", "float32", "float64"):
            raise ValueError(f"{theirs} must be float16, float32 or float64, got {stored.dtype}")
        x = transform(stored)
        if x.shape != shape:
            raise ValueError(
                f"{theirs} has shape {stored.shape}, which makes {x.shape} for {ours}; "
                f"the options ask for {shape}"
            )
        used[theirs] = stored.dtype.name
        return take(x)

    params = build_params(config, array)
    if left := sorted(arrays.keys() - used.keys() - set(unused)):
        raise ValueError(f"arrays that the options do not account for: {', '.join(left)}")
    if len(set(used.values())) > 1:
        by_dtype = {dtype: name for name, dtype in used.items()}
        raise ValueError(f"the arrays must have one dtype, got {by_dtype}")
    return params
