"""What a quantity is computed from, besides other quantities: config fields, masks, parameters."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ...config import AlibiPositions, BucketedPositions, ModelConfig, RotaryPositions
from ...params import param_shapes

# The last word of a name -> the config fields and the parameters from which it is computed.
# {stack}, {c}, {p}, {norms} and {windows} are those of `Parsed`.
ENTERS: dict[str, tuple[str, str]] = {
    "frames": ("", ""),
    "frame_projected": (
        "{c}.norm_before {c}.window {c}.stride {c}.padding",
        "{p}.norm_before.* {p}.?_in",
    ),
    "frame_out": ("{c}.activation {c}.norm_after", "{p}.norm_after.*"),
    "tokens": ("{stack}.embedding_scale", "{stack}.embedding {stack}.class_tokens"),
    "positions": ("{stack}.positions", "{stack}.positions"),
    "embed": ("{stack}.embedding_norm {stack}.norm", "{stack}.embedding_norm.*"),
    "input": ("{stack}.norm_positions {stack}.norm", "{norms}.before.*"),
    "q": ("{c}.n_heads {c}.qk_norm {stack}.relative_positions", "{p}.w_q {p}.b_q {p}.q_norm.*"),
    "k": ("{c}.n_kv_heads {c}.qk_norm {stack}.relative_positions", "{p}.w_k {p}.b_k {p}.k_norm.*"),
    "v": ("{c}.n_kv_heads", "{p}.w_v {p}.b_v"),
    "scores": (
        "{c}.scale {c}.softcap {c}.n_heads {c}.kv_head_order {stack}.relative_positions",
        "{stack}.relative_bias.* {p}.learned_k",
    ),
    "weights": ("{windows}", ""),
    "heads": ("{c}.kv_head_order", "{p}.learned_v"),
    "out": ("{c}.biases {c}.gate {c}.head_scale", "{p}.head_scale {p}.?_o {p}.?_out"),
    "after": ("{stack}.norm_positions {stack}.norm", "{norms}.branch.* {norms}.after.*"),
    "projected": ("{c}.biases", "{p}.?_in"),
    "gate": ("{c}.biases {c}.gate", "{p}.?_gate"),
    "activated": ("{c}.activation {c}.gated", ""),
    "hidden": ("{c}.activation {c}.gated {c}.hidden_norm", "{p}.hidden_norm.*"),
    "final": ("{stack}.final_norm {stack}.norm", "{stack}.final_norm.*"),
    "logits": ("logits_scale logits_softcap tied_logits", "unembedding logits_bias"),
}


def entering(config: ModelConfig, names: Iterable[str]) -> list[str]:
    """Lines that list the config fields, masks and parameters on which ``names`` depend."""
    lines: dict[str, None] = {}
    shapes = param_shapes(config)
    for name in names:
        kind = parsed(name).kind
        fields, patterns = enters(name)
        for path in fields:
            value: Any = config
            for field in path.split("."):  # None if this kind of sublayer has no such field
                value = getattr(value, field, None)
            if value is not None and _enters(kind, value):
                lines[f"{path} = {value!r}"] = None
        if kind in ("scores", "weights"):
            lines[_mask(name)] = None
        if kind == "frames":
            lines["the frames given, such as those of refseq2seq.speech.log_mel"] = None
        if kind == "tokens" and getattr(config, parsed(name).stack).vocab_size:
            lines["the token ids"] = None
        if kind == "positions" or (kind in "qk" and any("Rotary" in line for line in lines)):
            lines["the positions, which count real tokens only"] = None
        for pattern in patterns:
            found = [path for path in shapes if fnmatchcase(path, pattern)]
            lines |= {f"{path}, an array of shape {shapes[path]}": None for path in found}
    return list(lines)


def last_word(name: str) -> str:
    """The last word of a name, such as ``q`` or ``after_feed_forward``."""
    return name.rpartition(".")[2]


class Parsed(NamedTuple):
    """The parts of a quantity's name."""

    kind: str  # its last word, of a frame layer "frame_out"; "after" for "after_self_attention"
    stack: str  # encoder or decoder
    c: str  # the config of its sublayer
    p: str  # the parameters of its sublayer
    norms: str  # the norms around its sublayer
    windows: str  # the windows of its self-attention; "" of other quantities


def parsed(name: str) -> Parsed:
    """The parts of a name.

    Examples
    --------
    >>> parsed("step.2.decoder.layers.1.after_cross_attention")  # doctest: +NORMALIZE_WHITESPACE
    Parsed(kind='after', stack='decoder', c='decoder.cross_attention',
           p='decoder.layers.1.cross_attention', norms='decoder.layers.1.cross_norms', windows='')
    """
    bare = re.sub(r"^step\.\d+\.", "", name)
    place, _, kind = bare.rpartition(".")
    if place.startswith("encoder.frame_layers."):
        return Parsed(f"frame_{kind}", "encoder", frame_config(place), place, place, "")
    if kind.startswith("after_"):
        place, kind = f"{place}.{kind.removeprefix('after_')}", "after"
    layer, _, sub = place.rpartition(".")
    stack, norms = bare.partition(".")[0], f"{layer}.{sub.removesuffix('_attention')}_norms"
    windows = f"{stack}.windows" if sub == "self_attention" else ""
    return Parsed(kind, stack, f"{stack}.{sub}", place, norms, windows)


def frame_config(path: str) -> str:
    """The path of the config of a frame layer, or of a norm in it, from that of its parameters."""
    return path.replace(".frame_layers.", ".input.layers.")


def enters(name: str) -> tuple[list[str], list[str]]:
    """The paths of config fields and the patterns of parameters that enter a quantity."""
    here = parsed(name)
    fields, patterns = (text.format(**here._asdict()).split() for text in ENTERS[here.kind])
    return fields, patterns


def _enters(kind: str, value: Any) -> bool:
    """Whether a field with this value affects a quantity of this kind.

    Rotations affect queries and keys, other relative positions scores. Disabled options affect
    nothing.
    """
    if isinstance(value, RotaryPositions):
        return kind in "qk"
    if isinstance(value, AlibiPositions | BucketedPositions):
        return kind == "scores"
    return value not in ((), False, "none")


def _mask(name: str) -> str:
    """The mask that limits the keys of a query, and where the keys are computed."""
    if ".cross_attention." in name:
        return "the source mask; keys and values of encoder.final"
    if name.startswith("encoder."):
        return "the source mask"
    if name.startswith("step.") and not name.startswith("step.0."):
        return "the causal mask; keys and values of earlier steps, from the cache"
    return "the causal mask"
