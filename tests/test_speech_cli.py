"""`refseq2seq generate` with WAV files, by a random Whisper of few sizes."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arrangements import small_vaswani
from command_line import assert_refused, in_process, process
from test_speech import vocabulary, write_wav

import refseq2seq as rs
from refseq2seq.config import FrameInput, FrameLayerConfig
from refseq2seq.speech import log_mel, prompt, read_wav, segments, special_ids

TIMES = [f"{0.02 * i:.2f}" for i in range(53)]
TASKS = ("en", "de", "translate", "transcribe")
ENGLISH = vocabulary("endoftext", "startoftranscript", "notimestamps", *TIMES)
MANY = vocabulary("endoftext", "startoftranscript", *TASKS, "notimestamps", *TIMES)
LAYER = FrameLayerConfig(
    d_out=8, window=3, stride=30, padding=1, bias=True, activation="gelu_erf", norm_before=None,
    norm_after=None,
)  # fmt: skip
rng = np.random.default_rng(3)


def whisper(tokenizer, settings=None):
    special = {"decoder_start_id": 4, "eos_ids": (3,), "pad_id": 3, "vocab_size": len(tokenizer)}
    c = small_vaswani(d_model=8, n_layers=1, d_ff=11, **special)
    frames = FrameInput(n_features=7, layers=(LAYER,), n_class_tokens=0)
    encoder = replace(c.encoder, input=frames, embedding_scale=1.0)
    model = rs.Model.random(replace(c, encoder=encoder, tied_embeddings=False), 5, "float64")
    return replace(model, target_vocabulary=tokenizer, settings=settings)


MODELS = {
    "english": whisper(ENGLISH),
    "many": whisper(MANY),
    "settings": whisper(MANY, rs.Settings(max_new_tokens=7, prefix=(6, 8, 9))),
    "asking": whisper(MANY, rs.Settings(max_new_tokens=7, not_implemented=(("language", "?"),))),
    "image": whisper(vocabulary("pad", "start")),
    "mute": replace(whisper(ENGLISH), target_vocabulary=None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the models and two sounds."""
    path = tmp_path_factory.mktemp("speech")
    for name, model in MODELS.items():
        rs.save(model, path / f"{name}.npz")
    for name, n in (("a.wav", 16000 * 3 + 7), ("b.wav", 4001)):
        samples = rng.normal(size=n, scale=2000).astype("<i2")
        write_wav(path / name, samples.tobytes())
    return path


@pytest.fixture
def call(capsys, monkeypatch, place):
    monkeypatch.chdir(place)
    return lambda name, *rest: in_process(capsys, "generate", "--model", f"{name}.npz")(*rest)


def frames(place, name):
    return log_mel(read_wav(place / name).astype("float64"), 7)


def expected(model, place, name, prefix, n=7, choose=None, **more):
    how = {"prefix": [[4, *prefix]], "max_new_tokens": n, "choose": choose} | more
    return rs.generate(replace(model, settings=None), [frames(place, name)], **how)


def test_each_file_gives_its_text(call, place):
    status, out, err = call("english", "a.wav", "b.wav", "--max-new-tokens", 7, "--json")
    assert (status, err) == (0, "")
    for line, name, seconds in zip(
        out.splitlines(), ("a.wav", "b.wav"), (3 + 7 / 16000, 4001 / 16000), strict=True
    ):
        answer, ours = json.loads(line), expected(MODELS["english"], place, name, (5,))
        (sample,) = answer["samples"]
        assert (answer["input"], answer["seconds"]) == (name, seconds)
        assert sample["tokens"] == ours.tokens[0, : ours.lengths[0]].tolist()
        assert sample["log_probs"] == ours.log_probs[0, : ours.lengths[0]].tolist()
        assert sample["text"] == ENGLISH.decode(sample["tokens"])
    plain = call("english", "a.wav", "b.wav", "--max-new-tokens", 7)[1]
    assert plain.splitlines() == [
        json.loads(line)["samples"][0]["text"] for line in out.splitlines()
    ]


