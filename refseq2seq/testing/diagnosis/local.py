"""Every quantity, computed from the preceding quantities of the other implementation.

A tap records the array that the reference computes, and replaces it by that of the other
implementation. A quantity then deviates only by the fault of its own operation, and one forward
pass shows all independent faults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...backend import Array
from ...model import Model, forward
from ...taps import FunctionTap
from ...watching.quantities import inputs_of
from ..expected import Errors, Expected
from ..simulation import mask_at, meaningful, simulate
from ..tolerance import arithmetic_of, batches


@dataclass(frozen=True, kw_only=True)
class Local:
    """A forward pass that continues with the arrays of another implementation.

    ``given`` are these arrays, with the reference in place of masked scores and of elements that
    are not finite, and ``passed`` all arrays that the pass continued with. Quantities behind an
    array of another shape, or that is not finite, are ``blocked``: they were computed from
    something else.
    """

    expected: dict[str, Expected]  # computed from the arrays that passed before
    given: dict[str, np.ndarray]
    passed: dict[str, np.ndarray]
    blocked: frozenset[str]


def judged_locally(
    model: Model,
    rounded: Model,
    theirs: Mapping[str, np.ndarray],
    ids: tuple[np.ndarray, np.ndarray],
    masks: tuple[np.ndarray, np.ndarray],
    dtype: str,
    runs: int,
    is_exact: bool,
) -> Local:
    """Compute every quantity from the preceding ones of ``theirs``, with its spread.

    Parameters
    ----------
    model, rounded : Model
        In float64: the model whose values are expected, and that with parameters rounded to
        ``dtype``, from which the spreads are simulated.
    theirs : mapping of float64 arrays
        Under the names of a forward pass.
    ids, masks : pairs of arrays
        Of source and target: integers and booleans, True = real token.
    dtype : str
    runs : int
    is_exact : bool
        False if ``theirs`` were rounded to ``dtype`` after they were used.
    """
    (source, target), (mask, target_mask) = ids, masks
    own: dict[str, np.ndarray] = {}
    passed: dict[str, np.ndarray] = {}
    given: dict[str, np.ndarray] = {}
    where: dict[str, np.ndarray] = {}
    broken: set[str] = set()

    def tap(name: str, x: Array) -> Array:
        own[name] = passed[name] = x = np.asarray(x)
        where[name] = meaningful(
            name, x.shape, mask_at(name, model.config.encoder, mask), target_mask
        )
        if name in theirs:
            y = fitted(theirs[name], x.shape)
            fits = y.shape == x.shape and np.isfinite(y).all(where=where[name])
            if fits:
                is_theirs = where[name] if name.endswith(".scores") else np.isfinite(y)
                passed[name] = given[name] = np.where(is_theirs, y, x)
            else:
                broken.add(name)
        return passed[name]

    arithmetic = arithmetic_of(dtype, stepwise=True)
    with np.errstate(all="ignore"):  # arrays that are far off overflow
        forward(model, source, target, mask, tap=FunctionTap(tap))
        values = dict(own)
        if rounded is not model:
            forward(rounded, source, target, mask, tap=FunctionTap(tap))
        errors = {name: Errors(x, where[name]) for name, x in own.items()}
        for n in batches(runs, own.values()):
            simulate(
                rounded,
                source,
                target,
                mask,
                errors=errors,
                runs=n,
                by=arithmetic,
                given=given,
                blur=not is_exact,
            )
        found = {name: e.expected(dtype) for name, e in errors.items()}
    return Local(
        expected={name: replace(e, value=values[name]) for name, e in found.items()},
        given=given,
        passed=passed,
        blocked=_blocked(list(own), broken, given),
    )


def fitted(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``x`` in this shape, if they differ only by a batch axis of equal rows."""
    if x.ndim + 1 == len(shape) and x.shape == shape[1:]:
        return np.broadcast_to(x, shape)
    if x.ndim == len(shape) + 1 and x.shape[1:] == shape and (x == x[:1]).all():
        return x[0]
    return x


def _blocked(names: list[str], broken: set[str], given: Mapping[str, np.ndarray]) -> frozenset[str]:
    """The quantities whose inputs are broken, or blocked and not given."""
    blocked: set[str] = set()
    for name in names:
        sources = inputs_of(name, names)
        if any(s in broken or (s in blocked and s not in given) for s in sources):
            blocked.add(name)
    return frozenset(blocked)
