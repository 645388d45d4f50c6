"""Relations: pairs of computations that give the same numbers.

Each relation draws what it needs and returns two arrays. They are equal
up to rounding in `test_model.py`, to the last bit in `test_exact.py`.
"""

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.config import FrameInput
from refseq2seq.testing import strategies


def chunks(data, model):
    """The target decoded in pieces with a cache, and in one without."""
    source, target = _batch(data, model)
    n = target.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(0, n), max_size=3)) | {0, n})
    memory = rs.encode(model, *source)
    cache = rs.new_cache(model, source.batch, capacity=n + data.draw(st.integers(0, 3)))
    pieces = [rs.decode(model, target[:, a:b], memory, cache=cache) for a, b in pairwise(cuts)]
    return np.concatenate(pieces, axis=1), rs.decode(model, target, memory)


def later_tokens(data, model):
    """Logits before a position, with other tokens after it, and with none."""
    source, target = _batch(data, model)
    place = data.draw(st.integers(1, target.shape[1]))
    other = data.draw(strategies.targets(model, source.batch))
    changed = np.concatenate([target[:, :place], other], axis=1)
    memory = rs.encode(model, *source)
    seen = rs.decode(model, changed[:, : target.shape[1] + 3], memory)[:, :place]
    return seen, rs.decode(model, target[:, :place], memory)


def masked_tokens(data, model):
    """Other numbers in the masked positions."""
    source, target = _batch(data, model)
    n = max(len(row) for row in source.rows) + 3
    real = np.arange(n) < np.array([[len(row)] for row in source.rows])
    tokens, other = (_filled(source, real, data.draw(st.integers(-3, 99))) for _ in range(2))
    return rs.forward(model, tokens, target, real), rs.forward(model, other, target, real)


def padding(data, model):
    """The source with padding on the left, on the right and between, and without.

    The padding of frames is on the right.
    """
    source, target = _batch(data, model)
    n = max(len(row) for row in source.rows) + data.draw(st.integers(1, 4))
    mask = np.zeros((source.batch, n), dtype=bool)
    for row, tokens in zip(mask, source.rows, strict=True):
        places = data.draw(st.permutations(range(n)))
        is_frames = isinstance(model.config.encoder.input, FrameInput)
        row[range(len(tokens)) if is_frames else places[: len(tokens)]] = True
    tokens = _filled(source, mask, 0)
    unpadded = [rs.forward(model, [row], target[i : i + 1]) for i, row in enumerate(source.rows)]
    return rs.forward(model, tokens, target, mask), np.concatenate(unpadded)


def alone(data, model):
    """A row alone, and in a batch."""
    source, target = _batch(data, model)
    row = data.draw(st.integers(0, source.batch - 1))
    by_itself = rs.forward(model, [source.rows[row]], target[row : row + 1])
    return by_itself[0], rs.forward(model, source.tokens, target, source.mask)[row]


def order(data, model):
    """The rows of a batch in another order."""
    source, target = _batch(data, model)
    order = data.draw(st.permutations(range(source.batch)))
    shuffled = rs.forward(model, [source.rows[i] for i in order], target[order])
    return shuffled, rs.forward(model, source.tokens, target, source.mask)[order]


ALL = [chunks, later_tokens, masked_tokens, padding, alone, order]


def _batch(data, model):
    source = data.draw(strategies.sources(model), label="source")
    return source, data.draw(strategies.targets(model, source.batch), label="target")


def _filled(source, mask, filler):
    """The source's rows where the mask is True, and a number elsewhere."""
    real = np.concatenate([np.array(row) for row in source.rows])
    tokens = np.full((*mask.shape, *real.shape[1:]), filler, real.dtype)
    tokens[mask] = real
    return tokens
