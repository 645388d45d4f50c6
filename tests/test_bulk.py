"""`refseq2seq generate --input --output`: no line is lost or answered twice, even when killed."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from arrangements import small_x_transformers, vocabulary
from command_line import assert_refused, in_process, process

import refseq2seq as rs
from refseq2seq.cli import bulk, journal, lines, options

LETTERS = vocabulary(["<pad>", "<s>", "</s>", *"abcdefgh"], special=("<pad>", "<s>", "</s>"))
CONFIG = small_x_transformers(11, (11, 11), (23, 13), (1, 2), n_heads=2, d_k=5)
MODEL = dataclasses.replace(
    rs.Model.random(CONFIG, 3, "float64"), source_vocabulary=LETTERS, target_vocabulary=LETTERS
)
SAMPLING = ["--temperature", "1.2", "--top-k", "5", "--seed", "7", "--num-samples", "2"]
KILLS = int(os.environ.get("REFSEQ2SEQ_KILLS", "3"))
SECOND_KILLS = os.environ.get("REFSEQ2SEQ_SECOND_KILLS", "0").split()
"""How many kills at random moments there are, and which steps a restart is killed before: 0 for
none. Say 50, and "0 1 3 9 17", for what takes minutes.
"""

on_unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a Unix")


def words(n, seed=0):
    """Words of one to 23 letters."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh", k=rng.randint(1, 23))) for _ in range(n)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.npz"
    rs.save(MODEL, path)
    return str(path)


@pytest.fixture
def call(capsys, checkpoint):
    return in_process(capsys, "generate", "--model", checkpoint)


