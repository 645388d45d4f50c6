"""``refseq2seq generate --input FILE --output FILE``: many lines, in a run that may be killed.

The input is read in windows. The lines of a window are sorted by length, so that a batch
has little padding. Their answers are stored in the journal together, in the order of the
input. One window at a time is in memory, and a kill loses at most one window. The same command
continues after the last window in the journal, with the same batches and the same bytes. If the
request differs, an error names the difference.
"""

import argparse
import hashlib
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..backend import to_numpy
from ..model import Model
from ..params import named_arrays
from . import journal
from .lines import answers, read_lines
from .progress import progress, tell
from .sounds import add_segments

IGNORED = {"run", "usage_error", "input", "output", "model", "json", "skip_errors"}
"""Options that are not compared: they do not change the output, or are compared by SHA-256."""


def generate_file(model: Model, method: dict[str, Any], options: argparse.Namespace) -> int:
    """Write one output line for each input line, or continue an interrupted run.

    The result is the exit status: 3 if some lines have no samples, otherwise 0.
    """
    path, output = options.input, Path(os.path.realpath(options.output))
    if path.exists() and not path.is_file():
        raise ValueError(f"--input must be a file, since --output reads it twice; got {path}")
    if options.output.exists() and not options.output.is_file():
        raise ValueError(f"--output must be a file, or - for standard output; got {options.output}")
    if Path(f"{output}.run") in path.resolve().parents:
        raise ValueError(f"--input {path} is in the directory of the run: choose another output")
    digest, total = _digest_of_file(path)
    with journal.opened(output) as run:
        done = run.begin(_asked(model, digest, options), total)
        with open(path, "rb") as file, progress(done, total) as advance:
            lines = islice(read_lines(file), done, None)
            while window := list(islice(lines, options.window)):
                found = answers(model, window, method, options.batch_size, advance)
                if options.timestamps:
                    add_segments(model, found)
                run.add(window[0].number, found)
        if _digest_of_file(path) != (digest, total):
            anew = f"remove {run.directory.name} to start over"
            raise ValueError(f"{path} changed while it was read: {anew}")
        run.publish()
        failed, first = run.failed()
    if failed:
        told = f"without samples: {failed}; the first is line {first + 1}, whose error says why"
        tell(f"lines of {options.output} {told}")
    return 3 if failed else 0


def _asked(model: Model, digest: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that determines the bytes of the output, except the hardware."""
    given = {name: value for name, value in vars(options).items() if name not in IGNORED}
    return {
        "the input": digest,
        **{f"--{name.replace('_', '-')}": value for name, value in sorted(given.items())},
        "the model": _digest_of_model(model),
        "the version of refseq2seq": __version__,
        "the version of NumPy": np.__version__,
    }


def _digest_of_file(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and how many lines it has."""
    digest, n, last = hashlib.sha256(), 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            n, last = n + block.count(b"\n"), block[-1:]
    return f"of SHA-256 {digest.hexdigest()}", n + (last != b"\n")


def _digest_of_model(model: Model) -> str:
    """The SHA-256 of the configuration, settings, tokenizers and parameters."""
    tokenizers = [
        v.definition if v else None for v in (model.source_vocabulary, model.target_vocabulary)
    ]
    settings = model.settings and model.settings.asked
    told = json.dumps([model.config.to_dict(), settings, tokenizers])
    digest = hashlib.sha256(told.encode())
    for name, array in named_arrays(model.params):
        digest.update(f"{name} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(to_numpy(array)).data)
    return f"of SHA-256 {digest.hexdigest()}"
