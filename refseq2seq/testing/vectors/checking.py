"""Comparison of the files of another program with the vectors."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ...checks import check_number
from ...files import safetensors
from ...files.reading import FileError, file_errors, read_bytes, read_json
from ...model import Model
from ...params import build_params
from ...watching.quantities import quantity
from ..compare import Difference, coarser, first_difference
from ..diagnosis import Diagnosis, diagnose_arrays
from ..mistakes import MISTAKES
from ..rounding import round_to
from ..simulation import mask_at, meaningful
from .cases import read_config
from .making import CHECKSUMS, FORMAT, MANIFEST, VERSION, checksums

FILES = ("forward", "generation", "outputs")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The comparison of one file of one case."""

    case: str
    file: str  # "forward", "generation" or "outputs"
    compared: int  # number of quantities in the file of the other program, without skipped ones
    of: int  # number of quantities in the file of the vectors
    difference: Difference | None  # the first difference
    flags: tuple[str, ...]  # the mistakes that the case reveals, in `MISTAKES`
    diagnosis: Diagnosis | None  # of a forward pass that differs: all its faults, and their causes

    def report(self) -> str:
        """Text: all faults and their causes; or the first difference, and what may cause it."""
        head = f"{self.case} {self.file}: "
        if self.difference is None:
            return head + "no difference"
        faults = self.diagnosis.faults if self.diagnosis else ()
        story = [str(self.difference), *([self.diagnosis.report()] if self.diagnosis else [])]
        lines = [head + "\n\n".join(story[-1:] if faults else story)]
        if not all(fault.causes for fault in faults) or not faults:
            lines += ["", "Mistakes that this case reveals:"]
            lines += [f"  {flag}: {MISTAKES[flag]['description']}" for flag in self.flags]
        return "\n".join(lines)


def check(
    directory: str | os.PathLike[str],
    theirs: str | os.PathLike[str],
    *,
    rtol: float | None = None,
    skip: Sequence[str] = (),
) -> list[Checked]:
    """Compare files of another program with those of the vectors, quantity by quantity.

    Parameters
    ----------
    directory : path
        Directory that `make` wrote.
    theirs : path
        Directory with the files of the other program, under the same names. It may contain
        any subset of the cases, files and quantities.
    rtol : float, optional
        As in `refseq2seq.testing.first_difference`; 0 requires the same bits.
    skip : sequence of str
        What is not compared: flags, whose cases are left out; and patterns of names of cases and
        of quantities, such as ``"*-beams"`` and ``"*.scores"``.

    Returns
    -------
    list of Checked
        One for each file in ``theirs``.

    Raises
    ------
    ValueError
        If there is nothing to compare, a folder or a quantity in ``theirs`` is unknown, or
        ``skip`` names nothing that the vectors have.
    FileError
        If the vectors are not as `make` wrote them, or a file in ``theirs`` has an invalid
        format.
    """
    if rtol is not None:
        rtol = check_number("rtol", rtol, "[0, inf)")
    ours, theirs = Path(directory), Path(theirs)
    _check_whole(ours)
    known = {path.name for path in ours.iterdir() if path.is_dir()}
    found = sorted(path.name for path in theirs.iterdir() if path.is_dir())
    flags = {case["name"]: case["flags"] for case in read_json(ours / MANIFEST)["cases"]}
    skipped = _Skipped(skip, flags)
    if unknown := sorted(set(found) - known):
        raise ValueError(f"{theirs} has the folder {unknown[0]}, which is not a case of {ours}")
    checked = [
        _checked(ours / case, theirs / case, file, rtol, skipped)
        for case in found
        if not skipped.case(case)
        for file in FILES
        if os.path.lexists(theirs / case / f"{file}.safetensors")
    ]
    skipped.check_used()
    if found and not checked and skip:
        raise ValueError(f"{theirs} has nothing to compare that skip={list(skip)} leaves")
    if not checked:
        raise ValueError(
            f"{theirs} has nothing to compare: expected CASE/FILE.safetensors, where CASE is such "
            f"as {min(known, default='t5-00-ordinary')}, and FILE is one of {', '.join(FILES)}"
        )
    return checked


def _check_whole(root: Path) -> None:
    """Raise unless the files match their checksums and the version of the format."""
    with file_errors(root / CHECKSUMS):
        expected = read_bytes(root / CHECKSUMS).decode().splitlines()
    with file_errors(root):
        if changed := sorted(set(checksums(root).splitlines()) ^ set(expected)):
            raise FileError(
                f"{changed[0].split('  ', 1)[-1]} does not match {CHECKSUMS}: it was changed, "
                "removed or added after the vectors were written"
            )
    manifest = read_json(root / MANIFEST)
    if manifest.get("format") != FORMAT or manifest.get("version") not in range(1, VERSION + 1):
        raise FileError(f"{root / MANIFEST}: expected {FORMAT!r} of version 1 to {VERSION}")


