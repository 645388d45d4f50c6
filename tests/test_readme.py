"""What the README shows of the source is the source, and its line counts are right.

python tests/test_readme.py        writes both anew
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = re.compile(r"(<!-- from (\S+): (.+?) -->\n```python\n)(.*?)(```)", re.DOTALL)
COUNTED = re.compile(r"(\[`(\S+)`\]\(refseq2seq/\2\) \| )(\d+)( \|)")


def code(path, names):
    """Functions of a file as they stand there, without their docstrings."""
    source = (ROOT / path).read_text(encoding="utf-8")
    lines, found = source.splitlines(), []
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef) and function.name in names:
            said = function.body[0]
            start, end = function.lineno - 1, function.end_lineno
            if ast.get_docstring(function) is not None:
                found.append(lines[start : said.lineno - 1] + lines[said.end_lineno : end])
            else:
                found.append(lines[start:end])
    assert len(found) == len(names)
    shown = "\n\n\n".join("\n".join(part).replace("\n\n\n", "\n\n") for part in found)
    return re.sub("  # type: ignore.*", "", shown) + "\n"


def refreshed(text):
    """The README with its code and its counts as the source has them now."""
    text = SHOWN.sub(lambda m: m[1] + code(m[2], m[3].split(" and ")) + m[5], text)
    return COUNTED.sub(lambda m: m[1] + str(n_lines(m[2])) + m[4], text)


def n_lines(name):
    return len((ROOT / "refseq2seq" / name).read_text(encoding="utf-8").splitlines())


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_and_counts_are_those_of_the_source():
    assert len(SHOWN.findall(readme())) == 2
    assert len(COUNTED.findall(readme())) == 14
    assert refreshed(readme()) == readme()


def test_every_file_of_the_reading_order_is_there_once():
    names = [match[1] for match in COUNTED.findall(readme())]
    assert len(set(names)) == len(names)


def test_ci_runs_the_commands_that_set_up_as_they_stand_here():
    """Python's -m pip comes first in each; the lines are shell commands, not code."""
    commands = re.findall(r"^    (python -m pip .*)$", readme(), re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(commands) == 3
    assert [command for command in commands if command not in script] == []


def test_a_change_of_the_source_would_be_seen():
    stale = readme().replace("normalize(", "normalise(", 1)
    assert stale != readme()
    assert refreshed(stale) == readme()


if __name__ == "__main__":
    (ROOT / "README.md").write_text(refreshed(readme()), encoding="utf-8")
