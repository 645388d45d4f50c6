"""The notebook of each page runs where no other file is, and keeps its answers to the end."""

import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install '.[docs]'")
pytest.importorskip("jupytext", reason="needs jupytext: pip install '.[docs]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install '.[docs]'")

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

from notebooks import answers, helpers, is_notebook, plain_markdown, write  # noqa: E402

PAGE = """---
kernelspec:
  name: python3
  display_name: Python 3
---
# T

```{model} encoder
```

**1. A**

:::{dropdown} Answer
B
:::

```{code-cell} python
---
tags: [hide-cell]
---
1
```

**2. C**

```{code-cell} python
---
tags: [raises-exception]
---
2 / 0
```
"""
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if is_notebook(page)]
COURSE = [page for page in PAGES if page.parent.name == "course"]


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def notebook(request, tmp_path):
    write(request.param, tmp_path / "page.ipynb")
    found = nbformat.read(tmp_path / "page.ipynb", as_version=4)
    nbformat.validate(found)
    return found


def text_of(cells):
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_a_notebook_runs_where_no_other_file_is(notebook, tmp_path):
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # cells that fail on purpose have a tag, others raise
    failed = [
        cell.source
        for cell in notebook.cells
        if any(output.output_type == "error" for output in cell.get("outputs", ()))
        and "raises-exception" not in cell.metadata.get("tags", ())
    ]
    assert not failed


def test_a_notebook_says_first_what_it_needs(notebook):
    first, title = notebook.cells[:2]
    assert first.source.startswith("*This notebook needs refseq2seq")
    draws = any("import matplotlib" in cell.source for cell in notebook.cells)
    assert ("matplotlib" in first.source) == draws
    assert title.source.startswith("# ")
    assert not any("from figures" in cell.source for cell in notebook.cells)


def test_a_notebook_is_plain_markdown(notebook):
    text = text_of(notebook.cells)
    assert not re.findall(r"^:::|^```\{|\{\w+\}`|^\([\w-]+\)=$", text, re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]*)\)", re.sub(r"`[^`]*`|\$[^$]*\$", "", text))
    assert all(link.startswith("https://") for link in links)


@pytest.mark.parametrize("page", COURSE, ids=lambda page: page.stem)
def test_answers_stand_at_the_end_under_their_numbers(page, tmp_path):
    write(page, tmp_path / "page.ipynb")
    cells = nbformat.read(tmp_path / "page.ipynb", as_version=4).cells
    [start] = [i for i, cell in enumerate(cells) if cell.source.startswith("## Answers")]
    exercises = re.findall(r"^\*\*(\d+)\. ", text_of(cells), re.MULTILINE)
    answered = re.findall(r"^### Exercise (\d+)$", text_of(cells[start:]), re.MULTILINE)
    assert exercises == answered == [str(i + 1) for i in range(len(exercises))]
    assert not re.findall(r"^\*\*\d+\. ", text_of(cells[start:]), re.MULTILINE)
    moved = [cell.source for cell in answers(page)]
    assert [cell.source for cell in cells[start:]] == moved
    folded = page.read_text(encoding="utf-8").count("tags: [hide-cell]")
    assert sum(cell.cell_type == "code" for cell in cells[start:]) == folded
    for name in re.findall(r'implements\("(\w+)"', "\n".join(moved)):
        asked = [cell for cell in cells[:start] if f'implements("{name}"' in cell.source]
        assert len(asked) == 1
        assert asked[0].metadata.tags == ["raises-exception"]
        assert re.search(rf"def {name}\(.*\):\n    (\.\.\.|return)", asked[0].source)


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("a {func}`rs.f <refseq2seq.f>` b", "a `rs.f` b"),
        ("{func}`f`, {download}`the\nrecipe <../a.py>`", "`f`, the\nrecipe"),
        (
            "[chapter\n2](2-attention) and [arXiv](https://arxiv.org)",
            "chapter\n2 and [arXiv](https://arxiv.org)",
        ),
        ("[`Memory`](#refseq2seq.Memory)", "`Memory`"),
        ("a\n\n```{raw} html\n<i>b</i>\n```\n\nc", "a\n\nc"),
        ("::::{div} beside\n:::{note}\nText.\n:::\n::::", "Text."),
        ("(here)=\n# Title\n\n$x_{a}$ `{a}`", "# Title\n\n$x_{a}$ `{a}`"),
        ("```shell\nls {a}\n```", "```shell\nls {a}\n```"),
    ],
)
def test_what_jupyter_does_not_know_becomes_text(myst, markdown):
    assert plain_markdown(myst) == markdown


def test_a_picture_answers_and_tags_become_cells(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    write(tmp_path / "page.md", tmp_path / "page.ipynb")
    cells = nbformat.read(tmp_path / "page.ipynb", as_version=4).cells
    title, picture, *rest = cells[1:]
    assert title.source == "# T"
    assert "rs.explain.picture(" in picture.source
    assert "unfold=['encoder']" in picture.source
    assert [cell.source for cell in rest] == [
        *("**1. A**", "**2. C**", "2 / 0", "## Answers\n\n### Exercise 1", "B", "1")
    ]
    assert rest[2].metadata == {"tags": ["raises-exception"]}


def test_only_the_helpers_that_a_page_uses_are_copied(tmp_path):
    (tmp_path / "figures.py").write_text(
        '"""Doc."""\nimport io\nimport re\n\nA, B = 1, 2\n\n\ndef f():\n    return g(A)\n\n\n'
        "@staticmethod\ndef g(x):\n    return re, x\n\n\ndef h():\n    return io\n"
    )
    code = helpers(tmp_path / "figures.py", ["f"])
    assert "import re\n\nA, B = 1, 2\n\n\ndef f()" in code
    assert "\n\n\n@staticmethod\ndef g(x):" in code
    assert "import io" not in code
    assert "def h" not in code
