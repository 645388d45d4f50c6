"""From the arrays of another implementation to a diagnosis: judged, and explained."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...files import safetensors
from ...masks import causal_mask, padding_mask, real_positions
from ...model import Model
from ...watching.quantities import LOOPS, QUANTITIES, find_quantity
from ...watching.trace import Trace
from ..compare import Difference, as_float64, differences
from ..expected import Expected
from ..rounding import rounded
from ..simulation import mask_at
from ..tolerance import spread
from .explain import Evidence, causes_of
from .local import Local, fitted, judged_locally
from .replay import Scene
from .result import UNHOOKED, Diagnosis, Fault
from .steps import by_step, joined, while_same
from .story import unseen


@dataclass(frozen=True)
class Seen:
    """What another implementation computed from one input."""

    arrays: dict[str, np.ndarray]  # float64, by name; in a loop with the step
    ids: tuple[np.ndarray, np.ndarray]  # of source and target: token ids, or vectors of a source
    masks: tuple[np.ndarray, np.ndarray]  # of both, True = real token
    pads: np.ndarray  # (batch, n_encoded) True = the source has pad_id there, masked or not
    lengths: list[int] | None  # number of tokens that each step of a loop reads
    unhooked: tuple[np.ndarray, np.ndarray] | None  # tokens and logits of a run without hooks

    @cached_property
    def joined(self) -> dict[str, np.ndarray]:
        """The arrays under the names of a forward pass."""
        return self.arrays if self.lengths is None else joined(self.arrays, self.lengths)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far another implementation may be off."""

    dtype: str  # number format whose rounding is allowed
    z: float  # largest error of an element, in spreads
    runs: int  # of simulated rounding
    rounds_weights: bool  # whether its weights are in that format
    is_exact: bool  # whether its arrays are known as they were computed, not rounded once more


def read_arrays(arrays: Any) -> dict[str, np.ndarray]:
    """The arrays of a mapping or a file, in float64 and by name."""
    if isinstance(arrays, str | os.PathLike):
        is_npz = os.fspath(arrays).endswith(".npz")
        arrays = Trace.load(arrays) if is_npz else safetensors.read(arrays)
    if not isinstance(arrays, Mapping):
        raise TypeError(
            "arrays must be a mapping of names to arrays, or the path of an .npz or .safetensors "
            f"file, got {type(arrays).__name__}"
        )
    found = {}
    for name, x in arrays.items():
        if find_quantity(name) is None:
            raise ValueError(f"arrays has {name!r}, which is no quantity{_nearest(name)}")
        try:
            found[name] = as_float64(x if hasattr(x, "dtype") else np.asarray(x))
        except (TypeError, ValueError) as error:
            raise type(error)(f"arrays[{name!r}]: {error}") from error
    if not found:
        raise ValueError("arrays must have at least one quantity, got none")
    return found


