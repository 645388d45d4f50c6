"""Masks: True = may attend."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refseq2seq.masks import causal_mask, padding_mask, real_positions

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=7))


@given(start=st.integers(0, 5), n_q=st.integers(1, 5), n_k=st.integers(1, 9))
def test_causal_mask_hides_later_keys(start, n_q, n_k):
    mask = causal_mask(np.arange(start, start + n_q), np.arange(n_k))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[k <= start + q for k in range(n_k)] for q in range(n_q)]


@given(mask=masks)
def test_a_padding_mask_is_one_for_all_heads_and_queries(mask):
    batch, n = mask.shape
    scores = np.broadcast_to(padding_mask(mask), (batch, 3, 5, n))
    for head, query in np.ndindex(3, 5):
        np.testing.assert_array_equal(scores[:, head, query], mask)


@given(mask=masks)
def test_real_positions_count_real_tokens(mask):
    positions = real_positions(mask)
    assert positions.shape == mask.shape
    for row, real in zip(positions, mask, strict=True):
        assert row[real].tolist() == list(range(real.sum()))
        assert all(0 <= p < max(real.sum(), 1) for p in row.tolist())
