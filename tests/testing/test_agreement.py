"""`assert_agrees` and `assert_tokens_agree`: what they accept, and what they say otherwise."""

import dataclasses
import math

import arrangements
import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.testing import assert_agrees, assert_tokens_agree, rounded, spread

CONFIG = arrangements.x_transformers
MODEL = rounded(rs.Model.random(CONFIG, 1, "float64"), "bfloat16")
SOURCE, TARGET = [[3, 4, 7, 9, 5], [5, 6, 11]], [[1, 5, 8], [1, 7, 3]]


def test_agreement_is_that_of_one_quantity_or_of_many():
    within, right = spread(MODEL, SOURCE, TARGET, dtype="bfloat16"), rs.Trace()
    rs.forward(MODEL, SOURCE, TARGET, tap=right)
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
    assert f"{(spreads > 6).sum()} of {e.value.size} elements exceed the limit" in story
    assert f"largest errors by row, in spreads: [{row[0]}, {row[1]}] {spreads.max():.3g}" in story


def test_z_scales_what_is_allowed():
    within = spread(MODEL, SOURCE, TARGET, dtype="bfloat16")
    e = within["logits"]
    off = e.value.copy()
    off[0, 1, 2] += 7 * e.element_sigma[0, 1, 2]
    assert_agrees(off, within, z=7.1)
    with pytest.raises(AssertionError, match=r"7 spreads \(allowed 6\)"):
        assert_agrees(off, within)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(value):
    within = spread(MODEL, SOURCE, TARGET, dtype="bfloat16")
    with pytest.raises(AssertionError, match="found    NaN, or an infinity"):
        assert_agrees(np.full(within["logits"].value.shape, value), within)
    with pytest.raises(AssertionError, match="shape"):
        assert_agrees(within["logits"].value[0], within)


def greedy():
    tokens = rs.generate(MODEL, SOURCE, max_new_tokens=6, eos_ids=()).tokens
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    return tokens, spread(MODEL, SOURCE, target, dtype="bfloat16")


def test_the_oracles_own_tokens_agree():
    tokens, within = greedy()
    found = assert_tokens_agree(tokens, within, eos_ids=())
    assert (found.compared, found.total, found.diverged) == (12, 12, ())
    assert str(found) == "12 of 12 tokens match the reference"
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
    told = str(caught.value)
    assert f"new token 2 of row 1 is {second}; the reference chose {tokens[1, 2]}" in told
    assert f"larger by {margin:.3g}, or {spreads:.3g} spreads" in told
    found = assert_tokens_agree(changed, within, z=spreads * 1.001, eos_ids=())
    assert (found.compared, found.total) == (8, 12)
    (stop,) = found.diverged
    assert (stop.row, stop.position, stop.token) == (1, 2, second)
    assert stop.margin == margin
    assert stop.spreads == pytest.approx(spreads)
    assert "8 of 12 tokens match the reference\n  new token 2 of row 1 is" in str(found)
    with pytest.raises(AssertionError, match="explains at most"):
        assert_tokens_agree(changed, within, z=spreads * 0.999, eos_ids=())


def test_a_row_must_not_end_before_the_oracle():
    tokens, within = greedy()
    with pytest.raises(AssertionError, match=f"row 0 ends after 4 .* {tokens[0, 4]}$"):
        assert_tokens_agree(tokens[:, :4], within, eos_ids=())
    # After the oracle's end nothing is compared, and eos_ids says where that is.
    found = assert_tokens_agree(
        tokens[:, :4], within, eos_ids=(int(tokens[0, 2]), int(tokens[1, 3]))
    )
    assert found.total == found.compared
    assert 2 <= found.total <= 7


def test_the_target_must_be_the_oracles_choice():
    """Else somebody's own tokens, given as the target, would always agree."""
    tokens, _ = greedy()
    tokens[0, 3] = (tokens[0, 3] + 1) % 23
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    within = spread(MODEL, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match=r"new token 3 of row 0 is .* has the best score"):
        assert_tokens_agree(tokens, within, eos_ids=())


def test_tokens_that_a_model_suppresses_are_not_its_choice():
    free = rs.generate(MODEL, SOURCE, max_new_tokens=4, eos_ids=()).tokens
    config = dataclasses.replace(
        CONFIG, suppressed_ids=(int(free[0, 1]),), begin_suppressed_ids=(int(free[1, 0]),)
    )
    model = dataclasses.replace(MODEL, config=config)
    tokens = rs.generate(model, SOURCE, max_new_tokens=4, eos_ids=()).tokens
    assert not np.array_equal(tokens, free)
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    within = spread(model, SOURCE, target, dtype="bfloat16", runs=1)
    assert assert_tokens_agree(tokens, within, eos_ids=()).compared == 8
    with pytest.raises(AssertionError, match="banned by the rule suppressed_ids of the model"):
        assert_tokens_agree(free, within, eos_ids=())  # it prefers them, and must not take them


def test_rows_and_prefix_are_checked():
    tokens, within = greedy()
    with pytest.raises(ValueError, match=r"tokens must have 2 rows, .*, got 1"):
        assert_tokens_agree(tokens[:1], within)
    for n_prefix in (0, 7):
        with pytest.raises(
            ValueError, match=f"n_prefix must be from 1 to 6 tokens, got {n_prefix}"
        ):
            assert_tokens_agree(tokens, within, n_prefix=n_prefix)
    assert assert_tokens_agree(tokens[:, 2:], within, n_prefix=3, eos_ids=()).total == 8


# Processors, prefixes, what is no token -----------------------------------------------------------


