"""Repeated simulation of the forward pass in low precision, and masks of meaningful elements."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..backend import Array
from ..config import (
    FeedForwardConfig,
    FrameInput,
    FrameLayerConfig,
    ModelConfig,
    RotaryPositions,
    SinusoidalPositions,
    StackConfig,
)
from ..frames import mask_of_windows
from ..masks import real_positions
from ..model import Model, forward
from ..params import map_arrays
from ..positions import position_embedding, rotate, rotation
from ..taps import FunctionTap
from ..watching.quantities import quantity
from .arithmetic import Arithmetic, low_precision
from .expected import Errors
from .rounding import FORMATS, step_at


def simulate(
    model: Model,
    source: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    *,
    errors: Mapping[str, Errors],
    runs: int,
    by: Arithmetic,
    given: Mapping[str, np.ndarray],
    blur: bool = False,
) -> None:
    """Run `forward` in low precision, and add the errors of every quantity to ``errors``.

    The runs form one batch, so that they cost little more than a single run. The model is in
    float64; the other arguments are those of `forward`. After a quantity in ``given``, each run
    continues with the array given, or with one that rounds to it if ``blur``. Raises a ValueError
    if a quantity overflows that depends on none of them.
    """
    params = map_arrays(model.config, model.params, lambda x: low_precision(x, by))
    often = [np.tile(x, (runs, *[1] * (x.ndim - 1))) for x in (source, target, mask)]
    given = {name: repeated(name, x, runs) for name, x in given.items()}
    given = {name: blurred(x, by) for name, x in given.items()} if blur else given
    encoded = real_positions(mask_at("encoder.embed", model.config.encoder, often[2]))
    positions = {"encoder": encoded, "decoder": np.arange(target.shape[1])}
    tap = Rounding(model.config, positions, len(often[0]), errors=errors, by=by, given=given)
    with np.errstate(over="ignore", invalid="ignore"):  # the tap raises on overflow
        forward(replace(model, params=params), *often, tap=FunctionTap(tap))


def blurred(x: np.ndarray, by: Arithmetic) -> np.ndarray:
    """An array, drawn at random, that rounds to ``x`` in the stored format."""
    return x + step_at(x, by.stored) * by.rng.uniform(-0.5, 0.5, x.shape)


def repeated(name: str, x: np.ndarray, runs: int) -> np.ndarray:
    """The array of a quantity for a batch of ``runs`` runs."""
    shared = name.endswith(".positions") and x.ndim == 2
    return x if shared else np.tile(x, (runs, *[1] * (x.ndim - 1)))


class Rounding:
    """A function for `FunctionTap` that rounds every quantity as an implementation does.

    It adds to ``errors`` those of the quantities in it. ``positions`` are those of the tokens of
    each stack, (n,) or (batch, n).
    """

    def __init__(
        self,
        config: ModelConfig,
        positions: Mapping[str, np.ndarray],
        batch: int,
        *,
        errors: Mapping[str, Errors],
        by: Arithmetic,
        given: Mapping[str, np.ndarray],
    ) -> None:
        self._config, self._positions, self._batch, self._by = config, positions, batch, by
        self._errors, self._given, self._may_overflow = errors, given, bool(given)

    def __call__(self, name: str, x: Array) -> Array:
        """The quantity as the implementation stores it, or the array given."""
        x, by = np.asarray(x), self._by
        if name.endswith(".positions"):  # shared by all rows: each row rounds its own copy
            x = np.broadcast_to(x, (self._batch, *x.shape[-2:]))
        x = _with_rounded_angles(self._config, name, x, self._positions, by)
        x = by.store(self._with_rounded_activation(name, x))
        if name in self._errors:
            self._errors[name].add(self._finite(name, x))
        x = self._given.get(name, x)
        if name.endswith((".projected", ".gate")):
            self._given = {**self._given, name: x}
            # The steps inside our erfc are not those of other implementations: they do not round.
            if enters_gelu(self._config, name):
                return x
        return low_precision(x, by)

    def _with_rounded_activation(self, name: str, x: np.ndarray) -> np.ndarray:
        """The result of an activation f(a), or of f(a) b, with the errors of the steps inside.

        Another implementation computes f(a) as a times a number from 0 to 1, with an absolute error
        of u |a|, u the unit roundoff. In a gated form it stores f(a) before the product.
        """
        place, _, kind = name.rpartition(".")
        c = _sublayer(self._config, name)
        if c is None or kind != _activated(c):
            return x
        factors = [self._given.get(f"{place}.{factor}") for factor in ("projected", "gate")]
        size, by = math.prod(np.abs(a) for a in factors if a is not None), self._by
        if factors[1] is not None:
            x = by.store(x)
        unit = FORMATS[by.computed].eps / 2
        return x + unit * size * by.rng.standard_normal(x.shape)

    def _finite(self, name: str, x: np.ndarray) -> np.ndarray:
        """``x``; where it overflows because of a given array, the reference."""
        finite = np.isfinite(x)
        if finite.all():
            return x
        if not self._may_overflow:
            raise ValueError(
                f"{name} overflows in {self._by.stored} in at least one run: compare in a format "
                "with a larger range, or use another input"
            )
        runs = x.reshape(-1, *self._errors[name].value.shape)
        return np.where(np.isfinite(runs), runs, self._errors[name].value).reshape(x.shape)


def _with_rounded_angles(
    config: ModelConfig,
    name: str,
    x: np.ndarray,
    positions: Mapping[str, np.ndarray],
    by: Arithmetic,
) -> np.ndarray:
    """``x`` with the errors of angles in low precision, p omega (1 + 2 u noise).

    The angles of sinusoids and rotations grow with the position p, and so do their errors. u is
    the unit roundoff of ``by``. Quantities without angles are returned unchanged.
    """
    c = _side(config, name)

    def noise(n: int) -> np.ndarray:
        return 2 * by.unit * by.rng.standard_normal((len(x), n))

    if name.endswith(".positions") and isinstance(c.positions, SinusoidalPositions):
        p = positions[name.partition(".")[0]]
        turned = position_embedding(c.positions, None, p * (1 + noise(x.shape[-2])), like=x)
        return x + (turned - position_embedding(c.positions, None, p, like=x))
    turned = name.endswith(("self_attention.q", "self_attention.k"))
    if turned and isinstance(c.relative_positions, RotaryPositions):
        n = x.shape[2]
        return rotate(x, rotation(c.relative_positions, np.arange(n) * noise(n), x.dtype.name))
    return x


def _side(config: ModelConfig, name: str) -> StackConfig:
    return config.encoder if name.startswith("encoder.") else config.decoder


def _sublayer(config: ModelConfig, name: str) -> FeedForwardConfig | FrameLayerConfig | None:
    """The config of the feed-forward or the frame layer that computes a quantity."""
    if ".feed_forward." in name:
        return _side(config, name).feed_forward
    layer = re.search(r"frame_layers\.(\d+)", name)
    return config.encoder.input.layers[int(layer[1])] if layer else None  # type: ignore[union-attr]


def enters_gelu(config: ModelConfig, name: str) -> bool:
    """Whether a quantity is an input of the erf form of GELU."""
    c = _sublayer(config, name)
    is_gelu = c is not None and c.activation == "gelu_erf" and bool(_activated(c))
    return is_gelu and name.endswith((".projected", ".gate"))


def _activated(c: FeedForwardConfig | FrameLayerConfig) -> str:
    """The last word of the quantity that is an activation's result; "" if none is."""
    if isinstance(c, FrameLayerConfig):
        return "" if c.activation == "none" or c.norm_after is not None else "out"
    return "hidden" if c.hidden_norm is None else "activated"


