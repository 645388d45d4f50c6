"""The command line on a terminal: what is typed, shown and interrupted."""

import codecs
import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty", reason="needs terminals of Unix")
termios = pytest.importorskip("termios", reason="needs terminals of Unix")

COUNT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from refseq2seq import cli
from refseq2seq.cli import lines, progress
plain = lines.generate
def counted(model, source, **options):
    with open(sys.argv[1], "a") as file:
        print(len(source), file=file)
    return plain(model, source, **options)
lines.generate = counted
progress.EVERY = 0.0
if sys.argv[2]:
    sys.modules[sys.argv[2]] = None
sys.exit(cli.main(["generate", *sys.argv[3:]]))
"""


class Terminal:
    """A command on a terminal that shows what is typed and what the program prints."""

    def __init__(self, *arguments, without="", log=os.devnull, **streams):
        self.descriptor, self.end = pty.openpty()
        termios.tcsetwinsize(self.end, (24, 80))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.end) | streams
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNT, str(log), without, *map(str, arguments)],
            **streams,
            env={name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"},
            start_new_session=True,
        )
        self.seen, self.decoder = "", codecs.getincrementaldecoder("utf-8")()

    def type(self, text):
        os.write(self.descriptor, text.encode())

    def wait_for(self, text, seconds=30):
        """Until the terminal shows a text; fails if it does not."""
        until = time.monotonic() + seconds
        while text not in self.seen:
            left = until - time.monotonic()
            assert left > 0, f"{text!r} is not shown: {self.seen!r}"
            self._look(min(left, 0.1))
        self.seen = self.seen.split(text, 1)[1]

    def ends(self, seconds=30):
        """The exit status, and the rest of what is shown."""
        status = self.process.wait(timeout=seconds)
        while self._look(0.05):
            pass
        os.close(self.descriptor)
        os.close(self.end)
        return status, self.seen.replace("\r\n", "\n")

    def _look(self, seconds):
        if not select.select([self.descriptor], [], [], seconds)[0]:
            return False
        self.seen += self.decoder.decode(os.read(self.descriptor, 4096))
        return True


def test_a_line_is_answered_before_the_next_is_typed():
    terminal = Terminal()
    terminal.type("cat\n")
    terminal.wait_for("K AE T\r\n")
    terminal.type("na_ve\b\b\b\b\b\x15dog\n")  # Ctrl-U takes it back
    terminal.wait_for("D AO G\r\n")
    terminal.type("\n")
    terminal.type("bird\n")
    terminal.wait_for("B ER D\r\n")
    terminal.type("\x04")  # Ctrl-D
    status, rest = terminal.ends()
    assert (status, rest.replace("^D\b\b", "")) == (0, "")


def test_skip_errors_goes_on_after_a_bad_line_that_is_typed():
    terminal = Terminal("--skip-errors")
    terminal.type("na_ve\n")
    terminal.wait_for("refseq2seq: line 1: 'na_ve' has unknown symbols: '_'.")
    terminal.type("cat\n")
    terminal.wait_for("K AE T\r\n")
    terminal.type("\x04")
    assert terminal.ends()[0] == 3


@pytest.mark.parametrize("without", ["", "tqdm"])
def test_no_progress_is_shown_for_typed_lines(without, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        terminal = Terminal(stdout=file, without=without)
        terminal.type("cat\n")
        until = time.monotonic() + 30
        while not (tmp_path / "out").read_bytes() and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / "out").read_bytes() == b"K AE T\n"
        time.sleep(0 if without else 1.1)  # after which tqdm would draw
        terminal.type("dog\n\x04")
        status, shown = terminal.ends()
    assert status == 0
    assert (tmp_path / "out").read_bytes() == b"K AE T\nD AO G\n"
    assert shown.replace("^D\b\b", "") == "cat\ndog\n"


def test_a_file_or_arguments_are_answered_in_batches(tmp_path):
    (tmp_path / "words").write_text("cat\n" * 70)
    log = tmp_path / "sizes"
    for given in (["--input", tmp_path / "words"], ["cat"] * 70):
        log.unlink(missing_ok=True)
        with open(tmp_path / "out", "wb") as file:
            assert Terminal(*given, stdout=file, log=log, without="tqdm").ends()[0] == 0
        assert (tmp_path / "out").read_bytes() == b"K AE T\n" * 70
        assert log.read_text().split() == ["32", "32", "6"]


def test_typed_lines_are_answered_one_by_one_and_a_pipe_in_batches(tmp_path):
    log = tmp_path / "sizes"
    terminal = Terminal(log=log)
    terminal.type("cat\ndog\n\x04")
    assert terminal.ends()[0] == 0
    assert log.read_text().split() == ["1", "1"]
    log.unlink()
    (tmp_path / "words").write_text("cat\n" * 40)
    with open(tmp_path / "words", "rb") as words:  # `generate < words`, answers on the terminal
        assert Terminal(stdin=words, log=log).ends() == (0, "K AE T\n" * 40)
    assert log.read_text().split() == ["32", "8"]


@pytest.mark.parametrize("without", ["", "tqdm"])
def test_bulk_shows_its_progress(without, tmp_path):
    if not without:
        pytest.importorskip("tqdm", reason="needs the cli extra")
    n = 120 if without else 1500  # tqdm's bar comes after a second
    (tmp_path / "words").write_text("consciousness\n" * n)
    files = ["--input", tmp_path / "words", "--output", tmp_path / "out"]
    terminal = Terminal(*files, "--batch-size", 4, without=without, stdin=subprocess.DEVNULL)
    terminal.wait_for(" of 120 lines done" if without else "/1500 [")
    assert terminal.ends()[0] == 0
    assert len((tmp_path / "out").read_text().splitlines()) == n


def test_progress_is_shown_on_a_terminal_only(tmp_path):
    (tmp_path / "words").write_text("cat\n" * 40)
    files = ["--input", tmp_path / "words", "--output", tmp_path / "out"]
    with open(tmp_path / "errors", "wb") as file:
        assert Terminal(*files, stderr=file, without="tqdm").ends() == (0, "")
    assert (tmp_path / "errors").read_bytes() == b""


@pytest.fixture
def bulk(tmp_path):
    """A run of 160 lines, of which it has told the first that are done; and its arguments."""
    (tmp_path / "words").write_text("consciousness\n" * 160)
    files = ["--input", tmp_path / "words", "--output", tmp_path / "out", "--window", 64]
    terminal = Terminal(*files, "--batch-size", 4, without="tqdm")
    terminal.wait_for("lines done")
    return terminal, [*files, "--batch-size", 4]


def test_ctrl_c_ends_a_run_that_goes_on_later(bulk, tmp_path):
    terminal, arguments = bulk
    terminal.process.send_signal(signal.SIGINT)
    status, shown = terminal.ends()
    assert (status, "Traceback" in shown) == (130, False)
    assert (tmp_path / "out.run").is_dir()
    assert not (tmp_path / "out").exists()
    assert Terminal(*arguments).ends()[0] == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 160
    assert not (tmp_path / "out.run").exists()


def test_a_terminal_that_goes_away_leaves_a_run_that_goes_on_later(bulk, tmp_path):
    terminal, arguments = bulk
    os.close(terminal.descriptor)
    os.close(terminal.end)
    with contextlib.suppress(ProcessLookupError):
        terminal.process.send_signal(signal.SIGHUP)
    terminal.process.wait(timeout=30)
    if not (tmp_path / "out").exists():
        assert Terminal(*arguments).ends()[0] == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 160
