"""How far a long run is, where a person watches."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 3.0  # seconds


@contextmanager
def progress(done: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A function to say that so many lines more are done.

    On a terminal, tqdm shows a bar; without tqdm, a line is printed every few seconds.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _told(done, total)
        return
    with tqdm(initial=done, total=total, unit=" lines", delay=1) as bar:
        yield bar.update


def _told(done: int, total: int | None) -> Callable[[int], None]:
    told = time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, told
        done += n
        if time.monotonic() - told >= EVERY:
            told = time.monotonic()
            print(f"{done:,}{f' of {total:,}' if total else ''} lines done", file=sys.stderr)

    return advance