class _Skipped:
    """What is not compared."""

    def __init__(self, patterns: Sequence[str], flags: Mapping[str, Sequence[str]]) -> None:
        self._flags = flags
        self._patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self._unused = set(self._patterns)

    def case(self, name: str) -> bool:
        """Whether a case is left out."""
        return self._any([name, *self._flags[name]])

    def quantity(self, name: str) -> bool:
        """Whether a quantity is left out."""
        return self._any([name])

    def _any(self, names: Sequence[str]) -> bool:
        found = {p for p in self._patterns if any(fnmatchcase(name, p) for name in names)}
        self._unused -= found
        return bool(found)

    def check_used(self) -> None:
        """Raise if a pattern names nothing."""
        known = {flag for flags in self._flags.values() for flag in flags} | self._flags.keys()
        for pattern in sorted(self._unused):
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ValueError(
                    "skip must name flags, cases or quantities of the compared files, got "
                    f"{pattern!r}"
                )


def _checked(ours: Path, theirs: Path, file: str, rtol: float | None, skipped: _Skipped) -> Checked:
    path = f"{file}.safetensors"
    expected, actual = safetensors.read(ours / path), safetensors.read(theirs / path)
    if not actual:
        raise FileError(f"{theirs / path} has no arrays to compare")
    actual = {name: x for name, x in actual.items() if not skipped.quantity(name)}
    try:
        meaning = Meaning(ours)
        where = meaning.of_output if file == "outputs" else meaning.of_quantity
        means = {name: where(name, x) for name, x in expected.items()}
        flags = read_json(ours / "case.json")["flags"]
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise FileError(f"{ours}: its files do not belong together: {error!r:.500}") from error
    compared = {
        name: _meaningful(name, x, expected[name], means[name]) if name in expected else x
        for name, x in actual.items()
    }
    with file_errors(theirs / path):
        difference = first_difference(expected, compared, rtol=rtol) if compared else None
    differs = difference is not None and file == "forward"
    return Checked(
        case=ours.name,
        file=file,
        compared=len(actual),
        of=len(expected),
        difference=difference,
        flags=tuple(flags),
        diagnosis=_diagnosis(ours, actual) if differs else None,
    )


def _diagnosis(case: Path, actual: Mapping[str, np.ndarray]) -> Diagnosis:
    """All faults of a forward pass, in the coarsest dtype that has all numbers of its arrays."""
    config = read_config(case / "config.json")
    arrays = safetensors.read(case / "weights.safetensors")
    model = Model(config=config, params=build_params(config, lambda name, shape: arrays[name]))
    inputs = safetensors.read(case / "inputs.safetensors")
    tokens = inputs["source"], inputs["target"], inputs["source_mask"]
    dtype = coarser(*actual.values())
    if all(np.array_equal(x, round_to(x, "float32"), equal_nan=True) for x in actual.values()):
        dtype = "float32" if dtype == "float64" else dtype  # saved in a wider format
    return diagnose_arrays(model, actual, *tokens, dtype=dtype)


def _meaningful(
    name: str, actual: np.ndarray, expected: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """``actual``, with ``expected`` at elements that are not meaningful (``where`` is False).

    Of another shape, it is returned unchanged, and the comparison reports the shape.
    """
    if name.endswith(".positions") and actual.shape == expected.shape[1:]:  # added to all rows
        actual = np.broadcast_to(actual, expected.shape)
    if actual.shape != expected.shape:
        return actual
    return np.where(where, actual, expected.astype(actual.dtype))


class Meaning:
    """The meaningful elements of the quantities of one case, which is the folder ``case``.

    Not meaningful are elements of masked source tokens, except attention weights, which are zero
    there; scores of later target tokens; and rows after their end.
    """

    def __init__(self, case: Path) -> None:
        inputs = safetensors.read(case / "inputs.safetensors")
        outputs = safetensors.read(case / "outputs.safetensors")
        about = read_json(case / "case.json")
        self._encoder = read_config(case / "config.json").encoder
        self._source = _of_kind(
            "b", inputs, "source_mask"
        )  # (batch, n_source) or (batch, n_frames)
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
        source = mask_at(name, self._encoder, self._source)
        has_source = re.search("n_source|n_frames|n_windows", quantity(name).shape)
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
                running &= n_new > 0  # a row in its prefix chooses nothing
            where = where & running.reshape(-1, *[1] * (x.ndim - 1))
        return where


def _of_kind(kind: str, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The array ``name``; raise unless its dtype is of this NumPy ``kind``, such as "b"."""
    if arrays[name].dtype.kind != kind:
        raise TypeError(f"{name} must have a dtype of kind {kind!r}, got {arrays[name].dtype}")
    return arrays[name]
