"""The first quantity in which two computations differ, and by how much.

Quantities are compared in the order in which the reference computed them. The first that
differs locates the fault: its inputs agree, and later quantities differ because it does.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..backend import Array, to_numpy
from ..checks import check_number
from ..watching.quantities import find_quantity, inputs_of
from .expected import Expected, row_mean
from .rounding import FORMATS, step_at


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first quantity that deviates from the reference. ``str()`` gives a readable report."""

    name: str
    step: int | None  # step of a decoding loop; None for other quantities
    shape: tuple[int, ...]  # in the reference
    other_shape: tuple[int, ...]
    reason: str  # "values", "not equal" (of integers and booleans), "shape" or "not finite"
    dtype: str  # number format in which the ulp are counted
    max_ulp: float = math.inf  # largest error, in ulp of the largest magnitude of its row
    max_relative: float = math.inf  # largest error, relative to that magnitude
    spreads: float | None = None  # largest error, in spreads; None if not known
    rms_spreads: float | None = None  # root mean square error of the worst row, in its spreads
    rms_limit: float | None = None  # limit of that row, in its spreads
    limit: float  # limit of an element: in spreads; without them relative to the row
    place: tuple[int, ...] = ()  # index of the worst element
    pairs: tuple[tuple[tuple[int, ...], float, float], ...] = ()  # (index, reference, other)
    sources: tuple[tuple[str, bool | None], ...]  # its inputs; True = agrees, None = not compared
    agreed: int  # number of quantities before it that were compared and agree

    def __str__(self) -> str:
        step = "" if self.step is None else f", of step {self.step}"
        return "\n".join(
            [
                f"{self.name} differs; {self._before()}",
                f"  shape    {self.shape}{step}",
                *(f"  {line}" for line in self._story()),
                *(f"  computed from {name} ({FATES[agrees]})" for name, agrees in self.sources),
            ]
        )

    def _before(self) -> str:
        if self.agreed == 0:
            return "no quantity before it was compared"
        quantities = "quantity" if self.agreed == 1 else "quantities"
        agree = "agrees" if self.agreed == 1 else "agree"
        return f"the {self.agreed} {quantities} compared before it {agree}"

    def _story(self) -> list[str]:
        """The error, the limit, and the worst elements."""
        if self.reason == "shape":
            return [f"found    shape {self.other_shape}"]
        found = {
            "not equal": "different values; integers and booleans must be equal",
            "not finite": "NaN, or an infinity that the other side does not have",
            "values": f"error {self.max_relative:.2g} relative to the row's largest magnitude, "
            f"or {self.max_ulp:.3g} ulp of {self.dtype}",
        }
        story = [f"found    {found[self.reason]}"]
        if self.reason == "values" and self.spreads is None:
            story.append(f"allowed  relative error {self.limit:.2g}")
        elif self.reason == "values":
            story.append(
                f"         {self.spreads:.3g} spreads (allowed {self.limit:g}); root mean square "
                f"of a row {self.rms_spreads:.3g} (allowed {self.rms_limit:.3g})"
            )
        story.append(f"{'index':20}{'reference':>17}{'other':>17}{'difference':>12}")
        for place, expected, actual in self.pairs:
            at = str(place).replace(" ", "")
            apart = actual - expected if math.isfinite(expected) else math.nan
            story.append(f"{at:20}{expected:17.9g}{actual:17.9g}{apart:12.2e}")
        return story

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; numbers that are not finite become strings."""
        return {name: as_json(value) for name, value in asdict(self).items()}


FATES = {True: "agrees", False: "deviates", None: "not compared"}


def as_json(value: Any) -> Any:
    """The value of a field as a JSON value."""
    if isinstance(value, Difference):
        return value.to_dict()
    if isinstance(value, tuple):
        return [as_json(member) for member in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def row_ulp(actual: Array, expected: Array, dtype: str | None = None) -> float:
    r"""The largest error, in units in the last place of the largest magnitude of its row.

    .. math:: \max_{r, j} \frac{|a_{rj} - e_{rj}|}{\mathrm{ulp}(\max_i |e_{ri}|)}

    Use it for single operations. An error in ulp of the element itself is not informative where
    terms cancel: near 0, a sum of rounded terms is off by thousands of those.

    Parameters
    ----------
    actual, expected : array, both of one shape, with rows along the last axis
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64", optional
        Number format that defines the ulp; by default the coarser dtype of the two arrays.

    Returns
    -------
    float
        Infinite if an element is NaN, or infinite in only one of the two arrays.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> row_ulp(np.array([1.0, 3.0 + 2**-20]), np.array([1.0, 3.0]), "float32")
    4.0
    """
    dtype = dtype or coarser(actual, expected)
    a, e = as_float64(actual), as_float64(expected)
    if a.shape != e.shape:
        raise ValueError(f"actual has shape {a.shape}, expected {e.shape}")
    if not _finite_alike(a, e).all():
        return math.inf
    return _greatest(_ratio(_error(a, e), step_at(row_magnitude(e), dtype)))


def first_difference(
    reference: Mapping[str, Any],
    other: Mapping[str, Array],
    *,
    z: float = 6.0,
    rtol: float | None = None,
) -> Difference | None:
    """The first quantity of ``other`` that deviates from ``reference``.

    Parameters
    ----------
    reference : Spread, or mapping of arrays such as a Trace
        Quantities are compared in this order. A `Spread` contains the tolerance of each.
    other : mapping of arrays
        Some or all of the names of ``reference``. PyTorch tensors are also accepted.
    z : float
        Used with a Spread: largest allowed error of an element, in spreads. The root mean
        square error of a row may be 2 spreads or more, see `refseq2seq.testing.expected`.
        Finite, not negative.
    rtol : float, optional
        Used without a Spread: largest allowed error of an element, relative to the largest
        magnitude of its row (the last axis). By default the square root of the machine
        epsilon of the coarser dtype. Finite, not negative. Integers and booleans, on either
        side, must be equal whatever ``rtol`` is.

    Returns
    -------
    Difference or None
        None if all quantities agree in shape, in their non-finite elements, and in value.

    Raises
    ------
    ValueError
        If ``other`` has a name that is not in ``reference``, if it is empty, or if ``z`` or
        ``rtol`` is negative, infinite or NaN.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> model, sound, faulty = rs.load("g2p"), rs.Trace(), rs.Trace()
    >>> _ = rs.forward(model, [[5, 6]], [[1, 7]], tap=sound)
    >>> def fault(name, x):
    ...     return faulty(name, x * 1.01 if name == "decoder.layers.0.cross_attention.q" else x)
    >>> _ = rs.forward(model, [[5, 6]], [[1, 7]], tap=rs.FunctionTap(fault))
    >>> first_difference(sound, faulty).name
    'decoder.layers.0.cross_attention.q'
    """
    z = check_number("z", z, "[0, inf)")
    if rtol is not None:
        rtol = check_number("rtol", rtol, "[0, inf)")
    unknown = [name for name in other if name not in reference]
    if unknown:
        raise ValueError(
            f"names of quantities must be in the reference, got {', '.join(map(repr, unknown[:5]))}"
        )
    names = [name for name in reference if name in other]
    if not names:
        raise ValueError("other must have at least one quantity of the reference, got none")
    return next(differences(reference, other, z, rtol), None)


def differences(
    reference: Mapping[str, Any], other: Mapping[str, Array], z: float, rtol: float | None = None
) -> Iterator[Difference]:
    """Every quantity that deviates, in the order of ``reference``; see `first_difference`."""
    agree: dict[str, bool] = {}
    for name in reference:
        if name not in other:
            continue
        found = difference_of(reference[name], other[name], z, rtol)
        if found is not None:
            step = re.match(r"step\.(\d+)\.", name)
            known = find_quantity(name) is not None  # or else a name of the caller's own
            sources = inputs_of(name, list(reference)) if known else []
            yield Difference(
                name=name,
                step=int(step[1]) if step else None,
                sources=tuple((source, agree.get(source)) for source in sources),
                agreed=sum(agree.values()),
                **found,
            )
        agree[name] = found is None


def difference_of(
    expected: Expected | Array, actual: Array, z: float, rtol: float | None
) -> dict[str, Any] | None:
    """The deviation of ``actual``, as fields of a `Difference`; None if it agrees."""
    theirs, ours = on_host(actual), on_host(getattr(expected, "value", expected))
    e, a = ours.astype(np.float64), theirs.astype(np.float64)
    if isinstance(expected, Expected):
        dtype, where, unit = expected.dtype, expected.where, expected.element_sigma
    else:
        dtype, where, unit = coarser(expected, actual), np.ones(e.shape, bool), row_magnitude(e)
        z = math.sqrt(FORMATS[dtype].eps) if rtol is None else rtol
    found = {"shape": e.shape, "other_shape": a.shape, "dtype": dtype, "limit": z}
    if a.shape != e.shape:
        return found | {"reason": "shape"}
    if not ours.dtype.kind == theirs.dtype.kind == "f":
        differ = ours != theirs
        how = {"reason": "not equal", "limit": 0.0} | _worst(a, e, differ.astype(np.float64))
        return found | how if differ.any() else None
    a = np.where(where, a, e)
    alike = _finite_alike(a, e)
    if not alike.all():
        return found | {"reason": "not finite"} | _worst(a, e, np.where(alike, 0.0, np.inf))
    error = _error(a, e)
    spreads = _ratio(error, unit)
    over = _greatest(spreads) > z
    if isinstance(expected, Expected):
        rms = _ratio(np.sqrt(row_mean(error**2, where)), expected.sigma)
        allowed = expected.rms_limit(z)
        row = np.argmax(rms / allowed)
        over = over or bool(rms.flat[row] > allowed.flat[row])
        found |= {
            "spreads": _greatest(spreads),
            "rms_spreads": float(rms.flat[row]),
            "rms_limit": float(allowed.flat[row]),
        }
    if not over:
        return None
    magnitude = row_magnitude(e)
    return (
        found
        | _worst(a, e, spreads)
        | {
            "reason": "values",
            "max_ulp": _greatest(_ratio(error, step_at(magnitude, dtype))),
            "max_relative": _greatest(_ratio(error, magnitude)),
        }
    )


def _worst(a: np.ndarray, e: np.ndarray, badness: np.ndarray) -> dict[str, Any]:
    """The indices of the five worst elements and both values there; the first of equals.

    A wrong factor is equally bad in every row up to rounding. Comparing in float32 hides that
    rounding, so that the order does not depend on it.
    """
    with np.errstate(over="ignore"):
        order = np.argsort(-badness.astype(np.float32), axis=None, kind="stable")[:5]
    places = [tuple(int(i) for i in np.unravel_index(flat, e.shape)) for flat in order]
    pairs = tuple((place, float(e[place]), float(a[place])) for place in places)
    return {"place": places[0], "pairs": pairs}


def _finite_alike(a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Where both are finite, or both are the same infinity: boolean, True = alike."""
    return (np.isfinite(a) & np.isfinite(e)) | (a == e)


