"""The command line, run as a user runs it: a process with arguments, pipes and a status."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

import refseq2seq as rs
from refseq2seq import cli
from refseq2seq.cli import generate, lines, options, progress, threads

WORDS = ["oracle", "transformer", "seq2seq"]


def run(*arguments, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "refseq2seq", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def call(capsys):
    """Run a command in this process: its status, output and errors."""

    def command(*arguments):
        status = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_each_word_gives_one_line():
    result = run("generate", *WORDS)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == rs.generate_text(rs.load("g2p"), WORDS)
    assert result.stdout.splitlines()[0] == "AO R AH K AH L"


def test_a_pipe_gives_the_same_lines_as_arguments_and_keeps_empty_ones():
    arguments = run("generate", "cat", "dog")
    pipe = run("generate", stdin="cat\n\ndog\r\n")
    first, second = arguments.stdout.splitlines()
    assert (pipe.returncode, pipe.stdout.splitlines()) == (0, [first, "", second])


def test_a_reader_that_leaves_early_ends_it_quietly():
    words = "cat\n" * 2000
    result = subprocess.run(
        f"{sys.executable} -m refseq2seq generate --batch-size 8 | head -n 1",
        shell=True,
        input=words,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("K AE T\n", "")


def test_a_file_and_the_batch_size_do_not_change_the_lines(tmp_path, call):
    words = ["cat", "encyclopedia", "a", "rhythm", "don't", "xylophone", "numpy"]
    file = tmp_path / "words.txt"
    file.write_text("\n".join(words))
    outputs = {call("generate", "--input", str(file), "--batch-size", n)[1] for n in "137"}
    assert outputs == {call("generate", *words)[1]}


def test_json_has_what_generate_gives(call):
    model = rs.load("g2p")
    out = rs.generate(model, [model.source_vocabulary.encode("cat")])
    status, stdout, _ = call("generate", "cat", "--json")
    (sample,) = json.loads(stdout)["samples"]
    assert status == 0
    assert sample["tokens"] == out.tokens[0].tolist()
    assert sample["log_probs"] == out.log_probs[0].tolist()
    assert sample["text"] == "K AE T"
    assert sample["finished"] is True


def test_a_sample_depends_on_the_seed_and_its_line_only(call):
    options = ["--temperature", "1.5", "--top-k", "0.5", "--json"]
    first = call("generate", *options, "--seed", "3", "--num-samples", "4", "banana", "read")[1]
    single = call("generate", *options, "--seed", "3", "--batch-size", "1", "banana", "read")[1]
    other = call("generate", *options, "--seed", "4", "--num-samples", "4", "banana", "read")[1]
    for a, b in zip(first.splitlines(), single.splitlines(), strict=True):
        many, (alone,) = json.loads(a)["samples"], json.loads(b)["samples"]
        assert len(many) == 4
        assert many[0]["tokens"] == alone["tokens"]
    assert first != other


def test_filters_reach_the_sampler(call):
    greedy = call("generate", "colonel")[1]
    for option, value in [
        ("--top-k", "1"),
        ("--top-p", "1e-9"),
        ("--min-p", "1"),
        ("--top-a", "1"),
    ]:
        extra = ["--temperature", "0.01"] if option == "--top-a" else []
        assert call("generate", "colonel", option, value, *extra)[1] == greedy


def test_steps_show_the_loop(call):
    model = rs.load("g2p")
    steps = list(rs.decode_steps(model, [model.source_vocabulary.encode("cat")]))
    status, stdout, _ = call("generate", "cat", "--steps")
    lines = stdout.splitlines()
    assert status == 0
    assert lines[0] == "cat"
    rows = lines[2:-1]
    assert [row.split()[1] for row in rows] == ["K", "AE", "T", "</s>"]
    for row, step in zip(rows, steps, strict=True):
        assert float(row.split()[2]) == pytest.approx(step.log_probs[0], abs=5e-4)
        candidates = [float(p) for p in row.split()[4::2]]
        assert len(candidates) == 5
        assert candidates == sorted(candidates, reverse=True)
    assert float(lines[-1].split()[1]) == pytest.approx(
        sum(s.log_probs[0] for s in steps), abs=1e-3
    )


def test_max_new_tokens_and_dtype(call):
    assert call("generate", "oracle", "--max-new-tokens", "2")[1] == "AO R\n"
    assert call("generate", "oracle", "--dtype", "float64")[1] == "AO R AH K AH L\n"


def test_beams_are_those_of_beam_search(call):
    model = rs.load("g2p")
    options = {"beams": 3, "n_best": 2, "length_penalty": 0.5, "early_stopping": "never"}
    source = [model.source_vocabulary.encode(word) for word in ("read", "colonel")]
    out = rs.beam_search(model, source, **options)
    arguments = [str(x) for name, v in options.items() for x in (f"--{name.replace('_', '-')}", v)]
    status, stdout, _ = call("generate", "read", "colonel", "--json", *arguments)
    assert status == 0
    for row, line in enumerate(stdout.splitlines()):
        samples = json.loads(line)["samples"]
        assert [sample["score"] for sample in samples] == out.scores[row].tolist()
        for k, sample in enumerate(samples):
            assert sample["tokens"] == out.tokens[row, k, : out.lengths[row, k]].tolist()
    plain = call("generate", "read", "--beams", "3", "--n-best", "2")[1]
    assert plain == "R EH D\tR IY D\n"


def test_steps_show_the_beams(call):
    lines = call("generate", "read", "--beams", "2", "--steps")[1].splitlines()
    assert lines[:3] == ["read", "  step 0", "      -0.103  R"]
    assert [line.split(maxsplit=1)[1] for line in lines[-2:]] == ["R EH D </s>", "R IY D </s>"]


def test_penalties_reach_greedy_and_beams(call):
    plain = call("generate", "mississippi")[1]
    assert len(set(plain.split())) < len(plain.split())
    for extra in ([], ["--beams", "2"]):
        tokens = call("generate", "mississippi", "--no-repeat-ngram", "1", *extra)[1].split()
        assert len(set(tokens)) == len(tokens)
    assert call("generate", "mississippi", "--repetition-penalty", "9")[1] != plain


def test_info_names_the_model(call):
    status, stdout, _ = call("info")
    assert status == 0
    assert "2,196,320 in float32" in stdout
    assert "3 layers, width 160, 4 heads of 40" in stdout


def test_another_checkpoint_by_its_path(tmp_path, call):
    path = tmp_path / "model.npz"
    rs.save(rs.load("g2p"), path)
    assert call("generate", "cat", "--model", str(path))[1] == "K AE T\n"
    assert str(path) in call("info", str(path))[1]


# Mistakes


MISTAKES = [  # what is asked for, the status, what the one line says
    (["generate", "naïve"], 1, "line 1: 'naïve' has unknown symbols: 'ï'."),
    (["generate", "na_ve", "cat"], 1, "line 1: 'na_ve' has unknown symbols: '_'."),
    (["generate", "c" * 70], 1, "line 1: source has 70 tokens"),
    (["generate", " "], 1, "line 1: ' ' has unknown symbols: ' '."),
    (["generate", "cat", "--model", "nowhere.npz"], 1, "nowhere.npz: No such file"),
    (["generate", "cat", "--model", "no\nwhere"], 1, "no where: No such file"),
    (["generate", "cat", "--max-new-tokens", "99"], 1, "the model's table has 64"),
    (["generate", "cat", "--min-new-tokens", "65"], 1, "min_new_tokens must be at most"),
    (["generate", "cat", "--length-penalty", "1e3", "--beams", "2"], 1, "length_penalty must"),
    (
        ["generate", "cat", "--temperature", "1e-320"],
        1,
        "line 1: the processor temperature(1e-320)",
    ),
    (["generate", "--input", "nowhere.txt"], 1, "nowhere.txt: No such file"),
    (["generate", "--input", "."], 1, ".: Is a directory"),
    (["generate", "--input", "nowhere.txt", "--output", "out"], 1, "nowhere.txt: No such file"),
    (["explain", "", "--html", "x"], 1, "the text is empty"),
    (["explain", "cat", "--html", "missing/x"], 1, "No such file or directory"),
    (["info", __file__], 1, "test_cli.py: not a complete zip file"),
    (["vectors", "make", __file__, "--family", "vaswani", "--cases", "1"], 1, "test_cli.py: "),
    (["vectors", "check", "nowhere", "."], 1, "nowhere"),
    ([], 2, "the following arguments are required: COMMAND"),
    (["nonsense"], 2, "invalid choice: 'nonsense'"),
    (["generate", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
    (["generate", "--no\nsense"], 2, "unrecognized arguments"),
    (["generate", "--top-k", "x"], 2, "--top-k: expected 5, or 0.1, got x"),
    (["generate", "--top-k", "0"], 2, "--top-k: expected an integer of at least 1"),
    (["generate", "--top-k", "1.5"], 2, "top_fraction's fraction must be in (0, 1], got 1.5"),
    (["generate", "--top-k", "²"], 2, "--top-k: expected an integer"),
    (["generate", "--temperature", "0"], 2, "temperature must be in (0, inf), got 0.0"),
    (["generate", "--temperature", "nan"], 2, "temperature must be in (0, inf), got nan"),
    (["generate", "--temperature", "hot"], 2, "--temperature: invalid float value: 'hot'"),
    (["generate", "--top-p", "2"], 2, "top_p's p must be in (0, 1], got 2.0"),
    (["generate", "--min-p", "-1"], 2, "min_p's ratio must be in [0, 1], got -1.0"),
    (["generate", "--top-a", "inf"], 2, "top_a's ratio must be in [0, 1], got inf"),
    (["generate", "--repetition-penalty", "0"], 2, "must be in (0, inf), got 0.0"),
    (["generate", "--no-repeat-ngram", "0"], 2, "--no-repeat-ngram: expected an integer"),
    (["generate", "--batch-size", "0"], 2, "--batch-size: expected an integer of at least 1"),
    (["generate", "--batch-size", "1" + "0" * 30], 2, "--batch-size: expected an integer"),
    (["generate", "--window", "9" * 9999], 2, "less than 2**31, got 9999999999"),
    (["generate", "--threads", "0"], 2, "--threads: expected an integer of at least 1"),
    (["generate", "--max-new-tokens", "0"], 2, "--max-new-tokens: expected an integer"),
    (["generate", "--max-new-tokens", "2147483647"], 2, "less than 2**16"),
    (
        ["generate", "--max-new-tokens", "3", "--min-new-tokens", "4"],
        2,
        "must be at most --max-new-tokens = 3, got 4",
    ),
    (["generate", "--num-samples", "2147483647"], 2, "--num-samples: expected an integer"),
    (["generate", "--beams", "2147483647"], 2, "--beams: expected an integer"),
    (["generate", "--seed", "-1"], 2, "--seed: expected an integer of at least 0"),
    (["generate", "--seed", "1"], 2, "--seed needs sampling"),
    (["generate", "--n-best", "2"], 2, "--n-best needs --beams"),
    (["generate", "--length-penalty", "1"], 2, "--length-penalty needs --beams"),
    (["generate", "--early-stopping", "true"], 2, "--early-stopping needs --beams"),
    (
        ["generate", "--beams", "2", "--n-best", "3"],
        2,
        "--n-best must be at most --beams = 2, got 3",
    ),
    (["generate", "--beams", "2", "--length-penalty", "nan"], 2, "--length-penalty must be in"),
    (["generate", "--beams", "2", "--early-stopping", "soon"], 2, "invalid choice: 'soon'"),
    (["generate", "--beams", "2", "--temperature", "1"], 2, "cannot be combined"),
    (["generate", "--beams", "2", "--num-samples", "2"], 2, "cannot be combined"),
    (["generate", "--json", "--steps"], 2, "not allowed with argument --json"),
    (["generate", "--dtype", "int8"], 2, "invalid choice: 'int8'"),
    (["generate", "--backend", "tpu"], 2, "invalid choice: 'tpu'"),
    (["generate", "cat", "--input", "words.txt"], 2, "give the input as arguments or with --input"),
    (["generate", "--output", "-", "--steps"], 2, "--steps prints steps: choose one"),
    (["generate", "--output", "out"], 2, "--output FILE needs --input FILE"),
    (["generate", "--input", "-", "--output", "out"], 2, "--output FILE needs --input FILE"),
    (["explain", "cat"], 2, "the following arguments are required: --html"),
    (["explain", "cat", "--html", "x", "--beams", "2", "--top-p", "1"], 2, "cannot be combined"),
    (["vectors"], 2, "the following arguments are required: ACTION"),
    (["vectors", "make", "x", "--cases", "0"], 2, "--cases: expected an integer"),
    (["vectors", "check", "x", "y", "--rtol", "x"], 2, "--rtol: invalid float value: 'x'"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), MISTAKES)
def test_a_mistake_is_one_line(arguments, status, message, capsys):
    began = time.monotonic()
    try:
        found = cli.main(arguments)
    except SystemExit as ended:
        found = ended.code
    out, err = capsys.readouterr()
    assert time.monotonic() - began < 10
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert err.startswith("refseq2seq: ")
    assert message in err
    assert err.endswith("--help)\n") == (status == 2)


EXTREMES = [
    ["--batch-size", "2147483647"],
    ["--window", "2147483647"],
    ["--top-k", "2147483647"],
    ["--top-p", "1e-320"],
    ["--no-repeat-ngram", "2147483647"],
    ["--repetition-penalty", "1e308"],
    ["--threads", "2147483647"],
    ["--beams", "300"],
    ["--beams", "2", "--length-penalty=-9"],
]


@pytest.mark.parametrize("given", EXTREMES)
def test_an_extreme_value_gives_an_answer(given, call, monkeypatch):
    monkeypatch.setattr(threads, "_set_threads", lambda n: True)
    status, out, err = call("generate", "cat", *given)
    assert (status, out.count("\n"), err) == (0, 1, "")


def test_much_is_asked_of_a_model_without_a_table_of_positions(call, monkeypatch):
    """Nothing bounds a length but memory: a line that does not fit has an error."""
    bytes_only = dataclasses.replace(
        rs.Model.random(rs.presets.vaswani(**ANY_LENGTH), 0, "float32"),
        source_vocabulary=Bytes(),
        target_vocabulary=Bytes(),
    )
    monkeypatch.setattr(options, "load", lambda path: bytes_only)
    for extra in ([], ["--beams", "2"], ["--temperature", "1"]):
        status, out, err = call("generate", "cat", "--max-new-tokens", "5", *extra)
        assert (status, out.count("\n"), err) == (0, 1, "")
    status, _, err = call("generate", "cat")
    assert (status, err.count("\n")) == (1, 1)
    assert "max_new_tokens" in err
    monkeypatch.setattr(lines, "generate", no_memory)
    status, out, err = call("generate", "cat", "--max-new-tokens", "65535", "--skip-errors")
    assert (status, out, err) == (3, "\n", "refseq2seq: line 1: Unable to allocate 9 TiB\n")


def no_memory(*_arguments, **_options):
    raise MemoryError("Unable to allocate 9 TiB")


ANY_LENGTH = {
    "d_model": 8,
    "vocab_size": 259,
    "n_layers": 1,
    "n_heads": 2,
    "d_ff": 8,
    "decoder_start_id": 0,
    "eos_ids": (1,),
    "pad_id": 0,
}


class Bytes:
    definition = "bytes"
    symbols = ("<pad>", "</s>", "<unk>", *map(chr, range(256)))

    def encode(self, text):
        return [byte + 3 for byte in text.encode()]

    def decode(self, ids):
        return bytes(int(i) - 3 for i in ids if i >= 3).decode(errors="replace")


def test_a_mistake_of_ours_is_one_line_too(call, monkeypatch):
    monkeypatch.setattr(generate, "check_method", lambda model, method: {}["key"])
    status, out, err = call("generate", "cat")
    assert (status, out) == (1, "")
    assert err == (
        "refseq2seq: unexpected KeyError: 'key' (python -X dev -m refseq2seq shows the traceback)\n"
    )


# Lines without an answer


def test_lines_before_a_mistake_are_not_lost_nor_those_of_its_batch():
    result = run("generate", stdin="cat\ndog\nna_ve\nbird\n")
    assert (result.returncode, result.stdout) == (1, "K AE T\nD AO G\n")
    assert result.stderr.startswith("refseq2seq: line 3: 'na_ve' has unknown symbols: '_'.")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("size", [1, 2, 32])
def test_a_bad_line_costs_one_answer(size, call):
    words = ["cat", "na_ve", "dog", "c" * 70, "bird"]
    given = ["generate", *words, "--skip-errors", "--batch-size", size]
    status, out, err = call(*given)
    assert (status, out) == (3, "K AE T\n\nD AO G\n\nB ER D\n")
    assert [line[:19] for line in err.splitlines()] == [
        "refseq2seq: line 2:",
        "refseq2seq: line 4:",
    ]
    status, out, err = call(*given, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["input"] for line in found] == words
    assert ["samples" in line for line in found] == [True, False, True, False, True]
    assert [f"refseq2seq: {line['error']}" for line in found if "error" in line] == err.splitlines()
    assert status == 3


def test_a_bad_line_costs_one_table_of_steps(call):
    status, out, err = call("generate", "cat", "na_ve", "dog", "--steps", "--skip-errors")
    assert (status, out.count("sum"), err.count("\n")) == (3, 2, 1)
    assert call("generate", "cat", "na_ve", "dog", "--steps")[0] == 1


def test_line_ends_and_tabs_in_an_output_are_escaped(call, monkeypatch):
    g2p = rs.load("g2p")
    target = dataclasses.replace(g2p.target_vocabulary, separator="\t\r\n")
    monkeypatch.setattr(
        options, "load", lambda path: dataclasses.replace(g2p, target_vocabulary=target)
    )
    assert call("generate", "cat")[1] == r"K\t\r\nAE\t\r\nT" + "\n"
    plain = call("generate", "cat", "dog", "--beams", "2", "--n-best", "2")[1]
    assert [line.count("\t") for line in plain.splitlines()] == [1, 1]
    (sample,) = json.loads(call("generate", "cat", "--json")[1])["samples"]
    assert sample["text"] == "K\t\r\nAE\t\r\nT"


# Streams and files


def shell(command, **keywords):
    """Run a shell command in which $R is the command line; without what buffers are for."""
    env = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", command],
        env=env | {"R": f"{sys.executable} -m refseq2seq"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **keywords,
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a Unix shell")
@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        ("$R generate cat <&-", 0, "K AE T\n", ""),
        ("$R generate <&-", 1, "", "standard input is closed: give TEXT, or --input FILE"),
        ("$R generate cat >&-", 1, "", "standard output is closed"),
        ("$R generate cat 2>&-", 0, "K AE T\n", ""),
        ("$R generate cat na_ve --skip-errors 2>&-", 3, "K AE T\n\n", ""),
        ("$R generate --top-k x 2>&-", 2, "", ""),
        ("$R generate cat <&- >&- 2>&-", 1, "", ""),
        ("$R generate cat >/dev/full", 1, "", "No space left on device"),
        ("$R --version >/dev/full", 1, "", "No space left on device"),
        ("$R generate --help >/dev/full", 1, "", "No space left on device"),
        ("$R generate na_ve --skip-errors 2>/dev/full", 3, "\n", ""),
        ("$R generate --top-k x 2>/dev/full", 2, "", ""),
        ("yes cat | $R generate --batch-size 8 | head -n 1", 0, "K AE T\n", ""),
        ("$R generate --help | true; exit ${PIPESTATUS[0]}", None, "", ""),
        ("printf 'cat\\0' | $R generate", 1, "", "line 1: 'cat\\x00' has unknown symbols"),
        ("$R generate 0>write-only", 1, "", "Bad file descriptor"),
        ("$R generate --input $'no\\n\\377'", 1, "", "no \\udcff: No such file or directory"),
    ],
)
def test_streams_that_are_closed_full_or_strange(command, status, out, err, tmp_path):
    if "/dev/full" in command and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    found = shell(command, cwd=tmp_path)
    assert found.returncode in ([0, 141] if status is None else [status])
    assert found.stdout == out
    assert err in found.stderr
    assert found.stderr.count("\n") == bool(err)


def test_bulk_needs_no_stream_but_its_files(tmp_path):
    (tmp_path / "in.txt").write_text("cat\nna_ve\n")
    found = shell("$R generate --input in.txt --output out <&- 2>&-", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (3, "")
    assert (tmp_path / "out").read_text().count("\n") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_full_disk_is_told_with_the_answers_before_it(tmp_path):
    found = shell("yes cat | head -9999 | $R generate --max-new-tokens 1 > /dev/full", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (
        1,
        "refseq2seq: [Errno 28] No space left on device\n",
    )


def test_a_dash_is_a_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run("generate", "--input", "-", "--output", "-", stdin="cat\n")
    assert json.loads(out.stdout)["samples"][0]["text"] == "K AE T"
    page = run("explain", "cat", "--html", "-")
    assert (page.returncode, page.stderr) == (0, "")
    assert page.stdout.startswith("<!doctype html>")
    assert run("explain", "cat", "--html", "page.html").stdout == ""
    assert (tmp_path / "page.html").read_text(encoding="utf-8").strip() == page.stdout.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_without_the_extra_that_reads_text_a_directory_is_refused(tmp_path, call, monkeypatch):
    def load(path):
        raise ImportError("x/tokenizer.json needs the package tokenizers:\n  pip install it")

    monkeypatch.setattr(options, "load", load)
    status, out, err = call("generate", "cat", "--model", tmp_path)
    assert (status, out) == (1, "")
    assert err == "refseq2seq: x/tokenizer.json needs the package tokenizers: pip install it\n"
    no_text = dataclasses.replace(rs.load("g2p"), source_vocabulary=None)
    monkeypatch.setattr(options, "load", lambda path: no_text)
    assert "has no vocabularies: it cannot read or write text" in call("generate", "cat")[2]


# Help


def commands(parser, name="refseq2seq"):
    """Every parser of a command, with its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from commands(command, f"{name} {word}")
            return
    yield pytest.param(parser, id=name)


