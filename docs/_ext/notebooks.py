"""Notebooks of the pages: each is one file that needs refseq2seq, and matplotlib if it draws.

A page is MyST Markdown. Its notebook has plain Markdown, as Jupyter shows it: roles and links to
other pages become text, directives go. The helpers of `figures.py` that a page imports stand in a
folded cell, and the answers of its exercises at the end.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NEEDS = "*This notebook needs {0}: in a copy of refseq2seq's repository, run `{1}`.*{2}"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
FOLDED = {"jupyter": {"source_hidden": True}}
PICTURE = """from IPython.display import HTML
import refseq2seq as rs

HTML(rs.explain.picture(rs.load("g2p"), unfold={}))"""
SPECIAL = r"^:::\{dropdown\} Answer\n([\s\S]*?)^:::$|^```\{model\}(.*)\n```$"
"""Answers, and places of the picture of the model."""

PLAIN = (
    (r"^```\{[\s\S]*?^```\n?", ""),  # directives
    (r"^:{3,}.*\n?", ""),  # the fences of blocks of text
    (r"^\([\w-]+\)=\n", ""),  # labels
    (r"\{(?:func|class|meth|mod|data|attr|any)\}`([^`<]+?)(?: <[^`]*>)?`", r"`\1`"),
    (r"\{\w+\}`([^`<]+?)(?:\s<[^`]*>)?`", r"\1"),
    (r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)\s]*\)", r"\1"),  # links to other pages
)
"""What is MyST or belongs to the site, and what a notebook has in its place."""


def is_notebook(page: Path) -> bool:
    """Whether a Markdown page names a kernel, which is what makes MyST-NB run it."""
    return page.is_file() and "kernelspec:" in page.read_text(encoding="utf-8")[:400]


def write(page: Path, target: Path) -> None:
    """Write the notebook of a page."""
    cells = [*body(page), *answers(page)]
    names, command = "refseq2seq", "python -m pip install ."
    if any("import matplotlib" in cell.source for cell in cells):
        names, command = "refseq2seq and matplotlib", f"{command} matplotlib"
    end = " *The answers are at its end.*" if answers(page) else ""
    cells.insert(0, new_markdown_cell(NEEDS.format(names, command, end)))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # not drawn: a build can be repeated
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), target)


def body(page: Path) -> Iterator[nbformat.NotebookNode]:
    """The cells of a page without its answers."""
    for _, answer, cell in parts(page):
        if answer:
            continue
        if cell.cell_type == "code" and (names := imported(cell.source)):
            yield new_code_cell(helpers(page.parent / "figures.py", names), metadata=FOLDED)
            cell.source = re.sub(r"from figures import (\([^)]*\)|.*)\n", "", cell.source)
        yield cell


def answers(page: Path) -> list[nbformat.NotebookNode]:
    """The answers of a page, each below the number of its exercise."""
    cells, last = [], ""
    for exercise, answer, cell in parts(page):
        if answer:
            heading = "" if cells else "## Answers\n\n"
            if exercise != last:
                cells.append(new_markdown_cell(f"{heading}### Exercise {exercise}"))
            last = exercise
            cells.append(cell)
    return cells


def parts(page: Path) -> Iterator[tuple[str, bool, nbformat.NotebookNode]]:
    """Cells, the number of the exercise before each, and whether they answer it."""
    exercise = ""
    for cell in jupytext.read(page).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            folded = {"hide-input", "remove-input"} & {*tags}
            kept = [tag for tag in tags if tag == "raises-exception"]
            metadata = (FOLDED if folded else {}) | ({"tags": kept} if kept else {})
            yield exercise, "hide-cell" in tags, new_code_cell(cell.source, metadata=metadata)
            continue
        for i, text in enumerate(re.split(SPECIAL, cell.source, flags=re.M)):
            exercise = [exercise, *re.findall(r"^\*\*(\d+)\. ", text or "", re.M)][-1]
            if i % 3 == 2 and text is not None:
                yield exercise, False, new_code_cell(PICTURE.format(text.split()), metadata=FOLDED)
            elif plain := plain_markdown(text or ""):
                yield exercise, i % 3 == 1, new_markdown_cell(plain)


def plain_markdown(text: str) -> str:
    """Markdown without what Jupyter does not know."""
    for pattern, replacement in PLAIN:
        text = re.sub(pattern, replacement, text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def imported(code: str) -> list[str]:
    """The names that a cell imports from `figures.py`."""
    if "from figures import" not in code:
        return []
    nodes = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in nodes if node.module == "figures" for alias in node.names]


def helpers(file: Path, names: list[str]) -> str:
    """The statements of a file that define the names, and those that these use."""
    text = file.read_text(encoding="utf-8")
    statements = ast.parse(text).body[1:]  # without the docstring
    wanted, kept = {*names}, set()
    while found := {s for s in statements if s not in kept and defined(s) & wanted}:
        kept |= found
        wanted |= {n.id for s in found for n in ast.walk(s) if isinstance(n, ast.Name)}
    code = "# Helpers of this notebook: how its pictures are drawn, and how code is shown\n"
    gaps = {ast.Import: "\n", ast.ImportFrom: "\n", ast.FunctionDef: "\n\n\n"}
    for statement in (s for s in statements if s in kept):
        code += gaps.get(type(statement), "\n\n") + source_of(text, statement)
    return code


def defined(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file binds."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def source_of(text: str, statement: ast.stmt) -> str:
    """The lines of a statement, with its decorators."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(text.splitlines()[first - 1 : statement.end_lineno])