@pytest.fixture
def call_with(call, monkeypatch):
    """The same with a model that is no file."""

    def command(model, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(options, "load", lambda path: model)
            return call(*arguments)

    return command


@pytest.fixture
def corpus(tmp_path):
    """A file of nine lines."""
    return write(tmp_path / "in.txt", words(9))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def given(corpus, output):
    return ["--input", corpus, "--output", output]


def write(path, lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def assert_complete(output, n=9):
    """Each line has its answer, and nothing else is left beside the input."""
    assert (len(read(output)), names(output.parent)) == (n, ["in.txt", output.name])


def kept(output):
    """How many answers the journal of an output has."""
    database = sqlite3.connect(output.with_name("out.jsonl.run") / "journal.sqlite")
    (n,) = database.execute("SELECT count(*) FROM answers").fetchone()
    database.close()
    return n


def before_answers(patch, act):
    """Let something happen while a run computes."""

    def answers(*arguments):
        act()
        return lines.answers(*arguments)

    patch.setattr(bulk, "answers", answers)


@pytest.mark.parametrize(
    ("method", "batch_size", "window"),
    [([], 4, 9), (["--beams", "2", "--n-best", "2"], 4, 9)]
    + [(SAMPLING, *sizes) for sizes in ((4, 9), (1, 3), (64, 2048))],
)
def test_output_is_that_of_generate(method, batch_size, window, corpus, given, output, call):
    write(corpus, words(16))
    sizes = ["--batch-size", batch_size, "--window", window]
    assert call(*given, *method, *sizes) == (0, "", "")
    plain = call("--input", corpus, "--json", *method, "--batch-size", 1)[1].splitlines()
    for line, other in zip(read(output), map(json.loads, plain), strict=True):
        assert line["input"] == other["input"]
        for a, b in zip(line["samples"], other["samples"], strict=True):
            assert a["tokens"] == b["tokens"]
            np.testing.assert_allclose(a["log_probs"], b["log_probs"], rtol=1e-9)
    assert_complete(output, 16)


def test_a_batch_is_of_lines_of_similar_length(corpus, given, call, monkeypatch):
    batches, plain = [], lines._outputs

    def outputs(model, source, numbers, method):
        batches.append([len(ids) for ids in source])
        return plain(model, source, numbers, method)

    monkeypatch.setattr(lines, "_outputs", outputs)
    write(corpus, words(60))
    call(*given, "--batch-size", 10, "--window", 30)
    lengths = [len(word) for word in words(60)]
    expected = [sorted(lengths[at : at + 30], reverse=True) for at in (0, 30)]
    assert [[n for b in batches[at : at + 3] for n in b] for at in (0, 3)] == expected
    assert [len(batch) for batch in batches] == [10] * 6


# Kills


def start(checkpoint, corpus, output):
    files = ["--model", checkpoint, "--input", str(corpus), "--output", str(output)]
    sizes = ["--batch-size", "8", "--window", "24"]
    command = [sys.executable, "-m", "refseq2seq", "generate", *files, *sizes, *SAMPLING]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


@on_unix
def test_runs_killed_at_random_moments_end_with_the_same_bytes(tmp_path, output, checkpoint):
    """kill -9 at a random moment of a run, again and again, until one has ended by itself."""
    corpus, whole, rng = tmp_path / "in.txt", tmp_path / "whole.jsonl", random.Random(5)
    write(corpus, words(300))
    assert start(checkpoint, corpus, whole).communicate(timeout=60) == (None, b"")
    path, kills, runs = tmp_path / "out.jsonl.run" / "journal.sqlite", 0, 0
    while kills < KILLS or runs == 0:
        process = start(checkpoint, corpus, output)
        size = path.stat().st_size if path.exists() else 0
        if kills < KILLS:
            while process.poll() is None and not (path.exists() and path.stat().st_size > size):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode in (0, -signal.SIGKILL)
        kills += process.returncode != 0
        if output.exists():  # whole, whatever the killed one has yet to delete
            assert output.read_bytes() == whole.read_bytes()
            if process.returncode:
                start(checkpoint, corpus, output).communicate(timeout=60)
            assert names(tmp_path) == ["in.txt", "out.jsonl", "whole.jsonl"]
            assert output.read_bytes() == whole.read_bytes()
            output.unlink()
            runs += 1


@on_unix
def test_runs_killed_before_each_step_end_with_the_same_bytes(tmp_path, checkpoint):
    write(tmp_path / "in.txt", words(5))
    script = Path(__file__).parent / "helpers" / "killing.py"
    found = process(sys.executable, script, checkpoint, tmp_path, *SECOND_KILLS, timeout=300)
    assert (found.returncode, found.stderr) == (0, "")
    tries = [json.loads(line) for line in found.stdout.splitlines()]
    told = " ".join(one["step"] for one in tries)
    for step in (
        "os.mkdir", "sqlite3.connect", "INSERT INTO answers", "COMMIT", "os.link", "open answers",
        "os.remove answers", "os.remove journal", "os.rmdir",
    ):  # fmt: skip
        assert step in told
    assert len(tries) >= 20
    for one in tries:
        assert one["killed"][0] == -signal.SIGKILL, one
        assert one["same"], one
        assert one["files"] == ["errors", "out.jsonl"], one
        if one["status"]:  # it had ended, all but for what it leaves
            assert one["complete"], one
            assert "out.jsonl already exists" in one["errors"]


class Killed(BaseException):
    """In the place of SIGKILL: no handler of errors stops it."""


@pytest.fixture
def begun(corpus, given, output, call, monkeypatch):
    """The arguments of a run of 20 lines that was ended after its first window of 6.

    tests/test_terminal.py ends one by Ctrl-C.
    """
    write(corpus, words(20))
    given = [*given, "--window", 6, *SAMPLING]

    def add(run, first, answers):
        if first:
            raise Killed
        plain(run, first, answers)

    plain = journal.Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", add)
        with pytest.raises(Killed):
            call(*given)
    assert kept(output) == 6
    return given


def interrupt(*_arguments):
    raise KeyboardInterrupt


# The request of a run


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--window", "7"], ["--window", "was 6, now it is 7"]),
        (["--temperature", "1.3"], ["--temperature", "was 1.2, now it is 1.3"]),
        (["--seed", "8"], ["--seed"]),
        (["--batch-size", "31"], ["--batch-size"]),
        (["--dtype", "float32"], ["--dtype"]),
        (["--no-repeat-ngram", "2"], ["--no-repeat-ngram", "was null, now it is 2"]),
        (["--threads", "1"], ["--threads"]),
    ],
)
def test_another_request_is_refused(changed, named, begun, output, call):
    assert_refused(call(*begun, *changed), *named, "out.jsonl.run")
    assert kept(output) == 6
    assert call(*begun)[0] == 0


