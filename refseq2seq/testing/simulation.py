"""The forward pass in low precision, many times over, and where its numbers mean something."""

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
from ..trace import FunctionTap
from ..watching.quantities import quantity
from .arithmetic import Arithmetic, low_precision
from .expected import Errors


def simulate(
    model: Model,
    source: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None,
    *,
    errors: Mapping[str, Errors],
    runs: int,
    by: Arithmetic,
) -> None:
    """Run `forward` in low precision, and gather the errors of every quantity.

    The runs are rows of one batch, so that they cost little more than one does.

    Parameters
    ----------
    model : Model
        In float64.
    source, target, mask : array
        As `as_tokens` gives them.
    errors : mapping of Errors
        By names of quantities.
    runs : int
    by : Arithmetic

    Raises
    ------
    ValueError
        If a quantity overflows.
    """
    positions = (
        np.arange(source.shape[1]) if mask is None else np.tile(real_positions(mask), (runs, 1))
    )

    def tap(name: str, x: Array) -> Array:
        x = np.asarray(x)
        if name.endswith(".positions"):  # of no row in particular: each rounds them anew
            x = np.broadcast_to(x, (runs * len(source), *x.shape[-2:]))
        x = by.store(_with_rounded_angles(model, name, x, positions, by))
        if not np.isfinite(x).all():
            raise ValueError(
                f"{name} overflows in {by.stored}, in some roundings at least: compare in a "
                "format with a greater range, or another input"
            )
        errors[name].add(x)
        # Where erfc comes next nothing is disturbed: what that does inside nobody else does.
        return x if _goes_into_erfc(model, name) else low_precision(x, by)

    params = map_arrays(model.config, model.params, lambda x: low_precision(x, by))
    often = [None if x is None else np.tile(x, (runs, 1)) for x in (source, target, mask)]
    with np.errstate(over="ignore", invalid="ignore"):  # the tap says what overflows
        forward(replace(model, params=params), *often, tap=FunctionTap(tap))


def _with_rounded_angles(
    model: Model, name: str, x: np.ndarray, source_positions: np.ndarray, by: Arithmetic
) -> np.ndarray:
    """``x`` as angles give it that were computed in low precision, p omega (1 + 2 u noise).

    Sinusoids and rotations are of angles that grow with the position, and their errors too.
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


def _goes_into_erfc(model: Model, name: str) -> bool:
    c = _side(model, name).feed_forward
    return name.endswith((".projected", ".gate")) and c.activation == "gelu_erf"


def _side(model: Model, name: str) -> StackConfig:
    return model.config.encoder if name.startswith("encoder.") else model.config.decoder


def meaningful(
    name: str, shape: tuple[int, ...], mask: np.ndarray | None, target_mask: np.ndarray | None
) -> np.ndarray:
    """Where a quantity of this name and shape means something: boolean, of that shape.

    Not at masked source tokens or at the padding of targets; and of scores not where they
    are thrown away, those of masked keys and of keys to come.
    """
    where = np.ones(shape, bool)
    axes = re.findall(r"\w+", quantity(name).shape)[-len(shape) :]
    last, masks = len(axes) - 1, {"n_source": mask, "n_target": target_mask}
    for axis, symbol in enumerate(axes):
        real = masks.get("n_target" if symbol == "n_so_far" else symbol)
        if real is None or axes[0] != "batch" or (axis == last and name.endswith(".weights")):
            continue
        learned = shape[axis] - real.shape[1]  # tokens, or keys and values, that come before
        real = np.pad(real, ((0, 0), (learned, 0)), constant_values=True)
        where &= real.reshape(len(real), *(1,) * (axis - 1), -1, *(1,) * (last - axis))
    if name.endswith(".scores") and axes[last] == "n_so_far":
        n_q, n_k = shape[-2:]
        where &= np.tri(n_q, n_k, n_k - n_q, dtype=bool)
    return where
