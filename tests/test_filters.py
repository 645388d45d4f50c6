"""Filters: each rule against its definition, at its exact boundaries."""

import dataclasses
import itertools
import math
from fractions import Fraction
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from distributions import (
    ALMOST_1,
    best_first,
    distinct_scores,
    exact_probs,
    halvings,
    kept,
    logs,
    run,
    score_rows,
    slow_softmax,
    softmax_in_base_two,
    state,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from naming import raises_naming, short

import refseq2seq as rs
from refseq2seq.generation import filters
from refseq2seq.generation.noise import _gumbel


@pytest.fixture
def base_two(monkeypatch):
    """Probabilities that are exact."""
    monkeypatch.setattr(filters, "softmax", softmax_in_base_two)


# The rules again, by sorting and adding in pure Python -----------------------------------------


def slow_top_k(weights, k):
    return set(best_first(weights)[:k])


def slow_top_k_with_ties(weights, k):
    limit = sorted(weights, reverse=True)[min(k, len(weights)) - 1]
    return {i for i, w in enumerate(weights) if w >= limit}


def slow_top_p(probs, p, add=sum):
    order = best_first(probs)
    return {token for n, token in enumerate(order) if add(probs[i] for i in order[:n]) < p}


def slow_top_a(probs, ratio, power):
    """With the power 1 this is min-p."""
    return {i for i, q in enumerate(probs) if q >= ratio * max(probs) ** power}


# What holds for every filter -------------------------------------------------------------------

FILTERS = {
    "top_k": rs.top_k(3),
    "top_k with ties": rs.top_k(3, keep_ties=True),
    "top_fraction": rs.top_fraction(0.3),
    "top_p": rs.top_p(0.7),
    "min_p": rs.min_p(0.1),
    "top_a": rs.top_a(0.3),
}
PROCESSORS = FILTERS | {
    "typical": rs.typical(0.6),  # these keep by another order than the scores'
    "epsilon": rs.epsilon(0.9),
    "eta": rs.eta(0.3),
    "temperature": rs.temperature(0.7),
}
every_filter = pytest.mark.parametrize("processor", FILTERS.values(), ids=FILTERS)
every_processor = pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)


@every_processor
@given(data=st.data())
def test_dtype_and_shape_stay_and_the_input_is_not_changed(processor, data):
    scores = data.draw(st.sampled_from(["float16", "float32", "float64"]).flatmap(score_rows))
    before = scores.copy()
    after = run(processor, scores)
    assert after.dtype == scores.dtype
    assert after.shape == scores.shape
    np.testing.assert_array_equal(scores, before)


@every_filter
@given(scores=score_rows())
def test_filters_keep_scores_and_the_best(processor, scores):
    after = run(processor, scores)
    stayed = after > -math.inf
    np.testing.assert_array_equal(after[stayed], scores[stayed])
    best = scores.argmax(axis=-1)
    rows = np.arange(len(scores))
    np.testing.assert_array_equal(after[rows, best], scores[rows, best])


@every_filter
@given(scores=score_rows())
def test_a_better_score_than_one_that_stays_stays(processor, scores):
    for before, after in zip(scores, run(processor, scores), strict=True):
        worst = before[after > -math.inf].min()
        assert (after[before > worst] > -math.inf).all()


@every_processor
@given(seed=st.integers(0, 2**32))
def test_a_row_is_processed_as_if_it_were_alone(processor, seed):
    scores = distinct_scores(seed, batch=5)
    alone = [run(processor, scores[i : i + 1].copy()) for i in range(5)]
    np.testing.assert_array_equal(run(processor, scores), np.concatenate(alone))


@every_processor
@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_vocabulary_does_not_matter_without_ties(processor, seed):
    scores = distinct_scores(seed)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    expected = run(processor, scores)[:, order]
    np.testing.assert_array_equal(run(processor, scores[:, order]), expected)


@every_filter
@given(data=st.data())
def test_only_differences_of_scores_matter(processor, data):
    # multiples of 1/4 and an integer: the sum is exact, and so are the differences
    quarters = st.integers(-40, 40).map(lambda q: q / 4)
    scores = data.draw(hnp.arrays("float64", (2, 7), elements=quarters, fill=st.nothing()))
    shift = data.draw(st.integers(-100, 100))
    assert kept(processor, scores) == kept(processor, scores + shift)