def test_another_input_model_or_version_is_refused(begun, corpus, tmp_path, call, monkeypatch):
    whole = corpus.read_bytes()
    corpus.write_bytes(whole + b"a\n")
    assert_refused(call(*begun), "the input")
    corpus.write_bytes(whole)
    other = dataclasses.replace(MODEL, params=rs.random_params(CONFIG, 4, "float64"))
    rs.save(other, tmp_path / "other.npz")
    assert_refused(call(*begun, "--model", tmp_path / "other.npz"), "the model")
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "__version__", "9.9")
        assert_refused(call(*begun), "the version of refseq2seq", "9.9")
    assert call(*begun)[0] == 0


@pytest.mark.parametrize("which", ["source_vocabulary", "target_vocabulary"])
@pytest.mark.parametrize("changed", [{"separator": "-"}, {"replacements": (("a", "b"),)}])
def test_another_vocabulary_is_another_model(which, changed, begun, call, call_with):
    """All that a text depends on: not the symbols alone."""
    model = dataclasses.replace(MODEL, **{which: dataclasses.replace(LETTERS, **changed)})
    assert_refused(call_with(model, *begun), "the model")
    assert call(*begun)[0] == 0


def test_the_same_model_and_input_under_other_names_go_on(begun, tmp_path, checkpoint, call):
    shutil.copy(checkpoint, tmp_path / "copy.npz")
    (tmp_path / "in.txt").rename(tmp_path / "words.txt")
    renamed = ["--model", tmp_path / "copy.npz", "--input", tmp_path / "words.txt"]
    assert call(*begun, *renamed)[0] == 0


# Other files and processes


def other_tables(*columns):
    """An SQLite database of another program."""

    def create(path):
        database = sqlite3.connect(path)
        for table in columns:
            database.execute(f"CREATE TABLE {table} (word TEXT)")
        database.close()

    return create


OTHERS = {
    "an output": ("out.jsonl", lambda path: path.write_text("mine\n")),
    "a file for the run": ("out.jsonl.run", lambda path: path.write_text("mine\n")),
    "a directory": ("out.jsonl.run/answers.jsonl", lambda path: path.write_text("mine")),
    "no database": ("out.jsonl.run/journal.sqlite", lambda path: path.write_text("mine\n" * 300)),
    "other tables": ("out.jsonl.run/journal.sqlite", other_tables("request", "questions")),
    "other columns": ("out.jsonl.run/journal.sqlite", other_tables("request", "answers")),
}


@pytest.mark.parametrize(("name", "create"), OTHERS.values(), ids=OTHERS)
def test_files_of_another_program_are_kept(name, create, tmp_path, given, call):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    create(path)
    before = path.read_bytes()
    assert_refused(call(*given), name.removesuffix("/answers.jsonl"))
    assert path.read_bytes() == before


def test_an_output_that_appears_while_a_killed_run_waits_is_kept(begun, output, tmp_path, call):
    output.write_text("mine\n")
    assert_refused(call(*begun), output)
    assert output.read_text() == "mine\n"
    assert kept(output) == 6  # it is said before there is work
    output.rename(tmp_path / "mine")
    assert call(*begun) == (0, "", "")
    assert len(read(output)) == 20


@pytest.mark.parametrize("content", ["mine\n", ""])
def test_an_output_that_appears_during_a_run_is_kept(content, given, output, call, monkeypatch):
    with monkeypatch.context() as patch:
        before_answers(patch, lambda: output.write_text(content))
        assert_refused(call(*given, "--window", 4), output)
    assert (output.read_text(), kept(output)) == (content, 9)
    output.unlink()
    assert call(*given, "--window", 4) == (0, "", "")
    assert_complete(output)


def test_an_output_that_was_moved_away_is_not_written_to(
    tmp_path, given, output, call, monkeypatch
):
    """Killed after the link, before the export is deleted: both are one file."""
    link = os.link

    def linked(*paths):
        link(*paths)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", linked)
        with pytest.raises(Killed):
            call(*given)
    output.rename(tmp_path / "moved")
    (tmp_path / "moved").write_text("mine now\n")
    assert call(*given) == (0, "", "")
    assert (tmp_path / "moved").read_text() == "mine now\n"
    assert len(read(output)) == 9


