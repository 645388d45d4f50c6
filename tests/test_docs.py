"""Every code block of the README and of the pages runs, and prints what the page says.

A block is in one of these groups, and one that is in none fails:

- examples with ``>>>`` are doctests, run here;
- the cells of a page that names a kernel are run here and when the site is built;
- shell commands are run here, or `NOT_RUN` says why not;
- the commands of console blocks are run here, and print what stands below them;
- other blocks are run by the test that `RUN_BY` names for their page.
"""

import contextlib
import doctest
import io
import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import process

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (
        ROOT / "README.md",
        ROOT / "refseq2seq/g2p/README.md",
        *ROOT.glob("docs/**/*.md"),
    )
    if "_build" not in page.parts
)

NOT_RUN = {
    "python -m pip install": ".ci/run installs the package and its extras",
    "python -m pytest": "it would run this test",
    "sphinx-build": ".ci/run builds the site",
    "ruff ": ".ci/run lints",
    "mypy": ".ci/run lints",
    "python docs/g2p/evaluate.py": ".ci/run evaluates the shipped model",
    'refseq2seq generate "A text': "it needs a checkpoint: tests/peers/test_huggingface_files.py",
    "refseq2seq generate --model whisper": "it needs a checkpoint: tests/peers/test_transcribe.py",
    "python docs/examples/transcribe.py": "it needs one too, and the same test runs it",
    "python docs/g2p/train.py": "it takes 68 minutes",
    "refseq2seq explain --serve": "it ends with Ctrl-C: tests/test_explain.py",
}
"""How a command begins, and why this test does not run it."""

RUN_BY = {
    "docs/peers.md": "tests/peers/test_page.py",
    "docs/your-own-model.md": "tests/peers/test_annalog.py",
    "docs/speech.md": "tests/peers/test_transcribe.py",
    "README.md": "tests/test_readme.py",
}
"""A page, and the test that runs its Python, C and other blocks that are not examples."""

PLAIN = {
    "    (a @ b)[i, j] = ((a[i, 0] b[0, j] + a[i, 1] b[1, j]) + a[i, 2] b[2, j]) + ...": "sums",
    '    "logits":{"dtype":"F64","shape":[3,4,19],"data_offsets":[53248,55072]}': "data",
}
"""Indented blocks that are not code, and what they are."""

SOURCES = "".join(
    f"{file.stem}\n{file.read_text(encoding='utf-8')}"
    for folder in ("refseq2seq", "tests", "docs")
    for file in (ROOT / folder).rglob("*.py")
)

FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<kind>[^`]*)$")


@dataclass(frozen=True)
class Block:
    """A block of code on a page. ``kind`` is its language, or the name of its directive."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def is_doctest(self):
        return self.text.lstrip().startswith(">>>")


def blocks(page, lines, first=1):
    """The blocks of a page, those inside directives such as ``{note}`` too."""
    found, i = [], 0
    while i < len(lines):
        if match := FENCE.match(lines[i].strip()):
            end = next(k for k in range(i + 1, len(lines)) if lines[k].strip() == match["ticks"])
            inside, kind = lines[i + 1 : end], match["kind"].strip()
            if kind.startswith("{") and not kind.startswith("{code-cell}"):
                found += blocks(page, inside, first + i + 1)
            else:
                kind = kind.split()[0] if kind else ""
                found.append(Block(page, first + i, kind, "\n".join(inside)))
            i = end
        elif lines[i].startswith("    ") and not goes_on(lines[:i]):
            end = next((k for k in range(i, len(lines)) if not lines[k].strip()), len(lines))
            found.append(Block(page, first + i, "indented", "\n".join(lines[i:end])))
            i = end
        i += 1
    return found


def goes_on(before):
    """Whether an indented line goes on with a paragraph, or with an item of a list."""
    flush = [line for line in before if line[:1].strip()]
    of_a_list = bool(flush) and re.match(r"([-*:]|\d+\.) ", flush[-1])
    return not before or bool(before[-1].strip()) or of_a_list


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page):
    return blocks(page, read(page).splitlines())


def is_notebook(page):
    return "kernelspec:" in read(page)[:400]


def commands_of(block):
    """The commands of a shell block; a backslash goes on in the next line."""
    lines = re.split(r"\n| && ", block.text.replace("\\\n", " "))
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def reason_not_to_run(command):
    return next((why for begin, why in NOT_RUN.items() if command.startswith(begin)), None)


def group(block, before):
    """Which group a block is in; ``before`` is the block before it, None for the first."""
    if block.is_doctest:
        return "doctest"
    if block.kind == "{code-cell}":
        return "cell" if is_notebook(block.page) else None
    if block.text in PLAIN:
        return "plain"
    if is_shell(block):
        return "shell"
    if block.kind == "console":
        return "console"
    if block.page in RUN_BY:
        return "elsewhere"
    if block.kind in ("text", "indented") and before is not None and is_shell(before):
        return "output"
    return None


def is_shell(block):
    if block.kind == "indented":
        return block.text.split()[0] in ("python", "refseq2seq", "sphinx-build")
    return block.kind in ("shell", "bash")


def grouped(page):
    found, before = [], None
    for block in blocks_of(page):
        found.append((group(block, before), block))
        before = block
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run(page):
    lost = [f"{page}:{b.line} ({b.kind})" for where, b in grouped(page) if where is None]
    assert not lost, f"blocks that nothing runs: {lost}"


@pytest.mark.parametrize(("page", "test"), RUN_BY.items())
def test_what_runs_a_page_knows_it(page, test):
    assert Path(page).name in read(test)


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in read(page)])
def test_the_examples_of_a_page_run(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")  # the files that it shows
    failures, examples = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")
    assert failures == 0
    assert examples == len(re.findall(r"^\s*>>> ", read(page), re.MULTILINE)) > 0


@pytest.mark.parametrize("page", [page for page in PAGES if is_notebook(page)])
def test_the_cells_of_a_page_run(page, monkeypatch):
    if "from figures import" in read(page):
        for needed in ("matplotlib", "IPython"):
            pytest.importorskip(needed, reason=f"needs {needed}: pip install '.[docs]'")
    monkeypatch.chdir((ROOT / page).parent)
    monkeypatch.syspath_prepend(str((ROOT / page).parent))
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": "__main__"}
    cells = [block for where, block in grouped(page) if where == "cell"]
    assert cells
    with np.printoptions():  # a page sets its own
        for cell in cells:
            run_cell(cell, namespace)


def run_cell(cell, namespace):
    options = re.match(r"---\n.*?\n---\n|(:.*\n)*", cell.text, re.DOTALL)[0]
    code = "\n" * (cell.line + options.count("\n")) + cell.text[len(options) :]
    fails = "raises-exception" in options
    expected = pytest.raises(Exception) if fails else contextlib.nullcontext()  # noqa: PT011
    with expected, contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, str(ROOT / cell.page), "exec"), namespace)


@pytest.fixture
def run_script(tmp_path):
    """A function that gives what commands print; all must succeed, and it runs them by bash."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")

    def run(script):
        for compiler in ("cc", "c++", "rustc"):
            if f"\n{compiler} " in f"\n{script}" and shutil.which(compiler) is None:
                pytest.skip(f"needs {compiler}")
        names = f'refseq2seq() {{ "{sys.executable}" -m refseq2seq "$@"; }}\n'
        names += f'python() {{ "{sys.executable}" "$@"; }}\n'
        command = ["bash", "-c", f"{names}set -euo pipefail\n{script}"]
        env = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C"}
        done = process(*command, cwd=tmp_path, env=env, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), f"{script}\n{done.stdout}"
        return done.stdout

    return run


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(where == "shell" for where, _ in grouped(page))]
)
def test_the_commands_of_a_page_run(page, run_script):
    found = grouped(page)
    following = [*found[1:], (None, None)]
    for (where, block), (then, output) in zip(found, following, strict=True):
        if where == "shell":
            commands = [c for c in commands_of(block) if not reason_not_to_run(c)]
            printed = [run_script(command) for command in commands]
            if then == "output" and commands:
                expected = textwrap.dedent(output.text)
                assert "".join(printed).rstrip() == expected.rstrip()


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for where, block in grouped(page) if where == "console"],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_a_console_block_prints_what_the_page_says(block, run_script):
    text = block.text + "\n"
    commands = re.findall(r"^\$ (.*\n(?:> .*\n)*)", text, re.MULTILINE)
    script = "".join(command.replace("\n> ", "\n") for command in commands)
    said = re.sub(r"^(\$|>) .*\n", "", text, flags=re.MULTILINE)
    assert without_rounding(run_script(script)) == without_rounding(said)


def without_rounding(report):
    """The lines without multiples of spreads, which depend on the processor's products.

    They are sorted, because the report sorts elements by these multiples.
    """
    lines = sorted(report.splitlines())
    return [re.sub(r"\d[\d.e+]*", "#", line) if "spreads" in line else line for line in lines]


OF_OTHERS = {
    "docs/conventions.md": {"encoder_hidden_states", "seq_len"},  # Hugging Face's, x-transformers'
    "docs/performance.md": {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"},  # of the C library
    "docs/speech.md": {"condition_on_previous_text"},  # openai/whisper's
    "docs/sources.md": {"inputs_embeds"},  # Hugging Face's
    "docs/scale.md": {"map_batches", "preserve_order"},  # Ray's
}


@pytest.mark.parametrize("page", PAGES)
def test_names_in_sentences_exist(page):
    """A name with an underscore stands in the package, the tests or the page's own code."""
    text = read(page)
    code = "".join(re.findall(r"```.*?```", text, re.DOTALL))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    named = {name for span in spans for name in re.findall(r"\b(?!\d)\w*_\w*", span)}
    known = set(re.findall(r"\w+", SOURCES + code)) | OF_OTHERS.get(page, set())
    assert named - known == set()
