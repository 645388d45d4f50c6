"""`refseq2seq.testing.spread` and the assertions that stand on it."""

import dataclasses

import arrangements
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.config import RotaryPositions
from refseq2seq.exact import sequential_matmul, sequential_sum
from refseq2seq.testing import (
    assert_agrees,
    assert_tokens_agree,
    first_difference,
    rounded,
    spread,
    strategies,
)
from refseq2seq.testing.arithmetic import Arithmetic, LowPrecisionArray, low_precision
from refseq2seq.testing.expected import Errors, participants
from refseq2seq.testing.rounding import round_to, step_at

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
def test_rounding_to_nearest_stays_at_0_7_of_the_spread(dtype):
    ratios = []
    for config in CONFIGS.values():
        for seed in range(4):
            model = rounded(rs.Model.random(config, seed, "float64"), dtype)
            within = spread(model, SOURCE, TARGET, dtype=dtype)
            right = rounding_everywhere(model, dtype)
            assert first_difference(within, right) is None
            e = within["logits"]
            ratios.append(np.mean((right["logits"] - e.value) ** 2) / np.mean(e.sigma**2))
    ratio = np.mean(ratios) ** 0.5
    # In float32 the insides of operations round too, which rounding what is tapped leaves out.
    assert 0.6 < ratio < 0.85 if dtype != "float32" else 0.2 < ratio < 0.5


@settings(max_examples=12)
@given(data=st.data())
def test_our_own_float32_is_accepted_in_every_quantity(data):
    model = data.draw(strategies.models(dtype="float32"))
    source = data.draw(strategies.sources(model))
    target = data.draw(strategies.targets(model, source.batch))
    within = spread(model, *source[:1], target, source.mask, dtype="float32")
    assert_agrees(traced(model, source.tokens, target, source.mask), within)


@pytest.mark.parametrize("name", MODELS)
def test_the_value_is_the_float64_oracle(name):
    model = MODELS[name]
    within, trace = spread(model, SOURCE, TARGET, dtype="float64", runs=1), traced(model)
    assert list(within) == list(trace)
    for quantity, x in trace.items():
        e = within[quantity]
        assert np.array_equal(e.value, x)
        assert e.sigma.shape == (*x.shape[:-1], 1)
        assert e.own_sigma.shape == e.where.shape == e.element_sigma.shape == x.shape
        assert (e.element_sigma >= e.sigma).all()
        assert (
            e.sigma[e.where.any(axis=-1, keepdims=True) & (x != 0).any(-1, keepdims=True)] > 0
        ).all()
    assert repr(within) == f"<Spread of {len(trace)} quantities under rounding to float64>"


def test_spreads_are_in_proportion_to_the_steps_of_the_format():
    model = rounded(rounded(MODELS["x-transformers"], "bfloat16"), "float16")
    sigma = {
        dtype: np.sqrt(np.mean(spread(model, SOURCE, TARGET, dtype=dtype)["logits"].sigma ** 2))
        for dtype in ("bfloat16", "float16", "float32")
    }
    assert sigma["bfloat16"] / sigma["float16"] == pytest.approx(8, rel=0.2)
    # In float32 the insides of operations round no finer than tensors: a little more.
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


def test_an_exact_model_has_the_same_oracle():
    model = rounded(MODELS["rich"], "float16")
    within = spread(model.exact(), SOURCE, TARGET, dtype="float16", runs=1)
    assert type(within["logits"].value) is np.ndarray
    assert np.array_equal(within["logits"].value, rs.forward(model, SOURCE, TARGET))


def test_arguments_are_checked():
    model = MODELS["vaswani"]
    with pytest.raises(ValueError, match=r"decoder\.embedding holds|encoder\.embedding holds"):
        spread(model, SOURCE, TARGET, dtype="float16")
    with pytest.raises(ValueError, match=r"dtype must be one of .* got 'half'"):
        spread(model, SOURCE, TARGET, dtype="half")
    with pytest.raises(ValueError, match=r"dtype must be one of .* got 'half'"):
        spread(model, SOURCE, TARGET, dtype="float64", accumulate="half")
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        spread(model, SOURCE, TARGET, dtype="float64", runs=0)


