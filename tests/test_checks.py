"""Token ids and masks as users give them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.checks import as_tokens

ragged = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=5), min_size=1, max_size=4)


@given(rows=ragged)
def test_ragged_lists_are_padded_on_the_right_and_masked(rows):
    ids, mask = as_tokens("source", rows, 11)
    lengths = [len(row) for row in rows]
    assert ids.dtype == np.int64
    assert ids.shape == (len(rows), max(lengths))
    assert mask.sum(axis=1).tolist() == lengths
    for row, row_ids, row_mask in zip(rows, ids, mask, strict=True):
        assert row_ids[: len(row)].tolist() == row
        assert row_mask[: len(row)].all()
        assert not row_ids[len(row) :].any()


@given(rows=ragged)
def test_every_way_to_write_a_batch_is_the_same(rows):
    ids, mask = as_tokens("source", rows, 11)
    others = [
        tuple(map(tuple, rows)),
        [np.array(row) for row in rows],
        [np.array(row, dtype=np.uint8) for row in rows],
        [[np.int32(token) for token in row] for row in rows],
    ]
    for other in others:
        other_ids, other_mask = as_tokens("source", other, 11)
        np.testing.assert_array_equal(other_ids, ids)
        np.testing.assert_array_equal(other_mask, mask)
    for dtype in np.uint8, np.int16, np.int32, np.int64, np.uint64:
        other_ids, other_mask = as_tokens("source", ids.astype(dtype), 11, mask)
        assert other_ids.dtype == np.int64
        np.testing.assert_array_equal(other_ids, ids)
        np.testing.assert_array_equal(other_mask, mask)


def test_a_range_is_a_row():
    assert as_tokens("source", [range(3)], 11)[0].tolist() == [[0, 1, 2]]


def test_masked_places_may_hold_anything():
    ids, mask = as_tokens("source", [[3, -100], [99, 4]], 11, [[True, False], [False, True]])
    assert ids.tolist() == [[3, 0], [0, 4]]
    assert mask.tolist() == [[True, False], [False, True]]


def test_what_is_given_is_kept():
    given_ids, given_mask = np.array([[3, 99]]), np.array([[True, False]])
    ids, _ = as_tokens("source", given_ids, 11, given_mask)
    ids[:] = 0
    assert given_ids.tolist() == [[3, 99]]
    assert given_mask.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("tokens", "mask", "error", "message"),
    [
        ([[11]], None, ValueError, "source holds token id 11 at row 0, position 0;.* ids 0 to 10"),
        ([[1, 2], [3, -1]], None, ValueError, "token id -1 at row 1, position 1"),
        ([[1], [3, 12]], None, ValueError, "token id 12 at row 1, position 1"),
        ([[2**63]], None, ValueError, "token id 9223372036854775808 at row 0, position 0"),
        ([[2**64]], None, TypeError, "source must hold integer token ids, got dtype object"),
        ([[1.0]], None, TypeError, "source must hold integer token ids, got dtype float64"),
        ([[1], [2, 3.5]], None, TypeError, "integer token ids, got dtype float64"),
        ([[True]], None, TypeError, "integer token ids, got dtype bool"),
        ([["a"]], None, TypeError, "integer token ids"),
        ([[None]], None, TypeError, "integer token ids, got dtype object"),
        (np.array([[np.nan]]), None, TypeError, "integer token ids, got dtype float64"),
        ([], None, ValueError, "source is empty"),
        (np.zeros((0, 3), int), None, ValueError, r"source is empty: its shape is \(0, 3\)"),
        (np.zeros((3, 0), int), None, ValueError, r"source is empty: its shape is \(3, 0\)"),
        ([[1], []], None, ValueError, "source row 1 is empty"),
        ([1, 2], None, ValueError, r"one list of token ids per row.*got \[1, 2\]"),
        (["ab"], None, ValueError, "one list of token ids per row.*got"),
        ("ab", None, TypeError, "source must hold token ids, got a str"),
        (None, None, ValueError, r"source must have shape \(batch, n\), got \(\)"),
        (np.array([1, 2]), None, ValueError, r"source must have shape \(batch, n\), got \(2,\)"),
        (np.ones((1, 2, 3), int), None, ValueError, r"must have shape.*got \(1, 2, 3\)"),
        ([[[1], [2]], [[3]]], None, ValueError, "one list of token ids per row"),
        ([[1, 2]], [[1, 0]], TypeError, r"source_mask must be boolean.*int.*mask.astype\(bool\)"),
        ([[1, 2]], [[1.0, 0.0]], TypeError, "source_mask must be boolean"),
        ([[1, 2]], [True, False], ValueError, r"tokens' shape \(1, 2\), got \(2,\)"),
        ([[1, 2]], [[True]], ValueError, r"tokens' shape \(1, 2\), got \(1, 1\)"),
        ([[1], [2, 3]], [[True, False], [True, True]], ValueError, "lists of different lengths"),
    ],
)
def test_what_is_no_batch_of_tokens_is_refused(tokens, mask, error, message):
    with pytest.raises(error, match=message):
        as_tokens("source", tokens, 11, mask)


def test_errors_are_short():
    with pytest.raises(ValueError, match=r"\.\.\.$") as caught:
        as_tokens("source", list(range(100_000)), 11)
    assert len(str(caught.value)) < 200


def test_a_masked_array_is_refused_with_the_cure():
    """Its mask would be lost, and what it hides would be read."""
    model = rs.load("g2p")
    masked = np.ma.masked_equal(np.array([[4, 5, 0]]), 0)
    whole = np.ma.masked_array([[4, 5, 6]])
    mask = np.ma.masked_array([[True, True, False]])
    for source, source_mask in (
        (masked, None),
        (whole, None),
        ([masked[0]], None),
        ([[4, 5, 6]], mask),
    ):
        for call in (rs.encode, lambda m, s, k: rs.generate(m, s, source_mask=k)):
            with pytest.raises(TypeError, match=r"^source(_mask)? is a masked array.*_mask=~np"):
                call(model, source, source_mask)
    with pytest.raises(TypeError, match="target is a masked array"):
        rs.forward(model, [[4]], masked)
    with pytest.raises(TypeError, match="prefix is a masked array"):
        rs.generate(model, [[4]], prefix=masked)
    with pytest.raises(TypeError, match="target is a masked array"):
        rs.score(model, [[4]], masked)
