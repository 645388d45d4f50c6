"""How models, steps, generations and traces show themselves."""

import html.parser

import numpy as np
import pytest
from hypothesis.vendor.pretty import pretty

import refseq2seq as rs
from refseq2seq.watching.notebook import SHOWN, listed, table

MODEL = rs.load("g2p")
SOURCE = [MODEL.source_vocabulary.encode(word) for word in ("cat", "oracle")]


def things():
    trace = rs.Trace()
    steps = list(rs.decode_steps(MODEL, SOURCE, tap=trace))
    return MODEL, steps[-1], rs.generate(MODEL, SOURCE), trace


def cells(page):
    """The texts of the table's cells; every tag must be closed."""
    found, open_tags = [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            found.append(data)

    Reader().feed(page)
    assert open_tags == []
    return found


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (0, "<Model of 2,196,320 parameters, float32>"),
        (1, "<Step 6: tokens 0 2>"),
        (2, "<Generation of 2 rows, 4 to 7 tokens, 2 finished>"),
        (3, "<Trace of 549 arrays>"),
    ],
    ids=["model", "step", "generation", "trace"],
)
def test_a_line_says_what_it_is(thing, expected):
    assert repr(things()[thing]) == expected


def test_hypothesis_shows_a_model_by_its_line():
    assert pretty(MODEL) == repr(MODEL)


def test_a_step_is_a_table_of_rows():
    _, step, *_ = things()
    found = cells(step._repr_html_())
    assert found[0] == "step 6"
    assert found[1:6] == ["row", "token", "log-probability", "margin", "state"]
    assert found[6:] == [
        "0", "0", "0.000", f"{step.margin[0]:.3f}", "ended",
        "1", "2", f"{step.log_probs[1]:.3f}", f"{step.margin[1]:.3f}", "new, the last",
    ]  # fmt: skip


def test_a_step_says_what_happens_to_each_row():
    words = [*SOURCE, SOURCE[0]]
    start = MODEL.config.decoder_start_id
    prefix = [[start], [start, 5, 6], [start, 5]]
    steps = list(rs.decode_steps(MODEL, words, prefix=prefix, max_new_tokens=3))
    states = [cells(step._repr_html_())[10::5] for step in steps]
    assert states[0] == ["new", "in its prefix", "in its prefix"]
    assert states[1] == ["new", "in its prefix", "new"]
    assert states[3] == ["ended", "new", "new"]
    assert states[4] == ["ended", "new", "ended"]


def test_a_generation_says_which_rows_were_cut_off():
    found = cells(rs.generate(MODEL, SOURCE, max_new_tokens=4)._repr_html_())
    assert found[0] == "Generation of 2 rows, 4 to 4 tokens, 1 finished"
    assert found[8::4] == ["yes", "no: cut off"]


def test_a_generation_is_a_table_of_rows():
    _, _, out, _ = things()
    found = cells(out._repr_html_())
    assert found[0] == "Generation of 2 rows, 4 to 7 tokens, 2 finished"
    assert found[9] == "1"
    assert found[1:5] == ["row", "tokens", "log-probability", "ended"]
    assert found[5:9] == [
        "0",
        " ".join(str(token) for token in out.tokens[0, :4]),
        f"{out.log_probs[0].sum():.3f}",
        "yes",
    ]


def test_a_trace_is_a_table_of_quantities_with_their_meaning():
    *_, trace = things()
    found = cells(trace._repr_html_())
    assert found[1:5] == ["name", "shape", "dtype", "meaning"]
    assert found[5:9] == ["encoder.tokens", "(2, 6, 160)", "float32", "token vectors, scaled"]
    assert found[-1] == f"and {len(trace) - SHOWN:,} more"
    own = rs.Trace()
    own("mine <b>", np.ones(2))
    assert cells(own._repr_html_())[5:] == ["mine <b>", "(2,)", "float64"]


def test_a_model_is_a_table_of_its_conventions():
    found = cells(MODEL._repr_html_())
    assert found[:3] == ["Model", "what", "value"]
    assert found[3:5] == ["parameters", "2,196,320 in float32"]
    assert "3 layers, width 160" in found[6]


def test_long_tables_and_rows_are_cut_and_say_so():
    assert listed(range(SHOWN)) == " ".join(map(str, range(SHOWN)))
    assert listed(range(SHOWN + 1)).endswith(f"{SHOWN - 1} …")
    assert cells(table("c", ["a"], [[i] for i in range(1000 + SHOWN)]))[-1] == "and 1,000 more"
    assert cells(table("c", ["a"], [[i] for i in range(SHOWN)]))[-1] == str(SHOWN - 1)
