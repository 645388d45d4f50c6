"""`refseq2seq generate --input --output`: nothing lost and nothing twice, often as it is killed."""

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq import cli
from refseq2seq.cli import bulk

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


def write(path, lines, end="\n"):
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", [[], SAMPLING, ["--beams", "2", "--n-best", "2"]])
def test_the_lines_are_those_of_generate_in_their_order(method, tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", words(29)), tmp_path / "out.jsonl"
    options = [*method, "--batch-size", 5, "--window", 17]
    assert call("--input", corpus, "--output", output, *options) == (0, "", "")
    plain = call("--input", corpus, "--json", *method, "--batch-size", 1)[1].splitlines()
    for line, other in zip(read(output), map(json.loads, plain), strict=True):
        assert line["input"] == other["input"]
        for a, b in zip(line["samples"], other["samples"], strict=True):
            assert a["tokens"] == b["tokens"]
            np.testing.assert_allclose(a["log_probs"], b["log_probs"], rtol=1e-9)
    assert sorted(tmp_path.iterdir()) == [corpus, output]


@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (7, 9), (64, 2048)])
def test_batches_and_windows_change_no_sample(batch_size, window, tmp_path, call):
    corpus = write(tmp_path / "in.txt", words(31))
    found = []
    for i, sizes in enumerate([(5, 10), (batch_size, window)]):
        options = [*SAMPLING, "--batch-size", sizes[0], "--window", sizes[1]]
        call("--input", corpus, "--output", tmp_path / str(i), *options)
        found.append([[s["tokens"] for s in line["samples"]] for line in read(tmp_path / str(i))])
    assert found[0] == found[1]


def test_a_batch_is_of_lines_of_similar_length(tmp_path, call, monkeypatch):
    batches, plain = [], bulk.outputs

    def outputs(model, source, numbers, method):
        batches.append([len(ids) for ids in source])
        return plain(model, source, numbers, method)

    monkeypatch.setattr(bulk, "outputs", outputs)
    corpus = write(tmp_path / "in.txt", words(60))
    options = ["--batch-size", 10, "--window", 30]
    call("--input", corpus, "--output", tmp_path / "out.jsonl", *options)
    lengths = [len(word) for word in words(60)]
    expected = [sorted(lengths[at : at + 30], reverse=True) for at in (0, 30)]
    assert [[n for b in batches[at : at + 3] for n in b] for at in (0, 3)] == expected
    assert [len(batch) for batch in batches] == [10] * 6


# Killed


def start(checkpoint, corpus, output):
    arguments = ["--model", checkpoint, "--input", str(corpus), "--output", str(output)]
    sizes = ["--batch-size", "8", "--window", "24"]
    return subprocess.Popen(
        [sys.executable, "-m", "refseq2seq", "generate", *arguments, *sizes, *SAMPLING],
        stderr=subprocess.PIPE,
    )


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, checkpoint):
    """kill -9 a random while after the output has grown, three times; then let it end."""
    corpus, rng = write(tmp_path / "in.txt", words(250)), random.Random(5)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert start(checkpoint, corpus, whole).communicate(timeout=60) == (None, b"")
    part, sizes = tmp_path / "out.jsonl.part", []
    for _ in range(3):
        process = start(checkpoint, corpus, output)
        size = part.stat().st_size if part.exists() else 0
        while process.poll() is None and not (part.exists() and part.stat().st_size > size):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (-signal.SIGKILL, b"")
        sizes.append(part.stat().st_size)
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] < whole.stat().st_size
    assert start(checkpoint, corpus, output).communicate(timeout=60) == (None, b"")
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.txt",
        "out.jsonl",
        "whole.jsonl",
    ]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["open", "write", "torn write", "replace", "unlink"])
