"""A request for a generation, and the outputs of another implementation, in any accepted form."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...checks import Source, check_int
from ...generation.beam import BeamSearch, beam_search, beam_steps
from ...generation.loop import Generation, Step, decode_steps
from ...generation.request import as_prefix, check_options, checked_eos
from ...generation.sampling import Chooser, Processor, check_chooser, greedy
from ...model import Model
from ..compare import as_float64, on_host

OF_BEAMS = (
    "beams",
    "n_best",
    "length_penalty",
    "early_stopping",
    "processors",
    "logits_processors",
)
"""Arguments that ask for beam search."""


@dataclass(frozen=True)
class Request:
    """What is asked."""

    model: Model  # in float64
    source: Source
    how: dict[str, Any]

    def __post_init__(self) -> None:
        functions = (beam_steps, beam_search) if self.searches else (decode_steps,)
        name = "beam_search" if self.searches else "generate"
        check_options(name, self.how, *functions)

    @property
    def searches(self) -> bool:
        """Whether beam search is asked for."""
        return any(name in self.how for name in OF_BEAMS)

    @property
    def n(self) -> int:
        """The number of outputs of each row."""
        name = "n_best" if self.searches else "num_return_sequences"
        return check_int(name, self.how.get(name, 1), 1)

    @property
    def batch(self) -> int:
        """The number of sources."""
        return len(self.source)

    @property
    def max_new_tokens(self) -> float:
        """The most new tokens of an output."""
        asked, most = self.how.get("max_new_tokens"), self.model.config.decoder.max_length
        if asked is not None:
            return float(asked)
        return math.inf if most is None else most + 1 - max(map(len, self.prefixes))

    @property
    def eos_ids(self) -> list[int]:
        """The ids that end an output."""
        c = self.model.config
        eos = self.how.get("eos_ids")
        return checked_eos(c.eos_ids if eos is None else eos, c.decoder.vocab_size).tolist()

    @property
    def prefixes(self) -> list[list[int]]:
        """The prefix of each row."""
        ids, lengths = as_prefix(self.how.get("prefix"), self.batch, self.model.config)
        return [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]

    @property
    def processors(self) -> dict[str, tuple[Processor, ...]]:
        """The processors of the request, by the argument that has them."""
        of_chooser = {} if self.searches else {"choose": self._choose.processors}
        names = ("processors", "logits_processors")
        return of_chooser | {name: tuple(self.how.get(name, ())) for name in names}

    @property
    def _choose(self) -> Chooser:
        return check_chooser(self.how.get("choose") or greedy())

    def asked(self, **changes: Any) -> "Request":
        """The request with other arguments."""
        return replace(self, how=self.how | changes)

    def with_processors(self, name: str, processors: tuple[Processor, ...]) -> "Request":
        """The request with other processors in the argument ``name``."""
        is_chooser = name == "choose"
        value = replace(self._choose, processors=processors) if is_chooser else processors
        return self.asked(**{name: value})

    def steps(self, *bumps: Processor) -> Iterator[Step]:
        """The steps of the loop, with the ``bumps`` before the other processors."""
        changed = self.with_processors("choose", (*bumps, *self._choose.processors))
        return decode_steps(self.model, self.source, **changed.how)

    def search(self, *bumps: Processor) -> BeamSearch:
        """The result of beam search, with the ``bumps`` before the other processors."""
        first = (*bumps, *self.how.get("logits_processors", ()))
        return beam_search(self.model, self.source, **self.how | {"logits_processors": first})


@dataclass(frozen=True)
class Outputs:
    """New tokens of each row's hypotheses, without padding, and their numbers where known."""

    tokens: list[list[list[int]]]  # (batch, n) lists of ids, EOS kept
    scores: np.ndarray | None  # (batch, n)
    log_probs: list[list[np.ndarray]] | None  # (batch, n) arrays, one number per token, in nats


