"""The picture of a model and the facts about its quantities, against traces of the model."""

import itertools
import re
import runpy
from functools import cache
from pathlib import Path
from xml.etree.ElementTree import fromstring

import arrangements
import numpy as np
import pytest
import test_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantities import table_name

import refseq2seq as rs
from refseq2seq.explain import facts, picture
from refseq2seq.explain.facts import CHAPTERS
from refseq2seq.explain.svg import text_width
from refseq2seq.testing import strategies
from refseq2seq.watching.quantities import QUANTITIES

ROOT = Path(__file__).parents[1]
SVG = "{http://www.w3.org/2000/svg}"
ARRANGED = [*(arrangements.ALL | arrangements.OF_FRAMES).values()]


@cache
def of_a_family(path):
    return test_vectors.converted(*test_vectors.read(path)[:2]).config


configs = st.one_of(
    st.sampled_from(ARRANGED),
    st.sampled_from(test_vectors.FILES).map(of_a_family),
    strategies.configs(),
)


@cache
def drawn(config):
    model = rs.Model.random(config, 0)
    return model, fromstring(picture(model))


def names_computed(model):
    """The names of the quantities of one greedy step, by a trace."""
    c, trace = model.config.encoder, rs.Trace()
    source = [[0]] if c.vocab_size else np.zeros((1, 64, c.input.n_features))
    source = source if c.vocab_size else source[:, : first_that_fits(c)]
    next(rs.decode_steps(model, source, max_new_tokens=1, tap=trace))
    return {table_name(name) for name in trace}


def first_that_fits(c):
    return next(n for n in itertools.count(1) if c.input.length(n))


