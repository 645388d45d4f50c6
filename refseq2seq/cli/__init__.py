"""The command line: text in, text out, one output line for each input line.

    refseq2seq generate oracle transformer seq2seq
    refseq2seq generate < words.txt > pronunciations.txt
    refseq2seq generate oracle --steps
    refseq2seq explain oracle --html oracle.html
    refseq2seq info
    refseq2seq vectors make DIR

Mistakes of the user are one line on standard error, never a traceback. A command is a module
with a function ``add_to`` that adds it to the parser, and a function that runs it and may
return the exit status: 0, 1 if it refused, 2 for wrong usage, 3 if some lines have no answer.
"""

import argparse
import io
import os
import sys

from .. import __version__
from ..backend import BackendError
from . import explain, generate, info, vectors
from .options import Parser
from .progress import tell

COMMANDS = (generate, explain, info, vectors)

EXPECTED = (ValueError, OSError, ImportError, BackendError, MemoryError, OverflowError)
"""Errors that the user or the machine causes; any other is a bug."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the result is the exit status."""
    if sys.stdout is None:
        tell("standard output is closed: there is nowhere to write to")
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as files have it, whatever the locale
    try:
        try:
            options = _parser().parse_args(arguments)
            status: int | None = options.run(options)
        finally:  # --help, too, ends here
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        _drop_output()
        return 128 + 13  # as if by SIGPIPE
    except KeyboardInterrupt:
        return 128 + 2  # as if by SIGINT
    except Exception as error:
        return _refuse(error)
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="refseq2seq",
        description="Encoder-decoder Transformer generation, step by step.",
        epilog="exit status: 0; 1 refused; 2 wrong usage; 3 some lines have no answer",
    )
    parser.add_argument("--version", action="version", version=f"refseq2seq {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _refuse(error: Exception) -> int:
    """Print an error in one line, and return 1; with ``python -X dev``, raise an unexpected one."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    if not isinstance(error, EXPECTED):
        if sys.flags.dev_mode:
            raise error
        message = f"unexpected {type(error).__name__}: {message} (python -X dev -m shows where)"
    try:
        sys.stdout.flush()  # the answers before it
    except OSError:  # a full disk, which may be the error itself
        _drop_output()
    tell(message)
    return 1


def _drop_output() -> None:
    """Send the rest of the output to the null device, so that flushing at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
