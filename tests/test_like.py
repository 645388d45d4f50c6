"""The peers' pipelines: order, ties and boundaries, as x-transformers 2.31.10 and transformers
5.24 have them; tests/peers/test_filters.py runs both.
"""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming

import refseq2seq as rs
from refseq2seq import like


def run(chooser, scores):
    """The scores that the chooser picks from."""
    scores = np.asarray(scores)
    for process in chooser.processors:
        scores = process(scores, None)
    return scores


def kept(chooser, scores):
    return [np.flatnonzero(row > -math.inf).tolist() for row in run(chooser, scores)]


def x_transformers(name, **filter_kwargs):
    return like.x_transformers(filter_logits_fn=name, filter_kwargs=filter_kwargs)


def huggingface(**options):
    """With no filter but those that are named."""
    return like.huggingface(**({"do_sample": True, "top_k": 0} | options))


def normal(seed, vocab_size=23, dtype="float64"):
    return np.random.default_rng(seed).standard_normal((3, vocab_size)).astype(dtype)


UNIFORM = np.zeros((1, 4))
# in float32 its softmax is exactly 1/2, 1/4, 1/8, 1/8
HALVES = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], dtype="float32"))


# Where the peers differ --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chooser", "of_uniform", "of_halves"),
    [
        (x_transformers("top_p", thres=0.5), [0, 1, 2], [0, 1]),  # one more at a sum of exactly p
        (x_transformers("top_p", thres=0.4999999), [0, 1], [0]),
        (huggingface(top_p=0.5), [2, 3], [0]),  # of equal scores the highest ids
        (huggingface(top_p=0.5000001), [1, 2, 3], [0, 1]),
        (rs.greedy(rs.top_p(0.5)), [0, 1], [0]),
    ],
)
def test_top_p_at_a_sum_of_exactly_p_and_beside_it(chooser, of_uniform, of_halves):
    assert kept(chooser, UNIFORM) == [of_uniform]
    assert kept(chooser, HALVES) == [of_halves]


def test_sums_are_rounded_to_the_dtype_of_the_scores():
    # a tenth in float32 is .100000001: five are .5 once rounded, nine .90000004 and .9 .89999998
    ten = np.zeros((1, 10), dtype="float32")
    assert len(kept(x_transformers("top_p", thres=0.5), ten)[0]) == 6
    assert len(kept(x_transformers("top_p", thres=0.9), ten)[0]) == 9
    assert len(kept(x_transformers("top_p", thres=0.9), ten.astype("float64"))[0]) == 10
    assert kept(huggingface(top_p=1 / 3), ten[:, :3]) == [[2]]


def test_top_p_of_0_and_of_1():
    assert kept(x_transformers("top_p", thres=0), [[1.0, 3.0, 2.0]]) == [[1]]
    assert kept(x_transformers("top_p", thres=1), [[1.0, 3.0, 2.0]]) == [[0, 1, 2]]
    assert kept(huggingface(top_p=0), [[1.0, 3.0, 2.0]]) == [[1]]
    assert kept(huggingface(top_p=1), [[1.0, 3.0, 2.0]]) == [[0, 1, 2]]


def test_top_k_with_equal_scores():
    assert kept(x_transformers("top_k", k=2), UNIFORM) == [[0, 1]]
    assert kept(huggingface(top_k=2), UNIFORM) == [[0, 1, 2, 3]]
    assert kept(huggingface(top_k=2), [[1.0, 0.0, 2.0, 1.0]]) == [[0, 2, 3]]
    assert kept(huggingface(typical_p=0.5), UNIFORM) == [[0, 1, 2, 3]]


def test_huggingface_rounds_to_float32():
    nearly_equal = np.array([[1.0, 1.0 + 1e-9, 0.0]])
    for chooser in (like.huggingface(), huggingface(), huggingface(top_k=1)):
        assert run(chooser, nearly_equal).dtype == np.float32
    assert like.huggingface().pick(run(like.huggingface(), nearly_equal), None).tolist() == [0]
    assert kept(huggingface(top_k=1), nearly_equal) == [[0, 1]]
    assert run(huggingface(), nearly_equal.astype("float16")).dtype == np.float32


