"""`refseq2seq.testing.assert_generation_agrees`: what it accepts, refuses and names."""

import dataclasses
from types import SimpleNamespace

import arrangements
import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.testing import assert_generation_agrees, rounded

MODEL = rounded(rs.Model.random(arrangements.vaswani, 2, "float64"), "float32")
MASK = np.arange(6) < np.array([[6], [4], [3]])
SOURCE = np.where(MASK, np.random.default_rng(7).integers(3, 11, MASK.shape), 0)
UNIFORMS = np.random.default_rng(8).random((3, 7))
BASE = {"source_mask": MASK, "max_new_tokens": 7}
NGRAM, PENALTY = rs.no_repeat_ngram(2), rs.repetition_penalty(1.4)
FILTERS = rs.temperature(1.6), rs.top_k(5), rs.top_p(0.8)
REQUESTS = {
    "greedy": {},
    "processors": {"choose": rs.greedy(NGRAM, PENALTY)},
    "ragged prefixes": {"prefix": [[1], [1, 5, 6], [1, 7]], "max_new_tokens": 4},
    "minimum": {"min_new_tokens": 5},
    "sampled": {"choose": rs.sample(*FILTERS), "uniforms": UNIFORMS},
    "two of each": {"choose": rs.sample(*FILTERS), "seed": 3, "num_return_sequences": 2},
    "beams": {"beams": 3, "n_best": 2, "length_penalty": 0.6},
    "beams, processors": {"beams": 3, "n_best": 3, "processors": [NGRAM, PENALTY]},
    "beams, on logits": {"beams": 2, "logits_processors": [NGRAM], "early_stopping": True},
}


def asked(name):
    return BASE | REQUESTS[name]


def generated(how, model=MODEL):
    """What an implementation in float32 gives."""
    search = "beams" in how
    return (rs.beam_search if search else rs.generate)(model.astype("float32"), SOURCE, **how)


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_asked_is_accepted(name):
    found, how = generated(asked(name)), asked(name)
    agreement = assert_generation_agrees(found, MODEL, SOURCE, **how)
    assert agreement.compared == agreement.total > 0
    assert not agreement.diverged
    forms = {"tokens": found.tokens, "log_probs": found.log_probs}
    assert_generation_agrees(forms, MODEL, SOURCE, **how)
    assert_generation_agrees(found.tokens.tolist(), MODEL, SOURCE, **how)


