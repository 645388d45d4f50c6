"""Which places of a quantity mean something: the others are compared with nothing."""

import re
from pathlib import Path

import numpy as np

from ...files import safetensors
from ...files.reading import read_json
from ...quantities import quantity
from ..simulation import meaningful


class Meaning:
    """What means something in the quantities of one case.

    Nothing does where a source token is masked, except in the weights, which are zero there;
    nor do scores of target tokens that come later, nor a row after its end.
    """

    def __init__(self, case: Path) -> None:
        inputs = safetensors.read(case / "inputs.safetensors")
        self._outputs = safetensors.read(case / "outputs.safetensors")
        about = read_json(case / "case.json")
        self._source: np.ndarray = inputs["source_mask"]  # (batch, n_source)
        self._n_forced = inputs["prefix_lengths"] - inputs["prefix_lengths"].min()  # (batch,)
        self._searches = about["method"]["name"] == "beam_search"

    def of_output(self, name: str, x: np.ndarray) -> np.ndarray:
        """For the tokens and log-probabilities that come out: up to their lengths."""
        if name not in ("tokens", "log_probs"):
            return np.ones(x.shape, bool)
        return np.arange(x.shape[-1]) < self._outputs["lengths"][..., None]

    def of_quantity(self, name: str, x: np.ndarray) -> np.ndarray:
        """For what passes a tap: boolean, the shape of ``x``."""
        per_row = x.shape[0] // len(self._source)  # a beam search has several beams for each
        where = meaningful(name, x.shape, np.repeat(self._source, per_row, axis=0), None)
        step = re.match(r"step\.(\d+)\.", name)
        if step and quantity(name).shape.startswith("(batch,") and not self._searches:
            rows = self._running(int(step[1]), name.endswith(".chosen"))
            where = where & rows.reshape(-1, *[1] * (x.ndim - 1))
        return where

    def _running(self, step: int, chooses: bool) -> np.ndarray:
        """The rows that have not ended before the step; if they choose, past their prefix too."""
        before_end = step < self._n_forced + self._outputs["lengths"]
        return before_end & (step >= self._n_forced) if chooses else before_end
