"""``refseq2seq info``: a description of a model."""

import argparse
from typing import Any

from ..files.checkpoint import load_outline
from ..watching.notebook import model_rows
from .options import MODEL_HELP, add_command


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "info", "describe a model", "", "path/of/a/model")
    command.set_defaults(run=_info)
    command.add_argument("model", nargs="?", default="g2p", metavar="MODEL", help=MODEL_HELP)


def _info(options: argparse.Namespace) -> None:
    for name, text in [("model", options.model), *model_rows(load_outline(options.model))]:
        print(f"{name:11} {text}")
