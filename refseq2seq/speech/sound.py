"""Reading WAV files of one channel and 16,000 samples per second, as Whisper needs them."""

import os
import shlex
import struct

import numpy as np

from ..files.reading import FileError, file_errors, read_bytes

RATE = 16_000
"""The samples per second of every waveform."""

PCM, EXTENSIBLE = 1, 0xFFFE  # formats; with the second, the actual one is later in the header
MAX_CHUNKS = 1000  # before the samples


def read_wav(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a WAV file of one channel, 16,000 samples per second, and 8, 16 or 24 bits.

    Parameters
    ----------
    path : path-like
        A regular file of integers (PCM), at most 64 MiB.

    Returns
    -------
    float32 array, shape (n_samples,)
        In [-1, 1): integers of 16 bits are divided by 32,768.

    Raises
    ------
    FileError
        If the file is truncated, or has another rate, number of channels or format. The message
        has a command that converts it; nothing is resampled or mixed here.

    Notes
    -----
    Python's ``wave`` does not raise for truncated files, and some of its versions return
    floating-point samples as integers.
    """
    with file_errors(path):
        content = read_bytes(path)
        try:
            header, samples = _parse(content)
            return _as_floats(samples, _width(header))
        except FileError as error:
            name = os.fsdecode(path)
            source, target = map(shlex.quote, (name, f"{os.path.splitext(name)[0]}.16k.wav"))
            cure = f"ffmpeg -i {source} -ac 1 -ar 16000 -c:a pcm_s16le {target}"
            raise FileError(f"{error}; convert it: {cure}") from error


def _parse(content: bytes) -> tuple[bytes, bytes]:
    """The header and the samples of a WAV file: its chunks ``fmt`` and ``data``."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise FileError("not a WAV file")
    header, at = b"", 12
    for _ in range(MAX_CHUNKS):
        if len(content) < at + 8:
            raise FileError("truncated: it has no samples")
        name, size = struct.unpack_from("<4sI", content, at)
        chunk = content[at + 8 : at + 8 + size]
        if len(chunk) < size:
            raise FileError(f"truncated: a chunk of {size} bytes has only {len(chunk)}")
        if name == b"fmt ":
            header = chunk
        if name == b"data":
            return header, chunk
        at += 8 + size + size % 2  # each chunk begins at an even position
    raise FileError(f"no samples among its first {MAX_CHUNKS} chunks")


def _width(header: bytes) -> int:
    """Bytes per sample. Raise unless there are 16,000 integers per second, of one channel."""
    if len(header) < 16:
        raise FileError(f"its header has {len(header)} bytes, expected at least 16")
    kind, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", header)
    if kind == EXTENSIBLE and len(header) >= 26:
        (kind,) = struct.unpack_from("<H", header, 24)
    if channels != 1:
        raise FileError(f"expected one channel, got {channels}")
    if kind != PCM or bits not in (8, 16, 24) or bits != 8 * width:
        raise FileError(
            f"expected integers of 8, 16 or 24 bits, got format {kind} of {bits} bits in {width} "
            "bytes"
        )
    if rate != RATE:
        raise FileError(f"expected {RATE} samples per second, got {rate}")
    return int(width)


def _as_floats(samples: bytes, width: int) -> np.ndarray:
    """Integers of 1 to 3 bytes as fractions of full scale, which float32 represents exactly."""
    if not samples or len(samples) % width:
        raise FileError(f"expected samples of {width} bytes, got {len(samples)} bytes in all")
    given = np.frombuffer(samples, dtype=np.uint8).reshape(-1, width)
    wide = np.zeros((len(given), 4), dtype=np.uint8)
    wide[:, 4 - width :] = given if width > 1 else given ^ 128  # of 8 bits, 128 is zero
    return wide.view("<i4")[:, 0].astype(np.float32) / 2**31
