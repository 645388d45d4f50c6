"""The picture of the shipped model, with links, and the source pages to which they lead.

```{model} encoder
```

draws it with the encoder unfolded and marked; without an argument, all parts are closed. Beneath
is a table, folded: what each quantity is, its equation, its chapter and its line of code.
"""

from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tables import code, table

import refseq2seq as rs
from refseq2seq.explain.facts import PACKAGE
from refseq2seq.explain.parts import part_of
from refseq2seq.explain.picture import is_of


@cache
def facts() -> dict[str, rs.explain.Fact]:
    """The facts of the shipped model."""
    return rs.explain.facts(rs.load("g2p"))


class ModelPicture(SphinxDirective):
    """The picture of the shipped model, and its quantities in a table."""

    optional_arguments = 11

    def run(self) -> list[nodes.Node]:
        svg = rs.explain.picture(rs.load("g2p"), unfold=self.arguments, link=self.address)
        shown = [fact for fact in facts().values() if self.shows(fact)]
        rows = [[nodes.container("", *cell) for cell in self.cells(fact)] for fact in shown]
        found = table(["quantity", "equation, code and chapter"], rows)
        found["classes"].append("facts")
        for row, fact in zip([*found.findall(nodes.row)][1:], shown, strict=True):
            row["ids"].append(anchor(fact.name))
        of = " and ".join(self.arguments).replace(".", "'s ").replace("_", "-") or "model"
        opening = f"<details><summary>The quantities of the {escape(of)}, in words</summary>"
        return [
            nodes.raw("", f'<figure class="model">{svg}</figure>{opening}', format="html"),
            found,
            nodes.raw("", "</details>", format="html"),
        ]

    def shows(self, fact: rs.explain.Fact) -> bool:
        """Whether the table has a quantity: those of the unfolded parts, or all."""
        part = part_of(fact.name)
        return not self.arguments or any(is_of(part, name) for name in self.arguments)

    def address(self, name: str) -> str | None:
        """A part leads to its chapter; on that page, as a quantity, to its row in the table."""
        first = facts().get(name) or next(f for f in facts().values() if part_of(f.name) == name)
        chapter = self.chapter(first)
        if name not in facts() and chapter != self.env.docname:
            return self.to(chapter)
        return f"#{anchor(first.name)}" if self.shows(first) else None

    def cells(self, fact: rs.explain.Fact) -> Iterator[list[nodes.Node]]:
        """The cells of a quantity's row, each of paragraphs."""
        file, _, line = fact.source.rpartition(":")
        chapter = nodes.reference(text=fact.chapter, refuri=self.to(self.chapter(fact)))
        line_of_code = nodes.reference(refuri=f"{self.to(source_page(file))}#line-{line}")
        line_of_code += nodes.literal(text=fact.source)
        linked = (nodes.paragraph("", "", link) for link in (line_of_code, chapter))
        yield [code(fact.name), nodes.paragraph(text=fact.meaning)]
        yield [code(fact.equation), *linked]

    def chapter(self, fact: rs.explain.Fact) -> str:
        """The page of a fact's chapter."""
        number = fact.chapter.partition(".")[0]
        return next(p for p in self.env.found_docs if p.startswith(f"course/{number}-"))

    def to(self, page: str) -> str:
        """The address of a page as this page sees it."""
        return self.env.app.builder.get_relative_uri(self.env.docname, page)


def anchor(name: str) -> str:
    """The id of a quantity's row."""
    return "quantity-" + name.replace(".*", "").replace(".", "-")


def source_page(file: str) -> str:
    """The page of a file of the package."""
    return "source/" + file.removesuffix(".py")


def source_pages(_app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The files that compute quantities, each line with an id."""
    for file in sorted({fact.source.rpartition(":")[0] for fact in facts().values()}):
        text = (PACKAGE / file).read_text(encoding="utf-8")
        code = highlight(text, PythonLexer(), HtmlFormatter(linespans="line"))
        title = f"refseq2seq/{file}"
        body = f'<h1>{title}</h1><div class="highlight-python source">{code}</div>'
        yield source_page(file), {"title": title, "body": body, "display_toc": False}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("model", ModelPicture)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
