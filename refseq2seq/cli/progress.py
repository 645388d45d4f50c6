"""Messages on standard error: the progress of a long run, and errors."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..files.reading import one_line

EVERY = 3.0  # seconds


def tell(what: str) -> None:
    """Print a line on standard error; do nothing if it is closed or full."""
    if sys.stderr is not None:
        try:
            print(f"refseq2seq: {one_line(what, 4000)}", file=sys.stderr)
        except OSError:
            sys.stderr = None  # otherwise Python would try again at exit


@contextmanager
def progress(
    done: int, total: int | None, wanted: bool = True
) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of further lines that are done.

    If ``wanted`` and standard error is a terminal, tqdm shows a bar; without tqdm, a line is
    printed every `EVERY` seconds.
    """
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _printed(done, total)
        return
    with tqdm(initial=done, total=total, unit=" lines", delay=1) as bar:
        yield bar.update


def _printed(done: int, total: int | None) -> Callable[[int], None]:
    last = time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(f"{done:,}{f' of {total:,}' if total else ''} lines done", file=sys.stderr)

    return advance
