"""Drawing of cases, until the situation occurs and no token depends on rounding."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...backend import Array
from ...config import ModelConfig
from ...generation.beam import beam_search, beam_steps
from ...generation.loop import Step
from ...model import Model
from .cases import FILTERS, Case, outputs_of, steps_of
from .situations import SITUATIONS, ordinary, situations_of

CLOSE = 1e-3
"""Scores that differ by less are a near-tie, and so are a uniform number and the cumulative
probability with which it is compared. Implementations in float32 must not fail because of them."""


def draw_cases(
    family: str, of: ModelConfig | Model, n: int | None, seed: int, dtype: str
) -> list[Case]:
    """The first ``n`` cases of a config or a model; by default one of each situation.

    After the last situation the sequence starts again, with other numbers. A situation that does
    not occur with the weights of a model, such as beams that change places, is left out.
    """
    names = situations_of(of)
    n = len(names) if n is None else n
    drawn = (_drawn(family, of, i, names[i % len(names)], seed, dtype) for i in range(n))
    return [case for case in drawn if case is not None]


def _drawn(
    family: str, of: ModelConfig | Model, i: int, situation: str, seed: int, dtype: str
) -> Case | None:
    reveals, is_model = SHOWS.get(situation), isinstance(of, Model)
    for attempt in range(20 if is_model else 1000):
        rng = np.random.default_rng([seed, zlib.crc32(family.encode()), i, attempt])
        case = SITUATIONS[situation](ordinary(family, of, rng), rng)
        if (reveals is None or reveals(case)) and _is_clear(case):
            model = case.model.astype(dtype).exact()
            return replace(case, name=f"{family}-{i:02}-{situation}", model=model)
    if is_model:
        return None
    raise ValueError(f"seed {seed} gives no clear case of {family}, {situation}: use another seed")


def _a_row_ends_early(case: Case) -> bool:
    lengths = outputs_of(case)["lengths"]
    return bool(1 < lengths.min() < lengths.max())


def _prefix_is_no_choice(case: Case) -> bool:
    """Whether a forced token differs from the one with the best score."""
    return any(
        (step.tokens != step.scores.argmax(axis=-1))[step.forced].any() for step in steps_of(case)
    )


def _edges_are_filtered(case: Case) -> bool:
    """Whether the uniforms near 0 and 1 meet a removed id, and the order of filters matters.

    These are the lowest id in the first step of row 0, and the highest in step 1 of row 1.
    """
    steps = steps_of(case)
    reordered = steps[0].logits
    for name in reversed(FILTERS):
        reordered = FILTERS[name](case.method[name])(reordered, None)  # type: ignore[arg-type]
    removed = steps[0].scores == -np.inf
    return bool(
        removed[0, 0]
        and np.isneginf(steps[1].scores[1, -1])
        and (removed != (reordered == -np.inf)).any()
    )


def _beams_change_places(case: Case) -> bool:
    """Whether beams are reordered in two steps, and a row's hypotheses differ in length."""
    search: dict[str, Any] = {name: x for name, x in case.search.items() if name != "n_best"}
    steps = list(beam_steps(case.model, case.source, **case.request, **search))
    parents = [
        np.take_along_axis(step.candidates.beams, step.survivors, axis=1) for step in steps[1:]
    ]
    moved = [bool((beams != np.arange(search["beams"])).any()) for beams in parents]
    lengths = outputs_of(case)["lengths"]
    return sum(moved) >= 2 and bool((lengths.min(axis=1) < lengths.max(axis=1)).any())


SHOWS: dict[str, Callable[[Case], bool]] = {
    "prefixes": _prefix_is_no_choice,
    "ending": _a_row_ends_early,
    "sampling": _edges_are_filtered,
    "beams": _beams_change_places,
}
"""Whether the tokens of a case would reveal the mistake of its situation; others always do."""


def _is_clear(case: Case) -> bool:
    """Whether every token stays the same if numbers change slightly, and in float32."""
    case = replace(case, model=case.model.exact())  # equal logits are equal to the last bit
    in_float32 = replace(case, model=case.model.astype("float32").exact())
    if case.method["name"] == "beam_search":
        found = beam_search(case.model, case.source, **case.request, **case.search)
        same = np.array_equal(outputs_of(in_float32)["tokens"], found.tokens)
        return same and bool((found.margin > CLOSE).all())
    steps = steps_of(case)
    others = [in_float32]
    if case.uniforms is not None:
        others += [_moved(case, -CLOSE), _moved(case, CLOSE)]
    elif not all((_gap(step.scores)[step.emitted] > CLOSE).all() for step in steps):
        return False
    return all(np.array_equal(_tokens(steps_of(other)), _tokens(steps)) for other in others)


def _tokens(steps: list[Step]) -> Array:
    return np.stack([step.tokens for step in steps], axis=1)


def _gap(scores: Array) -> Array:
    """The difference between the best score and the best one below it: (batch,)."""
    best = scores.max(axis=-1, keepdims=True)
    return best[:, 0] - np.where(scores < best, scores, -np.inf).max(axis=-1)


def _moved(case: Case, by: float) -> Case:
    """The case with its uniform numbers shifted by ``by``, and p of top-p scaled by 1 + ``by``."""
    moved = {name: x * (1 + by) for name, x in case.method.items() if name == "top_p"}
    uniforms = np.clip(case.uniforms + by, 0.0, 1 - 2**-24)  # type: ignore[operator]
    return replace(case, method=case.method | moved, uniforms=uniforms)
