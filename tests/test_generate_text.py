"""From text to text."""

import dataclasses

import pytest
from tasks import (
    text_model,
)

import refseq2seq as rs

# Text --------------------------------------------------------------------------------------------


def test_from_text_to_text():
    assert rs.generate_text(text_model(), ["Abba", "f"], max_new_tokens=7) == ["to be", "to be"]
    assert rs.generate_text(text_model(), ["a"], max_new_tokens=7, eos_ids=()) == [
        "to be or not to be"
    ]
    assert rs.generate_text(text_model(), ("a",), max_new_tokens=1) == ["to"]


def test_one_text_is_not_a_list_of_texts():
    with pytest.raises(
        TypeError, match=r"^texts must be a sequence of strings, got one string: put it in a list$"
    ):
        rs.generate_text(text_model(), "abba", max_new_tokens=7)


@pytest.mark.parametrize("missing", ["source_vocabulary", "target_vocabulary"])
def test_text_needs_both_vocabularies(missing):
    model = dataclasses.replace(text_model(), **{missing: None})
    with pytest.raises(
        ValueError, match=r"^the model has no vocabularies: give token ids to rs\.generate instead$"
    ):
        rs.generate_text(model, ["abba"], max_new_tokens=7)


def test_unknown_symbols_are_named():
    with pytest.raises(rs.UnknownSymbolError, match="'abxy' has unknown symbols: 'x', 'y'"):
        rs.generate_text(text_model(), ["abba", "abxy"], max_new_tokens=7)


@pytest.mark.parametrize("texts", [[], ["", "a"], ["a", ""]])
def test_no_text_and_empty_text_are_refused(texts):
    with pytest.raises(ValueError, match=r"source row . is empty|source is empty"):
        rs.generate_text(text_model(), texts, max_new_tokens=7)


@pytest.mark.parametrize("text", [b"ab", 3, None, ["a"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match=f"a text must be a string, got {type(text).__name__}"):
        rs.generate_text(text_model(), [text], max_new_tokens=7)
