"""Properties of step-by-step decoding and of greedy generation."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .catalogue import catches
from .implementation import Claim, Trial

# Decoding with a cache.


@catches("a cache off by one, positions that restart at each step", needs=("begin",))
def cached(t: Trial) -> Iterator[Claim]:
    """Tokens fed one at a time give the same logits as all tokens at once."""
    memory = t.encode(t.source)
    yield Claim(_fed(t, memory, t.target, 1), t.logits(memory, t.target), t.inputs)


@catches("a causal mask that ignores cached tokens", needs=("begin",))
def cached_in_pieces(t: Trial) -> Iterator[Claim]:
    """Tokens fed several at a time give the same logits as all tokens at once."""
    memory, size = t.encode(t.source), int(t.rng.integers(2, t.target.shape[1]))
    inputs = {**t.inputs, "tokens at a time": size}
    yield Claim(_fed(t, memory, t.target, size), t.logits(memory, t.target), inputs)


@catches("a cache that is not cleared, or that is part of the memory", needs=("begin",))
def cache_begins_empty(t: Trial) -> Iterator[Claim]:
    """A second decoding from a memory does not depend on the first."""
    memory, other = t.encode(t.source), t.target_tokens(*t.target.shape)
    _fed(t, memory, other, 1)
    inputs = {**t.inputs, "decoded before": other}
    yield Claim(_fed(t, memory, t.target, 1), t.forward(t.source, t.target), inputs)


@catches("logits that are views of the cache", needs=("begin",))
def cached_results_stay(t: Trial) -> Iterator[Claim]:
    """Logits of a cached step are not overwritten by the next step."""
    feed = t.begin(t.encode(t.source))
    first = feed(t.target[:, :1])
    before = first.copy()
    feed(t.target[:, 1:2])
    yield Claim(first, before, t.inputs, slack=0)


def _fed(t: Trial, memory: Any, target: np.ndarray, size: int) -> np.ndarray:
    """Logits (batch, n, vocab) of the target, fed in pieces of ``size`` tokens."""
    feed, n = t.begin(memory), target.shape[1]
    pieces = [feed(target[:, i : i + size]).copy() for i in range(0, n, size)]
    return np.concatenate(pieces, axis=1)


# Generation.


@catches("logits of another step, a cache that differs, hidden filters", needs=("generate",))
def greedy(t: Trial) -> Iterator[Claim]:
    """Each generated token has the largest teacher-forced logit given the tokens before it."""
    for i, row in enumerate(t.generate(t.source, None, t.most_target)):
        new, source = t.until_end(row), t.source[i : i + 1]
        logits = _after(t, source, new)
        yield Claim(_raised(logits, new), logits, {"source": source, "generated": row}, slack=2)


@catches("a limit that changes earlier tokens", needs=("generate",))
def generation_goes_on(t: Trial) -> Iterator[Claim]:
    """A smaller limit gives the first tokens of the generation with a larger limit."""
    most = t.most_target
    fewer = int(t.rng.integers(1, most))
    short, long = t.generate(t.source, None, fewer), t.generate(t.source, None, most)
    for i in range(t.batch):
        yield _same_tokens(
            t, t.source[i], t.until_end(short[i]), t.until_end(long[i])[:fewer], limit=fewer
        )


@catches("stopping early, exceeding the limit, counting the start token", needs=("generate",))
def generation_ends(t: Trial) -> Iterator[Claim]:
    """A row has as many tokens as the limit, unless it ends with EOS."""
    limit = t.most_target
    for row in t.generate(t.source, None, limit):
        new = t.until_end(row)
        ended = bool(new) and new[-1] in t.subject.eos_ids
        expected = min(len(new), limit) if ended else limit
        inputs = {"source": t.source, "limit": limit, "generated": row}
        yield Claim(np.array([len(new)]), np.array([expected]), inputs, slack=0)


@catches("tokens after EOS", needs=("generate", "eos_ids", "pad_id"))
def padding_after_end(t: Trial) -> Iterator[Claim]:
    """Only padding follows the EOS of a row."""
    for row in t.generate(t.source, None, t.most_target):
        if rest := row[len(t.until_end(row)) :]:
            padding = np.full(len(rest), t.subject.pad_id)
            yield Claim(np.array(rest), padding, {"source": t.source, "generated": row}, slack=0)


@catches("ended rows that affect others, masks that are not passed on", needs=("generate",))
def generation_alone(t: Trial) -> Iterator[Claim]:
    """A row generates the same tokens alone as in a batch, padded if padding is supported."""
    source, mask, rows = t.source, None, list(t.source)
    if t.subject.padding:
        source, mask = t.padded(t.subject.padding[0])
        rows = t.rows
    together = t.generate(source, mask, t.most_target)
    for row, tokens in zip(rows, together, strict=True):
        alone = t.generate(row[None], None, t.most_target)[0]
        yield _same_tokens(t, row, t.until_end(alone), t.until_end(tokens), batch=source, mask=mask)


def _after(t: Trial, source: np.ndarray, new: list[int]) -> np.ndarray:
    """Logits (len(new), vocab) from which the new tokens are chosen."""
    target = np.array([[t.subject.start_id, *new[:-1]]])
    return t.forward(source, target)[0, : len(new)]


def _raised(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """The logits, with that of each row's token set to the row's maximum."""
    raised = logits.copy()
    raised[np.arange(len(tokens)), tokens] = logits.max(axis=-1)
    return raised


def _same_tokens(
    t: Trial, source: np.ndarray, one: list[int], two: list[int], **inputs: Any
) -> Claim:
    """Claim that two rows are equal, or first differ where both tokens have equal logits."""
    shown = {"source": source[None], "one": one, "other": two, **inputs}
    apart = [i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if not apart:
        return Claim(np.ones(len(one)), np.ones(len(two)), shown)
    logits = _after(t, source[None], one)[apart[0]][None]
    both = _raised(_raised(logits, [one[apart[0]]]), [two[apart[0]]])
    return Claim(both, logits, shown, slack=2)
