"""Token ids and masks as users give them."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming

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
def test_a_batch_may_be_tuples_arrays_or_of_any_integer_dtype(rows):
    ids, mask = as_tokens("source", rows, 11)
    others = [
        tuple(map(tuple, rows)),
        [np.array(row) for row in rows],
        [np.array(row, dtype=np.uint8) for row in rows],
        [[np.int32(token) for token in row] for row in rows],
    ]
    assert as_tokens("source", [range(3)], 11)[0].tolist() == [[0, 1, 2]]
    for other in others:
        other_ids, other_mask = as_tokens("source", other, 11)
        np.testing.assert_array_equal(other_ids, ids)
        np.testing.assert_array_equal(other_mask, mask)
    for dtype in np.uint8, np.int16, np.int32, np.int64, np.uint64:
        other_ids, other_mask = as_tokens("source", ids.astype(dtype), 11, mask)
        assert other_ids.dtype == np.int64
        np.testing.assert_array_equal(other_ids, ids)
        np.testing.assert_array_equal(other_mask, mask)


def test_masked_places_may_hold_anything():
    ids, mask = as_tokens("source", [[3, -100], [99, 4]], 11, [[True, False], [False, True]])
    assert ids.tolist() == [[3, 0], [0, 4]]
    assert mask.tolist() == [[True, False], [False, True]]


def test_the_array_given_is_not_changed():
    given_ids, given_mask = np.array([[3, 99]]), np.array([[True, False]])
    ids, _ = as_tokens("source", given_ids, 11, given_mask)
    ids[:] = 0
    assert given_ids.tolist() == [[3, 99]]
    assert given_mask.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("tokens", "mask", "kind", "names"),
    [
        ([[11]], None, ValueError, ["source", "11", "row 0, position 0", "0 to 10"]),
        ([[1, 2], [3, -1]], None, ValueError, ["-1", "row 1, position 1"]),
        ([[1], [3, 12]], None, ValueError, ["12", "row 1, position 1"]),
        ([[2**63]], None, ValueError, [2**63, "row 0, position 0"]),
        ([[2**64]], None, TypeError, ["source", "dtype object"]),
        ([[1.0]], None, TypeError, ["source", "dtype float64"]),
        ([[1], [2, 3.5]], None, TypeError, ["dtype float64"]),
        ([[True]], None, TypeError, ["dtype bool"]),
        ([["a"]], None, TypeError, ["integer token ids"]),
        ([[None]], None, TypeError, ["dtype object"]),
        (np.array([[np.nan]]), None, TypeError, ["dtype float64"]),
        ([], None, ValueError, ["source is empty"]),
        (np.zeros((0, 3), int), None, ValueError, ["source is empty", "(0, 3)"]),
        (np.zeros((3, 0), int), None, ValueError, ["source is empty", "(3, 0)"]),
        ([[1], []], None, ValueError, ["source row 1 is empty"]),
        ([1, 2], None, ValueError, ["source", "[1, 2]"]),
        (["ab"], None, ValueError, ["source", "ab"]),
        ("ab", None, TypeError, ["source", "str"]),
        (None, None, ValueError, ["source", "got ()"]),
        (np.array([1, 2]), None, ValueError, ["source", "(batch, n)", "got (2,)"]),
        (np.ones((1, 2, 3), int), None, ValueError, ["got (1, 2, 3)"]),
        ([[[1], [2]], [[3]]], None, ValueError, ["source"]),
        ([[1, 2]], [[1, 0]], TypeError, ["source_mask", "int64", "mask.astype(bool)"]),
        ([[1, 2]], [[1.0, 0.0]], TypeError, ["source_mask", "float64"]),
        ([[1, 2]], [True, False], ValueError, ["source_mask", "(1, 2)", "got (2,)"]),
        ([[1, 2]], [[True]], ValueError, ["source_mask", "(1, 2)", "got (1, 1)"]),
        ([[1], [2, 3]], [[True, False], [True, True]], ValueError, ["source_mask", "lists"]),
        (list(range(100_000)), None, ValueError, ["..."]),
    ],
)
def test_tokens_of_another_shape_type_or_range_raise(tokens, mask, kind, names):
    with raises_naming(kind, *names) as caught:
        as_tokens("source", tokens, 11, mask)
    assert len(str(caught.value)) < 200


MASKED = np.ma.masked_equal(np.array([[4, 5, 0]]), 0)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("source", partial(rs.encode, source=MASKED)),
        ("source", partial(rs.encode, source=np.ma.masked_array([[4, 5, 6]]))),
        ("source", partial(rs.encode, source=[MASKED[0]])),
        ("source_mask", partial(rs.encode, source=[[4, 5, 6]], source_mask=np.ma.ones((1, 3)))),
        ("source", partial(rs.generate, source=MASKED)),
        ("target", partial(rs.forward, source=[[4]], target=MASKED)),
        ("prefix", partial(rs.generate, source=[[4]], prefix=MASKED)),
        ("target", partial(rs.score, source=[[4]], target=MASKED)),
    ],
)
def test_a_masked_array_raises(name, call):
    """Its mask would be lost, and what it hides would be read."""
    with raises_naming(TypeError, f"{name} is a masked array", "_mask=~np"):
        call(rs.load("g2p"))
