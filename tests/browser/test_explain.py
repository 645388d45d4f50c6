"""The page of a decoding in a real browser: it moves, and shows the numbers of the loop."""

import json
import os
import re
import shutil
import threading
from types import SimpleNamespace

import arrangements
import numpy as np
import pytest
from arrangements import readable

import refseq2seq as rs
from refseq2seq import cli, explain
from refseq2seq.explain import server as server_module

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

    def opened(word, width=1280, scheme="light", model=MODEL, **options):
        path = tmp_path / "page.html"
        path.write_text(explain.page(model, word, **options), encoding="utf-8")
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


def traced(word, model=MODEL, **options):
    """The steps of a word and their trace."""
    trace = rs.Trace()
    source = [model.source_vocabulary.encode(word)]
    return list(rs.decode_steps(model, source, tap=trace, **options)), trace


def symbol(step):
    return MODEL.target_vocabulary.symbols[step.tokens[0]]


def text_of(page, name):
    return page.locator(f"#{name}").inner_text()


def assert_shows(page, steps, trace):
    """The page shows the last of these steps, and its attention to the source."""
    step = steps[-1]
    total = sum(float(step.log_probs[0]) for step in steps)
    assert page.locator("#target li[aria-current]").inner_text() == symbol(step)
    assert text_of(page, "said").startswith(f"Step {step.index} reads ")
    assert f" writes {symbol(step)}" in text_of(page, "said")
    assert text_of(page, "log-prob") == f"{step.log_probs[0]:.3f} nats"
    assert text_of(page, "sum") == f"{total:.3f} nats"
    has_other = np.isfinite(step.margin[0])
    expected = f"{step.margin[0]:.3f}" if has_other else "no other token was left"
    assert text_of(page, "margin") == expected
    weights = trace[f"step.{step.index}.decoder.layers.2.cross_attention.weights"][0, :, -1]
    name, *shown = table(page, "heat")[-1]
    assert name.endswith(f" → {symbol(step)}")
    assert [float(x) for x in shown] == pytest.approx(weights.mean(axis=0), abs=0.0051)


def test_it_opens_at_the_end_and_the_keyboard_moves(open_page):
    page = open_page("oracle")
    steps, trace = traced("oracle")
    assert_shows(page, steps, trace)
    page.keyboard.press("Home")
    for i in range(len(steps)):
        assert text_of(page, "where") == f"step {i} (0 to {len(steps) - 1})"
        assert_shows(page, steps[: i + 1], trace)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert text_of(page, "where") == f"step {len(steps) - 2} (0 to {len(steps) - 1})"
    page.keyboard.press("End")
    assert page.locator("#target li").count() == len(steps) + 1


def test_slider_and_buttons_move_too(open_page):
    page = open_page("cat")
    assert page.locator("#next").is_disabled()
    page.locator("#previous").click()
    assert text_of(page, "where") == "step 2 (0 to 3)"
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert text_of(page, "where") == "step 1 (0 to 3)"
    assert page.locator("#step").get_attribute("aria-valuetext").startswith("step 1: ")
    page.locator("#previous").click()
    assert page.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert text_of(page, "where") == "step 1 (0 to 3)"


def test_play_goes_to_the_end_and_stops(open_page):
    page = open_page("cat")
    page.clock.install()
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    assert text_of(page, "where") == "step 0 (0 to 3)"
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    page.clock.run_for(1000)
    assert text_of(page, "where") == "step 1 (0 to 3)"
    page.clock.run_for(10000)
    assert text_of(page, "where") == "step 3 (0 to 3)"
    assert page.locator("#play").get_attribute("aria-label") == "Play"
    page.locator("#play").click()
    page.locator("#next").click()  # whoever moves by hand stops it
    page.clock.run_for(10000)
    assert text_of(page, "where") == "step 1 (0 to 3)"
    page.emulate_media(reduced_motion="reduce")
    assert page.locator("#play").is_hidden()


