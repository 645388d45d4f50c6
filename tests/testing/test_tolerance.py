"""`refseq2seq.testing.spread`: errors of rounding, measured and pooled."""

import dataclasses

import arrangements
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.config import RotaryPositions
from refseq2seq.testing import assert_agrees, first_difference, rounded, spread, strategies
from refseq2seq.testing.expected import Errors, participants
from refseq2seq.testing.rounding import round_to

SOURCE, TARGET = [[3, 4, 7, 9, 5], [5, 6, 11]], [[1, 5, 8], [1, 7, 3]]
CONFIGS = {
    "x-transformers": arrangements.x_transformers,
    "vaswani": arrangements.vaswani,
    "rich": arrangements.rich,
}
MODELS = {name: rs.Model.random(config, 1, "float64") for name, config in CONFIGS.items()}


def traced(model, source=SOURCE, target=TARGET, mask=None):
    trace = rs.Trace()
    rs.forward(model, source, target, mask, tap=trace)
    return trace


def rounding_everywhere(model, dtype):
    """A correct implementation in ``dtype``: what is tapped is rounded to nearest."""
    trace = rs.Trace()
    tap = rs.FunctionTap(lambda name, x: trace(name, round_to(x, dtype)))
    rs.forward(model, SOURCE, TARGET, tap=tap)
    return trace


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_errors_of_rounding_to_nearest_are_0_7_of_the_spread(dtype):
    ratios = []
    for config in CONFIGS.values():
        for seed in range(2):
            model = rounded(rs.Model.random(config, seed, "float64"), dtype)
            within = spread(model, SOURCE, TARGET, dtype=dtype)
            right = rounding_everywhere(model, dtype)
            assert first_difference(within, right) is None
            e = within["logits"]
            ratios.append(np.mean((right["logits"] - e.value) ** 2) / np.mean(e.sigma**2))
    ratio = np.mean(ratios) ** 0.5
    # In float32 the steps inside an operation round too; here only its result is rounded.
    assert 0.6 < ratio < 0.85 if dtype != "float32" else 0.2 < ratio < 0.5


@settings(max_examples=12)
@given(data=st.data())
def test_float32_agrees_in_every_quantity(data):
    model = data.draw(strategies.models(dtype="float32"))
    source = data.draw(strategies.sources(model))
    target = data.draw(strategies.targets(model, source.batch))
    within = spread(model, *source[:1], target, source.mask, dtype="float32")
    assert_agrees(traced(model, source.tokens, target, source.mask), within)


@pytest.mark.parametrize("name", MODELS)
def test_the_value_is_that_of_float64(name):
    model = MODELS[name]
    within, trace = spread(model, SOURCE, TARGET, dtype="float64", runs=1), traced(model)
    assert list(within) == list(trace)
    for quantity, x in trace.items():
        e = within[quantity]
        assert np.array_equal(e.value, x)
        assert e.sigma.shape == (*x.shape[:-1], 1)
        assert e.own_sigma.shape == e.where.shape == e.element_sigma.shape == x.shape
        assert (e.element_sigma >= e.sigma).all()
        rounds = e.where.any(axis=-1, keepdims=True) & (x != 0).any(-1, keepdims=True)
        assert (e.sigma[rounds] > 0).all()
    assert f"{len(trace)} quantities" in repr(within)


def test_spreads_are_in_proportion_to_the_steps_of_the_format():
    model = rounded(rounded(MODELS["x-transformers"], "bfloat16"), "float16")
    sigma = {
        dtype: np.sqrt(np.mean(spread(model, SOURCE, TARGET, dtype=dtype)["logits"].sigma ** 2))
        for dtype in ("bfloat16", "float16", "float32")
    }
    assert sigma["bfloat16"] / sigma["float16"] == pytest.approx(8, rel=0.2)
    # In float32 the steps inside an operation round as its result does: a little more.
    assert 2**13 / 4 < sigma["float16"] / sigma["float32"] < 2**13


def test_low_accumulation_widens_the_spread():
    model = rounded(MODELS["x-transformers"], "float16")
    for dtype, low in (("float16", "float16"), ("float32", "bfloat16")):
        high, wide = (
            spread(model, SOURCE, TARGET, dtype=dtype, accumulate=a)["logits"].sigma.mean()
            for a in (None, low)
        )
        assert wide > 1.2 * high


