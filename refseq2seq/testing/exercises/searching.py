"""Exercises on loops of decoding: greedy, beam search."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .exercise import Arguments, Exercise


class Language:
    """A table in the place of a model: the sum of the tokens is the row of the logits."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self._calls = 0

    def __call__(self, tokens: Any) -> np.ndarray:
        """The logits of the next token."""
        self._calls += 1
        if self._calls > 10_000:
            raise RuntimeError("the model is called without end: stop after `limit` new tokens")
        return self.table[sum(int(t) for t in tokens) % len(self.table)].copy()

    def __repr__(self) -> str:
        rows = " ".join(np.array2string(self.table, precision=2, separator=", ").split())
        return f"lambda tokens: table[sum(tokens) % {len(self.table)}], table = {rows}"


def greedy(
    next_logits: Any,
    start: int,
    end: int,
    limit: int,
    *,
    keep_end: bool = True,
    keep_start: bool = False,
    stop: bool = True,
    more: int = 0,
    sees: str = "all",
    best: Any = np.argmax,
) -> list[int]:
    """Greedy decoding with mistakes."""
    tokens = [start]
    for _ in range(limit + more):
        seen = {"all": tokens, "newest": tokens[-1:], "new": tokens[1:]}[sees]
        token = int(best(next_logits(seen)))
        if token == end and not keep_end:
            break
        tokens.append(token)
        if token == end and stop:
            break
    return tokens if keep_start else tokens[1:]


def greedy_inputs(rng: np.random.Generator) -> Iterator[Arguments]:
    """An end at once, an end later, none, ties, and a limit of 0."""
    end_at_once = Language(np.array([[0.0, 1.0]]))
    yield end_at_once, 0, 1, 1
    yield Language(np.array([[1.0, 0.0], [0.0, 1.0]])), 0, 1, 3
    yield Language(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])), 1, 2, 2
    yield Language(np.zeros((1, 3))), 2, 1, 3
    for n in (3, 5, 7):
        yield Language(rng.standard_normal((n, n))), 1, 0, 11
    yield end_at_once, 0, 1, 0


GREEDY = Exercise(
    signature="greedy(next_logits, start, end, limit)",
    reference=greedy,
    written=greedy,
    inputs=greedy_inputs,
    mistakes={
        "the end token is not kept": {"keep_end": False},
        "the start token is returned too: return the new tokens": {"keep_start": True},
        "it goes on after the end token": {"stop": False},
        "it generates limit + 1 tokens": {"more": 1},
        "it generates limit - 1 tokens": {"more": -1},
        "next_logits gets the newest token alone: it needs all tokens": {"sees": "newest"},
        "next_logits does not get the start token": {"sees": "new"},
        "it takes the smallest logit": {"best": np.argmin},
    },
    properties={
        "each token has the largest logit after those before it": lambda f, language, start, *how: (
            *_pairs(f(language, start, *how), language, start),
        ),
    },
)


def _pairs(tokens: Any, language: Language, start: int) -> tuple[list[float], list[float]]:
    logits = [language([start, *tokens[:i]]) for i in range(len(tokens))]
    return [x[t] for x, t in zip(logits, tokens, strict=True)], [max(x) for x in logits]


EXERCISES = {"greedy": GREEDY}
