"""Scores of given targets: the sums that greedy decoding, sampling and beam search report."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_beam import tiny

import refseq2seq as rs

SOURCE = [[3, 4, 5], [6, 2]]


@given(seed=st.integers(0, 99), n=st.integers(1, 6))
@settings(max_examples=15)
def test_what_was_sampled_scores_what_it_said(seed, n):
    model = tiny(seed, 7)
    out = rs.generate(model, SOURCE, choose=rs.sample(), seed=seed, max_new_tokens=n)
    rows = zip(out.tokens.tolist(), out.lengths, strict=True)
    scores = rs.score(model, SOURCE, [[1, *tokens[:k]] for tokens, k in rows])
    assert scores.lengths.tolist() == out.lengths.tolist()
    np.testing.assert_allclose(scores.log_probs, out.log_probs, rtol=1e-11, equal_nan=False)
    np.testing.assert_allclose(scores.total, out.log_probs.sum(axis=1), rtol=1e-11)


def test_a_hypothesis_scores_its_sum_over_its_penalty():
    model = tiny(4, 7)
    out = rs.beam_search(model, SOURCE, beams=3, length_penalty=0.7, max_new_tokens=6)
    target = [[1, *out.tokens[row, 0, : out.lengths[row, 0]]] for row in range(2)]
    scores = rs.score(model, SOURCE, target)
    expected = scores.total / scores.lengths**0.7
    np.testing.assert_allclose(out.scores[:, 0], expected, rtol=1e-11, equal_nan=False)


def test_all_targets_of_a_length_share_one_unit_of_probability():
    model = tiny(2, 3, eos_ids=())
    targets = [[1, a, b] for a in range(3) for b in range(3)]
    total = rs.score(model, [[3, 4]] * 9, targets).total
    assert np.exp(total).sum() == pytest.approx(1, rel=1e-12)


def test_padding_is_not_scored():
    model = tiny(0, 7)
    both = rs.score(model, SOURCE, [[1, 3, 4, 5], [1, 6]])
    alone = rs.score(model, SOURCE[1:], [[1, 6]])
    assert both.lengths.tolist() == [3, 1]
    assert (both.log_probs[1, 1:] == 0).all()
    assert both.total[1] == pytest.approx(alone.total[0], rel=1e-12)


def test_a_target_needs_a_token_to_score():
    with pytest.raises(ValueError, match="a token after its first"):
        rs.score(tiny(0), [[3]], [[1]])