@pytest.mark.parametrize("moment", ["answers", "link", "unlink"])
def test_a_second_process_writes_nothing(moment, given, output, call, monkeypatch):
    """While answers are found, between the export and its link, before the journal is deleted."""
    found, connect = [], sqlite3.connect
    place = {"answers": bulk, "link": os, "unlink": Path}[moment]
    plain = getattr(place, moment)

    def meanwhile(*arguments, **keywords):
        if moment != "unlink" or arguments[0].name == "journal.sqlite":
            patch.undo()
            monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
            found.append(call(*given))
        return plain(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(place, moment, meanwhile)
        assert call(*given) == (0, "", "")
    assert_refused(*found, "another process")
    assert_complete(output)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_journal_that_another_process_deleted_is_not_used(
    interrupted, given, output, call, monkeypatch
):
    """Two processes have opened it. The other then runs to its end, or is interrupted before it
    has stored its request; both ways it deletes the journal.
    """
    plain, found = journal._lock, []

    def lock(database):
        if not found:
            found.append(None)
            with monkeypatch.context() as patch:
                if interrupted:
                    patch.setattr(bulk, "_asked", interrupt)
                found.append(call(*given))
        plain(database)

    monkeypatch.setattr(journal, "_lock", lock)
    assert_refused(call(*given), *["another process"] * interrupted)
    assert found[1] == (130 if interrupted else 0, "", "")
    if interrupted:
        assert names(output.parent) == ["in.txt"]
        assert call(*given) == (0, "", "")
    assert_complete(output)


@on_unix
def test_of_two_processes_at_once_one_writes(corpus, output, checkpoint):
    write(corpus, words(60))
    both = [start(checkpoint, corpus, output) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert sorted(error.count("\n") for error in errors) == [0, 1]
    assert_complete(output, 60)


ONE_HOLDS = """
import os, sqlite3, sys, time
from refseq2seq.cli import journal
for i in range(int(sys.argv[2])):
    path, at, children = f"{sys.argv[1]}/{i}", time.time() + 0.01, []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            database = sqlite3.connect(path, timeout=0.1)
            while time.time() < at:
                pass
            try:
                journal._lock(database)
            except sqlite3.Error:
                os._exit(1)
            time.sleep(0.2)
            os._exit(0)
        children.append(child)
    print(sum(os.waitpid(child, 0)[1] == 0 for child in children))
"""


@on_unix
def test_of_processes_that_lock_a_journal_at_once_one_succeeds(tmp_path):
    times = max(5, KILLS * 4 - 7)
    found = process(sys.executable, "-c", ONE_HOLDS, tmp_path, times, timeout=300, check=True)
    assert set(found.stdout.split()) == {"1"}


@pytest.mark.parametrize("name", ["journal.sqlite", "answers.jsonl", "in/words.txt"])
def test_an_input_in_the_directory_of_the_run_is_refused(name, begun, tmp_path, output, call):
    path = tmp_path / "out.jsonl.run" / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        write(path, words(3))
    content = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for given in (path, tmp_path / "link"):
        assert_refused(call("--input", given, "--output", output), "--input", given)
    assert path.read_bytes() == content
    assert call(*begun)[0] == 0


@on_unix
@pytest.mark.parametrize("make", [os.mkfifo, None])
def test_an_input_that_is_a_pipe_or_missing_is_refused(make, corpus, given, call):
    corpus.unlink()
    if make:
        make(corpus)
    assert_refused(call(*given), *["--input"] * bool(make), corpus)
    assert names(corpus.parent) == ["in.txt"] * bool(make)


def test_an_input_that_changes_while_it_is_read_is_refused(
    corpus, given, output, call, monkeypatch
):
    with monkeypatch.context() as patch:
        before_answers(patch, lambda: corpus.write_bytes(corpus.read_bytes() + b"a\n"))
        assert_refused(call(*given, "--window", 9), corpus, "out.jsonl.run")
    assert not output.exists()
    shutil.rmtree(output.with_name("out.jsonl.run"))
    assert call(*given)[0] == 0


@pytest.mark.parametrize("name", ["out\nput.jsonl", " ", "ü'%20"])
def test_an_output_may_have_any_name(name, tmp_path, call):
    given = ["--input", write(tmp_path / f"{name}.txt", words(9)), "--output", tmp_path / name]
    assert call(*given) == (0, "", "")
    assert len(read(tmp_path / name)) == 9
    assert_refused(call(*given))


@pytest.mark.parametrize("place", [".", "missing/out", "in.txt/out", "directory", "in.txt"])
def test_an_output_that_cannot_be_written_is_refused(place, tmp_path, corpus, call):
    (tmp_path / "directory").mkdir()
    assert_refused(call("--input", corpus, "--output", tmp_path / place))
    assert names(tmp_path) == ["directory", "in.txt"]


@pytest.mark.parametrize("place", ["pipe", "/dev/null", "/"])
def test_an_output_that_is_no_file_is_refused(place, tmp_path, corpus, call):
    os.mkfifo(tmp_path / "pipe")
    output = tmp_path / place
    assert_refused(call("--input", corpus, "--output", output), "--output", output)


def test_a_link_as_output_is_followed(tmp_path, corpus, call):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/out")
    assert call("--input", corpus, "--output", tmp_path / "link") == (0, "", "")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == ["out"]


# Disks and operating systems


def fails(number):
    """A function of the system that raises this error."""

    def function(*_arguments):
        raise OSError(number, os.strerror(number))

    return function


@on_unix
@pytest.mark.parametrize("kib", [1, 40])
def test_a_full_disk_loses_no_answer_of_the_journal(kib, corpus, given, output, checkpoint, call):
    """A limit of the size of files, which the system enforces as a full disk is enforced."""
    write(corpus, words(120))
    given = [*given, "--window", "24", *SAMPLING]
    command = [sys.executable, "-m", "refseq2seq", "generate", "--model", checkpoint, *given]
    found = process("bash", "-c", f'ulimit -f {kib}; exec "$@"', "bash", *command)
    assert_refused((found.returncode, found.stdout, found.stderr), "journal.sqlite: ")
    if kib > 1:
        assert 0 < kept(output) < 120
    assert call(*given) == (0, "", "")
    assert [line["input"] for line in read(output)] == words(120)


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_disk_that_is_full_at_the_end_loses_nothing(step, given, output, call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails(errno.ENOSPC))
        patch.setattr(os, "rename", fails(errno.ENOSPC))
        assert_refused(call(*given), "No space left on device")
    assert (output.exists(), kept(output)) == (False, 9)
    assert call(*given) == (0, "", "")
    assert_complete(output)


def test_without_hard_links_the_output_is_renamed(given, output, call, monkeypatch):
    monkeypatch.setattr(os, "link", fails(errno.EPERM))
    assert call(*given) == (0, "", "")
    assert_complete(output)
    other = output.with_name("other")
    before_answers(monkeypatch, lambda: other.write_text("mine\n"))
    assert call(*given[:2], "--output", other)[0] == 1
    assert other.read_text() == "mine\n"


WITHOUT = """
import importlib, pkgutil, signal, sys
for name in ("fcntl", "termios", "tty", "pty", "resource", "pwd", "grp", "posix_ipc"):
    sys.modules[name] = None
for name in ("SIGPIPE", "SIGHUP", "SIGKILL", "SIGXFSZ", "SIGALRM"):
    delattr(signal, name)
import refseq2seq
from refseq2seq import cli
for module in pkgutil.walk_packages(refseq2seq.__path__, "refseq2seq."):
    if not module.name.endswith(("__main__", "x_transformers.module", ".plugin", ".strategies")):
        importlib.import_module(module.name)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_every_module_and_a_bulk_run_work_without_modules_of_unix(given, output, checkpoint):
    found = process(sys.executable, "-c", WITHOUT, "generate", "--model", checkpoint, *given)
    assert (found.returncode, found.stderr) == (0, "")
    assert_complete(output)


def test_a_system_that_deletes_no_open_file_deletes_the_journal_later(
    given, output, call, monkeypatch
):
    plain, refused = Path.unlink, []

    def unlink(path, **keywords):
        if path.name == "journal.sqlite" and not refused:
            refused.append(path)
            raise PermissionError
        plain(path, **keywords)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert call(*given) == (0, "", "")
    assert refused
    assert_complete(output)


# Lines without samples. tests/test_lines.py compares bulk with the other ways to give lines.


class Words:
    """A tokenizer that reads words: each is an id, and what is no id is left out."""

    definition = "words"
    symbols = LETTERS.symbols

    def encode(self, text):
        if "!" in text:
            raise ValueError("no exclamations")
        return [int(word) for word in text.split() if word.isdecimal()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_lines_without_tokens_have_an_error(corpus, given, output, call_with):
    content = ["3 4", "5 !", "6 11", "...", "7 \u2028 8", "3 " * 24]
    write(corpus, content)
    model = dataclasses.replace(MODEL, source_vocabulary=Words())
    status, out, err = call_with(model, *given, "--window", 4)
    assert (status, out, err.count("\n")) == (3, "", 1)
    assert "without samples: 4; the first is line 2" in err
    found = read(output)
    assert [line["input"] for line in found] == content
    errors = {1: "line 2: no exclamations", 2: "token id 11 at row 0, position 1", 3: "'...'"}
    errors[5] = "24 tokens"
    for i, line in enumerate(found):
        assert ("error" in line) == (i in errors)
        assert errors.get(i, "") in line.get("error", "")


def test_a_token_that_cannot_be_written_costs_its_line_only(corpus, given, output, call_with):
    """The model's table is longer than the vocabulary, as T5's is."""
    short = dataclasses.replace(LETTERS, symbols=LETTERS.symbols[:-2])
    model = dataclasses.replace(MODEL, target_vocabulary=short)
    write(corpus, words(40))
    assert call_with(model, *given, "--temperature", "1")[0] == 3
    found = read(output)
    assert {"ids 0 to 8" in line.get("error", "") for line in found} == {0, 1}
    assert all(("error" in line) != ("samples" in line) for line in found)


def test_logits_that_are_nan_cost_their_line_only(corpus, given, output, call_with):
    encoder = MODEL.params.encoder
    embedding = encoder.embedding.copy()
    embedding[LETTERS.encode("h")[0]] = np.nan
    broken = dataclasses.replace(encoder, embedding=embedding)
    model = dataclasses.replace(MODEL, params=dataclasses.replace(MODEL.params, encoder=broken))
    write(corpus, ["abc", "bah", "cde", "h"])
    status, _, err = call_with(model, *given)
    assert status == 3
    assert "without samples: 2; the first is line 2" in err
    found = read(output)
    assert ["samples" in line for line in found] == [True, False, True, False]
    assert found[3]["error"].startswith("line 4: the model's logits of row 0 in step 0 are NaN")
    status, out, err = call_with(model, "abc", "bah", "cde", "--steps", "--skip-errors")
    assert (status, out.count("sum"), err.count("\n")) == (3, 2, 1)
    assert err.startswith("refseq2seq: line 2: the model's logits")


def test_a_line_that_does_not_fit_in_memory_costs_itself_only(
    corpus, given, output, call, monkeypatch
):
    plain = lines.generate

    def generate(model, source, **keywords):
        if any(len(ids) > 15 for ids in source):
            raise MemoryError
        return plain(model, source, **keywords)

    monkeypatch.setattr(lines, "generate", generate)
    write(corpus, ["a" * 20, "abc"])
    assert call(*given)[0] == 3
    first, second = read(output)
    assert first == {"input": "a" * 20, "error": "line 1: out of memory"}
    assert len(second["samples"]) == 1


def test_memory_does_not_grow_with_the_input(corpus, tmp_path, call, monkeypatch):
    """All but the model, which sees one batch at a time: its answers are made up here."""
    answer = [{"text": "a" * 1000}]
    monkeypatch.setattr(lines, "_outputs", lambda model, source, *rest: [answer] * len(source))
    peaks = []
    for n in (500, 5000):
        write(corpus, words(50) * (n // 50))
        tracemalloc.start()
        assert call("--input", corpus, "--output", tmp_path / f"{n}", "--window", 100)[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "5000").stat().st_size > 5e6
    assert peaks[1] < peaks[0] + 2**20  # a file is read that much at a time
