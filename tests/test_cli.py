"""The command line, run as a user runs it: a process with arguments, pipes and a status."""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from importlib.metadata import version

import pytest
from command_line import any_text, assert_refused, in_process, process, run

import refseq2seq as rs
from refseq2seq import cli
from refseq2seq.cli import generate, lines, options, progress, threads

WORDS = ["oracle", "transformer", "seq2seq"]


@pytest.fixture
def call(capsys):
    return in_process(capsys)


def test_arguments_and_a_pipe_give_one_line_for_each_word():
    result = run("generate", *WORDS)
    assert (result.returncode, result.stderr) == (0, "")
    expected = rs.generate_text(rs.load("g2p"), WORDS)
    assert result.stdout.splitlines() == expected
    assert expected[0] == "AO R AH K AH L"
    pipe = run("generate", stdin="oracle\n\ntransformer\r\n")
    assert (pipe.returncode, pipe.stdout.splitlines()) == (0, [expected[0], "", expected[1]])


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


@pytest.mark.parametrize(
    "given", ["--top-k 1", "--top-p 1e-9", "--min-p 1", "--top-a 1 --temperature 0.01"]
)
def test_filters_reach_the_sampler(given, call):
    assert call("generate", "colonel", *given.split())[1] == call("generate", "colonel")[1]


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
    total = sum(s.log_probs[0] for s in steps)
    assert float(lines[-1].split()[1]) == pytest.approx(total, abs=1e-3)


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
        scores = [sample["score"] for sample in samples]
        assert scores == pytest.approx(out.scores[row], abs=1e-5)  # other batches, other last bits
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


def test_info_and_generate_take_the_path_of_a_checkpoint(tmp_path, call):
    path = tmp_path / "model.npz"
    rs.save(rs.load("g2p"), path)
    assert call("generate", "cat", "--model", path)[1] == "K AE T\n"
    assert str(path) in call("info", path)[1]
    status, stdout, _ = call("info")
    assert status == 0
    assert "2,196,320 in float32" in stdout
    assert "3 layers, width 160, 4 heads of 40" in stdout


# Mistakes


