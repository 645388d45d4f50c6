"""The imports between the package's files: no cycle, and the equations import no other room."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import refseq2seq

ROOT = Path(refseq2seq.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
ENTRIES = {"refseq2seq", "refseq2seq.__main__"}


def imported(name, nodes):
    """The files of the package that the imports among these nodes read."""
    here = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in FILES else base


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def test_no_file_imports_itself_through_others():
    graph = {name: {*imported(name, ast.walk(tree))} - {name} for name, tree in TREES.items()}
    order = [*TopologicalSorter({n: s - ENTRIES for n, s in graph.items()}).static_order()]
    assert order.index("refseq2seq.model") < order.index("refseq2seq.generation.loop")


def test_the_equations_import_only_each_other():
    equations = {name for name, path in FILES.items() if path.parent == ROOT} - ENTRIES
    assert len(equations) > 10
    for name in equations:
        assert {*imported(name, TREES[name].body)} <= equations, name
