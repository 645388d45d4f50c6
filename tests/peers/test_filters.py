"""`refseq2seq.like` beside the peers' own filters, on the same logits: the same scores stay.

Their softmax and ours may differ in the last bits, so that what falls right on a boundary
may fall on either side. Random logits are taken where that cannot be: where a change of all
logits a thousand times as great changes nothing. Boundaries themselves are tried with
probabilities that every softmax gives exactly.
"""

import math
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq import like

torch = pytest.importorskip("torch", reason="the peers need PyTorch: pip install '.[peers]'")
autoregressive = pytest.importorskip(
    "x_transformers.autoregressive_wrapper", reason="pip install '.[peers]'"
)
transformers = pytest.importorskip("transformers", reason="pip install '.[peers]'")

DTYPES = ["float32", "float64"]


def run(chooser, logits):
    for process in chooser.processors:
        logits = process(logits, None)
    return logits


def ids(row):
    return np.flatnonzero(np.asarray(row) > -math.inf).tolist()


def is_stable(filtered, logits):
    """Whether the same tokens stay when logits change by 1e-4; roundings are of 1e-7."""
    softer, sharper = filtered(logits * (1 - 1e-4)), filtered(logits * (1 + 1e-4))
    return np.array_equal(softer > -math.inf, sharper > -math.inf)


def random_logits(seed, dtype):
    rng = np.random.default_rng(seed)
    shape = 3, int(rng.choice([2, 11, 101, 1009]))
    return (rng.uniform(0.5, 5) * rng.standard_normal(shape)).astype(dtype)


