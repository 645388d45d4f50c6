"""Attention: by hand, its invariances, and each addition of the config."""

import dataclasses
import math

import numpy as np
import pytest
from close import assert_close
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import refseq2seq as rs
from refseq2seq.attention import (
    CrossContext,
    SelfContext,
    attend,
    attention,
    cross_attention,
    keys_values,
    merge_heads,
    queries,
    self_attention,
    split_heads,
)
from refseq2seq.params import AttentionParams
from refseq2seq.presets import plain_attention

U = 2.0**-53
numbers = st.floats(-9, 9)


@st.composite
def qkv(draw, n_k=None):
    """Queries (n_q, 3), keys (n_k, 3) and values (n_k, 2), all up to 9."""
    n_q, n_k = draw(st.integers(1, 3)), n_k or draw(st.integers(1, 5))
    shapes = ((n_q, 3), (n_k, 3), (n_k, 2))
    return tuple(draw(arrays(np.float64, shape, elements=numbers)) for shape in shapes)


# attention


def test_attention_by_hand():
    """Scores log 1, log 2, log 5 give weights 1/8, 2/8, 5/8; without the last, 1/3 and 2/3."""
    q = np.array([[1.0, 0.0]])
    k = np.array([[math.log(1) / 2, 9.0], [math.log(2) / 2, 7.0], [math.log(5) / 2, -3.0]])
    v = np.array([[8.0, 0.0], [0.0, 16.0], [-8.0, 24.0]])
    assert_close(attention(q, k, v, scale=2.0), [[-4.0, 19.0]], 64 * U)
    mask = np.array([[True, True, False]])
    assert_close(attention(q, k, v, scale=2.0, mask=mask), [[8 / 3, 32 / 3]], 64 * U)
    # A bias of log 5 on the first key makes the weights 5/12, 2/12, 5/12.
    bias = np.array([[math.log(5), 0.0, 0.0]])
    assert_close(attention(q, k, v, scale=2.0, bias=bias), [[0.0, 38 / 3]], 64 * U)


def test_the_scale_multiplies_the_scores_and_not_the_bias():
    q = k = np.ones((1, 5))
    trace = rs.Trace()
    attention(q, k, k, scale=1 / math.sqrt(5), tap=trace)
    assert_close(trace["scores"], [[math.sqrt(5)]], 4 * U)
    trace = rs.Trace()
    attention(q, k, k, scale=0.5, bias=np.array([[7.0]]), tap=trace)
    assert trace["scores"].tolist() == [[9.5]]


