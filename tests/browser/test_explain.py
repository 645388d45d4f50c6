"""The page of a decoding in a real browser: it moves, and shows the numbers of the loop."""

import os
import shutil

import pytest

import refseq2seq as rs
from refseq2seq import explain

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: the docs extra")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
MODEL = rs.load("g2p")
DASH = "\u2013"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """A page of a word, at a width and in a colour scheme; it must never complain."""
    complaints = []

    def opened(word, width=1280, scheme="light", **options):
        path = tmp_path / "page.html"
        path.write_text(explain.page(MODEL, word, **options), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith("file:") or complaints.append(r.url))
        page.goto(path.as_uri())
        return page

    yield opened
    assert complaints == []


def table(page, name):
    """The rows of a table as lists of texts."""
    rows = page.locator(f"#{name} tbody tr").all()
    return [cell.all_inner_texts() for cell in (row.locator("th, td") for row in rows)]


def test_the_keyboard_moves_and_the_numbers_are_those_of_the_loop(open_page):
    page = open_page("oracle")
    trace = rs.Trace("*weights")
    source = [MODEL.source_vocabulary.encode("oracle")]
    steps = list(rs.decode_steps(MODEL, source, tap=trace))
    total = 0.0
    for step in steps:
        total += float(step.log_probs[0])
        symbol = MODEL.target_vocabulary.symbols[step.tokens[0]]
        assert page.locator("#where").inner_text() == f"step {step.index} of {len(steps) - 1}"
        assert page.locator("#target li[aria-current]").inner_text() == symbol
        assert page.locator("#said").inner_text() == (
            f"Step {step.index} writes {symbol}: log-probability {step.log_probs[0]:.3f}, "
            f"sum so far {total:.3f} nats, margin {step.margin[0]:.3f}."
        )
        weights = trace[f"step.{step.index}.decoder.layers.2.cross_attention.weights"][0, :, -1]
        name, *shown = table(page, "cross")[-1]
        assert name == symbol
        assert [float(x) for x in shown] == pytest.approx(weights.mean(axis=0), abs=0.0051)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text() == f"step {len(steps) - 1} of {len(steps) - 1}"
    page.keyboard.press("Home")
    assert page.locator("#target li").count() == 2  # the start token and the first new one
    page.keyboard.press("End")
    assert page.locator("#target li").count() == len(steps) + 1


def test_slider_and_buttons_move_too(open_page):
    page = open_page("cat")
    page.locator("#next").click()
    assert page.locator("#where").inner_text() == "step 1 of 3"
    page.locator("#step").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text() == "step 2 of 3"
    assert page.locator("#step").get_attribute("aria-valuetext").startswith("step 2: ")
    page.locator("#previous").click()
    page.locator("#previous").click()
    assert page.locator("#previous").is_disabled()


def test_a_layer_and_a_head_can_be_chosen(open_page):
    page = open_page("cat")
    trace = rs.Trace("*weights")
    list(rs.decode_steps(MODEL, [MODEL.source_vocabulary.encode("cat")], tap=trace))
    page.locator("#cross-pick select").nth(0).select_option("0")
    page.locator("#cross-pick select").nth(1).select_option("1")
    weights = trace["step.0.decoder.layers.0.cross_attention.weights"][0, 1, -1]
    shown = [float(x) for x in table(page, "cross")[0][1:]]
    assert shown == pytest.approx(weights, abs=0.0051)
    page.locator("#encoder-pick select").nth(1).select_option("2")
    weights = trace["encoder.layers.2.self_attention.weights"][0, 2]
    shown = [[float(x) for x in row[1:]] for row in table(page, "encoder")]
    for row, expected in zip(shown, weights, strict=True):
        assert row == pytest.approx(expected, abs=0.0051)


def test_candidates_before_and_after_the_filters(open_page):
    filters = {"temperature 2": rs.temperature(2.0), "top-k 2": rs.top_k(2)}
    page = open_page("oracle", processors=filters, draws=True, seed=3)
    head = page.locator("#candidates thead th").all_inner_texts()
    assert head == ["token", "the model (42 left)", "temperature 2 (42 left)", "top-k 2 (2 left)"]
    rows = table(page, "candidates")
    recorded = explain.record(MODEL, "oracle", processors=filters, draws=True, seed=3)["steps"][0]
    for i, row in enumerate(rows):
        expected = [stage["probs"][i] for stage in recorded["stages"]]
        assert row[1:] == [f"{p:.4f}" if p else DASH for p in expected]
    assert sum(row[3] != DASH for row in rows) == 2
    assert [row[0] for row in rows if "✓" in row[0]] == [f"{recorded['symbol']} ✓"]


def test_the_tree_grows_with_the_steps(open_page):
    page = open_page("read", beams=3)
    tree = explain.record(MODEL, "read", beams=3)["tree"]
    of_step = [sum(node["step"] == t for node in tree["nodes"]) for t in range(4)]
    for t in range(4):
        assert page.locator("#tree g:not(.later)").count() == sum(of_step[: t + 1])
        page.keyboard.press("ArrowRight")
    assert table(page, "hypotheses") == [
        [h["text"], f"{h['score']:.3f}"] for h in tree["hypotheses"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_4_5(open_page, scheme):
    """A contrast of 4.5 at least, as WCAG AA asks, in every cell, in both schemes."""
    page = open_page("transformer", scheme=scheme, processors={"top-k 3": rs.top_k(3)})
    page.keyboard.press("End")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert min(contrasts) >= 4.5


def test_nothing_but_tables_scrolls_sideways_on_a_phone(open_page):
    page = open_page("transformer", width=390, beams=4)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_every_control_has_a_name(open_page):
    page = open_page("cat")
    for control in page.locator("button, input, select").all():
        name = control.evaluate(
            "c => c.getAttribute('aria-label') || (c.labels[0] && c.labels[0].textContent) || ''"
        )
        assert name.strip()


CONTRASTS = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const [r, g, b, a] = rgb(getComputedStyle(e).backgroundColor);
      if (a === 255) return [r, g, b];
    }
    return rgb(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  };
  const light = (c) => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll("td, th, p, h1, h2, li, label, output")]
    .filter(e => e.textContent.trim() && e.offsetParent)
    .map(e => {
      const x = light(rgb(getComputedStyle(e).color).slice(0, 3)), y = light(behind(e));
      return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    });
}
"""
