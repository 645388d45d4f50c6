"""Explanations to try: what may stand in the place of each thing that enters a quantity.

A quantity is computed from config fields, parameters, masks, positions and other quantities; the
table `ENTERS` lists them. Each kind of thing has alternatives: a field has other values, a bias may
be left out, a mask inverted, an input exchanged. A `Trial` is one of them, and a `Knob` a number
that can be fitted.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from ...config import (
    AlibiPositions,
    AttentionConfig,
    BucketedPositions,
    NormConfig,
    RotaryPositions,
)
from ...model import position_terms
from ...ops import ACTIVATIONS, NORMS, normalize, sigmoid, softmax
from ...params import NormParams, SublayerNorms, named_arrays
from ...positions import rotate, rotation, score_bias
from ...watching.quantities import inputs_of
from .entering import enters, parsed
from .replay import Change, Scene, Values, member, with_member

Apply = Callable[[Scene], Scene]


@dataclass(frozen=True)
class Trial:
    """A change of the scene that may explain a fault; ``field`` and ``value`` if it is of the config.

    Of trials that explain a fault, those of the smallest ``rank`` are told: 0 for what a model
    computes, 1 for what is moved or exchanged, 2 for a bare factor.
    """

    flag: str  # in `refseq2seq.testing.mistakes`
    text: str
    apply: Apply
    field: str | None = None
    value: Any = None
    rank: int = 0
    inexact: str | None = None  # a parameter that the model stores with another offset, rounded


@dataclass(frozen=True)
class Knob:
    """A number that may be another one; ``trial`` makes a trial of a value."""

    current: float
    usual: dict[str, float]  # other values that are tried first, with their names
    trial: Callable[[float, str], Trial]


def alternatives(scene: Scene, name: str, hidden: list[str]) -> Iterator[Trial | Knob]:
    """All that may explain a fault at ``name``, computed through the unseen ``hidden``."""
    for quantity in [*hidden, name]:
        here = parsed(quantity)
        paths, patterns = enters(quantity)
        for path in paths:
            if (value := _found(scene.config, path)) is not None:
                yield from _fields(scene, path, value)
        yield from _parameters(scene, patterns)
        yield from _norms(scene, quantity)
        if here.kind == "positions" or here.kind in ("q", "k", "scores"):
            yield from _positions(scene, quantity)
        if here.kind in ("weights", "heads"):
            yield from _masks(scene, quantity)
        if here.kind == "hidden":
            yield from _activations(scene, quantity)
        if here.kind == "tokens":
            yield from _tokens(scene, quantity)
        if here.kind in ("scores", "heads"):
            yield from _cached(scene, quantity)
        for source in inputs_of(quantity, list(scene.passed)):
            yield from _inputs(scene, name, quantity, source)
    yield from _biases(scene, [*hidden, name])
    yield from _outputs(scene, name)


def _found(root: Any, path: str) -> Any:
    try:
        return member(root, path)
    except (AttributeError, IndexError, KeyError):
        return None


def shown(value: Any) -> str:
    """A value as the report shows it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(shown, value)) if isinstance(value, tuple) else str(value)


# Config fields.

FLAGS = {
    "kind": "NormKind", "kv_head_order": "KeyValueHeads", "activation": "Activation",
    "layout": "SinusoidLayout", "pairing": "RotaryPairing", "embedding_norm": "NormPlace",
    "bidirectional": "RelativeBuckets", "max_distance": "RelativeBuckets", "eps": "NormEps",
    "base": "RotaryBase", "embedding_scale": "EmbeddingScale", "logits_scale": "LogitsScale",
}  # fmt: skip
"""The flag of another value of a field. ``scale`` and ``activation`` depend on more than the name."""


def _of_field(path: str, current: Any, value: Any, called: str = "", flag: str = "") -> Trial:
    """A trial of another value of a config field."""
    field = path.rpartition(".")[2]
    told = shown(value) + (f" ({called})" if called else "")
    return Trial(
        flag or FLAGS[field],
        f"{field} is {told}; the model has {shown(current)} ({path})",
        lambda s: replace(s, config=with_member(s.config, path, value)),
        field=path,
        value=value,
    )


