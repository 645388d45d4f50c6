r"""Tolerances derived from the effect that rounding alone has on another implementation.

.. math:: \sigma_r^2 = \frac{1}{K\,n} \sum_{k=1}^{K} \sum_{j=1}^{n} (x^{(k)}_{rj} - x_{rj})^2

The spread of a row is sigma_r, the sigma of Monte Carlo arithmetic: the standard deviation under
random rounding. x is the quantity that the reference computes in float64. x^(k) is the same
quantity in run k of K, in which every quantity is rounded at random to the format of the other
implementation. r is a row, which is the last axis, and has n elements. The spread is therefore
that of this model on this input, for every named quantity, and includes the effects of depth,
conditioning and padding. The errors of an implementation that rounds to nearest have half the
variance of random rounding: they are about 0.7 spreads.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..backend import Array
from ..checks import Source, Tokens, UnsupportedFeature, as_source, as_tokens, check_int
from ..model import Memory, Model, forward
from ..watching.trace import Trace
from .arithmetic import Arithmetic
from .expected import Errors, Expected
from .rounding import check_rounded, format_of
from .simulation import mask_at, meaningful, simulate

AT_ONCE = 2**22  # largest number of elements of a quantity, over all runs of one batch


class Spread(Mapping[str, Expected]):
    """Every quantity of a forward pass with its spread, in order of execution.

    The values are of type `Expected`. ``spread["logits"].value`` is the float64 reference,
    ``.sigma`` the spread of each row, and ``.where`` the elements that are meaningful, which
    excludes those of masked source tokens and the scores that a mask discards.
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
        self.source, self.source_mask = source  # tokens or vectors; True = real
        self.target, self.target_mask = target  # (batch, n_target)

    def __getitem__(self, name: str) -> Expected:
        return self._quantities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._quantities)

    def __len__(self) -> int:
        return len(self._quantities)

    @property
    def dtype(self) -> str:
        """The number format to which the runs were rounded."""
        return self["logits"].dtype

    def __repr__(self) -> str:
        return f"<Spread of {len(self)} quantities under rounding to {self.dtype}>"


def spread(
    model: Model,
    source: Source,
    target: Tokens,
    source_mask: Array | None = None,
    *,
    dtype: str,
    accumulate: str | None = None,
    runs: int = 16,
    seed: int = 0,
) -> Spread:
    """Compute every quantity in float64, and its spread under rounding to ``dtype``.

    Parameters
    ----------
    model : Model
        In any dtype. Its arrays must contain only values of ``dtype``: see `rounded`.
    source, target, source_mask
        As in `forward`, but no `Memory`.
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64"
        Format in which the other implementation stores its tensors. ``"tf32"`` is float32
        with products that round their operands to TF32, as tensor cores may.
    accumulate : str, optional
        Format in which it accumulates and computes, with the same names as ``dtype``. By
        default float32, or float64 if ``dtype`` is float64.
    runs : int
        Number of runs with random rounding. They are computed as one batch, or in several if
        it would be too large. Wide rows need fewer runs: a spread is estimated from ``runs``
        times the number of elements in a row.
    seed : int
        Seed of the random rounding. Not negative.

    Returns
    -------
    Spread

    Raises
    ------
    ValueError
        If an array of the model contains a value that is not in ``dtype``, or if a quantity
        overflows in ``dtype``.
    UnsupportedFeature
        If the source is a Memory.
    """
    refuse_memory(source)
    format_of(dtype)
    if accumulate is not None:
        format_of(accumulate)
    runs, seed = check_int("runs", runs, 1), check_int("seed", seed, 0)
    check_rounded(model, dtype)
    model = model.to("numpy").astype("float64")
    source, mask = as_source(model.config.encoder, source, source_mask)
    target, target_mask = as_tokens("target", target, model.config.decoder.vocab_size)
    values = Trace()
    forward(model, source, target, mask, tap=values)
    c = model.config.encoder
    errors = {
        name: Errors(x, meaningful(name, x.shape, mask_at(name, c, mask), target_mask))
        for name, x in values.items()
    }
    arithmetic = arithmetic_of(dtype, accumulate, seed)
    for n in batches(runs, values.values()):
        simulate(model, source, target, mask, errors=errors, runs=n, by=arithmetic, given={})
    quantities = {name: e.expected(dtype) for name, e in errors.items()}
    return Spread(quantities, model, (source, mask), (target, target_mask))


def refuse_memory(source: Any) -> None:
    """Raise if the source is a Memory, whose rounding is unknown."""
    if isinstance(source, Memory):
        raise UnsupportedFeature(
            "source must be tokens, frames or embeddings, got a Memory, whose rounding is unknown: "
            "pass the source itself, or another encoder's output as the frames of an encoder of 0 "
            "layers"
        )


def arithmetic_of(
    dtype: str, accumulate: str | None = None, seed: int = 0, *, stepwise: bool = False
) -> Arithmetic:
    """The arithmetic of an implementation that stores tensors in ``dtype``, as in `spread`."""
    accumulate = accumulate or ("float64" if dtype == "float64" else "float32")
    stored = "float32" if dtype == "tf32" else dtype
    return Arithmetic(stored, dtype, accumulate, np.random.default_rng(seed), stepwise)


def batches(runs: int, arrays: Iterable[np.ndarray]) -> Iterator[int]:
    """The numbers of runs that are computed at once; ``arrays`` are those of one run."""
    at_once = max(1, AT_ONCE // max(x.size for x in arrays))
    for first in range(0, runs, at_once):
        yield min(at_once, runs - first)
