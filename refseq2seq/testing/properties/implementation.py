"""The implementation under test, as a set of functions, and random trials of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backend import to_numpy

PADDING = ("right", "left", "between")


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """An encoder-decoder as a set of functions of NumPy arrays.

    ``encode(source, mask) -> memory`` takes integer token ids (batch, n) and a boolean mask
    (batch, n), True = real token, or None if all tokens are real; or, instead of ids, vectors such
    as frames, float64 (batch, n, source_features). Its result, of any type, is
    only passed on to the other functions. ``logits(memory, target)`` is teacher forcing: it
    takes integer token ids (batch, n) and returns floats (batch, n, target_vocab_size), as a
    NumPy or CuPy array, before any softmax. The other arguments are optional; properties that
    need a missing one do not apply.

    Parameters
    ----------
    encode, logits : function
        See above.
    target_vocab_size : int
        Number of ids. Any id below it may occur at any position.
    start_id : int
        First token of every target.
    source_vocab_size : int, optional
        Number of ids of a source of tokens.
    source_features : int, optional
        Width of the vectors of a source that is not tokens, instead of ``source_vocab_size``.
    begin : function ``memory -> function tokens (batch, k) -> logits (batch, k, vocab)``
        Decoding with a cache: each call of the inner function continues where the previous
        call ended. The first token that is fed is the start token.
    generate : function ``(source, mask, max_new_tokens) -> token ids``
        Greedy decoding: an integer array (batch, n), or a list per row. New tokens only,
        without the start token and with EOS. It must not force or forbid tokens.
    eos_ids : tuple of int
        Tokens that end a row in ``generate``.
    pad_id : int, optional
        Token that ``generate`` writes after the end of a row; None if it is unspecified.
    min_source_length : int
        Minimum length of a source, for frames that must fill a window.
    max_source_length, max_target_length : int, optional
        Maximum lengths of a source and of a target; unlimited by default.
    padding : tuple of "right", "left", "between"
        Supported locations of masked positions; ``()`` if the encoder takes no mask, and
        ``("right",)`` if it joins several frames.
    """

    encode: Callable[[np.ndarray, np.ndarray | None], Any]
    logits: Callable[[Any, np.ndarray], Any]
    target_vocab_size: int
    start_id: int
    source_vocab_size: int | None = None
    source_features: int | None = None
    begin: Callable[[Any], Callable[[np.ndarray], Any]] | None = None
    generate: Callable[[np.ndarray, np.ndarray | None, int], Any] | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    min_source_length: int = 1
    max_source_length: int | None = None
    max_target_length: int | None = None
    padding: tuple[str, ...] = PADDING

    def __post_init__(self) -> None:
        if unknown := set(self.padding) - set(PADDING):
            raise ValueError(f"padding must be some of {PADDING}, got {sorted(unknown)}")
        if (self.source_vocab_size is None) == (self.source_features is None):
            raise TypeError("source_vocab_size or source_features must be given, and not both")
        least = {"source_vocab_size": 2, "target_vocab_size": 2, "source_features": 1}
        least |= {"min_source_length": 1, "max_target_length": 3}
        least |= {"max_source_length": 2 + max(self.min_source_length, 1)}
        for name, low in least.items():
            if (given := getattr(self, name)) is not None and given < low:
                raise ValueError(f"{name} must be at least {low} for the trials, got {given}")

    def lacks(self, need: str) -> bool:
        """Whether the field ``need`` is not given, or padding of the kind ``need`` unsupported."""
        return need not in self.padding if need in PADDING else getattr(self, need) in (None, ())


@dataclass(frozen=True)
class Claim:
    """Two results of an implementation that must be equal, or must differ."""

    actual: np.ndarray
    expected: np.ndarray
    inputs: dict[str, Any]  # inputs that produce them, for the report
    differ: str = ""  # the change that must have an effect in some trial; "" = must be equal
    slack: float = 1.0  # factor by which the tolerance is multiplied

    def distance(self) -> float:
        """The largest difference, relative to the largest magnitude of its row.

        Infinite if the shapes differ, an element is not finite, or integers such as tokens
        differ.
        """
        return float(self._distances().max(initial=0.0))

    def explain(self) -> str:
        """The index of the largest difference, and both values there."""
        if self.actual.shape != self.expected.shape:
            return f"shapes {self.actual.shape} and {self.expected.shape}"
        distances = self._distances()
        place = tuple(int(i) for i in np.unravel_index(distances.argmax(), distances.shape))
        a, b = self.actual[place], self.expected[place]
        return f"{a!s} and {b!s} at {place}, difference {distances[place]:.2g} relative to the row"

    def _distances(self) -> np.ndarray:
        if self.actual.shape != self.expected.shape:
            return np.array([np.inf])
        if "f" not in (self.actual.dtype.kind, self.expected.dtype.kind):
            return np.where(self.actual == self.expected, 0.0, np.inf)
        a, b = self.actual.astype("float64"), self.expected.astype("float64")
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        scale = np.maximum(np.abs(a), np.abs(b)).max(axis=-1, keepdims=True, initial=0.0)
        apart = np.abs(a - b) / np.where(scale > 0, scale, 1.0)
        return np.where(finite, apart, np.inf)


class Trial:
    """Random sources and targets, small in the first trials, and results computed from them.

    ``source`` (batch, n) has no padding, and ``rows`` are ``batch`` sources of different lengths;
    their ids are integers, or their vectors floats. Every target begins with the start token.
    """

    def __init__(self, subject: Implementation, index: int, rng: np.random.Generator) -> None:
        self.subject = subject
        self.rng = rng
        self.batch = 2 + index % 2
        longest, least = 3 + index, subject.min_source_length
        self.most_source = min(longest + least - 1, subject.max_source_length or longest + least)
        self.most_target = min(longest, subject.max_target_length or longest)
        n = int(rng.integers(max(2, least), self.most_source + 1))
        self.source = self.source_tokens(self.batch, n)
        self.target = self.target_tokens(self.batch, int(rng.integers(3, self.most_target + 1)))
        lengths = rng.integers(least, self.most_source, self.batch)
        lengths[0] = self.most_source - 1  # leaves room for padding; lengths mostly differ
        self.rows = [self.source_tokens(1, int(n))[0] for n in lengths]

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of most claims."""
        return {"source": self.source, "target": self.target}

    def source_tokens(self, batch: int, n: int) -> np.ndarray:
        """Random source ids (batch, n), often the first and the last id; or vectors."""
        if (width := self.subject.source_features) is not None:
            return self.rng.standard_normal((batch, n, width))
        return self._tokens(self.subject.source_vocab_size, batch, n)  # type: ignore[arg-type]

    def target_tokens(self, batch: int, n: int) -> np.ndarray:
        """Random target ids (batch, n), which begin with the start token."""
        tokens = self._tokens(self.subject.target_vocab_size, batch, n)
        tokens[:, 0] = self.subject.start_id
        return tokens

    def other_source(self, source: np.ndarray, place: int) -> np.ndarray:
        """``source`` with another token or vector at position ``place`` of every row."""
        if (vocab_size := self.subject.source_vocab_size) is not None:
            return self.other(source, place, vocab_size)
        changed = source.copy()
        changed[:, place] = self.source_tokens(len(source), 1)[:, 0]
        return changed

    def other(self, tokens: np.ndarray, place: int, vocab_size: int) -> np.ndarray:
        """``tokens`` with another id at position ``place`` of every row."""
        changed = tokens.copy()
        shift = self.rng.integers(1, vocab_size, len(tokens))
        changed[:, place] = (changed[:, place] + shift) % vocab_size
        return changed

    def encode(self, source: np.ndarray, mask: np.ndarray | None = None) -> Any:
        """The memory, computed from copies of the source and the mask."""
        return self.subject.encode(source.copy(), None if mask is None else mask.copy())

    def logits(self, memory: Any, target: np.ndarray) -> np.ndarray:
        """Teacher-forced logits (batch, n, vocab) of a copy of ``target``, on the host."""
        return self.checked(self.subject.logits(memory, target.copy()), target.shape)

    def forward(
        self, source: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits of the target given the source."""
        return self.logits(self.encode(source, mask), target)

    def alone(self, rows: Iterable[np.ndarray], target: np.ndarray) -> np.ndarray:
        """Logits of each row, computed separately, without padding and without a mask."""
        each = [self.forward(row[None], target[i : i + 1]) for i, row in enumerate(rows)]
        return np.concatenate(each)

    def begin(self, memory: Any) -> Callable[[np.ndarray], np.ndarray]:
        """Cached decoding, with a check of the shape and dtype of its logits."""
        feed = self.subject.begin(memory)  # type: ignore[misc]
        return lambda tokens: self.checked(feed(tokens.copy()), tokens.shape)

    def generate(
        self, source: np.ndarray, mask: np.ndarray | None, max_new_tokens: int
    ) -> list[list[int]]:
        """The new tokens of each row, as ``generate`` returns them."""
        mask = None if mask is None else mask.copy()
        tokens = self.subject.generate(source.copy(), mask, max_new_tokens)  # type: ignore[misc]
        tokens = tokens if isinstance(tokens, list) else to_numpy(tokens)
        rows = [[int(token) for token in row] for row in tokens]
        if len(rows) != len(source):
            raise ValueError(f"generate must return {len(source)} rows, got {len(rows)}")
        return rows

    def until_end(self, row: list[int]) -> list[int]:
        """A generated row up to and including its EOS."""
        ends = (i for i, token in enumerate(row) if token in self.subject.eos_ids)
        return row[: next(ends, len(row)) + 1]

    def padded(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """``rows`` as an array with padding on ``side``, and its mask; padding has random ids."""
        n = self.most_source
        mask = np.zeros((self.batch, n), dtype=bool)
        for real, row in zip(mask, self.rows, strict=True):
            places = self.rng.permutation(n) if side == "between" else np.arange(n)
            first = n - len(row) if side == "left" else 0
            real[places[first : first + len(row)]] = True
        tokens = self.source_tokens(self.batch, n)
        tokens[mask] = np.concatenate(self.rows)
        return tokens, mask

    def _tokens(self, vocab_size: int, batch: int, n: int) -> np.ndarray:
        tokens = self.rng.integers(0, vocab_size, (batch, n))
        ends = self.rng.choice(np.array([0, vocab_size - 1]), (batch, n))
        return np.where(self.rng.random((batch, n)) < 1 / 4, ends, tokens)

    def checked(self, logits: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The logits on the host; raise unless they are floats of shape (*shape, vocab)."""
        host, expected = to_numpy(logits), (*shape, self.subject.target_vocab_size)
        if host.shape != expected:
            raise ValueError(f"logits must have the shape {expected}, got {host.shape}")
        if host.dtype.kind != "f":
            raise TypeError(f"logits must be float16, float32 or float64, got {host.dtype}")
        return host