NEUTRAL = {
    "temperature": [rs.temperature(1), rs.temperature(1.0)],
    "top_k": [rs.top_k(11), rs.top_k(12), rs.top_k(2**70)],
    "top_k with ties": [rs.top_k(11, keep_ties=True)],
    "top_fraction": [rs.top_fraction(1.0), rs.top_fraction(1)],
    "top_p": [rs.top_p(1), rs.top_p(1.0)],
    "min_p and top_a": [rs.min_p(0), rs.top_a(0)],
}


@pytest.mark.parametrize("processors", NEUTRAL.values(), ids=NEUTRAL)
@given(scores=score_rows())
def test_neutral_values_are_the_identity(processors, scores):
    for processor in processors:
        np.testing.assert_array_equal(run(processor, scores), scores)


# Temperature -----------------------------------------------------------------------------------


@given(scores=score_rows(), t=st.floats(1e-3, 1e6))
def test_temperature_divides(scores, t):
    expected = [[x / t for x in row] for row in scores.tolist()]
    np.testing.assert_array_equal(run(rs.temperature(t), scores), expected)


# Top-k -----------------------------------------------------------------------------------------


@given(scores=score_rows(), k=st.integers(1, 13))
def test_top_k_keeps_the_head_of_a_sorted_list(scores, k):
    ties = kept(rs.top_k(k, keep_ties=True), scores)
    for row, ids, with_ties in zip(scores, kept(rs.top_k(k), scores), ties, strict=True):
        finite = {i for i, x in enumerate(row) if x > -math.inf}
        assert set(ids) == slow_top_k(row.tolist(), k) & finite
        assert len(ids) == min(k, len(finite))
        assert set(with_ties) == slow_top_k_with_ties(row.tolist(), k) & finite


