"""Range: float16 is computed in float32 between named quantities, and overflow raises.

The expected numbers of float16 are those of float32, or of float64, rounded once.
"""

import contextlib
import dataclasses
import math

import arrangements
import numpy as np
import pytest
from distributions import state
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from naming import raises_naming
from tasks import every_search

import refseq2seq as rs
from refseq2seq import ops, positions
from refseq2seq.config import FrameInput
from refseq2seq.generation.contrastive import contrast
from refseq2seq.generation.filters import entropy
from refseq2seq.params import build_params, map_arrays, named_arrays
from refseq2seq.testing import assert_agrees, spread, strategies
from refseq2seq.testing.cases import conventions

HALF = np.float16
wide_rows = hnp.arrays(
    HALF,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-65504, 65504, width=16),
)
POINTWISE = [*ops.ACTIVATIONS.values(), ops.sigmoid]
BY_ROW = [ops.softmax, ops.log_softmax, ops.logsumexp, ops.mean, entropy]


def assert_is_float32_rounded_once(function, x):
    with np.errstate(all="ignore"):
        expected = function(x.astype(np.float32)).astype(HALF)
        np.testing.assert_array_equal(function(x), expected, strict=True)


@pytest.mark.parametrize("function", POINTWISE, ids=lambda f: f.__name__)
def test_every_float16_is_float32_rounded_once(function, request):
    if function is ops.gelu_erf:
        reason = "the tail is rounded to float16 before it is subtracted: one unit off"
        request.applymarker(pytest.mark.xfail(reason=reason))
    x = np.arange(2**16, dtype=np.uint16).view(HALF)
    assert_is_float32_rounded_once(function, x[np.isfinite(x)])


@pytest.mark.parametrize("function", BY_ROW, ids=lambda f: f.__name__)
@given(x=wide_rows)
@settings(max_examples=25)
def test_rows_of_float16_are_float32_rounded_once(function, x):
    assert_is_float32_rounded_once(function, x)