@pytest.mark.parametrize("arrangement", ["g2p", *arrangements.ALL])
def test_every_quantity_opens_by_keyboard_and_shows_its_numbers(open_page, arrangement):
    model = (
        MODEL
        if arrangement == "g2p"
        else readable(rs.Model.random(arrangements.ALL[arrangement], 0))
    )
    page = open_page("cat", model=model, max_new_tokens=3)
    steps, trace = traced("cat", model, max_new_tokens=3)
    last, facts = len(steps) - 1, explain.facts(model)
    names = page.locator("aside .quantity").evaluate_all("all => all.map(q => q.dataset.name)")
    assert sorted(names) == sorted(facts)
    for i, name in enumerate(names):
        page.locator(f'aside [data-name="{name}"]').focus()
        page.keyboard.press(["Enter", " "][i % 2])
        stack = getattr(model.config, name.partition(".")[0], None)
        full = name.replace("*", str(stack.n_layers - 1)) if stack else name
        x = trace[full] if full in trace else trace[f"step.{last}.{full}"]
        assert text_of(page, "inside-title") == full
        fact = facts[name]
        shown = text_of(page, "facts")
        for part in (fact.equation, fact.code, f"refseq2seq/{fact.source}", fact.chapter):
            assert part in shown
        assert ", ".join(map(str, x.shape)) in shown
        assert text_of(page, "meaning") == fact.meaning
        select_head(page, 0)
        bound = re.search(r"within (\S+) of", text_of(page, "precision"))
        assert_is_head_of(page, x, float(bound[1]) if bound else 0)


def select_head(page, head):
    if page.locator("#head").is_visible():
        page.locator("#head").select_option(str(head))


def numbers_of(page):
    """The numbers of all cells, to the digits that are read out."""
    read = page.evaluate("cells.map(c => c.says.split(' = ')[1])")
    return np.array([float(x.replace("\u2212\u221e: removed", "-inf")) for x in read])


def assert_is_head_of(page, x, bound):
    """The last cells are the numbers of the first head of x; those of a vocabulary best first."""
    has_heads = page.locator("#head").is_visible()
    expected = (x[0, 0] if has_heads else x).ravel().astype(float)
    if page.locator("#heat .tiles").count():
        expected = np.sort(expected)[::-1]
    found = numbers_of(page)[-expected.size :]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=bound, equal_nan=False)


def test_layer_head_inputs_and_shortcuts(open_page):
    page = open_page("cat")
    steps, trace = traced("cat")
    page.locator("#layer").select_option("0")
    page.locator("#head").select_option("1")
    weights = trace[f"step.{len(steps) - 1}.decoder.layers.0.cross_attention.weights"][0, 1, -1]
    shown = [float(x) for x in table(page, "heat")[-1][1:]]
    assert shown == pytest.approx(weights, abs=0.0051)
    page.locator("#shortcuts button").nth(2).click()
    page.locator("#head").select_option("2")
    weights = trace["encoder.layers.0.self_attention.weights"][0, 2]
    rows = table(page, "heat")
    assert [row[0] for row in rows] == ["c", "a", "t"]
    for row, expected in zip(rows, weights, strict=True):
        assert [float(x) for x in row[1:]] == pytest.approx(expected, abs=0.0051)
    page.locator('aside [data-name="decoder.layers.*.self_attention.input"]').click()
    buttons = page.locator("#facts button")
    assert buttons.all_inner_texts() == ["decoder.embed"]
    page.locator("#layer").select_option("2")
    assert buttons.all_inner_texts() == ["decoder.layers.1.after_feed_forward"]
    buttons.click()
    assert text_of(page, "inside-title") == "decoder.layers.1.after_feed_forward"
    assert page.locator('aside [aria-pressed="true"]').get_attribute("data-name") == (
        "decoder.layers.*.after_feed_forward"
    )


