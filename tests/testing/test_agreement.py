"""`assert_agrees` and `assert_tokens_agree`: what they accept, and what their errors name."""

import dataclasses
import math

import arrangements
import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.testing import assert_agrees, assert_tokens_agree, rounded, spread

CONFIG = arrangements.x_transformers
MODEL = rounded(rs.Model.random(CONFIG, 1, "float64"), "bfloat16")
SOURCE, TARGET = [[3, 4, 7, 9, 18], [5, 6, 11]], [[1, 5, 8], [1, 7, 3]]
WITHIN = spread(MODEL, SOURCE, TARGET, dtype="bfloat16")


def test_assert_agrees_takes_one_quantity_or_many():
    within, right = WITHIN, rs.Trace()
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
    spreads = np.abs(right["logits"]) / within["logits"].element_sigma
    row = np.unravel_index(spreads.max(-1).argmax(), (2, 3))
    for told in (
        f"{spreads.max():.3g} spreads (allowed 6)",
        f"{(spreads > 6).sum()} of {spreads.size} elements",
        f"[{row[0]}, {row[1]}] {spreads.max():.3g}",
    ):
        assert told in str(caught.value)


def test_z_scales_the_allowed_error():
    e = WITHIN["logits"]
    off = e.value.copy()
    off[0, 1, 2] += 7 * e.element_sigma[0, 1, 2]
    assert_agrees(off, WITHIN, z=7.1)
    with pytest.raises(AssertionError, match=r"7 spreads \(allowed 6\)"):
        assert_agrees(off, WITHIN)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_do_not_agree(value):
    logits = WITHIN["logits"].value
    with pytest.raises(AssertionError, match="NaN, or an infinity"):
        assert_agrees(np.full(logits.shape, value), WITHIN)
    with pytest.raises(AssertionError, match="shape"):
        assert_agrees(logits[0], WITHIN)


def greedy(*processors, prefix=((1,), (1,)), model=MODEL):
    """Six new tokens a row of the reference, and the spread of their logits."""
    how = {"choose": rs.greedy(*processors), "prefix": prefix, "eos_ids": (), "max_new_tokens": 6}
    tokens = rs.generate(model, SOURCE, **how).tokens
    target = [[*begin, *new] for begin, new in zip(prefix, tokens.tolist(), strict=True)]
    return tokens, spread(model, SOURCE, target, dtype="bfloat16", runs=4)


def test_tokens_of_the_reference_agree():
    tokens, within = greedy()
    found = assert_tokens_agree(tokens, within, eos_ids=())
    assert (found.compared, found.total, found.diverged) == (12, 12, ())
    assert str(found) == "12 of 12 tokens match the reference"
    longer = np.concatenate([tokens, tokens], axis=1)
    assert assert_tokens_agree(longer.tolist(), within, eos_ids=()) == found


def test_another_token_raises_unless_it_nearly_ties():
    tokens, within = greedy()
    logits = within["logits"].value[1, 2]  # of new token 2, the prefix being one token
    second = int(np.argsort(logits)[-2])
    changed = tokens.copy()
    changed[1, 2:] = second
    margin = logits.max() - logits[second]
    sigma = within["logits"].element_sigma[1, 2]
    spreads = margin / np.hypot(sigma[tokens[1, 2]], sigma[second])
    assert spreads > 6
    with pytest.raises(AssertionError, match=r"bfloat16 .*at most 6") as caught:
        assert_tokens_agree(changed, within, eos_ids=())
    for told in ("token 2 of row 1", second, tokens[1, 2], f"{margin:.3g}", f"{spreads:.3g}"):
        assert str(told) in str(caught.value)
    found = assert_tokens_agree(changed, within, z=spreads * 1.001, eos_ids=())
    assert (found.compared, found.total) == (8, 12)
    (stop,) = found.diverged
    assert (stop.row, stop.position, stop.token, stop.margin) == (1, 2, second, margin)
    assert stop.spreads == pytest.approx(spreads)
    assert "new token 2 of row 1" in str(found)
    with pytest.raises(AssertionError, match="explains at most"):
        assert_tokens_agree(changed, within, z=spreads * 0.999, eos_ids=())


def test_a_row_that_ends_before_the_reference_raises():
    tokens, within = greedy()
    with pytest.raises(AssertionError, match=f"row 0 ends after 4 .* {tokens[0, 4]}$"):
        assert_tokens_agree(tokens[:, :4], within, eos_ids=())
    # After the reference's end, which eos_ids gives, nothing is compared.
    eos_ids = int(tokens[0, 2]), int(tokens[1, 3])
    found = assert_tokens_agree(tokens[:, :4], within, eos_ids=eos_ids)
    assert found.total == found.compared
    assert 2 <= found.total <= 7


def test_a_target_that_is_not_the_choice_of_the_reference_raises():
    """Otherwise the tokens of the other program, given as the target, would always agree."""
    tokens, _ = greedy()
    tokens[0, 3] = (tokens[0, 3] + 1) % 23
    target = np.concatenate([np.full((2, 1), 1), tokens], axis=1)
    within = spread(MODEL, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match=r"new token 3 of row 0"):
        assert_tokens_agree(tokens, within, eos_ids=())


