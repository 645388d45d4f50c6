"""Masks of the meaningful elements of a quantity; other elements are not compared."""

import re
from pathlib import Path

import numpy as np

from ...files import safetensors
from ...files.reading import read_json
from ...watching.quantities import quantity
from ..simulation import meaningful


class Meaning:
    """The meaningful elements of the quantities of one case, which is the folder ``case``.

    Not meaningful are elements of masked source tokens, except attention weights, which are zero
    there; scores of later target tokens; and rows after their end.
    """

    def __init__(self, case: Path) -> None:
        inputs = safetensors.read(case / "inputs.safetensors")
        outputs = safetensors.read(case / "outputs.safetensors")
        about = read_json(case / "case.json")
        self._source = _of_kind("b", inputs, "source_mask")  # (batch, n_source)
        self._lengths = _of_kind("i", outputs, "lengths")  # (batch,) or (batch, n_best)
        prefix_lengths = _of_kind("i", inputs, "prefix_lengths")
        self._n_forced = prefix_lengths - prefix_lengths.min()  # (batch,)
        self._searches = about["method"]["name"] == "beam_search"

    def of_output(self, name: str, x: np.ndarray) -> np.ndarray:
        """For an output: boolean, the shape of ``x``; tokens are meaningful up to their lengths."""
        if name not in ("tokens", "log_probs"):
            return np.ones(x.shape, bool)
        if self._lengths.shape != x.shape[:-1]:
            raise ValueError(f"{name} has shape {x.shape}, but lengths {self._lengths.shape}")
        return np.arange(x.shape[-1]) < self._lengths[..., None]

    def of_quantity(self, name: str, x: np.ndarray) -> np.ndarray:
        """For a quantity that passes a tap: boolean, the shape of ``x``."""
        source, has_source = self._source, "n_source" in quantity(name).shape
        if has_source and x.size < x.shape[0] * source.shape[1]:
            raise ValueError(f"{name} has shape {x.shape}, but source_mask {source.shape}")
        per_row = x.shape[0] // len(source)  # beam search has several beams per row
        mask = np.repeat(source, per_row, axis=0) if has_source else None
        where = meaningful(name, x.shape, mask, None)
        step = re.match(r"step\.(\d+)\.", name)
        if step and quantity(name).shape.startswith("(batch,") and not self._searches:
            n_new = int(step[1]) + 1 - self._n_forced  # the row's new tokens after the step
            running = n_new <= self._lengths
            if name.endswith(".chosen"):
                running &= n_new > 0
            where = where & running.reshape(-1, *[1] * (x.ndim - 1))
        return where


def _of_kind(kind: str, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The array ``name``; raise unless its dtype is of this NumPy ``kind``, such as "b"."""
    if arrays[name].dtype.kind != kind:
        raise TypeError(f"{name} must have a dtype of kind {kind!r}, got {arrays[name].dtype}")
    return arrays[name]