def rectangles(element):
    """The rectangles (x0, y0, x1, y1) of an element and of what is in it."""
    for rect in element.iter(f"{SVG}rect"):
        x, y, width, height = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
        yield x, y, x + width, y + height


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def within(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@given(config=configs)
@settings(max_examples=40)
def test_each_quantity_of_a_step_has_one_place_and_one_fact(config):
    model, svg = drawn(config)
    places = [e.get("data-name") for e in svg.iter() if e.get("class") == "quantity"]
    assert len(places) == len(set(places))
    assert set(places) == names_computed(model) == set(facts(model))


@given(config=configs)
@settings(max_examples=40)
def test_nothing_overlaps_or_leaves_the_picture(config):
    _, svg = drawn(config)
    x, y, width, height = map(float, svg.get("viewBox").split())
    parts = [next(rectangles(e)) for e in svg.iter() if e.get("data-part")]
    chips = [next(rectangles(e)) for e in svg.iter() if e.get("class") == "quantity"]
    pills = [next(rectangles(e)) for e in svg.iter() if e.get("class") == "norm"]
    kinds = [e.get("class") for e in svg.iter(f"{SVG}rect")]
    frames = [r for r, kind in zip(rectangles(svg), kinds, strict=True) if kind == "layers"]
    assert all(within(r, (x, y, x + width, y + height)) for r in rectangles(svg))
    for group in (parts + pills, chips + pills, frames):
        assert not any(overlap(a, b) for a, b in itertools.combinations(group, 2))
    for chip, part in itertools.product(chips, parts):
        assert within(chip, part) or not overlap(chip, part)
    points = [
        tuple(map(float, point))
        for path in svg.iter(f"{SVG}path")
        for point in re.findall(r"[ML](\S+) ([^A-Zm]+)", path.get("d").replace("h8", "L0 0"))
    ]
    assert all(0 <= a <= width and 0 <= b <= height for a, b in points)


@given(config=configs)
@settings(max_examples=40)
def test_texts_fit_into_their_boxes(config):
    _, svg = drawn(config)
    boxes = [e for e in svg.iter() if e.get("data-part") or e.get("class") in ("quantity", "norm")]
    for box in boxes:
        x0, y0, x1, y1 = next(rectangles(box))
        for text in box.iter(f"{SVG}text"):
            size = 14 * 1.08 if text.get("class") == "title" else 13  # bold letters are wider
            half, x, y = text_width(text.text, size) / 2, float(text.get("x")), float(text.get("y"))
            assert x0 <= x - half, (text.text, x1 - x0, 2 * half)
            assert x + half <= x1
            assert y0 + 10 < y < y1


@given(config=configs)
@settings(max_examples=40)
def test_the_line_of_a_fact_names_its_quantity(config):
    model, _ = drawn(config)
    for fact in facts(model).values():
        assert f'("{fact.name.rpartition(".")[2]}", ' in fact.code, fact
        file, _, line = fact.source.rpartition(":")
        lines = (ROOT / "refseq2seq" / file).read_text().splitlines()
        *_, last = fact.code.splitlines()
        assert lines[int(line) - 1].strip().startswith(last.strip())


@given(config=configs)
@settings(max_examples=40)
def test_the_code_of_a_variable_begins_with_what_computes_it(config):
    model, _ = drawn(config)
    begins = {
        "self_attention.q": "q, (k, v) = queries(p, c, x), keys_values(p, c, x)",
        "self_attention.k": "q, (k, v) = queries(p, c, x), keys_values(p, c, x)",
        "self_attention.v": "q, (k, v) = queries(p, c, x), keys_values(p, c, x)",
        "cross_attention.k": "for i, layer in enumerate(model.params.decoder.layers):",
        "cross_attention.v": "for i, layer in enumerate(model.params.decoder.layers):",
        "feed_forward.activated": 'hidden = tap("projected", linear(x, p.w_in, p.b_in))',
        "feed_forward.hidden": 'hidden = tap("projected", linear(x, p.w_in, p.b_in))',
        "embed": 'if c.embedding_norm == "before_positions":',
        "log_probs": 'with np.errstate(all="ignore"):',
    }
    for fact in facts(model).values():
        first, *rest = fact.code.splitlines()
        word = re.sub(r"(en|de)coder\.(layers\.\*\.)?", "", fact.name)
        assert (word in begins) == bool(rest), fact
        assert first.startswith(begins.get(word, "")), fact


@given(config=configs)
@settings(max_examples=40)
def test_the_inputs_of_a_fact_are_facts(config):
    found = facts(drawn(config)[0])
    assert all(other in found for fact in found.values() for other in fact.inputs)
    roots = {name for name, fact in found.items() if not fact.inputs}
    assert all(re.search(r"tokens|positions|frames", name) for name in roots)


def test_facts_of_the_shipped_model_are_in_the_order_of_its_steps():
    model = rs.load("g2p")
    found = facts(model)
    trace = rs.Trace()
    next(rs.decode_steps(model, [[1]], max_new_tokens=1, tap=trace))
    assert [*found] == [*dict.fromkeys(map(table_name, trace))]
    weights = found["decoder.layers.*.cross_attention.weights"]
    assert weights.equation == "softmax(scores)"
    assert re.fullmatch(r"attention\.py:\d+", weights.source)
    assert weights.inputs == ("decoder.layers.*.cross_attention.scores",)
    first = found["encoder.layers.*.self_attention.input"]
    assert first.inputs == ("encoder.embed", "encoder.layers.*.after_feed_forward")


def test_a_float16_model_has_the_same_facts():
    assert facts(rs.load("g2p").astype("float16")) == facts(rs.load("g2p"))


def test_each_quantity_has_an_equation_of_known_letters():
    for row in QUANTITIES:
        assert row.equation
        assert re.fullmatch(r"[\w\s.()\[\]+*/^,'-]+", row.equation), row.equation


def test_chapters_are_those_of_the_course():
    headings = {
        re.search("^# (.+)$", path.read_text(), re.MULTILINE)[1]
        for path in (ROOT / "docs" / "course").glob("?-*.md")
    }
    assert {title for _, title in CHAPTERS} <= headings


@pytest.mark.parametrize(
    ("unfold", "marked"),
    [
        ((), set()),
        (("decoder.cross_attention",), {"decoder.cross_attention"}),
        (("choice", "encoder.final"), {"choice", "encoder.final"}),
        (
            ("encoder",),
            {f"encoder.{n}" for n in ("embedding", "self_attention", "feed_forward", "final")},
        ),
    ],
)
def test_only_unfolded_parts_are_marked_and_show_their_quantities(unfold, marked):
    svg = fromstring(picture(rs.load("g2p"), unfold=unfold))
    parts = {e.get("data-part"): e.get("class").split() for e in svg.iter() if e.get("data-part")}
    assert {name for name, kinds in parts.items() if "marked" in kinds} == marked
    assert len(parts) == 11
    shown = {e.get("data-name") for e in svg.iter() if e.get("data-name")}
    assert bool(shown) == bool(marked)
    if unfold == ("decoder.cross_attention",):
        assert {re.sub(r".*\*\.", "", name) for name in shown} == {
            "cross_attention.input", "cross_attention.q", "cross_attention.k", "cross_attention.v",
            "cross_attention.scores", "cross_attention.weights", "cross_attention.heads",
            "cross_attention.out", "after_cross_attention",
        }  # fmt: skip


def test_an_unknown_part_to_unfold_raises():
    with pytest.raises(ValueError, match=r"unfold .*'encoder.embedding', got 'encoder.attention'"):
        picture(rs.load("g2p"), unfold=["encoder.attention"])


def test_unfold_is_no_str_and_may_be_an_iterator():
    with pytest.raises(TypeError, match=r"unfold must be .*\['encoder'\], got a str"):
        picture(rs.load("g2p"), unfold="encoder")
    assert picture(rs.load("g2p"), unfold=iter(["encoder"])) == picture(
        rs.load("g2p"), unfold=["encoder"]
    )


def test_links_are_asked_for_each_part_and_quantity():
    asked = []

    def link(name):
        asked.append(name)
        return None if name == "choice" else f'x?a&b="{name}"'

    svg = fromstring(picture(rs.load("g2p"), link=link))
    names = [e.get("data-part") or e.get("data-name") for e in svg.iter()]
    assert sorted(asked) == sorted(name for name in names if name)
    addresses = [e.get("href") for e in svg.iter(f"{SVG}a")]
    assert sorted(addresses) == sorted(f'x?a&b="{name}"' for name in asked if name != "choice")
    nested = [a for a in svg.iter(f"{SVG}a") if len([*a.iter(f"{SVG}a")]) > 1]
    assert not nested


def test_the_file_of_the_readme_is_the_picture_of_the_shipped_model():
    script = runpy.run_path(str(ROOT / "docs" / "_ext" / "model_svg.py"))
    file = script["FILE"].read_text(encoding="utf-8")
    assert file == script["standalone"](), "python docs/_ext/model_svg.py writes it"
    assert fromstring(file).get("viewBox")


def test_the_picture_says_in_words_what_it_shows():
    said = fromstring(picture(rs.load("g2p"))).find(f"{SVG}desc").text
    assert "decoder.cross_attention: Cross-attention, 4 heads of 40." in said
    assert "encoder.feed_forward: Feed-forward, width 640, gelu_erf." in said
