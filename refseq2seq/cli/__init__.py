"""The command line; it reads and writes text, with one output line for each input line.

    refseq2seq generate oracle transformer seq2seq
    refseq2seq generate < words.txt > pronunciations.txt
    refseq2seq generate oracle --steps
    refseq2seq explain oracle --html oracle.html
    refseq2seq explain --serve
    refseq2seq info
    refseq2seq vectors make DIR
    refseq2seq write-out g2p -o g2p.py --arrays g2p.npz

A user's mistake gives one line on standard error, never a traceback. Each command is a module
with two functions: ``add_to`` adds the command to the parser, the other runs it and may return
the exit status. The status is 0 for success, 1 for an error, 2 for wrong usage, and 3 if some
lines have no answer.
"""

import argparse
import io
import os
import sys
import warnings
from typing import Any

from .. import __version__
from ..backend import BackendError
from . import explain, generate, info, vectors, write_out
from .options import Parser
from .progress import tell

COMMANDS = (generate, explain, info, vectors, write_out)

EXPECTED = (ValueError, OSError, ImportError, BackendError, MemoryError, OverflowError)
"""Errors that the user or the environment causes; any other error is a bug."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    if sys.stdout is None:
        tell("standard output is closed: there is nowhere to write to")
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # in every locale, as in files
    try:
        try:
            options = _parser().parse_args(arguments)
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                status: int | None = options.run(options)
        finally:  # also after --help
            sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `| head` has ended
        _drop_output()
        return 128 + 13  # as after SIGPIPE
    except KeyboardInterrupt:
        return 128 + 2  # as after SIGINT
    except Exception as error:
        return _refuse(error)
    return status or 0


def _warn(message: Any, *where: Any, **more: Any) -> None:
    tell(f"warning: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="refseq2seq",
        description="Encoder-decoder Transformer generation, step by step.",
        epilog="exit status: 0 success; 1 error; 2 wrong usage; 3 some lines have no answer",
    )
    parser.add_argument("--version", action="version", version=f"refseq2seq {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _refuse(error: Exception) -> int:
    """Print an error in one line and return 1; ``python -X dev`` raises unexpected errors."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    if not isinstance(error, EXPECTED):
        if sys.flags.dev_mode:
            raise error
        cure = "python -X dev -m refseq2seq shows the traceback"
        message = f"unexpected {type(error).__name__}: {message} ({cure})"
    try:
        sys.stdout.flush()  # print the answers before the error
    except OSError:  # a full disk, which may be the error itself
        _drop_output()
    tell(message)
    return 1


def _drop_output() -> None:
    """Send the rest of the output to the null device, so that flushing at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
