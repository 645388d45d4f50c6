"""Parts of the report: which quantities are not captured, and where."""

import re
from collections.abc import Collection, Iterable

from ...watching.quantities import inputs_of


def unseen(name: str, compared: Collection[str], not_compared: Collection[str]) -> list[str]:
    """The quantities that were not compared between ``name`` and compared ones, in order."""
    names = [*compared, *not_compared]
    found, waiting = set(), [name]
    while waiting:
        for source in inputs_of(waiting.pop(), names):
            if source in not_compared and source not in found:
                found.add(source)
                waiting.append(source)
    return [other for other in not_compared if other in found]


def by_place(names: Iterable[str]) -> list[str]:
    """Lines that group names by all but their last word; layer numbers become ``*``.

    Examples
    --------
    >>> by_place(["encoder.layers.0.self_attention.q", "encoder.layers.1.self_attention.k"])
    ['encoder.layers.*.self_attention: q, k']
    """
    places: dict[str, dict[str, None]] = {}
    for name in names:
        place, _, kind = re.sub(r"\.\d+\.", ".*.", name).rpartition(".")
        places.setdefault(place, {})[kind] = None
    return [f"{place}: {', '.join(kinds)}".removeprefix(": ") for place, kinds in places.items()]