def test_an_overflow_is_named():
    config = dataclasses.replace(
        CONFIGS["x-transformers"],
        encoder=dataclasses.replace(CONFIGS["x-transformers"].encoder, embedding_scale=1e5),
    )
    model = rounded(rs.Model.random(config, 0), "float16")
    with pytest.raises(ValueError, match=r"encoder\.tokens overflows in float16"):
        spread(model, SOURCE, TARGET, dtype="float16")
    spread(rounded(model, "bfloat16"), SOURCE, TARGET, dtype="bfloat16", runs=1)


def test_places_without_meaning_are_left_out():
    mask = np.array([[False, True, True, True], [True, True, False, False]])
    source, target = np.array([[0, 3, 4, 5], [6, 7, 0, 0]]), [[1, 5, 8], [1, 7]]
    model = rounded(MODELS["rich"], "float32")
    within = spread(model, source, target, mask, dtype="float32", runs=1)
    learned, pairs = model.config.encoder.n_memory_tokens, 2
    assert model.config.encoder.self_attention.n_memory_kv == pairs
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


def test_what_padding_holds_does_not_matter():
    """An implementation may have anything there, and the spread is that of the real tokens."""
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
def test_angles_are_less_certain_the_further_the_position(what):
    """In float32 p omega is off by half a step of p, which is far more than that of a sine."""
    config = CONFIGS["vaswani"]
    if what == "rotations":
        rotary = RotaryPositions(d_rotary=6, base=1e4, pairing="halves")
        stacks = {
            side: dataclasses.replace(
                getattr(config, side), positions=None, relative_positions=rotary
            )
            for side in ("encoder", "decoder")
        }
        config = dataclasses.replace(config, **stacks)
    model = rounded(rs.Model.random(config, 0), "float32")
    source = np.full((1, 101), 5)
    within = spread(model, source, [[1]], dtype="float32")
    name = "positions" if what == "sinusoids" else "layers.0.self_attention.q"
    sigma = (
        within[f"encoder.{name}"]
        .element_sigma.reshape(
            -1, 101, model.config.encoder.d_model // (1 if what == "sinusoids" else 2)
        )
        .mean((0, 2))
    )
    assert sigma[90:].mean() > 5 * sigma[:3].mean()


def test_agreement_is_that_of_one_quantity_or_of_many():
    model = rounded(MODELS["x-transformers"], "bfloat16")
    within, right = spread(model, SOURCE, TARGET, dtype="bfloat16"), traced(model)
    assert_agrees(right["logits"], within)
    assert_agrees(right["encoder.final"], within, name="encoder.final")
    assert_agrees(right, within)
    wrong = dict(right)
    wrong["decoder.layers.1.feed_forward.out"] = 1.5 * right["decoder.layers.1.feed_forward.out"]
    wrong["logits"] = 2 * right["logits"]
    with pytest.raises(AssertionError, match=r"^decoder\.layers\.1\.feed_forward\.out differs"):
        assert_agrees(wrong, within)
    with pytest.raises(AssertionError, match=r"^logits differs") as caught:
        assert_agrees(wrong["logits"], within)
    story = str(caught.value)
    e = within["logits"]
    spreads = np.abs(right["logits"]) / e.element_sigma
    row = np.unravel_index(spreads.max(-1).argmax(), (2, 3))
    assert f"{spreads.max():.3g} spreads (allowed 6)" in story
    assert f"{(spreads > 6).sum()} of {e.value.size} elements are over" in story
    assert f"the worst rows, in spreads: [{row[0]}, {row[1]}] {spreads.max():.3g}" in story


