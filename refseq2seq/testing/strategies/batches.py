"""Strategies for sources with masks, given memories, targets, prefixes, and uniform numbers."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.extra import numpy as hypothesis_numpy

from ...config import FrameInput, ModelConfig
from ...model import Memory, Model, project_memory
from .arguments import check_sizes, config_of, source_sizes


class Source(NamedTuple):
    """The sources of a batch and their mask, as in ``rs.encode(model, *source)``."""

    tokens: list[Any] | np.ndarray
    """Ragged lists of ids, or an integer array (batch, n). Vectors, such as frames, are ragged
    lists of arrays (n, d), or an array (batch, n, d)."""

    mask: np.ndarray | None
    """Boolean (batch, n), True = real; None with lists, or if all tokens are real."""

    @property
    def batch(self) -> int:
        """The number of rows."""
        return len(self.tokens)

    @property
    def rows(self) -> list[list[Any]]:
        """The real tokens of each row: ids, or lists of floats."""
        masks = [...] * self.batch if self.mask is None else self.mask
        return [
            np.asarray(row)[real].tolist() for row, real in zip(self.tokens, masks, strict=True)
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
    embedded: bool = False,
) -> Source:
    """Sources to encode: ragged lists, or arrays with padding left, right and between tokens.

    Masked positions may contain any id. Each row has at least one real token. For a model that
    reads frames, the source is frames, multiples of 1/8 from -2 to 2, with padding on the right
    only. The real frames of a row fill a window of each layer.

    Parameters
    ----------
    model : Model or ModelConfig
    min_batch, max_batch : int
        Number of rows.
    min_length, max_length : int
        Length of a row, including its padding. Lengths never exceed the position table.
    embedded : bool
        Draw embeddings (n, d_model) instead of ids for a model that reads tokens.
    """
    c = config_of(model).encoder
    check_sizes("batch", min_batch, max_batch)
    least, most = source_sizes(c, min_length, max_length)
    frames = c.input if isinstance(c.input, FrameInput) else None
    width = frames.n_features if frames else c.d_model if embedded else None
    if draw(st.booleans()):
        ids = st.integers(0, c.vocab_size - 1)
        row: st.SearchStrategy[Any] = st.lists(ids, min_size=least, max_size=most)
        if width:
            row = st.integers(least, most).flatmap(lambda n: _vectors(n, width))
        return Source(draw(st.lists(row, min_size=min_batch, max_size=max_batch)), None)
    batch, n = draw(st.integers(min_batch, max_batch)), draw(st.integers(least, most))
    tokens = draw(_vectors(batch, n, width) if width else _tokens(c.vocab_size, batch, n))
    if frames:
        lengths = draw(st.lists(st.integers(least, n), min_size=batch, max_size=batch))
        mask = np.arange(n) < np.array(lengths)[:, None]
    else:
        mask = draw(_masks(batch, n))
    return Source(tokens, draw(st.sampled_from((None, mask))))


@st.composite
def memories(
    draw: st.DrawFn, model: Model, batch: int, *, min_length: int = 1, max_length: int = 7
) -> Memory:
    """Memories of another encoder's output: `project_memory` of (batch, n, d_model) vectors."""
    if not isinstance(model, Model):
        raise InvalidArgument(f"model must be a Model, got {type(model).__name__}")
    n = draw(st.integers(min_length, check_sizes("length", min_length, max_length)))
    hidden = draw(_vectors(batch, n, model.config.encoder.d_model))
    return project_memory(model, hidden, draw(st.none() | _masks(batch, n)))


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


def _vectors(*shape: int) -> st.SearchStrategy[np.ndarray]:
    eighths = st.integers(-16, 16).map(lambda i: i / 8)
    return hypothesis_numpy.arrays(np.float64, shape, elements=eighths, fill=st.nothing())


@st.composite
def _masks(draw: st.DrawFn, batch: int, n: int) -> np.ndarray:
    """Masks (batch, n) with at least one real token in each row."""
    mask = draw(hypothesis_numpy.arrays(np.bool_, (batch, n), fill=st.nothing()))
    real = draw(st.lists(st.integers(0, n - 1), min_size=batch, max_size=batch))
    mask[np.arange(batch), real] = True
    return mask
