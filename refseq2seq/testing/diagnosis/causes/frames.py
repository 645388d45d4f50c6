"""Frames in another order, and windows over them at other places and with other kernels."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ....config import FrameLayerConfig
from ....frames import windows
from ....ops import ACTIVATIONS, linear, normalize
from ....params import FrameLayerParams
from ....watching.quantities import inputs_of
from ...simulation import mask_at
from ..entering import parsed
from ..replay import Scene, member
from .forms import ACTIVATIONS_OF_OTHERS, Function
from .trial import Trial, applied, computed, of_quantity, with_param

FRAMES = "encoder.frames"
ORDERS: dict[str, Function] = {
    "have the features in reverse order": lambda x: x[..., ::-1],
    "are reshaped to (n_features, n_frames), not transposed": lambda x: x.reshape(x.mT.shape).mT,
    "are reshaped from (n_features, n_frames), not transposed": lambda x: x.mT.reshape(x.shape),
    "lack (x + 4) / 4, with which Whisper's features end": lambda x: 4 * x - 4,
}


def other_frames(scene: Scene, names: list[str]) -> Iterator[Trial]:
    """Class tokens and frames in another order, where they enter one of the quantities."""
    n = getattr(scene.config.encoder.input, "n_class_tokens", 0)
    if n and "encoder.tokens" in names:
        text, change = "the class tokens stand last", applied(partial(np.roll, shift=-n, axis=1))
        yield of_quantity("ClassTokens", text, "encoder.tokens", change)
    inputs = (source for name in names for source in inputs_of(name, list(scene.passed)))
    for text, order in ORDERS.items() if FRAMES in (*names, *inputs) else ():
        yield of_quantity("OtherFrames", f"the frames {text}", FRAMES, applied(order))


def other_windows(scene: Scene, name: str) -> Iterator[Trial]:
    """Windows that begin or end elsewhere, other kernels, and other functions of the product."""
    here = parsed(name)
    if not here.kind.startswith("frame_"):
        return
    c: FrameLayerConfig = member(scene.config, here.c)
    p: FrameLayerParams = member(scene.params, here.p)
    if here.kind == "frame_projected":
        yield from _places(scene, name, c, p)
        yield from _kernels(here.p, c, p.w_in)
        return
    f = ACTIVATIONS.get(c.activation, np.positive)
    norm = partial(normalize, p.norm_after, c.norm_after)
    others: dict[str, Function] = {
        f"the activation is {called}; the model has {c.activation}": _then(g, norm)
        for called, g in ACTIVATIONS_OF_OTHERS.items()
    }
    if p.norm_after is not None:
        others["the norm is applied before the activation"] = _then(norm, f)
    for text, g in others.items():
        flag = "FrameNorm" if "norm" in text else "Activation"
        change = computed(g, f"{here.p}.projected")
        yield of_quantity(flag, f"{text} ({here.c})", name, change)


def _then(f: Function, g: Function) -> Function:
    return lambda x: g(f(x))


def _places(scene: Scene, name: str, c: FrameLayerConfig, p: FrameLayerParams) -> Iterator[Trial]:
    """Windows that begin earlier or later, and other vectors than zeros around the frames."""
    (source,) = inputs_of(name, list(scene.passed))
    n, most = scene.passed[source].shape[1], max(c.padding, c.stride)
    all_real = np.ones(scene.source.shape[:2], bool)
    real = all_real if scene.source_mask is None else scene.source_mask
    mask = mask_at(source, scene.config.encoder, real)[:, :, None]
    at = np.arange(-c.padding, n + c.padding)
    others = {"there is no padding": at[c.padding : n + c.padding]}
    for i in range(1, most + 1) if c.window > 1 else ():
        others[f"the windows begin {i} vector{'s' * (i > 1)} later"] = at + i
        others[f"the windows begin {i} vector{'s' * (i > 1)} earlier"] = at - i
    if c.padding:
        others["the padding repeats the first and the last vector"] = at.clip(0, n - 1)
        others["the padding reflects the vectors"] = n - 1 - np.abs(n - 1 - np.abs(at))
        others["the padding continues the vectors cyclically"] = at % n
    for text, places in others.items():
        change = computed(partial(_projected, c, p, places, mask), source)
        yield of_quantity("FramePadding", f"{text} ({parsed(name).c})", name, change)


def _projected(
    c: FrameLayerConfig, p: FrameLayerParams, places: np.ndarray, mask: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The product of windows over the vectors at ``places``; zeros are outside of 0 to n - 1."""
    x, n = normalize(p.norm_before, c.norm_before, x), x.shape[1]
    inside = mask[:, places % n] & ((places >= 0) & (places < n))[:, None]
    return linear(
        windows(np.where(inside, x[:, places % n], 0.0), replace(c, padding=0)), p.w_in, p.b_in
    )


def _kernels(place: str, c: FrameLayerConfig, w: np.ndarray) -> Iterator[Trial]:
    """Kernels (window, d_in, d_out) with axes reversed or exchanged."""
    kernel = w.reshape(c.window, -1, c.d_out)
    others, order = {}, "as (d_in, window), where the model has (window, d_in)"
    if c.window > 1:
        others["is reversed in time"] = kernel[::-1]
        others[f"is stored {order}"] = kernel.swapaxes(0, 1)
        others[f"is read {order}"] = kernel.reshape(-1, c.window, c.d_out).swapaxes(0, 1)
    if kernel.shape[1] == c.d_out:
        others["has the axes of input and output exchanged"] = kernel.swapaxes(1, 2)
    for text, other in others.items():
        path = f"{place}.w_in"
        yield Trial("FrameKernel", f"{path} {text}", with_param(path, other.reshape(w.shape)))
