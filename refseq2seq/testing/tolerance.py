r"""Tolerances that are derived: how far rounding alone takes another implementation.

.. math:: \sigma_r^2 = \frac{1}{K\,n} \sum_{k=1}^{K} \sum_{j=1}^{n} (x^{(k)}_{rj} - x_{rj})^2

x is what the oracle computes in float64; x^(k) is the same computation with every quantity
rounded at random to the format of the other implementation, in run k of K; r is a row, the
last axis, of n elements. So the spread is that of this model on this input, for every named
quantity, whatever depth, conditioning and padding do to it. An implementation that rounds
to nearest where the oracle rounds at random stays at 0.7 of it: its errors have half the
variance.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ..backend import Array
from ..checks import Tokens, as_tokens, check_int
from ..model import Model, forward
from ..trace import Trace
from .arithmetic import Arithmetic
from .expected import Errors, Expected
from .rounding import check_rounded, format_of
from .simulation import meaningful, simulate

AT_ONCE = 2**22  # how many elements of the largest quantity are computed at once


class Spread(Mapping[str, Expected]):
    """Every quantity of a forward pass with its spread, in order of execution.

    ``spread["logits"].value`` is the float64 oracle's, ``.sigma`` the spread of each row,
    ``.where`` the places that mean something: not those of masked source tokens, nor the
    scores that a mask throws away.
    """

    def __init__(
        self,
        quantities: dict[str, Expected],
        model: Model,
        source: tuple[np.ndarray, np.ndarray],
        target: tuple[np.ndarray, np.ndarray],
    ) -> None:
        self._quantities = quantities
        self.model = model  # in float64
        self.source, self.source_mask = source  # (batch, n_source); True = real token
        self.target, self.target_mask = target  # (batch, n_target)

    def __getitem__(self, name: str) -> Expected:
        return self._quantities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._quantities)

    def __len__(self) -> int:
        return len(self._quantities)

    @property
    def dtype(self) -> str:
        """The format that was rounded to."""
        return self["logits"].dtype

    def __repr__(self) -> str:
        return f"<Spread of {len(self)} quantities under rounding to {self.dtype}>"


def spread(
    model: Model,
    source: Tokens,
    target: Tokens,
    source_mask: Array | None = None,
    *,
    dtype: str,
    accumulate: str | None = None,
    runs: int = 16,
    seed: int = 0,
) -> Spread:
    """What the oracle computes, and how far rounding to ``dtype`` takes it.

    Parameters
    ----------
    model : Model
        In any dtype; its arrays must hold values of ``dtype`` only: see `rounded`.
    source, target, source_mask
        As of `forward`.
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64"
        What the other implementation keeps its tensors in. ``"tf32"`` is float32 whose
        products round their operands to TF32, as tensor cores may.
    accumulate : str, optional
        What it adds and computes in; by default float32, and float64 for float64.
    runs : int
        How many times to round. They are computed as one batch, or as few as fit. Fewer do
        where rows are wide: a spread is that of ``runs`` times the elements of a row.
    seed : int

    Returns
    -------
    Spread

    Raises
    ------
    ValueError
        If an array of the model holds other values than ``dtype`` has, or if a quantity
        overflows in ``dtype``.
    """
    format_of(dtype)
    accumulate = accumulate or ("float64" if dtype == "float64" else "float32")
    format_of(accumulate)
    runs, seed = check_int("runs", runs, 1), check_int("seed", seed, 0)
    check_rounded(model, dtype)
    model = model.to("numpy").astype("float64")
    source, mask = as_tokens("source", source, model.config.encoder.vocab_size, source_mask)
    target, target_mask = as_tokens("target", target, model.config.decoder.vocab_size)
    values = Trace()
    forward(model, source, target, mask, tap=values)
    errors = {
        name: Errors(x, meaningful(name, x.shape, mask, target_mask)) for name, x in values.items()
    }
    stored = "float32" if dtype == "tf32" else dtype
    arithmetic = Arithmetic(stored, dtype, accumulate, np.random.default_rng(seed))
    at_once = max(1, AT_ONCE // max(x.size for x in values.values()))
    for first in range(0, runs, at_once):
        n = min(at_once, runs - first)
        simulate(model, source, target, mask, errors=errors, runs=n, by=arithmetic)
    quantities = {name: e.expected(dtype) for name, e in errors.items()}
    return Spread(quantities, model, _with_mask(source, mask), _with_mask(target, target_mask))


def _with_mask(ids: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return ids, np.ones(ids.shape, dtype=bool) if mask is None else mask
