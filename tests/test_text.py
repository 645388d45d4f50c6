"""Vocabularies: texts to ids and back, and errors."""

import dataclasses

import numpy as np
import pytest
from arrangements import vocabulary
from hypothesis import given
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.text import symbol

LETTERS = vocabulary(
    ["<pad>", "a", "b", "'", "é", "\N{PILE OF POO}"],
    special=("<pad>",),
    replacements=(("A", "a"), ("2", "ab"), ("-", "")),
)
WORDS = vocabulary(["<s>", "AH", "B", "</s>", "K"], separator=" ", special=("<s>", "</s>"))


def test_the_id_of_a_symbol_is_its_index():
    assert LETTERS.encode("a'bé\N{PILE OF POO}") == [1, 3, 2, 4, 5]
    assert LETTERS.decode([1, 3, 2, 4, 5]) == "a'bé\N{PILE OF POO}"
    assert WORDS.encode("B AH K") == [2, 1, 4]
    assert WORDS.decode([2, 1, 4]) == "B AH K"
    assert (len(LETTERS), len(WORDS)) == (6, 5)


@given(ids=st.lists(st.sampled_from([1, 2, 4]), max_size=7))
def test_encode_undoes_decode(ids):
    assert LETTERS.encode(LETTERS.decode(ids)) == ids
    assert WORDS.encode(WORDS.decode(ids)) == ids


@pytest.mark.parametrize("words", [LETTERS, WORDS])
def test_an_empty_text_has_no_symbols(words):
    assert words.encode("") == []
    assert words.decode([]) == ""


def test_replacements_are_made_once_and_before_symbols_are_looked_up():
    assert LETTERS.encode("bA2-a") == [2, 1, 1, 2, 1]
    swap = dataclasses.replace(LETTERS, replacements=(("a", "b"), ("b", "a")))
    assert swap.encode("aab") == [2, 2, 1]
    assert LETTERS.decode([1, 2]) == "ab"  # and not undone


def test_special_symbols_are_neither_written_nor_read():
    assert WORDS.decode([0, 2, 3, 1, 3]) == "B AH"
    with pytest.raises(rs.UnknownSymbolError, match="'</s>'"):
        WORDS.encode("B </s>")


def test_ids_may_be_an_array_of_any_integers():
    for dtype in (np.int64, np.int32, np.uint8):
        assert WORDS.decode(np.array([2, 1], dtype=dtype)) == "B AH"


def test_the_error_of_unknown_symbols_names_each_once_and_the_known_ones():
    with pytest.raises(rs.UnknownSymbolError, match=r"^'xaBx' .*'B', 'x'.*'a', 'b', .*'é'"):
        LETTERS.encode("xaBx")
    with pytest.raises(rs.UnknownSymbolError, match=r"''.*'AH', 'B', 'K'$"):
        WORDS.encode("B  AH")  # nothing stands between the two spaces
    assert issubclass(rs.UnknownSymbolError, ValueError)
    many = vocabulary(chr(0x4E00 + i) for i in range(61))
    with pytest.raises(rs.UnknownSymbolError, match=r"61 symbols$"):
        many.encode("x")


@pytest.mark.parametrize("text", [None, 3, b"ab", ["a"]])
def test_texts_of_another_type_raise(text):
    with pytest.raises(TypeError, match=type(text).__name__):
        LETTERS.encode(text)


@pytest.mark.parametrize("ids", [[5], [1, -1], np.array([2**40])])
def test_ids_out_of_range_raise(ids):
    with pytest.raises(ValueError, match=f"0 to 4, got {ids[-1]}"):
        WORDS.decode(ids)


@pytest.mark.parametrize("ids", [[1.0], ["1"], [None], np.array([1.5]), np.array([[1, 2]])])
def test_ids_of_another_type_raise(ids):
    with pytest.raises(TypeError):
        WORDS.decode(ids)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"symbols": ("a", "b", "a")}, ValueError, "symbols"),
        ({"special": ("<eos>",)}, ValueError, "special .*<eos>"),
        ({"replacements": (("ab", "c"),)}, ValueError, "a character and a text"),
        ({"replacements": (("a",),)}, ValueError, "replacements.* 2 entries"),
        ({"replacements": (("a", "b", "c"),)}, ValueError, "replacements.* 2 entries"),
        ({"symbols": ["a"]}, TypeError, "symbols .*list"),
        ({"symbols": ("<s>", "</s>", 3)}, TypeError, "symbols .*int"),
        ({"separator": None}, TypeError, "separator"),
    ],
)
def test_wrong_fields_raise(changes, kind, message):
    with pytest.raises(kind, match=message):
        dataclasses.replace(WORDS, **changes)


@pytest.mark.parametrize("words", [LETTERS, WORDS])
def test_to_json_types_and_back(words):
    fields = words.to_dict()
    assert rs.Vocabulary.from_dict(fields) == words
    assert set(fields) == {"symbols", "separator", "special", "replacements"}


def test_a_token_beyond_the_vocabulary_is_shown_by_its_number():
    assert [symbol(vocabulary(["<pad>", "a"]), token) for token in (1, 2)] == ["a", "<2>"]
