"""The command line, run as a user runs it: a process with arguments, pipes and a status."""

import json
import subprocess
import sys

import pytest

import refseq2seq as rs
from refseq2seq import cli

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
        status = cli.main(list(arguments))
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "naïve"], "refseq2seq: line 1: 'naïve' has unknown symbols: 'ï'."),
        (["generate", "cat", "--model", "nowhere.npz"], "nowhere.npz: No such file"),
        (["generate", "--input", "nowhere.txt"], "nowhere.txt: No such file"),
        (["generate", "cat", "--temperature", "0"], "temperature must be in (0, inf), got 0.0"),
        (["generate", "cat", "--top-p", "2"], "top_p's p must be in (0, 1], got 2.0"),
        (["generate", "cat", "--max-new-tokens", "99"], "the model's table serves 64"),
        (["generate", "c" * 70], "source has 70 tokens"),
        (["info", __file__], "test_cli.py is not a whole zip file"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(call, arguments, message):
    status, stdout, stderr = call(*arguments)
    assert (status, stdout) == (1, "")
    assert message in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate", "--top-k", "x"],
        ["generate", "cat", "--batch-size", "0"],
        ["generate", "cat", "--seed", "1"],
        ["generate", "cat", "--n-best", "2"],
        ["generate", "cat", "--beams", "2", "--temperature", "1"],
        ["generate", "cat", "--beams", "2", "--early-stopping", "soon"],
        ["generate", "cat", "--input", "words.txt"],
        ["generate", "cat", "--json", "--steps"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_lines_before_a_mistake_are_not_lost():
    result = run("generate", "--batch-size", "1", stdin="cat\nna1ve!\ndog\n")
    assert (result.returncode, result.stdout) == (1, "K AE T\n")
    assert "line 2" in result.stderr