def test_the_picture_is_one_stop_of_the_tab_key(open_page):
    page = open_page("cat")
    page.keyboard.press("Tab")
    focused = "document.activeElement.dataset.name"
    assert page.evaluate(focused) == "decoder.layers.*.cross_attention.weights"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "decoder.layers.*.cross_attention.heads"
    page.keyboard.press("Enter")
    assert text_of(page, "inside-title") == "decoder.layers.2.cross_attention.heads"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "play"
    assert text_of(page, "where") == "step 3 (0 to 3)"


def test_cells_are_read_by_keyboard_and_pointer(open_page):
    page = open_page("cat")
    _, trace = traced("cat")
    page.locator('aside [data-name="encoder.layers.*.feed_forward.hidden"]').click()
    page.locator("#heat").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    said = text_of(page, "readout")
    assert said.startswith("c [9] = ")
    x = trace["encoder.layers.2.feed_forward.hidden"]
    assert float(said.split(" = ")[1]) == pytest.approx(
        x[0, 0, 9], abs=float(np.abs(x).max()) / 240
    )
    assert text_of(page, "where") == "step 3 (0 to 3)"  # the arrow keys moved no step
    page.locator("#heat .cell").nth(3).hover()
    assert text_of(page, "readout").startswith("c [3] = ")


def test_the_theme_follows_the_page_around_it(browser, tmp_path):
    (tmp_path / "page.html").write_text(explain.page(MODEL, "cat"), encoding="utf-8")
    outer = '<html data-theme="dark"><iframe src="/page.html"></iframe>'
    page = browser.new_page(color_scheme="light")

    def serve(route):
        inner = route.request.url.endswith("page.html")
        body = (tmp_path / "page.html").read_text(encoding="utf-8") if inner else outer
        route.fulfill(body=body, content_type="text/html; charset=utf-8")

    page.route("http://docs.test/**", serve)
    page.goto("http://docs.test/start.html")
    frame = page.frame_locator("iframe")
    frame.locator("#target li").first.wait_for()
    ink = "e => getComputedStyle(e).color"
    assert frame.locator("body").evaluate(ink) == "rgb(232, 236, 241)"
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert frame.locator("body").evaluate(ink) == "rgb(29, 35, 43)"


def test_candidates_before_and_after_the_filters(open_page):
    filters = {"temperature 2": rs.temperature(2.0), "top-k 2": rs.top_k(2)}
    page = open_page("oracle", processors=filters, draws=True, seed=3)
    head = page.locator("#candidates thead th").all_inner_texts()
    assert head == ["token", "the model (42 left)", "temperature 2 (42 left)", "top-k 2 (2 left)"]
    rows = table(page, "candidates")
    recorded = explain.record(MODEL, "oracle", processors=filters, draws=True, seed=3)["steps"][-1]
    for i, row in enumerate(rows):
        expected = [stage["probs"][i] for stage in recorded["stages"]]
        assert row[1:] == [f"{p:.4f}" if p else DASH for p in expected]
    assert sum(row[3] != DASH for row in rows) == 2
    assert [row[0] for row in rows if "✓" in row[0]] == [f"{recorded['symbol']} ✓"]


def test_the_tree_grows_with_the_steps(open_page):
    page = open_page("read", beams=4)
    tree = explain.record(MODEL, "read", beams=4)["tree"]
    page.keyboard.press("Home")
    of_step = [sum(node["step"] == t for node in tree["nodes"]) for t in range(5)]
    assert of_step[4] > 0  # the best hypothesis ends in step 3, others later
    for t in range(3):
        assert page.locator("#tree g:not(.later)").count() == sum(of_step[: t + 1])
        page.keyboard.press("ArrowRight")
    assert page.locator("#tree g:not(.later)").count() == len(tree["nodes"])
    assert table(page, "hypotheses") == [
        [h["text"], f"{h['score']:.3f}"] for h in tree["hypotheses"]
    ]
    page = open_page("read", beams=4, max_new_tokens=4)
    cut = [text for text, _ in table(page, "hypotheses") if text.endswith(" …")]
    assert cut == ["R IY AE D …"]