def test_z_scales_what_is_allowed():
    model = rounded(MODELS["x-transformers"], "bfloat16")
    within = spread(model, SOURCE, TARGET, dtype="bfloat16")
    e = within["logits"]
    off = e.value.copy()
    off[0, 1, 2] += 7 * e.element_sigma[0, 1, 2]
    assert_agrees(off, within, z=7.1)
    with pytest.raises(AssertionError, match=r"7 spreads \(allowed 6\)"):
        assert_agrees(off, within)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(value):
    model = rounded(MODELS["x-transformers"], "bfloat16")
    within = spread(model, SOURCE, TARGET, dtype="bfloat16")
    with pytest.raises(AssertionError, match="NaN, or infinity"):
        assert_agrees(np.full(within["logits"].value.shape, value), within)
    with pytest.raises(AssertionError, match="shape"):
        assert_agrees(within["logits"].value[0], within)


def greedy(dtype="bfloat16"):
    model = rounded(MODELS["x-transformers"], dtype)
    tokens = rs.generate(model, SOURCE, max_new_tokens=6, eos_ids=()).tokens
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    return tokens, spread(model, SOURCE, target, dtype=dtype)


def test_the_oracles_own_tokens_agree():
    tokens, within = greedy()
    found = assert_tokens_agree(tokens, within, eos_ids=())
    assert (found.compared, found.total, found.diverged) == (12, 12, ())
    assert str(found) == "12 of 12 tokens are the oracle's"
    longer = np.concatenate([tokens, tokens], axis=1)
    assert assert_tokens_agree(longer.tolist(), within, eos_ids=()) == found


def test_another_token_is_wrong_unless_it_nearly_ties():
    tokens, within = greedy()
    logits = within["logits"].value[1, 2]  # of new token 2, the prefix being one token
    second = int(np.argsort(logits)[-2])
    changed = tokens.copy()
    changed[1, 2:] = second
    margin = logits.max() - logits[second]
    sigma = within["logits"].element_sigma[1, 2]
    spreads = margin / np.hypot(sigma[tokens[1, 2]], sigma[second])
    assert spreads > 6
    with pytest.raises(AssertionError, match="rounding to bfloat16 explains at most 6") as caught:
        assert_tokens_agree(changed, within, eos_ids=())
    assert f"new token 2 of row 1 is {second}; the oracle's is {tokens[1, 2]}" in str(caught.value)
    assert f"greater by {margin:.3g}, or {spreads:.3g} spreads" in str(caught.value)
    found = assert_tokens_agree(changed, within, z=spreads * 1.001, eos_ids=())
    assert (found.compared, found.total) == (8, 12)
    (stop,) = found.diverged
    assert (stop.row, stop.position, stop.token) == (1, 2, second)
    assert stop.margin == margin
    assert stop.spreads == pytest.approx(spreads)
    assert "8 of 12 tokens are the oracle's\n  new token 2 of row 1 is" in str(found)
    with pytest.raises(AssertionError, match="explains at most"):
        assert_tokens_agree(changed, within, z=spreads * 0.999, eos_ids=())


def test_a_row_must_not_end_before_the_oracle():
    tokens, within = greedy()
    with pytest.raises(AssertionError, match=f"row 0 ends after 4 .* goes on with {tokens[0, 4]}"):
        assert_tokens_agree(tokens[:, :4], within, eos_ids=())
    # After the oracle's end nothing is compared, and eos_ids says where that is.
    found = assert_tokens_agree(
        tokens[:, :4], within, eos_ids=(int(tokens[0, 2]), int(tokens[1, 3]))
    )
    assert found.total == found.compared
    assert 2 <= found.total <= 7


def test_the_target_must_be_the_oracles_choice():
    """Else somebody's own tokens, given as the target, would always agree."""
    model = rounded(MODELS["x-transformers"], "bfloat16")
    tokens, _ = greedy()
    tokens[0, 3] = (tokens[0, 3] + 1) % 23
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    within = spread(model, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match=r"new token 3 of row 0 is .* the oracle prefers"):
        assert_tokens_agree(tokens, within, eos_ids=())