def generated_by(*processors, prefix=None, model=MODEL, n=6):
    """The oracle's tokens and the spread of their logits."""
    how = {"choose": rs.greedy(*processors), "prefix": prefix, "eos_ids": (), "max_new_tokens": n}
    tokens = rs.generate(model, SOURCE, **how).tokens
    before = [[1], [1]] if prefix is None else prefix
    target = [[*begin, *new] for begin, new in zip(before, tokens.tolist(), strict=True)]
    return tokens, spread(model, SOURCE, target, dtype="bfloat16", runs=2)


PROCESSORS = {
    "no_repeat_ngram": rs.no_repeat_ngram(1),
    "repetition_penalty": rs.repetition_penalty(3.0),
    "suppress": rs.suppress(range(3, 23, 2)),
    "encoder_no_repeat_ngram": rs.encoder_no_repeat_ngram(1),
    "bad_words": rs.bad_words([[t] for t in range(4, 23, 2)]),
    "allowed_tokens": rs.allowed_tokens(lambda row, tokens: range(5, 16)),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_a_port_that_forgets_a_processor_fails(processor):
    tokens, within = generated_by(processor)
    found = assert_tokens_agree(tokens, within, eos_ids=(), processors=[processor])
    assert found.compared == found.total == 12
    forgetful = generated_by()[0]
    if np.array_equal(forgetful, tokens):
        pytest.skip("it changes nothing here")
    with pytest.raises(
        AssertionError, match=rf"new token \d of row \d is .*({processor.name}|spreads)"
    ):
        assert_tokens_agree(forgetful, within, eos_ids=(), processors=[processor])
    with pytest.raises(ValueError, match="with the same processors: new token"):
        assert_tokens_agree(tokens, within, eos_ids=())


def test_processors_change_something_here():
    free = generated_by()[0]
    changed = [name for name, p in PROCESSORS.items() if (generated_by(p)[0] != free).any()]
    assert len(changed) >= 4


@pytest.mark.parametrize("prefix", [[[1, 4], [1, 7]], [[1, 4, 9], [1]]])
def test_the_prefix_may_be_given_and_may_be_ragged(prefix):
    processor = rs.no_repeat_ngram(1)
    tokens, within = generated_by(processor, prefix=prefix)
    how = {"eos_ids": (), "processors": [processor]}
    found = assert_tokens_agree(tokens, within, prefix=prefix, **how)
    assert found.compared == found.total == 12
    with pytest.raises(ValueError, match="must begin with the prefix: row 1"):
        assert_tokens_agree(tokens, within, prefix=[prefix[0], [5] * len(prefix[1])], **how)


@pytest.mark.parametrize("bad", [-1, 23, -(2**40), 2**40])
def test_an_id_that_the_vocabulary_has_not_is_an_assertion(bad):
    tokens, within = greedy()
    with pytest.raises(
        AssertionError, match=r"new token 0 of row 0 is .*; the ids of the vocabulary are 0"
    ):
        assert_tokens_agree(tokens - 23, within, eos_ids=())
    tokens = tokens.copy()
    tokens[1, 3] = bad
    with pytest.raises(AssertionError, match=f"new token 3 of row 1 is {bad}; .* vocabulary"):
        assert_tokens_agree(tokens, within, eos_ids=())
    with pytest.raises(TypeError, match="tokens must be rows of integers, got float64"):
        assert_tokens_agree(tokens * 1.0, within, eos_ids=())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_tolerances_are_finite_and_not_negative(bad):
    tokens, within = greedy()
    for call in (
        lambda: assert_tokens_agree(tokens, within, z=bad),
        lambda: assert_agrees(within["logits"].value, within, z=bad),
    ):
        with pytest.raises(ValueError, match="z must be in"):
            call()


def test_a_prefix_is_given_once():
    tokens, within = greedy()
    with pytest.raises(TypeError, match="n_prefix and prefix are both given"):
        assert_tokens_agree(tokens, within, n_prefix=1, prefix=[[1], [1]])
    with pytest.raises(ValueError, match="prefix must be from 1 to 6 tokens, got 7"):
        assert_tokens_agree(tokens, within, prefix=within.target.tolist())
    with pytest.raises(TypeError, match="eos_ids must be a sequence of token ids, got 5"):
        assert_tokens_agree(tokens, within, eos_ids=5)


def test_a_port_that_forgets_the_forced_end_fails():
    """The oracle's rows are cut off by it; the port goes on with what it prefers."""
    free = generated_by()[0]
    ends = int((free[:, -1].max() + 1) % 23)
    model = dataclasses.replace(MODEL, config=dataclasses.replace(CONFIG, forced_eos_id=ends))
    tokens, within = generated_by(model=model)
    assert (tokens[:, -1] == ends).all()
    assert assert_tokens_agree(tokens, within, eos_ids=()).compared == 12
    with pytest.raises(
        AssertionError, match=r"new token 5 of row 0 .* banned by the rule forced_eos_id"
    ):
        assert_tokens_agree(free, within, eos_ids=())
    # where nothing was cut off, what the rule would force at the end is no token of the oracle's
    target = [[1, *row[:2], ends, *row[3:]] for row in free.tolist()]
    within = spread(model, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match=r"new token 2 of row 0 is .* has the best score"):
        assert_tokens_agree(free, within, eos_ids=())


def test_every_row_has_something_to_compare():
    target = [[1, 4, 9, 5, 6], [1, 4]]
    within = spread(MODEL, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match="n_prefix must be from 1 to 1 tokens, got 2: row 1"):
        assert_tokens_agree([[9, 5, 6], [7]], within, n_prefix=2, eos_ids=())


@pytest.mark.parametrize("tokens", [None, 3, "ab", [3, 4], [[1.5], [2]]])
def test_what_is_no_batch_of_tokens_is_refused(tokens):
    with pytest.raises(TypeError, match="tokens must be"):
        assert_tokens_agree(tokens, greedy()[1], eos_ids=())