def test_an_output_that_is_cut_off_and_a_token_that_its_text_omits(open_page):
    page = open_page("cat", max_new_tokens=2)
    assert text_of(page, "output") == "K AE …"
    assert text_of(page, "said").endswith(
        "Here the output is cut off: 2 tokens are its limit, and none of them ends it."
    )
    assert text_of(page, "omitted") == ""
    page = open_page("cat", by_hand={1: MODEL.config.decoder_start_id})
    assert text_of(page, "omitted") == "(without <s>)"
    assert "…" not in text_of(page, "output")
    assert "cut off" not in text_of(page, "said")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_4_5(open_page, scheme):
    """A contrast of 4.5 at least, as WCAG AA asks, in every cell, in both schemes."""
    page = open_page("transformer", scheme=scheme, processors={"top-k 3": rs.top_k(3)})
    for name in ("*.cross_attention.weights", "*.cross_attention.scores", "logits", "scores"):
        page.locator(f'aside [data-name$="{name.strip("*")}"]').last.click()
        page.mouse.move(0, 0)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 60
        assert min(contrasts) >= 4.5, name


@pytest.mark.parametrize("name", ["decoder.layers.*.feed_forward.hidden", "logits", "scores"])
def test_nothing_but_tables_scrolls_sideways_on_a_phone(open_page, name):
    page = open_page("transformer", width=390, beams=4)
    page.locator(f'aside [data-name="{name}"]').click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#inside-title").bounding_box()["y"] < 900  # it has come into view


def test_every_control_has_a_name(open_page):
    assert_controls_have_names(open_page("cat"))


def assert_controls_have_names(page):
    for control in page.locator("button, input, select, [tabindex='0']").all():
        name = control.evaluate(
            "c => c.getAttribute('aria-label') || (c.labels && c.labels[0] || c).textContent"
        )
        assert name.strip()


# The live page


@pytest.fixture
def live(browser, monkeypatch):
    """The page of ``explain --serve`` in this process, which must never complain."""
    found, complaints, is_ready = SimpleNamespace(), [], threading.Event()

    class Watched(server_module.Server):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            found.server = self
            is_ready.set()

    monkeypatch.setattr(server_module, "Server", Watched)
    thread = threading.Thread(target=cli.main, args=(["explain", "--serve", "--port", "0"],))
    thread.start()
    is_ready.wait(30)
    address = f"http://127.0.0.1:{found.server.server_port}/"

    def opened(fragment="", width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith(address) or complaints.append(r.url))
        page.goto(address + fragment)
        page.locator("#target li").first.wait_for()
        return page

    yield opened
    found.server.shutdown()
    thread.join()
    assert complaints == []


def changed(page, change):
    """Make a change and wait for the record that answers it."""
    with page.expect_response(lambda response: "/record" in response.url) as answer:
        change()
    found = json.loads(answer.value.text())
    page.locator("#columns[aria-busy=false]").wait_for()
    return found


def test_typing_and_sliders_decode_again(live):
    page = live()
    assert_shows(page, *traced("oracle"))
    changed(page, lambda: page.get_by_label("text").fill("read"))
    assert_shows(page, *traced("read"))
    changed(page, lambda: page.get_by_label("method").select_option("sample"))
    for label, value in {"temperature": "1.5", "top-k": "4", "top-p": "0.9", "seed": "11"}.items():
        changed(page, lambda: page.get_by_label(label).fill(value))  # noqa: B023
    choose = rs.sample(rs.temperature(1.5), rs.top_k(4), rs.top_p(0.9))
    assert_shows(page, *traced("read", choose=choose, seed=11))
    page.get_by_label("seed").focus()
    changed(page, lambda: page.keyboard.press("ArrowRight"))
    expected = traced("read", choose=choose, seed=12)
    assert_shows(page, *expected)
    page.reload()
    page.locator("#target li").first.wait_for()
    assert page.get_by_label("temperature").input_value() == "1.5"
    assert_shows(page, *expected)
    changed(page, lambda: page.get_by_label("max tokens").fill("2"))
    assert_shows(page, *traced("read", choose=choose, seed=12, max_new_tokens=2))


