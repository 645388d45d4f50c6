"""`refseq2seq.testing.compare`: the first difference, its report, and ulp of rows."""

import json
import math

import arrangements
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.testing import Expected, first_difference, row_ulp

MODEL = rs.Model.random(arrangements.rich, 0, "float64")
SOURCE, TARGET = [[3, 4, 7], [5, 6, 11]], [[1, 5], [1, 7]]


def traced(fault=None):
    """The trace of a forward pass, with a fault in one quantity."""
    trace = rs.Trace()
    tap = rs.FunctionTap(lambda name, x: trace(name, fault(name, x) if fault else x))
    rs.forward(MODEL, SOURCE, TARGET, tap=tap)
    return trace


def at(name, change):
    return lambda n, x: change(x) if n == name else x


SOUND = traced()


@given(name=st.sampled_from(list(SOUND)))
def test_the_quantity_with_the_fault_is_found(name):
    faulty = traced(at(name, lambda x: x + 1e-3))
    found = first_difference(SOUND, faulty)
    assert found.name == name
    assert found.reason == "values"
    assert found.agreed == list(SOUND).index(name)
    assert all(agrees for _, agrees in found.sources)


def test_traces_that_agree_have_no_difference():
    assert first_difference(SOUND, traced()) is None
    assert first_difference(SOUND, {"logits": SOUND["logits"] * (1 + 1e-9)}) is None


@given(st.integers(0, 2**32 - 1))
def test_a_wrong_factor_is_shown_at_the_first_rows(seed):
    e = np.random.default_rng(seed).normal(size=(3, 5, 7))
    found = first_difference({"logits": e}, {"logits": e * 11**0.5})
    rows = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]  # all are as bad, but for rounding
    assert [place for place, *_ in found.pairs] == [(*r, np.abs(e[r]).argmax()) for r in rows]


def test_the_difference_says_where_and_how_much():
    name = "decoder.layers.1.self_attention.scores"
    value = SOUND[name].copy()
    row = np.abs(value[1, 2, 1]).max()
    value[1, 2, 1, 0] += 0.5
    value[0, 0, 0, 1] -= 0.001
    found = first_difference(SOUND, {name: value})
    assert found.place == (1, 2, 1, 0)
    assert found.shape == value.shape == (2, 6, 2, 4)
    assert found.max_relative == pytest.approx(0.5 / row)
    assert found.max_ulp == pytest.approx(0.5 / np.spacing(row))
    assert found.spreads is None
    assert found.step is None
    assert len(found.pairs) == 5
    assert found.pairs[0] == ((1, 2, 1, 0), SOUND[name][1, 2, 1, 0], value[1, 2, 1, 0])
    assert found.pairs[1][0] == (0, 0, 0, 1)
    assert found.sources == (
        ("decoder.layers.1.self_attention.q", None),
        ("decoder.layers.1.self_attention.k", None),
    )


def test_the_report_can_be_read():
    reference = {"step.3.logits": np.array([[1.0, 2.0, -4.0]])}
    found = first_difference(reference, {"step.3.logits": np.array([[1.0, 2.5, -4.0]])})
    assert found.step == 3
    head, *rows = str(found).splitlines()
    assert head.startswith("step.3.logits differs")
    assert "(1, 3), of step 3" in rows[0]
    assert "error 0.12 relative" in rows[1]
    assert "5.63e+14 ulp of float64" in rows[1]
    assert "1.5e-08" in rows[2]
    assert rows[4].split() == ["(0,1)", "2", "2.5", "5.00e-01"]
    faulty = traced(at("encoder.embed", lambda x: x + 1))
    assert "computed from encoder.tokens (agrees)" in str(first_difference(SOUND, faulty))


@pytest.mark.parametrize("change", [lambda x: x * np.nan, lambda x: x / 0.0, lambda x: x[:, :1]])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_difference_is_json(change):
    found = first_difference(SOUND, {"logits": change(SOUND["logits"])})
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["name"] == "logits"
    assert again["max_ulp"] == "inf"
    assert str(found)


def test_shapes_must_be_equal():
    found = first_difference(SOUND, {"logits": SOUND["logits"][:1]})
    assert (found.reason, found.shape, found.other_shape) == ("shape", (2, 2, 23), (1, 2, 23))
    assert "(1, 2, 23)" in str(found)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_must_be_in_both(wrong):
    value = SOUND["logits"].copy()
    value[1, 0, 3] = wrong
    for reference, other in ((SOUND["logits"], value), (value, SOUND["logits"])):
        found = first_difference({"logits": reference}, {"logits": other})
        assert (found.reason, found.place) == ("not finite", (1, 0, 3))
    same = first_difference({"logits": value}, {"logits": value.copy()})
    assert (same is not None) == math.isnan(wrong)  # NaN never passes
    if not math.isnan(wrong):
        value[1, 0, 4] += 1
        assert first_difference({"logits": SOUND["logits"]}, {"logits": value}).place == (1, 0, 3)


