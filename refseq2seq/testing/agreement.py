"""Assertions for tests of another implementation: its numbers and its tokens are correct.

The reference is the forward pass of this package in float64, as `spread` computes it.

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
from ..generation.request import Request, as_forced_bos, as_prefix, checked_eos, named, with_rules
from ..generation.sampling import Processor, check_processors
from ..generation.scoring import processed
from .compare import as_float64, first_difference, on_host
from .expected import Expected
from .tolerance import Spread


def assert_agrees(actual: Any, spread: Spread, z: float = 6.0, name: str = "logits") -> None:
    """Raise unless ``actual`` equals the reference up to the rounding of its number format.

    Parameters
    ----------
    actual : array, or mapping of arrays
        The quantity ``name``, in the shape of ``spread[name].value``; or several quantities
        by name. All of them are compared, and the error names the first that deviates.
        PyTorch tensors are also accepted.
    spread : Spread
        From `spread`, for the same model and input.
    z : float
        Largest allowed error of an element, in spreads. Finite, not negative. See
        `refseq2seq.testing.expected`.
    name : str
        Name of the quantity if ``actual`` is an array; ignored if it is a mapping.

    Raises
    ------
    AssertionError
        With the worst elements, their errors in spreads, and the worst rows.
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
    """How many elements exceed the limit, and the rows with the largest errors."""
    error = np.where(expected.where, np.abs(actual - expected.value), 0.0)
    spreads = np.divide(error, expected.element_sigma, where=error > 0, out=np.zeros_like(error))
    of_rows = spreads.max(axis=-1)
    worst = np.argsort(-of_rows, axis=None, kind="stable")[:5]
    told = [
        f"{tuple(map(int, np.unravel_index(row, of_rows.shape)))} {of_rows.flat[row]:.3g}"
        for row in worst
    ]
    return [
        f"  {(spreads > z).sum()} of {expected.where.sum()} elements exceed the limit, "
        f"in {(of_rows > z).sum()} of {of_rows.size} rows; largest errors by row, in spreads: "
        + ", ".join(told).replace("(", "[").replace(")", "]")
    ]


@dataclass(frozen=True)
class Divergence:
    """A position where rounding explains that a row has another token than the reference."""

    row: int
    position: int  # index among the row's new tokens, from 0
    token: int  # id that was compared
    oracle: int  # id that the reference chose
    margin: float  # difference of the reference's scores of its own and the other token
    spreads: float  # that margin, in spreads of the difference of the two logits

    def __str__(self) -> str:
        return (
            f"new token {self.position} of row {self.row} is {self.token}; the reference chose "
            f"{self.oracle}, with a score larger by {self.margin:.3g}, or {self.spreads:.3g} "
            "spreads"
        )


@dataclass(frozen=True)
class TokenAgreement:
    """How many tokens were compared and agree."""

    compared: int  # tokens that are equal to the reference's
    total: int  # tokens of the reference
    diverged: tuple[Divergence, ...]  # the rest of each of these rows is not compared

    def __str__(self) -> str:
        stops = "".join(f"\n  {stop}" for stop in self.diverged)
        return f"{self.compared} of {self.total} tokens match the reference{stops}"


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
    """Raise unless greedy ``tokens`` equal those of the reference, up to near-ties.

    Each row is compared up to its first token that differs. That token is accepted only if
    rounding could have swapped the two: their scores must swap order when their logits are
    moved towards each other by ``z`` spreads. The rest of the row has another history
    and is not compared.

    Parameters
    ----------
    tokens : integer array (batch, n), or list of lists of ids
        New tokens only, as `generate` returns them. Tokens after an EOS, and tokens beyond
        the end of the spread's target, are ignored.
    spread : Spread
        Its target must consist of the prefix followed by the greedy tokens of the reference,
        generated in float64.
    z : float
        By how many spreads the two logits may be moved towards each other. Finite, not
        negative.
    n_prefix : int, optional
        Length of the prefix in that target, if it is the same in every row; 1 by default.
    prefix : integer array (batch, n), or list of lists of token ids, optional
        The prefix itself, with the start token, instead of ``n_prefix``.
    eos_ids : sequence of ints, optional
        Tokens that end a row; by default those of the model.
    processors : sequence of Processor
        The processors that both sides used, such as ``[rs.no_repeat_ngram(3)]``. The rules
        of the model's config are always applied and can be omitted.

    Returns
    -------
    TokenAgreement
        How many tokens were compared, and in which rows, where and why the comparison stopped.

    Raises
    ------
    AssertionError
        If a token differs and rounding cannot explain it, if it is banned or outside the
        vocabulary, or if a row ends too early. The message names the row and the new token.
    TypeError, ValueError
        If ``tokens`` are not integers or have a different number of rows than the target of
        ``spread``, or if that target is not the choice of the reference or does not begin
        with the prefix.

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
    7 of 7 tokens match the reference
    """
    z = check_number("z", z, "[0, inf)")
    target, c = spread.target, spread.model.config
    if not hasattr(tokens, "__len__") or isinstance(tokens, str):
        raise TypeError(f"tokens must be an array or lists of ids, got {type(tokens).__name__}")
    if len(tokens) != len(target):
        raise ValueError(
            f"tokens must have {len(target)} rows, like the target of the spread, got {len(tokens)}"
        )
    lengths = _prefix_lengths(spread, n_prefix, prefix)
    ends = checked_eos(c.eos_ids if eos_ids is None else eos_ids, c.decoder.vocab_size).tolist()
    oracle = _Oracle(spread, lengths, check_processors(processors, "processors=[{}]"), ends)
    compared, total, diverged = 0, 0, []
    for row, new in enumerate(tokens):
        own = target[row, lengths[row] : spread.target_mask[row].sum()].tolist()
        own = own[: next((i + 1 for i, token in enumerate(own) if token in ends), len(own))]
        theirs = _integers(row, new)[: len(own)]
        equal = [a == b for a, b in zip(theirs, own, strict=False)]
        agreed = [*equal, False].index(False)  # the length of the common prefix
        oracle.check_greedy(row, own[: agreed + 1])
        if agreed == len(theirs) < len(own):
            raise AssertionError(
                f"row {row} ends after {agreed} new tokens; the reference continues with "
                f"{own[agreed]}"
            )
        if agreed < len(own):
            diverged.append(oracle.divergence(row, agreed, theirs[agreed], own[agreed], z))
        compared, total = compared + agreed, total + len(own)
    return TokenAgreement(compared, total, tuple(diverged))