def read(theirs: Any, request: Request, vocabulary: Sequence[str] | None) -> Outputs:
    """Outputs in one of the forms of `assert_generation_agrees`."""
    if isinstance(theirs, Sequence) and theirs and hasattr(theirs[0], "hypotheses"):
        return _of_ctranslate2(theirs, request, vocabulary)
    if isinstance(theirs, Generation | BeamSearch):
        theirs = {n: x for n, x in vars(theirs).items() if n in ("tokens", "scores", "log_probs")}
    if hasattr(theirs, "sequences"):
        theirs = {n: getattr(theirs, n, None) for n in ("sequences", "sequences_scores")}
    if not isinstance(theirs, Mapping):
        theirs = {"sequences" if hasattr(theirs, "detach") else "tokens": theirs}
    of_sequences = "sequences" in theirs
    tokens = theirs["sequences" if of_sequences else "tokens"] if theirs else None
    if tokens is None or isinstance(tokens, str) or not hasattr(tokens, "__len__"):
        raise TypeError(
            "theirs must be token ids, a mapping with 'tokens' or 'sequences', or the result of "
            f"generate or translate_batch, got {type(tokens).__name__}"
        )
    rows = [_ids(row) for row in _flat(tokens)]
    _check_number("outputs", len(rows), request)
    if of_sequences:
        prefixes = [prefix for prefix in request.prefixes for _ in range(request.n)]
        rows = [_without(rows[i], prefix, i) for i, prefix in enumerate(prefixes)]
    kept = [_until_the_end(row, i, request) for i, row in enumerate(rows)]
    scores = theirs.get("sequences_scores" if of_sequences else "scores")
    if scores is not None:
        scores = as_float64(scores)
        _check_number("scores", scores.size, request)
        if not request.searches:
            raise ValueError("scores are those of beam search: pass log_probs of each token")
        scores = scores.reshape(request.batch, request.n)
    log_probs = theirs.get("log_probs")
    if log_probs is not None:
        flat = [as_float64(np.asarray(row)) for row in _flat(log_probs)]
        _check_number("log_probs", len(flat), request)
        if short := [i for i, row in enumerate(kept) if len(flat[i]) < len(row)]:
            raise ValueError(f"log_probs must have a number for each token of output {short[0]}")
        flat = [x[: len(row)] for x, row in zip(flat, kept, strict=True)]
        log_probs = _grouped(flat, request.n)
    return Outputs(_grouped(kept, request.n), scores, log_probs)


def _check_number(what: str, n: int, request: Request) -> None:
    """Raise unless there is one for each output that is asked for."""
    if n != request.batch * request.n:
        raise ValueError(
            f"theirs must have {request.batch * request.n} {what}, {request.n} for each of "
            f"{request.batch} sources, got {n}"
        )


def _of_ctranslate2(
    results: Sequence[Any], request: Request, vocabulary: Sequence[str] | None
) -> Outputs:
    """Hypotheses of tokens: without the end token unless it was asked for, with a given prefix."""
    own = request.model.target_vocabulary
    if vocabulary is None:
        if own is None:
            raise TypeError("vocabulary is missing: pass the token of each id, in order")
        vocabulary = own.symbols
    _check_number("outputs", len(results) * request.n, request)
    ids, longest = {token: i for i, token in enumerate(vocabulary)}, request.max_new_tokens
    rows: list[list[list[int]]] = []
    for result, prefix in zip(results, request.prefixes, strict=True):
        rows.append([])
        for tokens in result.hypotheses[: request.n]:
            if unknown := [token for token in tokens if token not in ids]:
                raise ValueError(f"vocabulary must have all tokens, and lacks {unknown[0]!r}")
            row = [ids[token] for token in tokens]
            row = row[len(prefix) - 1 :] if row[: len(prefix) - 1] == prefix[1:] else row
            ended = len(row) >= longest or bool(set(row) & set(request.eos_ids))
            rows[-1].append(row + ([] if ended else request.eos_ids[:1]))
        rows[-1] += [[]] * (request.n - len(rows[-1]))
    prefixed = any(len(prefix) > 1 for prefix in request.prefixes)  # its scores count the prefix
    scored = request.searches and all(len(result.scores) >= request.n for result in results)
    scored = scored and not prefixed
    scores = np.array([result.scores[: request.n] for result in results]) if scored else None
    return Outputs(rows, scores, None)


def _flat(tokens: Any) -> list[Any]:
    """Rows of ids: those of all sequences, one after the other."""
    rows = []
    for row in tokens:
        nested = getattr(row, "ndim", None) == 2 or (
            isinstance(row, list | tuple) and row and isinstance(row[0], list | tuple | np.ndarray)
        )
        rows += list(row) if nested else [row]
    return rows


def _ids(row: Any) -> list[int]:
    ids = on_host(row if hasattr(row, "dtype") else np.asarray(row))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"tokens must be rows of integers, got {ids.dtype} of shape {ids.shape}")
    return [int(token) for token in ids]


def _without(row: list[int], prefix: list[int], i: int) -> list[int]:
    if row[: len(prefix)] != prefix:
        raise ValueError(
            f"sequence {i} must begin with its prefix {prefix}, got {row[: len(prefix)]}: pass "
            "prefix=, or {'tokens': ...} if theirs are new tokens only"
        )
    return row[len(prefix) :]


def _until_the_end(row: list[int], i: int, request: Request) -> list[int]:
    """The tokens up to the end token; raise if the rest is not padding."""
    ends = [t + 1 for t, token in enumerate(row) if token in request.eos_ids]
    kept, rest = (row[: ends[0]], set(row[ends[0] :])) if ends else (row, set())
    if not rest <= {request.model.config.pad_id, *request.eos_ids, 0, -1, -100}:
        raise AssertionError(f"output {i} goes on after its end token: {row}")
    return kept


def _grouped(rows: list[Any], n: int) -> list[list[Any]]:
    return [rows[i : i + n] for i in range(0, len(rows), n)]