def _nearest(name: str) -> str:
    """A hint at the name that was meant."""
    known = [re.sub(r"\*", "0", quantity.name) for quantity in QUANTITIES]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f": did you mean {near[0]!r}?" if near else "; rs.Trace shows the names"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One input, judged locally."""

    seen: Seen
    local: Local
    model: Model  # in float64
    expected: dict[str, Expected]  # by the names of ``seen``
    deviations: tuple[Difference, ...]
    unhooked_agrees: bool | None


MOST_EXPLAINED = 32
"""The most faults that are explained; so many usually have one cause, such as a wrong format."""


def judged(model: Model, seen: Seen, how: Tolerance) -> Judged:
    """Compare every quantity with that computed from the preceding ones."""
    model = model.to("numpy").astype("float64")
    in_dtype = rounded(model, how.dtype)
    if how.rounds_weights:
        model = in_dtype
    (source, target), (mask, _) = seen.ids, seen.masks
    local = judged_locally(
        model, in_dtype, seen.joined, seen.ids, seen.masks, how.dtype, how.runs, how.is_exact
    )
    expected = local.expected if seen.lengths is None else by_step(local.expected, seen.lengths)
    chosen = {quantity.name for quantity in LOOPS}
    unknown = [n for n in seen.arrays if n not in expected and bare(n) not in chosen]
    if unknown:
        raise ValueError(
            "model must have the architecture of the other implementation, which computes "
            f"{unknown[0]}: the model has no such quantity"
        )
    theirs = {
        name: fitted(x, expected[name].value.shape)
        for name, x in seen.arrays.items()
        if name in expected and bare(name) not in local.blocked
    }
    with np.errstate(over="ignore"):  # the square of a large error
        found = list(differences(expected, theirs, how.z))
    agrees = None
    if seen.unhooked is not None:
        whole = spread(in_dtype, source, target, mask, dtype=how.dtype, runs=8)["logits"]
        tokens, logits = seen.unhooked
        hooked = replace(whole, value=local.given.get("logits", whole.value))
        last, against_model = (
            next(
                differences({UNHOOKED: while_same(e, tokens, target)}, {UNHOOKED: logits}, how.z),
                None,
            )
            for e in (hooked, whole)
        )
        agrees = against_model is None
        if last is not None and not agrees:
            found.append(replace(last, agreed=len(theirs) - len(found)))
    return Judged(
        seen=seen,
        local=local,
        model=model,
        expected=expected,
        deviations=tuple(found),
        unhooked_agrees=agrees,
    )


def diagnosed(
    model: Model, inputs: Sequence[Judged], how: Tolerance, changed_by_hooks: tuple[str, ...]
) -> Diagnosis:
    """The diagnosis of the first input; the causes hold on all of them."""
    first = inputs[0]
    local, arrays = first.local, first.seen.arrays
    names = dict.fromkeys(bare(d.name) for d in first.deviations if d.name != UNHOOKED)
    whole = first.seen.joined
    compared = [name for name in local.expected if name in whole]
    missing = [name for name in local.expected if name not in whole]
    explained = [name for name in names if name in whole][:MOST_EXPLAINED]
    hidden = {name: unseen(name, compared, missing) for name in explained}
    evidence = [_evidence(one) for one in inputs]
    with np.errstate(all="ignore"):  # explanations that are far off overflow
        causes = causes_of(hidden, evidence, how.dtype, how.z, is_exact=how.is_exact)
    faults = tuple(Fault(d.name, d, causes.get(bare(d.name), ())) for d in first.deviations)
    unjudged = [n for n in arrays if n not in first.expected or bare(n) in local.blocked]
    last = [] if first.seen.unhooked is None else [UNHOOKED]
    return Diagnosis(
        faults=faults,
        compared=(*(n for n in first.expected if n in arrays and n not in unjudged), *last),
        not_compared=tuple(n for n in first.expected if n not in arrays),
        not_judged=tuple(unjudged),
        unhooked_agrees=first.unhooked_agrees,
        changed_by_hooks=changed_by_hooks,
        dtype=how.dtype,
        z=how.z,
        config=model.config,
    )


def bare(name: str) -> str:
    """The name without the step of a loop."""
    return re.sub(r"^step\.\d+\.", "", name)


def _evidence(one: Judged) -> Evidence:
    """The scene of an input, for trials."""
    (source, target), (mask, _) = one.seen.ids, one.seen.masks
    source_mask = None if mask.all() else mask
    mask = mask_at("encoder.embed", one.model.config.encoder, mask)
    n_source, n_target = mask.shape[1], target.shape[1]
    at = np.arange(n_source) if mask.all() else real_positions(mask)
    so_far, lengths = np.arange(n_target), one.seen.lengths
    expected, shown = one.local.expected, one.seen.joined
    theirs = {n: fitted(shown[n], e.value.shape) for n, e in expected.items() if n in shown}
    scene = Scene(
        config=one.model.config,
        params=one.model.params,
        source=source,
        source_mask=source_mask,
        target=target,
        positions={"encoder": (at, at), "decoder": (so_far, so_far)},
        masks={
            "encoder.self_attention": padding_mask(mask),
            "decoder.self_attention": causal_mask(so_far, so_far)[None, None],
            "decoder.cross_attention": padding_mask(mask),
        },
        passed=one.local.passed,
        seen=frozenset(one.local.given),
        misfits={n: x.shape for n, x in theirs.items() if x.shape != expected[n].value.shape},
        pads=one.seen.pads if source.ndim == 2 else np.zeros_like(mask),
        first=n_target if lengths is None else lengths[0],
    )
    return Evidence(
        scene=scene,
        theirs=theirs,
        own={name: e.value for name, e in expected.items()},
        where={name: e.where for name, e in expected.items()},
    )
