"""Positions that are counted otherwise, and rotations of other pairs."""

import math
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

import numpy as np

from ....config import BucketedPositions, LearnedPositions, RotaryPositions
from ....masks import real_positions
from ....positions import rotate, rotation, score_bias
from ..entering import parsed
from ..replay import Scene, Values
from .trial import Apply, Trial, applied, of_quantity


def other_positions(scene: Scene, name: str) -> Iterator[Trial]:
    """Other positions of the tokens, where they enter a quantity."""
    here = parsed(name)
    c = getattr(scene.config, here.stack, None)
    if here.kind not in ("positions", "q", "k", "scores") or c is None:
        return
    relative = c.relative_positions
    if ".cross_attention." in name:
        if here.kind == "scores" and isinstance(relative, BucketedPositions):
            yield _cross_bias(scene, name, relative)
        return
    rotary = isinstance(relative, RotaryPositions)
    used = c.positions if here.kind == "positions" else relative
    if used is None or (here.kind != "positions" and rotary != (here.kind in "qk")):
        return
    q, k = scene.positions[here.stack]
    whose = "positions of queries" if here.kind == "scores" else "positions"
    for told, (flag, other) in _counted(scene, here.stack, getattr(used, "offset", None)).items():
        if _fits(used, other):
            yield Trial(flag, f"{whose} {told} ({here.stack})", _with(here.stack, other, k))
            if other.ndim == 2 and here.kind == "scores":
                together = _with(here.stack, other, other)
                yield Trial(flag, f"positions {told} ({here.stack})", together)
    if isinstance(used, LearnedPositions) and c.d_model % 2 == 0:
        columns = np.arange(c.d_model)
        orders = {"alternate": columns.reshape(2, -1).T, "are halves": columns.reshape(-1, 2).T}
        for told, order in orders.items():
            text = f"sines and cosines {told}, in another order than in the model ({here.stack})"
            change = applied(itemgetter((..., order.ravel())))
            yield of_quantity("SinusoidLayout", text, name, change)
    if here.kind == "scores":
        text = (
            f"relative positions are query minus key; the model has key minus query ({here.stack})"
        )
        yield Trial("OtherPositions", text, _with(here.stack, -q, -k))
    if isinstance(used, RotaryPositions):
        yield _mixed_pairs(scene, name, used)


def _counted(scene: Scene, stack: str, offset: int | None) -> dict[str, tuple[str, np.ndarray]]:
    """Ways to count: their description, flag and the positions."""
    q, n = scene.positions[stack][0], scene.length(stack)
    later = np.arange(n) >= scene.first  # read in a step after the first
    ways = {f"start at {i}": ("OtherPositions", q + i) for i in (1, 2, 3)}
    ways |= {f"are {i} too small": ("OtherPositions", q - i) for i in (1, 2)}
    if offset:
        ways[f"lack the offset of {offset}"] = ("OtherPositions", q - offset)
    if q.ndim == 2:
        edge = np.broadcast_to(np.arange(n), q.shape)
        first = scene.masks["encoder.self_attention"][:, 0, 0].argmax(axis=1)[:, None]
        guessed = "PadIdInferred", real_positions(~scene.pads)
        ways["are counted from the left edge"] = ("PositionAfterPadding", edge)
        ways["count the tokens that are not pad_id"] = guessed
        told = "count masked places after the first real token"
        ways[told] = ("ScatteredMask", np.maximum(edge - first, 0))
    if later.any():
        anew = "OtherPositions", np.where(later, 0, q)
        ways["start anew at 0 in each step of the loop"] = anew
    return ways


def _fits(used: object, positions: np.ndarray) -> bool:
    """Whether a table, if there is one, has these positions."""
    offset, most = getattr(used, "offset", None), getattr(used, "n_positions", math.inf)
    low, high = (int(p) + (offset or 0) for p in (positions.min(), positions.max()))
    return offset is None or (low >= 0 and high < most)


def _with(stack: str, q: np.ndarray, k: np.ndarray) -> Apply:
    return lambda s: replace(s, positions=s.positions | {stack: (q, k)})


def _cross_bias(scene: Scene, name: str, c: BucketedPositions) -> Trial:
    """The decoder's relative bias, in cross-attention too."""
    at = np.arange(scene.length("decoder")), np.arange(scene.length("encoder"))
    bias = score_bias(c, scene.params.decoder.relative_bias[0], *at, "float64")
    text = "the relative bias of self-attention is added in cross-attention too"
    return of_quantity("RelativeScale", text, name, lambda x, _: x + bias)


def _mixed_pairs(scene: Scene, name: str, c: RotaryPositions) -> Trial:
    """Pairs of one kind, with the angles of the other."""
    stack, half = parsed(name).stack, c.d_rotary // 2
    right = rotation(c, scene.positions[stack][0], "float64")
    halves = c.pairing == "interleaved"

    def angles(x: np.ndarray) -> np.ndarray:
        return np.repeat(x, 2, axis=-1) if halves else np.concatenate([x, x], axis=-1)

    def change(x: np.ndarray, _: Values) -> np.ndarray:
        x = rotate(x, right._replace(sin=-right.sin))  # as it was before
        turned, rest = x[..., : c.d_rotary], x[..., c.d_rotary :]
        if halves:
            partner = np.concatenate([-turned[..., half:], turned[..., :half]], axis=-1)
        else:
            pairs = [-turned[..., 1::2], turned[..., 0::2]]
            partner = np.stack(pairs, axis=-1).reshape(turned.shape)
        turned = turned * angles(right.cos) + partner * angles(right.sin)
        return np.concatenate([turned, rest], axis=-1)

    other = "halves" if halves else "interleaved"
    text = f"pairing is {other}, with the angles of {c.pairing}; the model has {c.pairing}"
    path = f"({stack}.relative_positions.pairing)"
    return of_quantity("RotaryPairing", f"{text} {path}", name, change)
