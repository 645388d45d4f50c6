"""Assertions for tests of another implementation: its numbers and its tokens are right.

within = spread(model, source, target, dtype="bfloat16")
assert_agrees(their_logits, within)
assert_tokens_agree(their_tokens, within)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import Array
from ..checks import Tokens, check_int, check_number
from ..generation.request import Request, as_prefix, checked_eos, named, with_rules
from ..generation.sampling import Processor, check_processors
from ..generation.scoring import processed
from .compare import as_float64, first_difference, on_host
from .expected import Expected
from .tolerance import Spread


def assert_agrees(actual: Any, spread: Spread, z: float = 6.0, name: str = "logits") -> None:
    """Raise unless ``actual`` is the oracle's, up to the rounding of its number format.

    Parameters
    ----------
    actual : array, or mapping of arrays
        The quantity ``name``; or several by name, all of which are compared: the error
        names the first that deviates. Tensors of PyTorch are taken too.
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
    margin: float  # how much the oracle prefers its own token, by its score
    spreads: float  # the same, in spreads of the difference of the two logits

    def __str__(self) -> str:
        return (
            f"new token {self.position} of row {self.row} is {self.token}; the oracle's is "
            f"{self.oracle}, its score greater by {self.margin:.3g}, or {self.spreads:.3g} spreads"
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
    n_prefix: int | None = None,
    prefix: Tokens | None = None,
    eos_ids: Sequence[int] | None = None,
    processors: Sequence[Processor] = (),
) -> TokenAgreement:
    """Raise unless greedy ``tokens`` are the oracle's, up to near-ties.

    In each row tokens are compared up to the first that differs. It is accepted only if
    rounding could have swapped the two: their scores must swap order when their logits are
    moved towards each other by ``z`` spreads. The rest of the row follows another history,
    and is not compared.

    Parameters
    ----------
    tokens : integer array (batch, n), or list of lists of ids
        New tokens only, as `generate` gives them. What follows an EOS is ignored, and what
        is beyond the end of the spread's target.
    spread : Spread
        Its target is the prefix and then the oracle's own greedy tokens, generated in
        float64.
    z : float
        How many spreads the two logits may be moved towards each other. Finite, not negative.
    n_prefix : int, optional
        How many tokens of that target are prefix, if every row has as many; 1 by default.
    prefix : integer array (batch, n), or list of lists of token ids, optional
        Instead of ``n_prefix``: the prefix itself, with the start token.
    eos_ids : sequence of ints, optional
        Tokens that end a row; by default those of the model.
    processors : sequence of Processor
        The processors that both sides used, such as ``[rs.no_repeat_ngram(3)]``. The rules
        of the model's config need not be among them.

    Returns
    -------
    TokenAgreement
        How many tokens were compared, and which rows were left where, and why.

    Raises
    ------
    AssertionError
        If a token differs and rounding cannot explain it, or it is banned or outside of the
        vocabulary; or if a row ends too early. Names the row and the new token.
    TypeError, ValueError
        If ``tokens`` are not integers or have other rows than the target of ``spread``, or
        that target is not the oracle's choice or does not begin with the prefix.

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
    z = check_number("z", z, "[0, inf)")
    target, c = spread.target, spread.model.config
    if not hasattr(tokens, "__len__") or isinstance(tokens, str):
        raise TypeError(f"tokens must be an array, or lists of ids, got {type(tokens).__name__}")
    if len(tokens) != len(target):
        raise ValueError(f"tokens has {len(tokens)} rows, the target of the spread {len(target)}")
    lengths = _prefix_lengths(spread, n_prefix, prefix)
    ends = checked_eos(c.eos_ids if eos_ids is None else eos_ids, c.decoder.vocab_size).tolist()
    oracle = _Oracle(spread, lengths, check_processors(processors, "processors=[{}]"), ends)
    compared, total, diverged = 0, 0, []
    for row, new in enumerate(tokens):
        own = _up_to_end(target[row, lengths[row] : spread.target_mask[row].sum()], ends)
        theirs = _integers(row, new)[: len(own)]
        agreed = _agreeing(theirs, own)
        oracle.check_greedy(row, own[: agreed + 1])
        if agreed == len(theirs) < len(own):
            raise AssertionError(
                f"row {row} ends after {agreed} new tokens; the oracle goes on with {own[agreed]}"
            )
        if agreed < len(own):
            diverged.append(oracle.divergence(row, agreed, theirs[agreed], own[agreed], z))
        compared, total = compared + agreed, total + len(own)
    return TokenAgreement(compared, total, tuple(diverged))


def _prefix_lengths(spread: Spread, n_prefix: int | None, prefix: Tokens | None) -> np.ndarray:
    """How many tokens of each row of the spread's target are prefix: (batch,)."""
    batch = len(spread.target)
    if prefix is None:
        lengths = np.full(batch, check_int("n_prefix", 1 if n_prefix is None else n_prefix, 0))
    elif n_prefix is not None:
        raise TypeError("n_prefix and prefix are both given: give one of them")
    else:
        ids, lengths = as_prefix(prefix, batch, spread.model.config)
        for row, n in enumerate(lengths):
            if (begin := spread.target[row, :n]).tolist() != ids[row, :n].tolist():
                raise ValueError(
                    f"the target of the spread must begin with the prefix: row {row} has "
                    f"{begin.tolist()}, the prefix {ids[row, :n].tolist()}"
                )
    most = spread.target_mask.sum(axis=1) - 1
    if (unfit := (lengths < 1) | (lengths > most)).any():
        row, name = int(unfit.argmax()), "prefix" if n_prefix is None else "n_prefix"
        raise ValueError(
            f"{name} must be from 1 to {most[row]} tokens, got {lengths[row]}: row {row} of the "
            f"target of the spread has {most[row] + 1}"
        )
    return lengths


