"""Requests with one rule changed: left out, applied in another place, or by another convention."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...generation.configured import DEFAULT_NEW_TOKENS
from ...generation.filters import top_k
from ...generation.sampling import MadeProcessor
from .outputs import Request


def other_requests(request: Request) -> Iterator[tuple[str, Request]]:
    """The request with one rule changed: what was changed, and the request."""
    yield from _other_processors(request)
    yield from _other_configs(request)
    how = request.how
    for name, default in DEFAULTS.items():
        if name in how or name == "eos_ids":
            yield f"without {name}", request.asked(**{name: default})
    if (limit := how.get("max_new_tokens")) is not None:
        shorter = {limit - len(prefix) for prefix in request.prefixes}
        for other in {limit - 1, limit + 1, DEFAULT_NEW_TOKENS, *shorter} - {limit}:
            if other > 0:
                yield f"max_new_tokens is {other}", request.asked(max_new_tokens=other)
    if request.searches:
        yield from _other_searches(request)


DEFAULTS = {
    "min_new_tokens": 0, "eos_ids": (), "prefix": None, "source_mask": None, "forced_bos_ids": None
}  # fmt: skip


def _other_processors(request: Request) -> Iterator[tuple[str, Request]]:
    """Processors left out, in another order, and top-k that keeps ties."""
    for name, processors in request.processors.items():
        for i, process in enumerate(processors):
            before, after = processors[:i], processors[i + 1 :]
            without = request.with_processors(name, (*before, *after))
            yield f"without {process!r}", without
            if isinstance(process, MadeProcessor) and process.name == "bad_words":
                # Those of one token are in suppressed_ids, if the model was converted.
                for told, other in _other_configs(without):
                    if told.startswith("without suppressed_ids"):
                        yield f"without {process!r}, {told}", other
            if isinstance(process, MadeProcessor) and process.name == "top_k":
                ties = (*before, top_k(*process.args, keep_ties=True), *after)
                yield f"{process!r} keeps ties", request.with_processors(name, ties)
            for j in range(i + 1, len(processors)):
                new = list(processors)
                new[i], new[j] = new[j], new[i]
                told = f"with {process!r} and {processors[j]!r} exchanged"
                yield told, request.with_processors(name, tuple(new))


def _other_configs(request: Request) -> Iterator[tuple[str, Request]]:
    """Rules of the model's config left out."""
    c = request.model.config
    for field in ("suppressed_ids", "begin_suppressed_ids", "forced_bos_id", "forced_eos_id"):
        none: Any = () if field.endswith("ids") else None
        if getattr(c, field) != none:
            other = replace(request.model, config=replace(c, **{field: none}))
            yield f"without {field} of the model's config", replace(request, model=other)


def _other_searches(request: Request) -> Iterator[tuple[str, Request]]:
    """Other rules of beam search."""
    how, asked = request.how, request.asked
    penalty = how.get("length_penalty", 1.0)
    early: Any
    for early in (True, False, "never"):
        if early is not how.get("early_stopping", False):
            yield f"early_stopping is {early!r}", asked(early_stopping=early)
    for exponent in (0.0, 1.0):
        if exponent != penalty:
            yield f"length_penalty is {exponent:g}", asked(length_penalty=exponent)
    if not callable(penalty):
        lengths = {len(prefix) for prefix in request.prefixes}
        powers = {"the prefix": lengths.pop()} if len(lengths) == 1 else {}
        powers["one token less"] = -1
        for told, more in powers.items():
            power = _Power(float(penalty), more)
            yield f"the length of a score counts {told}", asked(length_penalty=power)
    for name, other in (("processors", "logits_processors"), ("logits_processors", "processors")):
        if how.get(name):
            moved = {name: (), other: (*how.get(other, ()), *how[name])}
            yield f"{name} are applied as {other}", asked(**moved)
    for beams in {1, how.get("beams", 4) + 1, how.get("beams", 4) - 1}:
        if beams >= request.n and beams != how.get("beams", 4):
            yield f"beams is {beams}", asked(beams=beams)


@dataclass(frozen=True)
class _Power:
    """A length penalty that counts more tokens, or fewer."""

    exponent: float
    more: int

    def __call__(self, length: int) -> float:
        return max(length + self.more, 1) ** self.exponent
