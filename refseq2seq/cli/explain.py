"""``refseq2seq explain``: an HTML page that shows how a text is decoded."""

import argparse
from pathlib import Path
from typing import Any

from ..files.writing import replacing
from ..generation.sampling import GREEDY, described
from .options import add_choice_options, add_command, add_model_options, method_of, model_of
from .sounds import reads_frames


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "explain",
        "write an HTML page that shows how a text is decoded",
        "oracle --html oracle.html",
        "oracle --beams 4 --html - > beams.html",
    )
    command.set_defaults(run=_explain)
    command.add_argument("text", metavar="TEXT", help="the source text")
    page = "write the page to FILE; - is standard output"
    command.add_argument("--html", type=Path, required=True, metavar="FILE", help=page)
    add_model_options(command)
    add_choice_options(command)


def _explain(options: argparse.Namespace) -> None:
    from ..explain import page  # here, because other commands do not need it

    model = model_of(options)
    if reads_frames(model):
        raise ValueError(
            f"{options.model} reads frames: `refseq2seq generate --steps` shows its steps"
        )
    method = method_of(options, model)
    choose = method.pop("choose", GREEDY)
    processors = method.pop("processors", choose.processors)
    for name in ("num_return_sequences", "n_best"):
        method.pop(name, None)
    html = page(
        model,
        options.text,
        processors={described(process): process for process in processors},
        draws=choose.pick is not GREEDY.pick,
        **method,
    )
    if options.html == Path("-"):
        print(html)
        return
    with replacing(options.html) as file:
        file.write(html.encode())