def tied_logits(seed, dtype):
    """Quarters from few: many are equal, and 16 at most, which PyTorch sorts stably."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 5, size=(3, 13)) / 4).astype(dtype)


def theirs_x_transformers(name, logits, temperature=1.0, **kwargs):
    filtered = autoregressive.FILTER_LOGITS_FN[name](torch.from_numpy(logits.copy()), **kwargs)
    return (filtered / temperature).numpy()


def ours_x_transformers(name, logits, temperature=1.0, **kwargs):
    chooser = like.x_transformers(
        temperature=temperature, filter_logits_fn=name, filter_kwargs=kwargs
    )
    return run(chooser, logits)


@cache
def any_huggingface_model():
    config = transformers.T5Config(
        vocab_size=3, d_model=2, d_kv=1, d_ff=2, num_layers=1, num_heads=1
    )
    return transformers.T5ForConditionalGeneration(config)


def theirs_huggingface(logits, **options):
    """The processors that `generate` puts together, in its order, on its float32 logits."""
    settings = transformers.GenerationConfig(do_sample=True, **options)
    processors = any_huggingface_model()._get_logits_processor(generation_config=settings)
    return processors(None, torch.from_numpy(logits).to(torch.float32)).numpy()


def ours_huggingface(logits, **options):
    return run(like.huggingface(do_sample=True, **options), logits)


# Random logits, and ties -------------------------------------------------------------------------

X_TRANSFORMERS = [
    ("top_k", {}),
    ("top_k", {"frac_num_tokens": 0.37}),
    ("top_k", {"k": 2}),
    ("top_k", {"k": 5000}),
    ("top_p", {}),
    ("top_p", {"thres": 0.3}),
    ("top_p", {"thres": 0.99}),
    ("top_a", {}),
    ("top_a", {"min_p_pow": 1.5, "min_p_ratio": 0.3}),
    ("min_p", {}),
    ("min_p", {"min_p": 0.5}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kwargs"), X_TRANSFORMERS)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([1.0, 0.7, 3.0]))
def test_x_transformers_on_random_logits(name, kwargs, dtype, seed, temperature):
    logits = random_logits(seed, dtype)
    assume(is_stable(lambda x: ours_x_transformers(name, x, **kwargs), logits))
    ours = ours_x_transformers(name, logits, temperature, **kwargs)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs_x_transformers(name, logits, temperature, **kwargs))


# Its top_k is not here: which of equal logits it keeps is PyTorch's secret, see below.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "kwargs"), X_TRANSFORMERS[4:])
@given(seed=st.integers(0, 2**32))
def test_x_transformers_on_ties(name, kwargs, dtype, seed):
    logits = tied_logits(seed, dtype)
    assume(is_stable(lambda x: ours_x_transformers(name, x, **kwargs), logits))
    np.testing.assert_array_equal(
        ours_x_transformers(name, logits, **kwargs), theirs_x_transformers(name, logits, **kwargs)
    )


HUGGINGFACE = [
    {"top_k": 0},
    {"top_k": 50},
    {"top_k": 3},
    {"top_k": 0, "top_p": 0.9},
    {"top_k": 0, "top_p": 0.3},
    {"top_k": 0, "min_p": 0.1},
    {"top_k": 0, "temperature": 0.7},
    {"top_k": 7, "temperature": 1.3, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", HUGGINGFACE, ids=str)
@pytest.mark.parametrize("logits_of", [random_logits, tied_logits])
@given(seed=st.integers(0, 2**32))
def test_huggingface_on_random_logits_and_on_ties(logits_of, options, dtype, seed):
    logits = logits_of(seed, dtype)
    assume(is_stable(lambda x: ours_huggingface(x, **options), logits))
    ours = ours_huggingface(logits, **options)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs_huggingface(logits, **options))


# Boundaries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_top_p_of_equal_probabilities_at_every_boundary(n, dtype):
    uniform = np.zeros((1, n), dtype=dtype)
    for count in range(n + 1):
        p = count / n
        for near in (max(p - 1e-7, 0), p, min(p + 1e-7, 1)):
            np.testing.assert_array_equal(
                ours_x_transformers("top_p", uniform, thres=near),
                theirs_x_transformers("top_p", uniform, thres=near),
            )
            np.testing.assert_array_equal(
                ours_huggingface(uniform, top_k=0, top_p=near),
                theirs_huggingface(uniform, top_k=0, top_p=near),
            )


@pytest.mark.parametrize("n", [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_p_of_equal_probabilities_that_are_rounded(n, dtype):
    # sums of 1/n and multiples of it are rounded differently, and PyTorch's way is ours
    uniform = np.zeros((1, n), dtype=dtype)
    for count in range(1, n):
        np.testing.assert_array_equal(
            ours_x_transformers("top_p", uniform, thres=count / n),
            theirs_x_transformers("top_p", uniform, thres=count / n),
        )
        np.testing.assert_array_equal(
            ours_huggingface(uniform, top_k=0, top_p=count / n),
            theirs_huggingface(uniform, top_k=0, top_p=count / n),
        )


def test_top_p_of_halves():
    halves = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], dtype="float32"))
    assert torch.from_numpy(halves).softmax(-1).tolist() == [[0.5, 0.25, 0.125, 0.125]]
    for p, x_transformers, huggingface in (
        (0.5, [0, 1], [0]),
        (0.75, [0, 1, 2], [0, 1]),
        (0.875, [0, 1, 2, 3], [0, 1, 3]),
        (1.0, [0, 1, 2, 3], [0, 1, 2, 3]),
    ):
        for filtered in (ours_x_transformers, theirs_x_transformers):
            assert ids(filtered("top_p", halves, thres=p)[0]) == x_transformers
        for filtered in (ours_huggingface, theirs_huggingface):
            assert ids(filtered(halves, top_k=0, top_p=p)[0]) == huggingface


def test_min_p_and_top_a_at_their_limits():
    # of exp(0) and exp(-log 2) the second is exactly half as probable as the first
    logits = np.array([[0.0, -math.log(2), -math.log(2), -9.0]], dtype="float32")
    for ratio, stay in ((0.5, [0, 1, 2]), (0.50001, [0]), (0.49999, [0, 1, 2])):
        for filtered in (ours_x_transformers, theirs_x_transformers):
            assert ids(filtered("min_p", logits, min_p=ratio)[0]) == stay
            assert ids(filtered("top_a", logits, min_p_pow=1.0, min_p_ratio=ratio)[0]) == stay
        for filtered in (ours_huggingface, theirs_huggingface):
            assert ids(filtered(logits, top_k=0, min_p=ratio)[0]) == stay


def test_the_fraction_of_top_k_is_rounded_up_in_floating_point():
    for fraction in (0.1, 0.3, 0.7):
        for n in range(1, 150):
            logits = np.random.default_rng(n).standard_normal((1, n))
            ours = ours_x_transformers("top_k", logits, frac_num_tokens=fraction)
            theirs = theirs_x_transformers("top_k", logits, frac_num_tokens=fraction)
            np.testing.assert_array_equal(ours, theirs)


def test_equal_in_float32_is_equal_to_huggingface():
    logits = np.array([[1.0, 1.0 + 1e-9, 0.0]])
    for filtered in (ours_huggingface, theirs_huggingface):
        assert ids(filtered(logits, top_k=1)[0]) == [0, 1]


# Where PyTorch decides between equals ------------------------------------------------------------


def stay(filtered, n, **options):
    return ids(filtered(np.zeros((1, n)), **options)[0])


def test_which_of_equal_logits_x_transformers_top_k_keeps_is_arbitrary():
    # seen: 2 and 3 of 4, 2 and 4 of 5, 66 and 67 of 100
    ours, theirs = partial(ours_x_transformers, "top_k"), partial(theirs_x_transformers, "top_k")
    sizes = range(3, 101)
    assert all(len(stay(theirs, n, k=2)) == 2 for n in sizes)
    assert any(stay(theirs, n, k=2) != [0, 1] for n in sizes)
    assert all(stay(ours, n, k=2) == [0, 1] for n in sizes)


def test_beyond_16_equals_pytorch_sorts_them_as_it_likes():
    # seen: 8 and 16 of 17 before all others in descending order
    ours, theirs = partial(ours_x_transformers, "top_p"), partial(theirs_x_transformers, "top_p")
    assert any(stay(theirs, n, thres=0.01) != stay(ours, n, thres=0.01) for n in range(17, 201))
    for n in range(2, 17):
        assert stay(theirs, n, thres=0.01) == stay(ours, n, thres=0.01) == [0]
        options = {"top_k": 0, "top_p": 0.01}
        assert stay(theirs_huggingface, n, **options) == stay(ours_huggingface, n, **options)
        assert stay(ours_huggingface, n, **options) == [n - 1]


NEWER = {
    "typical": (rs.typical, transformers.TypicalLogitsWarper, [0.2, 0.7, 0.95]),
    "epsilon": (rs.epsilon, transformers.EpsilonLogitsWarper, [0.003, 0.05, 0.3]),
    "eta": (rs.eta, transformers.EtaLogitsWarper, [0.003, 0.05, 0.3]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEWER)
@given(seed=st.integers(0, 2**32), level=st.integers(0, 2))
def test_typical_epsilon_and_eta_as_in_huggingface(name, dtype, seed, level):
    ours, theirs, levels = NEWER[name]
    logits = random_logits(seed, dtype)

    def filtered(x):
        return ours(levels[level])(x, None)

    assume(is_stable(filtered, logits))
    expected = theirs(levels[level])(None, torch.from_numpy(logits)).numpy()
    assert np.array_equal(filtered(logits), expected)


def test_of_tokens_equally_typical_huggingface_keeps_all():
    logits = np.log(np.full((1, 4), 0.25))
    kept = transformers.TypicalLogitsWarper(0.5)(None, torch.from_numpy(logits)).numpy()
    assert ids(kept[0]) == [0, 1, 2, 3]
    assert ids(rs.typical(0.5)(logits, None)[0]) == [0, 1]