COMMANDS = list(commands(cli._parser()))


@pytest.mark.parametrize("parser", COMMANDS)
def test_every_option_has_help_and_many_have_groups(parser):
    assert all(action.help for action in parser._actions)
    (loose,) = [group for group in parser._action_groups if group.title == "options"]
    assert len(loose._group_actions) <= 5  # -h among them


def test_every_command_shows_an_example_that_can_be_parsed():
    parser = cli._parser()
    (subparsers,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for name, command in subparsers.choices.items():
        examples = re.findall(r"^  refseq2seq (.*)$", command.format_help(), re.MULTILINE)
        assert examples, name
        for example in examples:
            words = re.sub(r" [<>] ?\S+", "", example).split()
            assert parser.parse_args(words).run


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"refseq2seq {rs.__version__}\n"
    assert version("refseq2seq") == rs.__version__


# Progress and threads


class Terminal:
    """A standard error that is a terminal, and a clock that each look moves by a second."""

    def __init__(self):
        self.said, self.seconds = [], 0.0

    def isatty(self):
        return True

    def write(self, text):
        self.said.append(text)

    def flush(self):
        pass

    def monotonic(self):
        self.seconds += 1
        return self.seconds


def test_without_tqdm_a_line_is_printed_every_few_seconds(monkeypatch):
    terminal = Terminal()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress.time, "monotonic", terminal.monotonic)
    with progress.progress(5, 1234) as advance:
        for _ in range(9):
            advance(100)
    assert "".join(terminal.said) == (
        "305 of 1,234 lines done\n605 of 1,234 lines done\n905 of 1,234 lines done\n"
    )