@given(qkv=qkv(), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_attention_stays_in_the_convex_hull_of_the_values(qkv, scale):
    q, k, v = qkv
    heads = attention(q, k, v, scale=scale)
    assert np.isfinite(heads).all()
    slack = 32 * U * np.abs(v).max()
    assert (heads >= v.min(axis=0) - slack).all()
    assert (heads <= v.max(axis=0) + slack).all()


@given(qkv=qkv())
def test_equal_keys_give_the_mean_of_the_values(qkv):
    q, k, v = qkv
    same = np.broadcast_to(k[:1], k.shape)
    expected = np.broadcast_to(v.mean(axis=0), (len(q), 2))
    assert_close(attention(q, same, v, scale=1.0), expected, 32 * U * np.abs(v).max())


@given(qkv=qkv(), data=st.data())
def test_one_key_left_gives_its_value(qkv, data):
    q, k, v = qkv
    left = data.draw(st.integers(0, len(k) - 1))
    heads = attention(q, k, v, scale=1.0, mask=np.arange(len(k)) == left)
    assert heads.tolist() == [v[left].tolist()] * len(q)


@given(qkv=qkv(), data=st.data())
def test_masked_keys_are_as_if_removed(qkv, data):
    q, k, v = qkv
    mask = data.draw(arrays(np.bool_, len(k)))
    heads = attention(q, k, v, scale=0.5, mask=mask)
    last_masked = np.where(np.arange(len(q))[:, None] == len(q) - 1, False, mask)
    assert not attention(q, k, v, scale=0.5, mask=last_masked)[-1].any()
    if not mask.any():
        assert not heads.any()
    else:
        assert_close(heads, attention(q, k[mask], v[mask], scale=0.5), 64 * U * np.abs(v).max())


@given(qkv=qkv(), data=st.data())
def test_the_order_of_keys_does_not_matter(qkv, data):
    q, k, v = qkv
    order = data.draw(st.permutations(range(len(k))))
    expected = attention(q, k, v, scale=0.5)
    assert_close(attention(q, k[order], v[order], scale=0.5), expected, 64 * U * np.abs(v).max())


@given(qkv=qkv(), shift=arrays(np.float64, 3, elements=numbers))
def test_a_vector_added_to_all_keys_does_not_matter(qkv, shift):
    """It adds the same to all scores of a query; why key biases are without effect."""
    q, k, v = qkv
    expected = attention(q, k, v, scale=0.1)
    # Scores of up to 0.1 * 3 * 9 * 18 = 49 are rounded.
    assert_close(attention(q, k + shift, v, scale=0.1), expected, 1000 * U * np.abs(v).max())


# heads


def test_heads_are_blocks_of_columns():
    x = np.arange(2 * 3 * 10).reshape(2, 3, 10)
    heads = split_heads(x, 5)
    assert heads.shape == (2, 5, 3, 2)
    for row, head, place in np.ndindex(2, 5, 3):
        block = x[row, place, 2 * head : 2 * head + 2]
        np.testing.assert_array_equal(heads[row, head, place], block)
    np.testing.assert_array_equal(merge_heads(heads), x)


def random_attention(c, d_model, seed=0):
    """Parameters of `plain_attention`, with whatever biases it names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "w_q": (d_model, c.n_heads * c.d_k),
        "w_k": (d_model, c.n_kv_heads * c.d_k),
        "w_v": (d_model, c.n_kv_heads * c.d_v),
        "w_o": (c.n_heads * c.d_v, d_model),
    }
    shapes |= {f"b_{name}": shapes[f"w_{name}"][1:] for name in c.biases}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    fields = dict.fromkeys(field.name for field in dataclasses.fields(AttentionParams))
    return AttentionParams(**fields | arrays)


def self_attend(p, c, x):
    return self_attention(p, c, x, SelfContext())


X = np.random.default_rng(7).standard_normal((2, 5, 11))


@given(order=st.permutations(range(3)))
def test_the_order_of_heads_does_not_matter(order):
    """Blocks of columns of W_q, W_k, W_v and the same blocks of rows of W_o change places."""
    c = plain_attention(n_heads=3, d_k=2, biases=("q", "k", "v", "o"))
    p = random_attention(c, 11)

    def reordered(x, axis):
        blocks = np.split(x, 3, axis=axis)
        return np.concatenate([blocks[head] for head in order], axis=axis)

    fields = {name: reordered(getattr(p, name), -1) for name in ("w_q", "w_k", "w_v")}
    fields |= {name: reordered(getattr(p, name), 0) for name in ("b_q", "b_k", "b_v", "w_o")}
    actual = self_attend(dataclasses.replace(p, **fields), c, X)
    assert_close(actual, self_attend(p, c, X), 1e-13)


def test_outputs_of_heads_are_added():
    """Attention of three heads is the sum of three attentions of one."""
    c = plain_attention(n_heads=3, d_k=2)
    p, one = random_attention(c, 11), plain_attention(n_heads=1, d_k=2)
    total = 0.0
    for head in range(3):
        block = slice(2 * head, 2 * head + 2)
        fields = {name: getattr(p, name)[:, block] for name in ("w_q", "w_k", "w_v")}
        alone = dataclasses.replace(p, w_o=p.w_o[block], **fields)
        total = total + self_attend(alone, one, X)
    assert_close(self_attend(p, c, X), total, 1e-13)


@pytest.mark.parametrize(
    ("order", "of_head"), [("grouped", [0, 0, 1, 1, 2, 2]), ("tiled", [0, 1, 2, 0, 1, 2])]
)
def test_shared_key_value_heads_equal_repeated_ones(order, of_head):
    """Six heads with three key-value heads are six with six, of which two each are alike."""
    six = plain_attention(n_heads=6, d_k=2)
    shared = dataclasses.replace(six, n_kv_heads=3, kv_head_order=order)
    p = random_attention(shared, 11)

    def repeated(x):
        return np.concatenate([np.split(x, 3, axis=1)[head] for head in of_head], axis=1)

    full = dataclasses.replace(p, w_k=repeated(p.w_k), w_v=repeated(p.w_v))
    assert_close(self_attend(p, shared, X), self_attend(full, six, X), 1e-13)


def test_cross_attention_to_oneself_is_self_attention():
    c = plain_attention(n_heads=3, d_k=2, biases=("q", "k", "v", "o"))
    p = random_attention(c, 11)
    k, v = keys_values(p, c, X)
    assert k.shape == v.shape == queries(p, c, X).shape == (2, 3, 5, 2)
    found = cross_attention(p, c, X, CrossContext(k, v))
    np.testing.assert_array_equal(found, self_attend(p, c, X))


# additions, each in a case that can be worked out


def test_learned_pairs_are_not_masked():
    """With all else masked, every query gets the one learned value; masked it cannot be."""
    c = dataclasses.replace(plain_attention(n_heads=3, d_k=2), n_learned_kv=1)
    values = np.arange(6.0).reshape(3, 1, 2)
    p = dataclasses.replace(
        random_attention(c, 11), learned_k=np.ones((3, 1, 2)), learned_v=values, w_o=np.eye(6, 11)
    )
    mask = np.zeros((2, 1, 1, 5), dtype=bool)
    bias = np.full((3, 5, 5), 1e9)
    y = self_attention(p, c, X, SelfContext(bias=bias, mask=mask))
    assert y[..., :6].tolist() == np.broadcast_to(np.arange(6.0), (2, 5, 6)).tolist()


def test_learned_pairs_have_no_bias():
    """A bias that makes all other keys impossible leaves the learned ones."""
    c = dataclasses.replace(plain_attention(n_heads=1, d_k=2), n_learned_kv=2)
    p = dataclasses.replace(
        random_attention(c, 11),
        learned_k=np.zeros((1, 2, 2)),
        learned_v=np.array([[[2.0, 8.0], [4.0, 0.0]]]),
        w_o=np.eye(2, 11),
    )
    y = self_attention(p, c, X, SelfContext(bias=np.full((1, 5, 5), -1e9)))
    assert y[..., :2].tolist() == np.broadcast_to([3.0, 4.0], (2, 5, 2)).tolist()


@pytest.mark.parametrize(("gate", "width"), [("per_value", 6), ("per_head", 3)])
def test_gates_multiply_heads_before_the_output(gate, width):
    """Gates of sigmoid(log 3) = 3/4 and, for the last head, sigmoid(-log 3) = 1/4."""
    c = plain_attention(n_heads=3, d_k=2)
    p = random_attention(c, 11)
    b_gate = np.full(width, math.log(3))
    b_gate[-width // 3 :] *= -1
    gated = dataclasses.replace(p, w_gate=np.zeros((11, width)), b_gate=b_gate)
    factor = np.repeat([0.75, 0.75, 0.25], 2)[:, None]
    expected = self_attend(dataclasses.replace(p, w_o=p.w_o * factor), c, X)
    actual = self_attend(gated, dataclasses.replace(c, gate=gate), X)
    assert_close(actual, expected, 1e-13)


def test_head_scales_multiply_heads():
    c = plain_attention(n_heads=3, d_k=2)
    p = random_attention(c, 11)
    scale = np.array([2.0, -1.0, 0.5]).reshape(3, 1, 1)
    scaled = dataclasses.replace(p, w_o=p.w_o * np.repeat(scale.ravel(), 2)[:, None])
    p, c_scaled = dataclasses.replace(p, head_scale=scale), dataclasses.replace(c, head_scale=True)
    assert_close(self_attend(p, c_scaled, X), self_attend(scaled, c, X), 1e-13)


def test_query_and_key_norms_make_scores_cosines():
    c = plain_attention(n_heads=3, d_k=2)
    norm = rs.config.NormConfig(kind="l2_norm", eps=1e-12, gain="none", bias=False)
    p = random_attention(c, 11)
    empty = rs.params.NormParams(gain=None, bias=None)
    normed = dataclasses.replace(p, q_norm=empty, k_norm=empty)
    trace = rs.Trace("scores")
    c_normed = dataclasses.replace(c, qk_norm=norm, scale=0.5)  # l2_norm is of length sqrt(2)
    self_attention(normed, c_normed, X, SelfContext(), trace)
    q, (k, _) = queries(p, c, X), keys_values(p, c, X)
    lengths = np.sqrt((q * q).sum(-1))[..., :, None] * np.sqrt((k * k).sum(-1))[..., None, :]
    assert_close(trace["scores"], (q @ k.swapaxes(-1, -2)) / lengths, 1e-13)
    assert np.abs(trace["scores"]).max() <= 1 + 8 * U


def test_quantities_of_attention_make_the_output():
    c = plain_attention(n_heads=3, d_k=2, biases=("q", "k", "v", "o"))
    p, trace = random_attention(c, 11), rs.Trace()
    y = self_attention(p, c, X, SelfContext(), trace)
    assert list(trace) == ["input", "q", "k", "v", "scores", "weights", "heads", "out"]
    assert_close(trace["scores"], trace["q"] @ trace["k"].swapaxes(-1, -2) / math.sqrt(2), 1e-13)
    assert_close(trace["weights"].sum(axis=-1), np.ones((2, 3, 5)), 8 * U)
    assert_close(trace["heads"], trace["weights"] @ trace["v"], 1e-13)
    assert_close(trace["out"], merge_heads(trace["heads"]) @ p.w_o + p.b_o, 1e-13)
    assert trace["out"] is y
    np.testing.assert_array_equal(
        attend(p, c, X, trace["q"], trace["k"], trace["v"], mask=None, bias=None), y
    )
