"""Parameters left out, moved, permuted, exchanged, and the norms that they belong to."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from fnmatch import fnmatchcase

import numpy as np

from ....ops import normalize
from ....params import NormParams, SublayerNorms, named_arrays
from ..entering import enters, parsed
from ..replay import Scene, member
from .trial import Knob, Trial, found, named, usual_numbers, with_config, with_param

PLACES = {"before": "before the sublayer", "branch": "on its result", "after": "after the sum"}


def _entering(scene: Scene, name: str) -> dict[str, np.ndarray]:
    """The arrays that enter a quantity, without those of norms."""
    return {
        path: x
        for path, x in named_arrays(scene.params)
        if any(fnmatchcase(path, pattern) for pattern in enters(name)[1])
        and not path.endswith((".gain", ".bias"))
    }


def left_out(scene: Scene, name: str) -> Iterator[Trial]:
    """Biases and tables left out."""
    for path, x in _entering(scene, name).items():
        text = f"{path} is left out"
        if path.rpartition(".")[2].startswith("b_") or path == "logits_bias":
            yield Trial("BiasMissing", text, with_param(path, np.zeros_like(x)))
        elif ".relative_bias." in path:
            yield Trial("RelativeScale", text, with_param(path, np.zeros_like(x)))
        elif path.endswith(".head_scale"):
            yield Trial("Factor", text, with_param(path, np.ones_like(x)))


def biases_left_out(scene: Scene, names: list[str]) -> Iterator[Trial]:
    """All biases of projections that are computed at once, none of them seen."""
    for place in dict.fromkeys(name.rpartition(".")[0] for name in names):
        p = found(scene.params, place)
        for kinds in ("qkv", "kv"):
            biases = {f"b_{kind}": getattr(p, f"b_{kind}", None) for kind in kinds}
            computed = all(f"{place}.{kind}" in names for kind in kinds)
            if computed and all(x is not None for x in biases.values()):
                zeros = replace(p, **{b: np.zeros_like(x) for b, x in biases.items()})
                text = f"{', '.join(biases)} of {place} are left out"
                yield Trial("BiasMissing", text, with_param(place, zeros))


def other_heads(scene: Scene, name: str) -> Iterator[Trial]:
    """Heads whose elements are not neighbours, or in the reverse order."""
    for path in _entering(scene, name):
        place, _, word = path.rpartition(".")
        if word not in ("w_q", "w_k", "w_v", "w_o"):
            continue
        p, c = member(scene.params, place), member(scene.config, parsed(name).c)
        n = c.n_kv_heads if word in ("w_k", "w_v") else c.n_heads
        w, bias = getattr(p, word), word.replace("w_", "b_")
        width = w.shape[0] if word == "w_o" else w.shape[1]
        orders = {
            "as (d, n_heads), where the model has (n_heads, d)": (-1, n),
            "in the reverse order": (n, width // n),
        }
        for told, shape in orders.items():
            order = np.arange(width).reshape(shape)
            order = order.T.ravel() if shape[0] == -1 else order[::-1].ravel()
            new = {word: w[order]} if word == "w_o" else {word: w[:, order]}
            if word != "w_o" and getattr(p, bias) is not None:
                new[bias] = getattr(p, bias)[order]
            verb = "merged" if word == "w_o" else "split"
            yield Trial(
                "HeadOrder", f"heads are {verb} {told}", with_param(place, replace(p, **new))
            )


def other_arrays(scene: Scene, name: str) -> Iterator[Trial]:
    """Arrays transposed, exchanged with others of their sublayer, or those of another layer."""
    arrays = dict(named_arrays(scene.params))
    for path, x in _entering(scene, name).items():
        place, _, word = path.rpartition(".")
        if x.ndim == 2 and x.shape[0] == x.shape[1]:
            yield Trial("OtherWeights", f"{path} is transposed", with_param(path, x.T))
        for other, y in arrays.items():
            there, _, like = other.rpartition(".")
            if other == path or y.shape != x.shape or like in ("gain", "bias"):
                continue
            if there == place:
                yield _exchanged(scene, place, *sorted([word, like]))
            elif like == word:
                yield Trial("OtherWeights", f"{path} is {other}", with_param(path, y))
    for path, p in _norms(scene, name):
        for other, q in _all_norms(scene).items():
            shapes = [[getattr(x, "shape", None) for x in (r.gain, r.bias)] for r in (p, q)]
            if other != path and shapes[0] == shapes[1] != [None, None]:
                yield Trial("NormParameters", f"the norm {path} is {other}", with_param(path, q))


def _exchanged(scene: Scene, place: str, a: str, b: str) -> Trial:
    """Two arrays of a sublayer in the place of each other, with their biases."""
    p = member(scene.params, place)
    pairs = [(a, b), (a.replace("w_", "b_"), b.replace("w_", "b_"))]
    new = {x: getattr(p, y, None) for pair in pairs for x, y in (pair, pair[::-1])}
    if any(value is None for value in new.values()):
        new = {a: getattr(p, b), b: getattr(p, a)}
    if {a, b} == {"learned_k", "learned_v"}:  # the model stores keys as they are normalised
        c = member(scene.config, f"{place.partition('.')[0]}.{place.rpartition('.')[2]}")
        new["learned_k"] = normalize(p.k_norm, c.qk_norm, p.learned_v)
    return Trial(
        "SwappedWeights", f"{a} and {b} are exchanged", with_param(place, replace(p, **new))
    )


# Norms.


def _norms(scene: Scene, name: str) -> Iterator[tuple[str, NormParams]]:
    """The norms between a quantity and its inputs."""
    here = parsed(name)
    paths = {
        "input": (f"{here.norms}.before",),
        "after": (f"{here.norms}.branch", f"{here.norms}.after"),
        "embed": (f"{here.stack}.embedding_norm",),
        "final": (f"{here.stack}.final_norm",),
    }.get(here.kind, (f"{here.p}.{here.kind}_norm",))
    for path in paths:
        if isinstance(p := found(scene.params, path), NormParams):
            yield path, p


def _all_norms(scene: Scene) -> dict[str, NormParams]:
    arrays = (name for name, _ in named_arrays(scene.params) if name.endswith((".gain", ".bias")))
    return {path: member(scene.params, path) for path in (n.rpartition(".")[0] for n in arrays)}


def other_norms(scene: Scene, name: str) -> Iterator[Trial]:
    """Norms left out or moved, and with another gain, bias or variance."""
    for path, p in _norms(scene, name):
        yield Trial("NormMissing", f"the norm {path} is left out", with_param(path, None))
        if p.bias is not None:
            zeros = np.zeros_like(p.bias)
            text = f"{path}.bias is left out"
            yield Trial("NormParameters", text, with_param(f"{path}.bias", zeros))
        if p.gain is not None:
            at, ones = f"{path}.gain", np.ones_like(p.gain)
            yield Trial("NormParameters", f"{at} is left out", with_param(at, ones))
            for told, gain in {"minus": p.gain - 1, "plus": p.gain + 1}.items():
                text = f"{at} is used {told} 1"
                yield Trial("GainMinusOne", text, with_param(at, gain), inexact=at)
            yield from _unbiased(scene, path, p.gain)
    yield from _moved(scene, name)


def _unbiased(scene: Scene, path: str, gain: np.ndarray) -> Iterator[Trial]:
    """(x - mean) / sqrt(variance d / (d - 1) + eps)."""
    at, c, d = f"{path.partition('.')[0]}.norm", scene.config, gain.shape[-1] if gain.ndim else 1
    norm = member(c, at)
    if norm.kind == "layer_norm" and d > 1:
        ratio = (d - 1) / d
        with_eps = with_config(at, replace(norm, eps=norm.eps * ratio))
        with_gain = with_param(f"{path}.gain", gain * math.sqrt(ratio))
        text = f"the variance of the norm {path} is the unbiased one, a sum divided by d - 1"
        yield Trial("BiasedDeviation", text, lambda s: with_gain(with_eps(s)))


def _moved(scene: Scene, name: str) -> Iterator[Trial]:
    """The norm of a sublayer in another of its three places."""
    path, new_places = parsed(name).norms, {"input": ["before"], "after": ["branch", "after"]}
    norms = found(scene.params, path)
    if not isinstance(norms, SublayerNorms):
        return
    for old in (f.name for f in fields(norms) if getattr(norms, f.name) is not None):
        for new in new_places.get(parsed(name).kind, []):
            if getattr(norms, new) is None:
                moved = replace(norms, **{old: None, new: getattr(norms, old)})
                text = f"the norm stands {PLACES[new]}; in the model {PLACES[old]} ({path})"
                yield Trial("NormPlace", text, with_param(path, moved))


def factors(scene: Scene, name: str) -> Iterator[Knob]:
    """Factors of the gains of norms."""
    for path, p in _norms(scene, name):
        if p.gain is not None:
            yield _factor(scene, f"{path}.gain", p.gain)


def _factor(scene: Scene, path: str, gain: np.ndarray) -> Knob:
    return Knob(
        1.0,
        usual_numbers(scene, path),
        lambda r, called: Trial(
            "Factor", f"{path} is multiplied by {named(r, called)}", with_param(path, gain * r)
        ),
    )
