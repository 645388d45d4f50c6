"""Every backend gives NumPy's results: the same tokens, and numbers up to rounding."""

import functools

import numpy as np
import pytest
from backends import agreement, journeys
from backends.agreement import assert_agree, results, tolerance_of
from backends.double import Device
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import raises_naming

import refseq2seq as rs
from refseq2seq import erf, ops
from refseq2seq.generation import filters
from refseq2seq.ops import top_indices
from refseq2seq.testing import strategies

on_devices = pytest.mark.parametrize(
    "xp", ["double", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
every_journey = pytest.mark.parametrize("journey", journeys.ALL.values(), ids=journeys.ALL)

expected = functools.cache(functools.partial(results, dtype="float64", backend="numpy"))
spread = functools.cache(agreement.spread)


@every_journey
def test_journeys_on_the_double_agree_with_numpy(travelled, journey):
    """The same functions add the same numbers, though stored in another order."""
    found = expected(journey)
    tolerance = tolerance_of("float64", found, dict.fromkeys(found, 0.0), factor=2**10)
    assert_agree(travelled(journey), found, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@every_journey
def test_journeys_on_a_device_agree_with_numpy(real_cupy, journey, dtype):
    """With as much rounding as the double was given at random."""
    on_host = results(journey, dtype, "numpy")
    tolerance = tolerance_of(dtype, on_host, spread(journey))
    assert_agree(results(journey, dtype, "cupy"), on_host, tolerance)


@pytest.mark.parametrize("name", ["rich: forward", "small: greedy", "small: beams"])
def test_float32_is_within_its_tolerance_and_not_a_tenth_of_it(name):
    journey = journeys.ALL[name]
    exact, found = expected(journey), results(journey, "float32", "numpy")
    found = {name: x.astype(exact[name].dtype) for name, x in found.items()}
    assert_agree(found, exact, tolerance_of("float32", exact, spread(journey)))
    with pytest.raises(AssertionError, match="is off by"):
        assert_agree(found, exact, tolerance_of("float32", exact, spread(journey), factor=0.1))


DECISIONS = {n: j for n, j in journeys.ALL.items() if j.go not in journeys.TEACHER_FORCED.values()}


@pytest.mark.parametrize("journey", DECISIONS.values(), ids=DECISIONS)
def test_rounding_errors_change_no_token(journey):
    """With errors of 1e-6 in every operation all tokens are the same: ties are by rule."""
    with Device(jitter=1e-6).installed():
        shaken = results(journey, "float64", "cupy")
    for name, x in expected(journey).items():
        if x.dtype.kind in "ib":
            np.testing.assert_array_equal(shaken[name], x, err_msg=name)
        if name.endswith("margin"):  # else it would be luck
            assert (x > 1e-5).all(), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtype_in_is_dtype_out(xp, dtype):
    for name in ("rich: forward", "x_transformers: forward", "small: forward"):
        journey = journeys.ALL[name]
        trace = journey.go(journey.model(dtype).to(xp.__name__))
        assert {x.dtype.name for x in trace.values()} == {dtype}
        assert all(np.isfinite(rs.to_numpy(x)).all() for x in trace.values())


@on_devices
@settings(max_examples=8)
@given(data=st.data())
def test_random_models_agree_with_numpy(xp, data):
    model = data.draw(strategies.models(), label="model").astype("float64")
    source = data.draw(strategies.sources(model), label="source")
    target = data.draw(strategies.targets(model, source.batch), label="target")
    trace, there = rs.Trace(), rs.Trace()
    rs.forward(model, source.tokens, target, source.mask, tap=trace)
    rs.forward(model.to(xp.__name__), source.tokens, target, source.mask, tap=there)
    assert list(trace) == list(there)
    for name, x in trace.items():
        got = rs.to_numpy(there[name])
        assert got.shape == x.shape, name
        if hasattr(xp, "cuda"):  # some of these models amplify rounding without bound
            continue
        np.testing.assert_allclose(got, x, rtol=1e-9, atol=1e-9 * np.abs(x).max(), err_msg=name)


# Operations, by hand.


def host(x):
    return rs.to_numpy(x).tolist()


def test_softmax_of_rows_that_are_masked_in_part_and_whole(xp):
    x = xp.asarray(np.array([[1.0, 1.0, 9.0], [2.0, 3.0, 4.0]]))
    mask = xp.asarray(np.array([[True, True, False], [False] * 3]))
    assert host(ops.softmax(x, mask)) == [[0.5, 0.5, 0.0], [0.0] * 3]


def test_erfc_keeps_its_tail(xp):
    x = xp.asarray(np.array([-np.inf, 0.0, 1.0, 26.0]))
    exact = [2.0, 1.0, 0.15729920705028513, 5.663192408856143e-296]
    np.testing.assert_allclose(rs.to_numpy(erf.erfc(x)), exact, rtol=2e-15)
    gelu = rs.to_numpy(erf.gelu_erf(xp.asarray(np.array([-10.0, 0.0, 1.0]))))
    exact = [-7.619853024160527e-23, 0.0, 0.8413447460685429]
    np.testing.assert_allclose(gelu, exact, rtol=2e-15)


@pytest.mark.parametrize(
    ("processor", "kept"),
    [
        (rs.top_k(2), [[1, 2], [0, 1]]),  # of equal scores the lowest ids
        (rs.top_k(2, keep_ties=True), [[1, 2, 3], [0, 1, 2, 3]]),
        (rs.top_p(0.5), [[1, 2], [0, 1]]),
        (rs.min_p(0.5), [[1, 2, 3], [0, 1, 2, 3]]),
    ],
    ids=["top_k", "top_k with ties", "top_p", "min_p"],
)
def test_ties_are_broken_by_id(xp, processor, kept):
    scores = xp.asarray(np.log([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    left = rs.to_numpy(processor(scores, None)) > -np.inf
    assert [np.flatnonzero(row).tolist() for row in left] == kept
    assert host(rs.greedy().pick(scores, None)) == [1, 0]
    assert host(filters.ranks(scores)) == [[3, 0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize(("m", "n"), [(7, 3), (7, 7), (2003, 11), (70001, 8)])
def test_top_indices_are_those_of_a_stable_sort(xp, m, n):
    scores = np.random.default_rng(m).integers(0, 40, (3, m)).astype("float64")
    scores[0, : m // 2] = -np.inf
    places = host(top_indices(xp.asarray(scores), n))
    assert places == np.argsort(-scores, axis=1, kind="stable")[:, :n].tolist()


# Errors are the same.


@pytest.mark.parametrize("token", [-1, 29, 2**40])
def test_a_token_outside_the_vocabulary_raises(xp, token):
    model = journeys.ALL["small: forward"].model("float32").to(xp.__name__)
    for source in ([[3, token]], xp.asarray([[3, token]])):
        with raises_naming(ValueError, f"token id {token}", "row 0, position 1"):
            rs.forward(model, source, [[1]])


@pytest.mark.parametrize("search", [rs.generate, rs.beam_search])
def test_logits_that_are_not_finite_raise_with_their_row(xp, search):
    model = journeys.ALL["small: forward"].model("float32").to(xp.__name__)

    def spoil(name, x):
        if name != "step.1.logits":
            return x
        spoilt = x.copy()
        spoilt[len(x) // 2 :, 0, 8] = np.nan  # all that continues the second source
        return spoilt

    with raises_naming(rs.NonFiniteLogitsError, "row 1"):
        search(model, [[3], [4, 5]], max_new_tokens=4, tap=rs.FunctionTap(spoil))


def test_a_trace_is_saved_and_loaded(xp, tmp_path):
    journey, trace = journeys.ALL["small: forward"], rs.Trace("*.heads")
    rs.forward(journey.model("float32").to(xp.__name__), [[3]], [[1, 4]], tap=trace)
    trace.save(tmp_path / "trace.npz")
    loaded = rs.Trace.load(tmp_path / "trace.npz")
    assert list(loaded) == list(trace)
    for name, x in trace.items():
        np.testing.assert_array_equal(loaded[name], rs.to_numpy(x))