def test_of_equal_scores_top_k_keeps_the_lowest_ids():
    scores = np.array([[1.0, 2.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert kept(rs.top_k(1), scores) == [[1], [0]]
    assert kept(rs.top_k(3), scores) == [[0, 1, 3], [0, 1, 2]]
    assert kept(rs.top_k(3, keep_ties=True), scores) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert kept(rs.top_k(2, keep_ties=True), scores) == [[1, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("fraction", "vocab_size", "count"),
    [(0.1, 11, 2), (0.1, 10, 1), (0.5, 7, 4), (0.5, 8, 4), (1e-300, 7, 1), (1.0, 7, 7)],
)
def test_a_fraction_of_the_vocabulary_is_rounded_up(fraction, vocab_size, count):
    scores = distinct_scores(0, vocab_size=vocab_size)
    assert kept(rs.top_fraction(fraction), scores) == kept(rs.top_k(count), scores)
    assert kept(rs.top_fraction(np.float64(fraction)), scores) == kept(rs.top_k(count), scores)


# Top-p, min-p, top-a: exactly, at every boundary -------------------------------------------------


@pytest.mark.usefixtures("base_two")
@given(data=st.data())
def test_top_p_at_every_exact_boundary(data):
    scores = data.draw(halvings())
    probs = exact_probs(scores[0])
    sums = np.cumsum(sorted(probs, reverse=True))
    p = float(data.draw(st.sampled_from(list(sums))))
    for p_near in (math.nextafter(p, 0), p, min(math.nextafter(p, 2), 1.0)):
        finite = {i for i, q in enumerate(probs) if q}
        assert set(*kept(rs.top_p(p_near), scores)) == slow_top_p(probs, p_near) & finite


@pytest.mark.usefixtures("base_two")
@given(data=st.data())
def test_min_p_and_top_a_at_every_exact_boundary(data):
    scores = data.draw(halvings())
    probs = exact_probs(scores[0])
    finite = {i for i, q in enumerate(probs) if q}
    at = data.draw(st.sampled_from(sorted(finite)))
    for power, make in ((1, rs.min_p), (2, rs.top_a), (3, partial(rs.top_a, power=3))):
        ratio = float(min(probs[at] / max(probs) ** power, 1))
        for near in (math.nextafter(ratio, 0), ratio, min(math.nextafter(ratio, 2), 1.0)):
            expected = slow_top_a(probs, Fraction(near), power) & finite
            assert set(*kept(make(near), scores)) == expected


@given(seed=st.integers(0, 2**32), x=st.floats(0.01, 1))
def test_top_p_min_p_and_top_a_agree_with_their_definitions(seed, x):
    scores = distinct_scores(seed, batch=3)
    found = (kept(make, scores) for make in (rs.top_p(x), rs.min_p(x), rs.top_a(x, 1.5)))
    for row, by_p, by_ratio, by_a in zip(scores, *found, strict=True):
        probs = slow_softmax(row.tolist())
        assert set(by_p) == slow_top_p(probs, x, math.fsum)
        assert set(by_ratio) == slow_top_a(probs, x, 1)
        assert set(by_a) == slow_top_a(probs, x, 1.5)


def test_top_p_by_hand():
    uniform = np.zeros((1, 4))
    assert kept(rs.top_p(0.5), uniform) == [[0, 1]]  # a quarter and a quarter is p: enough
    assert kept(rs.top_p(math.nextafter(0.5, 1)), uniform) == [[0, 1, 2]]
    assert kept(rs.top_p(5e-324), uniform) == [[0]]
    assert kept(rs.top_p(ALMOST_1), uniform) == [[0, 1, 2, 3]]


def test_top_p_adds_in_float64_for_any_dtype():
    # float16 could not add these: 1/4096 is under its spacing at 1
    many = np.zeros((1, 4096), dtype="float16")
    assert [len(ids) for ids in kept(rs.top_p(0.75), many)] == [3072]


def test_min_p_and_top_a_by_hand():
    assert kept(rs.min_p(0.5), logs(0.5, 0.25, 0.24, 0.01)) == [[0, 1]]
    assert kept(rs.min_p(1), np.array([[2.0, 1.0, 2.0]])) == [[0, 2]]
    # the limit falls with the square of the best: .02 * .36 and .02 * .0441
    assert kept(rs.top_a(0.02), logs(0.6, 0.388, 0.008, 0.004)) == [[0, 1, 2]]
    assert kept(rs.top_a(0.02), logs(0.21, 0.395, 0.391, 0.004)) == [[0, 1, 2, 3]]
    assert kept(rs.top_a(0.02, 1), logs(0.21, 0.395, 0.391, 0.004)) == [[0, 1, 2]]


distributions = st.lists(st.floats(0.01, 1), min_size=1, max_size=9).map(
    lambda w: [x / math.fsum(w) for x in w]
)


def slow_entropy(p):
    return math.fsum(-x * math.log(x) for x in p)


@given(p=distributions, mass=st.floats(0.05, 0.99))
def test_typical_keeps_the_nearest_to_the_entropy(p, mass):
    far = [abs(-math.log(x) - slow_entropy(p)) for x in p]
    order = sorted(range(len(p)), key=lambda i: far[i])
    before = [math.fsum(p[j] for j in order[:k]) for k in range(len(p))]
    assume(all(far[b] - far[a] > 1e-9 for a, b in pairwise(order)))
    assume(all(abs(x - mass) > 1e-9 for x in before))
    expected = {i for i, x in zip(order, before, strict=True) if x < mass}
    assert set(*kept(rs.typical(mass), logs(*p))) == expected


@given(p=distributions, cutoff=st.floats(0.001, 1))
def test_epsilon_and_eta_keep_the_best_and_all_above_the_bar(p, cutoff):
    assume(sum(abs(x - max(p)) < 1e-9 for x in p) == 1)
    for make, bar in (
        (rs.epsilon, cutoff),
        (rs.eta, min(cutoff, math.sqrt(cutoff) * math.exp(-slow_entropy(p)))),
    ):
        assume(all(abs(x - bar) > 1e-9 for x in p))
        expected = {i for i, x in enumerate(p) if x >= bar or x == max(p)}
        assert set(*kept(make(cutoff), logs(*p))) == expected


@pytest.mark.parametrize(
    ("processor", "ids"),
    [
        (rs.top_p(0.5), [0]),
        (rs.top_p(0.75), [0, 2]),
        (rs.top_p(0.875), [0, 1, 2]),
        (rs.top_p(0.876), [0, 1, 2, 3]),
        (rs.epsilon(0.125), [0, 1, 2, 3]),
        (rs.epsilon(0.1251), [0, 2]),
        # nearest to the entropy is token 2, then 0, then 1 and 3 alike
        (rs.typical(0.75), [0, 2]),
        (rs.typical(0.7501), [0, 1, 2]),
        (rs.typical(0.7501, keep_ties=True), [0, 1, 2, 3]),
    ],
    ids=short,
)
def test_filters_of_probabilities_1_2_1_4_1_8_1_8(base_two, processor, ids):
    assert kept(processor, np.array([[-1.0, -3.0, -2.0, -3.0]])) == [ids]


def test_ranks_of_equal_scores_are_in_the_order_of_ids():
    scores = np.zeros((2, 211))
    scores[1, 105:] = 1.0
    expected = [[*range(211)], [*range(106, 211), *range(106)]]
    assert filters.ranks(scores).tolist() == expected
    before = np.take_along_axis(filters.probability_before(scores), np.argsort(expected), axis=1)
    assert (np.diff(before, axis=1) > 0).all()


@pytest.mark.parametrize("make", [rs.typical, rs.epsilon, rs.eta])
def test_removed_tokens_do_not_make_nan(make):
    scores = np.array([[0.0, -math.inf, 1.0]])
    assert not np.isnan(make(0.5)(scores, state())).any()


def test_gumbel_top_k_draws_without_replacement():
    """The first of two, and the ordered pair, with their exact probabilities."""
    p = np.array([0.5, 0.3, 0.2])
    n = 6000
    rng = np.random.default_rng(5)
    noise = -np.log(-np.log(rng.random((1, n, 3))))
    scores = np.log(np.tile(p, (n, 1)))
    pair = rs.gumbel_top_k(2, noise=noise)(scores, state(batch=n)) > -math.inf
    out_of = {  # the one left out, from both orders of the other two
        i: sum(p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations({0, 1, 2} - {i}))
        for i in range(3)
    }
    for i, probability in out_of.items():
        spread = math.sqrt(probability * (1 - probability) / n)
        assert abs((~pair[:, i]).mean() - probability) < 4 * spread
    assert (pair.sum(axis=1) == 2).all()


def test_gumbel_top_k_has_seed_zero_and_keeps_scores():
    scores, now = np.zeros((3, 50)), state(batch=3)
    first = rs.gumbel_top_k(5)(scores, now)
    assert np.array_equal(first, rs.gumbel_top_k(5, seed=0)(scores, now))
    assert not np.array_equal(first, rs.gumbel_top_k(5, seed=1)(scores, now))
    assert set(first[first > -math.inf].tolist()) == {0.0}
    only = rs.gumbel_top_k(5, rs.top_k(2), seed=1)(np.arange(50.0)[None], state())
    assert set(np.flatnonzero(only[0] > -math.inf).tolist()) >= {48, 49}


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-53])
def test_gumbel_noise_of_the_extreme_uniforms_is_finite(extreme, monkeypatch):
    drawn = SimpleNamespace(random=lambda n: np.full(n, extreme))
    monkeypatch.setattr(np.random, "Generator", lambda bits: drawn)
    assert np.isfinite(_gumbel(0, state(), 3)).all()


def test_noise_of_gumbel_top_k_that_does_not_fit_raises():
    scores, now = np.zeros((3, 50)), state(batch=3)
    later = dataclasses.replace(now, n_new=np.ones(3, dtype=int))
    with raises_naming(ValueError, "gumbel_top_k", "1 new tokens"):
        rs.gumbel_top_k(1, noise=np.zeros((1, 3, 50)))(scores, later)
    at_its_end = dataclasses.replace(later, emitted=np.zeros(3, dtype=bool))
    rs.gumbel_top_k(1, noise=np.zeros((1, 3, 50)))(scores, at_its_end)  # needs no noise
    for shape in ((2, 1, 50), (2, 7, 50), (2, 3, 51)):
        with raises_naming(ValueError, "gumbel_top_k's noise", "('n_steps', 3, 50)", shape):
            rs.gumbel_top_k(1, noise=np.zeros(shape))(scores, now)


def test_the_processors_of_gumbel_top_k_see_the_state():
    def only_new(scores, state):
        return scores + np.where(np.arange(7) == state.n_new[:, None], 100.0, 0.0)

    now = state(n_new=[2, 5])
    out = rs.gumbel_top_k(1, only_new)(np.zeros((2, 7)), now)
    assert out.argmax(axis=1).tolist() == [2, 5]


@given(seed=st.integers(0, 2**64 - 1), rows=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_gumbel_top_k_draws_its_noise_by_philox(seed, rows):
    rows, n_new = np.array(sorted(rows)), np.arange(len(rows))
    now = dataclasses.replace(state(batch=len(rows)), source_index=rows, n_new=n_new)
    scores = distinct_scores(seed % 2**32, batch=len(rows))
    out = rs.gumbel_top_k(3, seed=seed)(scores, now)
    for i, row in enumerate(rows.tolist()):
        place = rows[:i].tolist().count(row)
        words = np.array([0, i, place, 1], dtype=np.uint64)
        key = np.array([seed, row], dtype=np.uint64)
        uniform = np.random.Generator(np.random.Philox(key=key, counter=words)).random(
            scores.shape[1]
        )
        keys = scores[i] - np.log(-np.log(uniform))
        assert set(np.flatnonzero(out[i] > -math.inf)) == set(np.argsort(-keys)[:3])


# Errors ------------------------------------------------------------------------------------------

RANGES = {  # the name and the interval of a number, and some outside
    rs.temperature: ("temperature", "(0, inf)", [0, -1.0, math.inf, math.nan]),
    rs.top_fraction: ("top_fraction's fraction", "(0, 1]", [0.0, 1.5, math.nan, np.float32(5)]),
    rs.top_p: ("top_p's p", "(0, 1]", [0, 1.1, -0.1, math.nan]),
    rs.min_p: ("min_p's ratio", "[0, 1]", [-0.1, 1.1, math.nan]),
    rs.top_a: ("top_a's ratio", "[0, 1]", [-0.1, 1.1, math.nan]),
    partial(rs.top_a, 0.1): ("top_a's power", "[1, inf)", [0.5, math.inf, math.nan]),
    rs.typical: ("typical's mass", "(0, 1]", [0, -0.1, 1.1, math.nan]),
    rs.epsilon: ("epsilon's cutoff", "[0, 1]", [-0.1, 1.1, math.nan]),
    rs.eta: ("eta's cutoff", "[0, 1]", [-0.1, 1.1, math.nan]),
    rs.top_k: ("top_k's k", "at least 1", [0, -5]),
    rs.gumbel_top_k: ("gumbel_top_k's k", "at least 1", [0, -5]),
}
OUT_OF_RANGE = [
    (make, value, [name, interval, value])
    for make, (name, interval, values) in RANGES.items()
    for value in values
]


@pytest.mark.parametrize(("make", "value", "names"), OUT_OF_RANGE, ids=short)
def test_a_number_out_of_its_range_raises(make, value, names):
    with raises_naming(ValueError, *names):
        make(value)


@pytest.mark.parametrize("make", [rs.typical, rs.epsilon, rs.eta, rs.min_p, rs.top_a, rs.top_p])
def test_the_ends_of_a_range_are_in_it(make):
    scores = np.log(np.array([[0.5, 0.25, 0.25]]))
    loosest = 1 if make in (rs.typical, rs.top_p) else 0
    np.testing.assert_array_equal(make(loosest)(scores, state()), scores)


@pytest.mark.parametrize("bad", [True, np.True_, "1", None, [1], 1j])
@pytest.mark.parametrize(("make", "name"), [(make, name) for make, (name, *_) in RANGES.items()])
def test_a_number_of_another_type_raises(make, name, bad):
    kind = "an int" if "_k" in name else "a number"
    with raises_naming(TypeError, name, kind, f"got {type(bad).__name__}"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (lambda: rs.temperature(10**400), ValueError, ["temperature", "float"]),
        (lambda: rs.gumbel_top_k(1, noise=[[[1.0]]]), TypeError, ["noise", "got list"]),
        (lambda: rs.gumbel_top_k(1, noise=np.zeros((3, 50))), ValueError, ["noise", "(3, 50)"]),
        (lambda: rs.gumbel_top_k(1, seed=1.5), TypeError, ["gumbel_top_k's seed", "got float"]),
        (lambda: rs.gumbel_top_k(3, seed=2**64), ValueError, ["seed", 2**64]),
        (lambda: rs.gumbel_top_k(3, rs.top_k), TypeError, ["rs.top_k"]),
        (lambda: rs.gumbel_top_k(3, rs.greedy()), TypeError, ["rs.gumbel_top_k"]),
    ],
)
def test_a_bad_argument_raises_when_a_filter_is_made(make, kind, names):
    with raises_naming(kind, *names):
        make()
