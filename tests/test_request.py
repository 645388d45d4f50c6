"""Requests that raise errors: before the first step, or with the row and the step."""

import math
import re

import numpy as np
import pytest
from naming import raises_naming, short
from tasks import every_chooser, learned_model, new_tokens, path, path_model, text_model

import refseq2seq as rs

# Before the first step ----------------------------------------------------------------------------

# What the arrays of token ids and masks may look like is in test_checks.py.
BAD_REQUESTS = [
    (ValueError, {"source": [3, 4]}, ["source", "[3, 4]"]),
    (ValueError, {"source": []}, ["source is empty", "(0,)"]),
    (ValueError, {"source": [[3], [11]]}, ["source", "11", "row 1, position 0", "0 to 10"]),
    (TypeError, {"source": "cat"}, ["source", "str", "rs.generate_text"]),
    (ValueError, {"source": [[3] * 6]}, ["source", "6 tokens", "at most 5"]),
    (TypeError, {"source_mask": np.array([[1]])}, ["source_mask", "int64", "mask.astype(bool)"]),
    (ValueError, {"prefix": [[]]}, ["prefix row 0 is empty"]),
    (ValueError, {"prefix": [[1], [1]]}, ["prefix", "1 rows", "got 2"]),
    (ValueError, {"prefix": [[13]]}, ["prefix", "13", "row 0, position 0", "0 to 12"]),
    (ValueError, {"prefix": [[1] * 8]}, ["prefix", "8 tokens", "at most 7"]),
    (ValueError, {"max_new_tokens": 8}, ["prefix of 1", "max_new_tokens = 8", "table has 7"]),
    (
        ValueError,
        {"source": [[3], [3]], "prefix": [[1], [1, 4, 5]], "max_new_tokens": 6},
        ["prefix of 3", "max_new_tokens = 6", "8 positions", "table has 7"],
    ),
    (ValueError, {"max_new_tokens": 0}, ["max_new_tokens", "got 0"]),
    (ValueError, {"max_new_tokens": -3}, ["max_new_tokens", "got -3"]),
    (TypeError, {"max_new_tokens": True}, ["max_new_tokens", "got bool"]),
    (TypeError, {"max_new_tokens": 2.5}, ["max_new_tokens", "got float"]),
    (ValueError, {"max_new_tokens": 3, "min_new_tokens": 4}, ["max_new_tokens = 3", "got 4"]),
    (ValueError, {"min_new_tokens": 8}, ["min_new_tokens", "max_new_tokens = 7", "got 8"]),
    (ValueError, {"min_new_tokens": -1}, ["min_new_tokens", "got -1"]),
    (TypeError, {"min_new_tokens": 1.0}, ["min_new_tokens", "got float"]),
    (TypeError, {"min_new_tokens": True}, ["min_new_tokens", "got bool"]),
    (ValueError, {"eos_ids": (2, 13)}, ["eos_ids", "0 to 12", "(2, 13)"]),
    (ValueError, {"eos_ids": [-1]}, ["eos_ids", "0 to 12", "[-1]"]),
    (TypeError, {"eos_ids": 2}, ["eos_ids", "got 2"]),
    (TypeError, {"eos_ids": [2.0]}, ["eos_ids", "[2.0]"]),
    (TypeError, {"eos_ids": [True]}, ["eos_ids", "[True]"]),
    (TypeError, {"eos_ids": "2"}, ["eos_ids", "'2'"]),
    (TypeError, {"eos_ids": [[1], [2, 3]]}, ["eos_ids"]),
    (TypeError, {"eos_ids": np.ma.array([2, 3], mask=[0, 1])}, ["eos_ids", "masked array"]),
    (ValueError, {"row_ids": [0, 1]}, ["row_ids", "1 ids", "got 2"]),
    (ValueError, {"row_ids": [-1]}, ["row_ids", "0 to 2**64 - 1", "got -1"]),
    (ValueError, {"row_ids": [2**64]}, ["row_ids", 2**64]),
    (ValueError, {"row_ids": [0.0]}, ["row_ids", "got 0.0"]),
    (TypeError, {"row_ids": 5}, ["row_ids", "got 5"]),
    (ValueError, {"row_ids": [2**32], "num_return_sequences": 2}, ["row_ids", 2**32]),
    (ValueError, {"seed": -1}, ["seed", "0 to 2**64 - 1", "got -1"]),
    (ValueError, {"seed": 0.5}, ["seed", "got 0.5"]),
    (ValueError, {"uniforms": [0.5] * 7}, ["uniforms", "(1, 7)", "got (7,)"]),
    (ValueError, {"uniforms": [[0.5] * 6]}, ["uniforms", "(1, 7)", "got (1, 6)"]),
    (ValueError, {"uniforms": [[0.5] * 7] * 2}, ["uniforms", "(1, 7)", "got (2, 7)"]),
    (ValueError, {"uniforms": [[1.0] * 7]}, ["uniforms", "[0, 1)"]),
    (ValueError, {"uniforms": [[-0.1] * 7]}, ["uniforms", "[0, 1)"]),
    (ValueError, {"uniforms": [[math.nan] * 7]}, ["uniforms", "[0, 1)"]),
    (TypeError, {"uniforms": "abc"}, ["uniforms", "<U3"]),
    (TypeError, {"uniforms": [[0.5], [0.5, 0.5]]}, ["uniforms"]),
    (TypeError, {"uniforms": np.ma.ones((1, 7))}, ["uniforms", "masked array"]),
    (TypeError, {"choose": rs.sample}, ["choose", rs.sample]),
    (TypeError, {"choose": rs.top_k(3)}, ["choose", "top_k(3)", "rs.sample(rs.top_k(3))"]),
    (TypeError, {"stop": 3}, ["stop", "got 3"]),
    (ValueError, {"num_return_sequences": 0}, ["num_return_sequences", "got 0"]),
    (TypeError, {"num_return_sequences": 1.5}, ["num_return_sequences", "got float"]),
    (TypeError, {"num_return_sequences": True}, ["num_return_sequences", "got bool"]),
    (TypeError, {"amateurs": None}, ["amateurs", "rs.amateur"]),
    (TypeError, {"amateurs": rs.amateur(rs.load("g2p"))}, ["amateurs"]),
    (TypeError, {"source_mask": [[True], [True, False]]}, ["source_mask"]),
    (TypeError, {"use_cache": np.array([True, False])}, ["use_cache", "got ndarray"]),
]


