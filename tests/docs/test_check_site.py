"""The checks of the built site find what they look for, on sites of a few lines."""

import pytest
from docs.check_site import MAX_WEIGHT, Site

PAGE = '<html lang="en"><head><title>t</title></head><body><h1 id="top">t</h1>{}</body></html>'


def faults(folder, body="", page=PAGE, **files):
    (folder / "index.html").write_text(page.format(body), encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return list(Site(folder).faults())


def test_a_good_page_has_no_faults(tmp_path):
    body = """<h2>a</h2><h3>b</h3><h2>c</h2> <a href="#top">up</a> <a href="other.html#x">on</a>
        <a href="https://example.org/gone">away</a> <a href="mailto:a@example.org">write</a>
        <link rel="stylesheet" href="style.css?v=1"> <img src="data:," alt="a picture">
        <svg role="img" aria-label="another"></svg> <script src="run.js"></script>"""
    other = PAGE.format('<p id="x">there</p>')
    style = "p {background: url(run.js)}"
    found = faults(tmp_path, body, other_html=other, style_css=style, run_js="")
    assert found == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">x</a>', "gone.html leads to no file"),
        ('<a href="../index.html">x</a>', "../index.html leads to no file"),
        ('<a href="#gone">x</a>', "#gone leads to no place"),
        ("<h3>x</h3>", "a heading of level 3 follows one of level 1"),
        ("<h1>x</h1>", "2 headings of level 1"),
        ('<img src="data:,">', "img data:, has no text"),
        ('<iframe srcdoc="x"></iframe>', "has no text"),
        ('<svg role="img"></svg>', "svg role=img has no text"),
        ('<span class="katex-error">x</span>', "KaTeX rejected 1"),
        ('<script src="https://cdn.example/x.js"></script>', "from a network"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "from a network"),
        ("<style>@import 'https://cdn.example/x.css';</style>", "from a network"),
        ('<p style="background: url(https://cdn.example/x.png)">x</p>', "from a network"),
        ('<script src="gone.js"></script>', "gone.js, which is no file"),
        ("x" * MAX_WEIGHT, "weighs 1,500,"),
    ],
)
def test_a_fault_is_found(tmp_path, body, fault):
    found = faults(tmp_path, body)
    assert len(found) == 1
    assert fault in found[0]


def test_a_name_of_the_api_that_no_page_describes_is_found(tmp_path):
    api = tmp_path / "api"
    api.mkdir()
    (api / "a.rst").write_text(
        ".. currentmodule:: p\n\n.. autofunction:: f\n\n.. autoclass:: C\n   :members:\n\n"
        ".. currentmodule:: p.q\n\n.. automodule:: p.q\n   :members:\n\n.. automodule:: p.r\n"
    )
    described = '<dl><dt id="p.f"></dt><dt id="p.C"></dt><dt id="p.q.g"></dt></dl>'
    for left_out, missing in (
        ("", []),
        ("p.f", ["a.rst: p.f is not described"]),
        ("p.C", ["a.rst: p.C is not described"]),
        ("p.q.g", ["a.rst: nothing of p.q is described"]),
    ):
        body = described.replace(f'"{left_out}"', '""')
        (tmp_path / "index.html").write_text(PAGE.format(body))
        assert list(Site(tmp_path).missing(api)) == missing


def test_what_a_style_sheet_loads_is_looked_at(tmp_path):
    body = '<link rel="stylesheet" href="style.css">'
    found = faults(
        tmp_path, body, style_css="@font-face {src: url('https://fonts.example/a.woff2')}"
    )
    assert found == ["index.html: loads https://fonts.example/a.woff2 from a network"]


def test_a_page_without_language_or_title(tmp_path):
    found = faults(tmp_path, page="<h1>{}</h1>")
    assert found == ["index.html: html has no lang", "index.html: no title"]


def test_an_empty_folder_is_no_site(tmp_path):
    assert "no pages" in next(Site(tmp_path).faults())
