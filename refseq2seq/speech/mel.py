"""Whisper's features of a waveform: the logarithm of its energy by time and frequency band."""

import math
from functools import cache

import numpy as np

from ..checks import check_int, on_host
from .sound import RATE

WINDOW = 30 * RATE
"""The samples of a window of sound, which has 3,000 frames."""

N_FFT, HOP = 400, 160  # samples: a frame covers 25 ms, and the next starts 10 ms later


def log_mel(waveform: np.ndarray, n_mels: int = 80) -> np.ndarray:
    r"""The log-mel spectrogram that Whisper reads (Radford et al. 2022, section 2.2).

    .. math::
        L_{tm} = \log_{10} \max\Big(10^{-10}, \sum_k |X_{tk}|^2 F_{km}\Big), \qquad
        \frac{\max(L_{tm}, \max L - 8) + 4}{4}

    X is the short-time Fourier transform of the waveform, and F are triangular filters:
    ``spectrum`` and ``mel_filters`` in ``speech/mel.py``.

    Parameters
    ----------
    waveform : array, shape (n_samples,)
        16,000 samples per second in float32 or float64, full scale 1. Padded with zeros to 30 s.
    n_mels : int
        80, or 128 for large-v3 and turbo. At most 149, so that each band has a frequency.

    Returns
    -------
    array, shape (n_frames, n_mels)
        3,000 frames, one every 10 ms. Computed in float64; the dtype is the waveform's.

    Raises
    ------
    TypeError
        If the waveform is not float32 or float64.
    ValueError
        If it is empty or longer than 30 s, has several channels, is not finite, or exceeds 100,
        as integers do that were not divided.

    Notes
    -----
    Of a recording longer than 30 s, openai/whisper and transformers take max L over all of it.
    They compute in float32, with errors of up to 4e-5 in quiet bands of speech.

    Examples
    --------
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    >>> features = log_mel(tone)
    >>> features.shape, int(features[50].argmax())
    ((3000, 80), 11)
    """
    waveform, n_mels = _checked(waveform), check_int("n_mels", n_mels, 1)
    padded = np.zeros(WINDOW)
    padded[: len(waveform)] = waveform

    power = np.abs(spectrum(padded)) ** 2  # (n_frames, n_frequencies)
    logs = np.log10(np.maximum(power @ mel_filters(n_mels), 1e-10))
    logs = np.maximum(logs, logs.max() - 8)
    return ((logs + 4) / 4).astype(waveform.dtype)


def spectrum(waveform: np.ndarray) -> np.ndarray:
    r"""The short-time Fourier transform of a waveform that is reflected at its ends.

    .. math:: X_{tk} = \sum_{n=0}^{399} \sin^2\!\Big(\frac{\pi n}{400}\Big)\, x_{160 t + n - 200}
        \, e^{-2 \pi i k n / 400}

    (n_samples,) -> complex (n_frames, 201): a frame for every 160 samples, and 201 frequencies
    from 0 to 8,000 Hz.
    """
    hann = np.sin(np.pi * np.arange(N_FFT) / N_FFT) ** 2
    reflected = np.pad(waveform, N_FFT // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(reflected, N_FFT)[::HOP]
    return np.fft.rfft(hann * windows[: len(waveform) // HOP])


@cache
def mel_filters(n_mels: int) -> np.ndarray:
    """The weight of each frequency in each band: triangles of area 1 (Slaney 1998).

    Their edges are evenly spaced on the mel scale from 0 to 8,000 Hz. A read-only array
    (201, n_mels); librosa and openai/whisper have its transpose in float32.
    """
    if n_mels > 149:  # some band would have no frequency
        raise ValueError(f"n_mels must be at most 149, got {n_mels}")
    frequencies = np.linspace(0, RATE / 2, N_FFT // 2 + 1)[:, None]
    top = 15 + 27 * math.log(8, 6.4)  # 8,000 Hz
    edges = _hertz(np.linspace(0, top, n_mels + 2))
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]

    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    filters.flags.writeable = False
    return filters


def _hertz(mels: np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear up to 15 mels, 1,000 Hz; then 27 mels are a factor of 6.4."""
    return np.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))


def _checked(waveform: np.ndarray) -> np.ndarray:
    waveform = on_host("waveform", waveform)
    divide = "divide integers of 16 bits by np.float32(32768)"
    if waveform.dtype not in (np.float32, np.float64):
        cures = {"i": divide, "u": divide, "f": "call waveform.astype(np.float32)"}
        cure = cures.get(waveform.dtype.kind, "rs.speech.read_wav(path) reads a file")
        raise TypeError(f"waveform must be float32 or float64, got {waveform.dtype}: {cure}")
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(
            f"waveform must be (n_samples,), at least one, got {waveform.shape}: average channels"
        )
    if len(waveform) > WINDOW:
        raise ValueError(
            f"waveform must be at most 30 s long, got {len(waveform) / RATE:.2f} s: cut it into "
            f"windows of {WINDOW} samples"
        )
    if not np.isfinite(loudest := np.abs(waveform).max()):
        raise ValueError(f"waveform must be finite, got {loudest}")
    if loudest > 100:
        raise ValueError(f"waveform must be about 1 at most, got {loudest}: {divide}")
    return waveform
