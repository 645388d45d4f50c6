"""What the site has beside its pages.

Every executed page can be downloaded as a notebook, which Jupyter opens and runs. The page that
`refseq2seq explain` writes for a word is made while the site is built, to be shown in a frame.
"""

from pathlib import Path
from typing import Any

from notebooks import is_notebook, write
from sphinx.application import Sphinx

import refseq2seq as rs

FOLDER = "_notebooks"


def name_the_notebook(
    app: Sphinx, docname: str, _template: str, context: dict[str, Any], _doctree: Any
) -> None:
    """Give the page's template the path of its notebook."""
    page = Path(app.srcdir, docname + ".md")
    if is_notebook(page):
        context["notebook"] = f"{FOLDER}/{docname}.ipynb"


def write_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Convert the pages once the site is built."""
    if error is not None or app.builder.format != "html":
        return
    for docname in app.env.found_docs:
        page = Path(app.srcdir, docname + ".md")
        if is_notebook(page):
            write(page, Path(app.outdir, FOLDER, docname + ".ipynb"))


def write_explanation(app: Sphinx, error: Exception | None) -> None:
    """Show how the shipped model decodes a word."""
    if error is None and app.builder.format == "html":
        page = rs.explain.page(rs.load("g2p"), "oracle")
        Path(app.outdir, "_static", "oracle.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("html-page-context", name_the_notebook)
    app.connect("build-finished", write_notebooks)
    app.connect("build-finished", write_explanation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
