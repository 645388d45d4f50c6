"""Quantities in the place of each other, moved, rounded, left out or multiplied."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ....config import AttentionConfig
from ....model import position_terms
from ....ops import soft_cap
from ....watching.quantities import inputs_of, is_of_the_source
from ...rounding import round_to
from ..entering import last_word, parsed
from ..replay import Change, Scene, Values, mask_of, member
from .trial import Apply, Knob, Trial, applied, computed, factor_of, of_quantity, with_mask
from .weights import normalised

MOST = 80
"""The most quantities that are tried in the place of another."""


def _inputs(scene: Scene, name: str) -> list[str]:
    return inputs_of(name, list(scene.passed))


def swapped_inputs(scene: Scene, name: str) -> Iterator[Trial]:
    """Two inputs in the place of each other, such as gate and projected input."""
    inputs = _inputs(scene, name)
    if len(inputs) == 2 and scene.passed[inputs[0]].shape == scene.passed[inputs[1]].shape:
        a, b = inputs
        yield Trial(
            "SwappedWeights",
            f"{last_word(b)} and {last_word(a)} are exchanged",
            lambda s: s.changing(a, lambda _, v: v.original(b)).changing(
                b, lambda _, v: v.original(a)
            ),
        )


def other_inputs(scene: Scene, name: str, fault: str) -> Iterator[Trial]:
    """Another quantity, other rows or positions, or nothing, in the place of an input."""
    for source in _inputs(scene, name):
        yield from normalised(scene, name, source)
        yield from _others(scene, fault, source, f"{source} ")
        x, n = scene.passed[source], scene.misfits.get(name, (0, 0))[-2]
        if 0 < n < x.shape[-2]:
            text = f"{source} is cut to the first {n} of its {x.shape[-2]} positions"
            yield of_quantity("OtherInput", text, source, applied(partial(_cut, n)))


def other_output(scene: Scene, name: str) -> Iterator[Trial]:
    """The quantity is another one, or is moved."""
    yield from normalised(scene, name, name)
    yield from _others(scene, name, name, f"{last_word(name)} ")


def _others(scene: Scene, fault: str, name: str, told: str) -> Iterator[Trial]:
    """What may stand in the place of the quantity ``name``, from which ``fault`` is computed."""
    x, of_memory = scene.passed[name], _is_of_memory(fault) and name == "encoder.final"
    yield of_quantity("OtherInput", f"{told}is zero", name, lambda x, _: np.zeros_like(x))
    for other in _earlier(scene, fault, {fault, name}):
        y = scene.passed[other]
        if y.shape == x.shape or (of_memory and y.ndim == 3 and y.shape[-1] == x.shape[-1]):
            text = f"{told}is replaced by {other}"
            yield of_quantity("OtherInput", text, name, computed(lambda y: y, other))
    for flag, text, move in _moves(x):
        yield of_quantity(flag, told + text, name, applied(move))
    for dtype in ("bfloat16", "tf32"):
        text = f"{told}is rounded to {dtype.replace('tf32', 'the digits of float16')}"
        yield of_quantity("LowPrecision", text, name, applied(partial(_rounded, dtype)))


def _cut(n: int, x: np.ndarray) -> np.ndarray:
    return x[..., :n, :]


def _is_of_memory(name: str) -> bool:
    """Whether a quantity is a key or value of the source, computed before the decoder begins."""
    return name.startswith("decoder.") and is_of_the_source(name)


def _rounded(dtype: str, x: np.ndarray) -> np.ndarray:
    return round_to(np.asarray(x), dtype)


def _earlier(scene: Scene, fault: str, without: set[str]) -> list[str]:
    """The quantities computed before ``fault``, in reverse order, at most `MOST`."""
    order = list(scene.passed)
    if _is_of_memory(fault):
        fault = fault.rpartition(".")[0] + ".scores"  # the first that depends on keys and values
    return [other for other in order[: order.index(fault)][::-1] if other not in without][:MOST]


def _moves(x: np.ndarray) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """Exchanges of rows and of positions, which are the axes 0 and -2."""
    n = x.shape[-2]
    if x.ndim > 2 and x.shape[0] > 1:
        yield "OtherRow", "is that of the previous row", lambda x: np.roll(x, 1, axis=0)
        yield "OtherRow", "is that of the next row", lambda x: np.roll(x, -1, axis=0)
        yield "OtherRow", "is that of the first row", lambda x: np.broadcast_to(x[:1], x.shape)
        yield "OtherRow", "has the rows in reverse order", lambda x: x[::-1]
    if n < 2:
        return
    yield "ShiftedInput", "has the positions in reverse order", lambda x: x[..., ::-1, :]
    yield "ShiftedInput", "is that of position 0", lambda x: x[..., np.zeros(n, int), :]
    yield "ShiftedInput", "is that of the last position", lambda x: x[..., np.full(n, n - 1), :]
    for i in (1, -1, 2, -2):
        side = "right" if i > 0 else "left"
        text = f"is shifted by {abs(i)} position{'s' * (abs(i) > 1)} to the {side}"
        for how, move in _shifts(np.arange(n) - i, n).items():
            yield "ShiftedInput", f"{text}, {how}", move


def _shifts(at: np.ndarray, n: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The vectors of the positions ``at``, and of those outside of 0 to n - 1."""
    inside = ((at >= 0) & (at < n))[:, None]
    return {
        "cyclically": lambda x: x[..., at % n, :],
        "with zeros": lambda x: np.where(inside, x[..., at % n, :], 0.0),
        "with the edge repeated": lambda x: x[..., np.clip(at, 0, n - 1), :],
    }