def test_whatever_it_was_about_to_do(moment, tmp_path, call, monkeypatch):
    """Ended just before each of its steps that leaves something on the disk."""
    corpus = write(tmp_path / "in.txt", words(20))
    options = ["--input", corpus, "--window", 6, *SAMPLING]
    call("--output", tmp_path / "whole.jsonl", *options)

    def kill(*arguments, **keywords):
        raise Killed

    def append(file, answers):
        if file.tell() and moment == "torn write":
            file.write(json.dumps(answers[0]).encode() + b'\n{"input": "ab')
            file.flush()
        if file.tell():
            raise Killed
        plain_append(file, answers)

    plain_append, replace = bulk._append, os.replace
    with monkeypatch.context() as patch:
        if "write" in moment:
            patch.setattr(bulk, "_append", append)
        elif moment == "open":
            patch.setattr(bulk, "_lock", kill)
        elif moment == "unlink":
            patch.setattr(bulk.Path, "unlink", kill)
        else:
            patch.setattr(
                bulk.os,
                "replace",
                lambda a, b: replace(a, b) if str(a).endswith(".new") else kill(),
            )
        with pytest.raises(Killed):
            call("--output", tmp_path / "out.jsonl", *options)
    assert call("--output", tmp_path / "out.jsonl", *options) == (0, "", "")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def begun(tmp_path, call, monkeypatch):
    """A run that was ended after its first window, and the options that it was given."""
    corpus = write(tmp_path / "in.txt", words(20))
    options = ["--input", corpus, "--output", tmp_path / "out.jsonl", "--window", 6, *SAMPLING]

    def append(file, answers):
        if file.tell():
            raise Killed
        plain(file, answers)

    plain = bulk._append
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_append", append)
        with pytest.raises(Killed):
            call(*options)
    assert len((tmp_path / "out.jsonl.part").read_bytes().splitlines()) == 6
    return options


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--window", "7"], "--window is not what"),
        (["--temperature", "1.3"], "it was 1.2, now it is 1.3."),
        (["--seed", "8"], "--seed is not what"),
        (["--batch-size", "31"], "--batch-size is not what"),
        (["--dtype", "float32"], "the model is not what"),
        (["--no-repeat-ngram", "2"], "it was None, now it is 2."),
    ],
)
def test_another_request_is_refused_by_name(changed, message, begun, tmp_path, call):
    before = (tmp_path / "out.jsonl.part").read_bytes()
    status, out, err = call(*begun, *changed)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert "remove out.jsonl.part and out.jsonl.run to begin anew" in err
    assert (tmp_path / "out.jsonl.part").read_bytes() == before
    assert call(*begun)[0] == 0


def test_another_input_model_or_version_is_refused_by_name(begun, tmp_path, call, monkeypatch):
    corpus = tmp_path / "in.txt"
    whole = corpus.read_bytes()
    corpus.write_bytes(whole + b"a\n")
    assert "the input is not what" in call(*begun)[2]
    corpus.write_bytes(whole)
    other = dataclasses.replace(MODEL, params=rs.random_params(CONFIG, 4, "float64"))
    rs.save(other, tmp_path / "other.npz")
    assert "the model is not what" in call(*begun, "--model", tmp_path / "other.npz")[2]
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "__version__", "9.9")
        assert "the version of refseq2seq is not what" in call(*begun)[2]
    assert call(*begun)[0] == 0


