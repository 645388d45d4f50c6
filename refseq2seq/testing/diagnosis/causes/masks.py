"""Other masks, and other ways to apply the right one."""

import math
from collections.abc import Iterator

import numpy as np

from ....config import FrameInput
from ....ops import softmax
from ..entering import parsed
from ..replay import Change, Scene, mask_of
from .trial import Apply, Trial, with_mask


def other_masks(scene: Scene, name: str) -> Iterator[Trial]:
    """Other masks of an attention, and what a row without a key gives."""
    here = parsed(name)
    if here.kind not in ("weights", "heads"):
        return
    right, n_k = mask_of(scene, name), scene.passed[f"{here.p}.scores"].shape[-1]
    fills = {"equal": 1 / n_k} if here.kind == "weights" else {"zero": 0.0}
    others = [] if _has_right_weights(scene, name) else list(_masks(scene, name))
    has_key = right.any(axis=-1, keepdims=True)
    # The right mask has no text: only the result of a query without a key is changed.
    for flag, text, mask in [("AllMaskedRow", "", right), *others]:
        if text and here.kind == "weights":
            yield Trial(flag, f"{text} ({here.c})", with_mask(here.c, mask))
        wide = widened(mask, n_k)
        differs = mask is right or not np.array_equal(mask & has_key, right & has_key)
        if differs and not wide.any(axis=-1).all():
            for told, fill in (fills | {"NaN": math.nan}).items():
                row = f"the {here.kind} of a query without a key are {told}"
                together = f"{text}; {row}" if text else row
                yield Trial(
                    flag, f"{together} ({here.c})", _filled(here.c, name, mask, _where(wide, fill))
                )


def _has_right_weights(scene: Scene, name: str) -> bool:
    """Whether ``name`` are heads, and the weights, which are seen, have the right mask."""
    place = parsed(name).p
    if parsed(name).kind == "weights" or f"{place}.weights" not in scene.seen:
        return False
    scores, weights = scene.passed[f"{place}.scores"], scene.passed[f"{place}.weights"]
    right = softmax(scores, widened(mask_of(scene, name), scores.shape[-1]))
    return right.shape == weights.shape and np.allclose(right, weights, rtol=0, atol=0.05)


def _masks(scene: Scene, name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Masks in the place of the right one: flag, description, boolean array."""
    here = parsed(name)
    right = mask_of(scene, name)
    n = right.shape[-1]
    of_source = here.stack == "encoder" or here.c.endswith("cross_attention")
    if not here.c.endswith("cross_attention"):
        distance = np.abs(np.arange(n)[:, None] - np.arange(n))[None, None]
        for w in range(1, min(n, 9)):
            text = f"the mask hides keys at a distance of {w} or more"
            yield "OtherMask", text, right & (distance < w)
    yield "PadLeak" if of_source else "CausalMask", "no mask is applied", np.ones_like(right)
    yield "MaskInverted", "the mask is inverted", ~right
    if not of_source:
        for i, tokens in {1: "token", 2: "tokens"}.items():
            later, less = ~np.tri(n, n, dtype=bool), np.tri(n, n, -i, dtype=bool)
            more = (right | later) & np.tri(n, n, i, dtype=bool)
            yield "CausalMask", f"the causal mask includes {i} later {tokens}", more
            yield (
                "CausalMask",
                f"the causal mask also excludes the last {i} {tokens}",
                right & less,
            )
        return
    later = np.concatenate([right[..., :1], right[..., :-1]], axis=-1)
    sooner = np.concatenate([right[..., 1:], right[..., -1:]], axis=-1)
    others = {
        "the mask includes one more key at each end": right | later | sooner,
        "the mask includes one key less at each end": right & later & sooner,
        "the mask is shifted by one": later,
        "the mask is shifted back by one": sooner,
        "the mask is that of the next row": np.roll(right, -1, axis=0),
        "the mask is that of the previous row": np.roll(right, 1, axis=0),
    }
    if here.stack == "encoder":
        causal = np.tri(n, n, dtype=bool)[None, None]
        others |= {
            "the mask is causal too": right & causal,
            "the mask is causal, without padding": causal,
        }
    for text, mask in others.items():
        yield "OtherMask", text, mask
    if scene.source_mask is not None and isinstance(scene.config.encoder.input, FrameInput):
        strides = math.prod(layer.stride for layer in scene.config.encoder.input.layers)
        lengths = scene.source_mask.sum(axis=1)[:, None, None, None]
        for told, ends in {"down": lengths // strides, "up": -(-lengths // strides)}.items():
            text = f"the mask has the lengths of frames over the strides, rounded {told}"
            yield "FrameMask", text, np.arange(n) < ends
    yield "PadIdInferred", "the mask is guessed from pad_id", ~scene.pads[:, None, None, :]


def widened(mask: np.ndarray, n: int) -> np.ndarray:
    """The mask with the learned keys or registers that come before its own, never masked."""
    more = n - mask.shape[-1]
    return np.pad(mask, [*[(0, 0)] * (mask.ndim - 1), (more, 0)], constant_values=True)


def _where(mask: np.ndarray, fill: float) -> Change:
    """``fill`` in rows that may attend to no key."""
    return lambda x, _: np.where(mask.any(axis=-1, keepdims=True), x, fill)


def _filled(place: str, name: str, mask: np.ndarray, change: Change) -> Apply:
    return lambda s: with_mask(place, mask)(s).changing(name, change)