def _prefix_lengths(spread: Spread, n_prefix: int | None, prefix: Tokens | None) -> np.ndarray:
    """The length of the prefix in each row of the spread's target: integers (batch,)."""
    batch = len(spread.target)
    if prefix is None:
        lengths = np.full(batch, check_int("n_prefix", 1 if n_prefix is None else n_prefix, 0))
    elif n_prefix is not None:
        raise TypeError("n_prefix and prefix are both given: pass only one of them")
    else:
        ids, lengths = as_prefix(prefix, batch, spread.model.config)
        for row, n in enumerate(lengths):
            if (begin := spread.target[row, :n]).tolist() != ids[row, :n].tolist():
                raise ValueError(
                    f"the target of the spread must begin with the prefix: row {row} begins with "
                    f"{begin.tolist()}, the prefix is {ids[row, :n].tolist()}"
                )
    most = spread.target_mask.sum(axis=1) - 1
    if (unfit := (lengths < 1) | (lengths > most)).any():
        row, name = int(unfit.argmax()), "prefix" if n_prefix is None else "n_prefix"
        raise ValueError(
            f"{name} must be from 1 to {most[row]} tokens, got {lengths[row]}: row {row} of the "
            f"target of the spread has {most[row] + 1} tokens"
        )
    return lengths


def _integers(row: int, tokens: Any) -> list[int]:
    ids = on_host(tokens if hasattr(tokens, "dtype") else np.asarray(tokens))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(
            f"tokens must be rows of integers, got {ids.dtype} of shape {ids.shape} in row {row}"
        )
    return [int(token) for token in ids]


class _Oracle:
    """The reference's choice of each new token, from its logits, the model's rules and processors.

    ``n_prefix`` holds integers (batch,).
    """

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
            forced_bos=as_forced_bos(None, n_prefix, spread.model.config),
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
        """Whether a longest row ends with this token although another has the best score.

        If so, the token was forced at the limit ``max_new_tokens``, which applies to every row.
        """
        new = self._spread.target_mask.sum(axis=1) - self._request.n_prefix
        for row in np.flatnonzero(new == self._request.max_new_tokens).tolist():
            place = self._place(row, self._request.max_new_tokens - 1)
            last = self._spread.target[row, place[1] + 1]
            if last == token != self._scores[place].argmax():
                return True
        return False

    def _scored(self, processors: Sequence[Processor], logits: np.ndarray) -> np.ndarray:
        """The scores of every next token, like the logits (batch, n_target, vocab_size)."""
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
        """Raise unless each of these new tokens has the best score."""
        for i, token in enumerate(tokens):
            best = int(np.argmax(self._scores[self._place(row, i)]))
            if token != best:
                raise ValueError(
                    "the target of the spread must hold the greedy tokens of the reference, "
                    "generated in float64 with the same processors: new token "
                    f"{i} of row {row} is {token}, but {best} has the best score"
                )

    def divergence(self, row: int, position: int, token: int, own: int, z: float) -> Divergence:
        """The divergence from the reference's token ``own``; raise if it exceeds rounding."""
        place, vocab_size = self._place(row, position), self._scores.shape[-1]
        if not 0 <= token < vocab_size:
            raise AssertionError(
                f"new token {position} of row {row} is {token}; the ids of the vocabulary are 0 to "
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
                f"{self._remover(place, token)}; the reference chose {own}"
            )
        raise AssertionError(
            f"{found}; rounding to {self._spread.dtype} explains at most {z:g}. The tokens before "
            "it agree: compare the logits at this position with assert_agrees"
        )

    def _place(self, row: int, position: int) -> tuple[int, int]:
        """The index into logits (batch, n_target) from which new token ``position`` is chosen."""
        return row, int(self._request.n_prefix[row]) - 1 + position

    def _remover(self, place: tuple[int, int], token: int) -> str:
        """The name of the processor that gives a token the score -inf."""
        for n, process in enumerate(self._processors, start=1):
            scores = self._scored(self._processors[:n], self._spread["logits"].value)
            if scores[place][token] == -np.inf:
                return named(process)
        return "a processor"