def test_no_file_of_somebody_else_is_overwritten(tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", words(3)), tmp_path / "out.jsonl"
    for path in (output, tmp_path / "out.jsonl.part"):
        path.write_text("mine\n")
        status, _, err = call("--input", corpus, "--output", output)
        assert (status, path.read_text()) == (1, "mine\n")
        assert f"{path} is there already" in err
        path.unlink()
    assert call("--input", corpus, "--output", output)[0] == 0
    assert "is there already" in call("--input", corpus, "--output", output)[2]


def test_an_input_that_can_be_read_once_only_is_refused(tmp_path, call):
    os.mkfifo(tmp_path / "in.txt")
    status, out, err = call("--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl")
    assert (status, out) == (1, "")
    assert "--output needs a file as --input, to read it twice; got " in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_an_input_that_changes_while_it_is_read_is_told(tmp_path, call, monkeypatch):
    corpus, output = write(tmp_path / "in.txt", words(9)), tmp_path / "out.jsonl"
    append = bulk._append

    def meanwhile(*args):
        append(*args)
        corpus.write_bytes(corpus.read_bytes() + b"a\n")

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_append", meanwhile)
        status, _, err = call("--input", corpus, "--output", output, "--window", 9)
    assert status == 1
    assert f"{corpus} changed while it was read: remove out.jsonl.part and out.jsonl.run" in err
    assert not output.exists()
    for end in ("part", "run"):
        (tmp_path / f"out.jsonl.{end}").unlink()
    assert call("--input", corpus, "--output", output)[0] == 0


def test_two_processes_do_not_write_one_output(begun, tmp_path, call):
    fcntl = pytest.importorskip("fcntl", reason="files are locked on Unix only")
    with open(tmp_path / "out.jsonl.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, err = call(*begun)
    assert status == 1
    assert "out.jsonl.part is being written by another process" in err
    assert call(*begun)[0] == 0


# What lines may hold


def test_a_line_without_an_answer_does_not_end_the_run(tmp_path, call):
    lines = [b"abc", b"", b"a1b", b"\xff\xfe", b"a" * 24, b"h"]
    corpus, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    corpus.write_bytes(b"\n".join(lines))
    status, out, err = call("--input", corpus, "--output", output, "--window", 4)
    assert (status, out) == (1, "")
    assert err == (
        f"refseq2seq: lines of {output} without samples: 3; the first is line 3, "
        "whose error says why\n"
    )
    found = read(output)
    assert [line["input"] for line in found] == ["abc", "", "a1b", "\ufffd\ufffd", "a" * 24, "h"]
    assert ["samples" in line for line in found] == [True, True, False, False, False, True]
    assert found[1]["samples"] == []
    assert found[2]["error"].startswith("line 3: 'a1b' has unknown symbols: '1'")
    assert found[3]["error"].startswith("line 4: 'utf-8' codec can't decode")
    assert found[4]["error"].startswith("line 5: source has 24 tokens; the model's position table")
    assert len(found[5]["samples"]) == 1


def test_windows_line_ends_and_a_byte_order_mark_are_not_text(tmp_path, call):
    corpus = tmp_path / "in.txt"
    found = []
    for i, content in enumerate([b"abc\nde\n\nf\n", b"\xef\xbb\xbfabc\r\nde\r\n\r\nf"]):
        corpus.write_bytes(content)
        assert call("--input", corpus, "--output", tmp_path / str(i))[0] == 0
        found.append((tmp_path / str(i)).read_bytes())
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 4


def test_an_empty_input_gives_an_empty_output(tmp_path, call):
    corpus, output = write(tmp_path / "in.txt", []), tmp_path / "out.jsonl"
    corpus.write_bytes(b"")
    assert call("--input", corpus, "--output", output) == (0, "", "")
    assert output.read_bytes() == b""


def test_text_that_looks_like_an_error_is_none(tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    output.write_text(json.dumps({"input": 'x", "error": "y', "samples": []}) + "\n")
    bulk._report_failures(output)


def test_a_line_for_which_the_model_gives_no_numbers_spoils_no_other(tmp_path):
    encoder = MODEL.params.encoder
    embedding = encoder.embedding.copy()
    embedding[LETTERS.encode("h")[0]] = np.nan
    broken = dataclasses.replace(encoder, embedding=embedding)
    model = dataclasses.replace(MODEL, params=dataclasses.replace(MODEL.params, encoder=broken))
    corpus = write(tmp_path / "in.txt", ["abc", "bah", "cde", "h"])
    options = argparse.Namespace(
        input=corpus, output=tmp_path / "out.jsonl", window=100, batch_size=10
    )
    method = {"num_return_sequences": 1, "max_new_tokens": 3}
    with pytest.raises(ValueError, match=r"without samples: 2; the first is line 2"):
        bulk.generate_file(model, method, options)
    found = read(tmp_path / "out.jsonl")
    assert ["samples" in line for line in found] == [True, False, True, False]
    assert found[3]["error"].startswith("line 4: the model's logits of row 0 in step 0 are NaN")


# Memory, progress, usage


def test_memory_does_not_grow_with_the_input(tmp_path, call, monkeypatch):
    """All but the model, which sees one batch at a time: its answers are made up here."""
    answer = [{"text": "a" * 1000}]
    monkeypatch.setattr(bulk, "outputs", lambda model, source, *rest: [answer] * len(source))
    peaks = []
    for n in (500, 5000):
        corpus = write(tmp_path / f"{n}.txt", words(50) * (n // 50))
        tracemalloc.start()
        assert call("--input", corpus, "--output", tmp_path / f"{n}", "--window", 100)[0] == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "5000").stat().st_size > 5e6
    assert peaks[1] < peaks[0] + 2**20  # a file is read that much at a time


def test_a_bar_is_shown_to_a_terminal_only(tmp_path, call, monkeypatch):
    pytest.importorskip("tqdm", reason="needs the cli extra")
    corpus = write(tmp_path / "in.txt", words(9))
    assert call("--input", corpus, "--output", tmp_path / "a")[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(bulk, "_windows", slowly(bulk._windows))
    err = call("--input", corpus, "--output", tmp_path / "b", "--window", 3)[2]
    assert "9/9" in err.replace("\r", "\n").splitlines()[-1]


def slowly(windows):
    """The bar appears after a second."""

    def slow(*arguments):
        for window in windows(*arguments):
            time.sleep(0.4)
            yield window

    return slow


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "out.jsonl"],
        ["abc", "--output", "out.jsonl"],
        ["--input", "in.txt", "--output", "out.jsonl", "--steps"],
        ["--input", "in.txt", "--output", "out.jsonl", "--window", "0"],
    ],
)
def test_wrong_usage_is_status_2(arguments, call):
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2


def test_an_input_that_is_missing_leaves_nothing_behind(tmp_path, call):
    status, _, err = call("--input", tmp_path / "nowhere", "--output", tmp_path / "out.jsonl")
    assert status == 1
    assert "nowhere: No such file" in err
    assert list(tmp_path.iterdir()) == []