def test_without_settings_there_are_half_as_many_tokens_as_positions(call):
    """Of Whisper's 448, here where there is no table."""
    out = call("english", "b.wav", "--json", "--min-new-tokens", 224)[1]
    assert len(json.loads(out)["samples"][0]["tokens"]) == 224


@pytest.mark.parametrize(
    ("name", "options", "language", "task"),
    [
        ("many", "--source-language de", "de", "transcribe"),
        ("many", "--source-language de --target-language de", "de", "transcribe"),
        ("many", "--source-language de --target-language en", "de", "translate"),
        ("many", "--source-language en --target-language en", "en", "transcribe"),
        ("settings", "", "de", "transcribe"),
        ("settings", "--source-language en", "en", "transcribe"),
        ("asking", "--source-language en", "en", "transcribe"),
    ],
)
def test_languages(name, options, language, task, call, place):
    ids = special_ids(MANY)
    given = [ids[f"<|{x}|>"] for x in (language, task, "notimestamps")]
    ours = expected(MODELS[name], place, "a.wav", given)
    out = call(name, "a.wav", "--json", "--max-new-tokens", 7, *options.split())[1]
    assert json.loads(out)["samples"][0]["tokens"] == ours.tokens[0, : ours.lengths[0]].tolist()


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("many", "", ["--source-language", "en, de"]),
        ("asking", "", ["--source-language", "en, de"]),
        ("many", "--source-language fr", ["--source-language", "en, de", "fr"]),
        ("many", "--target-language en", ["--source-language", "en, de"]),
        ("many", "--source-language en --target-language de", ["--target-language", "en", "de"]),
        ("settings", "--source-language=", ["--source-language", "en, de", "''"]),
        ("english", "--source-language de", ["--source-language", "de", "English"]),
        ("image", "", ["image.npz", "Whisper", "rs.generate(model, frames)"]),
        ("image", "--timestamps", ["image.npz", "Whisper"]),
        ("mute", "", ["mute.npz", "vocabularies"]),
    ],
)
def test_prompts_and_models_that_are_refused(name, options, named, call):
    assert_refused(call(name, "a.wav", *options.split()), *named)


RULES = rs.timestamp_rules(5, 3)


@pytest.mark.parametrize(
    ("options", "choose"),
    [
        ("", rs.greedy(RULES)),
        ("--temperature 0.7 --seed 2", rs.sample(RULES, rs.temperature(0.7))),
        ("--repetition-penalty 3", rs.greedy(rs.repetition_penalty(3.0), RULES)),
    ],
)
def test_timestamps(options, choose, call, place):
    more = {"seed": 2} if "seed" in options else {}
    ours = expected(MODELS["english"], place, "a.wav", (), 19, choose, **more)
    tokens = ours.tokens[0, : ours.lengths[0]]
    parts = segments(tokens, ENGLISH, duration=3 + 7 / 16000)
    asked = ["a.wav", "--timestamps", "--max-new-tokens", 19, *options.split()]
    answer = json.loads(call("english", *asked, "--json")[1])
    (sample,) = answer["samples"]
    assert sample["tokens"] == tokens.tolist()
    assert [(s["start"], s["end"], s["text"]) for s in sample["segments"]] == [
        (s.start, s.end, s.text) for s in parts
    ]
    lines = call("english", *asked)[1].split("\n")
    assert lines[-2:] == ["", ""]
    for line, part in zip(lines[:-2], parts, strict=True):
        start, end, text = line.split(" ")
        assert float(start) == part.start
        assert (None if end == "-" else float(end)) == part.end
        assert text == part.text


def test_timestamps_of_settings_and_beams(call, place):
    out = call("settings", "a.wav", "--timestamps", "--beams", 3, "--json", "--n-best", 2)[1]
    prefix = prompt(MANY, "de", timestamps=True)
    rules = rs.timestamp_rules(9, 3)
    model = replace(MODELS["settings"], settings=None)
    ours = rs.beam_search(
        model, [frames(place, "a.wav")], beams=3, n_best=2, prefix=[prefix], processors=[rules],
        max_new_tokens=7,
    )  # fmt: skip
    samples = json.loads(out)["samples"]
    assert [s["score"] for s in samples] == ours.scores[0].tolist()
    assert len(samples[1]["segments"]) > 0