@pytest.mark.parametrize("function", [rs.decode_steps, rs.generate])
@pytest.mark.parametrize(("kind", "options", "names"), BAD_REQUESTS, ids=short)
def test_a_bad_request_raises_before_the_first_step(function, kind, options, names):
    with raises_naming(kind, *names):
        function(learned_model(), **{"source": [[3]]} | options)


def test_max_new_tokens_is_needed_without_a_position_table():
    with raises_naming(ValueError, "max_new_tokens"):
        rs.generate(path_model(), [[0]])


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3,), (1,)])
def test_stop_that_answers_for_other_rows_raises(shape):
    with raises_naming(ValueError, "stop", "(2,)", f"got {shape}"):
        path(path_model(), [[0], [0]], stop=lambda step: np.zeros(shape, dtype=bool))


# Not finite, or no token left ---------------------------------------------------------------------


def spoilt(row, value, *, at="step.1.logits"):
    """A tap that puts a value into one row of one step's logits."""

    def spoil(name, x):
        if name != at:
            return x
        x = x.copy()
        x[row, ..., 4] = value
        return x

    return rs.FunctionTap(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_chooser
def test_logits_that_are_not_finite_raise_with_their_row(choose, value):
    for prefix in ([[0], [0]], [[0], [0, 3, 4]]):
        with raises_naming(rs.NonFiniteLogitsError, "row 1 in step"):
            path(path_model(), prefix, choose=choose, tap=spoilt(1, value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_has_ended_may_have_any_logits(value):
    out = path(path_model(eos_ids=(2,)), [[4], [0]], tap=spoilt(0, value))
    assert out.tokens.tolist() == [[2, 1, 1], [3, 4, 2]]
    assert np.isfinite(out.log_probs).all()


def test_a_logit_of_minus_infinity_is_an_overflow_and_rules_out_no_token():
    """Finite parameters give finite logits: its true value may be the best."""
    with raises_naming(rs.NonFiniteLogitsError, "the model's logits of row 0 in step"):
        path(path_model(), [[0]], tap=spoilt(0, -math.inf), max_new_tokens=2)
    out = path(path_model(), [[0]], choose=rs.greedy(rs.suppress([4])), max_new_tokens=2)
    assert 4 not in new_tokens(out)[0]  # this is how a token is ruled out


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@every_chooser
def test_weights_that_are_not_finite_raise_without_a_warning(choose, name, value):
    model = learned_model()
    getattr(model.params, name).embedding[:] *= value
    with raises_naming(rs.NonFiniteLogitsError, "row 0"):
        rs.generate(model, [[3], [4]], choose=choose)
    with raises_naming(rs.NonFiniteLogitsError, "row 0"):
        rs.generate(learned_model(), [[3], [4]], choose=choose, amateurs=[rs.amateur(model)])


def test_steps_before_one_that_raises_were_given():
    tap = spoilt(0, math.nan, at="step.2.logits")
    loop = rs.decode_steps(path_model(), [[0]], max_new_tokens=7, tap=tap)
    steps = [next(loop), next(loop)]
    with pytest.raises(rs.NonFiniteLogitsError):
        next(loop)
    assert rs.Generation.from_steps(steps, 1).tokens.tolist() == [[3, 4]]


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("make", [rs.greedy, rs.sample])
def test_processors_that_leave_no_token_raise_with_the_row(make, value):
    def process(scores, state):
        return np.where([[False], [True]], value, scores)

    names = ["removes the last"] if value == -math.inf else ["the score", value]
    with raises_naming(rs.NoTokenLeftError, "row 1 in step 0", "processor process", *names):
        path(path_model(), [[0], [0]], choose=make(process))


@pytest.mark.parametrize("make", [rs.greedy, rs.sample])
def test_a_temperature_that_makes_scores_overflow_raises(make):
    with raises_naming(rs.NoTokenLeftError, "temperature(1e-308)", "row 0 in step 0", "inf"):
        path(path_model(), choose=make(rs.temperature(1e-308)))


# Options that are not there -----------------------------------------------------------------------

INSTEAD = {
    "temperature": (0.8, "choose=rs.sample(rs.temperature(0.8))"),
    "top_k": (5, "rs.top_k(5, keep_ties=True)"),
    "no_repeat_ngram_size": (3, "rs.no_repeat_ngram(3)"),
    "bad_words_ids": ([[3]], "rs.bad_words([[3]])"),
    "num_beams": (4, "rs.beam_search(model, source, beams=4)"),
    "do_sample": (True, "choose=rs.sample"),
    "attention_mask": (None, "source_mask="),
    "eos_token_id": (2, "eos_ids=[2]"),
    "max_length": (9, "max_new_tokens="),
    "processors": ([], "choose=rs.greedy(...)"),
    "max_new_token": (3, "did you mean 'max_new_tokens'"),
    "frobnicate": (3, "source_mask, prefix"),
    "option": (3, "source_mask, prefix"),
    "sourc": (3, "did you mean 'source_mask'"),
}


@pytest.mark.parametrize(("name", "value_and_cure"), INSTEAD.items(), ids=INSTEAD)
def test_an_unknown_option_says_what_to_write(name, value_and_cure):
    value, cure = value_and_cure
    with raises_naming(TypeError, f"rs.generate has no argument '{name}'", cure):
        rs.generate(learned_model(), [[3]], **{name: value})
    with raises_naming(TypeError, f"rs.generate_text has no argument '{name}'", cure):
        rs.generate_text(text_model(), ["a"], **{name: value})


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("repetition_penalty", "processors=[rs.repetition_penalty(2)]"),
        ("choose", "processors="),
        ("num_return_sequences", "n_best=2"),
        ("seed", "gumbel_top_k"),
        ("uniforms", "gumbel_top_k"),
        ("row_ids", "gumbel_top_k"),
        ("do_sample", "beam search does not sample"),
        ("num_beams", "beams=2"),
        ("n_bests", "did you mean 'n_best'"),
    ],
)
def test_an_unknown_option_of_beam_search_says_what_to_write(name, cure):
    with raises_naming(TypeError, f"beam_search has no argument '{name}'", cure):
        rs.beam_search(learned_model(), [[3]], **{name: 2})


def test_the_names_that_messages_propose_exist():
    from refseq2seq import like

    for text in (*like.PROCESSORS.values(), *like.ARGUMENTS.values()):
        for name in re.findall(r"rs\.(\w+)", text):
            assert hasattr(rs, name)


# Models, taps and other arguments of another type -------------------------------------------------

CALLS = {
    "generate": rs.generate,
    "beam_search": rs.beam_search,
    "encode": rs.encode,
    "forward": lambda model, source, **how: rs.forward(model, source, [[1]], **how),
    "score": lambda model, source: rs.score(model, source, [[1, 3]]),
}


OF_MODELS = [
    *CALLS.values(),
    lambda model, source: rs.amateur(model),
    lambda model, source: rs.generate_text(model, ["a"]),
    lambda model, source: rs.new_cache(model, 1, 3),
    lambda model, source: rs.project_memory(model, np.ones((1, 2, 3)), None),
]


@pytest.mark.parametrize("call", OF_MODELS)
@pytest.mark.parametrize(
    ("model", "names"), [("g2p", ["str", "rs.load('g2p')"]), (None, ["NoneType"])]
)
def test_a_model_of_another_type_raises(call, model, names):
    with raises_naming(TypeError, "model", *names):
        call(model, [[3]])


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name != "score"])
@pytest.mark.parametrize(
    ("tap", "cure"), [(lambda name, x: x, "rs.FunctionTap("), (None, "rs.Trace"), ("*", "rs.Trace")]
)
def test_a_tap_of_another_type_raises(call, tap, cure):
    with raises_naming(TypeError, "tap", cure):
        call(learned_model(), [[3]], tap=tap)


def test_a_memory_of_another_type_raises():
    with raises_naming(TypeError, "memory", "rs.encode", "NoneType"):
        rs.decode(learned_model(), [[1]], None)