@pytest.fixture
def asked(monkeypatch):
    """The numbers of threads that the BLAS is told."""
    told = []
    monkeypatch.setattr(threads, "_set_threads", lambda n: told.append(n) or True)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return told


def test_a_narrow_model_is_given_one_thread_by_itself(asked, call, monkeypatch):
    call("generate", "cat")
    assert asked == [1]
    call("generate", "cat", "--threads", "3")
    assert asked == [1, 3]
    monkeypatch.setattr(threads, "NARROW", 159)
    call("generate", "cat")
    assert asked == [1, 3]


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_the_environment_says_how_many_threads_there_are(name, asked, call, monkeypatch):
    monkeypatch.setenv(name, "2")
    call("generate", "cat")
    assert asked == []
    call("generate", "cat", "--threads", "1")
    assert asked == [1]


def test_a_blas_that_cannot_be_told_is_named(call, monkeypatch):
    monkeypatch.setattr(threads, "_set_threads", lambda n: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert call("generate", "cat")[0] == 0
    status, _, err = call("generate", "cat", "--threads", "2")
    assert (status, err.count("\n")) == (1, 1)
    assert "set OMP_NUM_THREADS=2 instead" in err


COUNT = """
import ctypes, sys
from refseq2seq import cli
status = cli.main(["generate", "cat", *sys.argv[1:]])
blas = ctypes.CDLL(sys.modules["numpy._core._multiarray_umath"].__file__)
names = ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads")
print([getattr(blas, name)() for name in names if hasattr(blas, name)])
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [([], {}, 1), (["--threads", "2"], {}, 2), ([], {"OPENBLAS_NUM_THREADS": "2"}, 2)],
)
def test_openblas_itself_says_how_many_threads_there_are(given, environment, expected):
    env = {name: x for name, x in os.environ.items() if name not in threads.VARIABLES}
    found = subprocess.run(
        [sys.executable, "-c", COUNT, *given],
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    word, counts = found.stdout.splitlines()
    assert word == "K AE T"
    if counts == "[]":
        pytest.skip("another BLAS than OpenBLAS")
    assert json.loads(counts)[0] == expected


# Encodings and lengths


def test_output_is_utf_8_whatever_the_locale(tmp_path):
    command = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii $R"
    result = shell(f"{command} generate --skip-errors --json é cat; echo status $?")
    first, second, status = result.stdout.splitlines()
    assert json.loads(first)["input"] == "é"
    assert json.loads(second)["samples"][0]["text"] == "K AE T"
    assert status == "status 3"
    result = shell(f"{command} explain cat --html -")
    assert (result.returncode, result.stderr) == (0, "")
    assert "→" in result.stdout


def test_the_error_of_a_long_line_is_short(tmp_path, call):
    (tmp_path / "in.txt").write_text("_" * 10**6)
    status, out, err = call("generate", "--input", str(tmp_path / "in.txt"))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("refseq2seq: line 1: '____")
    assert len(err) < 1000


def test_escapes_of_a_terminal_do_not_reach_it(tmp_path, call):
    err = call("info", str(tmp_path / "a\x1b[31mb"))[2]
    assert err.removesuffix("\n").isprintable()
    assert r"a\x1b[31mb" in err