def test_infinities_must_have_the_same_sign_and_numbers_beside_them_are_compared():
    a, b = np.array([[1.0, np.inf]]), np.array([[1.0, -np.inf]])
    assert first_difference({"x": a}, {"x": b}).reason == "not finite"
    assert row_ulp(a, b) == np.inf
    a = np.array([[1.0, -np.inf, 3.0]])
    assert first_difference({"scores": a}, {"scores": a + [[0, 0, 1e-3]]}).place == (0, 2)


@pytest.mark.parametrize(
    ("dtypes", "within"),
    [("float64 float64", 1e-8), ("float64 float32", 2e-4), ("float16 float32", 1e-2)],
)
def test_the_coarser_dtype_decides_what_is_near(dtypes, within):
    a, b = dtypes.split()
    x = np.array([[1.0, 2.0]])
    for reference, other in ((a, b), (b, a)):
        e = {"x": x.astype(reference)}
        assert first_difference(e, {"x": (x * (1 + within)).astype(other)}) is None
        assert first_difference(e, {"x": (x * (1 + 10 * within)).astype(other)}) is not None


def test_rtol_is_relative_to_the_row():
    x = np.array([[100.0, 0.001], [1.0, 0.001]])
    assert first_difference({"x": x}, {"x": x + [[0, 0.9], [0, 0]]}, rtol=0.01) is None
    assert first_difference({"x": x}, {"x": x + [[0, 1.1], [0, 0]]}, rtol=0.01) is not None
    assert first_difference({"x": x}, {"x": x + [[0, 0], [0, 0.9]]}, rtol=0.01).place == (1, 1)


@pytest.mark.parametrize(
    ("other", "options", "kind", "message"),
    [
        ({"logit": SOUND["logits"]}, {}, ValueError, "'logit'"),
        ({}, {}, ValueError, "other must have at least one quantity"),
        *[
            ({"logits": x}, {}, TypeError, "masked array|must hold real numbers")
            for x in (np.ma.ones(3), np.ones(3, complex), np.array(["a"]), np.array([None]))
        ],
        *[
            (SOUND, {name: bad}, (TypeError, ValueError), f"{name} must be")
            for name in ("z", "rtol")
            for bad in (math.nan, math.inf, -math.inf, -1e-9, "6", True)
        ],
        (SOUND, {"z": None}, (TypeError, ValueError), "z must be"),
    ],
)
def test_wrong_arguments_of_first_difference_raise(other, options, kind, message):
    with pytest.raises(kind, match=message):
        first_difference(SOUND, other, **options)


def expected(value, sigma, where=True, own=None, independent=100):
    value = np.asarray(value, np.float64)
    return Expected(
        value,
        np.broadcast_to(sigma, (*value.shape[:-1], 1)),
        np.broadcast_to(sigma if own is None else own, value.shape),
        np.full((*value.shape[:-1], 1), independent),
        np.broadcast_to(where, value.shape),
        "float32",
    )


ONES = np.where(np.arange(100) % 2, 1.0, -1.0)[None]  # a row whose elements are all alike


def test_an_element_may_be_z_spreads_off():
    e = expected(ONES, 0.01)
    off = ONES.copy()
    off[0, 7] += 0.059
    assert first_difference({"x": e}, {"x": off}) is None
    assert first_difference({"x": e}, {"x": off}, z=5.8).place == (0, 7)
    off[0, 7] += 0.002
    found = first_difference({"x": e}, {"x": off})
    assert found.spreads == pytest.approx(6.1)
    assert found.rms_spreads == pytest.approx(0.61)
    assert "6.1 spreads (allowed 6)" in str(found)


@pytest.mark.parametrize(("independent", "limit"), [(100, 2.0), (4, 3.5)])  # 3.5: 1 + 5 / sqrt(4)
def test_the_limit_of_the_mean_square_of_a_row(independent, limit):
    e = expected(ONES, 0.01, independent=independent)
    assert first_difference({"x": e}, {"x": ONES + (limit - 0.01) * 0.01}) is None
    found = first_difference({"x": e}, {"x": ONES + (limit + 0.01) * 0.01})
    assert (found.spreads, found.rms_spreads) == pytest.approx((limit + 0.01, limit + 0.01))
    assert found.rms_limit == pytest.approx(limit)


