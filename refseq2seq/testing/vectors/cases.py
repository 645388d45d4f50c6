"""A case, which is a model with its inputs and generation options, and its outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import ModelConfig
from ...files.checkpoint import completed
from ...files.reading import read_json
from ...generation.beam import beam_search
from ...generation.filters import temperature, top_k, top_p
from ...generation.loop import Generation, Step, decode_steps
from ...generation.sampling import Processor, greedy, sample
from ...model import Model
from ...taps import Tap, no_tap

FILTERS: dict[str, Callable[[Any], Processor]] = {
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
}


def read_config(path: Path) -> ModelConfig:
    """The configuration in a file ``config.json``, of this version or of the first."""
    fields = read_json(path)
    is_new = isinstance(fields.get("encoder"), dict) and "input" in fields["encoder"]
    return ModelConfig.from_dict(fields if is_new else completed(fields))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with its inputs and generation options. Arrays are on the host."""

    name: str
    flags: tuple[str, ...]  # names in `MISTAKES` of the mistakes that the case reveals
    comment: str
    model: Model
    source: np.ndarray  # (batch, n_source) or (batch, n_source, n_features): token ids or frames
    source_mask: np.ndarray  # (batch, n_source) boolean, True = real token or frame
    target: np.ndarray  # (batch, n_target) integer token ids, the input of `forward`
    prefix: np.ndarray  # (batch, n) first tokens of the generated targets, right-padded
    prefix_lengths: np.ndarray  # (batch,)
    uniforms: np.ndarray | None  # (batch, max_new_tokens) numbers in [0, 1) for sampling
    eos_ids: tuple[int, ...]
    max_new_tokens: int
    method: dict[str, Any]  # {"name": "greedy"}, "sample" or "beam_search", with its options

    @property
    def request(self) -> dict[str, Any]:
        """The arguments that `decode_steps` and `beam_search` share."""
        lengths = self.prefix_lengths
        return {
            "source_mask": self.source_mask,
            "prefix": [row[:n].tolist() for row, n in zip(self.prefix, lengths, strict=True)],
            "max_new_tokens": self.max_new_tokens,
            "eos_ids": self.eos_ids,
        }

    @property
    def search(self) -> dict[str, Any]:
        """The arguments of `beam_search` only."""
        return {name: value for name, value in self.method.items() if name != "name"}


def outputs_of(case: Case, tap: Tap = no_tap) -> dict[str, np.ndarray]:
    """The outputs of the generation of a case, by name; every quantity passes the tap."""
    if case.method["name"] == "beam_search":
        found: Any = beam_search(case.model, case.source, tap=tap, **case.request, **case.search)
        last = "scores"
    else:
        found = Generation.from_steps(steps_of(case, tap), case.model.config.pad_id)
        last = "finished"
    return {name: getattr(found, name) for name in ("tokens", "lengths", "log_probs", last)}


def steps_of(case: Case, tap: Tap = no_tap) -> list[Step]:
    """The steps of a case with greedy decoding or sampling."""
    filters = [make(case.method[name]) for name, make in FILTERS.items() if name in case.method]
    choose = sample(*filters) if case.method["name"] == "sample" else greedy()
    options = {"choose": choose, "uniforms": case.uniforms, "tap": tap, **case.request}
    return list(decode_steps(case.model, case.source, **options))