def test_a_token_chosen_by_hand(live):
    page = live("#text=oracle")
    page.keyboard.press("Home")
    name = page.locator("#candidates button").nth(1)
    token = name.inner_text()
    name.focus()
    changed(page, lambda: page.keyboard.press("Enter"))
    assert text_of(page, "said") == f"Step 0 reads <s> and writes {token}, chosen by hand."
    symbols = MODEL.target_vocabulary.symbols
    prefix = [[MODEL.config.decoder_start_id, symbols.index(token)]]
    source = [MODEL.source_vocabulary.encode("oracle")]
    steps = [s for s in rs.decode_steps(MODEL, source, prefix=prefix) if s.emitted[0]]
    for step in steps:
        page.keyboard.press("ArrowRight")
        assert page.locator("#target li[aria-current]").inner_text() == symbol(step)
        assert text_of(page, "log-prob") == f"{step.log_probs[0]:.3f} nats"
    page.keyboard.press("ArrowLeft")
    changed(page, lambda: page.locator("#candidates button").nth(2).click())
    last = len(steps) - 1
    assert page.evaluate("fragment().get('hand')").startswith(f"0:{prefix[0][1]},{last}:")
    page.keyboard.press("Home")
    changed(page, lambda: page.locator("#candidates button").nth(3).click())
    assert "," not in page.evaluate("fragment().get('hand')")  # the later choice is dropped
    changed(page, lambda: page.get_by_text("undo the choice in step 0").click())
    page.keyboard.press("End")
    assert_shows(page, *traced("oracle"))


def test_choices_by_hand_survive_the_keyboard_the_method_and_a_reload(live):
    page = live("#text=oracle&step=1")
    assert text_of(page, "where") == "step 1 (0 to 6)"

    def focused():
        return page.evaluate("document.activeElement.id || document.activeElement.textContent")

    for key in ("ArrowRight", "ArrowRight"):  # choices in steps 2 and 3
        page.locator("#previous").focus()
        page.keyboard.press(key)
        page.locator("#candidates button").nth(1).focus()
        changed(page, lambda: page.keyboard.press("Enter"))
        assert focused().endswith("✓ by hand")
    chosen = page.evaluate("choices()")
    assert [pair.partition(":")[0] for pair in chosen] == ["2", "3"]
    output = text_of(page, "output")
    changed(page, lambda: page.get_by_label("method").select_option("search"))
    assert page.get_by_text("A beam search does not use the choices by hand.").is_visible()
    assert text_of(page, "output") == "AO R AH K AH L"
    changed(page, lambda: page.get_by_label("method").select_option("default"))
    page.reload()
    page.locator("#target li").first.wait_for()
    assert (text_of(page, "output"), page.evaluate("choices()")) == (output, chosen)
    assert text_of(page, "where").startswith("step 3 ")
    page.get_by_text("undo the choice in step 3").focus()
    changed(page, lambda: page.keyboard.press("Enter"))
    assert (focused(), page.evaluate("choices()")) == ("undo", chosen[:1])
    changed(page, lambda: page.keyboard.press("Enter"))
    assert (focused(), page.evaluate("choices()")) == ("step", [])
    page.get_by_label("text").fill("zzz")
    token = page.locator("#candidates button").nth(1)
    changed(page, token.click)  # before the server has answered the new text
    assert text_of(page, "text") == "zzz"
    assert "chosen by hand" in text_of(page, "said")


