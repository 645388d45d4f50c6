"""A part of the forward pass, computed again from changed ingredients.

A `Scene` is one input, with all that the other implementation computed from it. An explanation of a
fault is a change of the scene: another config, other parameters, masks or positions, or a function
of a named quantity. `replay` then computes the layers that contain the fault, by the functions of
the model, from the quantities before them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...attention import CrossContext, SelfContext, keys_values
from ...config import ModelConfig
from ...model import (
    decoder_layer,
    embed,
    embed_source,
    encoder_layer,
    position_terms,
    self_masks,
    with_registers,
)
from ...ops import linear, normalize, soft_cap
from ...params import Params
from ...taps import FunctionTap, Tap
from .entering import parsed

Change = Callable[[np.ndarray, "Values"], np.ndarray]
"""A function (quantity, values) that returns what replaces the quantity."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One input, the ingredients of the forward pass, and the quantities that passed.

    ``positions`` are those of queries and of keys, for each stack. ``masks`` are boolean, True =
    may attend, under the names of the attentions; the windows of layers narrow them.
    """

    config: ModelConfig
    params: Params
    source: np.ndarray  # (batch, n) or (batch, n, d)
    source_mask: np.ndarray | None  # (batch, n) True = real; None = all
    target: np.ndarray  # (batch, n_target)
    positions: dict[str, tuple[np.ndarray, np.ndarray]]  # each (n,) or (batch, n)
    masks: dict[str, np.ndarray]
    passed: Mapping[str, np.ndarray]
    seen: frozenset[str]  # names of the arrays in ``passed`` that are the other implementation's
    misfits: Mapping[str, tuple[int, ...]]  # the shapes of its arrays that the model has otherwise
    pads: np.ndarray  # (batch, n_encoded) True = the source has pad_id there, masked or not
    first: int  # number of tokens that the first step of a loop reads; all without a loop
    changes: Mapping[str, Change] = field(default_factory=dict)

    def length(self, stack: str) -> int:
        """The number of tokens, or embeddings of frames, of encoder or decoder."""
        return int(self.positions[stack][0].shape[-1])

    def changing(self, name: str, change: Change) -> "Scene":
        """The scene with a change of one more quantity."""
        return replace(self, changes={**self.changes, name: change})


class Values(Mapping[str, np.ndarray]):
    """The quantities of a scene: computed again, or those that passed, after their changes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.computed: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.computed:
            return self.computed[name]
        x, change = self._scene.passed[name], self._scene.changes.get(name)
        return x if change is None else change(x, self)

    def original(self, name: str) -> np.ndarray:
        """The quantity as it passed, not changed."""
        return self._scene.passed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scene.passed)

    def __len__(self) -> int:
        return len(self._scene.passed)


def replay(scene: Scene, names: Collection[str], tap: Tap) -> None:
    """Compute the quantities ``names``, and what their layers compute before them.

    The tap receives each of ``names`` as it is computed and changed. Other quantities are those
    that passed before, changed.
    """
    values, wanted = Values(scene), set(names)

    def continued(name: str, x: np.ndarray) -> np.ndarray:
        if name not in wanted:
            return values[name]
        change = scene.changes.get(name)
        x = tap(name, x if change is None else change(x, values))
        values.computed[name] = x
        if len(values.computed) == len(wanted):
            raise _Computed
        return x

    try:
        _encoder(scene, wanted, values, FunctionTap(continued))
        _decoder(scene, wanted, values, FunctionTap(continued))
    except _Computed:
        pass


class _Computed(Exception):
    """All that was wanted is computed."""


def _has(wanted: Collection[str], place: str) -> bool:
    return any(name.startswith(place) for name in wanted)


def _embedding(
    s: Scene, side: str, ids: np.ndarray, wanted: set[str], values: Values, tap: Tap
) -> Any:
    c, p = getattr(s.config, side), getattr(s.params, side)
    early = tuple(f"{side}.{kind}" for kind in ("frame", "tokens", "positions", "embed"))
    if any(name.startswith(early) for name in wanted):
        x, _ = embed_source(p, c, ids, s.source_mask, tap.at(side))
        return embed(p, c, x, s.positions[side][0], tap.at(side))
    return values[f"{side}.embed"]


