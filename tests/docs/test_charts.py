"""The pages that begin with a sentence and a chart, and what their charts are drawn from."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("performance", "cupy", "tolerances")


@pytest.fixture(scope="module")
def charts():
    for package in ("sphinx", "matplotlib", "IPython"):
        pytest.importorskip(package, reason=f"needs {package}: pip install '.[docs]'")
    sys.path.insert(0, str(DOCS / "_ext"))
    import charts

    return charts


def read(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_one_sentence_and_its_chart(page):
    title, sentence, chart, _ = read(page).split("\n\n", 3)
    assert title.startswith("# ")
    assert len(re.findall(r"[.?!](?=\s|$)", sentence)) == 1
    assert sentence.endswith(".")
    assert chart == f"```{{chart}} {page}\n```"


def test_the_sentence_on_speed_is_what_the_figures_say():
    figures = json.loads((DOCS / "performance.json").read_text())["figures"]
    for key, row in figures.items():
        ms = {name: of["ms_per_token"] for name, of in row.items()}
        assert ms["ours, x-transformers"] < ms["x-transformers"], key
        assert ms["ours, BART"] < ms["Hugging Face"], key
        size, batch, _ = key.split()
        exception = size == "d512" and int(batch) >= 16  # wide models with many rows
        assert (ms["ours, BART"] < ms["CTranslate2"]) == exception, key


def test_the_sentence_on_the_gpu_is_what_the_table_says():
    rows = [line.split("|") for line in read("cupy").splitlines() if re.match(r"\| \S", line)]
    ours = [float(row[4]) for row in rows if row[1].startswith(" refseq2seq")]
    after = [i + 1 for i, row in enumerate(rows) if row[1].startswith(" refseq2seq")]
    ratios = [a / float(rows[i][4]) for a, i in zip(ours, after, strict=True)]
    assert len(ratios) == 8
    assert f"took {min(ratios):.1f} to {max(ratios):.1f} times as long" in read("cupy")


@pytest.mark.parametrize("page", PAGES)
def test_a_chart_is_small_follows_the_theme_and_has_an_alternative(charts, page):
    panels, marks, alt = charts.CHARTS[page]()
    drawn = charts.drawn(panels, marks, alt)
    assert len(drawn) < 60_000
    assert len(alt) > 60
    assert f'aria-label="{alt}"' in drawn.replace("&#x27;", "'")
    for panel in panels:
        root = ET.fromstring(panel)
        assert float(root.get("width").removesuffix("pt")) * 4 / 3 < 340  # a phone's
        assert not re.search(r"#[0-9a-f]{6}", panel)
    for _, colour, text in marks:
        assert colour in charts.CSS
        assert text in drawn


def test_the_charts_have_the_figures_of_their_pages(charts):
    _, _, alt = charts.performance()
    assert "CTranslate2 0.27 to 1.49" in alt  # of the rows "d256, 4, 64" and "d512, 16, 64"
    assert "(0.27) |" in read("performance")
    assert "(1.49) |" in read("performance")
    panels, _, _ = charts.cupy()
    drawn = re.findall(r">(\d+\.\d\d)</text>", "".join(panels))
    assert len(drawn) == 16
    for ms in drawn:  # the first number of a row
        assert re.search(rf"^\| [^|]+ \| [^|]* ?\| \d+ \| {ms} \|", read("cupy"), re.MULTILINE)


def test_the_chart_of_tolerances_names_where_the_mistake_is(charts):
    _, _, alt = charts.tolerances()
    assert alt.endswith("from decoder.layers.0.self_attention.scores on.")
    assert 0 < float(re.search(r"at most ([\d.]+) of", alt)[1]) < 1
    assert float(re.search(r"up to (\d+) times", alt)[1]) > 1