def test_tokens_that_a_model_suppresses_are_not_its_choice():
    config = CONFIGS["x-transformers"]
    model = rounded(MODELS["x-transformers"], "bfloat16")
    free = rs.generate(model, SOURCE, max_new_tokens=4, eos_ids=()).tokens
    config = dataclasses.replace(
        config, suppressed_ids=(int(free[0, 1]),), begin_suppressed_ids=(int(free[1, 0]),)
    )
    model = dataclasses.replace(model, config=config)
    tokens = rs.generate(model, SOURCE, max_new_tokens=4, eos_ids=()).tokens
    assert not np.array_equal(tokens, free)
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    within = spread(model, SOURCE, target, dtype="bfloat16", runs=1)
    assert assert_tokens_agree(tokens, within, eos_ids=()).compared == 8


def test_rows_and_prefix_are_checked():
    tokens, within = greedy()
    with pytest.raises(ValueError, match="tokens has 1 rows, the target of the spread 2"):
        assert_tokens_agree(tokens[:1], within)
    for n_prefix in (0, 7):
        with pytest.raises(ValueError, match=f"n_prefix must be from 1 to 6, .* got {n_prefix}"):
            assert_tokens_agree(tokens, within, n_prefix=n_prefix)
    assert assert_tokens_agree(tokens[:, 2:], within, n_prefix=3, eos_ids=()).total == 8


# What the spread is made of.


def arithmetic(stored="float32", operands=None, computed="float32"):
    return Arithmetic(stored, operands or stored, computed, np.random.default_rng(0))


def of_the_format(x, dtype):
    return np.array_equal(round_to(x, dtype), x)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + 1.7,
        lambda x: 1 - x,
        lambda x: x * x[:1],
        lambda x: x / 3.0,
        lambda x: np.sqrt(np.abs(x)),
        np.exp,
        np.tanh,
        lambda x: x**2,
    ],
)
def test_operations_on_elements_round_to_what_is_computed_in(operation):
    x = round_to(np.random.default_rng(1).standard_normal((5, 7)), "bfloat16")
    found = operation(low_precision(x, arithmetic("bfloat16", computed="float16")))
    assert isinstance(found, LowPrecisionArray)
    found = np.asarray(found)
    assert of_the_format(found, "float16")
    assert not of_the_format(found, "bfloat16")
    near = np.abs(found - operation(x))
    assert (near <= 2 * step_at(np.maximum(np.abs(found), 1), "float16")).all()
    assert near.any()


def test_a_sum_of_two_tensors_is_a_tensor():
    rng = np.random.default_rng(1)
    x, y = (low_precision(rng.standard_normal((5, 7)), arithmetic("bfloat16")) for _ in range(2))
    assert of_the_format(np.asarray(x + y), "bfloat16")
    assert not of_the_format(np.asarray(x + y[0]), "bfloat16")  # a bias


def test_what_is_exact_stays_exact():
    x = low_precision(np.array([[1.0, -2.0, 0.5]]), arithmetic())
    for found, expected in ((-x, [-1, 2, -0.5]), (np.maximum(x, 0), [1, 0, 0.5]), (x.T.T, x[0])):
        assert np.asarray(found).tolist() == [list(expected)]
    assert type(x > 0) is np.ndarray
    assert x.mean() == pytest.approx(-1 / 6, rel=1e-6)