@pytest.mark.parametrize("name", ["top_k", "top_p", "top_a", "min_p"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_x_transformers_keeps_the_dtype(name, dtype):
    assert run(x_transformers(name), normal(0, dtype=dtype)).dtype == dtype


# Order and defaults ------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), t=st.sampled_from([0.5, 1.0, 3.0]))
def test_x_transformers_filters_and_then_divides(seed, t):
    scores = normal(seed)
    for name, kwargs, processor in (
        ("top_k", {}, rs.top_fraction(0.1)),
        ("top_k", {"frac_num_tokens": 0.3}, rs.top_fraction(0.3)),
        ("top_k", {"frac_num_tokens": 1}, rs.top_fraction(1.0)),
        ("top_k", {"k": 5}, rs.top_k(5)),
        ("top_k", {"k": 5, "frac_num_tokens": 0.3}, rs.top_k(5)),
        ("top_p", {}, rs.top_p(0.9)),
        ("top_p", {"thres": 0.3}, rs.top_p(0.3)),
        ("top_a", {}, rs.top_a(0.02, 2)),
        ("top_a", {"min_p_ratio": 0.5, "min_p_pow": 1.5}, rs.top_a(0.5, 1.5)),
        ("min_p", {}, rs.min_p(0.1)),
        ("min_p", {"min_p": 0.4}, rs.min_p(0.4)),
    ):
        chooser = like.x_transformers(temperature=t, filter_logits_fn=name, filter_kwargs=kwargs)
        np.testing.assert_array_equal(run(chooser, scores), processor(scores, None) / t)
        assert chooser.pick is rs.sample().pick


def test_x_transformers_keeps_a_tenth_by_default():
    for vocab_size, count in ((7, 1), (10, 1), (11, 2), (23, 3), (70, 7)):
        ids = kept(like.x_transformers(), normal(0, vocab_size))
        assert [len(row) for row in ids] == [count] * 3


def test_x_transformers_takes_a_processor():
    chooser = like.x_transformers(filter_logits_fn=rs.top_k(3), temperature=2.0)
    np.testing.assert_array_equal(run(chooser, normal(0)), rs.top_k(3)(normal(0), None) / 2)


def test_at_temperature_0_x_transformers_is_greedy():
    for name in ("top_k", "top_p"):
        assert like.x_transformers(temperature=0, filter_logits_fn=name) == rs.greedy()
    assert like.x_transformers(temperature=0.0) == rs.greedy()


@given(seed=st.integers(0, 2**32), t=st.sampled_from([0.5, 1, 3.0]))
def test_huggingface_divides_and_then_filters(seed, t):
    scores = normal(seed, vocab_size=61, dtype="float32")

    def by_hand(*processors):
        expected = scores / np.float32(t)
        for process in processors:
            expected = process(expected, None)
        return expected

    for options, expected in (
        ({}, by_hand()),
        ({"top_k": 5}, by_hand(rs.top_k(5))),
        ({"top_k": 100}, by_hand()),
        ({"top_p": 0.7}, by_hand(rs.top_p(0.7))),
        ({"min_p": 0.3}, by_hand(rs.min_p(0.3))),
        (
            {"top_k": 7, "top_p": 0.7, "min_p": 0.3},
            by_hand(rs.top_k(7), rs.top_p(0.7), rs.min_p(0.3)),
        ),
    ):
        chooser = huggingface(temperature=t, **options)
        np.testing.assert_array_equal(run(chooser, scores), expected)
        assert chooser.pick is rs.sample().pick


def test_huggingface_is_greedy_by_default_and_keeps_50_when_it_samples():
    greedy = like.huggingface(temperature=0.5, top_p=0.5)
    assert greedy.pick is rs.greedy().pick
    np.testing.assert_array_equal(run(greedy, normal(0)), normal(0).astype("float32"))
    ids = kept(like.huggingface(do_sample=True), normal(0, vocab_size=61))
    assert [len(row) for row in ids] == [50] * 3


@pytest.mark.parametrize("make", [like.x_transformers, partial(like.huggingface, do_sample=True)])
def test_pick_may_be_an_exponential_race(make):
    race = partial(rs.exponential_race, np.ones((2, 1, 4)))
    chooser = make(pick=race)
    assert chooser.pick is not rs.sample().pick
    assert len(chooser.processors) == len(make().processors)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (lambda: x_transformers("top_h"), ValueError, ["filter_logits_fn", "'top_k'", "top_h"]),
        (lambda: x_transformers(None), ValueError, ["filter_logits_fn", "None"]),
        (lambda: x_transformers("top_p", p=0.9), TypeError, ["'p'"]),
        (lambda: x_transformers(rs.top_k(3), k=3), TypeError, ["filter_kwargs"]),
        (lambda: x_transformers("top_p", thres=1.1), ValueError, ["top_p's thres", "[0, 1]"]),
        (lambda: x_transformers("top_p", thres=math.nan), ValueError, ["top_p's thres"]),
        (lambda: x_transformers("top_p", thres="1"), TypeError, ["top_p's thres"]),
        (lambda: x_transformers("top_k", k=0), ValueError, ["top_k's k"]),
        (lambda: x_transformers("top_k", k=0.5), TypeError, ["top_k's k"]),
        (lambda: x_transformers("top_k", frac_num_tokens=0), ValueError, ["top_fraction"]),
        (lambda: x_transformers("top_k", frac_num_tokens=2), ValueError, ["top_fraction"]),
        (lambda: x_transformers("top_a", min_p_ratio=2), ValueError, ["top_a's ratio"]),
        (lambda: x_transformers("top_a", min_p_pow=0.5), ValueError, ["top_a's power"]),
        (lambda: x_transformers("min_p", min_p=-1), ValueError, ["min_p's ratio"]),
        (lambda: like.x_transformers(temperature=-1), ValueError, ["temperature", "(0, inf)"]),
        (lambda: like.x_transformers(temperature=math.nan), ValueError, ["temperature"]),
        (lambda: huggingface(temperature=0), ValueError, ["temperature", "(0, inf)"]),
        (lambda: huggingface(top_k=-1), ValueError, ["top_k's k"]),
        (lambda: huggingface(top_p=1.1), ValueError, ["top_p", "[0, 1]", "1.1"]),
        (lambda: huggingface(top_p=-0.1), ValueError, ["top_p", "[0, 1]"]),
        (lambda: huggingface(top_p=math.nan), ValueError, ["top_p", "[0, 1]"]),
        (lambda: huggingface(min_p=1.1), ValueError, ["min_p's ratio"]),
    ],
)
def test_a_bad_option_raises(make, kind, names):
    with raises_naming(kind, *names):
        make()
