"""Messages on standard error: the progress of a long run, and errors."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import checkpoint
from ..files.reading import one_line
from ..model import Model

EVERY = 3.0  # seconds
LARGE = 2**28  # bytes, which take a second to load


def tell(what: str) -> None:
    """Print a line on standard error; do nothing if it is closed or full."""
    if sys.stderr is not None:
        try:
            print(f"refseq2seq: {one_line(what, 4000)}", file=sys.stderr)
        except OSError:
            sys.stderr = None  # otherwise Python would try again at exit


@contextmanager
def progress(
    done: int, total: int | None, wanted: bool = True, unit: str = " lines"
) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of further lines, or of another ``unit``, that are done.

    If ``wanted`` and standard error is a terminal, tqdm shows a bar; without tqdm, a line is
    printed every `EVERY` seconds.
    """
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _printed(done, total, unit)
        return
    with tqdm(initial=done, total=total, unit=unit, unit_scale=unit == "B", delay=1) as bar:
        yield bar.update


def load(path: str) -> Model:
    """`refseq2seq.load`, with a progress bar if the file is large."""
    files = Path(path).glob("*.safetensors") if os.path.isdir(path) else [Path(path)]
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    with progress(0, n_bytes, n_bytes > LARGE, unit="B") as advance:
        return checkpoint.load(path, advance=advance)


def _printed(done: int, total: int | None, unit: str) -> Callable[[int], None]:
    last = time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(
                f"{done:,}{f' of {total:,}' if total else ''} {unit.strip()} done", file=sys.stderr
            )

    return advance
