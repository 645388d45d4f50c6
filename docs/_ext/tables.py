"""Tables made from the code: the fields of a dataclass, and the quantities that pass a tap.

```{fields} refseq2seq.Step
```

```{quantities}
```
"""

import dataclasses
import importlib
import inspect
import io
import tokenize
import typing
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from refseq2seq.watching.quantities import QUANTITIES


def table(head: list[str], rows: list[list[nodes.Node]]) -> nodes.Node:
    """A table of cells that are made already."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    titles = [nodes.paragraph(text=title) for title in head]
    group += nodes.thead("", _row(titles))
    group += nodes.tbody("", *[_row(row) for row in rows])
    return nodes.table("", group, classes=["generated"])


def _row(cells: list[nodes.Node]) -> nodes.Node:
    return nodes.row("", *[nodes.entry("", cell) for cell in cells])


def code(text: str) -> nodes.Node:
    return nodes.paragraph("", "", nodes.literal(text=text))


def _text(text: str) -> nodes.Node:
    return nodes.paragraph(text=text)


class Quantities(SphinxDirective):
    """Every named quantity: name, shape, equation, meaning, in order of execution."""

    def run(self) -> list[nodes.Node]:
        rows = [
            [code(q.name), code(q.shape), code(q.equation), _text(q.meaning)] for q in QUANTITIES
        ]
        return [table(["name", "shape", "equation", "what it is"], rows)]


class Fields(SphinxDirective):
    """The fields of a dataclass or a named tuple: name, type, and the comment behind it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        record = getattr(importlib.import_module(module), name)
        comments = field_comments(record)
        head, rows = ["field", "type"], []
        for field, annotation in fields(record).items():
            rows.append([code(field), code(type_name(annotation))])
            if comments:
                rows[-1].append(_text(comments.get(field, "")))
        return [table([*head, "what it is"] if comments else head, rows)]


def fields(record: type) -> dict[str, Any]:
    """The annotations of a dataclass or a named tuple, by the names of its fields."""
    if dataclasses.is_dataclass(record):
        return {field.name: field.type for field in dataclasses.fields(record)}
    return inspect.get_annotations(record)


def type_name(annotation: Any) -> str:
    """An annotation as a reader writes it."""
    if annotation is type(None):
        return "None"
    members = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " | ".join(repr(member) for member in members)
    if origin is tuple:
        return f"tuple of {type_name(members[0])}"
    if members:
        return " | ".join(type_name(member) for member in members)
    if annotation is typing.Any:
        return "array"
    return getattr(annotation, "__name__", str(annotation))


def field_comments(record: type) -> dict[str, str]:
    """The comment at the end of the line of each field."""
    comments, name = {}, ""
    source = inspect.getsource(record)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.line[: token.start[1]].strip() == "":
            name = token.string
        elif token.type == tokenize.COMMENT and name:
            comments[name] = token.string.lstrip("# ")
    names = fields(record)
    return {name: comment for name, comment in comments.items() if name in names}


def literal_examples(
    _app: Sphinx, what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Examples that module docstrings indent, for readers of the code, become literal blocks."""
    if what == "module":
        for i in range(len(lines) - 1, 0, -1):
            begins = lines[i].startswith("    ") and not lines[i - 1]
            if begins and not lines[i - 2].startswith("    "):
                lines[i:i] = ["::", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("quantities", Quantities)
    app.add_directive("fields", Fields)
    app.connect("autodoc-process-docstring", literal_examples)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
