"""``refseq2seq write-out``: the program of one model, and the arrays that it reads."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files.checkpoint import save
from .options import MODEL_HELP, add_command, add_options
from .progress import load


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "write-out",
        "write a model as one NumPy program that contains only what it computes",
        "g2p",
        "path/of/a/model -o model.py --arrays model.npz",
    )
    command.set_defaults(run=_write_out)
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file of the program (default: print it)"
    )
    arrays = "also write the arrays that the program reads, as a checkpoint (.npz)"
    command.add_argument("--arrays", type=Path, metavar="FILE", help=arrays)
    dtypes = ["float16", "float32", "float64"]
    add_options(command, ("--dtype", dtypes, "", "dtype of the model (default: its own)"))


def _write_out(options: argparse.Namespace) -> None:
    from ..written import reads_text, write_out

    if options.arrays and options.output and options.arrays.resolve() == options.output.resolve():
        raise ValueError(f"--arrays and --output must be two files, got {options.output} twice")
    model = load(options.model)
    if options.dtype:
        model = model.astype(options.dtype)
    if not reads_text(model):  # the program cannot use tokenizers of other programs
        model = replace(model, source_vocabulary=None, target_vocabulary=None)
    program = write_out(model)
    if options.arrays:
        save(model, options.arrays)
    if options.output:
        program.save(options.output)
    else:
        sys.stdout.write(program.source)
