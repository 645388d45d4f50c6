"""Rows of scores to filter and to choose from, and slow implementations that tests share."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refseq2seq as rs

ALMOST_1 = math.nextafter(1, 0)


def state(*, uniforms=None, n_new=0, emitted=True, batch=1):
    """What a chooser sees beside the scores; ``batch`` rows alike where arrays are not given."""
    n_new = np.broadcast_to(n_new, (batch,)) if np.ndim(n_new) == 0 else np.asarray(n_new)
    return rs.State(
        tokens=np.zeros((len(n_new), 1), dtype=np.int64),
        n_new=n_new,
        emitted=np.broadcast_to(emitted, n_new.shape),
        source_index=np.arange(len(n_new)),
        source=np.zeros((len(n_new), 1), dtype=np.int64),
        source_mask=np.ones((len(n_new), 1), dtype=bool),
        uniforms=lambda: np.asarray(uniforms, dtype=np.float64),
    )


def run(processor, scores):
    """The processor's scores, of read-only input."""
    scores.flags.writeable = False
    return processor(scores, state(batch=len(scores)))


def kept(processor, scores):
    """The ids, row by row, that the processor leaves."""
    return [np.flatnonzero(row > -math.inf).tolist() for row in run(processor, scores)]


def logs(*probs, dtype="float64"):
    """One row of scores whose softmax is ``probs``, up to rounding."""
    return np.log(np.array([probs], dtype=dtype))


@st.composite
def score_rows(draw, dtype="float64", min_vocab=1):
    """(batch, vocab_size), with ties, with tokens removed already, never a whole row of them."""
    shape = draw(st.integers(1, 3)), draw(st.integers(min_vocab, 11))
    few = st.sampled_from([-math.inf, -3.0, 0.0, 0.5, 2.0])
    any_finite = st.floats(-30, 30, width=np.dtype(dtype).itemsize * 8)
    scores = draw(hnp.arrays(dtype, shape, elements=few | any_finite, fill=st.nothing()))
    scores[:, draw(st.integers(0, shape[1] - 1))] = draw(st.sampled_from([0.0, 2.0]))
    return scores


def distinct_scores(seed, batch=2, vocab_size=11):
    """Normal scores: no ties, and no sum of probabilities at a boundary."""
    return 2 * np.random.default_rng(seed).standard_normal((batch, vocab_size))


def softmax_in_base_two(x):
    """A softmax in base 2, which is exact on the scores of `halvings`."""
    weights = np.exp2(x)
    return weights / weights.sum(axis=-1, keepdims=True)


@st.composite
def halvings(draw):
    """One row of integer scores s with sum(2 ** s) = 1: the base 2 logarithms of probabilities.

    A whole is cut in half, then one of its parts, and so on. Every sum of the parts is
    exact in floating point.
    """
    scores = [0]
    for cut in draw(st.lists(st.integers(0, 30), max_size=12)):
        scores += [scores.pop(cut % len(scores)) - 1] * 2
    removed = draw(st.integers(0, 2))
    shuffled = draw(st.permutations(scores + [-math.inf] * removed))
    return np.array([shuffled], dtype=np.float64)


def exact_probs(row):
    """The fractions that a row of `halvings` stands for."""
    return [Fraction(2) ** int(s) if s > -math.inf else Fraction(0) for s in row]


def best_first(weights):
    """Ids, the largest weight first, the lowest id first among equals."""
    return sorted(range(len(weights)), key=lambda i: (-weights[i], i))


def slow_inverse_cdf(probs, u):
    """The first token at which the sum of probabilities exceeds ``u``."""
    last = max(i for i, q in enumerate(probs) if q)  # the sum may fall short of 1
    return next((i for i in range(last) if math.fsum(probs[: i + 1]) > u), last)


def slow_softmax(row):
    """One exponential after the other, and their exact sum."""
    weights = [math.exp(x - max(row)) for x in row]
    return [w / math.fsum(weights) for w in weights]