def _integers(row: int, tokens: Any) -> list[int]:
    ids = on_host(tokens if hasattr(tokens, "dtype") else np.asarray(tokens))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"tokens must be rows of integers, got {ids.dtype} {ids.shape} in row {row}"
        )
    return [int(token) for token in ids]


def _up_to_end(tokens: np.ndarray, ends: Sequence[int]) -> list[int]:
    ids = [int(token) for token in tokens]
    n = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:n]


def _agreeing(a: list[int], b: list[int]) -> int:
    """How many tokens from the first on are equal."""
    equal = [x == y for x, y in zip(a, b, strict=False)]
    return [*equal, False].index(False)


class _Oracle:
    """The oracle's choice of every new token, by its logits, the model's rules and processors."""

    def __init__(
        self,
        spread: Spread,
        n_prefix: np.ndarray,
        processors: Sequence[Processor],
        eos_ids: Sequence[int],
    ) -> None:
        request = Request(
            source=spread.source,
            source_mask=spread.source_mask,
            prefix=spread.target[:, : n_prefix.max()],
            n_prefix=n_prefix,
            max_new_tokens=int((spread.target_mask.sum(axis=1) - n_prefix).max()),
            eos_ids=np.asarray(eos_ids, dtype=np.int64),
        )
        self._spread, self._request, c = spread, request, spread.model.config
        self._processors = with_rules(request, replace(c, forced_eos_id=None), processors)
        self._scores = self._scored(self._processors, spread["logits"].value)
        if c.forced_eos_id is not None and self._ends_by_force(c.forced_eos_id):
            self._processors = with_rules(request, c, processors)
            self._scores = self._scored(self._processors, spread["logits"].value)

    def _ends_by_force(self, token: int) -> bool:
        """Whether a longest row ends with this token although it prefers another: then it was cut
        off there, and so is every row.
        """
        new = self._spread.target_mask.sum(axis=1) - self._request.n_prefix
        for row in np.flatnonzero(new == self._request.max_new_tokens).tolist():
            place = self._place(row, self._request.max_new_tokens - 1)
            last = self._spread.target[row, place[1] + 1]
            if last == token != self._scores[place].argmax():
                return True
        return False

    def _scored(self, processors: Sequence[Processor], logits: np.ndarray) -> np.ndarray:
        """The scores of every next token: (batch, n_target, vocab_size)."""
        target, request = self._spread.target, self._request
        with np.errstate(all="ignore"):
            return processed(
                processors,
                logits,
                tokens=target,
                emitted=np.arange(1, target.shape[1] + 1) >= request.n_prefix[:, None],
                n_prefix=request.n_prefix,
                source=request.source,
                source_mask=request.source_mask,
                eos_ids=request.eos_ids,
            )

    def check_greedy(self, row: int, tokens: list[int]) -> None:
        """Raise unless these new tokens are those of the best scores."""
        for i, token in enumerate(tokens):
            best = int(np.argmax(self._scores[self._place(row, i)]))
            if token != best:
                raise ValueError(
                    "the target of the spread must be the oracle's own greedy tokens, generated in "
                    f"float64 with the same processors: new token {i} of row {row} is {token}, the "
                    f"oracle prefers {best}"
                )

    def divergence(self, row: int, position: int, token: int, own: int, z: float) -> Divergence:
        """Another choice than the oracle's ``own``, unless rounding cannot explain it."""
        place, vocab_size = self._place(row, position), self._scores.shape[-1]
        if not 0 <= token < vocab_size:
            raise AssertionError(
                f"new token {position} of row {row} is {token}; the vocabulary has ids 0 to "
                f"{vocab_size - 1}"
            )
        sigma = self._spread["logits"].element_sigma[place]
        of_both = float(np.hypot(sigma[own], sigma[token]))
        margin = float(self._scores[place][own] - self._scores[place][token])
        found = Divergence(row, position, token, own, margin, margin / of_both)
        nearer = self._spread["logits"].value.copy()
        nearer[place][token] += z * sigma[token] ** 2 / of_both
        nearer[place][own] -= z * sigma[own] ** 2 / of_both
        scores = self._scored(self._processors, nearer)[place]
        if -np.inf < scores[token] >= scores[own]:
            return found
        if scores[token] == -np.inf:
            raise AssertionError(
                f"new token {position} of row {row} is {token}, which is banned by "
                f"{self._remover(place, token)}; the oracle's is {own}"
            )
        raise AssertionError(
            f"{found}; rounding to {self._spread.dtype} explains at most {z:g}. The tokens before "
            "agree: compare the logits there with assert_agrees"
        )

    def _place(self, row: int, position: int) -> tuple[int, int]:
        """Where the logits of a row's new token number ``position`` are."""
        return row, int(self._request.n_prefix[row]) - 1 + position

    def _remover(self, place: tuple[int, int], token: int) -> str:
        """The processor that gives a token the score -inf."""
        for n, process in enumerate(self._processors, start=1):
            scores = self._scored(self._processors[:n], self._spread["logits"].value)
            if scores[place][token] == -np.inf:
                return named(process)
        return "a processor"
