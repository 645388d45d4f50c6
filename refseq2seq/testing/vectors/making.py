"""Writing of vectors: a folder for each case, a manifest and the checksums of all files."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...checks import check_int
from ...config import FrameInput, ModelConfig
from ...files import safetensors
from ...files.reading import opened
from ...files.writing import new_directory
from ...model import Model, forward
from ...params import named_arrays, param_shapes
from ...watching.trace import Trace
from ..mistakes import MISTAKES
from .cases import Case, outputs_of
from .drawing import draw_cases
from .families import FAMILIES
from .situations import MOST_FRAMES, N_SOURCE

FORMAT, VERSION = "refseq2seq vectors", 2
MANIFEST, CHECKSUMS = "manifest.json", "SHA256SUMS"


def make(
    directory: str | os.PathLike[str],
    *,
    families: Sequence[str] | Mapping[str, ModelConfig | Model] = tuple(FAMILIES),
    cases: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
) -> list[str]:
    """Write vectors into a new or empty directory.

    The same arguments give the same bytes.

    Parameters
    ----------
    directory : path
    families : sequence of str, or mapping
        Names of configurations in ``FAMILIES``; or your own, ``{"mine": model}``, by names of
        letters, digits and underscores. A config gets random weights. A model keeps its weights:
        situations that would change them are left out, and those that do not occur with them.
    cases : int, optional
        Number of cases of each family; by default one of each situation.
    seed : int
        Seed of the weights and inputs.
    dtype : "float64" or "float32"
        Dtype of weights and quantities. Random weights have the same values in both.

    Returns
    -------
    list of str
        The names of the cases.

    Raises
    ------
    ValueError
        If an argument is invalid, the directory is not empty, or a config has too few tokens or
        positions for the inputs.
    """
    if isinstance(families, str | Model | ModelConfig) or not families:
        raise TypeError(
            "families must be a sequence of names, or a mapping of names to models or configs, got "
            f"{families!r}"
        )
    cases, seed = (
        cases if cases is None else check_int("cases", cases, 1),
        check_int("seed", seed, 0),
    )
    if not isinstance(families, Mapping):
        if unknown := sorted(set(families) - FAMILIES.keys()):
            raise ValueError(f"families must be among {', '.join(FAMILIES)}, got {unknown[0]!r}")
        families = {name: FAMILIES[name] for name in families}
    for name, of in families.items():
        _check_family(name, of)
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype must be float64 or float32, got {dtype!r}")
    with new_directory(directory) as root:
        drawn = [
            case
            for name, of in families.items()
            for case in draw_cases(name, of, cases, seed, dtype)
        ]
        for case in drawn:
            _write(root / case.name, case)
        revealed = {flag for case in drawn for flag in case.flags}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "made_with": {"refseq2seq": __version__, "numpy": np.__version__},
            "seed": seed,
            "dtype": dtype,
            "cases": [_about(case) for case in drawn],
            "notes": {flag: note for flag, note in MISTAKES.items() if flag in revealed},
        }
        _write_json(root / MANIFEST, manifest)
        (root / CHECKSUMS).write_text(checksums(root), encoding="utf-8", newline="\n")
    return [case.name for case in drawn]


def _check_family(name: str, of: Any) -> None:
    """Raise unless the inputs of `ordinary` fit the config or model."""
    if not isinstance(of, ModelConfig | Model):
        raise TypeError(f"families[{name!r}] must be a ModelConfig or Model, got {of!r:.80}")
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"families must have names of letters, digits and _, got {name!r}")
    c = of.config if isinstance(of, Model) else of
    for side in ("encoder", "decoder"):
        stack = getattr(c, side)
        frames = stack.input
        if isinstance(frames, FrameInput):
            n = N_SOURCE + frames.n_class_tokens
            if frames.length(MOST_FRAMES) <= n or stack.max_length in range(n):
                raise ValueError(
                    f"families[{name!r}] must have at least {n} positions, and {n} embeddings of "
                    f"{MOST_FRAMES} frames, got {stack.max_length} and {frames.length(MOST_FRAMES)}"
                )
        elif stack.vocab_size < 8 or (stack.max_length or 7) < 7:
            raise ValueError(
                f"families[{name!r}] must have at least 8 tokens and 7 positions, got "
                f"vocab_size = {stack.vocab_size} and max_length = {stack.max_length} in {side}"
            )


def checksums(root: Path) -> str:
    """A line for each file below ``root``: its SHA-256, two spaces, and its relative path."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return "".join(f"{_digest(root / path)}  {path}\n" for path in paths if path != CHECKSUMS)


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, case: Case) -> None:
    folder.mkdir()
    config = case.model.config
    arrays = dict(named_arrays(case.model.params))
    _write_json(folder / "config.json", config.to_dict())
    _write_json(folder / "case.json", _about(case))
    weights = {name: arrays[name] for name in param_shapes(config)}
    safetensors.write(folder / "weights.safetensors", weights)
    names = ("source", "target", "prefix", "prefix_lengths", "uniforms")
    inputs = {name: getattr(case, name) for name in (*names, "source_mask")}  # bytes last: aligned
    if case.uniforms is None:
        del inputs["uniforms"]
    if case.source.ndim == 3:
        inputs["source"] = case.source.astype(case.model.dtype)
    safetensors.write(folder / "inputs.safetensors", inputs)
    trace = Trace()
    forward(case.model, case.source, case.target, case.source_mask, tap=trace)
    safetensors.write(folder / "forward.safetensors", trace)
    trace = Trace()
    outputs = outputs_of(case, trace)
    safetensors.write(folder / "generation.safetensors", trace)
    safetensors.write(folder / "outputs.safetensors", outputs)


def _about(case: Case) -> dict[str, Any]:
    """The options of the generation, and the purpose of the case."""
    return {
        "name": case.name,
        "comment": case.comment,
        "flags": list(case.flags),
        "dtype": case.model.dtype.name,
        "method": case.method,
        "max_new_tokens": case.max_new_tokens,
        "eos_ids": list(case.eos_ids),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="\n")
