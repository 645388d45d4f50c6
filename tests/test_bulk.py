"""`refseq2seq generate --input --output`: nothing lost and nothing twice, often as it is killed."""

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

import refseq2seq as rs
from refseq2seq import cli
from refseq2seq.cli import bulk, journal, lines, options

LETTERS = rs.Vocabulary(
    symbols=("<pad>", "<s>", "</s>", *"abcdefgh"),
    separator="",
    special=("<pad>", "<s>", "</s>"),
    replacements=(),
)
CONFIG = rs.presets.x_transformers(
    d_model=11,
    source_vocab_size=len(LETTERS),
    target_vocab_size=len(LETTERS),
    n_source_positions=23,
    n_target_positions=13,
    encoder_layers=1,
    decoder_layers=2,
    n_heads=2,
    d_k=5,
    decoder_start_id=1,
    eos_ids=(2,),
    pad_id=0,
)
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
    def command(*arguments):
        status = cli.main(["generate", "--model", checkpoint, *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


@pytest.fixture
def call_with(call, monkeypatch):
    """The same with a model that is no file."""

    def command(model, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(options, "load", lambda path: model)
            return call(*arguments)

    return command


def write(path, lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("method", [[], SAMPLING, ["--beams", "2", "--n-best", "2"]])
def test_the_lines_are_those_of_generate_in_their_order(method, tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", words(15)), tmp_path / "out.jsonl"
    sizes = ["--batch-size", 4, "--window", 9]
    assert call("--input", corpus, "--output", output, *method, *sizes) == (0, "", "")
    plain = call("--input", corpus, "--json", *method, "--batch-size", 1)[1].splitlines()
    for line, other in zip(read(output), map(json.loads, plain), strict=True):
        assert line["input"] == other["input"]
        for a, b in zip(line["samples"], other["samples"], strict=True):
            assert a["tokens"] == b["tokens"]
            np.testing.assert_allclose(a["log_probs"], b["log_probs"], rtol=1e-9)
    assert names(tmp_path) == ["in.txt", "out.jsonl"]


@pytest.mark.parametrize(("batch_size", "window"), [(1, 3), (64, 2048)])
def test_batches_and_windows_change_no_sample(batch_size, window, tmp_path, call):
    corpus = write(tmp_path / "in.txt", words(16))
    found = []
    for i, sizes in enumerate([(5, 10), (batch_size, window)]):
        given = [*SAMPLING, "--batch-size", sizes[0], "--window", sizes[1]]
        call("--input", corpus, "--output", tmp_path / str(i), *given)
        found.append([[s["tokens"] for s in line["samples"]] for line in read(tmp_path / str(i))])
    assert found[0] == found[1]


def test_a_batch_is_of_lines_of_similar_length(tmp_path, call, monkeypatch):
    batches, plain = [], lines._outputs

    def outputs(model, source, numbers, method):
        batches.append([len(ids) for ids in source])
        return plain(model, source, numbers, method)

    monkeypatch.setattr(lines, "_outputs", outputs)
    corpus = write(tmp_path / "in.txt", words(60))
    sizes = ["--batch-size", 10, "--window", 30]
    call("--input", corpus, "--output", tmp_path / "out.jsonl", *sizes)
    lengths = [len(word) for word in words(60)]
    expected = [sorted(lengths[at : at + 30], reverse=True) for at in (0, 30)]
    assert [[n for b in batches[at : at + 3] for n in b] for at in (0, 3)] == expected
    assert [len(batch) for batch in batches] == [10] * 6


# Killed


def start(checkpoint, corpus, output, *extra):
    files = ["--model", checkpoint, "--input", str(corpus), "--output", str(output)]
    sizes = ["--batch-size", "8", "--window", "24"]
    return subprocess.Popen(
        [sys.executable, "-m", "refseq2seq", "generate", *files, *sizes, *SAMPLING, *extra],
        stderr=subprocess.PIPE,
    )


@on_unix
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, checkpoint):
    """kill -9 at a random moment of a run, again and again, until one has ended by itself."""
    corpus, rng = write(tmp_path / "in.txt", words(300)), random.Random(5)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
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
def test_killed_before_each_step_it_ends_with_the_same_bytes(tmp_path, checkpoint):
    write(tmp_path / "in.txt", words(5))
    script = Path(__file__).parent / "helpers" / "killing.py"
    command = [sys.executable, str(script), checkpoint, str(tmp_path), *SECOND_KILLS]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    tries = [json.loads(line) for line in found.stdout.splitlines()]
    told = " ".join(one["step"] for one in tries)
    for step in ("os.mkdir", "sqlite3.connect", "INSERT INTO answers", "COMMIT", "os.link"):
        assert step in told
    for step in ("open answers", "os.remove answers", "os.remove journal", "os.rmdir"):
        assert step in told
    assert len(tries) >= 20
    for one in tries:
        assert one["killed"][0] == -signal.SIGKILL, one
        assert one["same"], one
        assert one["files"] == ["errors", "out.jsonl"], one
        if one["status"]:  # it had ended, all but for what it leaves
            assert one["complete"], one
            assert one["errors"].endswith(
                "out.jsonl already exists: move it away, or choose another output\n"
            )


class Killed(BaseException):
    pass


@pytest.fixture
def begun(tmp_path, call, monkeypatch):
    """A run that was ended after its first window, and what it was given."""
    corpus = write(tmp_path / "in.txt", words(20))
    given = ["--input", corpus, "--output", tmp_path / "out.jsonl", "--window", 6, *SAMPLING]

    def add(run, first, answers):
        if first:
            raise Killed
        plain(run, first, answers)

    plain = journal.Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", add)
        with pytest.raises(Killed):
            call(*given)
    assert kept(tmp_path) == 6
    return given


def kept(directory):
    """How many answers the journal of out.jsonl has."""
    database = sqlite3.connect(directory / "out.jsonl.run" / "journal.sqlite")
    (n,) = database.execute("SELECT count(*) FROM answers").fetchone()
    database.close()
    return n


def test_interrupted_it_says_so_by_its_status_and_goes_on_later(begun, tmp_path, call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "answers", interrupt)
        assert call(*begun) == (130, "", "")
    assert kept(tmp_path) == 6
    assert call(*begun) == (0, "", "")
    assert len(read(tmp_path / "out.jsonl")) == 20


def interrupt(*_arguments):
    raise KeyboardInterrupt


# What a run is


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--window", "7"], "--window differs from"),
        (["--temperature", "1.3"], "it was 1.2, now it is 1.3."),
        (["--seed", "8"], "--seed differs from"),
        (["--batch-size", "31"], "--batch-size differs from"),
        (["--dtype", "float32"], "the model differs from"),
        (["--no-repeat-ngram", "2"], "it was null, now it is 2."),
        (["--threads", "1"], "--threads differs from"),
    ],
)
def test_another_request_is_refused_by_name(changed, message, begun, tmp_path, call):
    status, out, err = call(*begun, *changed)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert "remove out.jsonl.run to start over" in err
    assert kept(tmp_path) == 6
    assert call(*begun)[0] == 0


def test_another_input_model_or_version_is_refused_by_name(begun, tmp_path, call, monkeypatch):
    corpus = tmp_path / "in.txt"
    whole = corpus.read_bytes()
    corpus.write_bytes(whole + b"a\n")
    assert "the input differs from" in call(*begun)[2]
    corpus.write_bytes(whole)
    other = dataclasses.replace(MODEL, params=rs.random_params(CONFIG, 4, "float64"))
    rs.save(other, tmp_path / "other.npz")
    assert "the model differs from" in call(*begun, "--model", tmp_path / "other.npz")[2]
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "__version__", "9.9")
        assert "the version of refseq2seq differs from" in call(*begun)[2]
    assert call(*begun)[0] == 0


@pytest.mark.parametrize("which", ["source_vocabulary", "target_vocabulary"])
@pytest.mark.parametrize("changed", [{"separator": "-"}, {"replacements": (("a", "b"),)}])
def test_another_vocabulary_is_another_model(which, changed, begun, call, call_with):
    """All that a text depends on: not the symbols alone."""
    model = dataclasses.replace(MODEL, **{which: dataclasses.replace(LETTERS, **changed)})
    status, _, err = call_with(model, *begun)
    assert (status, err.count("\n")) == (1, 1)
    assert "the model differs from" in err
    assert call(*begun)[0] == 0


def test_the_same_model_and_input_under_other_names_go_on(begun, tmp_path, checkpoint, call):
    shutil.copy(checkpoint, tmp_path / "copy.npz")
    (tmp_path / "in.txt").rename(tmp_path / "words.txt")
    renamed = ["--model", tmp_path / "copy.npz", "--input", tmp_path / "words.txt"]
    assert call(*begun, *renamed)[0] == 0


# Other files and processes


def test_no_file_of_somebody_else_is_overwritten(tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", words(3)), tmp_path / "out.jsonl"
    output.write_text("mine\n")
    status, _, err = call("--input", corpus, "--output", output)
    assert (status, err) == (
        1,
        f"refseq2seq: {output} already exists: move it away, or choose another output\n",
    )
    assert (output.read_text(), names(tmp_path)) == ("mine\n", ["in.txt", "out.jsonl"])
    output.unlink()
    (tmp_path / "out.jsonl.run").write_text("mine\n")
    assert (
        "out.jsonl.run is a file: choose another" in call("--input", corpus, "--output", output)[2]
    )
    assert (tmp_path / "out.jsonl.run").read_text() == "mine\n"


def test_an_output_that_appears_while_a_killed_run_waits_is_kept(begun, tmp_path, call):
    output = tmp_path / "out.jsonl"
    output.write_text("mine\n")
    status, _, err = call(*begun)
    assert (status, err.count("\n"), output.read_text()) == (1, 1, "mine\n")
    assert "out.jsonl already exists: move it away, or choose another output" in err
    assert kept(tmp_path) == 6  # it is said before there is work
    output.rename(tmp_path / "mine")
    assert call(*begun) == (0, "", "")
    assert len(read(output)) == 20


@pytest.mark.parametrize("content", ["mine\n", ""])
def test_an_output_that_appears_during_a_run_is_kept(content, tmp_path, call, monkeypatch):
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    given = ["--input", corpus, "--output", output, "--window", 4]

    def meanwhile(*arguments):
        output.write_text(content)
        return lines.answers(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "answers", meanwhile)
        status, _, err = call(*given)
    assert (status, err.count("\n"), output.read_text()) == (1, 1, content)
    assert f"{output} already exists: move it away" in err
    assert kept(tmp_path) == 9
    output.unlink()
    assert call(*given) == (0, "", "")
    assert (len(read(output)), names(tmp_path)) == (9, ["in.txt", "out.jsonl"])


def test_a_copy_that_was_moved_away_is_not_written_to(tmp_path, call, monkeypatch):
    """Killed after the link, before the export is deleted: both are one file."""
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    link = os.link

    def linked(*paths):
        link(*paths)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", linked)
        with pytest.raises(Killed):
            call("--input", corpus, "--output", output)
    output.rename(tmp_path / "moved")
    (tmp_path / "moved").write_text("mine now\n")
    assert call("--input", corpus, "--output", output) == (0, "", "")
    assert (tmp_path / "moved").read_text() == "mine now\n"
    assert len(read(output)) == 9


@pytest.mark.parametrize("moment", ["answers", "link", "unlink"])
def test_a_second_start_writes_nothing(moment, tmp_path, call, monkeypatch):
    """While answers are found, between the export and its link, before the journal is deleted."""
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    given, found, connect = ["--input", corpus, "--output", output], [], sqlite3.connect
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
    ((status, out, err),) = found
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "another process is writing this output" in err
    assert (len(read(output)), names(tmp_path)) == (9, ["in.txt", "out.jsonl"])


def test_a_start_that_waited_for_the_last_moment_finds_the_output(tmp_path, call, monkeypatch):
    """It has the database open, and holds it when the first has deleted it, or is about to."""
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    given, plain, found = ["--input", corpus, "--output", output], journal._lock, []

    def hold(database):
        if not found:
            found.append(None)
            found.append(call(*given))  # the other, from begin to end
        plain(database)

    monkeypatch.setattr(journal, "_lock", hold)
    status, _, err = call(*given)
    assert found[1] == (0, "", "")
    assert (status, err.count("\n")) == (1, 1)
    assert len(read(output)) == 9
    assert names(tmp_path) == ["in.txt", "out.jsonl"]


def test_no_start_goes_on_in_a_journal_that_another_has_deleted(tmp_path, call, monkeypatch):
    """The other was interrupted before it had noted what is asked for."""
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    given, plain, found = ["--input", corpus, "--output", output], journal._lock, []

    def hold(database):
        if not found:
            found.append(None)
            with monkeypatch.context() as patch:
                patch.setattr(bulk, "_asked", interrupt)
                found.append(call(*given))
        plain(database)

    monkeypatch.setattr(journal, "_lock", hold)
    status, _, err = call(*given)
    assert found[1] == (130, "", "")
    assert (status, err.count("\n")) == (1, 1)
    assert "another process has just ended" in err
    assert names(tmp_path) == ["in.txt"]
    assert call(*given) == (0, "", "")


@on_unix
def test_of_two_starts_at_once_one_writes(tmp_path, checkpoint):
    corpus, output = write(tmp_path / "in.txt", words(60)), tmp_path / "out.jsonl"
    both = [start(checkpoint, corpus, output) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert sorted(error.count("\n") for error in errors) == [0, 1]
    assert len(read(output)) == 60
    assert names(tmp_path) == ["in.txt", "out.jsonl"]


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
def test_of_many_that_open_a_journal_in_one_moment_one_holds_it(tmp_path):
    command = [sys.executable, "-c", ONE_HOLDS, str(tmp_path), str(max(5, KILLS * 4 - 7))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert set(found.stdout.split()) == {"1"}


@pytest.mark.parametrize("name", ["journal.sqlite", "answers.jsonl", "in/words.txt"])
def test_an_input_in_the_directory_of_the_run_is_refused(name, begun, tmp_path, call):
    path = tmp_path / "out.jsonl.run" / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        write(path, words(3))
    content = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for given in (path, tmp_path / "link"):
        status, out, err = call("--input", given, "--output", tmp_path / "out.jsonl")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "is in the directory of the run: choose another output" in err
    assert path.read_bytes() == content
    assert call(*begun)[0] == 0


@on_unix
def test_an_input_that_can_be_read_once_only_is_refused(tmp_path, call):
    os.mkfifo(tmp_path / "in.txt")
    status, out, err = call("--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl")
    assert (status, out) == (1, "")
    assert "--input must be a file, since --output reads it twice; got " in err
    assert names(tmp_path) == ["in.txt"]


def test_an_input_that_changes_while_it_is_read_is_told(tmp_path, call, monkeypatch):
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"

    def meanwhile(*arguments):
        corpus.write_bytes(corpus.read_bytes() + b"a\n")
        return lines.answers(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "answers", meanwhile)
        status, _, err = call("--input", corpus, "--output", output, "--window", 9)
    assert status == 1
    assert f"{corpus} changed while it was read: remove out.jsonl.run to start over" in err
    assert not output.exists()
    shutil.rmtree(tmp_path / "out.jsonl.run")
    assert call("--input", corpus, "--output", output)[0] == 0


@pytest.mark.parametrize("content", [b"mine\n" * 300, "other tables", "tables of other columns"])
def test_a_journal_of_somebody_else_is_refused_and_kept(content, tmp_path, call):
    corpus, path = write(tmp_path / "in.txt", words(3)), tmp_path / "out.jsonl.run/journal.sqlite"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE request (word TEXT)")
        other = "answers" if content == "tables of other columns" else "questions"
        database.execute(f"CREATE TABLE {other} (word TEXT)")
        database.close()
    before = path.read_bytes()
    status, out, err = call("--input", corpus, "--output", tmp_path / "out.jsonl")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"refseq2seq: {path}: " in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["out\nput.jsonl", " ", "ü'%20"])
def test_an_output_may_have_any_name(name, tmp_path, call):
    corpus = write(tmp_path / f"{name}.txt", words(9))
    assert call("--input", corpus, "--output", tmp_path / name) == (0, "", "")
    assert len(read(tmp_path / name)) == 9
    status, _, err = call("--input", corpus, "--output", tmp_path / name)
    assert (status, err.count("\n")) == (1, 1)


@pytest.mark.parametrize("place", [".", "missing/out", "in.txt/out", "directory", "in.txt"])
def test_an_output_that_cannot_be_is_one_line(place, tmp_path, call):
    corpus = write(tmp_path / "in.txt", words(3))
    (tmp_path / "directory").mkdir()
    status, out, err = call("--input", corpus, "--output", tmp_path / place)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert names(tmp_path) == ["directory", "in.txt"]


def test_a_link_as_output_is_followed(tmp_path, call):
    corpus = write(tmp_path / "in.txt", words(3))
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/out")
    assert call("--input", corpus, "--output", tmp_path / "link") == (0, "", "")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == ["out"]


# Machines


def full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@on_unix
@pytest.mark.parametrize("kib", [1, 40])
def test_a_full_disk_costs_no_answer_that_is_kept(kib, tmp_path, checkpoint, call):
    """A limit of the size of files, which the system enforces as a full disk is enforced."""
    corpus, output = write(tmp_path / "in.txt", words(120)), tmp_path / "out.jsonl"
    given = ["--input", str(corpus), "--output", str(output), "--window", "24", *SAMPLING]
    command = [sys.executable, "-m", "refseq2seq", "generate", "--model", checkpoint, *given]
    found = subprocess.run(
        ["bash", "-c", f'ulimit -f {kib}; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (1, "", 1)
    assert "journal.sqlite: " in found.stderr
    if kib > 1:
        assert 0 < kept(tmp_path) < 120
    assert call(*given) == (0, "", "")
    assert [line["input"] for line in read(output)] == words(120)


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_disk_that_is_full_in_the_end_costs_nothing(step, tmp_path, call, monkeypatch):
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(os, step, full_disk)
        patch.setattr(os, "rename", full_disk)
        status, _, err = call("--input", corpus, "--output", output)
    assert (status, err.count("\n")) == (1, 1)
    assert "No space left on device" in err
    assert (output.exists(), kept(tmp_path)) == (False, 9)
    assert call("--input", corpus, "--output", output) == (0, "", "")
    assert (len(read(output)), names(tmp_path)) == (9, ["in.txt", "out.jsonl"])


def test_a_file_system_without_links_gets_the_output_renamed(tmp_path, call, monkeypatch):
    def link(*_paths):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    assert call("--input", corpus, "--output", output) == (0, "", "")
    assert (len(read(output)), names(tmp_path)) == (9, ["in.txt", "out.jsonl"])

    def meanwhile(*arguments):
        (tmp_path / "other").write_text("mine\n")
        return lines.answers(*arguments)

    monkeypatch.setattr(bulk, "answers", meanwhile)
    assert call("--input", corpus, "--output", tmp_path / "other")[0] == 1
    assert (tmp_path / "other").read_text() == "mine\n"


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


def test_every_module_and_a_bulk_run_work_without_what_only_unix_has(tmp_path, checkpoint):
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    files = ["--model", checkpoint, "--input", str(corpus), "--output", str(output)]
    command = [sys.executable, "-c", WITHOUT, "generate", *files]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert (len(read(output)), names(tmp_path)) == (9, ["in.txt", "out.jsonl"])


def test_a_system_that_deletes_no_open_file_deletes_the_journal_later(tmp_path, call, monkeypatch):
    plain, refused = Path.unlink, []

    def unlink(path, **keywords):
        if path.name == "journal.sqlite" and not refused:
            refused.append(path)
            raise PermissionError
        plain(path, **keywords)

    monkeypatch.setattr(Path, "unlink", unlink)
    corpus = write(tmp_path / "in.txt", words(9))
    assert call("--input", corpus, "--output", tmp_path / "out.jsonl") == (0, "", "")
    assert refused
    assert names(tmp_path) == ["in.txt", "out.jsonl"]


# What lines may hold


def test_a_line_without_an_answer_does_not_end_the_run(tmp_path, call):
    content = [b"abc", b"", b"a1b", b"\xff\xfe", b"a" * 24, b" ", b"h"]
    corpus, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    corpus.write_bytes(b"\n".join(content))
    status, out, err = call("--input", corpus, "--output", output, "--window", 4)
    assert (status, out) == (3, "")
    assert err == (
        f"refseq2seq: lines of {output} without samples: 4; the first is line 3, "
        "whose error says why\n"
    )
    found = read(output)
    texts = ["abc", "", "a1b", "\ufffd\ufffd", "a" * 24, " ", "h"]
    assert [line["input"] for line in found] == texts
    assert ["samples" in line for line in found] == [i in (0, 1, 6) for i in range(7)]
    assert found[1]["samples"] == []
    assert found[2]["error"].startswith("line 3: 'a1b' has unknown symbols: '1'")
    assert found[3]["error"].startswith("line 4: not UTF-8: 'utf-8' codec can't decode byte 0xff")
    assert found[4]["error"].startswith("line 5: source has 24 tokens; the model's position table")
    assert len(found[6]["samples"]) == 1


def test_a_refusal_is_status_1_and_lines_without_an_answer_are_status_3(tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", ["abc", "1"]), tmp_path / "out.jsonl"
    assert call("--input", corpus, "--output", output)[0] == 3
    assert call("--input", corpus, "--output", output)[0] == 1
    assert call("--input", tmp_path / "none", "--output", tmp_path / "b")[0] == 1


class Words:
    """A tokenizer that reads words: each is an id, and what is no id is left out."""

    definition = "words"
    symbols = LETTERS.symbols

    def encode(self, text):
        if "!" in text:
            raise ValueError("it cries")
        return [int(word) for word in text.split() if word.isdecimal()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_a_line_that_a_tokenizer_cannot_read_or_of_which_it_leaves_nothing(tmp_path, call_with):
    model = dataclasses.replace(MODEL, source_vocabulary=Words())
    content = ["3 4", "5 !", "6 11", "...", "7 \u2028 8"]
    corpus, output = write(tmp_path / "in.txt", content), tmp_path / "out.jsonl"
    assert call_with(model, "--input", corpus, "--output", output)[0] == 3
    found = read(output)
    assert [line["input"] for line in found] == content
    assert [line.get("error") for line in found] == [
        None,
        "line 2: it cries",
        "line 3: source holds token id 11 at row 0, position 1; the vocabulary has ids 0 to 10",
        "line 4: '...' has no tokens",
        None,
    ]


def test_a_token_that_cannot_be_written_costs_its_line_only(tmp_path, call_with):
    """The model's table is longer than the vocabulary, as T5's is."""
    short = dataclasses.replace(LETTERS, symbols=LETTERS.symbols[:-2])
    model = dataclasses.replace(MODEL, target_vocabulary=short)
    corpus, output = write(tmp_path / "in.txt", words(40)), tmp_path / "out.jsonl"
    given = ["--input", corpus, "--output", output, "--temperature", "1"]
    assert call_with(model, *given)[0] == 3
    found = read(output)
    assert {"the vocabulary has ids 0 to 8" in line.get("error", "") for line in found} == {0, 1}
    assert all(("error" in line) != ("samples" in line) for line in found)


def test_a_line_for_which_the_model_gives_no_numbers_spoils_no_other(tmp_path, call_with):
    encoder = MODEL.params.encoder
    embedding = encoder.embedding.copy()
    embedding[LETTERS.encode("h")[0]] = np.nan
    broken = dataclasses.replace(encoder, embedding=embedding)
    model = dataclasses.replace(MODEL, params=dataclasses.replace(MODEL.params, encoder=broken))
    corpus, output = write(tmp_path / "in.txt", ["abc", "bah", "cde", "h"]), tmp_path / "out.jsonl"
    status, _, err = call_with(model, "--input", corpus, "--output", output)
    assert status == 3
    assert "without samples: 2; the first is line 2" in err
    found = read(output)
    assert ["samples" in line for line in found] == [True, False, True, False]
    assert found[3]["error"].startswith("line 4: the model's logits of row 0 in step 0 are NaN")
    plain = ["abc", "bah", "cde", "--steps", "--skip-errors"]
    status, out, err = call_with(model, *plain)
    assert (status, out.count("sum"), err.count("\n")) == (3, 2, 1)
    assert err.startswith("refseq2seq: line 2: the model's logits")


def test_a_line_for_which_there_is_no_memory_spoils_no_other(tmp_path, call, monkeypatch):
    plain = lines.generate

    def generate(model, source, **keywords):
        if any(len(ids) > 15 for ids in source):
            raise MemoryError
        return plain(model, source, **keywords)

    monkeypatch.setattr(lines, "generate", generate)
    corpus, output = write(tmp_path / "in.txt", ["a" * 20, "abc"]), tmp_path / "out.jsonl"
    assert call("--input", corpus, "--output", output)[0] == 3
    first, second = read(output)
    assert first == {"input": "a" * 20, "error": "line 1: out of memory"}
    assert len(second["samples"]) == 1


def test_windows_line_ends_and_a_byte_order_mark_are_not_text(tmp_path, call):
    corpus = tmp_path / "in.txt"
    found = []
    for i, content in enumerate([b"abc\nde\n\nf\n", b"\xef\xbb\xbfabc\r\nde\r\n\r\nf"]):
        corpus.write_bytes(content)
        assert call("--input", corpus, "--output", tmp_path / str(i))[0] == 0
        found.append((tmp_path / str(i)).read_bytes())
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 4


def test_nothing_but_lf_ends_a_line(tmp_path, call):
    texts = ["a\rb", "c\x0bd", "e\x0cf", "g\x85h", "a\u2028b", "c\u2029d", "\x1ce", "\x00"]
    corpus, output = write(tmp_path / "in.txt", [*texts, "abc"]), tmp_path / "out.jsonl"
    assert call("--input", corpus, "--output", output, "--window", 2)[0] == 3
    found = read(output)
    assert [line["input"] for line in found] == [*texts, "abc"]
    assert [line.get("error", "").split(":")[0] for line in found] == [
        *(f"line {n}" for n in range(1, 9)),
        "",
    ]


def test_an_empty_input_gives_an_empty_output(tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", []), tmp_path / "out.jsonl"
    corpus.write_bytes(b"")
    assert call("--input", corpus, "--output", output) == (0, "", "")
    assert output.read_bytes() == b""


def test_text_that_looks_like_an_error_is_none(tmp_path, call_with):
    anything = dataclasses.replace(MODEL, source_vocabulary=Words())
    corpus, output = write(tmp_path / "in.txt", ['3 ", "error": "y']), tmp_path / "out.jsonl"
    assert call_with(anything, "--input", corpus, "--output", output) == (0, "", "")


# Memory, progress, usage


def test_memory_does_not_grow_with_the_input(tmp_path, call, monkeypatch):
    """All but the model, which sees one batch at a time: its answers are made up here."""
    answer = [{"text": "a" * 1000}]
    monkeypatch.setattr(lines, "_outputs", lambda model, source, *rest: [answer] * len(source))
    peaks = []
    for n in (500, 5000):
        corpus = write(tmp_path / f"{n}.txt", words(50) * (n // 50))
        tracemalloc.start()
        assert call("--input", corpus, "--output", tmp_path / f"{n}", "--window", 100)[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "5000").stat().st_size > 5e6
    assert peaks[1] < peaks[0] + 2**20  # a file is read that much at a time


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "out.jsonl"],
        ["abc", "--output", "out.jsonl"],
        ["--input", "-", "--output", "out.jsonl"],
        ["--input", "in.txt", "--output", "out.jsonl", "--steps"],
        ["--input", "in.txt", "--output", "out.jsonl", "--window", "0"],
    ],
)
def test_wrong_usage_is_status_2(arguments, call, capsys):
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_input_that_is_missing_leaves_nothing_behind(tmp_path, call):
    status, _, err = call("--input", tmp_path / "nowhere", "--output", tmp_path / "out.jsonl")
    assert status == 1
    assert "nowhere: No such file" in err
    assert names(tmp_path) == []


def test_a_directory_of_somebody_else_is_not_taken_for_that_of_a_run(tmp_path, call):
    corpus, directory = write(tmp_path / "in.txt", words(3)), tmp_path / "out.jsonl.run"
    directory.mkdir()
    (directory / "answers.jsonl").write_text("mine")
    status, _, err = call("--input", corpus, "--output", tmp_path / "out.jsonl")
    assert (status, err.count("\n")) == (1, 1)
    assert "out.jsonl.run is not the directory of a run: choose another output" in err
    assert (directory / "answers.jsonl").read_text() == "mine"


@pytest.mark.parametrize("output", ["pipe", "/dev/null", "/"])
def test_an_output_that_is_no_file(output, tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", words(3)), tmp_path / output
    if output.name == "pipe":
        os.mkfifo(output)
    status, out, err = call("--input", corpus, "--output", output)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"--output must be a file, or - for standard output; got {output}" in err
