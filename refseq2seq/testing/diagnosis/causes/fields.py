"""Other values of the config fields that enter a quantity."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from ....attention import merge_heads, split_heads
from ....config import (
    AlibiPositions,
    AttentionConfig,
    BucketedPositions,
    NormConfig,
    WindowConfig,
)
from ....ops import NORMS
from ..entering import enters, parsed
from ..replay import Scene, member
from .trial import Knob, Trial, applied, found, of_field, shown, usual_numbers, with_config

FLAGS = {
    "kv_head_order": "KeyValueHeads", "activation": "Activation", "layout": "SinusoidLayout",
    "pairing": "RotaryPairing", "embedding_norm": "NormPlace", "bidirectional": "RelativeBuckets",
    "eps": "NormEps", "base": "RotaryBase", "embedding_scale": "EmbeddingScale",
    "logits_scale": "LogitsScale",
    "max_distance": "RelativeBuckets", "softcap": "ScoreCap", "logits_softcap": "LogitsCap",
}  # fmt: skip
"""The flag of another value of a field."""

USUAL = {
    "softcap": (5.0, 10.0, 15.0, 20.0, 30.0, 50.0),
    "eps": (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
    "base": (100.0, 500.0, 1e3, 1e4, 1e5, 5e5, 1e6),
}
"""Values that models have; for other numbers see `usual_numbers`."""


def other_values(scene: Scene, name: str) -> Iterator[Trial | Knob]:
    """Other values of all fields that enter the quantity ``name``."""
    for path in enters(name)[0]:
        value, field = found(scene.config, path), path.rpartition(".")[2]
        if field.endswith("softcap"):
            yield from _caps(path, value)
        elif field == "windows":
            yield from _windows(path, value)
        elif value is not None:
            yield from _of(scene, path, value)


def _of(scene: Scene, path: str, value: Any) -> Iterator[Trial | Knob]:
    """Other values of the field at ``path``, or of the fields of the dataclass there."""
    field = path.rpartition(".")[2]
    if is_dataclass(value):
        if isinstance(value, NormConfig):
            yield from _norm_kinds(path, value)
        if isinstance(value, AlibiPositions):
            yield from _slopes(path, value)
        for inner in fields(value):
            yield from _of(scene, f"{path}.{inner.name}", getattr(value, inner.name))
        return
    owner: Any = member(scene.config, path.rpartition(".")[0]) if "." in path else scene.config
    if field == "n_heads" and not _has_bias(scene, path):
        yield from _head_counts(path.rpartition(".")[0], owner)
    elif isinstance(value, float):
        usual = {shown(x): x for x in USUAL.get(field, ())} or usual_numbers(scene, path)
        flag = FLAGS.get(field) or _flag_of_scale(owner)
        yield Knob(value, usual, lambda v, called: of_field(path, value, v, flag, called))
    elif field in FLAGS:
        for other in _members(owner, field, value):
            gelus = {other, value} == {"gelu_erf", "gelu_tanh"}
            yield of_field(path, value, other, "GeluForm" if gelus else FLAGS[field])


def _members(owner: Any, field: str, value: Any) -> list[Any]:
    """The other values of a field that is a choice, a truth value, or the maximum distance."""
    kind = get_type_hints(type(owner))[field]
    if field == "max_distance":
        least = owner.n_buckets // (4 if owner.bidirectional else 2) + 1
        near = {value - 1, value + 1, value // 2, 2 * value, 16, 20, 32, 64, 128, 256}
        return sorted(n for n in near if n >= least and n != value)
    members = get_args(kind) if get_origin(kind) is Literal else (True, False)
    return [other for other in members if other != value]


def _flag_of_scale(owner: Any) -> str:
    if isinstance(owner, AttentionConfig):
        return "AttentionScale"
    return "RelativeScale" if isinstance(owner, BucketedPositions) else "PositionScale"


def _caps(path: str, cap: float | None) -> Iterator[Trial | Knob]:
    """No soft cap, or another."""
    caps, flag = {shown(x): x for x in USUAL["softcap"]}, FLAGS[path.rpartition(".")[2]]
    if cap is None:
        yield from (of_field(path, cap, x, flag) for x in caps.values())
        return
    yield of_field(path, cap, None, flag)
    yield Knob(cap, caps, lambda v, called: of_field(path, cap, v, flag, called))


def _windows(path: str, windows: tuple[WindowConfig | None, ...]) -> Iterator[Trial]:
    """No windows, those of other layers, and other widths of each."""
    others: set[tuple[WindowConfig | None, ...]] = {(), (*windows[1:], *windows[:1])}
    for w in {w for w in windows if w is not None}:
        near = [{n - 1, n, n + 1, n // 2, 2 * n} for n in (w.back, w.ahead)]
        if path == "decoder.windows":  # nothing later is in the causal mask
            near[1] = {w.ahead}
        for back, ahead in product(*near):
            other = WindowConfig(back=max(back, 0), ahead=max(ahead, 0))
            others.add(tuple(other if x == w else x for x in windows))
    for new in sorted(others - {windows}, key=str):
        told, model = ([w and (w.back, w.ahead) for w in of] or "left out" for of in (new, windows))
        text = f"the windows (back, ahead) are {told}; the model has {model} ({path})"
        yield Trial("WindowEdge", text, with_config(path, new), path, new)


def _norm_kinds(path: str, c: NormConfig) -> Iterator[Trial]:
    """Other norms, with any usual eps."""
    for kind in (kind for kind in NORMS if kind != c.kind):
        for eps in dict.fromkeys([c.eps, *USUAL["eps"]]):
            other = replace(c, kind=kind, eps=eps)  # type: ignore[arg-type]
            flag = "BiasedDeviation" if "std_norm" in (kind, c.kind) else "NormKind"
            text = f"kind is {kind}; the model has {c.kind} ({path}.kind)"
            yield Trial(flag, text, with_config(path, other), path, other)


def _slopes(path: str, c: AlibiPositions) -> Iterator[Trial | Knob]:
    def of(slopes: tuple[float, ...], called: str) -> Trial:
        return of_field(f"{path}.slopes", c.slopes, slopes, "AlibiSlopes", called)

    yield of(tuple(x * x for x in c.slopes), "squared")
    yield of(c.slopes[::-1], "reversed")
    yield Knob(
        1.0,
        {"0": 0.0, "-1": -1.0, "2": 2.0, "0.5": 0.5},
        lambda r, _: of(tuple(x * r for x in c.slopes), f"times {shown(r)}"),
    )


def _has_bias(scene: Scene, path: str) -> bool:
    """Whether the number of heads is also that of a table of biases."""
    relative = member(scene.config, path.partition(".")[0]).relative_positions
    is_self = ".self_attention." in path
    return is_self and isinstance(relative, AlibiPositions | BucketedPositions)


def _head_counts(place: str, c: AttentionConfig) -> Iterator[Trial]:
    """Other numbers of heads of the same total width, with the scale kept or adapted."""
    width_k, width_v, share = c.n_heads * c.d_k, c.n_heads * c.d_v, c.n_heads // c.n_kv_heads
    for n in range(share, min(width_k, width_v) + 1, share):
        if n == c.n_heads or width_k % n or width_v % n or c.qk_norm:
            continue
        sizes: dict[str, Any] = {"n_heads": n, "n_kv_heads": n // share}
        sizes |= {"d_k": width_k // n, "d_v": width_v // n}
        for scale in dict.fromkeys([c.scale, sizes["d_k"] ** -0.5]):
            other = replace(c, scale=scale, **sizes)
            text = (
                f"n_heads is {n}, scale {shown(scale)}; the model has {c.n_heads} ({place}.n_heads)"
            )
            yield Trial("HeadCount", text, partial(_with_heads, place, other), place, other)


def _with_heads(place: str, c: AttentionConfig, s: Scene) -> Scene:
    """The scene with this attention; what is given by heads is split anew."""
    s = with_config(place, c)(s)
    for name, x in s.passed.items():
        if parsed(name).c == place and parsed(name).kind in ("q", "k", "v", "heads"):
            n = c.n_kv_heads if parsed(name).kind in ("k", "v") else c.n_heads
            if x.shape[1] != n:
                s = s.changing(name, applied(partial(_split_anew, n)))
    return s


def _split_anew(n_heads: int, x: np.ndarray) -> np.ndarray:
    return x if x.shape[1] == n_heads else split_heads(merge_heads(x), n_heads)
