"""Masks: True = may attend."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refseq2seq.config import WindowConfig
from refseq2seq.masks import causal_mask, padding_mask, real_positions, window_mask

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=7))
positions = st.integers(0, 9)


@given(start=st.integers(0, 5), n_q=st.integers(1, 5), n_k=st.integers(1, 9))
def test_causal_mask_hides_later_keys(start, n_q, n_k):
    mask = causal_mask(np.arange(start, start + n_q), np.arange(n_k))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[k <= start + q for k in range(n_k)] for q in range(n_q)]


def test_a_window_by_hand():
    """A query at position 3 of two rows; the second row's keys begin with two of padding."""
    keys = np.array([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]])
    mask = window_mask(np.array([[3], [3]]), keys, WindowConfig(back=1, ahead=1))
    assert mask.shape == (2, 1, 1, 6)
    assert mask[0, 0, 0].tolist() == [False, False, True, True, True, False]
    assert mask[1, 0, 0].tolist() == [False, False, False, False, True, True]


@given(data=st.data(), back=st.integers(0, 4), ahead=st.integers(0, 4), batch=st.integers(0, 2))
def test_a_window_hides_what_is_farther(data, back, ahead, batch):
    """For any positions, of one sequence (batch 0) or of several."""
    leading = (batch,) if batch else ()
    q, k = (
        data.draw(arrays(np.int64, (*leading, data.draw(st.integers(1, 5))), elements=positions))
        for _ in range(2)
    )
    mask = window_mask(q, k, WindowConfig(back=back, ahead=ahead))
    assert mask.dtype == np.bool_
    assert mask.shape == (*leading, 1, q.shape[-1], k.shape[-1])
    for row in np.ndindex(leading):
        seen = [[i - back <= j <= i + ahead for j in k[row].tolist()] for i in q[row].tolist()]
        assert mask[(*row, 0)].tolist() == seen


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
