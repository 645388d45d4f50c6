"""One definition of a line, whichever way it comes: arguments, a pipe, a file, in bulk, pieces."""

import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import any_text
from hypothesis import example, given
from hypothesis import strategies as st

from refseq2seq import cli
from refseq2seq.cli import options
from refseq2seq.cli.lines import Line, read_lines

MODEL = any_text()
METHOD = ["--temperature", "2", "--seed", "5", "--max-new-tokens", "3", "--batch-size", "2"]


def run(arguments, content=b""):
    """Status, output and errors of the command line in this process, and its standard input."""
    out, err = io.StringIO(), io.StringIO()
    stdin, sys.stdin = sys.stdin, SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    load, options.load = options.load, lambda path: MODEL
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main(["generate", *METHOD, *arguments])
    finally:
        sys.stdin, options.load = stdin, load
    return status, out.getvalue(), err.getvalue()


def by_all_ways(content):
    """What each way makes of some bytes: (name, answers, the lines that have none)."""
    with tempfile.TemporaryDirectory() as directory:
        path, output = Path(directory) / "in", Path(directory) / "out"
        path.write_bytes(content)
        ways = {
            "pipe": run(["--json", "--skip-errors"], content),
            "file": run(["--json", "--skip-errors", "--input", str(path)]),
            "to standard output": run(["--output", "-", "--skip-errors", "--input", str(path)]),
        }
        if content.endswith(b"\n") and b"\0" not in content:
            text = os.fsdecode(content[:-1])
            ways["an argument"] = run(["--json", "--skip-errors", "--", text])
            several = text.split("\n")
            ways["arguments"] = run(["--json", "--skip-errors", "--", *several])
        for window in (1, 3):
            output.unlink(missing_ok=True)
            given = ["--input", str(path), "--output", str(output), "--window", str(window)]
            status, out, _ = run(given)
            assert out == ""
            ways[f"bulk {window}"] = status, output.read_bytes().decode(), None
    for name, (status, out, err) in ways.items():
        found = [json.loads(line) for line in out.split("\n")[:-1]]
        wrong = [line["error"] for line in found if "error" in line]
        assert status == (3 if wrong else 0), name
        assert all(("error" in line) != ("samples" in line) for line in found)
        if err is not None:
            assert err == "".join(f"refseq2seq: {error}\n" for error in wrong), name
        yield name, found


def without_rounding(found):
    """A batch changes the last digits of log-probabilities."""
    for line in found:
        for sample in line.get("samples", ()):
            sample["log_probs"] = [round(x, 9) for x in sample["log_probs"]]
    return found


PARTS = st.sampled_from(
    [b"a", b"bc", b"x", b" ", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xa9"]
    + [s.encode() for s in ("é", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\0", "\t")]
)


@given(st.lists(PARTS, max_size=12).map(b"".join))
@example(b"\xef\xbb\xbf")
@example(b"\xef\xbb\xbf\r\n\xef\xbb\xbfa\n")
@example(b"a\r\r\nb\r")
@example(b"")
@example(b"\n\n")
@example(b', "error": "y')
@example("a\u2028b\x0cc\rd\n".encode())
def test_every_way_gives_the_same_answers(content):
    first, *others = by_all_ways(content)
    for name, found in others:
        assert without_rounding(found) == without_rounding(first[1]), name
    texts = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    texts = [text.removesuffix(b"\r") for text in texts[:-1]] + [x for x in texts[-1:] if x]
    if content == b"\xef\xbb\xbf":
        texts = [b""]
    assert [line["input"] for line in first[1]] == [text.decode(errors="replace") for text in texts]
    for number, (line, text) in enumerate(zip(first[1], texts, strict=True), start=1):
        if "error" in line:
            assert line["error"].startswith(f"line {number}: ")
        try:
            text.decode()
        except UnicodeDecodeError:
            assert line["error"].startswith(f"line {number}: not UTF-8: ")


@given(st.lists(PARTS, max_size=12).map(b"".join), st.integers(0, 5))
def test_a_piece_has_the_lines_of_the_whole(content, cut):
    """As docs/scale/many_machines.py cuts: before a line, whose number it tells."""
    whole = list(read_lines(io.BytesIO(content)))
    start = sum(len(line) for line in io.BytesIO(content).readlines()[:cut])
    piece = list(read_lines(io.BytesIO(content[start:]), first=min(cut, len(whole))))
    assert piece == whole[cut:]


def test_read_lines_by_an_example():
    content = b"\xef\xbb\xbfcat\r\n\xef\xbb\xbfa\rb\r\r\n\n\xffz\n "
    found = list(read_lines(io.BytesIO(content)))
    assert [line.number for line in found] == [0, 1, 2, 3, 4]
    assert [line.text for line in found] == ["cat", "\ufeffa\rb\r", "", "\ufffdz", " "]
    assert [line.error is None for line in found] == [True, True, True, False, True]
    assert found[0] == Line(0, "cat")


@pytest.mark.parametrize("text", ["", "\r", "\ufeff"])
def test_an_empty_argument_is_an_empty_line(text):
    assert run(["--json", "--", text]) == (0, '{"input": "", "samples": []}\n', "")
