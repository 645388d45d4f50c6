"""How models, steps, generations and traces are shown: in a line, and as an HTML table."""

import dataclasses
import html.parser

import numpy as np
import pytest
from hypothesis.vendor.pretty import pretty

import refseq2seq as rs
from refseq2seq.watching.notebook import SHOWN, table
from refseq2seq.watching.quantities import quantity

MODEL = rs.load("g2p")
SOURCE = [MODEL.source_vocabulary.encode(word) for word in ("cat", "oracle")]


@pytest.fixture(scope="module")
def trace():
    return rs.Trace()


@pytest.fixture(scope="module")
def step(trace):
    return list(rs.decode_steps(MODEL, SOURCE, tap=trace))[-1]


@pytest.fixture(scope="module")
def generation():
    return rs.generate(MODEL, SOURCE)


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


def test_repr_is_one_line(step, generation, trace):
    assert repr(MODEL) == pretty(MODEL) == "<Model of 2,196,320 parameters, float32>"
    assert repr(step) == "<Step 6: tokens 0 2>"
    assert repr(generation) == "<Generation of 2 rows, 4 to 7 tokens, 2 finished>"
    assert repr(trace) == "<Trace of 549 arrays>"


def test_a_step_is_a_table_of_rows(step):
    assert cells(step._repr_html_()) == [
        "step 6", "row", "token", "log-probability", "margin", "state",
        "0", "0", "0.000", f"{step.margin[0]:.3f}", "ended",
        "1", "2", f"{step.log_probs[1]:.3f}", f"{step.margin[1]:.3f}", "new, the last",
    ]  # fmt: skip


def test_the_table_of_a_step_has_the_state_of_each_row():
    start = MODEL.config.decoder_start_id
    prefix = [[start], [start, 5, 6], [start, 5]]
    steps = list(rs.decode_steps(MODEL, [*SOURCE, SOURCE[0]], prefix=prefix, max_new_tokens=3))
    states = [cells(step._repr_html_())[10::5] for step in steps]
    assert states[0] == ["new", "in its prefix", "in its prefix"]
    assert states[1] == ["new", "in its prefix", "new"]
    assert states[3] == ["ended", "new", "new"]
    assert states[4] == ["ended", "new", "ended"]


def test_a_generation_is_a_table_of_rows(generation):
    found = cells(generation._repr_html_())
    assert found[0] == "Generation of 2 rows, 4 to 7 tokens, 2 finished"
    assert found[1:5] == ["row", "tokens", "log-probability", "ended"]
    tokens = " ".join(str(token) for token in generation.tokens[0, :4])
    assert found[5:9] == ["0", tokens, f"{generation.log_probs[0].sum():.3f}", "yes"]
    assert found[9] == "1"
    found = cells(rs.generate(MODEL, SOURCE, max_new_tokens=4)._repr_html_())
    assert found[8::4] == ["yes", "no: cut off"]


def test_a_trace_is_a_table_of_quantities_with_their_meaning(step, trace):
    found = cells(trace._repr_html_())
    assert found[1:5] == ["name", "shape", "dtype", "meaning"]
    meaning = quantity("encoder.tokens").meaning
    assert found[5:9] == ["encoder.tokens", "(2, 6, 160)", "float32", meaning]
    assert found[-1] == f"and {len(trace) - SHOWN:,} more"
    own = rs.Trace()
    own("mine <b>", np.ones(2))
    assert cells(own._repr_html_())[5:] == ["mine <b>", "(2,)", "float64"]


def test_a_model_is_a_table_of_its_conventions():
    found = cells(MODEL._repr_html_())
    assert found[:3] == ["Model", "what", "value"]
    assert found[3:5] == ["parameters", "2,196,320 in float32"]
    assert "3 layers, width 160" in found[6]


@pytest.mark.parametrize("n", [SHOWN, SHOWN + 1])
def test_long_rows_and_tables_are_cut(generation, n):
    tokens = np.arange(n)[None].repeat(2, axis=0)
    fields = {"tokens": tokens, "log_probs": np.zeros((2, n)), "lengths": np.array([n, n])}
    of_n = dataclasses.replace(generation, **fields)
    shown = cells(of_n._repr_html_())[6]
    assert shown == " ".join(map(str, range(SHOWN))) + " …" * (n > SHOWN)
    last = cells(table("c", ["a"], [[i] for i in range(n + 999)]))[-1]
    assert last == f"and {n - SHOWN + 999:,} more"
    assert cells(table("c", ["a"], [[i] for i in range(SHOWN)]))[-1] == str(SHOWN - 1)
