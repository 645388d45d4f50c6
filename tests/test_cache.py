"""The key-value cache."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming

from refseq2seq.attention import KeyValueCache


def numbered(batch, n, start=0.0, dtype="float64"):
    """Keys (batch, 2, n, 3) and values (batch, 2, n, 5), no two entries alike."""
    keys = start + np.arange(batch * 2 * n * 3, dtype=dtype).reshape(batch, 2, n, 3)
    values = start + np.arange(batch * 2 * n * 5, dtype=dtype).reshape(batch, 2, n, 5)
    return keys, -values


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(lengths=st.lists(st.integers(0, 3), max_size=4), spare=st.integers(0, 2))
def test_append_returns_all_that_was_appended(dtype, lengths, spare):
    cache = KeyValueCache(2, 2, sum(lengths) + spare, 3, 5, like=np.zeros(0, dtype))
    parts = [numbered(2, n, 100.0 * i, dtype) for i, n in enumerate(lengths)]
    for i, (keys, values) in enumerate(parts, start=1):
        all_keys, all_values = cache.append(keys, values)
        assert all_keys.dtype == all_values.dtype == dtype
        np.testing.assert_array_equal(all_keys, np.concatenate([k for k, _ in parts[:i]], axis=2))
        np.testing.assert_array_equal(all_values, np.concatenate([v for _, v in parts[:i]], axis=2))
        assert cache.length == sum(lengths[:i])
    assert cache.capacity == sum(lengths) + spare


def test_appended_arrays_are_copied():
    cache = KeyValueCache(1, 2, 1, 3, 5, like=np.zeros(0))
    keys, values = numbered(1, 1)
    all_keys, all_values = cache.append(keys, values)
    keys[:], values[:] = 7, 7
    np.testing.assert_array_equal(all_keys, numbered(1, 1)[0])
    np.testing.assert_array_equal(all_values, numbered(1, 1)[1])


@given(rows=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_reorder_gives_rows_that_append_continues(rows):
    cache = KeyValueCache(3, 2, 4, 3, 5, like=np.zeros(0))
    keys, values = numbered(3, 2)
    cache.append(keys, values)
    cache.reorder(np.array(rows))
    more_keys, more_values = numbered(3, 1, 500.0)
    all_keys, all_values = cache.append(more_keys, more_values)
    np.testing.assert_array_equal(all_keys[:, :, :2], keys[rows])
    np.testing.assert_array_equal(all_keys[:, :, 2:], more_keys)
    np.testing.assert_array_equal(all_values[:, :, :2], values[rows])
    np.testing.assert_array_equal(all_values[:, :, 2:], more_values)


def test_append_over_the_capacity_raises_and_changes_nothing():
    cache = KeyValueCache(1, 2, 3, 3, 5, like=np.zeros(0))
    cache.append(*numbered(1, 2))
    with raises_naming(ValueError, "2 of at most 3 tokens", "2 more"):
        cache.append(*numbered(1, 2))
    assert cache.length == 2
    assert cache.append(*numbered(1, 1))[0].shape == (1, 2, 3, 3)