MISTAKES = [  # the arguments, the status, and what the one line names
    (["generate", "naïve"], 1, "line 1: 'naïve'", "'ï'"),
    (["generate", "na_ve", "cat"], 1, "line 1: 'na_ve'", "'_'"),
    (["generate", "c" * 70], 1, "line 1: ", "70 tokens"),
    (["generate", " "], 1, "line 1: ' '"),
    (["generate", "cat", "--model", "nowhere.npz"], 1, "nowhere.npz"),
    (["generate", "cat", "--model", "no\nwhere"], 1, "no where"),
    (["generate", "cat", "--max-new-tokens", "99"], 1, "99", "64"),
    (["generate", "cat", "--min-new-tokens", "65"], 1, "min_new_tokens"),
    (["generate", "cat", "--length-penalty", "1e3", "--beams", "2"], 1, "length_penalty"),
    (["generate", "cat", "--temperature", "1e-320"], 1, "line 1: ", "temperature(1e-320)"),
    (["generate", "--input", "nowhere.txt"], 1, "nowhere.txt"),
    (["generate", "--input", "."], 1, ".: Is a directory"),
    (["explain", "", "--html", "x"], 1, "text"),
    (["explain", "cat", "--html", "missing/x"], 1, "missing"),
    (["info", __file__], 1, "test_cli.py"),
    (["vectors", "make", __file__, "--family", "vaswani", "--cases", "1"], 1, "test_cli.py: "),
    (["vectors", "check", "nowhere", "."], 1, "nowhere"),
    ([], 2, "COMMAND"),
    (["nonsense"], 2, "'nonsense'"),
    (["generate", "--nonsense"], 2, "--nonsense"),
    (["generate", "--no\nsense"], 2, "--no sense"),
    (["generate", "--top-k", "x"], 2, "--top-k", "got x"),
    (["generate", "--top-k", "0"], 2, "--top-k", "at least 1"),
    (["generate", "--top-k", "1.5"], 2, "(0, 1], got 1.5"),
    (["generate", "--top-k", "²"], 2, "--top-k", "²"),
    (["generate", "--temperature", "0"], 2, "temperature", "(0, inf), got 0.0"),
    (["generate", "--temperature", "nan"], 2, "temperature", "got nan"),
    (["generate", "--temperature", "hot"], 2, "--temperature", "'hot'"),
    (["generate", "--top-p", "2"], 2, "top_p", "(0, 1], got 2.0"),
    (["generate", "--min-p", "-1"], 2, "min_p", "[0, 1], got -1.0"),
    (["generate", "--top-a", "inf"], 2, "top_a", "[0, 1], got inf"),
    (["generate", "--repetition-penalty", "0"], 2, "(0, inf), got 0.0"),
    (["generate", "--no-repeat-ngram", "0"], 2, "--no-repeat-ngram"),
    (["generate", "--batch-size", "0"], 2, "--batch-size", "at least 1"),
    (["generate", "--batch-size", "1" + "0" * 30], 2, "--batch-size"),
    (["generate", "--window", "0"], 2, "--window"),
    (["generate", "--window", "9" * 9999], 2, "less than 2**31, got 9999999999"),
    (["generate", "--threads", "0"], 2, "--threads", "at least 1"),
    (["generate", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
    (["generate", "--max-new-tokens", "2147483647"], 2, "less than 2**16"),
    (["generate", "--max-new-tokens", "3", "--min-new-tokens", "4"], 2, "= 3, got 4"),
    (["generate", "--num-samples", "2147483647"], 2, "--num-samples"),
    (["generate", "--beams", "2147483647"], 2, "--beams"),
    (["generate", "--seed", "-1"], 2, "--seed", "at least 0"),
    (["generate", "--seed", "1"], 2, "--seed needs"),
    (["generate", "--n-best", "2"], 2, "--n-best needs --beams"),
    (["generate", "--length-penalty", "1"], 2, "--length-penalty needs --beams"),
    (["generate", "--early-stopping", "true"], 2, "--early-stopping needs --beams"),
    (["generate", "--beams", "2", "--n-best", "3"], 2, "--n-best", "--beams = 2, got 3"),
    (["generate", "--beams", "2", "--length-penalty", "nan"], 2, "--length-penalty"),
    (["generate", "--beams", "2", "--early-stopping", "soon"], 2, "'soon'"),
    (["generate", "--beams", "2", "--temperature", "1"], 2, "cannot be combined"),
    (["generate", "--beams", "2", "--num-samples", "2"], 2, "cannot be combined"),
    (["generate", "--json", "--steps"], 2, "--json"),
    (["generate", "--dtype", "int8"], 2, "'int8'"),
    (["generate", "--backend", "tpu"], 2, "'tpu'"),
    (["generate", "cat", "--input", "words.txt"], 2, "--input"),
    (["generate", "--output", "-", "--steps"], 2, "--steps"),
    (["generate", "--input", "in.txt", "--output", "out", "--steps"], 2, "--steps"),
    (["generate", "--output", "out"], 2, "--output FILE needs --input FILE"),
    (["generate", "abc", "--output", "out"], 2, "--output FILE needs --input FILE"),
    (["generate", "--input", "-", "--output", "out"], 2, "--output FILE needs --input FILE"),
    (["explain", "cat"], 2, "--html", "--serve"),
    (["explain", "cat", "--html", "x", "--serve"], 2, "--serve", "--html"),
    (["explain", "--serve", "--port", "65536"], 2, "--port", "2**16"),
    (["explain", "cat", "--html", "x", "--beams", "2", "--top-p", "1"], 2, "cannot be combined"),
    (["vectors"], 2, "ACTION"),
    (["vectors", "make", "x", "--cases", "0"], 2, "--cases"),
    (["vectors", "check", "x", "y", "--rtol", "x"], 2, "--rtol", "'x'"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: " ".join(row[0])[:50])
def test_a_mistake_is_one_line(mistake, capsys):
    arguments, status, *named = mistake
    began = time.monotonic()
    try:
        found = cli.main(arguments)
    except SystemExit as ended:
        found = ended.code
    assert time.monotonic() - began < 10
    out, err = capsys.readouterr()
    assert_refused((found, out, err), *named, status=status)
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


def test_without_a_table_of_positions_memory_alone_limits_the_length(call, monkeypatch):
    model = any_text()
    monkeypatch.setattr(options, "load", lambda path: model)
    for extra in ([], ["--beams", "2"], ["--temperature", "1"]):
        status, out, err = call("generate", "cat", "--max-new-tokens", "5", *extra)
        assert (status, out.count("\n"), err) == (0, 1, "")
    assert_refused(call("generate", "cat"), "max_new_tokens")

    def no_memory(*_arguments, **_options):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(lines, "generate", no_memory)
    status, out, err = call("generate", "cat", "--max-new-tokens", "65535", "--skip-errors")
    assert (status, out, err) == (3, "\n", "refseq2seq: line 1: Unable to allocate 9 TiB\n")


def test_an_unexpected_exception_is_one_line(call, monkeypatch):
    monkeypatch.setattr(generate, "check_method", lambda model, method: {}["key"])
    assert_refused(call("generate", "cat"), "KeyError: 'key'", "-X dev")


# Lines without an answer


def test_lines_before_a_mistake_are_printed_also_those_of_its_batch():
    result = run("generate", stdin="cat\ndog\nna_ve\nbird\n")
    assert (result.returncode, result.stdout) == (1, "K AE T\nD AO G\n")
    assert result.stderr.startswith("refseq2seq: line 3: 'na_ve'")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("size", [1, 2, 32])
def test_a_bad_line_costs_one_answer(size, call):
    """With --json too: tests/test_lines.py."""
    words = ["cat", "na_ve", "dog", "c" * 70, "bird"]
    status, out, err = call("generate", *words, "--skip-errors", "--batch-size", size)
    assert (status, out) == (3, "K AE T\n\nD AO G\n\nB ER D\n")
    told = [line[:19] for line in err.splitlines()]
    assert told == ["refseq2seq: line 2:", "refseq2seq: line 4:"]


def test_a_bad_line_costs_one_table_of_steps(call):
    status, out, err = call("generate", "cat", "na_ve", "dog", "--steps", "--skip-errors")
    assert (status, out.count("sum"), err.count("\n")) == (3, 2, 1)
    assert call("generate", "cat", "na_ve", "dog", "--steps")[0] == 1


def test_line_ends_and_tabs_in_an_output_are_escaped(call, monkeypatch):
    g2p = rs.load("g2p")
    target = dataclasses.replace(g2p.target_vocabulary, separator="\t\r\n")
    model = dataclasses.replace(g2p, target_vocabulary=target)
    monkeypatch.setattr(options, "load", lambda path: model)
    assert call("generate", "cat")[1] == r"K\t\r\nAE\t\r\nT" + "\n"
    plain = call("generate", "cat", "dog", "--beams", "2", "--n-best", "2")[1]
    assert [line.count("\t") for line in plain.splitlines()] == [1, 1]
    (sample,) = json.loads(call("generate", "cat", "--json")[1])["samples"]
    assert sample["text"] == "K\t\r\nAE\t\r\nT"


# Streams and files


def shell(command, **keywords):
    """Run a shell command in which $R is the command line; without what buffers are for."""
    env = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {"R": f"{sys.executable} -m refseq2seq"}
    return process("bash", "-c", command, env=env, **keywords)


@pytest.mark.skipif(os.name != "posix", reason="needs a Unix shell")
@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        ("$R generate cat <&-", 0, "K AE T\n", ""),
        ("$R generate <&-", 1, "", "standard input is closed"),
        ("$R generate cat >&-", 1, "", "standard output is closed"),
        ("$R generate cat 2>&-", 0, "K AE T\n", ""),
        ("$R generate cat na_ve --skip-errors 2>&-", 3, "K AE T\n\n", ""),
        ("$R generate --top-k x 2>&-", 2, "", ""),
        ("$R generate cat <&- >&- 2>&-", 1, "", ""),
        ("$R generate cat >/dev/full", 1, "", "No space left on device"),
        ("yes cat | head -9999 | $R generate --max-new-tokens 1 >/dev/full", 1, "", "No space"),
        ("$R --version >/dev/full", 1, "", "No space left on device"),
        ("$R generate --help >/dev/full", 1, "", "No space left on device"),
        ("$R generate na_ve --skip-errors 2>/dev/full", 3, "\n", ""),
        ("$R generate --top-k x 2>/dev/full", 2, "", ""),
        ("yes cat | $R generate --batch-size 8 | head -n 1", 0, "K AE T\n", ""),
        ("$R generate --help | true; exit ${PIPESTATUS[0]}", None, "", ""),
        ("printf 'cat\\0' | $R generate", 1, "", "line 1: 'cat\\x00'"),
        ("$R generate 0>write-only", 1, "", "Bad file descriptor"),
        ("$R generate --input $'no\\n\\377'", 1, "", "no \\udcff: No such file"),
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


def test_a_model_without_text_is_refused(tmp_path, call, monkeypatch):
    def load(path):
        raise ImportError("x/tokenizer.json needs the package tokenizers:\n  pip install it")

    monkeypatch.setattr(options, "load", load)
    found = call("generate", "cat", "--model", tmp_path)
    assert_refused(found, "x/tokenizer.json needs the package tokenizers: pip install it")
    no_text = dataclasses.replace(rs.load("g2p"), source_vocabulary=None)
    monkeypatch.setattr(options, "load", lambda path: no_text)
    assert_refused(call("generate", "cat"), "no vocabularies")


# Help


def commands(parser, name="refseq2seq"):
    """Every parser of a command, with its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from commands(command, f"{name} {word}")
            return
    yield pytest.param(parser, id=name)


@pytest.mark.parametrize("parser", [*commands(cli._parser())])
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
        self.isatty, self.flush, self.write = lambda: True, lambda: None, self.said.append

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
    told = "".join(terminal.said).splitlines()
    assert [line.split()[0] for line in told] == ["305", "605", "905"]
    assert all("1,234" in line for line in told)


@pytest.fixture
def asked(monkeypatch):
    """The numbers of threads that the BLAS is told."""
    told = []
    monkeypatch.setattr(threads, "_set_threads", lambda n: told.append(n) or True)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return told


def test_a_narrow_model_is_given_one_thread(asked, call, monkeypatch):
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


def test_a_blas_whose_threads_cannot_be_set_is_an_error(call, monkeypatch):
    monkeypatch.setattr(threads, "_set_threads", lambda n: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert call("generate", "cat")[0] == 0
    assert_refused(call("generate", "cat", "--threads", "2"), "OMP_NUM_THREADS=2")


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
    found = process(sys.executable, "-c", COUNT, *given, env=env | environment, check=True)
    word, counts = found.stdout.splitlines()
    assert word == "K AE T"
    if counts == "[]":
        pytest.skip("another BLAS than OpenBLAS")
    assert json.loads(counts)[0] == expected


# Encodings and lengths


def test_output_is_utf_8_whatever_the_locale():
    command = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii $R"
    result = shell(f"{command} generate --skip-errors --json é cat; echo status $?")
    first, second, status = result.stdout.splitlines()
    assert json.loads(first)["input"] == "é"
    assert json.loads(second)["samples"][0]["text"] == "K AE T"
    assert status == "status 3"
    result = shell(f"{command} explain cat --html -")
    assert (result.returncode, result.stderr) == (0, "")
    assert "→" in result.stdout


def test_errors_are_short_and_printable(tmp_path, call):
    (tmp_path / "in.txt").write_text("_" * 10**6)
    found = call("generate", "--input", tmp_path / "in.txt")
    assert_refused(found, "line 1: '____")
    assert len(found[2]) < 1000
    err = call("info", tmp_path / "a\x1b[31mb")[2]
    assert err.removesuffix("\n").isprintable()
    assert r"a\x1b[31mb" in err