def test_steps(call, place):
    out = call("english", "a.wav", "--steps", "--timestamps", "--max-new-tokens", 5)[1]
    ours = expected(MODELS["english"], place, "a.wav", (), 5, rs.greedy(RULES))
    rows = [line.split()[1] for line in out.splitlines()[2:-1]]
    assert rows == [ENGLISH.symbols[i] for i in ours.tokens[0, : ours.lengths[0]]]
    assert out.startswith("a.wav\n")


def hostile(path):
    """Paths, and what an error names beside them."""
    write_wav(path / "cd.wav", bytes(8), rate=44100)
    write_wav(path / "stereo.wav", bytes(8), channels=2)
    write_wav(path / "long.wav", bytes(2 * 16000 * 31))
    (path / "cut.wav").write_bytes(write_wav(path / "c.wav", bytes(200)).read_bytes()[:-3])
    (path / "song.mp3").write_bytes(b"ID3\4" + bytes(99))
    (path / "empty.wav").write_bytes(b"")
    (path / "dir").mkdir()
    named = {
        "cd.wav": "44100", "stereo.wav": "2", "long.wav": "31.00 s", "cut.wav": "truncated",
        "song.mp3": "ffmpeg", "empty.wav": "WAV", "dir": "directory", "none.wav": "No such file",
        "hello there": "WAV", "a\0b": "null",
    }  # fmt: skip
    if hasattr(os, "mkfifo"):
        os.mkfifo(path / "pipe.wav")
        named["pipe.wav"] = "pipe"
    return named


def test_files_that_are_refused(call, tmp_path, monkeypatch):
    named = hostile(tmp_path)
    for name, what in named.items():
        path = tmp_path / name
        assert_refused(call("english", path), "line 1", name.split("\0")[0], what)
    (tmp_path / "list").write_bytes(b"\n".join(os.fsencode(tmp_path / name) for name in named))
    status, out, err = call("english", "--input", tmp_path / "list", "--skip-errors")
    assert (status, out) == (3, "\n" * len(named))
    assert err.count("\n") == len(named)


def test_sounds_after_a_bad_one(call):
    asked = ["--max-new-tokens", 5, "--timestamps"]
    alone = call("english", "b.wav", *asked)[1]
    status, out, err = call("english", "none.wav", "b.wav", "--skip-errors", *asked)
    assert (status, out) == (3, "\n" + alone)
    assert "line 1" in err
    status, out, _ = call("english", "b.wav", "none.wav", "--batch-size", 2, *asked)
    assert (status, out) == (1, alone)


@pytest.mark.parametrize("options", [[], ["--timestamps"]])
def test_bulk(options, call, place, tmp_path):
    (tmp_path / "list").write_text("a.wav\nb.wav\n\na.wav\n")
    output = tmp_path / "out.jsonl"
    asked = ["--max-new-tokens", 6, *options]
    status = call("english", "--input", tmp_path / "list", "--output", output, *asked)[0]
    answers = output.read_text().splitlines()
    printed = call("english", "a.wav", "b.wav", "", "a.wav", "--json", *asked)[1]
    assert status == 0
    assert answers == printed.splitlines()


def test_timestamps_are_part_of_the_identity_of_a_run(call, tmp_path):
    (tmp_path / "list").write_text("a.wav\nnone\n")
    asked = ["--input", tmp_path / "list", "--output", tmp_path / "out", "--max-new-tokens", 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refseq2seq.cli.journal.Journal.publish", lambda self: 1 / 0)
        assert call("english", *asked)[0] == 1
    assert_refused(call("english", *asked, "--timestamps"), "--timestamps", "false", "true")
    assert call("english", *asked)[0] == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["a.wav"], ["line 1", "a.wav", "Whisper"]),
        (["cat", "--timestamps"], ["--timestamps", "g2p"]),
    ],
)
def test_a_model_of_texts_refuses_sounds(options, named, capsys, place, monkeypatch):
    monkeypatch.chdir(place)
    assert_refused(in_process(capsys)("generate", *options), *named)


