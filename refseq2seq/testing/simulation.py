"""Repeated simulation of the forward pass in low precision, and masks of meaningful elements."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..backend import Array
from ..config import RotaryPositions, SinusoidalPositions, StackConfig
from ..masks import real_positions
from ..model import Model, forward
from ..params import map_arrays
from ..positions import position_embedding, rotate, rotation
from ..taps import FunctionTap
from ..watching.quantities import quantity
from .arithmetic import Arithmetic, low_precision
from .expected import Errors


def simulate(
    model: Model,
    source: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray,
    *,
    errors: Mapping[str, Errors],
    runs: int,
    by: Arithmetic,
) -> None:
    """Run `forward` in low precision, and add the errors of every quantity to ``errors``.

    The runs form one batch, so that they cost little more than a single run. The model is in
    float64; the other arguments are those of `forward`. Raises a ValueError if a quantity
    overflows.
    """
    positions = np.tile(real_positions(mask), (runs, 1))

    def tap(name: str, x: Array) -> Array:
        x = np.asarray(x)
        if name.endswith(".positions"):  # shared by all rows: each row rounds its own copy
            x = np.broadcast_to(x, (runs * len(source), *x.shape[-2:]))
        x = by.store(_with_rounded_angles(model, name, x, positions, by))
        if not np.isfinite(x).all():
            raise ValueError(
                f"{name} overflows in {by.stored} in at least one run: compare in a format with a "
                "larger range, or use another input"
            )
        errors[name].add(x)
        # The steps inside our erfc are not those of other implementations: they do not round.
        into_erfc = _side(model, name).feed_forward.activation == "gelu_erf" and name.endswith(
            (".feed_forward.projected", ".feed_forward.gate")
        )
        return x if into_erfc else low_precision(x, by)

    params = map_arrays(model.config, model.params, lambda x: low_precision(x, by))
    often = [np.tile(x, (runs, 1)) for x in (source, target, mask)]
    with np.errstate(over="ignore", invalid="ignore"):  # the tap raises on overflow
        forward(replace(model, params=params), *often, tap=FunctionTap(tap))


def _with_rounded_angles(
    model: Model, name: str, x: np.ndarray, source_positions: np.ndarray, by: Arithmetic
) -> np.ndarray:
    """``x`` computed from angles in low precision, p omega (1 + 2 u noise).

    The angles of sinusoids and rotations grow with the position p, and so do their errors. u is
    the unit roundoff of ``by``. Quantities without angles are returned unchanged.
    """
    c = _side(model, name)

    def noise(n: int) -> np.ndarray:
        return 2 * by.unit * by.rng.standard_normal((len(x), n))

    if name.endswith(".positions") and isinstance(c.positions, SinusoidalPositions):
        p = source_positions if name.startswith("encoder.") else np.arange(x.shape[-2])
        return position_embedding(c.positions, None, p * (1 + noise(x.shape[-2])), like=x)
    turned = name.endswith(("self_attention.q", "self_attention.k"))
    if turned and isinstance(c.relative_positions, RotaryPositions):
        n = x.shape[2]
        return rotate(x, rotation(c.relative_positions, np.arange(n) * noise(n), x.dtype.name))
    return x


def _side(model: Model, name: str) -> StackConfig:
    return model.config.encoder if name.startswith("encoder.") else model.config.decoder


def meaningful(
    name: str, shape: tuple[int, ...], mask: np.ndarray | None, target_mask: np.ndarray | None
) -> np.ndarray:
    """Which elements of a quantity are meaningful: a boolean array of ``shape``, True = meaningful.

    Elements of masked source tokens and of target padding are not, nor are scores that a mask
    discards, which are those of masked keys and of later keys. Weights of masked keys are
    meaningful: they must be 0. ``mask`` (batch, n_source) and ``target_mask`` (batch, n_target)
    are boolean, True = real token.
    """
    where = np.ones(shape, bool)
    axes = re.findall(r"\w+", quantity(name).shape)[-len(shape) :]
    last, masks = len(axes) - 1, {"n_source": mask, "n_target": target_mask}
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