def _error(a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """|a - e|; 0 where both are the same infinity."""
    return np.abs(np.where(a == e, 0.0, a) - np.where(a == e, 0.0, e))


def row_magnitude(e: np.ndarray) -> np.ndarray:
    """The largest finite magnitude of each row; the last axis becomes one of length 1."""
    finite = np.where(np.isfinite(e), np.abs(e), 0.0)
    return np.max(finite, axis=-1, keepdims=True, initial=0.0) if e.ndim else finite


def _ratio(error: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """error / unit; 0 where the error is 0, infinite where only the unit is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(error == 0, 0.0, error / unit)


def _greatest(x: np.ndarray) -> float:
    return float(np.max(x, initial=0.0))


def coarser(*arrays: Array) -> str:
    """The dtype with the largest eps; float64 if no array is floating-point."""
    names = {str(x.dtype).rpartition(".")[2] for x in arrays if hasattr(x, "dtype")}
    return max(names & FORMATS.keys(), key=lambda name: FORMATS[name].eps, default="float64")


def as_float64(x: Array) -> np.ndarray:
    """``x`` on the host, in float64, which represents all supported float formats exactly."""
    return on_host(x).astype(np.float64)


def on_host(x: Array) -> np.ndarray:
    """``x`` on the host: a NumPy array of booleans, integers or floats."""
    if hasattr(x, "detach"):  # a PyTorch tensor: NumPy has no bfloat16
        x = x.detach().cpu()
        x = x.double().numpy() if x.is_floating_point() else x.numpy()
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "a masked array cannot be compared, because its mask would be ignored: pass a plain "
            "array"
        )
    x = to_numpy(x)
    if x.dtype.kind not in "biuf" and "float" not in x.dtype.name:  # bfloat16 of ml_dtypes is one
        raise TypeError(f"arrays to compare must hold real numbers, got {x.dtype}")
    return x if x.dtype.kind in "biuf" else x.astype(np.float64)