def _fields(scene: Scene, path: str, value: Any) -> Iterator[Trial | Knob]:
    """Other values of the field at ``path``, or of the fields of the dataclass there."""
    field = path.rpartition(".")[2]
    if is_dataclass(value):
        if isinstance(value, NormConfig):
            yield from _norm_kinds(path, value)
        if isinstance(value, AlibiPositions):
            yield from _slopes(path, value)
        names = [f.name for f in fields(value) if f.name not in ("kind", "gain", "bias", "offset")]
        for name in names:
            yield from _fields(scene, f"{path}.{name}", getattr(value, name))
        return
    if field == "n_heads":
        yield from _head_counts(scene, path)
    owner = member(scene.config, path.rpartition(".")[0]) if "." in path else scene.config
    annotation = get_type_hints(type(owner))[field]
    if get_origin(annotation) is Literal and field in FLAGS:
        for other in get_args(annotation):
            gelus = {other, value} == {"gelu_erf", "gelu_tanh"}
            if other != value:
                yield _of_field(path, value, other, flag="GeluForm" if gelus else "")
    elif field == "bidirectional":
        yield _of_field(path, value, not value)
    elif field == "max_distance":
        least = (owner.n_buckets // (4 if owner.bidirectional else 2)) + 1
        usual = {value - 1, value + 1, value // 2, 2 * value, 16, 20, 32, 64, 128, 256}
        for other in sorted(n for n in usual if n >= least and n != value):
            yield _of_field(path, value, other)
    elif isinstance(value, float):
        yield _number(scene, path, value, owner)


def _number(scene: Scene, path: str, value: float, owner: Any) -> Knob:
    field = path.rpartition(".")[2]
    flag = FLAGS.get(field) or {
        AttentionConfig: "AttentionScale", BucketedPositions: "RelativeScale",
    }.get(type(owner), "PositionScale")  # fmt: skip
    if field == "eps":
        usual = {"": 0.0} | {f"1e-{n}": 10.0**-n for n in (3, 4, 5, 6, 7, 8, 12)}
        usual = {shown(v): v for v in usual.values()}
    elif field == "base":
        usual = {shown(v): v for v in (100.0, 500.0, 1e3, 1e4, 1e5, 5e5, 1e6)}
    else:
        usual = usual_numbers(scene, path)
    return Knob(
        value,
        {name: v for name, v in usual.items() if not math.isclose(v, value, rel_tol=1e-9)},
        lambda v, name: _of_field(path, value, v, "" if name == shown(v) else name, flag),
    )


def usual_numbers(scene: Scene, path: str) -> dict[str, float]:
    """Numbers that are often factors, by name, in the stack and sublayer of ``path``."""
    parts = path.split(".")
    side = getattr(scene.config, parts[0]) if parts[0] in ("encoder", "decoder") else None
    side = side or scene.config.decoder
    attention = getattr(side, parts[-2], None) if len(parts) > 1 else None
    if not isinstance(attention, AttentionConfig):
        attention = side.self_attention
    sizes = {"d_model": side.d_model, "d_k": attention.d_k}
    found = {"0": 0.0, "1": 1.0, "-1": -1.0, "2": 2.0, "0.5": 0.5}
    for name, n in sizes.items():
        root = math.sqrt(n)
        found |= {f"sqrt({name})": root, f"1 / sqrt({name})": 1 / root, f"1 / {name}": 1 / n}
    return found


def _norm_kinds(path: str, c: NormConfig) -> Iterator[Trial]:
    """Other norms, with any of the usual eps, and the unbiased variance."""
    for kind in (kind for kind in NORMS if kind != c.kind):
        for eps in dict.fromkeys([c.eps, 0.0, 1e-12, 1e-8, 1e-6, 1e-5]):
            other = replace(c, kind=kind, eps=eps)
            yield Trial(
                "BiasedDeviation" if "std_norm" in (kind, c.kind) else "NormKind",
                f"kind is {kind}; the model has {c.kind} ({path}.kind)",
                lambda s, other=other: replace(s, config=with_member(s.config, path, other)),
                field=path,
                value=other,
            )


def _slopes(path: str, c: AlibiPositions) -> Iterator[Trial | Knob]:
    def of(slopes: tuple[float, ...], called: str) -> Trial:
        return _of_field(f"{path}.slopes", c.slopes, slopes, called, "AlibiSlopes")

    yield of(tuple(x * x for x in c.slopes), "squared")
    yield of(c.slopes[::-1], "reversed")
    yield Knob(
        1.0,
        {"0": 0.0, "-1": -1.0, "2": 2.0, "0.5": 0.5},
        lambda r, name: of(tuple(x * r for x in c.slopes), f"times {shown(r)}"),
    )


def _head_counts(scene: Scene, path: str) -> Iterator[Trial]:
    """Other numbers of heads of the same total width, with the scale kept or adapted."""
    place = path.rpartition(".")[0]
    c = member(scene.config, place)
    width_k, width_v, share = c.n_heads * c.d_k, c.n_heads * c.d_v, c.n_heads // c.n_kv_heads
    for n in range(1, min(width_k, width_v) + 1):
        if n == c.n_heads or width_k % n or width_v % n or n % share or c.qk_norm:
            continue
        new = replace(c, n_heads=n, n_kv_heads=n // share, d_k=width_k // n, d_v=width_v // n)
        for scale in dict.fromkeys([c.scale, new.d_k**-0.5]):
            other = replace(new, scale=scale)
            yield Trial(
                "HeadCount",
                f"n_heads is {n}; the model has {c.n_heads} ({path})",
                lambda s, other=other: replace(s, config=with_member(s.config, place, other)),
                field=place,
                value=other,
            )


# Parameters.


def _set(path: str, value: Any) -> Apply:
    return lambda s: replace(s, params=with_member(s.params, path, value))


def _parameters(scene: Scene, patterns: list[str]) -> Iterator[Trial]:
    """Arrays left out, transposed, permuted, exchanged with others or replaced by them."""
    arrays = dict(named_arrays(scene.params))
    names = [n for pattern in patterns for n in arrays if fnmatchcase(n, pattern)]
    for path in (n for n in names if not n.endswith((".gain", ".bias"))):
        x, (place, _, word) = arrays[path], path.rpartition(".")
        if word.startswith("b_") or path == "logits_bias" or ".relative_bias." in path:
            flag = "RelativeScale" if ".relative_bias." in path else "BiasMissing"
            yield Trial(flag, f"{path} is left out", _set(path, np.zeros_like(x)))
            continue
        if word == "head_scale":
            yield Trial("Factor", f"{path} is left out", _set(path, np.ones_like(x)))
        if x.ndim == 2 and x.shape[0] == x.shape[1]:
            yield Trial("OtherWeights", f"{path} is transposed", _set(path, x.T))
        if word in ("w_q", "w_k", "w_v", "w_o"):
            yield from _head_orders(scene, path)
        for other, y in arrays.items():
            if other == path or y.shape != x.shape or y is x or other.endswith((".gain", ".bias")):
                continue
            there, _, like = other.rpartition(".")
            if there == place:
                yield _exchanged(scene, place, word, like)
            elif like == word:
                yield Trial("OtherWeights", f"{path} is {other}", _set(path, y), rank=1)


def _exchanged(scene: Scene, place: str, a: str, b: str) -> Trial:
    """Two arrays of a sublayer in the place of each other, with their biases."""
    p = member(scene.params, place)
    pairs = [(a, b)]
    biases = [name.replace("w_", "b_") for name in (a, b)]
    if a.startswith("w_") and all(getattr(p, name, None) is not None for name in biases):
        pairs.append((biases[0], biases[1]))
    new = replace(p, **{x: getattr(p, y) for pair in pairs for x, y in (pair, pair[::-1])})
    if {a, b} == {"learned_k", "learned_v"}:  # the model stores keys as they are normalised
        c = member(scene.config, f"{place.partition('.')[0]}.{place.rpartition('.')[2]}")
        new = replace(new, learned_k=normalize(p.k_norm, c.qk_norm, p.learned_v))
    first, second = sorted([a, b])
    return Trial("SwappedWeights", f"{first} and {second} are exchanged", _set(place, new))


def _head_orders(scene: Scene, path: str) -> Iterator[Trial]:
    """Heads split or merged so that the elements of a head are not neighbours, or in other order."""
    place, _, word = path.rpartition(".")
    p = member(scene.params, place)
    c = member(scene.config, f"{path.partition('.')[0]}.{place.rpartition('.')[2]}")
    n = c.n_heads if word in ("w_q", "w_o") else c.n_kv_heads
    w, b = getattr(p, word), getattr(p, word.replace("w_", "b_"))
    width = w.shape[0] if word == "w_o" else w.shape[1]
    kept = np.arange(width).reshape(n, width // n)
    orders = {
        "(d, n_heads) in the place of (n_heads, d)": np.arange(width).reshape(-1, n).T.ravel(),
        "reverse order of heads": kept[::-1].ravel(),
    }
    how = "merged as" if word == "w_o" else "split as"
    for told, order in orders.items():
        if word == "w_o":
            new = {word: w[order]}
        else:
            new = {word: w[:, order]} | ({} if b is None else {word.replace("w_", "b_"): b[order]})
        yield Trial("HeadOrder", f"heads are {how} {told}", _set(place, replace(p, **new)))


def _biases(scene: Scene, names: list[str]) -> Iterator[Trial]:
    """All biases of a projection that is computed at once."""
    for place in dict.fromkeys(name.rpartition(".")[0] for name in names):
        p = _found(scene.params, place)
        for group in (("b_q", "b_k", "b_v"), ("b_k", "b_v")):
            existing = {b: getattr(p, b, None) for b in group}
            computed = all(f"{place}.{b[-1]}" in names for b in group)
            if computed and all(x is not None for x in existing.values()):
                zeros = {b: np.zeros_like(x) for b, x in existing.items()}
                told = f"{', '.join(group)} of {place} are left out"
                yield Trial("BiasMissing", told, _set(place, replace(p, **zeros)))


# Norms.


def _norms(scene: Scene, name: str) -> Iterator[Trial | Knob]:
    """Norms left out, moved, exchanged, and with another gain or bias."""
    here = parsed(name)
    slots = {"input": ("before",), "after": ("branch", "after")}.get(here.kind, ())
    norms = _found(scene.params, here.norms) if slots else None
    if isinstance(norms, SublayerNorms):
        path = here.norms
        for slot in slots:
            yield from _one_norm(scene, f"{path}.{slot}")
        yield from _moved_norms(path, norms, slots)
    elif here.kind in ("embed", "final"):
        yield from _one_norm(scene, f"{here.stack}.{'embedding' if here.kind == 'embed' else here.kind}_norm")
    elif here.kind in ("q", "k"):
        yield from _one_norm(scene, f"{here.p}.{here.kind}_norm")
    elif here.kind == "hidden":
        yield from _one_norm(scene, f"{here.p}.hidden_norm")


def _moved_norms(path: str, norms: SublayerNorms, slots: tuple[str, ...]) -> Iterator[Trial]:
    existing = {f.name: getattr(norms, f.name) for f in fields(norms)}
    for old, p in existing.items():
        for new in slots:
            if p is None or new == old or existing[new] is not None:
                continue
            moved = replace(norms, **{old: None, new: p})
            words = {"before": "before the sublayer", "branch": "on its result", "after": "after the sum"}
            told = f"the norm stands {words[new]}; in the model {words[old]} ({path})"
            yield Trial("NormPlace", told, _set(path, moved))


def _one_norm(scene: Scene, path: str) -> Iterator[Trial | Knob]:
    p = _found(scene.params, path)
    if not isinstance(p, NormParams):
        return
    yield Trial("NormMissing", f"the norm {path} is left out", _set(path, None))
    if p.gain is not None:
        gain = p.gain
        for told, other in (("minus", gain - 1), ("plus", gain + 1)):
            at = f"{path}.gain"
            yield Trial("GainMinusOne", f"{at} is used {told} 1", _set(at, other), inexact=at)
        ones = np.ones_like(gain)
        yield Trial("NormParameters", f"{path}.gain is left out", _set(f"{path}.gain", ones))
        yield Knob(
            1.0,
            usual_numbers(scene, path),
            lambda r, name: Trial(
                "Factor", f"the result of the norm {path} is multiplied by {_times(r, name)}",
                lambda s: replace(s, params=with_member(s.params, f"{path}.gain", gain * r)), rank=1,
            ),
        )  # fmt: skip
        d = gain.shape[-1] if gain.ndim else 0
        stack = path.partition(".")[0]
        c = member(scene.config, f"{stack}.norm")
        if c.kind == "layer_norm" and d > 1:
            unbiased = replace(c, eps=c.eps * (d - 1) / d)
            yield Trial(
                "BiasedDeviation",
                f"the variance of the norm {path} is the unbiased one, divided by d - 1",
                lambda s: replace(
                    s,
                    config=with_member(s.config, f"{stack}.norm", unbiased),
                    params=with_member(s.params, f"{path}.gain", gain * math.sqrt((d - 1) / d)),
                ),
            )
    if p.bias is not None:
        zeros = np.zeros_like(p.bias)
        yield Trial("NormParameters", f"{path}.bias is left out", _set(f"{path}.bias", zeros))
    for other, q in _all_norms(scene):
        if other != path and q.gain is not None and p.gain is not None:
            if q.gain.shape == p.gain.shape and (q.bias is None) == (p.bias is None):
                yield Trial("NormParameters", f"the norm {path} is {other}", _set(path, q), rank=1)


def _all_norms(scene: Scene) -> Iterator[tuple[str, NormParams]]:
    paths = dict.fromkeys(
        name.rpartition(".")[0]
        for name, _ in named_arrays(scene.params)
        if name.endswith((".gain", ".bias"))
    )
    return ((path, member(scene.params, path)) for path in paths)


# Positions, masks and activations.


def _positions(scene: Scene, name: str) -> Iterator[Trial]:
    """Positions that are counted otherwise."""
    here = parsed(name)
    c = getattr(scene.config, here.stack)
    kinds = {"positions": c.positions, "scores": c.relative_positions}
    relative = kinds.get(here.kind, c.relative_positions)
    rotary = isinstance(relative, RotaryPositions)
    if relative is None or ".cross_attention." in name:
        if here.kind == "scores" and isinstance(c.relative_positions, BucketedPositions):
            yield _cross_bias(scene, name)
        return
    if rotary != (here.kind in ("q", "k")):
        return
    q, k = scene.positions[here.stack]
    n = scene.source.shape[1] if here.stack == "encoder" else scene.target.shape[1]
    steps = np.arange(n) >= scene.first
    restart = np.where(steps, 0, q)
    others = {f"start at {i}": ("OtherPositions", q + i) for i in (1, 2, 3)}
    others |= {f"are {-i} less": ("OtherPositions", q + i) for i in (-1, -2)}
    if q.ndim == 2:
        edge = np.broadcast_to(np.arange(n), q.shape)
        others["are counted from the left edge, not from the first real token"] = (
            "PositionAfterPadding", edge,
        )  # fmt: skip
    if steps.any():
        others["start anew at 0 in each step of the loop"] = ("OtherPositions", restart)
        others["are one too many after the first step"] = ("CachePosition", q + steps)
        others["are one too few after the first step"] = ("CachePosition", q - steps)
    offset = getattr(relative, "offset", None)
    if offset:
        others[f"lack the offset of {offset}"] = ("OtherPositions", q - offset)
    whose = "of queries " if here.kind == "scores" else ""
    for told, (flag, p) in others.items():
        least, most = int(p.min()) + (offset or 0), getattr(relative, "n_positions", math.inf)
        if least < 0 <= (offset if offset is not None else -1) or int(p.max()) + (offset or 0) >= most:
            continue
        yield Trial(flag, f"positions {whose}{told}", _set_positions(here.stack, p, k))
    if rotary:
        yield _mixed_rotation(scene, name, relative)
    if here.kind == "scores":
        told = "relative positions are those of the query minus those of the key"
        yield Trial("OtherPositions", told, _set_positions(here.stack, -q, -k))


def _set_positions(stack: str, q: np.ndarray, k: np.ndarray) -> Apply:
    return lambda s: replace(s, positions=s.positions | {stack: (q, k)})


def _mixed_rotation(scene: Scene, name: str, c: RotaryPositions) -> Trial:
    """Pairs of one kind, with the angles of the other."""
    stack = parsed(name).stack
    right = rotation(c, scene.positions[stack][0], "float64")
    back = right._replace(sin=-right.sin)
    half = c.d_rotary // 2
    if c.pairing == "interleaved":
        pairing, angles = "halves", lambda x: np.repeat(x, 2, axis=-1)
    else:
        pairing, angles = "interleaved", lambda x: np.concatenate([x, x], axis=-1)

    def change(x: np.ndarray, _: Values) -> np.ndarray:
        x = rotate(x, back)
        turned, rest = x[..., : c.d_rotary], x[..., c.d_rotary :]
        if pairing == "halves":
            other = np.concatenate([-turned[..., half:], turned[..., :half]], axis=-1)
        else:
            pairs = [-turned[..., 1::2], turned[..., 0::2]]
            other = np.stack(pairs, axis=-1).reshape(turned.shape)
        turned = turned * angles(right.cos) + other * angles(right.sin)
        return np.concatenate([turned, rest], axis=-1)

    told = f"pairing is {pairing}, with the angles of {c.pairing}; the model has {c.pairing}"
    path = f"({stack}.relative_positions.pairing)"
    return Trial("RotaryPairing", f"{told} {path}", lambda s: s.changing(name, change))


def _cross_bias(scene: Scene, name: str) -> Trial:
    """The decoder's relative bias, in cross-attention too."""
    c, p = scene.config.decoder.relative_positions, scene.params.decoder
    at = np.arange(scene.target.shape[1]), np.arange(scene.source.shape[1])
    bias = score_bias(c, p.relative_bias[0], *at, "float64")  # type: ignore[arg-type]
    told = "the relative bias of self-attention is added in cross-attention too"
    return Trial("RelativeScale", told, lambda s: s.changing(name, lambda x, _: x + bias))


def _masks(scene: Scene, name: str) -> Iterator[Trial]:
    """Other masks, other ways to apply the right one, and what a row without a key gives."""
    place, right = parsed(name).c, scene.masks[parsed(name).c]
    scores = name.rpartition(".")[0] + ".scores"
    n_k = scene.passed[scores].shape[-1]
    fills = {"weights": {"equal": 1 / n_k, "NaN": math.nan}, "heads": {"zero": 0.0, "NaN": math.nan}}
    for flag, told, mask in [("AllMaskedRow", "", right), *_other_masks(scene, name)]:
        if told and name.endswith(".weights"):
            yield Trial(flag, told, _set_mask(place, mask))
        wide = _widened(mask, n_k)
        if not wide.any(axis=-1).all():
            for how, fill in fills[parsed(name).kind].items():
                row = f"the {parsed(name).kind} of a row without a key are {how}"
                filled = _filled(wide, fill)
                yield Trial(
                    flag, f"{told}; {row}" if told else row,
                    lambda s, mask=mask, filled=filled: _set_mask(place, mask)(s).changing(name, filled),
                )  # fmt: skip
    if name.endswith(".weights"):
        yield from _softmaxes(name, scores, _widened(right, n_k))


def _other_masks(scene: Scene, name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Masks in the place of the right one: flag, description, boolean array."""
    here = parsed(name)
    right, side = scene.masks[here.c], here.stack
    of_source = side == "encoder" or here.c.endswith("cross_attention")
    yield "PadLeak" if of_source else "CausalMask", "no mask is applied", np.ones_like(right)
    yield "MaskInverted", "the mask is inverted", ~right
    n = right.shape[-1]
    if not of_source:
        for i in (1, 2):
            tokens = "token" if i == 1 else "tokens"
            more, less = np.tri(n, n, i, dtype=bool), np.tri(n, n, -i, dtype=bool)
            yield "CausalMask", f"the causal mask lets {i} later {tokens} pass", more[None, None]
            yield "CausalMask", f"the causal mask hides {i} {tokens} too many", less[None, None]
        return
    later = np.concatenate([right[..., :1], right[..., :-1]], axis=-1)
    sooner = np.concatenate([right[..., 1:], right[..., -1:]], axis=-1)
    yield "OtherMask", "the mask has one more key", right | later | sooner
    yield "OtherMask", "the mask has one key less", right & later & sooner
    yield "OtherMask", "the mask is shifted by one", later
    yield "OtherMask", "the mask is shifted back by one", sooner
    yield "OtherMask", "the mask is that of the next row", np.roll(right, -1, axis=0)
    yield "OtherMask", "the mask is that of the row before", np.roll(right, 1, axis=0)
    real = scene.source != scene.config.pad_id
    yield "PadIdInferred", "the mask is guessed from pad_id", real[:, None, None, :]
    if side == "encoder":
        causal = np.tri(n, n, dtype=bool)[None, None]
        yield "OtherMask", "the mask is causal", right & causal
        yield "OtherMask", "the mask is causal only", causal


def _set_mask(place: str, mask: np.ndarray) -> Apply:
    return lambda s: replace(s, masks=s.masks | {place: mask})


def _filled(mask: np.ndarray, fill: float) -> Change:
    """The change of rows that may attend to no key."""
    return lambda x, _: np.where(mask.any(axis=-1, keepdims=True), x, fill)


def _widened(mask: np.ndarray, n: int) -> np.ndarray:
    """The mask with the learned keys or registers that come before its own, never masked."""
    more = n - mask.shape[-1]
    return np.pad(mask, [*[(0, 0)] * (mask.ndim - 1), (more, 0)], constant_values=True)


def _softmaxes(name: str, scores: str, mask: np.ndarray) -> Iterator[Trial]:
    """Other functions of scores and mask in the place of the softmax over the keys."""
    least = -1e30

    def over(axis: int) -> Callable[[np.ndarray], np.ndarray]:
        def weights(x: np.ndarray) -> np.ndarray:
            x = np.moveaxis(np.where(mask, x, least), axis, -1)
            return np.moveaxis(softmax(x), -1, axis)

        return weights

    def one_more(x: np.ndarray) -> np.ndarray:
        e = np.where(mask, np.exp(x - x.max(axis=-1, keepdims=True)), 0.0)
        return e / (np.exp(-x.max(axis=-1, keepdims=True)) + e.sum(axis=-1, keepdims=True))

    forms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "the softmax runs over the queries": over(-2),
        "the softmax runs over the heads": over(1),
        "the softmax runs over the batch": over(0),
        "the mask is applied after the softmax": lambda x: softmax(x) * mask,
        "masked scores are 0 and not -infinity": lambda x: softmax(np.where(mask, x, 0.0)),
        "1 is added to the denominator of the softmax": one_more,
        "the weights are sigmoids": lambda x: np.where(mask, sigmoid(x), 0.0),
        "there is no softmax": lambda x: np.where(mask, x, 0.0),
    }
    for told, f in forms.items():
        yield Trial(
            "SoftmaxForm", told,
            lambda s, f=f: s.changing(name, lambda _, values: f(values[scores])),
        )  # fmt: skip


OTHER_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x sigmoid(1.702 x), the quick GELU": lambda x: x * sigmoid(1.702 * x),
    "left out": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "ReLU with slope 0.01": lambda x: np.where(x > 0, x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "|x|": np.abs,
}


def _activations(scene: Scene, name: str) -> Iterator[Trial]:
    """Activations that no config has, and those of a gated form in other places."""
    here = parsed(name)
    c, place = member(scene.config, here.c), here.p
    if c.hidden_norm is not None:
        return
    projected, gate = f"{place}.projected", f"{place}.gate"

    def trial(told: str, f: Callable[[Values], np.ndarray]) -> Trial:
        return Trial("Activation", told, lambda s: s.changing(name, lambda _, values: f(values)))

    for called, f in OTHER_ACTIVATIONS.items():
        told = f"the activation is {called}; the model has {c.activation} ({here.c}.activation)"
        if c.gated:
            yield trial(told, lambda v, f=f: f(v[gate]) * v[projected])
        else:
            yield trial(told, lambda v, f=f: f(v[projected]))
    if c.gated:
        own = ACTIVATIONS[c.activation]
        yield trial("the activation of both factors", lambda v: own(v[gate]) * own(v[projected]))
        yield trial("the sum of the factors", lambda v: own(v[gate]) + v[projected])
        yield trial("only the gate", lambda v: own(v[gate]))
        yield trial("without the gate", lambda v: own(v[projected]))


def _tokens(scene: Scene, name: str) -> Iterator[Trial]:
    """Other token ids, found by comparing the rows with the table."""
    side = parsed(name).stack
    attribute = "source" if side == "encoder" else "target"
    ids = getattr(scene, attribute)
    others = {
        "are shifted right by one": np.roll(ids, 1, axis=1),
        "are shifted left by one": np.roll(ids, -1, axis=1),
        "are in reverse order": ids[:, ::-1],
        "are those of the next row": np.roll(ids, -1, axis=0),
        "are those of the row before": np.roll(ids, 1, axis=0),
    }
    for told, new in others.items():
        apply = lambda s, new=new: replace(s, **{attribute: new})  # noqa: E731
        yield Trial("OtherTokens", f"the ids of the {attribute} {told}", apply)
    table, theirs = getattr(scene.params, side).embedding, scene.passed.get(name)
    if name in scene.seen and theirs is not None:
        scale = getattr(scene.config, side).embedding_scale or 1.0
        rows = theirs / scale
        apart = ((rows**2).sum(-1)[..., None] - 2 * rows @ table.T + (table**2).sum(-1))
        new = apart.argmin(axis=-1)
        if (new != ids).any():
            first = tuple(int(i) for i in np.argwhere(new != ids)[0])
            told = f"token {first[1]} of row {first[0]} is read as {new[first]}, not {ids[first]}"
            yield Trial("OtherTokens", told, lambda s: replace(s, **{attribute: new}), rank=1)


# Quantities.


def _inputs(scene: Scene, fault: str, name: str, source: str) -> Iterator[Trial | Knob]:
    """Another quantity, another row or position, nothing, or a factor, in the place of an input."""
    x = scene.passed[source]

    def trial(flag: str, told: str, change: Any, rank: int = 1) -> Trial:
        return Trial(flag, told, lambda s: s.changing(source, change), rank=rank)

    yield trial("OtherInput", f"{source} is left out", lambda x, _: np.zeros_like(x))
    for other in _earlier(scene, fault, name):
        y = scene.passed[other]
        if other != source and y.ndim == x.ndim and y.shape[-1] == x.shape[-1]:
            told = f"{other} takes the place of {source}"
            yield trial("OtherInput", told, lambda _, values, other=other: values[other])
    for partner in inputs_of(name, list(scene.passed)):
        if partner > source and scene.passed[partner].shape == x.shape:
            yield Trial(
                "SwappedWeights",
                f"{source.rpartition('.')[2]} and {partner.rpartition('.')[2]} are exchanged",
                lambda s, b=partner: s.changing(
                    source, lambda _, v: v.original(b)
                ).changing(b, lambda _, v: v.original(source)),
            )  # fmt: skip
    for flag, told, move in _moves(x):
        yield trial(flag, f"{source} {told}", lambda x, _, move=move: move(x))
    yield Knob(
        1.0,
        usual_numbers(scene, name),
        lambda r, called: trial(
            "Factor", f"{source} is multiplied by {_times(r, called)}", lambda x, _: x * r, rank=2
        ),
    )
    if parsed(name).kind in "qkv" and name.endswith(("_attention.q", "_attention.k", "_attention.v")):
        yield from _axes(scene, fault, source)


def _times(r: float, called: str) -> str:
    return shown(r) if called in ("", shown(r)) else f"{shown(r)} ({called})"


def _axes(scene: Scene, fault: str, source: str) -> Iterator[Trial]:
    """Self-attention over the batch."""
    here = parsed(fault)
    if here.kind == "out" and ".self_attention." in fault:
        place = here.c
        everything = np.ones((1, 1, 1, 1), bool)
        yield Trial(
            "AxesSwapped",
            "batch and positions are exchanged, so that rows attend to each other",
            lambda s: _set_mask(place, everything)(s)
            .changing(source, lambda x, _: x.swapaxes(0, 1))
            .changing(fault, lambda x, _: x.swapaxes(0, 1)),
            rank=1,
        )


def _moves(x: np.ndarray) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """Exchanges of rows and of positions, which are the axes 0 and -2."""

    def rolled(n: int, axis: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.roll(x, n, axis)

    def shifted(n: int, edge: bool) -> Callable[[np.ndarray], np.ndarray]:
        def move(x: np.ndarray) -> np.ndarray:
            at = np.arange(x.shape[-2]) - n
            moved = x[..., np.clip(at, 0, x.shape[-2] - 1), :]
            outside = (at < 0) | (at >= x.shape[-2])
            return moved if edge else np.where(outside[:, None], 0.0, moved)

        return move

    if x.ndim > 2 and x.shape[0] > 1:
        yield "OtherRow", "is that of the row before", rolled(1, 0)
        yield "OtherRow", "is that of the next row", rolled(-1, 0)
        yield "OtherRow", "is that of the first row", lambda x: np.broadcast_to(x[:1], x.shape)
        yield "OtherRow", "has its rows in reverse order", lambda x: x[::-1]
    if x.shape[-2] > 1:
        yield "ShiftedInput", "has its positions in reverse order", lambda x: x[..., ::-1, :]
        for n in (1, -1, 2, -2):
            told = f"is shifted by {n} position{'s' * (abs(n) > 1)}"
            yield "ShiftedInput", told, rolled(n, -2)
            yield "ShiftedInput", f"{told}, with zeros", shifted(n, edge=False)
            yield "ShiftedInput", f"{told}, with the edge", shifted(n, edge=True)
        yield "ShiftedInput", "is that of the first position", lambda x: x[..., :1, :] + 0 * x


def _earlier(scene: Scene, fault: str, name: str) -> list[str]:
    """The quantities that do not depend on ``fault``, the last first."""
    order = list(scene.passed)
    of_memory = fault.endswith(("cross_attention.k", "cross_attention.v"))
    if of_memory:  # computed before the decoder begins, and used in this layer only
        fault = fault.rpartition(".")[0] + ".scores"
    return [other for other in order[: order.index(fault)][::-1] if other not in (fault, name)][:80]


def _outputs(scene: Scene, name: str) -> Iterator[Trial | Knob]:
    """The quantity itself: another one, moved, or multiplied."""
    theirs = scene.passed[name]

    def trial(flag: str, told: str, change: Any, rank: int = 1) -> Trial:
        return Trial(flag, told, lambda s: s.changing(name, change), rank=rank)

    for other in _earlier(scene, name, name):
        if scene.passed[other].ndim == theirs.ndim and scene.passed[other].shape[-1] == theirs.shape[-1]:
            yield trial("OtherInput", f"it is {other}", lambda _, v, other=other: v[other])
    for flag, told, move in _moves(theirs):
        yield trial(flag, f"it {told}", lambda x, _, move=move: move(x))
    yield trial("OtherInput", "it is zero", lambda x, _: np.zeros_like(x))
    yield Knob(
        1.0,
        usual_numbers(scene, name),
        lambda r, called: trial("Factor", f"it is multiplied by {_times(r, called)}", lambda x, _: x * r, 2),
    )


# Caches.


def _cached(scene: Scene, name: str) -> Iterator[Trial]:
    """Keys of other rows and positions in the place of those of the cache, and their values."""
    found = _places(scene, name)
    if found is None:
        return
    batch, n_k = scene.passed[f"{name.rpartition('.')[0]}.k"].shape[0:3:2]
    own = np.arange(batch)[:, None, None] * n_k + np.arange(n_k)
    moved = np.argwhere(found != own)
    if not len(moved):
        return
    row, query, key = (int(i) for i in moved[0])
    whence = int(found[row, query, key])
    place = f"that of row {whence // n_k}, position {whence % n_k}"
    told = "zero" if whence == batch * n_k else place
    flag = "CacheContents" if scene.first < scene.target.shape[1] else "ShiftedInput"
    yield Trial(
        flag,
        f"keys and values are those of other places: for query {query}, position {key} of row {row} "
        f"is {told}",
        lambda s: s.changing(name, _from_places(s, name)),
        rank=1,
    )


def _places(scene: Scene, name: str) -> np.ndarray | None:
    """Where each query finds each key: integers (batch, n_q, n_k), row * n_k + position.

    One more than the last place stands for a zero. A place is the one whose product with the query
    is nearest to the score, in all heads. None where this cannot be seen.
    """
    place, c = name.rpartition(".")[0], member(scene.config, parsed(name).c)
    q, keys = (scene.passed[f"{place}.{x}"] for x in "qk")
    seen, (batch, n_heads, n_q, _), n_k = scene.passed[f"{place}.scores"], q.shape, keys.shape[2]
    size = n_heads * batch**2 * n_q * n_k * n_k
    if f"{place}.scores" not in scene.seen or size > 2**23 or n_k != seen.shape[-1]:
        return None
    products = np.einsum("bhqd,hpd->bhqp", q, _pool(c, keys)) * c.scale
    apart = np.abs((seen - _bias(scene, name))[..., None] - products[:, :, :, None, :]).max(axis=1)
    own = np.broadcast_to(np.arange(batch)[:, None, None] * n_k + np.arange(n_k), apart.shape[:-1])
    as_own = np.take_along_axis(apart, own[..., None], axis=-1)[..., 0] <= 1e-4 * np.abs(seen).max()
    allowed = np.broadcast_to(scene.masks[parsed(name).c], (batch, 1, n_q, n_k))[:, 0]
    return np.where(~allowed | as_own, own, apart.argmin(axis=-1))


def _pool(c: AttentionConfig, x: np.ndarray) -> np.ndarray:
    """The keys or values of all places, then a zero: (n_heads, batch * n + 1, d)."""
    heads, share = np.arange(c.n_heads), c.n_heads // c.n_kv_heads
    of_head = heads // share if c.kv_head_order == "grouped" else heads % c.n_kv_heads
    flat = x[:, of_head].transpose(1, 0, 2, 3).reshape(c.n_heads, -1, x.shape[-1])
    return np.concatenate([flat, np.zeros_like(flat[:, :1])], axis=1)


def _from_places(scene: Scene, name: str) -> Change:
    """The change of scores, or heads, to those with the keys, or values, of `_places`."""
    place, c, at = name.rpartition(".")[0], member(scene.config, parsed(name).c), _places(scene, name)
    bias, of_scores = _bias(scene, name), name.endswith(".scores")

    def change(_: np.ndarray, values: Values) -> np.ndarray:
        found = _pool(c, values[f"{place}.{'k' if of_scores else 'v'}"])[:, at]
        found = found.transpose(1, 0, 2, 3, 4)  # (batch, n_heads, n_q, n_k, d)
        if of_scores:
            return (values[f"{place}.q"][..., None, :] * found).sum(axis=-1) * c.scale + bias
        return (values[f"{place}.weights"][..., None, :] @ found)[..., 0, :]

    return change


def _bias(scene: Scene, name: str) -> Any:
    """The bias of relative positions in the scores of an attention; 0 without one."""
    here = parsed(name)
    if here.c.endswith("cross_attention"):
        return 0.0
    p, c = getattr(scene.params, here.stack), getattr(scene.config, here.stack)
    biases = position_terms(p, c, *scene.positions[here.stack])[1]
    bias = biases[int(here.p.split(".")[2])]
    return 0.0 if bias is None else bias