def test_beams_and_a_filter_without_a_control(live):
    page = live("#text=read&beams=3&min-new-tokens=2")
    assert text_of(page, "text") == "read"
    assert page.locator("#tree g").count() > 3
    assert page.locator("#candidates button").count() == 0
    changed(page, lambda: page.locator("[name=beams]").fill("2"))
    expected = explain.record(MODEL, "read", beams=2, min_new_tokens=2)["tree"]
    assert page.locator("#tree g").count() == len(expected["nodes"])
    changed(page, lambda: page.get_by_label("method").select_option("default"))
    assert page.locator("#tree").is_hidden()
    assert page.evaluate("location.hash") == "#text=read&min-new-tokens=2"


def test_a_link_may_have_values_that_no_control_can_hold(live):
    shared = "text=banana&temperature=0.75&top-k=0.1&min-p=0.01&seed=1234&step=x"
    page = live(f"#{shared}")
    settings = "Object.fromEntries(fragment())"
    expected = {**dict(pair.split("=") for pair in shared.split("&")), "step": "0"}
    assert page.evaluate(settings) == expected
    outputs = [o for o in page.locator("#ask output").all_inner_texts() if o]
    assert outputs[:4] == ["0.75", "0.1", "off", "1234"]
    changed(page, lambda: page.locator("[name=top-p]").fill("0.5"))
    assert page.evaluate(settings) == expected | {"top-p": "0.5"}
    assert page.locator("#others button").all_inner_texts() == ["min-p 0.01 ✕"]
    changed(page, lambda: page.locator("#others button").click())
    del expected["min-p"]
    assert page.evaluate(settings) == expected | {"top-p": "0.5"}
    head = page.locator("#candidates thead th").all_inner_texts()
    assert [name.partition(" (")[0] for name in head[2:]] == [
        "temperature(0.75)", "top_fraction(0.1)", "top_p(0.5)",
    ]  # fmt: skip
    changed(page, lambda: page.get_by_label("method").select_option("default"))
    assert page.evaluate(settings) == {"text": "banana", "step": "0"}


def test_a_choice_that_the_output_does_not_reach_and_a_stale_candidate(live):
    page = live("#text=cat&hand=50:3")
    assert page.get_by_text("The output ends before the choice in step 50.").is_visible()
    changed(page, lambda: page.get_by_text("undo the choice in step 50").click())
    assert page.locator("#unused").is_hidden()
    changed(page, lambda: page.get_by_label("text").fill("cät"))
    assert page.locator("#candidates button:enabled").count() == 0
    page.keyboard.press("Home")  # in the text
    page.locator("#previous").click()
    assert page.locator("#candidates button:enabled").count() == 0
    changed(page, lambda: page.get_by_label("text").fill("cat"))
    assert page.locator("#candidates button:enabled").count() == 8


def test_mistakes_are_shown_in_one_line(live):
    page = live()
    found = changed(page, lambda: page.get_by_label("text").fill("cät"))
    page.get_by_role("alert").wait_for()
    assert text_of(page, "error").split("\n") == [
        found["error"],
        "Below is still the last result, of “oracle”.",
    ]
    faded = page.locator("#columns").evaluate("e => Number(getComputedStyle(e).opacity)")
    assert faded < 1
    assert "unknown symbols: 'ä'" in found["error"]
    changed(page, lambda: page.get_by_label("text").fill("cat"))
    assert page.get_by_role("alert").is_hidden()
    assert_shows(page, *traced("cat"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_the_live_page_is_legible_too(live, width, scheme):
    page = live("#text=read&temperature=1", width=width, scheme=scheme)
    assert min(page.evaluate(CONTRASTS)) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert_controls_have_names(page)


CONTRASTS = """
() => {
  const TEXTS = "td, th, p, h1, h2, li, label, output, dt, dd, button, b, .tile span";
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
  return [...document.querySelectorAll(TEXTS)]
    .filter(e => e.textContent.trim() && e.offsetParent)
    .map(e => {
      const x = light(rgb(getComputedStyle(e).color).slice(0, 3)), y = light(behind(e));
      return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    });
}
"""
