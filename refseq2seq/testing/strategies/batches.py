"""Strategies for tokens: sources with masks, targets, prefixes, and uniform numbers."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from ...config import ModelConfig
from ...model import Model
from .arguments import check_sizes, config_of


class Source(NamedTuple):
    """The sources of a batch and their mask, as in ``rs.encode(model, *source)``."""

    tokens: list[list[int]] | np.ndarray
    """Ragged lists of ids, or an integer array (batch, n)."""

    mask: np.ndarray | None
    """Boolean (batch, n), True = real token; None with lists, or if all tokens are real."""

    @property
    def batch(self) -> int:
        """The number of rows."""
        return len(self.tokens)

    @property
    def rows(self) -> list[list[int]]:
        """The ids of the real tokens of each row."""
        if self.mask is None:
            return [[int(token) for token in row] for row in self.tokens]
        return [
            [int(token) for token in np.asarray(row)[real]]
            for row, real in zip(self.tokens, self.mask, strict=True)
        ]


@st.composite
def sources(
    draw: st.DrawFn,
    model: Model | ModelConfig,
    *,
    min_batch: int = 1,
    max_batch: int = 3,
    min_length: int = 1,
    max_length: int = 7,
) -> Source:
    """Sources to encode: ragged lists, or arrays with padding left, right and between tokens.

    Masked positions may contain any id. Each row has at least one real token.

    Parameters
    ----------
    model : Model or ModelConfig
    min_batch, max_batch : int
        Number of rows.
    min_length, max_length : int
        Length of a row, including its padding. Lengths never exceed the position table.
    """
    c = config_of(model).encoder
    check_sizes("batch", min_batch, max_batch)
    n = check_sizes("length", min_length, max_length, c.max_length)
    rows = st.lists(st.integers(0, c.vocab_size - 1), min_size=min_length, max_size=n)
    if draw(st.booleans()):
        return Source(draw(st.lists(rows, min_size=min_batch, max_size=max_batch)), None)
    batch, length = draw(st.integers(min_batch, max_batch)), draw(st.integers(min_length, n))
    tokens = draw(_tokens(c.vocab_size, batch, length))
    mask = draw(hypothesis_numpy.arrays(np.bool_, (batch, length), fill=st.nothing()))
    real = draw(st.lists(st.integers(0, length - 1), min_size=batch, max_size=batch))
    mask[np.arange(batch), real] = True
    return Source(tokens, draw(st.sampled_from((None, mask))))


@st.composite
def targets(
    draw: st.DrawFn,
    model: Model | ModelConfig,
    batch: int,
    *,
    min_length: int = 1,
    max_length: int = 7,
) -> np.ndarray:
    """Target tokens for teacher forcing: integers (batch, n), any ids."""
    c = config_of(model).decoder
    n = draw(st.integers(min_length, check_sizes("length", min_length, max_length, c.max_length)))
    return draw(_tokens(c.vocab_size, batch, n))


def prefixes(
    model: Model | ModelConfig, batch: int, *, min_length: int = 1, max_length: int = 4
) -> st.SearchStrategy[list[list[int]]]:
    """Prefixes of targets: the start token and up to ``max_length - 1`` others, in ragged lists.

    The others are any ids, including those in ``eos_ids``.
    """
    c = config_of(model)
    n = check_sizes("length", min_length, max_length, c.decoder.max_length)
    ids = st.integers(0, c.decoder.vocab_size - 1)
    others = st.lists(ids, min_size=min_length - 1, max_size=n - 1)
    row = others.map(lambda tokens: [c.decoder_start_id, *tokens])
    return st.lists(row, min_size=batch, max_size=batch)


def uniforms(batch: int, steps: int) -> st.SearchStrategy[np.ndarray]:
    """Uniform numbers for sampling: float64 (batch, steps) in [0, 1), often at either end."""
    return hypothesis_numpy.arrays(
        np.float64, (batch, steps), elements=st.floats(0, 1, exclude_max=True), fill=st.nothing()
    )


def _tokens(vocab_size: int, batch: int, n: int) -> st.SearchStrategy[np.ndarray]:
    ids = st.integers(0, vocab_size - 1)
    return hypothesis_numpy.arrays(np.int64, (batch, n), elements=ids, fill=st.nothing())
