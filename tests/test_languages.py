"""Languages of source and target: tokens of a text, and a forced first token for each row."""

import dataclasses
import json

import numpy as np
import pytest
from command_line import assert_refused, in_process
from naming import raises_naming
from tasks import SEARCHES, at_random

import refseq2seq as rs
from refseq2seq import cli
from refseq2seq.cli import bulk, info, options
from refseq2seq.text import MultilingualTokenizer

G2P = rs.load("g2p")
START, END = G2P.config.decoder_start_id, G2P.config.eos_ids[0]
CODES = {"fr": 13, "en": 5, "pt": 27}


@dataclasses.dataclass(frozen=True)
class WithEnd:
    """A tokenizer that appends an end token."""

    pieces: rs.Vocabulary

    symbols = property(lambda self: self.pieces.symbols)
    definition = property(lambda self: self.pieces.definition)

    def encode(self, text):
        return [*self.pieces.encode(text), 2]

    def decode(self, ids):
        return self.pieces.decode(ids)


def tokenizer(vocabulary, *, language_first=True, starts_target=False):
    return MultilingualTokenizer(
        WithEnd(vocabulary),
        CODES,
        language="en",
        language_first=language_first,
        starts_target=starts_target,
    )


def multilingual(**form):
    """The g2p model as if some of its tokens were languages."""
    return dataclasses.replace(
        G2P,
        source_vocabulary=tokenizer(G2P.source_vocabulary, **form),
        target_vocabulary=tokenizer(G2P.target_vocabulary, **form),
    )


def ruled(**rules):
    return dataclasses.replace(G2P, config=dataclasses.replace(G2P.config, **rules))


# Texts


def test_a_text_has_its_language_before_or_after_it():
    letters = rs.Vocabulary(symbols=(*"_^$abcd",), separator="", special=(), replacements=())
    first = MultilingualTokenizer(WithEnd(letters), {"x": 5, "y": 6}, "y", True, False)
    last = dataclasses.replace(first, language_first=False)
    assert first.encode("cab") == [6, 5, 3, 4, 2]
    assert first.encode("cab", "x") == [5, 5, 3, 4, 2]
    assert last.encode("cab", "x") == [5, 3, 4, 2, 5]
    assert first.decode(np.array([6, 3, 4, 5])) == "ab"
    assert (first.languages, first.language_id("x")) == (("x", "y"), 5)
    assert len({x.definition for x in (first, last, dataclasses.replace(first, language="x"))}) == 3


WORDS = ["oracle", "cat", "transformer", "a"]


@pytest.mark.parametrize("starts_target", [False, True])
def test_each_text_has_its_languages(starts_target):
    model = multilingual(starts_target=starts_target)
    source, target = ["fr", "en", "pt", "fr"], ["pt", "pt", "fr", "en"]
    field = "decoder_start_id" if starts_target else "forced_bos_id"
    expected = []
    for word, a, b in zip(WORDS, source, target, strict=True):
        ids = [CODES[a], *G2P.source_vocabulary.encode(word), 2]
        (row,) = rs.generate(ruled(**{field: CODES[b]}), [ids]).tokens
        said = [i for i in row.tolist() if i not in CODES.values()]
        expected.append(G2P.target_vocabulary.decode(said))
    found = rs.generate_text(model, WORDS, source_language=source, target_language=target)
    assert found == expected
    once = rs.generate_text(model, WORDS[:1], source_language="fr", target_language="pt")
    assert once == expected[:1]


def test_without_languages_the_defaults_are_used():
    ids = [[CODES["en"], *G2P.source_vocabulary.encode("cat"), 2]]
    expected = G2P.target_vocabulary.decode(
        [i for i in rs.generate(G2P, ids).tokens[0].tolist() if i not in CODES.values()]
    )
    assert rs.generate_text(multilingual(), ["cat"]) == [expected]


@pytest.mark.parametrize("side", ["source_language", "target_language"])
@pytest.mark.parametrize(
    ("language", "kind", "names"),
    [
        ("eng", ValueError, ["eng", "3", "en"]),
        (["en", "zz"], ValueError, ["zz", "3", "en"]),
        (["en"], ValueError, ["2", "1"]),
        (["en", 5], TypeError, ["5"]),
        (5, TypeError, ["5"]),
    ],
)
def test_a_wrong_language_raises(side, language, kind, names):
    with raises_naming(kind, side, *names):
        rs.generate_text(multilingual(), ["cat", "a"], **{side: language})
    with raises_naming(ValueError, side, "'en'", "Vocabulary"):  # whose texts have no language
        rs.generate_text(G2P, ["cat"], **{side: "en"})


@pytest.mark.parametrize("starts_target", [False, True])
@pytest.mark.parametrize("option", [{"prefix": [[START]]}, {"forced_bos_ids": [5]}])
def test_a_target_language_beside_what_it_sets_raises(starts_target, option):
    with raises_naming(ValueError, "target_language", *option):
        model = multilingual(starts_target=starts_target)
        rs.generate_text(model, ["cat"], target_language="en", **option)


# A forced token for each row

