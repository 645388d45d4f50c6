"""Speech: WAV files, Whisper's features, the rules of its timestamps, prompts and segments."""

import os
import pickle
import shlex
import struct
import wave

import distributions
import numpy as np
import pytest
from bad_files import cheap
from hypothesis import given
from hypothesis import strategies as st
from naming import raises_naming
from test_constraints import banned, state

import refseq2seq as rs
from refseq2seq.speech import Segment, log_mel, prompt, read_wav, segments
from refseq2seq.speech.mel import WINDOW, mel_filters, spectrum

rng = np.random.default_rng(23)


# WAV files


def write_wav(path, frames, *, bits=16, channels=1, rate=16000):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, bits // 8, rate, 0, "NONE", ""))
        file.writeframes(frames)
    return path


def riff(*chunks):
    body = b"".join(
        name + struct.pack("<I", len(chunk)) + chunk + bytes(len(chunk) % 2)
        for name, chunk in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def header(kind=1, channels=1, rate=16000, bits=16, width=None, more=b""):
    width = bits // 8 * channels if width is None else width
    return struct.pack("<HHIIHH", kind, channels, rate, rate * width, width, bits) + more


SAMPLES = (b"data", struct.pack("<3h", 0, 16384, -1))


@pytest.mark.parametrize("bits", [8, 16, 24])
def test_integers_are_fractions_of_full_scale(bits, tmp_path):
    top = 2 ** (bits - 1)
    integers = [-top, -top // 2, -1, 0, 1, top // 2, top - 1]
    stored = [x + top if bits == 8 else x % 2**bits for x in integers]  # 8 bits are unsigned
    frames = b"".join(x.to_bytes(bits // 8, "little") for x in stored)
    waveform = read_wav(write_wav(tmp_path / "a.wav", frames, bits=bits))
    assert waveform.dtype == np.float32
    assert waveform.tolist() == [x / top for x in integers]


def test_other_chunks_are_skipped(tmp_path):
    path, other = tmp_path / "a.wav", (b"LIST", b"odd")
    path.write_bytes(riff(other, (b"fmt ", header()), other, SAMPLES, other))
    assert read_wav(path).tolist() == [0, 0.5, -(2**-15)]
    long = header(0xFFFE, more=struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14))
    path.write_bytes(riff((b"fmt ", long), SAMPLES))
    assert read_wav(path).tolist() == [0, 0.5, -(2**-15)]


BAD = {
    "mp3": (b"ID3\4" + bytes(99), "WAV"),
    "rate": (riff((b"fmt ", header(rate=44100)), SAMPLES), "44100"),
    "channels": (riff((b"fmt ", header(channels=2)), SAMPLES), "2"),
    "float": (riff((b"fmt ", header(kind=3, bits=32)), SAMPLES), "32"),
    "32 bits": (riff((b"fmt ", header(bits=32)), SAMPLES), "32"),
    "12 bits": (riff((b"fmt ", header(bits=12, width=2)), SAMPLES), "12"),
    "16 bits in 3": (riff((b"fmt ", header(width=3)), SAMPLES), "3"),
    "extensible float": (riff((b"fmt ", header(0xFFFE, more=b"\3\0" * 12)), SAMPLES), "3"),
    "short header": (riff((b"fmt ", header()[:15]), SAMPLES), "15"),
    "no header": (riff(SAMPLES), "header"),
    "no samples": (riff((b"fmt ", header())), "samples"),
    "empty": (riff((b"fmt ", header()), (b"data", b"")), "0"),
    "half a sample": (riff((b"fmt ", header()), (b"data", b"abc")), "3"),
    "streamed": (riff((b"fmt ", header())) + b"data\xff\xff\xff\xff" + bytes(6), "truncated"),
    "chunks": (riff(*[(b"junk", b"")] * 5000, (b"fmt ", header()), SAMPLES), "1000"),
}


@pytest.mark.parametrize(("content", "name"), BAD.values(), ids=BAD)
def test_other_files_are_refused_with_the_command_that_converts_them(content, name, tmp_path):
    path = tmp_path / "it's.wav"
    path.write_bytes(content)
    with raises_naming(rs.FileError, name, str(path)) as caught:
        read_wav(path)
    command = shlex.split(str(caught.value).partition("convert it: ")[2])
    assert command[:3] == ["ffmpeg", "-i", str(path)]
    assert command[-1] == str(tmp_path / "it's.16k.wav")
    assert " ".join(command[3:-1]) == "-ac 1 -ar 16000 -c:a pcm_s16le"


def test_no_part_of_a_file_is_the_file(tmp_path):
    whole = write_wav(tmp_path / "a.wav", bytes(14)).read_bytes()
    for n in range(len(whole)):
        (tmp_path / "b.wav").write_bytes(whole[:n])
        with raises_naming(rs.FileError, "b.wav"):
            read_wav(tmp_path / "b.wav")


def test_what_is_no_regular_file_of_limited_size_is_refused(tmp_path):
    with pytest.raises(OSError, match="directory"):
        read_wav(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_wav(tmp_path / "none.wav")
    huge = write_wav(tmp_path / "huge.wav", b"ab")
    os.truncate(huge, 2**26 + 1)
    with cheap(megabytes=50, seconds=5), raises_naming(rs.FileError, "huge.wav"):
        read_wav(huge)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        with raises_naming(rs.FileError, "pipe"):
            read_wav(tmp_path / "pipe.wav")


# Features


def slow_spectrum(x, t):
    """Frame t as the definition has it: a sum over samples, those beyond the ends reflected."""
    last, total = len(x) - 1, np.zeros(201, dtype=complex)
    for n in range(400):
        place = abs(160 * t + n - 200)
        sample = x[place if place <= last else 2 * last - place]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
        total += hann * sample * np.exp(-2j * np.pi * np.arange(201) * n / 400)
    return total


def test_the_spectrum_is_a_sum_over_windows():
    x = rng.normal(size=1009)
    slow = [slow_spectrum(x, t) for t in range(6)]
    np.testing.assert_allclose(spectrum(x), slow, rtol=0, atol=1e-11)


def to_mels(hertz):
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def weight(hertz, m, n_mels):
    """Of a frequency in band m, by interpolation between edges that bisection finds."""
    edges = []
    for edge in range(m, m + 3):
        low, high = 0.0, 8001.0
        for _ in range(60):
            middle = (low + high) / 2
            is_below = to_mels(middle) < edge * to_mels(8000) / (n_mels + 1)
            low, high = (middle, high) if is_below else (low, middle)
        edges.append(low)
    return np.interp(hertz, edges, [0, 1, 0], left=0, right=0) * 2 / (edges[2] - edges[0])


@pytest.mark.parametrize("n_mels", [2, 37, 80, 128])
def test_bands_are_triangles_on_the_mel_scale(n_mels):
    filters, hertz = mel_filters(n_mels), np.arange(201) * 40.0
    slow = np.stack([weight(hertz, m, n_mels) for m in range(n_mels)], axis=1)
    np.testing.assert_allclose(filters, slow, rtol=0, atol=1e-12)


def test_there_are_as_many_bands_as_have_a_frequency():
    assert mel_filters(149).any(axis=0).all()
    assert not all(weight(np.arange(201) * 40.0, m, 150).any() for m in range(150))
    with raises_naming(ValueError, "n_mels", 150):
        mel_filters(150)


def test_wide_bands_have_the_area_1():
    assert mel_filters(7).sum(axis=0) * 40 == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_by_definition(dtype):
    """0.1 s of noise, then zeros: 12 frames are not silent."""
    x = rng.normal(size=1601).astype(dtype) / 10
    features = log_mel(x, n_mels=13)
    assert features.shape == (3000, 13)
    assert features.dtype == dtype
    padded = np.append(x.astype(np.float64), np.zeros(2000))
    power = [np.abs(slow_spectrum(padded, t)) ** 2 for t in range(12)]
    slow = np.log10(power @ mel_filters(13))
    top = slow.max()
    tolerance = {np.float32: 2e-7, np.float64: 1e-12}[dtype]
    expected = (np.maximum(slow, top - 8) + 4) / 4
    np.testing.assert_allclose(features[:12], expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(features[12:], (max(top - 8, -10) + 4) / 4, rtol=0, atol=tolerance)


def test_properties_of_features():
    x = rng.normal(size=WINDOW // 3) / 10
    features = log_mel(x)
    assert features.max() - features.min() <= 2
    np.testing.assert_allclose(log_mel(10 * x), features + 0.5, rtol=0, atol=1e-12)
    later = log_mel(np.append(np.zeros(160 * 7), x))
    inside = features[2:893]  # frames whose windows have no end of the noise
    np.testing.assert_allclose(later[9:900], inside, rtol=0, atol=1e-12)
    assert np.array_equal(log_mel(np.append(x, np.zeros(5))), features)
    assert np.array_equal(log_mel(np.zeros(1)), np.full((3000, 80), -1.5))
    assert log_mel(np.ones(WINDOW)).shape == (3000, 80)


REFUSED = {
    "integers": (np.zeros(5, np.int16), TypeError, "int16"),
    "a path": ("a.wav", TypeError, "read_wav"),
    "half": (np.zeros(5, np.float16), TypeError, "float16"),
    "list of integers": ([0], TypeError, "int64"),
    "masked": (np.ma.zeros(5), TypeError, "masked"),
    "stereo": (np.zeros((5, 2)), ValueError, "(5, 2)"),
    "empty": (np.zeros(0), ValueError, "(0,)"),
    "long": (np.zeros(WINDOW + 160), ValueError, "30.01"),
    "nan": (np.array([0, np.nan]), ValueError, "nan"),
    "infinite": (np.array([0, -np.inf]), ValueError, "inf"),
    "undivided": (np.array([0.0, -3000]), ValueError, "3000.0"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_dividing_does_not_make_numbers_finite(value):
    with pytest.raises(ValueError, match="waveform") as caught:
        log_mel(np.array([0, value]))
    assert "divide" not in str(caught.value)


@pytest.mark.parametrize(("waveform", "kind", "got"), REFUSED.values(), ids=REFUSED)
def test_waveforms_that_are_refused(waveform, kind, got):
    with raises_naming(kind, "waveform", got):
        log_mel(waveform)


@pytest.mark.parametrize(
    ("n_mels", "kind"), [(0, ValueError), (10**9, ValueError), (80.0, TypeError)]
)
def test_numbers_of_bands_that_are_refused(n_mels, kind):
    with raises_naming(kind, "n_mels"):
        log_mel(np.zeros(3), n_mels)


# Rules of timestamps, for a vocabulary of text 0 to 2, the end 3, <|notimestamps|> 4, and
# timestamps 5 to 11

EOS, NONE, FIRST, SIZE = 3, 4, 5, 12


def rules(scores, tokens, max_initial):
    """The tokens that one row may take, as openai/whisper's comments state the rules."""
    times = [t for t in tokens if t >= FIRST]
    may = set(range(SIZE)) - {NONE}
    if not tokens:
        most = SIZE if max_initial is None else FIRST + max_initial
        may &= {i for i in may if FIRST <= i <= most}
    elif tokens[-1] >= FIRST:
        was_pair = len(tokens) == 1 or tokens[-2] >= FIRST
        may = {i for i in may if (i < FIRST if was_pair else i >= EOS)}
    if times:
        is_end = tokens[-1] >= FIRST and len(tokens) > 1 and tokens[-2] < FIRST
        may = {i for i in may if i < FIRST or i >= times[-1] + (not is_end)}
    mass = sum(np.exp(scores[i]) for i in may if i >= FIRST)
    if mass > max((np.exp(scores[i]) for i in may if i < FIRST), default=0):
        may = {i for i in may if i >= FIRST}
    return may


@given(
    histories=st.lists(st.lists(st.integers(0, SIZE - 1), min_size=5, max_size=5), min_size=1),
    n_new=st.integers(0, 5),
    max_initial=st.sampled_from([None, 0, 3, 50]),
    seed=st.integers(0, 99),
)
def test_timestamp_rules_by_their_statements(histories, n_new, max_initial, seed):
    scores = np.random.default_rng(seed).normal(size=(len(histories), SIZE)) * 2
    process = rs.timestamp_rules(NONE, EOS, max_initial=max_initial)
    after = process(scores, state(histories, n_new))
    for row, history, out in zip(scores, histories, after, strict=True):
        may = rules(row, history[5 - n_new :], max_initial)
        assert set(np.flatnonzero(out > -np.inf)) == may
        assert np.array_equal(out[sorted(may)], row[sorted(may)])


def test_timestamp_rules_by_hand():
    likely = np.array([[5.0] * 4 + [0.0] * 8])  # texts, so that mass forces no timestamp
    for tokens, expected in [
        ([], [5, 6, 7]),  # 2 steps at most
        ([6], [0, 1, 2, 3]),
        ([6, 0], [0, 1, 2, 3, 7, 8, 9, 10, 11]),
        ([6, 0, 8], [3, 8, 9, 10, 11]),
        ([6, 0, 8, 8], [0, 1, 2, 3]),
    ]:
        now = state([[9, 9, *tokens]], n_new=len(tokens))  # the prefix does not count
        out = rs.timestamp_rules(NONE, EOS, max_initial=2)(likely, now)
        assert np.flatnonzero(out[0] > -np.inf).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_timestamps_are_chosen_by_their_sum(dtype):
    """Five timestamps of 0.15 together exceed a text of 0.2, and two do not."""
    probs = np.array([0.2, 0.05, 0, 0, 0.0, 0, 0.15, 0.15, 0.15, 0.15, 0.15, 0])
    with np.errstate(divide="ignore"):
        scores = np.log(np.stack([probs, probs])).astype(dtype)
    scores[1, 7:] = -np.inf
    out = rs.timestamp_rules(NONE, EOS)(scores, state([[5, 0], [5, 0]], n_new=2))
    kept = [np.flatnonzero(row > -np.inf).tolist() for row in out]
    assert kept == [[6, 7, 8, 9, 10], [0, 1, 6]]
    assert out.dtype == dtype


def test_halves_are_added_in_float32():
    """e^-3.125 + e^-3.125 + e^-0.0919... = 1.00005 exceeds e^0 of a text; rounded to 1, not."""
    scores = np.full((1, SIZE), -np.inf, dtype=np.float16)
    scores[0, [0, 6, 7, 8]] = 0, -3.125, -3.125, -0.0919189453125
    out = rs.timestamp_rules(NONE, EOS)(scores, state([[5, 0]], n_new=2))
    assert np.flatnonzero(out[0] > -np.inf).tolist() == [6, 7, 8]


def test_rows_that_take_no_token_are_left_alone():
    now = distributions.state(batch=2, emitted=[True, False])
    after = rs.timestamp_rules(NONE, EOS)(np.zeros((2, SIZE)), now)
    assert (after[1] == 0).all()
    assert banned(pickle.loads(pickle.dumps(rs.timestamp_rules(NONE, EOS))), now, SIZE)[1] == []


@pytest.mark.parametrize(
    ("make", "kind", "names"),
    [
        (lambda: rs.timestamp_rules(4, 5), ValueError, ["eos", "5"]),
        (lambda: rs.timestamp_rules(4.0, 3), TypeError, ["no_timestamps", "float"]),
        (lambda: rs.timestamp_rules(4, 3, max_initial=-1), ValueError, ["max_initial", "-1"]),
        (lambda: banned(rs.timestamp_rules(11, 3), state([[1]]), 12), ValueError, ["11"]),
    ],
)
def test_rules_that_are_refused(make, kind, names):
    with raises_naming(kind, *names):
        make()


# Prompts and segments


def vocabulary(*names, n_text=3):
    texts = tuple("abcdefg"[:n_text])
    special = tuple(f"<|{name}|>" for name in names)
    return rs.Vocabulary(symbols=texts + special, separator="", special=special, replacements=())


ENGLISH = vocabulary("endoftext", "startoftranscript", "notimestamps")  # 3, 4, 5; 0.00 is 6
MANY = vocabulary(
    *("endoftext", "startoftranscript", "en", "haw", "translate", "transcribe", "startoflm"),
    "notimestamps",
)


class LikeGpt2:
    """The vocabulary of tiny.en, which has tokens of languages that it does not use."""

    symbols = (*("x",) * 50256, *MANY.symbols[3:])


@pytest.mark.parametrize(
    ("tokenizer", "asked", "ids"),
    [
        (MANY, {"language": "haw"}, [4, 6, 8, 10]),
        (MANY, {"language": "en", "task": "translate", "timestamps": True}, [4, 5, 7]),
        (ENGLISH, {}, [4, 5]),
        (LikeGpt2, {"language": "en", "timestamps": True}, [50257]),
        (LikeGpt2, {}, [50257, 50263]),
    ],
)
def test_prompts(tokenizer, asked, ids):
    assert prompt(tokenizer, **asked) == ids


@pytest.mark.parametrize(
    ("tokenizer", "asked", "names"),
    [
        (MANY, {}, ["language", "en, haw"]),
        (MANY, {"language": "hwa"}, ["language", "en, haw", "hwa"]),
        (MANY, {"language": "en", "task": "sing"}, ["task", "translate", "sing"]),
        (ENGLISH, {"language": "haw"}, ["language", "haw"]),
        (LikeGpt2, {"task": "translate"}, ["task", "translate", "multilingual"]),
        (LikeGpt2, {"task": "sing"}, ["task must be", "transcribe, translate", "sing"]),
        (MANY, {"language": ["en"]}, ["language", "['en']"]),
        (MANY, {"language": "en", "task": {}}, ["task", "{}"]),
        (vocabulary("endoftext", "startoftranscript"), {}, ["tokenizer", "<|notimestamps|>"]),
        (None, {}, ["tokenizer", "NoneType"]),
    ],
)
def test_prompts_that_are_refused(tokenizer, asked, names):
    with raises_naming(ValueError, *names):
        prompt(tokenizer, **asked)


def test_timestamps_are_asked_for_with_a_bool():
    with raises_naming(TypeError, "timestamps", "'no'"):
        prompt(MANY, "en", timestamps="no")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([6, 0, 1, 9, 3], [(0.0, 0.06, "ab")]),
        ([7, 0, 9, 9, 1, 2, 1506, 3, 0], [(0.02, 0.06, "a"), (0.06, 30.0, "bc")]),
        ([6, 0, 9, 13, 1, 16], [(0.0, 0.06, "a"), (0.14, 0.2, "b")]),
        ([6, 0, 4, 9, 3], [(0.0, 0.06, "a")]),
        # cut off in the last segment, or before it
        ([6, 0, 9, 9, 1, 2], [(0.0, 0.06, "a"), (0.06, None, "bc")]),
        ([6, 0, 9, 9, 3], [(0.0, 0.06, "a"), (0.06, None, "")]),
        ([6, 0, 9, 9, 1, 12, 2], [(0.0, 0.06, "a"), (0.06, None, "bc")]),
        # text that has no end, no start, or neither, ends with the sound
        ([7, 0, 1, 3], [(0.02, 7.5, "ab")]),
        ([0, 1, 9, 3], [(0.0, 0.06, "ab")]),
        ([0, 1, 3], [(0.0, 7.5, "ab")]),
        ([], [(0.0, 7.5, "")]),
    ],
)
def test_segments(tokens, expected):
    found = segments(np.array(tokens, dtype=np.int64), ENGLISH, duration=7.5)
    assert [(s.start, s.end, s.text) for s in found] == expected
    assert all(s == Segment(s.start, s.end, tuple(ENGLISH.encode(s.text)), s.text) for s in found)


@pytest.mark.parametrize(
    ("tokens", "more", "kind"),
    [
        ([0.5], {}, TypeError),
        ([0], {"duration": 31}, ValueError),
        ([-1], {}, ValueError),
        ([6, 1507], {}, ValueError),  # a timestamp above 30 s
        ([[6, 0]], {}, TypeError),
        (["a"], {}, TypeError),
        (None, {}, TypeError),
    ],
)
def test_segments_that_are_refused(tokens, more, kind):
    with raises_naming(kind):
        segments(tokens, ENGLISH, **more)
