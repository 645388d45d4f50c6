"""Generation settings: what they ask for, and who applies them. Live: tests/peers/test_settings."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq import cli
from refseq2seq.convert.huggingface.settings import read_settings
from refseq2seq.testing.vectors.situations import ordinary

MODEL = rs.load("g2p")
SOURCE = [MODEL.source_vocabulary.encode(word) for word in ("banana", "cat")]


def with_settings(**fields):
    return dataclasses.replace(MODEL, settings=rs.Settings(**fields))


def texts(tokens):
    return [[MODEL.target_vocabulary.decode(target) for target in row] for row in tokens]


# What they ask for


def test_beams_as_configured():
    model = with_settings(
        beams=3, num_return_sequences=2, length_penalty=0.5, early_stopping=True,
        no_repeat_ngram=2, max_length=13, renormalize_logits=True,
    )  # fmt: skip
    found = rs.generate_as_configured(model, SOURCE)
    expected = rs.beam_search(
        MODEL, SOURCE, beams=3, n_best=2, length_penalty=0.5, early_stopping=True,
        processors=[rs.no_repeat_ngram(2), rs.renormalize_logits()], max_new_tokens=12,
    )  # fmt: skip
    for name in ("tokens", "lengths", "scores", "log_probs"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_samples_as_configured_do_not_depend_on_their_number():
    model = with_settings(do_sample=True, temperature=0.7, top_k=9, top_p=0.9, max_new_tokens=11)
    one = rs.generate_as_configured(model, SOURCE, seed=5)
    three = rs.generate_as_configured(model, SOURCE, seed=5, num_return_sequences=3)
    assert one.scores is None
    assert three.tokens.shape[:2] == (2, 3)
    for row in range(2):
        n = one.lengths[row, 0]
        assert n == three.lengths[row, 0]
        assert one.tokens[row, 0, :n].tolist() == three.tokens[row, 0, :n].tolist()


@pytest.mark.parametrize(
    ("fields", "n_prefix", "expected"),
    [
        ({}, 1, (20, 0)),
        ({}, 4, (20, 0)),
        ({"max_length": 9, "min_length": 5}, 1, (8, 4)),
        ({"max_length": 9, "min_length": 5}, 4, (5, 1)),
        ({"max_length": 9, "min_length": 3}, 4, (5, 0)),
        ({"max_length": 9, "max_new_tokens": 7}, 4, (7, 0)),
        ({"min_length": 9, "min_new_tokens": 7}, 4, (20, 7)),
    ],
)
def test_a_length_counts_the_prefix_and_new_tokens_do_not(fields, n_prefix, expected):
    prefix = [[MODEL.config.decoder_start_id, *[9] * (n_prefix - 1)]]
    how = rs.as_configured(with_settings(**fields), prefix=prefix)
    assert (how["max_new_tokens"], how["min_new_tokens"]) == expected


def test_a_minimum_above_the_maximum_warns():
    with pytest.warns(UserWarning, match="at least 8 and at most 3"):
        how = rs.as_configured(with_settings(min_new_tokens=8, max_new_tokens=3))
    assert how["min_new_tokens"] == 3


def test_an_override_replaces_a_field():
    model = with_settings(beams=4, max_new_tokens=9, min_new_tokens=2, no_repeat_ngram=2)
    how = rs.as_configured(model, beams=1, max_length=6, repetition_penalty=2, seed=3)
    assert how["max_new_tokens"] == 5
    assert how["min_new_tokens"] == 2
    assert how["seed"] == 3
    assert "no_repeat_ngram(2)" in repr(how["choose"])
    assert "repetition_penalty(2.0)" in repr(how["choose"])


def test_an_override_may_consist_of_numbers_of_numpy():
    how = rs.as_configured(
        with_settings(),
        sequence_bias={(np.int64(5), 6): -1},
        bad_words=[np.array([3, 4])],
        exponential_decay=np.array([2, 3]),
    )
    for told in ("(((5, 6), -1.0),)", "bad_words(((3, 4),))", "exponential_decay(2, 3.0)"):
        assert told in repr(how["choose"])


@pytest.mark.parametrize(
    ("fields", "overrides", "error", "message"),
    [
        ({}, {"num_beams": 2}, TypeError, "'num_beams': write beams=2"),
        ({}, {"n_best": 2}, TypeError, "num_return_sequences=2"),
        ({}, {"logits_processors": []}, TypeError, "'logits_processors'"),
        ({}, {"beams": "2"}, TypeError, "beams"),
        ({}, {"beams": 0}, ValueError, "beams .*0"),
        ({}, {"prefix": [[1], [1, 2]], "max_length": 5}, ValueError, "max_new_tokens"),
        ({}, {"max_length": 1}, ValueError, "max_length = 1"),
        ({"num_return_sequences": 2}, {}, ValueError, "num_return_sequences = 2"),
        ({"num_return_sequences": 3}, {"beams": 2}, ValueError, "num_return_sequences = 3.* 2"),
        ({}, {"temperature": 10**400}, TypeError, "temperature"),
        ({}, {"sequence_bias": {5: 1.0}}, TypeError, "sequence_bias"),
        ({}, {"early_stopping": 1}, ValueError, "early_stopping"),
        ({"beams": 2}, {"do_sample": True}, rs.UnsupportedFeature, "beams = 2"),
        ({"not_implemented": (("top_h", "0.5"),)}, {}, rs.UnsupportedFeature, "top_h = 0.5"),
    ],
)
def test_what_cannot_be_applied_raises(fields, overrides, error, message):
    with pytest.raises(error, match=message):
        rs.generate_as_configured(with_settings(**fields), SOURCE, **overrides)


def test_further_processors_come_before_the_filters():
    model = with_settings(repetition_penalty=2.0, temperature=0.5, do_sample=True, top_k=0)
    how = rs.as_configured(model, processors=[rs.suppress((3, 4))])
    told = repr(how["choose"])
    places = [told.index(name) for name in ("repetition_penalty", "suppress", "temperature")]
    assert places == sorted(places)
    how = rs.as_configured(model, processors=[rs.suppress((3, 4))], beams=2, do_sample=False)
    assert [repr(process)[:8] for process in how["processors"]] == ["repetiti", "suppress"]


def test_a_model_without_settings_raises():
    with pytest.raises(ValueError, match="no settings"):
        rs.generate_as_configured(MODEL, SOURCE)


# Calls that do not apply them


@pytest.mark.parametrize(
    ("call", "options", "left"),
    [
        (rs.generate, {}, ["beams = 3", "no_repeat_ngram = 2", "max_length = 20"]),
        (rs.generate, {"choose": rs.greedy(), "max_new_tokens": 5}, ["beams = 3"]),
        (rs.beam_search, {}, ["no_repeat_ngram = 2", "max_length = 20"]),
        (rs.beam_search, {"processors": [], "max_new_tokens": 5}, []),
    ],
)
def test_explicit_calls_warn_of_settings_they_do_not_apply(call, options, left, recwarn):
    model = with_settings(beams=3, no_repeat_ngram=2, max_length=20, temperature=0.5)
    call(model, SOURCE, **options)
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == bool(left)
    assert [x for x in ("beams", "no_repeat_ngram", "max_length", "temperature")
            if f"{x} = " in "".join(told)] == [x.partition(" ")[0] for x in left]  # fmt: skip


def test_generate_text_warns_once(recwarn):
    rs.generate_text(with_settings(repetition_penalty=1.5), ["cat"])
    assert ["repetition_penalty = 1.5" in str(x.message) for x in recwarn] == [True]
    assert recwarn[0].filename == __file__


def test_the_warning_names_what_is_not_implemented():
    with pytest.warns(UserWarning, match="settings top_h = 0.5: "):
        rs.generate(with_settings(not_implemented=(("top_h", "0.5"),)), SOURCE)


def test_cases_of_vectors_have_no_settings():
    case = ordinary("g2p", with_settings(no_repeat_ngram=2), np.random.default_rng(0))
    assert case.model.settings is None


# From files, and to files


settings = st.builds(
    rs.Settings,
    max_length=st.none() | st.integers(1, 99),
    beams=st.integers(1, 9),
    length_penalty=st.floats(-3, 3),
    early_stopping=st.sampled_from([True, False, "never"]),
    min_p=st.none() | st.floats(0, 1),
    sequence_bias=st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1).map(tuple), st.floats(-9, 9))
    ).map(tuple),
    bad_words=st.lists(st.lists(st.integers(0, 9), min_size=1).map(tuple)).map(tuple),
    exponential_decay=st.tuples(st.integers(0, 9), st.floats(0.5, 2)),
    not_implemented=st.just((("a", '["b"]'),)) | st.just(()),
)


@given(settings=settings)
def test_a_checkpoint_contains_the_settings(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("settings") / "model.npz"
    small = dataclasses.replace(MODEL, settings=settings)
    rs.save(small, path)
    assert rs.load(path).settings == settings
    assert small.astype("float64").exact().settings == settings


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        (
            {"num_beams": 4, "length_penalty": 2, "early_stopping": None},
            "beams=4, length_penalty=2.0",
        ),
        ({"num_beams": "4"}, 'num_beams="4"'),
        ({"num_beams": True, "top_k": -1}, "num_beams=true, top_k=-1"),
        ({"num_beam_groups": 1, "diversity_penalty": 0.0, "use_cache": False}, ""),
        ({"num_beam_groups": 2}, "num_beam_groups=2"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "top_k=4, penalty_alpha=0.6"),
        ({"bad_words_ids": [[2], [7], [8, 9]]}, "bad_words=((7,), (8, 9))"),  # 2 ends a target
        ({"sequence_bias": [[[4], 1.5]]}, "sequence_bias=(((4,), 1.5),)"),
        ({"exponential_decay_length_penalty": [2, 3]}, "exponential_decay=(2, 3.0)"),
        ({"forced_eos_token_id": [5, 6]}, "forced_eos_token_id=[5, 6]"),
        ({"early_stopping": 1}, "early_stopping=1"),
        ({"new_option": {"a": 1}}, 'new_option={"a": 1}'),
        ({"eos_token_id": 5, "transformers_version": "6"}, ""),
    ],
)
def test_generation_configs_are_read(fields, asked):
    assert str(read_settings(fields, MODEL.config)) == asked


# The command line


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.npz"
    rs.save(with_settings(beams=3, num_return_sequences=2, max_length=15, min_length=4), path)
    return str(path)


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ([], {}),
        (["--beams", "2"], {"beams": 2}),
        (
            ["--n-best", "1", "--length-penalty", "0"],
            {"num_return_sequences": 1, "length_penalty": 0},
        ),
        (["--max-new-tokens", "3"], {"max_new_tokens": 3}),
        (["--beams", "1", "--n-best", "1"], {"beams": 1, "num_return_sequences": 1}),
        (["--top-k", "4", "--seed", "7"], {"do_sample": True, "beams": 1, "top_k": 4, "seed": 7}),
    ],
)
def test_the_command_applies_settings_and_options_replace_them(path, options, overrides, capsys):
    assert cli.main(["generate", "banana", "--model", path, *options]) == 0
    found = rs.generate_as_configured(rs.load(path), SOURCE[:1], **overrides)
    assert capsys.readouterr().out == "\t".join(texts(found.tokens)[0]) + "\n"


def test_the_command_appends_filters_that_are_no_settings(path, capsys):
    assert cli.main(["generate", "banana", "--model", path, "--top-a", "1", "--top-k", "0.5"]) == 0
    best = rs.generate_as_configured(rs.load(path), SOURCE[:1], beams=1, num_return_sequences=1)
    assert capsys.readouterr().out.split("\t")[0] == texts(best.tokens)[0][0]


@pytest.mark.parametrize("options", [["--n-best", "4"], ["--beams", "1"]])
def test_more_outputs_than_beams_are_refused_before_the_first_line(path, options, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", "banana", "--model", path, *options])
    assert "num_return_sequences" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--n-best", "3", "--beams", "2"], ["--length-penalty", "1", "--top-k", "4"]]
)
def test_the_command_refuses_options_of_another_method(path, options, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", "cat", "--model", path, *options])
    assert options[0] in capsys.readouterr().err


def test_info_prints_the_settings(path, capsys):
    assert cli.main(["info", path]) == 0
    assert re.search(r"settings +max_length=15, .*beams=3", capsys.readouterr().out)


def test_the_command_refuses_what_is_not_implemented(tmp_path, capsys):
    path = tmp_path / "model.npz"
    rs.save(with_settings(not_implemented=(("top_h", "0.5"),)), path)
    assert cli.main(["generate", "cat", "--model", str(path)]) == 1
    assert "top_h = 0.5" in capsys.readouterr().err