@pytest.mark.parametrize("norm", ops.NORMS.values(), ids=ops.NORMS)
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 0.1])
@given(x=wide_rows, data=st.data())
@settings(max_examples=25)
def test_norms_of_float16_are_those_of_float32_rounded_once(norm, eps, x, data):
    gain, bias = (
        data.draw(hnp.arrays(HALF, x.shape[-1:], elements=st.floats(-9, 9, width=16)))
        for _ in range(2)
    )
    with np.errstate(all="ignore"):  # a row of one number has no standard deviation
        expected = norm(*(a.astype("f4") for a in (x, gain, bias)), eps).astype(HALF)
        np.testing.assert_array_equal(norm(x, gain, bias, eps), expected, strict=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arguments_may_be_named(dtype):
    x, mask = np.array([[3.0, 4.0]], dtype), np.array([True, False])
    for norm in ops.NORMS.values():
        named = norm(x, gain=None, bias=None, eps=1e-3)
        assert np.array_equal(named, norm(x, None, None, 1e-3))
    assert ops.softmax(x, mask=mask).tolist() == ops.softmax(x, mask).tolist() == [[1, 0]]


def test_float16_by_hand():
    # sqrt(4) times the unit vector; the square of 257 is beyond float16, and 1e-12 below it
    normed = ops.rms_norm(np.array([[257, 0, 0, 0]], HALF), None, None, 1e-6)
    assert normed.tolist() == [[2, 0, 0, 0]]
    assert (ops.l2_norm(np.full((1, 512), 12, HALF), None, None, 1e-12) == 1).all()
    assert (ops.layer_norm(np.array([[60000, -60000]], HALF), None, None, 1e-5) == [1, -1]).all()
    assert (ops.softmax(np.zeros((1, 70000), HALF)) == HALF(1 / 70000)).all()
    assert ops.mean(np.full((1, 9), 60000, HALF)) == 60000
    assert ops.logsumexp(np.zeros((1, 70000), HALF)) == HALF(math.log(70000))
    expert, weak = np.array([[60000.0, -9.0]], HALF), np.array([[50016.0, -9.0]], HALF)
    assert contrast(expert, weak, rs.amateur(rs.load("g2p"), beta=0.5))[0, 0] == 64992


def test_alibi_of_distances_that_float16_cannot_hold():
    c = rs.config.AlibiPositions(slopes=(0.5,))
    bias = positions.score_bias(c, None, np.array([4097]), np.array([0]), HALF)
    assert bias[0, 0, 0] == HALF(-2048.5)  # 4097 itself would be 4096


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_activations_have_their_limits(name, dtype):
    """0 to the left, also where PyTorch multiplies infinity with 0; NaN is not hidden."""
    with np.errstate(all="ignore"):
        left, right, none = ops.ACTIVATIONS[name](np.array([-np.inf, np.inf, np.nan], dtype))
    assert left == 0
    assert right == np.inf
    assert np.isnan(none)


@pytest.mark.parametrize(("dtype", "large"), [("float32", 1e20), ("float64", 1e160)])
@pytest.mark.parametrize("norm", ops.NORMS.values(), ids=ops.NORMS)
def test_a_norm_whose_squares_overflow_is_nan_and_not_zeros(norm, dtype, large):
    with np.errstate(all="ignore"):
        result = norm(np.array([[large, -large, large], [3, 4, 5]], dtype), None, None, 1e-5)
    assert np.isnan(result[0]).all()
    assert np.isfinite(result[1]).all()


# A whole model ------------------------------------------------------------------------------------


def scaled(config, seed, c, dtype="float16"):
    """A random model whose embeddings and sublayers' outputs are ``c`` times as large."""
    params = rs.random_params(config, seed, "float64")
    arrays = dict(named_arrays(params))

    def array(name, shape):
        grows = name.rpartition(".")[2] in ("embedding", "w_o", "w_out")
        return (arrays[name] * (c if grows else 1)).astype(dtype)

    return rs.Model(config=config, params=build_params(config, array))


@pytest.mark.parametrize("name", arrangements.ALL)
def test_float16_rounds_named_quantities_and_nothing_else(name):
    """The float32 model, with every quantity rounded by a tap, is the float16 model."""
    model = scaled(arrangements.ALL[name], 1, 3.0)
    source, target = [[3, 4, 5], [6, 2]], [[1, 5, 7], [1, 4, 3]]
    half, single = rs.Trace(), {}
    logits = rs.forward(model, source, target, tap=half)

    def rounding(quantity, x):
        single[quantity] = x.astype(HALF)
        return single[quantity].astype(np.float32)

    rs.forward(model.astype("float32"), source, target, tap=rs.FunctionTap(rounding))
    assert list(half) == list(single)
    assert logits.dtype == HALF
    for quantity, x in half.items():
        assert x.dtype == HALF
        np.testing.assert_array_equal(x, single[quantity], err_msg=quantity)
    memory = rs.encode(model, source)
    assert {x.dtype for x in (memory.hidden, *memory.keys, *memory.values)} == {np.dtype(HALF)}


def test_unscaled_scores_may_overflow_float16():
    """64 products of 3600 are 230400, which float16 has not; an eighth of that it has."""
    model = scaled(arrangements.x_transformers, 0, 1.0)
    for layer in model.params.decoder.layers:
        for x in (layer.self_attention.w_q, layer.self_attention.w_k):
            x[:] *= HALF(120)
    trace = rs.Trace("*.self_attention.scores", "*.self_attention.q", "*.self_attention.k")
    rs.forward(model, [[3, 4]], [[1, 5, 7]], tap=trace)
    at = "decoder.layers.0.self_attention."
    q, k, scores = (trace[at + name].astype(np.float64) for name in ("q", "k", "scores"))
    unscaled = q @ k.mT
    assert np.abs(unscaled).max() > 65504
    expected = (unscaled * model.config.decoder.self_attention.scale).astype(HALF)
    assert np.isfinite(expected).any()
    within = np.isfinite(expected)
    np.testing.assert_allclose(scores[within], expected[within], rtol=2**-10)


@given(
    config=strategies.configs(),
    seed=st.integers(0, 2**20),
    c=st.sampled_from([1.0, 10.0, 100.0, 1000.0]),
)
@settings(max_examples=25)
def test_spread_accepts_float16(config, seed, c):
    model, rng = scaled(config, seed, c), np.random.default_rng(seed)
    if isinstance(config.encoder.input, FrameInput):
        source = rng.standard_normal((2, 4, config.encoder.input.n_features)).astype("float16")
    else:
        source = rng.integers(0, config.encoder.vocab_size, (2, 4))
    target = rng.integers(0, config.decoder.vocab_size, (2, 4))
    within, trace = None, rs.Trace()
    with contextlib.suppress(ValueError):  # a quantity of the oracle overflows float16
        within = spread(model, source, target, dtype="float16", runs=16)
    assume(within is not None)
    rs.forward(model, source, target, tap=trace)
    assert_agrees(trace, within)


@pytest.mark.parametrize("activations", [400.0, 10_000.0])
def test_spread_accepts_t5_in_float16_with_large_activations(activations):
    model = scaled(arrangements.t5_like, 3, activations / 3)
    source, target = [[3, 4, 7], [5, 6, 11]], [[1, 5, 8], [1, 7, 9]]
    within = spread(model, source, target, dtype="float16")
    assert np.abs(within["decoder.layers.1.after_feed_forward"].value).max() > activations / 4
    trace = rs.Trace()
    rs.forward(model, source, target, tap=trace)
    assert_agrees(trace, within)


# Overflow raises ----------------------------------------------------------------------------------


def with_large_row(model, token, large):
    """The model whose source token ``token`` has a vector of numbers of this size."""
    model = dataclasses.replace(model, params=map_arrays(model.config, model.params, np.copy))
    model.params.encoder.embedding[token] = np.resize([large, -large], model.config.encoder.d_model)
    return model


@every_search
@pytest.mark.parametrize(
    ("dtype", "large", "cure"),
    [("float32", 1e25, "float64"), ("float64", 1e200, None), ("float16", np.inf, "float32")],
)
def test_overflow_raises_with_row_step_and_quantity(search, dtype, large, cure):
    config = dataclasses.replace(arrangements.x_transformers, tied_embeddings=False)
    model = with_large_row(rs.Model.random(config, 0, dtype), 7, large)
    quantity = "encoder.layers.0.self_attention.input" if large < np.inf else "encoder.tokens"
    names = [f"astype('{cure}')"] if cure else []
    with raises_naming(rs.NonFiniteLogitsError, "row 1 in step 0", quantity, *names) as caught:
        search(model, [[3, 4], [5, 7]], max_new_tokens=3)  # and no warning: warnings are errors
    assert not isinstance(caught.value, rs.NoTokenLeftError)
    assert ("astype" in str(caught.value)) == (cure is not None)


@every_search
def test_scores_that_overflow_to_minus_infinity_are_not_a_mask(search):
    """A query whose scores are all -inf would attend to nothing, as under an empty mask."""
    model = rs.Model.random(arrangements.x_transformers, 0, "float32")
    sublayer = model.params.decoder.layers[0].self_attention
    sublayer.w_q[:] *= 1e25
    sublayer.w_k[:] = -sublayer.w_q
    with raises_naming(rs.NonFiniteLogitsError, "decoder.layers.0.self_attention.scores"):
        search(model, [[3, 4]], max_new_tokens=3)


@every_search
def test_an_amateur_that_overflows_is_named(search):
    expert = rs.Model.random(arrangements.x_transformers, 0, "float32")
    weak = with_large_row(expert, 4, 1e25)
    with raises_naming(rs.NonFiniteLogitsError, "amateur.0.encoder.layers.0.self_attention"):
        search(expert, [[3, 4]], max_new_tokens=3, amateurs=[rs.amateur(weak)])


@every_search
def test_a_partial_sum_that_overflows_does_not_rule_a_token_out(search):
    """-3e38 - 3e38 + 3.2e38 + 3.2e38 is 4e37, the best logit; in order the sum is -inf."""
    sizes = {"encoder.d_model": 4, "decoder.d_model": 4}
    config = conventions(**sizes, **{"decoder.norm_positions": []})
    large = np.array([-3e38, -3e38, 3.2e38, 3.2e38])

    def array(name, shape):
        if name == "unembedding":
            return np.stack([np.zeros(4), np.ones(4), np.ones(4), large, np.ones(4)], axis=1)
        return np.ones(shape) if name == "decoder.embedding" else np.zeros(shape)

    model = rs.Model(config=config, params=build_params(config, array))
    assert 3 in search(model, [[1]], max_new_tokens=3).tokens
    with raises_naming(rs.NonFiniteLogitsError, "; logits is the first quantity"):
        search(model.astype("float32").exact(), [[1]], max_new_tokens=3)


@pytest.mark.parametrize("make", [rs.temperature, rs.repetition_penalty])
@pytest.mark.parametrize("number", [0.7, 1.3, 1e5])
def test_numbers_of_processors_are_not_rounded_to_float16(make, number):
    scores = np.linspace(-9, 9, 41).astype(HALF)[None]
    now = dataclasses.replace(state(n_new=1), tokens=np.arange(41)[None])
    with np.errstate(over="ignore"):
        expected = make(number)(scores.astype("f8"), now).astype(HALF)
        np.testing.assert_array_equal(make(number)(scores, now), expected)
    banned = np.array([[3.0, -np.inf]], HALF)
    assert rs.temperature(1e5)(banned, now).tolist() == [[HALF(3e-5), -np.inf]]
