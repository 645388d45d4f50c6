"""Requests that raise errors: before the first step, or with the row and the step."""

import math
import re

import numpy as np
import pytest
from tasks import every_chooser, learned_model, new_tokens, path, path_model, text_model

import refseq2seq as rs

# What is refused ---------------------------------------------------------------------------------

UNIFORMS = "uniforms must have the shape (batch, max_new_tokens) = (1, 7), or more columns, got "
BAD_REQUESTS = {
    "source of another rank": (
        {"source": [3, 4]},
        ValueError,
        "source must have one list of token ids per row, such as [[4, 9], [7]]; got [3, 4]",
    ),
    "source array of rank 1": (
        {"source": np.array([3, 4])},
        ValueError,
        "source must have shape (batch, n), got (2,)",
    ),
    "source array of rank 3": (
        {"source": np.ones((1, 2, 3), int)},
        ValueError,
        "source must have shape (batch, n), got (1, 2, 3)",
    ),
    "empty batch": ({"source": []}, ValueError, "source is empty: its shape is (0,)"),
    "empty batch array": (
        {"source": np.ones((0, 3), int)},
        ValueError,
        "source is empty: its shape is (0, 3)",
    ),
    "empty source": ({"source": [[]]}, ValueError, "source row 0 is empty"),
    "empty source of two": ({"source": [[3], []]}, ValueError, "source row 1 is empty"),
    "negative id": (
        {"source": [[3, -1]]},
        ValueError,
        "source holds token id -1 at row 0, position 1; the vocabulary has ids 0 to 10",
    ),
    "id out of range": (
        {"source": [[3], [11]]},
        ValueError,
        "source holds token id 11 at row 1, position 0; the vocabulary has ids 0 to 10",
    ),
    "float ids": (
        {"source": np.array([[3.0]])},
        TypeError,
        "source must hold integer token ids, got dtype float64",
    ),
    "boolean ids": (
        {"source": np.array([[True]])},
        TypeError,
        "source must hold integer token ids, got dtype bool",
    ),
    "text": (
        {"source": "cat"},
        TypeError,
        "source must hold token ids, got a str: rs.generate_text takes texts",
    ),
    "source too long": (
        {"source": [[3] * 6]},
        ValueError,
        "source has 6 tokens; the model's position table serves at most 5",
    ),
    "integer mask": (
        {"source_mask": np.array([[1]])},
        TypeError,
        "source_mask must be boolean, True = real token, got dtype int64; for a mask of ones and "
        "zeros pass mask.astype(bool)",
    ),
    "mask of another shape": (
        {"source_mask": np.array([[True, True]])},
        ValueError,
        "source_mask must have the tokens' shape (1, 1), got (1, 2)",
    ),
    "empty prefix": ({"prefix": [[]]}, ValueError, "prefix row 0 is empty"),
    "prefix for no row": ({"prefix": []}, ValueError, "prefix is empty: its shape is (0,)"),
    "prefix for another batch": (
        {"prefix": [[1], [1]]},
        ValueError,
        "prefix must have 1 rows, one for each source, got 2",
    ),
    "prefix id out of range": (
        {"prefix": [[13]]},
        ValueError,
        "prefix holds token id 13 at row 0, position 0; the vocabulary has ids 0 to 12",
    ),
    "float prefix": (
        {"prefix": [[1.0]]},
        TypeError,
        "prefix must hold integer token ids, got dtype float64",
    ),
    "prefix too long": (
        {"prefix": [[1] * 8]},
        ValueError,
        "prefix has 8 tokens; the model's position table serves at most 7",
    ),
    "too many new tokens": (
        {"max_new_tokens": 8},
        ValueError,
        "a prefix of 1 tokens and max_new_tokens = 8 need 8 positions; the model's table has 7",
    ),
    "too many after the longest prefix": (
        {"source": [[3], [3]], "prefix": [[1], [1, 4, 5]], "max_new_tokens": 6},
        ValueError,
        "a prefix of 3 tokens and max_new_tokens = 6 need 8 positions; the model's table has 7",
    ),
    "no new tokens": (
        {"max_new_tokens": 0},
        ValueError,
        "max_new_tokens must be at least 1, got 0",
    ),
    "fewer than none": (
        {"max_new_tokens": -3},
        ValueError,
        "max_new_tokens must be at least 1, got -3",
    ),
    "True new tokens": (
        {"max_new_tokens": True},
        TypeError,
        "max_new_tokens must be an int, got bool",
    ),
    "half a token": (
        {"max_new_tokens": 2.5},
        TypeError,
        "max_new_tokens must be an int, got float",
    ),
    "minimum over maximum": (
        {"max_new_tokens": 3, "min_new_tokens": 4},
        ValueError,
        "min_new_tokens must be at most max_new_tokens = 3, got 4",
    ),
    "minimum over the default maximum": (
        {"min_new_tokens": 8},
        ValueError,
        "min_new_tokens must be at most max_new_tokens = 7, got 8",
    ),
    "negative minimum": (
        {"min_new_tokens": -1},
        ValueError,
        "min_new_tokens must be at least 0, got -1",
    ),
    "float minimum": (
        {"min_new_tokens": 1.0},
        TypeError,
        "min_new_tokens must be an int, got float",
    ),
    "True minimum": (
        {"min_new_tokens": True},
        TypeError,
        "min_new_tokens must be an int, got bool",
    ),
    "eos id out of range": (
        {"eos_ids": (2, 13)},
        ValueError,
        "eos_ids must be from 0 to 12, got (2, 13)",
    ),
    "negative eos id": ({"eos_ids": [-1]}, ValueError, "eos_ids must be from 0 to 12, got [-1]"),
    "a single eos id": (
        {"eos_ids": 2},
        TypeError,
        "eos_ids must be a sequence of token ids, got 2",
    ),
    "float eos ids": (
        {"eos_ids": [2.0]},
        TypeError,
        "eos_ids must be a sequence of token ids, got [2.0]",
    ),
    "boolean eos ids": (
        {"eos_ids": [True]},
        TypeError,
        "eos_ids must be a sequence of token ids, got [True]",
    ),
    "text as eos ids": (
        {"eos_ids": "2"},
        TypeError,
        "eos_ids must be a sequence of token ids, got '2'",
    ),
    "row ids for another batch": (
        {"row_ids": [0, 1]},
        ValueError,
        "row_ids must have 1 ids, one for each source, got 2",
    ),
    "negative row id": (
        {"row_ids": [-1]},
        ValueError,
        "row_ids must be integers from 0 to 2**64 - 1, got -1",
    ),
    "row id of 65 bits": (
        {"row_ids": [2**64]},
        ValueError,
        "row_ids must be integers from 0 to 2**64 - 1, got 18446744073709551616",
    ),
    "float row id": (
        {"row_ids": [0.0]},
        ValueError,
        "row_ids must be integers from 0 to 2**64 - 1, got 0.0",
    ),
    "negative seed": (
        {"seed": -1},
        ValueError,
        "seed must be an integer from 0 to 2**64 - 1, got -1",
    ),
    "float seed": (
        {"seed": 0.5},
        ValueError,
        "seed must be an integer from 0 to 2**64 - 1, got 0.5",
    ),
    "uniforms of rank 1": (
        {"uniforms": [0.5] * 7},
        ValueError,
        UNIFORMS + "(7,)",
    ),
    "too few uniforms": (
        {"uniforms": [[0.5] * 6]},
        ValueError,
        UNIFORMS + "(1, 6)",
    ),
    "uniforms for another batch": ({"uniforms": [[0.5] * 7] * 2}, ValueError, UNIFORMS + "(2, 7)"),
    "a uniform of 1": ({"uniforms": [[1.0] * 7]}, ValueError, "uniforms must be in [0, 1)"),
    "a negative uniform": ({"uniforms": [[-0.1] * 7]}, ValueError, "uniforms must be in [0, 1)"),
    "NaN uniforms": ({"uniforms": [[math.nan] * 7]}, ValueError, "uniforms must be in [0, 1)"),
    "sample without ()": (
        {"choose": rs.sample},
        TypeError,
        f"choose must be a Chooser, such as rs.greedy(), got {rs.sample}",
    ),
    "a processor as chooser": (
        {"choose": rs.top_k(3)},
        TypeError,
        "choose must be a Chooser, got the processor top_k(3): write rs.sample(rs.top_k(3)) or ",
    ),
    "stop that cannot be called": (
        {"stop": 3},
        TypeError,
        "stop must be a function of a step, got 3",
    ),
    "no samples": (
        {"num_return_sequences": 0},
        ValueError,
        "num_return_sequences must be at least 1, got 0",
    ),
    "half a sample": (
        {"num_return_sequences": 1.5},
        TypeError,
        "num_return_sequences must be an int, got float",
    ),
    "a truth of samples": (
        {"num_return_sequences": True},
        TypeError,
        "num_return_sequences must be an int, got bool",
    ),
    "a row id too great for several samples": (
        {"row_ids": [2**32], "num_return_sequences": 2},
        ValueError,
        "row_ids must be below 2**32 for several samples, got 4294967296",
    ),
}