@pytest.mark.parametrize("n", [17, 64, 500])
@pytest.mark.parametrize("mean", [0.0, 0.5, 3.0])
def test_products_and_sums_err_as_float32_does_term_after_term(n, mean):
    """The simulation has sqrt(2) of the spread of sums in order, whatever the signs of terms."""
    rng, by = np.random.default_rng(n), arithmetic()
    a, b = (rng.standard_normal(shape) + mean for shape in ((200, n), (n, 50)))
    a, b = round_to(a, "float32"), round_to(b, "float32")
    simulated = np.asarray(low_precision(a, by) @ low_precision(b, by))
    real = sequential_matmul(a.astype("float32"), b.astype("float32"))

    def rms(error):
        return np.sqrt(np.mean(error**2))

    assert rms(simulated - a @ b) / rms(real - a @ b) == pytest.approx(2**0.5, rel=0.25)
    simulated = np.stack([np.asarray(low_precision(a, by).sum(axis=-1)) for _ in range(20)])
    real = sequential_sum(a.astype("float32"), axis=-1)
    exact = a.sum(axis=-1)
    assert rms(simulated - exact) / rms(real - exact) == pytest.approx(2**0.5, rel=0.5)


def test_tf32_rounds_the_operands_of_products():
    x = np.full((20, 3), 1 + 2.0**-13)
    by = arithmetic(operands="tf32")
    found = np.asarray(low_precision(x, by) @ low_precision(np.eye(3), by))
    assert found.min() == pytest.approx(1, abs=1e-6)
    assert found.max() == pytest.approx(1 + 2.0**-10, abs=1e-6)
    assert np.asarray(low_precision(x, by) + 0.0).max() == 1 + 2.0**-13


def test_far_finer_insides_are_not_simulated():
    x = np.random.default_rng(0).standard_normal((3, 5))
    by = arithmetic("bfloat16")
    found = low_precision(x, by)
    assert np.array_equal(np.asarray(found @ found.T), x @ x.T)
    assert np.array_equal(np.asarray(np.exp(found)), np.exp(x))


def test_errors_of_a_row_are_pooled_and_counted():
    rng = np.random.default_rng(0)
    value = np.zeros((5, 1000))
    scale = np.arange(1, 6)[:, None]
    errors = Errors(value, np.ones(value.shape, bool))
    errors.add(scale * rng.standard_normal((3, 5, 1000)))
    errors.add(scale * rng.standard_normal((29, 5, 1000)))
    e = errors.expected("float32")
    assert e.sigma[:, 0] == pytest.approx(np.arange(1, 6), rel=0.05)
    assert e.own_sigma.mean(axis=-1) == pytest.approx(np.arange(1, 6), rel=0.05)
    assert (e.independent > 500).all()
    assert (e.rms_limit(6) == 2).all()


def test_places_without_meaning_have_no_errors():
    where = np.arange(4) < 2
    errors = Errors(np.zeros((1, 4)), np.broadcast_to(where, (1, 4)))
    errors.add(np.array([[[1.0, -1, 100, 7]], [[3.0, 3, -100, 7]]]))
    e = errors.expected("float32")
    assert e.sigma.item() == 5**0.5
    assert e.independent.item() <= 2


def test_errors_that_go_together_count_as_one():
    rng = np.random.default_rng(0)
    value = np.zeros((50, 20))
    together = Errors(value, np.ones(value.shape, bool))
    together.add(rng.standard_normal((64, 50, 1)) * np.ones(20))
    assert (together.expected("float32").independent < 1.3).all()
    pairs = Errors(value, np.ones(value.shape, bool))
    pairs.add(np.repeat(rng.standard_normal((64, 50, 10)), 2, axis=-1))
    assert np.median(pairs.expected("float32").independent) == pytest.approx(10, rel=0.25)


def test_nothing_is_expected_nearer_than_one_rounding():
    value = np.array([[1.0, -1.0], [0.0, 0.0]])
    errors = Errors(value, np.ones(value.shape, bool))
    errors.add(value[None])
    sigma = errors.expected("bfloat16").sigma
    assert sigma[:, 0] == pytest.approx([2**-7 / 12**0.5, 0])


def test_participants_do_not_depend_on_scale():
    x = np.array([[4.0, 4.0, 0.0, 4.0]])
    for scale in (1e-300, 1.0, 1e200):
        assert participants(scale * x).item() == pytest.approx(3)