def test_the_same_seed_gives_the_same_spread():
    model = rounded(MODELS["rich"], "float16")
    a, b, c = (
        spread(model, SOURCE, TARGET, dtype="float16", runs=2, seed=seed)["logits"].sigma
        for seed in (3, 3, 4)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_runs_that_do_not_fit_at_once_are_computed_in_parts(monkeypatch):
    model = rounded(MODELS["rich"], "bfloat16")
    whole = spread(model, SOURCE, TARGET, dtype="bfloat16", runs=40)
    size = max(e.value.size for e in whole.values())
    monkeypatch.setattr("refseq2seq.testing.tolerance.AT_ONCE", 7 * size)
    parts = spread(model, SOURCE, TARGET, dtype="bfloat16", runs=40)
    assert list(parts) == list(whole)
    for name, e in whole.items():
        ratio = parts[name].sigma.mean() / e.sigma.mean()
        assert 0.6 < ratio < 1.6, name


def test_an_exact_model_has_the_same_value():
    model = rounded(MODELS["rich"], "float16")
    within = spread(model.exact(), SOURCE, TARGET, dtype="float16", runs=1)
    assert type(within["logits"].value) is np.ndarray
    assert np.array_equal(within["logits"].value, rs.forward(model, SOURCE, TARGET))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, r"(de|en)coder\.embedding"),  # it is not rounded
        ({"dtype": "half"}, "dtype .*'half'"),
        ({"dtype": "float64", "accumulate": "half"}, "'half'"),
        ({"dtype": "float64", "runs": 0}, "runs .*got 0"),
    ],
)
def test_wrong_arguments_of_spread_raise(options, message):
    with pytest.raises(ValueError, match=message):
        spread(MODELS["vaswani"], SOURCE, TARGET, **options)


def test_a_number_that_is_not_finite_has_no_limit():
    within = spread(rounded(MODELS["vaswani"], "float32"), SOURCE, TARGET, dtype="float32", runs=1)
    theirs = {"logits": np.full_like(within["logits"].value, np.nan)}
    found = first_difference(within, theirs)
    assert found.reason == "not finite"
    assert "allowed" not in str(found)


def test_an_overflow_is_named():
    config = CONFIGS["x-transformers"]
    encoder = dataclasses.replace(config.encoder, embedding_scale=1e5)
    model = rounded(rs.Model.random(dataclasses.replace(config, encoder=encoder), 0), "float16")
    with pytest.raises(ValueError, match=r"encoder\.tokens .*float16"):
        spread(model, SOURCE, TARGET, dtype="float16")
    spread(rounded(model, "bfloat16"), SOURCE, TARGET, dtype="bfloat16", runs=1)


def test_places_of_padding_are_left_out():
    mask = np.array([[False, True, True, True], [True, True, False, False]])
    source, target = np.array([[0, 3, 4, 5], [6, 7, 0, 0]]), [[1, 5, 8], [1, 7]]
    model = rounded(MODELS["rich"], "float32")
    within = spread(model, source, target, mask, dtype="float32", runs=1)
    learned, pairs = model.config.encoder.n_register_tokens, 2
    assert model.config.encoder.self_attention.n_learned_kv == pairs
    real = np.concatenate([np.ones((2, learned), bool), mask], axis=1)
    keys = np.concatenate([np.ones((2, pairs), bool), real], axis=1)
    targets = np.array([[True, True, True], [True, True, False]])
    at = "encoder.layers.0.self_attention"
    expected = {
        "encoder.embed": mask[..., None],
        "encoder.final": real[..., None],
        f"{at}.k": real[:, None, :, None],
        f"{at}.scores": real[:, None, :, None] & keys[:, None, None, :],
        f"{at}.weights": real[:, None, :, None],
        "decoder.layers.1.cross_attention.v": mask[:, None, :, None],
        "decoder.layers.1.cross_attention.scores": targets[:, None, :, None]
        & keys[:, None, None, [0, 1, 4, 5, 6, 7]],
        "decoder.layers.1.self_attention.scores": (targets[:, None, :, None])
        & np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
        & np.concatenate([np.ones((2, 2), bool), targets], axis=1)[:, None, None, :],
        "decoder.positions": np.ones((1, 1), bool),
        "logits": targets[..., None],
    }
    for name, where in expected.items():
        e = within[name]
        assert np.array_equal(e.where, np.broadcast_to(where, e.value.shape)), name