def test_suppressed_tokens_raise():
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
    with pytest.raises(AssertionError, match="suppressed_ids"):
        assert_tokens_agree(free, within, eos_ids=())  # it prefers them, and must not take them


def test_a_prefix_leaves_fewer_tokens_to_compare_and_at_least_one():
    tokens, within = greedy()
    with pytest.raises(ValueError, match=r"prefix .*1 to 6 .*got 7"):
        assert_tokens_agree(tokens, within, prefix=within.target.tolist())
    assert assert_tokens_agree(tokens[:, 2:], within, n_prefix=3, eos_ids=()).total == 8


@pytest.mark.parametrize(
    ("change", "options", "kind", "message"),
    [
        (lambda tokens: tokens[:1], {}, ValueError, "tokens .*2 rows, .*got 1"),
        (lambda tokens: tokens * 1.0, {}, TypeError, "tokens .*float64"),
        (lambda tokens: tokens, {"n_prefix": 0}, ValueError, "n_prefix .*1 to 6 .*got 0"),
        (lambda tokens: tokens, {"n_prefix": 7}, ValueError, "n_prefix .*1 to 6 .*got 7"),
        (lambda tokens: tokens, {"n_prefix": 1, "prefix": [[1], [1]]}, TypeError, "n_prefix"),
        (lambda tokens: tokens, {"eos_ids": 5}, TypeError, "eos_ids .*got 5"),
    ]
    + [
        (lambda tokens, bad=bad: bad, {}, TypeError, "tokens must be")
        for bad in (None, 3, "ab", [3, 4], [[1.5], [2]])
    ]
    + [(lambda x: x, {"z": z}, ValueError, "z must be") for z in (math.nan, math.inf, -1.0)],
)
def test_wrong_arguments_of_assert_tokens_agree_raise(change, options, kind, message):
    tokens, within = greedy()
    with pytest.raises(kind, match=message):
        assert_tokens_agree(change(tokens), within, **options)


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
    tokens, within = greedy(processor)
    found = assert_tokens_agree(tokens, within, eos_ids=(), processors=[processor])
    assert found.compared == found.total == 12
    forgetful = greedy()[0]
    assert not np.array_equal(forgetful, tokens)
    with pytest.raises(AssertionError, match=rf"({processor.name}|spreads)"):
        assert_tokens_agree(forgetful, within, eos_ids=(), processors=[processor])
    with pytest.raises(ValueError, match="processors"):
        assert_tokens_agree(tokens, within, eos_ids=())


@pytest.mark.parametrize("prefix", [[[1, 4], [1, 7]], [[1, 4, 9], [1]]])
def test_the_prefix_may_be_given_and_may_be_ragged(prefix):
    processor = rs.no_repeat_ngram(1)
    tokens, within = greedy(processor, prefix=prefix)
    how = {"eos_ids": (), "processors": [processor]}
    found = assert_tokens_agree(tokens, within, prefix=prefix, **how)
    assert found.compared == found.total == 12
    with pytest.raises(ValueError, match="prefix: row 1"):
        assert_tokens_agree(tokens, within, prefix=[prefix[0], [5] * len(prefix[1])], **how)


@pytest.mark.parametrize("bad", [-1, 23, -(2**40), 2**40])
def test_ids_out_of_the_vocabulary_raise(bad):
    tokens, within = greedy()
    with pytest.raises(AssertionError, match=r"new token 0 of row 0 .*vocabulary"):
        assert_tokens_agree(tokens - 23, within, eos_ids=())
    tokens[1, 3] = bad
    with pytest.raises(AssertionError, match=f"new token 3 of row 1 is {bad}; .*vocabulary"):
        assert_tokens_agree(tokens, within, eos_ids=())


def test_a_port_that_forgets_the_forced_end_fails():
    """The reference's rows are cut off by it; the port goes on with what it prefers."""
    free = greedy()[0]
    ends = int((free[:, -1].max() + 1) % 23)
    model = dataclasses.replace(MODEL, config=dataclasses.replace(CONFIG, forced_eos_id=ends))
    tokens, within = greedy(model=model)
    assert (tokens[:, -1] == ends).all()
    assert assert_tokens_agree(tokens, within, eos_ids=()).compared == 12
    with pytest.raises(AssertionError, match=r"new token 5 of row 0 .*forced_eos_id"):
        assert_tokens_agree(free, within, eos_ids=())
    # where nothing was cut off, the token that the rule would force at the end is not a choice
    target = [[1, *row[:2], ends, *row[3:]] for row in free.tolist()]
    within = spread(model, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match=r"new token 2 of row 0"):
        assert_tokens_agree(free, within, eos_ids=())


def test_a_row_without_tokens_to_compare_raises():
    target = [[1, 4, 9, 5, 6], [1, 4]]
    within = spread(MODEL, SOURCE, target, dtype="bfloat16", runs=1)
    with pytest.raises(ValueError, match=r"n_prefix .*got 2: row 1"):
        assert_tokens_agree([[9, 5, 6], [7]], within, n_prefix=2, eos_ids=())