def _encoder(s: Scene, wanted: set[str], values: Values, tap: Tap) -> None:
    c, p, inside = s.config.encoder, s.params.encoder, tap.at("encoder")
    x = _embedding(s, "encoder", s.source, wanted, values, tap)
    mask: Any = s.masks["encoder.self_attention"]
    q, k = s.positions["encoder"]
    if p.register_tokens is not None:
        (x, mask, k), (_, _, q) = (with_registers(p.register_tokens, x, mask, at) for at in (k, q))
    for i, layer in enumerate(p.layers):
        place = f"encoder.layers.{i}."
        if _has(wanted, place):
            rotation, biases = position_terms(p, c, q, k, x.dtype)
            context = SelfContext(rotation, biases[i], self_masks(c, mask, q, k)[i])
            x = encoder_layer(layer, c, x, context, inside.at(f"layers.{i}"))
        else:
            x = values[place + "after_feed_forward"]
    if "encoder.final" in wanted:
        inside("final", normalize(p.final_norm, c.norm, x))


def _decoder(s: Scene, wanted: set[str], values: Values, tap: Tap) -> None:
    c, p, inside = s.config.decoder, s.params.decoder, tap.at("decoder")
    x = _embedding(s, "decoder", s.target, wanted, values, tap)
    for i, layer in enumerate(p.layers):
        place = f"decoder.layers.{i}."
        if not _has(wanted, place):
            x = values[place + "after_feed_forward"]
            continue
        at = inside.at(f"layers.{i}")
        cross = f"{place}cross_attention."
        k, v = values[cross + "k"], values[cross + "v"]
        if wanted & {cross + "k", cross + "v"}:
            hidden = values["encoder.final"][:, s.config.encoder.n_register_tokens :]
            k, v = keys_values(layer.cross_attention, c.cross_attention, hidden)  # type: ignore[arg-type]
            k, v = at("cross_attention.k", k), at("cross_attention.v", v)
        if wanted - {cross + "k", cross + "v"}:
            rotation, biases = position_terms(p, c, *s.positions["decoder"], x.dtype)
            masks = self_masks(c, s.masks["decoder.self_attention"], *s.positions["decoder"])
            own = SelfContext(rotation, biases[i], masks[i])
            source = CrossContext(k, v, s.masks["decoder.cross_attention"])
            x = decoder_layer(layer, c, x, own, source, at)
    if "decoder.final" in wanted or "logits" in wanted:
        x = inside("final", normalize(p.final_norm, c.norm, x)) * s.config.logits_scale
        if "logits" in wanted:
            logits = linear(x, s.params.unembedding, s.params.logits_bias)
            tap("logits", soft_cap(logits, s.config.logits_softcap))


def mask_of(s: Scene, name: str) -> np.ndarray:
    """The mask of the attention that computes a quantity, within the window of its layer."""
    here = parsed(name)
    mask, c = s.masks[here.c], getattr(s.config, here.stack)
    if not (here.windows and c.windows):
        return mask
    masks = self_masks(c, mask, *s.positions[here.stack])
    return masks[int(here.p.split(".")[2])]  # type: ignore[return-value]


def member(root: Any, path: str) -> Any:
    """The member of nested dataclasses, dicts and tuples, such as "encoder.layers.0.self_norms"."""
    for part in path.split("."):
        if isinstance(root, tuple):
            root = root[int(part)]
        else:
            root = root[part] if isinstance(root, dict) else getattr(root, part)
    return root


def with_member(root: Any, path: str, value: Any) -> Any:
    """``root`` with another `member`."""
    part, _, rest = path.partition(".")
    if isinstance(root, tuple):
        i = int(part)
        new = with_member(root[i], rest, value) if rest else value
        return (*root[:i], new, *root[i + 1 :])
    inner = root[part] if isinstance(root, dict) else getattr(root, part)
    new = with_member(inner, rest, value) if rest else value
    return root | {part: new} if isinstance(root, dict) else replace(root, **{part: new})