def test_several_outputs_with_timestamps_need_json(call, capsys):
    asked = ["a.wav", "--timestamps", "--num-samples", 2, "--max-new-tokens", 5]
    with pytest.raises(SystemExit) as ended:
        call("english", *asked)
    assert ended.value.code == 2
    assert "--json" in capsys.readouterr().err
    samples = json.loads(call("english", *asked, "--json")[1])["samples"]
    assert [len(sample["segments"]) > 0 for sample in samples] == [True, True]


def test_explain_names_the_command_that_shows_the_steps(capsys, place):
    call = in_process(capsys)
    found = call("explain", "a.wav", "--model", place / "english.npz", "--html", "-")
    assert_refused(found, "english.npz", "--steps")
    status, out, _ = call("info", place / "english.npz")
    assert status == 0
    assert "frames of width 7" in out


# The program for long recordings

EXAMPLE = Path(__file__).parents[1] / "docs/examples/transcribe.py"


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("transcribe", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_windows_follow_segments(program, monkeypatch):
    """Tokens of four windows: two that are cut off, one that is not, and the last."""
    time = 6  # <|0.00|>; 1.00 is 56
    given = [
        [time, 0, time + 50, time + 50, 1, 1],
        [time + 2, 1, time + 10, time + 10],
        [time, 2, time + 25, 3],
        [0, 0, 3],
    ]
    seen = []

    def decode(model, window, language, temperatures, seed):
        seen.append((seed, len(window)))
        return given[len(seen) - 1]

    monkeypatch.setattr(program, "decode", decode)
    found = program.transcribe(MODELS["english"], np.zeros(16000 * 33, "float32"))
    assert seen == [(0, 480000), (16000, 480000), (19200, 480000), (499200, 28800)]
    expected = [(0, 1, "a"), (1.04, 1.2, "b"), (1.2, 1.7, "c"), (31.2, 33, "aa")]
    assert [part.text for part in found] == [text for _, _, text in expected]
    np.testing.assert_allclose([(p.start, p.end) for p in found], [e[:2] for e in expected])


@pytest.mark.parametrize(
    ("text", "mean", "falls_back"),
    [("a", -0.5, False), ("a", -1.5, True), ("ab" * 20, -0.5, True), ("abcbac" * 2, -0.5, False)],
)
def test_a_temperature_is_left_for_the_next(text, mean, falls_back, program, monkeypatch):
    """The best of five samples counts: here the fourth."""
    asked, tokens = [], np.array([*ENGLISH.encode(text), 3])

    def generate(model, memory, *, num_return_sequences=1, **how):
        asked.append((num_return_sequences, repr(how["choose"])))
        means = np.full(num_return_sequences, -9.0)
        means[min(3, num_return_sequences - 1)] = mean
        rows = np.where(means[:, None] == mean, tokens, 0)
        lengths = np.full(len(rows), len(tokens))
        return SimpleNamespace(tokens=rows, lengths=lengths, log_probs=means[:, None] * (rows >= 0))

    monkeypatch.setattr(program.rs, "generate", generate)
    how = {"language": None, "temperatures": program.TEMPERATURES, "seed": 0}
    found = program.decode(MODELS["english"], np.zeros(160, "float32"), **how)
    assert found.tolist() == tokens.tolist()
    assert [n for n, _ in asked] == ([1, 5, 5, 5, 5, 5] if falls_back else [1])
    assert all("timestamp_rules(5, 3)" in choose for _, choose in asked)


def test_the_program_runs(program, place):
    done = process(sys.executable, EXAMPLE, place / "english.npz", place / "b.wav", check=True)
    model = replace(MODELS["english"], settings=None)
    parts = program.transcribe(model, read_wav(place / "b.wav"))
    assert done.stdout.splitlines() == [
        f"{part.start:.2f} {part.end:.2f} {part.text.strip()}" for part in parts
    ]