SOURCES = [G2P.source_vocabulary.encode(word) for word in ("oracle", "cat", "transformer")]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
@pytest.mark.parametrize(
    "rules",
    [{}, {"begin_suppressed_ids": (*range(3, 20),)}, {"forced_bos_id": 9}, {"forced_eos_id": END}],
    ids=str,
)
def test_rows_are_those_of_a_config_that_forces_their_token(search, rules):
    how = {"max_new_tokens": 7, "min_new_tokens": 5}
    forced = [13, -1, 30]
    together = search(ruled(**rules), SOURCES, forced_bos_ids=forced, **how)
    for row, (source, token) in enumerate(zip(SOURCES, forced, strict=True)):
        alone = ruled(**rules | {"forced_bos_id": None if token < 0 else token})
        key = {"row_ids": [row]} if search is at_random else {}
        single = search(alone, [source], **how, **key)
        n = single.tokens.shape[-1]
        assert np.array_equal(together.tokens[row, ..., :n], single.tokens[0])
        assert np.array_equal(together.lengths[row], single.lengths[0])
        near = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": False}
        log_probs = together.log_probs[row, ..., :n]
        np.testing.assert_allclose(log_probs, single.log_probs[0], **near)
        if hasattr(single, "scores"):
            np.testing.assert_allclose(together.scores[row], single.scores[0], **near)
        first = single.tokens.reshape(-1, n)[:, 0]
        assert (first == token).all() or token < 0
        assert (single.lengths >= 5).all()


def test_several_samples_of_a_source_have_its_forced_token():
    out = rs.generate(G2P, SOURCES, forced_bos_ids=[13, 5, 30], num_return_sequences=2)
    assert out.tokens[:, 0].tolist() == [13, 13, 5, 5, 30, 30]


def test_the_processor_takes_a_token_for_each_source():
    class Now:
        tokens, source_index = np.zeros((4, 1), dtype=int), np.array([0, 0, 1, 2])

    out = rs.forced_bos(np.array([3, -1, 1]))(np.full((4, 5), 2.0), Now)
    inf = -np.inf
    assert out.tolist() == [
        *[[inf, inf, inf, 0, inf]] * 2, [2.0] * 5, [inf, 0, inf, inf, inf]
    ]  # fmt: skip
    for wrong in (np.array([[3]]), np.array([0.5])):
        with raises_naming(TypeError, "forced_bos", wrong.dtype):
            rs.forced_bos(wrong)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
@pytest.mark.parametrize(
    ("forced", "more", "names"),
    [
        ([5, 6], {}, ["3", "[5, 6]"]),
        (5, {}, ["3", "5"]),
        ([5, 6, 99], {}, ["99"]),
        ([5, 6, -2], {}, ["-2"]),
        ([5, 6, 7.0], {}, ["7.0"]),
        ([-1, 6, 7], {"prefix": [[START, 4], [START], [START, 8]]}, ["7", "row 2", "prefix", "2"]),
    ],
)
def test_wrong_forced_tokens_raise(search, forced, more, names):
    with raises_naming(ValueError, "forced_bos_ids", *names):
        search(G2P, SOURCES, forced_bos_ids=forced, **more)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
def test_a_forced_token_that_is_suppressed_raises_for_its_row(search):
    model = ruled(suppressed_ids=(11,), forced_bos_id=12)
    with raises_naming(ValueError, "forced_bos_ids = 11", "row 1", "suppressed_ids"):
        search(model, SOURCES, forced_bos_ids=[7, 11, -1])
    with raises_naming(ValueError, "forced_bos_ids = 7", "row 0", "suppress([7])"):
        search(model, SOURCES, [rs.suppress([7])], forced_bos_ids=[7, 8, -1])
    search(model, SOURCES, [rs.suppress([7])], forced_bos_ids=[8, 8, -1], max_new_tokens=2)


# The command line


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setattr(options, "load", lambda path: multilingual())
    return in_process(capsys)


LANGUAGES = ["--source-language", "fr", "--target-language", "pt"]


@pytest.mark.parametrize("starts_target", [False, True])
@pytest.mark.parametrize("more", [[], ["--beams", "2"]])
def test_the_command_line_takes_languages(more, starts_target, call, monkeypatch):
    model = multilingual(starts_target=starts_target)
    monkeypatch.setattr(options, "load", lambda path: model)
    status, out, _ = call("generate", *WORDS, "--json", *LANGUAGES, *more)
    assert status == 0
    found = [json.loads(line)["samples"][0] for line in out.splitlines()]
    assert starts_target or {sample["tokens"][0] for sample in found} == {CODES["pt"]}
    if not more:
        expected = rs.generate_text(model, WORDS, source_language="fr", target_language="pt")
        assert [sample["text"] for sample in found] == expected


def test_explain_takes_languages(call, tmp_path):
    call("explain", "cat", "--html", tmp_path / "page.html", *LANGUAGES)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    first = G2P.source_vocabulary.symbols[CODES["fr"]]
    assert f'"source":["{first}"' in page
    assert f'"steps":[{{"token":{CODES["pt"]},' in page


@pytest.mark.parametrize("option", ["--source-language", "--target-language"])
def test_a_bulk_run_in_another_language_is_another_run(option, call):
    def asked(*given):
        parsed = cli._parser().parse_args(["generate", *LANGUAGES, *given])
        return bulk._asked(options.model_of(parsed), "a digest", parsed)

    one, other = asked(), asked(option, "en")
    assert {name for name in one if one[name] != other[name]} == {"the model", option}


def test_mistakes_of_languages_are_one_line(call, monkeypatch):
    assert_refused(call("generate", "cat", "--source-language", "eng"), "source_language = 'eng'")
    assert_refused(call("generate", "cat", "--target-language", "zz"), "target_language = 'zz'")
    monkeypatch.setattr(options, "load", lambda path: G2P)
    assert_refused(call("generate", "cat", "--source-language", "en"), "source_language = 'en'")


def test_info_lists_the_languages(capsys, monkeypatch):
    monkeypatch.setattr(info, "load_outline", lambda path: multilingual())
    out = in_process(capsys)("info")[1]
    (line,) = (line for line in out.splitlines() if line.startswith("languages"))
    assert "3" in line
    assert "en fr pt" in line
