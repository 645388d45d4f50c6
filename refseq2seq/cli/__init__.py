"""The command line: text in, text out, one output line for each input line.

    refseq2seq generate oracle transformer seq2seq
    refseq2seq generate < words.txt > pronunciations.txt
    refseq2seq generate oracle --steps
    refseq2seq explain oracle --html oracle.html
    refseq2seq info
    refseq2seq vectors make DIR

Mistakes of the user are one line on standard error, never a traceback. A command is a module
with a function ``add_to`` that adds it to the parser, and a function that runs it and may
return the exit status.
"""

import argparse
import os
import sys

from ..backend import BackendError
from . import explain, generate, info, vectors

COMMANDS = (generate, explain, info, vectors)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the result is the exit status: 0, 1 for an error, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        status: int | None = options.run(options)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if by SIGPIPE
    except (ValueError, OSError, BackendError) as error:
        print(f"refseq2seq: {_in_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refseq2seq", description="Encoder-decoder Transformer generation, step by step."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