def mask_at(name: str, c: StackConfig, mask: np.ndarray) -> np.ndarray:
    """The mask (batch, n) of a quantity of the encoder ``c``: of frames, windows or embeddings."""
    if not isinstance(c.input, FrameInput) or name == "encoder.frames":
        return mask
    layer = re.search(r"frame_layers\.(\d+)", name)
    for each in c.input.layers[: int(layer[1]) + 1 if layer else None]:
        mask = mask_of_windows(mask, each)
    n = 0 if layer else c.input.n_class_tokens
    return np.pad(mask, ((0, 0), (n, 0)), constant_values=True)


def meaningful(
    name: str, shape: tuple[int, ...], mask: np.ndarray | None, target_mask: np.ndarray | None
) -> np.ndarray:
    """Which elements of a quantity are meaningful: a boolean array of ``shape``, True = meaningful.

    Elements of masked source tokens and of target padding are not, nor are scores that a mask
    discards, which are those of masked keys and of later keys. Weights of masked keys are
    meaningful: they must be 0. ``mask`` (batch, n_source), from `mask_at`, and ``target_mask``
    (batch, n_target) are boolean, True = real token.
    """
    where = np.ones(shape, bool)
    axes = re.findall(r"\w+", quantity(name).shape)[-len(shape) :]
    masks = dict.fromkeys(("n_frames", "n_windows", "n_source"), mask) | {"n_target": target_mask}
    last = len(axes) - 1
    for axis, symbol in enumerate(axes):
        real = masks.get("n_target" if symbol == "n_so_far" else symbol)
        if real is None or axes[0] != "batch" or (axis == last and name.endswith(".weights")):
            continue
        learned = shape[axis] - real.shape[1]  # memory tokens, or learned keys, that come first
        real = np.pad(real, ((0, 0), (learned, 0)), constant_values=True)
        where &= real.reshape(len(real), *(1,) * (axis - 1), -1, *(1,) * (last - axis))
    if name.endswith(".scores") and axes[last] == "n_so_far":
        n_q, n_k = shape[-2:]
        where &= np.tri(n_q, n_k, n_k - n_q, dtype=bool)
    return where