def factors(scene: Scene, name: str) -> Iterator[Knob]:
    """Factors of the inputs."""
    return (factor_of(scene, source, source) for source in _inputs(scene, name))


def factor_of_output(scene: Scene, name: str) -> Knob:
    """A factor of the quantity itself."""
    return factor_of(scene, name, last_word(name))


def swapped_axes(scene: Scene, names: list[str]) -> Iterator[Trial]:
    """Self-attention over the batch: its input and result with exchanged axes, no mask."""
    here, source = parsed(names[-1]), f"{parsed(names[-1]).p}.input"
    if here.kind == "out" and f"{here.p}.q" in names and ".self_attention." in names[-1]:
        text = "batch and positions are exchanged, so that rows attend to each other"
        turned: Change = lambda x, _: x.swapaxes(0, 1)  # noqa: E731
        unmasked = with_mask(here.c, np.ones((1, 1, 1, 1), bool))
        yield Trial(
            "AxesSwapped",
            text,
            lambda s: unmasked(s).changing(source, turned).changing(names[-1], turned),
        )


def other_tokens(scene: Scene, names: list[str]) -> Iterator[Trial]:
    """Other token ids."""
    for name in (name for name in names if name.endswith(".tokens")):
        side = "source" if name.startswith("encoder.") else "target"
        ids = getattr(scene, side)
        if ids.ndim == 3:
            continue  # the source is vectors
        others = {
            "are shifted right by one": np.roll(ids, 1, axis=1),
            "are shifted left by one": np.roll(ids, -1, axis=1),
            "are in reverse order": ids[:, ::-1],
            "are those of the next row": np.roll(ids, -1, axis=0),
            "are those of the previous row": np.roll(ids, 1, axis=0),
            "are one too large": ids + 1,
            "are one too small": ids - 1,
        }
        for text, new in others.items():
            yield Trial("OtherTokens", f"the ids of the {side} {text}", _with_ids(side, new))


def _with_ids(side: str, ids: np.ndarray) -> Apply:
    return lambda s: replace(s, **{side: ids})  # type: ignore[arg-type]


# Keys and values of other places, such as a cache that holds another row.


