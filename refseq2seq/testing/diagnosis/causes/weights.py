"""Other parameters and norms: left out, moved, permuted or exchanged."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np

from ....attention import merge_heads, split_heads
from ....ops import normalize
from ....params import NormParams, SublayerNorms, named_arrays
from ....taps import FunctionTap
from ..entering import enters, frame_config, parsed
from ..replay import Scene, member, replay
from .trial import (
    Knob,
    Trial,
    applied,
    found,
    named,
    of_quantity,
    usual_numbers,
    with_config,
    with_param,
)

PLACES = {
    "before": "to the input of the sublayer",
    "branch": "to its output",
    "after": "to the residual sum",
}


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
    """The biases of q, k and v left out together, if none of these quantities was compared."""
    for place in dict.fromkeys(name.rpartition(".")[0] for name in names):
        p = found(scene.params, place)
        for kinds in ("qkv", "kv"):
            biases = {f"b_{kind}": getattr(p, f"b_{kind}", None) for kind in kinds}
            computed = all(f"{place}.{kind}" in names for kind in kinds)
            if computed and all(x is not None for x in biases.values()):
                zeros = replace(p, **{b: np.zeros_like(x) for b, x in biases.items()})
                text = f"{', '.join(biases)} of {place} are left out"
                yield Trial("BiasMissing", text, with_param(place, zeros))


BIASES = {"q": "b_q", "k": "b_k", "v": "b_v", "out": "b_o", "frame_projected": "b_in"}
"""The last word of a quantity -> the bias that some models add to it."""
FEWEST_ROWS = 4  # with fewer, a bias would explain any difference


def bias_added(scene: Scene, name: str) -> Iterator[Trial]:
    """A bias where the model has none: what the rows differ by, the same in all of them."""
    here = parsed(name)
    p, bias = found(scene.params, here.p), BIASES.get(here.kind, "")
    if not bias or name not in scene.seen or getattr(p, bias, p) is not None:
        return
    own: dict[str, np.ndarray] = {}
    replay(scene, [name], FunctionTap(lambda name, x: own.setdefault(name, np.asarray(x))))
    difference = scene.passed[name] - own[name]
    axes = (0, 2) if difference.ndim == 4 else (0, 1)
    added = np.median(difference, axis=axes, keepdims=True)
    if difference.size < FEWEST_ROWS * added.size:
        return
    text = f"a bias is added; the model has no {here.p}.{bias}"
    yield of_quantity("BiasAdded", text, name, applied(lambda x: x + added))


def other_heads(scene: Scene, name: str) -> Iterator[Trial]:
    """Heads whose elements are not neighbours, in reverse order, or not transposed."""
    here = parsed(name)
    for path in _entering(scene, name):
        place, _, word = path.rpartition(".")
        if word not in ("w_q", "w_k", "w_v", "w_o"):
            continue
        p, c = member(scene.params, place), member(scene.config, here.c)
        n = c.n_kv_heads if word in ("w_k", "w_v") else c.n_heads
        w, bias = getattr(p, word), word.replace("w_", "b_")
        columns = np.arange(w.shape[0] if word == "w_o" else w.shape[1])
        orders = {
            "as (d, n_heads), where the model has (n_heads, d)": columns.reshape(-1, n).T.ravel(),
            "in reverse order": columns.reshape(n, -1)[::-1].ravel(),
        }
        for told, order in orders.items():
            new = {word: w[order]} if word == "w_o" else {word: w[:, order]}
            if word != "w_o" and getattr(p, bias) is not None:
                new[bias] = getattr(p, bias)[order]
            text = f"heads are {'merged' if word == 'w_o' else 'split'} {told}"
            yield Trial("HeadOrder", text, with_param(place, replace(p, **new)))
    if here.kind in ("q", "k", "v"):
        text = "heads are split without exchanging heads and positions"
        yield of_quantity("HeadOrder", text, name, applied(_split_in_place))
    if here.kind in ("heads", "out") and f"{here.p}.heads" in scene.passed:
        text = "heads are merged without exchanging heads and positions"
        yield of_quantity("HeadOrder", text, f"{here.p}.heads", applied(_merged_in_place))


def _split_in_place(x: np.ndarray) -> np.ndarray:
    """(batch, n_heads, n, d): the rows of all heads, cut into heads without a transposition."""
    return merge_heads(x).reshape(x.shape)


def _merged_in_place(x: np.ndarray) -> np.ndarray:
    """(batch, n_heads, n, d): what `merge_heads` makes of it are its elements in their order."""
    batch, n_heads, n, d = x.shape
    return split_heads(x.reshape(batch, n, n_heads * d), n_heads)


def other_arrays(scene: Scene, name: str) -> Iterator[Trial]:
    """Arrays transposed, exchanged with others of their sublayer, or those of another one."""
    arrays = dict(named_arrays(scene.params))
    for path, x in _entering(scene, name).items():
        place, _, word = path.rpartition(".")
        if x.ndim == 2 and x.shape[0] == x.shape[1]:
            yield Trial("OtherWeights", f"{path} is transposed", with_param(path, x.T))
        if path == "unembedding":
            for table in ("encoder.embedding", "decoder.embedding"):
                if table in arrays and arrays[table].shape == x.shape[::-1]:
                    text = f"unembedding is {table}, transposed"
                    yield Trial("OtherWeights", text, with_param(path, arrays[table].T))
        for other, y in arrays.items():
            there, _, like = other.rpartition(".")
            if other == path or y.shape != x.shape or like in ("gain", "bias"):
                continue
            if there == place and not word.isdigit():
                yield _exchanged(scene, place, *sorted([word, like]))
            elif like == word or word.isdigit():
                yield _of_another(scene, path, other)
    for path, p in _norms(scene, name):
        for other, q in _all_norms(scene).items():
            shapes = [[getattr(x, "shape", None) for x in (r.gain, r.bias)] for r in (p, q)]
            if other != path and shapes[0] == shapes[1] != [None, None]:
                text = _of_layer(path, other) or f"the norm {path} is {other}"
                yield Trial("NormParameters", text, with_param(path, q))


def _of_another(scene: Scene, path: str, other: str) -> Trial:
    """An array, and its bias, of another sublayer."""
    text = _of_layer(path, other) or f"{path} is {other}"
    change, biases = with_param(path, member(scene.params, other)), [path, other]
    if path.rpartition(".")[2].startswith("w_"):
        biases = [re.sub(r"\.w_(\w+)$", r".b_\1", name) for name in biases]
    bias = found(scene.params, biases[1])
    if bias is None or found(scene.params, biases[0]) is None:
        return Trial("OtherWeights", text, change)
    with_bias = with_param(biases[0], bias)
    return Trial("OtherWeights", text, lambda s: with_bias(change(s)))


def _of_layer(path: str, other: str) -> str:
    """The text if two arrays are the same of two layers; or else the empty text."""
    here, there = (re.match(r"(\w+\.layers\.\d+)\.(.*)", name) for name in (path, other))
    if here and there and here[2] == there[2]:
        return f"weights of {there[1]} are in the place of those of {here[1]}"
    return ""


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
        "frame_projected": (f"{here.p}.norm_before",),
        "frame_out": (f"{here.p}.norm_after",),
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
            for told, gain in {"-": p.gain - 1, "+": p.gain + 1}.items():
                text = f"the gain is {at} {told} 1"
                yield Trial("GainMinusOne", text, with_param(at, gain), inexact=at)
            yield from _unbiased(scene, path, p.gain)
    yield from _moved(scene, name)


def _unbiased(scene: Scene, path: str, gain: np.ndarray) -> Iterator[Trial]:
    """Sums divided by d - 1, where the model divides by d, and the reverse.

    sqrt(v + eps) with v = w d / (d - 1) is sqrt(d / (d - 1)) sqrt(w + eps (d - 1) / d), and an eps
    outside the root scales likewise.
    """
    stack = path.partition(".")[0]
    at = frame_config(path) if ".frame_layers." in path else f"{stack}.norm"
    d = gain.shape[-1] if gain.ndim else member(scene.config, stack).d_model
    norm = member(scene.config, at)
    if norm.kind not in ("layer_norm", "std_norm") or d == 1:
        return
    biased = norm.kind == "layer_norm"
    ratio = math.sqrt((d - 1) / d) if biased else math.sqrt(d / (d - 1))
    with_eps = with_config(at, replace(norm, eps=norm.eps * (ratio**2 if biased else ratio)))
    with_gain = with_param(f"{path}.gain", gain * ratio)
    divisors = ("d - 1", "d") if biased else ("d", "d - 1")
    text = f"the norm {path} divides the squares by {divisors[0]}; the model by {divisors[1]}"
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
                text = f"the norm is applied {PLACES[new]}; in the model {PLACES[old]} ({path})"
                yield Trial("NormPlace", text, with_param(path, moved))


def normalised(scene: Scene, name: str, quantity: str) -> Iterator[Trial]:
    """The ``quantity``, which enters ``name``, after one more norm of the layer or the stack."""
    layer = ".".join(parsed(name).p.split(".")[:3])
    for path, p in _all_norms(scene).items():
        side = parsed(path).stack
        if path.startswith((layer + ".", f"{side}.final_norm", f"{side}.embedding_norm")):
            of_frames = ".frame_layers." in path
            c = member(scene.config, frame_config(path) if of_frames else f"{side}.norm")
            text = f"{quantity} is normalised once more, by {path}"
            yield of_quantity("NormPlace", text, quantity, applied(partial(normalize, p, c)))


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