LEFT_OUT = {  # request: what the other implementation does instead, and what is told
    "no ngram rule": ("processors", {"choose": rs.greedy(PENALTY)}, "without no_repeat_ngram(2)"),
    "no penalty": ("processors", {"choose": rs.greedy(NGRAM)}, "without repetition_penalty(1.4)"),
    "no minimum": ("minimum", {"min_new_tokens": 0}, "without min_new_tokens"),
    "no temperature": (
        "sampled",
        {"choose": rs.sample(*FILTERS[1:])},
        "without temperature(1.6)",
    ),
    "another order": (
        "sampled",
        {"choose": rs.sample(FILTERS[2], FILTERS[1], FILTERS[0])},
        "with temperature(1.6) and top_p(0.8) exchanged",
    ),
    "no mask": ("greedy", {"source_mask": None}, "without source_mask"),
    "no prefix": ("ragged prefixes", {"prefix": None}, "without prefix"),
    "no length penalty": ("beams", {"length_penalty": 0.0}, "length_penalty is 0"),
    "another place": (
        "beams, on logits",
        {"logits_processors": (), "processors": [NGRAM]},
        "logits_processors are applied as processors",
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_the_rule_that_is_missing_is_named(case):
    name, instead, told = LEFT_OUT[case]
    model = MODEL
    for seed in range(40):  # until the rule matters
        model = rounded(rs.Model.random(arrangements.vaswani, seed, "float64"), "float32")
        wrong, right = generated(asked(name) | instead, model), generated(asked(name), model)
        scores = [getattr(x, "scores", x.tokens) for x in (wrong, right)]
        if wrong.tokens.tolist() != right.tokens.tolist() or not np.allclose(*scores):
            break
    with pytest.raises(AssertionError) as refused:
        assert_generation_agrees(wrong, model, SOURCE, **asked(name))
    assert f"With this change the reference gives their output: {told}" in str(refused.value)


def with_token(found, row, t, token):
    tokens = found.tokens.copy()
    tokens[row, ..., t] = token
    return dataclasses.replace(found, tokens=tokens)


def test_another_token_is_refused():
    found = generated(BASE)
    other = with_token(found, 1, 3, (found.tokens[1, 3] + 1) % 7 + 3)
    with pytest.raises(
        AssertionError, match=r"new token 3 of row 1 .*(\n.*)*No change of a single"
    ):
        assert_generation_agrees(other, MODEL, SOURCE, **BASE)


def test_numbers_are_compared():
    found = generated(BASE)
    wrong = {"tokens": found.tokens, "log_probs": found.log_probs + 1e-3}
    with pytest.raises(AssertionError, match="the log-probability of new token 0 of row 0"):
        assert_generation_agrees(wrong, MODEL, SOURCE, **BASE)
    how = asked("beams")
    found = generated(how)
    wrong = dataclasses.replace(found, scores=found.scores + 1e-3)
    with pytest.raises(AssertionError, match="the score of hypothesis 0 of row 0"):
        assert_generation_agrees(wrong, MODEL, SOURCE, **how)


def test_the_order_of_hypotheses_is_compared():
    how = asked("beams")
    found = generated(how)
    wrong = dataclasses.replace(found, tokens=found.tokens[:, ::-1], lengths=found.lengths[:, ::-1])
    with pytest.raises(AssertionError, match="hypothesis 0 of row 0"):
        assert_generation_agrees(wrong.tokens, MODEL, SOURCE, **how)


def test_a_near_tie_is_accepted_once():
    """Two equal columns of the unembedding: float32 may choose either token."""
    arrays = MODEL.params
    table = arrays.unembedding.copy()
    first = int(generated(BASE).tokens[0, 0])
    twin = 3 if first != 3 else 4
    table[:, twin] = table[:, first] * (1 + 1e-8)
    config = dataclasses.replace(MODEL.config, tied_logits=False, tied_embeddings=False)
    params = dataclasses.replace(arrays, unembedding=table)
    model = rounded(dataclasses.replace(MODEL, config=config, params=params), "float32")
    found = rs.generate(model, SOURCE, **BASE)
    chosen = int(found.tokens[0, 0])
    other = with_token(found, 0, 0, twin + first - chosen)
    agreement = assert_generation_agrees(other.tokens, model, SOURCE, **BASE)
    assert [(d.row, d.position, d.token) for d in agreement.diverged] == [
        (0, 0, twin + first - chosen)
    ]
    assert agreement.diverged[0].spreads < 6


def test_tokens_after_the_end_are_refused():
    for seed, eos in np.ndindex(40, 11):  # until an end token ends one row before the others
        model = rounded(rs.Model.random(arrangements.vaswani, seed, "float64"), "float32")
        how = BASE | {"eos_ids": (eos,)}
        found = generated(how, model)
        row, n = int(found.lengths.argmin()), int(found.lengths.min())
        if 1 < n < found.tokens.shape[1]:
            break
    assert_generation_agrees(found, model, SOURCE, **how)
    longer = found.tokens.copy()
    longer[row, n:] = next(i for i in range(3, 9) if i != eos)
    with pytest.raises(AssertionError, match=f"output {row} goes on after its end token"):
        assert_generation_agrees(longer, model, SOURCE, **how)
    rows = [tokens.tolist() for tokens in found.tokens]
    rows[row] = rows[row][:1]
    with pytest.raises(AssertionError, match=f"row {row} ends after 1 new tokens"):
        assert_generation_agrees(rows, model, SOURCE, **how)


def test_results_of_tokens():
    """As CTranslate2 returns them: without the end token, of a vocabulary."""
    eos = int(generated(BASE).tokens[0, 2])
    how = asked("beams") | {"eos_ids": (eos,)}
    found, words = generated(how), [f"t{i}" for i in range(MODEL.config.decoder.vocab_size)]
    results = [
        SimpleNamespace(
            hypotheses=[
                [words[i] for i in row[:n] if i != eos]
                for row, n in zip(rows, lengths, strict=True)
            ],
            scores=scores.tolist(),
        )
        for rows, lengths, scores in zip(found.tokens, found.lengths, found.scores, strict=True)
    ]
    assert_generation_agrees(results, MODEL, SOURCE, vocabulary=words, **how)
    with pytest.raises(TypeError, match="vocabulary is missing"):
        assert_generation_agrees(results, MODEL, SOURCE, **how)
    with pytest.raises(ValueError, match="vocabulary must have all tokens"):
        assert_generation_agrees(results, MODEL, SOURCE, vocabulary=words[:2], **how)


WRONG = {
    "None": (None, {}, TypeError, "theirs must be token ids"),
    "text": ("abc", {}, TypeError, "theirs must be token ids"),
    "two rows": ([[3], [4]], {}, ValueError, "theirs must have 3 outputs, 1 for each of 3 sources"),
    "fractions": ([[0.5], [4], [5]], {}, TypeError, "tokens must be rows of integers"),
    "no such argument": ([[3]] * 3, {"max_tokens": 3}, TypeError, "max_tokens"),
    "no chooser": ([[3]] * 3, {"choose": "greedy"}, TypeError, "choose must be a Chooser"),
    "no number": ([[3]] * 3, {"num_return_sequences": 0}, ValueError, "num_return_sequences"),
    "scores of greedy": ({"tokens": [[3]] * 3, "scores": [1, 2, 3]}, {}, ValueError, "beam search"),
    "log_probs": ({"tokens": [[3, 4]] * 3, "log_probs": [[0.1]] * 3}, {}, ValueError, "output 0"),
    "no prefix": ({"sequences": [[3, 4]] * 3}, {}, ValueError, "must begin with its prefix"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(case):
    theirs, how, kind, told = WRONG[case]
    with pytest.raises(kind, match=told):
        assert_generation_agrees(theirs, MODEL, SOURCE, **BASE | how)
