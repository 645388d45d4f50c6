"""Assertions for tests of another implementation: its numbers and its tokens are right.

within = spread(model, source, target, dtype="bfloat16")
assert_agrees(their_logits, within)
assert_tokens_agree(their_tokens, within)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array
from .compare import as_float64, first_difference
from .expected import Expected
from .tolerance import Spread


def assert_agrees(actual: Any, spread: Spread, z: float = 6.0, name: str = "logits") -> None:
    """Raise unless ``actual`` is the oracle's, up to the rounding of its number format.

    Parameters
    ----------
    actual : array, or mapping of arrays
        The quantity ``name``; or several by name, all of which are compared: the error
        then tells the first that is off. Tensors of PyTorch are taken too.
    spread : Spread
        From `spread`, for the same model and input.
    z : float
        How many spreads an element may be off. See `refseq2seq.testing.expected`.
    name : str

    Raises
    ------
    AssertionError
        With the worst elements, how far off they are in spreads, and the rows they are in.
    """
    quantities = actual if isinstance(actual, Mapping) else {name: actual}
    found = first_difference(spread, quantities, z=z)
    if found is None:
        return
    story = [str(found)]
    if found.reason == "values":
        story += _rows(as_float64(quantities[found.name]), spread[found.name], z)
    raise AssertionError("\n".join(story))


def _rows(actual: np.ndarray, expected: Expected, z: float) -> list[str]:
    """How many elements are over, and the rows where they are furthest."""
    error = np.where(expected.where, np.abs(actual - expected.value), 0.0)
    spreads = np.divide(error, expected.element_sigma, where=error > 0, out=np.zeros_like(error))
    of_rows = spreads.max(axis=-1)
    worst = np.argsort(-of_rows, axis=None, kind="stable")[:5]
    told = [
        f"{tuple(map(int, np.unravel_index(row, of_rows.shape)))} {of_rows.flat[row]:.3g}"
        for row in worst
    ]
    return [
        f"  {(spreads > z).sum()} of {expected.where.sum()} elements are over, "
        f"in {(of_rows > z).sum()} of {of_rows.size} rows; the worst rows, in spreads: "
        + ", ".join(told).replace("(", "[").replace(")", "]")
    ]


@dataclass(frozen=True)
class Divergence:
    """Where a row chose another token, as rounding allows."""

    row: int
    position: int  # of the new token, 0 for the first
    token: int
    oracle: int
    margin: float  # how much the oracle prefers its own token, in logits
    spreads: float  # the same, in spreads of the difference of the two logits

    def __str__(self) -> str:
        return (
            f"new token {self.position} of row {self.row} is {self.token}; the oracle's is "
            f"{self.oracle}, its logit greater by {self.margin:.3g}, or {self.spreads:.3g} spreads"
        )


@dataclass(frozen=True)
class TokenAgreement:
    """How far tokens could be compared, and agree."""

    compared: int  # tokens that are the oracle's
    total: int  # tokens of the oracle
    diverged: tuple[Divergence, ...]  # rows that are not compared from there on

    def __str__(self) -> str:
        stops = "".join(f"\n  {stop}" for stop in self.diverged)
        return f"{self.compared} of {self.total} tokens are the oracle's{stops}"


def assert_tokens_agree(
    tokens: Array | Sequence[Sequence[int]],
    spread: Spread,
    z: float = 6.0,
    *,
    n_prefix: int = 1,
    eos_ids: Sequence[int] | None = None,
) -> TokenAgreement:
    """Raise unless greedy ``tokens`` are the oracle's, up to near-ties.

    In each row tokens are compared up to the first that differs. That is right only if
    rounding may have changed the order of the two: if the oracle's logits of them are
    within ``z`` spreads of each other. The rest of the row continues another text, and is
    not compared.

    Parameters
    ----------
    tokens : integer array (batch, n), or list of lists of ids
        New tokens only, as `generate` gives them. What follows an EOS is ignored, and what
        is beyond the end of the spread's target.
    spread : Spread
        Its target is the prefix and then the oracle's own greedy tokens, generated in
        float64.
    z : float
    n_prefix : int
        How many tokens of that target are prefix.
    eos_ids : sequence of ints, optional
        Tokens that end a row; by default those of the model.

    Returns
    -------
    TokenAgreement
        How many tokens were compared, and which rows were left where, and why.

    Raises
    ------
    AssertionError
        If a token differs that rounding cannot explain, or a row ends too early.
    ValueError
        If there are other rows than the target has, or that is not the oracle's choice.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> from refseq2seq.testing import spread
    >>> model = rs.load("g2p")
    >>> source = [model.source_vocabulary.encode("oracle")]
    >>> oracle = rs.generate(model.astype("float64"), source).tokens
    >>> target = [[model.config.decoder_start_id, *oracle[0]]]
    >>> within = spread(model, source, target, dtype="float32")
    >>> print(assert_tokens_agree(rs.generate(model, source).tokens, within))
    7 of 7 tokens are the oracle's
    """
    target, c = spread.target, spread.model.config
    if len(tokens) != len(target):
        raise ValueError(f"tokens has {len(tokens)} rows, the target of the spread {len(target)}")
    if not 1 <= n_prefix < target.shape[1]:
        raise ValueError(
            f"n_prefix must be from 1 to {target.shape[1] - 1}, for the target of the spread has "
            f"{target.shape[1]} tokens, got {n_prefix}"
        )
    ends = c.eos_ids if eos_ids is None else eos_ids
    compared, total, diverged = 0, 0, []
    for row, new in enumerate(tokens):
        oracle = _up_to_end(target[row, n_prefix:], ends)
        theirs = [int(token) for token in new][: len(oracle)]
        agreed = _agreeing(theirs, oracle)
        _check_greedy(spread, row, oracle[: agreed + 1], n_prefix)
        if agreed == len(theirs) < len(oracle):
            raise AssertionError(
                f"row {row} ends after {agreed} new tokens; the oracle goes on with "
                f"{oracle[agreed]}"
            )
        if agreed < len(oracle):
            diverged.append(
                _diverged(spread, row, agreed, theirs[agreed], oracle[agreed], n_prefix, z)
            )
        compared, total = compared + agreed, total + len(oracle)
    return TokenAgreement(compared, total, tuple(diverged))


def _up_to_end(tokens: np.ndarray, ends: Sequence[int]) -> list[int]:
    ids = [int(token) for token in tokens]
    n = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:n]


def _agreeing(a: list[int], b: list[int]) -> int:
    """How many tokens from the first on are equal."""
    equal = [x == y for x, y in zip(a, b, strict=False)]
    return [*equal, False].index(False)


def _check_greedy(spread: Spread, row: int, oracle: list[int], n_prefix: int) -> None:
    """Raise unless these tokens are what the oracle prefers, or has to take."""
    c = spread.model.config
    for i, token in enumerate(oracle):
        logits = spread["logits"].value[row, n_prefix - 1 + i].copy()
        logits[list(c.suppressed_ids + (c.begin_suppressed_ids if i == 0 else ()))] = -np.inf
        best = int(np.argmax(logits))
        if token not in (best, c.forced_bos_id, c.forced_eos_id):
            raise ValueError(
                f"the target of the spread must be the oracle's own greedy tokens, generated "
                f"in float64: new token {i} of row {row} is {token}, the oracle prefers {best}"
            )


def _diverged(
    spread: Spread, row: int, position: int, token: int, oracle: int, n_prefix: int, z: float
) -> Divergence:
    """The divergence of a row, unless it is too great to be one of rounding."""
    place = (row, n_prefix - 1 + position)
    value, sigma = spread["logits"].value[place], spread["logits"].element_sigma[place]
    margin = float(value[oracle] - value[token])
    of_both = float(np.hypot(sigma[oracle], sigma[token]))
    found = Divergence(row, position, token, oracle, margin, margin / of_both)
    if not abs(found.spreads) <= z:
        raise AssertionError(
            f"{found}; rounding to {spread.dtype} explains at most {z:g}. The tokens before "
            "agree: compare the logits there with assert_agrees"
        )
    return found