def other_places(scene: Scene, name: str) -> Iterator[Trial]:
    """Keys and values of other rows and positions in the scores, and in the heads."""
    here = parsed(name)
    at = _places(scene, name) if here.kind in ("scores", "heads") else None
    if at is None:
        return
    batch, n_k = at.shape[0], at.shape[2]
    moved = np.argwhere(at != np.arange(batch)[:, None, None] * n_k + np.arange(n_k))
    if not len(moved):
        return
    row, query, key = (int(i) for i in moved[0])
    place = int(at[row, query, key])
    told = f"that of row {place // n_k}, position {place % n_k}"
    told = "zero" if place == batch * n_k else told
    looped = here.stack == "decoder" and scene.first < scene.length("decoder")
    yield Trial(
        "CacheContents" if looped else "ShiftedInput",
        f"keys and values are those of other places, {len(moved)} of {at.size}; the first: for "
        f"query {query}, position {key} of row {row} is {told}",
        lambda s: s.changing(name, _from_places(s, name)),
    )


def _places(scene: Scene, name: str) -> np.ndarray | None:
    """Where each query finds each key: integers (batch, n_q, n_k), row * n_k + position.

    One more than the last place stands for a zero. The place is the one whose product with the
    query is nearest to the score, in all heads. None where this cannot be seen.
    """
    here = parsed(name)
    c, seen = member(scene.config, here.c), scene.passed[f"{here.p}.scores"]
    q, keys = scene.passed[f"{here.p}.q"], scene.passed[f"{here.p}.k"]
    (batch, n_heads, n_q, _), n_k = q.shape, keys.shape[2]
    size = n_heads * batch**2 * n_q * n_k**2
    if f"{here.p}.scores" not in scene.seen or size > 2**23 or n_k != seen.shape[-1]:
        return None
    products = np.einsum("bhqd,hpd->bhqp", q, _pool(c, keys)) * c.scale
    scores = products[:, :, :, None, :] + np.asarray(_bias(scene, name))[..., None]
    apart = np.abs(seen[..., None] - soft_cap(scores, c.softcap)).max(axis=1)
    own = np.broadcast_to(np.arange(batch)[:, None, None] * n_k + np.arange(n_k), apart.shape[:-1])
    as_own = np.take_along_axis(apart, own[..., None], axis=-1)[..., 0] <= 1e-4 * np.abs(seen).max()
    allowed = np.broadcast_to(mask_of(scene, name), (batch, 1, n_q, n_k))[:, 0]
    return np.where(~allowed | as_own, own, apart.argmin(axis=-1))


def _pool(c: AttentionConfig, x: np.ndarray) -> np.ndarray:
    """The keys or values of all places, then a zero: (n_heads, batch * n + 1, d)."""
    heads, share = np.arange(c.n_heads), c.n_heads // c.n_kv_heads
    of_head = heads // share if c.kv_head_order == "grouped" else heads % c.n_kv_heads
    flat = x[:, of_head].transpose(1, 0, 2, 3).reshape(c.n_heads, -1, x.shape[-1])
    return np.concatenate([flat, np.zeros_like(flat[:, :1])], axis=1)


def _from_places(scene: Scene, name: str) -> Change:
    """The change of scores, or heads, to those with the keys, or values, of `_places`."""
    here, at, bias = parsed(name), _places(scene, name), _bias(scene, name)
    c: AttentionConfig = member(scene.config, here.c)

    def change(_: np.ndarray, values: Values) -> np.ndarray:
        stored = values[f"{here.p}.{'k' if here.kind == 'scores' else 'v'}"]
        found = _pool(c, stored)[:, at].transpose(1, 0, 2, 3, 4)  # (batch, n_heads, n_q, n_k, d)
        if here.kind == "scores":
            scores = (values[f"{here.p}.q"][..., None, :] * found).sum(axis=-1) * c.scale + bias
            return soft_cap(scores, c.softcap)
        return (values[f"{here.p}.weights"][..., None, :] @ found)[..., 0, :]

    return change


def _bias(scene: Scene, name: str) -> np.ndarray | float:
    """The bias of relative positions in the scores of an attention; 0 without one."""
    here = parsed(name)
    if here.c.endswith("cross_attention"):
        return 0.0
    p, c = getattr(scene.params, here.stack), getattr(scene.config, here.stack)
    bias = position_terms(p, c, *scene.positions[here.stack], "float64")[1][
        int(here.p.split(".")[2])
    ]
    return 0.0 if bias is None else bias
