"""Bytes of files as tests need them: .npy, zip, damaged; and a limit of what reading may cost."""

import io
import random
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def npy(array: Any) -> bytes:
    """As numpy.save writes it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def packed(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def unpacked(content: bytes) -> dict[str, bytes]:
    """The entries of a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def spoiled(content: bytes, rng: random.Random, start: int = 0) -> bytes:
    """Bytes with one to three changes, from ``start`` on."""
    new = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randint(start, len(new)), rng.choice([1, 1, 2, 4, 8, 30, 300])
        telling = rng.choice([b"", b"\0", b"\xff", b"\x7f", b"\x80", b"PK\3\4", b"{", b"9"])
        chunk = rng.choice([telling * length, rng.randbytes(length), bytes(new[:length])])
        new[place : place + rng.choice([0, length, len(chunk), len(chunk)])] = chunk
    return bytes(new)


@contextmanager
def cheap(megabytes: float, seconds: float = 2.0) -> Iterator[None]:
    """Fails if what is inside allocates more than this, or computes longer."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert time.process_time() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