def test_values_at_padding_are_not_compared():
    """The spread is that of the real tokens."""
    model = rounded(MODELS["x-transformers"], "float32")
    within = spread(model, SOURCE, TARGET, dtype="float32")
    trace = dict(traced(model.astype("float32")))
    trace["encoder.final"] = trace["encoder.final"].copy()
    trace["encoder.final"][1, 3:] = np.nan
    assert_agrees(trace, within)
    alone = spread(model, [SOURCE[1]], [TARGET[1]], dtype="float32", runs=64)
    both = spread(model, SOURCE, TARGET, dtype="float32", runs=64)
    ratio = both["logits"].sigma[1] / alone["logits"].sigma[0]
    assert ((ratio > 0.5) & (ratio < 2)).all()


@pytest.mark.parametrize("what", ["sinusoids", "rotations"])
def test_the_spread_of_angles_grows_with_the_position(what):
    """In float32 p omega is off by half a step of p, which is far more than that of a sine."""
    config = CONFIGS["vaswani"]
    if what == "rotations":
        rotary = RotaryPositions(d_rotary=6, base=1e4, pairing="halves")
        fields = {"positions": None, "relative_positions": rotary}
        stacks = {
            side: dataclasses.replace(getattr(config, side), **fields)
            for side in ("encoder", "decoder")
        }
        config = dataclasses.replace(config, **stacks)
    model = rounded(rs.Model.random(config, 0), "float32")
    source = np.full((1, 101), 5)
    within = spread(model, source, [[1]], dtype="float32")
    name = "positions" if what == "sinusoids" else "layers.0.self_attention.q"
    sigma = within[f"encoder.{name}"].element_sigma
    sigma = sigma.reshape(-1, 101, sigma.shape[-1]).mean((0, 2))
    assert sigma[90:].mean() > 5 * sigma[:3].mean()


def pooled(value, *errors, where=True, dtype="float32"):
    found = Errors(value, np.broadcast_to(where, value.shape))
    for of_runs in errors:
        found.add(of_runs)
    return found.expected(dtype)


def test_errors_of_a_row_are_pooled_and_counted():
    rng = np.random.default_rng(0)
    scale = np.arange(1, 6)[:, None]
    errors = (scale * rng.standard_normal((n, 5, 1000)) for n in (3, 29))
    e = pooled(np.zeros((5, 1000)), *errors)
    assert e.sigma[:, 0] == pytest.approx(np.arange(1, 6), rel=0.05)
    assert e.own_sigma.mean(axis=-1) == pytest.approx(np.arange(1, 6), rel=0.05)
    assert (e.independent > 500).all()
    assert (e.rms_limit(6) == 2).all()


def test_errors_outside_where_are_not_pooled():
    errors = np.array([[[1.0, -1, 100, 7]], [[3.0, 3, -100, 7]]])
    e = pooled(np.zeros((1, 4)), errors, where=np.arange(4) < 2)
    assert e.sigma.item() == 5**0.5
    assert e.independent.item() <= 2


def test_correlated_errors_count_as_one():
    rng = np.random.default_rng(0)
    value = np.zeros((50, 20))
    together = pooled(value, rng.standard_normal((64, 50, 1)) * np.ones(20))
    assert (together.independent < 1.3).all()
    pairs = pooled(value, np.repeat(rng.standard_normal((64, 50, 10)), 2, axis=-1))
    assert np.median(pairs.independent) == pytest.approx(10, rel=0.25)


def test_the_spread_is_at_least_that_of_one_rounding():
    value = np.array([[1.0, -1.0], [0.0, 0.0]])
    sigma = pooled(value, value[None], dtype="bfloat16").sigma
    assert sigma[:, 0] == pytest.approx([2**-7 / 12**0.5, 0])


def test_participants_do_not_depend_on_scale():
    x = np.array([[4.0, 4.0, 0.0, 4.0]])
    for scale in (1e-300, 1.0, 1e200):
        assert participants(scale * x).item() == pytest.approx(3)