def test_an_element_with_a_greater_spread_of_its_own_may_be_further_off():
    e = expected(np.ones((1, 64)), 0.01, own=[0.08] + 63 * [0.001], independent=1)
    for place, allowed in ((0, 0.48), (1, 0.06)):
        off = e.value.copy()
        off[0, place] += 0.99 * allowed
        assert first_difference({"x": e}, {"x": off}) is None
        off[0, place] += 0.02 * allowed
        assert first_difference({"x": e}, {"x": off}).place == (0, place)


def test_places_outside_where_are_not_compared():
    where = np.arange(100) != 3
    e = expected(ONES, 0.01, where)
    off = ONES.copy()
    off[0, 3] = np.nan
    assert first_difference({"x": e}, {"x": off}) is None
    off[0, 4] = np.nan
    assert first_difference({"x": e}, {"x": off}).place == (0, 4)


def test_without_rounding_no_error_is_allowed():
    e = expected(np.zeros((1, 3)), 0.0)
    assert first_difference({"x": e}, {"x": np.zeros((1, 3))}) is None
    found = first_difference({"x": e}, {"x": np.full((1, 3), 1e-30)})
    assert found.spreads == np.inf


@given(st.integers(-40, 40), st.sampled_from(["float32", "float64"]))
def test_row_ulp_counts_steps_of_the_greatest_magnitude(n, dtype):
    row = np.array([[0.001, 5.0, -0.7]], dtype)
    off = row.copy()
    off[0, 2] += n * np.spacing(row.dtype.type(5.0))
    assert row_ulp(off, row) == pytest.approx(abs(n), abs=1e-6)


def test_row_ulp_takes_the_coarser_dtype_and_the_worst_row():
    e = np.array([[1.0, 0.5], [8.0, 0.5]])
    off = (e + [[0, 2.0**-10], [0, 2.0**-9]]).astype("float16")
    assert row_ulp(off, e) == 1.0  # of the first row; the second is off by a quarter
    assert row_ulp(off, e, "bfloat16") == 2.0**-3
    assert row_ulp(e, e) == 0
    assert row_ulp(e[:, :0], e[:, :0]) == 0
    assert row_ulp(e * np.nan, e * np.nan) == np.inf
    with pytest.raises(ValueError, match=r"actual has shape \(2, 1\), expected \(2, 2\)"):
        row_ulp(e[:, :1], e)


# What is equal or not ----------------------------------------------------------------------------

DTYPES = ["int64", "int32", "uint8", "bool", "float32", "float64"]


@given(
    x=st.lists(st.integers(0, 1), min_size=1, max_size=5),
    data=st.data(),
    rtol=st.sampled_from([None, 0.0, 0.09, 0.5, 1.0, 1e9]),
)
def test_integers_and_booleans_are_equal_or_they_differ(x, data, rtol):
    ours, theirs = (data.draw(st.sampled_from(DTYPES)) for _ in range(2))
    integers = not (ours.startswith("float") and theirs.startswith("float"))
    same = np.array(x, ours), np.array(x, theirs)
    assert first_difference({"tokens": same[0]}, {"tokens": same[1]}, rtol=rtol) is None
    at = data.draw(st.integers(0, len(x) - 1))
    other = same[1].copy()
    other[at] = 1 - x[at]
    found = first_difference({"tokens": same[0]}, {"tokens": other}, rtol=rtol)
    if integers:
        assert found.reason == "not equal"
        assert found.limit == 0
        assert found.place == (at,)
        assert found.pairs[0][1:] == (x[at], 1 - x[at])
        assert "integers and booleans must be equal" in str(found)
        assert json.loads(json.dumps(found.to_dict()))["reason"] == "not equal"
    elif rtol is not None and rtol >= 1 and any(x):
        assert found is None


def test_integers_beside_floating_point_numbers():
    ours = {"t": np.array([29990, 30000])}
    assert first_difference(ours, {"t": np.array([29985, 30000], "f4")}).place == (0,)
    assert first_difference(ours, {"t": np.array([29990.0, 30000.0])}) is None
    assert first_difference({"t": np.array([1.5, 2.0])}, {"t": np.array([1, 2])}).place == (0,)
    big = {"t": np.array([2**53 + 1])}  # float64 has no such number
    assert first_difference(big, {"t": np.array([2**53])}).reason == "not equal"
    assert first_difference(big, {"t": np.array([2**53 + 1])}) is None