@pytest.mark.parametrize("function", [rs.decode_steps, rs.generate])
@pytest.mark.parametrize(
    ("options", "kind", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys()
)
def test_a_bad_request_is_refused_before_the_first_step(function, options, kind, message):
    options = {"source": [[3]]} | options
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        function(learned_model(), **options)


def test_a_model_without_positions_must_be_told_where_to_end():
    with pytest.raises(ValueError, match=r"^max_new_tokens is needed"):
        rs.generate(path_model(), [[0]])


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3,), (1,)])
def test_an_answer_of_stop_for_other_rows_is_refused(shape):
    with pytest.raises(
        ValueError,
        match=re.escape(f"stop must return a boolean or an array (2,), got {shape}") + "$",
    ):
        path(path_model(), [[0], [0]], stop=lambda step: np.zeros(shape, dtype=bool))


def spoilt(row, value, *, at="step.1.logits"):
    """A tap that puts a value into one row of the logits, from a step on."""

    def spoil(name, x):
        if name != at:
            return x
        x = x.copy()
        x[row, ..., 4] = value
        return x

    return rs.FunctionTap(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_chooser
def test_logits_that_are_not_finite_are_reported_with_their_row(choose, value):
    with pytest.raises(
        rs.NonFiniteLogitsError,
        match=r"^the model's logits of row 1 in step \d are NaN or infinite: they define no",
    ):
        path(path_model(), [[0], [0]], choose=choose, tap=spoilt(1, value))
    # in a prefix too
    with pytest.raises(rs.NonFiniteLogitsError, match="row 1"):
        path(path_model(), [[0], [0, 3, 4]], choose=choose, tap=spoilt(1, value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_has_ended_may_have_any_logits(value):
    out = path(path_model(eos_ids=(2,)), [[4], [0]], tap=spoilt(0, value))
    assert out.tokens.tolist() == [[2, 1, 1], [3, 4, 2]]
    assert np.isfinite(out.log_probs).all()


def test_a_logit_of_minus_infinity_is_an_overflow_and_no_token_ruled_out():
    """Finite parameters give finite logits: its true value may be the best."""
    with pytest.raises(rs.NonFiniteLogitsError, match=r"the model's logits of row 0 in step \d"):
        path(path_model(), [[0]], tap=spoilt(0, -math.inf), max_new_tokens=2)
    out = path(path_model(), [[0]], choose=rs.greedy(rs.suppress([4])), max_new_tokens=2)
    assert 4 not in new_tokens(out)[0]  # this is how a token is ruled out


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@every_chooser
def test_weights_that_are_not_finite_give_the_error_and_no_warning(choose, name, value):
    model = learned_model()
    getattr(model.params, name).embedding[:] *= value
    with pytest.raises(rs.NonFiniteLogitsError, match="row 0"):
        rs.generate(model, [[3], [4]], choose=choose)
    with pytest.raises(rs.NonFiniteLogitsError, match="row 0"):
        rs.generate(learned_model(), [[3], [4]], choose=choose, amateurs=[rs.amateur(model)])


def test_steps_before_the_bad_one_were_given():
    tap = spoilt(0, math.nan, at="step.2.logits")
    loop = rs.decode_steps(path_model(), [[0]], max_new_tokens=7, tap=tap)
    steps = [next(loop), next(loop)]
    with pytest.raises(rs.NonFiniteLogitsError):
        next(loop)
    assert rs.Generation.from_steps(steps, 1).tokens.tolist() == [[3, 4]]


def only_in_row_1(value):
    def process(scores, state):
        return np.where([[False], [True]], value, scores)

    return process


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("make", [rs.greedy, rs.sample])
def test_processors_that_leave_no_token_are_reported_with_the_row(make, value):
    choose = make(only_in_row_1(value))
    message = "^no token is left for row 1 in step 0: the processor process removes the last$"
    if value != -math.inf:
        message = f"^the processor process gives row 1 in step 0 the score {value}: scores must"
    with pytest.raises(rs.NoTokenLeftError, match=message):
        path(path_model(), [[0], [0]], choose=choose)


def test_a_temperature_under_which_scores_overflow_is_reported():
    for make in (rs.greedy, rs.sample):
        message = r"the processor temperature\(1e-308\) gives row 0 in step 0 the score inf"
        with pytest.raises(rs.NoTokenLeftError, match=message):
            path(path_model(), choose=make(rs.temperature(1e-308)))


def test_min_new_tokens_can_leave_no_token():
    with pytest.raises(rs.NoTokenLeftError, match="the rule min_new_tokens removes the last"):
        path(path_model(), eos_ids=range(7), min_new_tokens=1)


# Options that are not there -----------------------------------------------------------------------

INSTEAD = {
    "temperature": (0.8, r"choose=rs\.sample\(rs\.temperature\(0\.8\)\)"),
    "top_k": (5, r"rs\.top_k\(5, keep_ties=True\)"),
    "no_repeat_ngram_size": (3, r"rs\.no_repeat_ngram\(3\)"),
    "bad_words_ids": ([[3]], r"rs\.bad_words\(\[\[3\]\]\)"),
    "num_beams": (4, r"rs\.beam_search\(model, source, beams=4\)"),
    "do_sample": (True, r"choose=rs\.sample"),
    "attention_mask": (None, "source_mask="),
    "eos_token_id": (2, r"eos_ids=\[2\]"),
    "max_length": (9, "max_new_tokens="),
    "processors": ([], r"choose=rs\.greedy\(\.\.\.\)"),
    "max_new_token": (3, "did you mean 'max_new_tokens'"),
    "frobnicate": (3, "its arguments are source_mask, prefix"),
    "option": (3, "its arguments are source_mask, prefix"),
    "sourc": (3, "did you mean 'source_mask'"),
}


@pytest.mark.parametrize(("name", "value_and_cure"), INSTEAD.items(), ids=INSTEAD)
def test_an_unknown_option_says_what_to_write(name, value_and_cure):
    value, cure = value_and_cure
    for call in (rs.generate, lambda *a, **o: rs.generate_text(text_model(), ["a"], **o)):
        with pytest.raises(TypeError, match=f"has no argument '{name}': .*{cure}"):
            call(learned_model(), [[3]], **{name: value})


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("repetition_penalty", r"processors=\[rs\.repetition_penalty\(2\)\]"),
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
def test_an_unknown_option_of_a_search_says_what_to_write(name, cure):
    with pytest.raises(TypeError, match=f"beam_search has no argument '{name}': .*{cure}"):
        rs.beam_search(learned_model(), [[3]], **{name: 2})


def test_every_cure_can_be_written():
    """Names that the messages use are names that there are."""
    from refseq2seq import like

    for text in (*like.PROCESSORS.values(), *like.ARGUMENTS.values()):
        for name in re.findall(r"rs\.(\w+)", text):
            assert hasattr(rs, name)


# What is no model, tap or sequence ----------------------------------------------------------------

CALLS = {
    "generate": rs.generate,
    "beam_search": rs.beam_search,
    "encode": rs.encode,
    "forward": lambda model, source, **how: rs.forward(model, source, [[1]], **how),
    "score": lambda model, source: rs.score(model, source, [[1, 3]]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("model", "got"), [("g2p", r"got str: write rs\.load\('g2p'\)"), (None, "NoneT")]
)
def test_what_is_no_model_is_refused(call, model, got):
    with pytest.raises(TypeError, match=f"^model must be a Model, .*{got}"):
        call(model, [[3]])


@pytest.mark.parametrize(
    "call", [CALLS[name] for name in ("generate", "beam_search", "encode", "forward")]
)
@pytest.mark.parametrize(
    ("tap", "cure"),
    [(lambda name, x: x, r"rs\.FunctionTap\("), (None, "rs.Trace"), ("*", "rs.Trace")],
)
def test_what_is_no_tap_is_refused(call, tap, cure):
    with pytest.raises(TypeError, match=f"^tap must be a Tap, got .*{cure}"):
        call(learned_model(), [[3]], tap=tap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_ids": 5}, "row_ids must be a sequence of ints, got 5"),
        ({"amateurs": None}, r"amateurs must be a sequence, such as \[rs\.amateur"),
        ({"amateurs": rs.amateur(rs.load("g2p"))}, "amateurs must be a sequence"),
        ({"uniforms": "abc"}, "uniforms must be numbers, got <U3"),
        ({"uniforms": [[0.5], [0.5, 0.5]]}, "uniforms must be an array, or lists of one shape"),
        ({"eos_ids": [[1], [2, 3]]}, "eos_ids must be an array, or lists of one shape"),
        ({"source_mask": [[True], [True, False]]}, "source_mask must be an array, or lists of one"),
        ({"eos_ids": np.ma.array([2, 3], mask=[0, 1])}, "eos_ids is a masked array"),
        ({"uniforms": np.ma.ones((1, 7))}, "uniforms is a masked array"),
        ({"use_cache": np.array([True, False])}, "use_cache must be a bool, got ndarray"),
        (
            {"choose": rs.Chooser((), lambda scores, state: None)},
            "pick an array of token ids, got None",
        ),
    ],
)
def test_what_is_no_sequence_or_array_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        rs.generate(learned_model(), [[3]], **options)
    with pytest.raises(TypeError, match="model must be a Model"):
        rs.amateur("g2p")
    with pytest.raises(ValueError, match="early_stopping must be True, False or 'never'"):
        rs.beam_search(learned_model(), [[3]], early_stopping=np.array([True, False]))
    with pytest.raises(TypeError, match=r"memory must be a Memory from rs\.encode, got NoneType"):
        rs.decode(learned_model(), [[1]], None)
