"""`generate_text`: from text to text."""

import dataclasses

import pytest
from naming import raises_naming
from tasks import text_model

import refseq2seq as rs


def test_texts_are_encoded_and_decoded():
    model = text_model()
    assert rs.generate_text(model, ["Abba", "f"], max_new_tokens=7) == ["to be", "to be"]
    endless = rs.generate_text(model, ["a"], max_new_tokens=7, eos_ids=())
    assert endless == ["to be or not to be"]
    assert rs.generate_text(model, ("a",), max_new_tokens=1) == ["to"]


@pytest.mark.parametrize(
    ("texts", "kind", "names"),
    [
        ("abba", TypeError, ["texts", "string"]),
        (["abba", "abxy"], rs.UnknownSymbolError, ["'abxy'", "'x', 'y'"]),
        ([], ValueError, ["source is empty"]),
        (["", "a"], ValueError, ["source row 0 is empty"]),
        (["a", ""], ValueError, ["source row 1 is empty"]),
        *(([text], TypeError, ["text", type(text).__name__]) for text in (b"ab", 3, None, ["a"])),
    ],
)
def test_bad_texts_raise(texts, kind, names):
    with raises_naming(kind, *names):
        rs.generate_text(text_model(), texts, max_new_tokens=7)


@pytest.mark.parametrize("missing", ["source_vocabulary", "target_vocabulary"])
def test_a_model_without_vocabularies_raises(missing):
    model = dataclasses.replace(text_model(), **{missing: None})
    with raises_naming(ValueError, "vocabularies", "rs.generate"):
        rs.generate_text(model, ["abba"], max_new_tokens=7)
