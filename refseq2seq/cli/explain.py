"""``refseq2seq explain``: an HTML page that shows how a text is decoded."""

import argparse
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

from ..files.writing import replacing
from ..generation.sampling import GREEDY, described
from ..model import Model
from .options import (
    Parser,
    add_choice_options,
    add_command,
    add_model_options,
    method_of,
    model_of,
    whole,
)
from .sounds import reads_frames

MOST_BEAMS = 64  # that a live page may ask for
PORT = 8765


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = add_command(
        commands,
        "explain",
        "show on an HTML page how a text is decoded",
        "oracle --html oracle.html",
        "oracle --beams 4 --html - > beams.html",
        "--serve",
    )
    command.set_defaults(run=_explain)
    command.add_argument(
        "text",
        metavar="TEXT",
        nargs="?",
        default="oracle",
        help="the source text (default: oracle)",
    )
    target = command.add_mutually_exclusive_group(required=True)
    page = "write the page to FILE; - is standard output"
    target.add_argument("--html", type=Path, metavar="FILE", help=page)
    serve = "serve a page on which text and options can be changed, to this machine only"
    target.add_argument("--serve", action="store_true", help=serve)
    port = f"of --serve (default {PORT}); 0 is any free port"
    command.add_argument("--port", type=_port, metavar="N", help=port)
    add_model_options(command)
    add_choice_options(command)


def _explain(options: argparse.Namespace) -> None:
    from ..explain import page  # here, because other commands do not need it

    model = model_of(options)
    if reads_frames(model):
        raise ValueError(
            f"{options.model} reads frames: `refseq2seq generate --steps` shows its steps"
        )
    method = _method(options, model)
    if options.serve:
        _serve(options, model)
    elif options.port is not None:
        options.usage_error("--port N needs --serve")
    elif options.html == Path("-"):
        print(page(model, options.text, **method))
    else:
        html = page(model, options.text, **method)
        with replacing(options.html) as file:
            file.write(html.encode())


def _method(options: argparse.Namespace, model: Model) -> dict[str, Any]:
    """The arguments of `refseq2seq.explain.record`."""
    method = method_of(options, model)
    choose = method.pop("choose", GREEDY)
    processors = method.pop("processors", choose.processors)
    for name in ("num_return_sequences", "n_best"):
        method.pop(name, None)
    named = {described(process): process for process in processors}
    return {"processors": named, "draws": choose.pick is not GREEDY.pick, **method}


def _serve(options: argparse.Namespace, model: Model) -> None:
    from ..explain.page import document
    from ..explain.record import record
    from ..explain.server import serve

    def answer(query: dict[str, str]) -> dict[str, Any]:
        text, by_hand = query.pop("text", ""), _by_hand(query.pop("hand", ""))
        asked = parser.parse_args([f"--{name}={value}" for name, value in query.items()])
        if (asked.beams or 1) > MOST_BEAMS:
            raise ValueError(f"--beams must be at most {MOST_BEAMS} here, got {asked.beams}")
        return record(model, text, by_hand=by_hand, **_method(asked, model))

    parser = _Parser(add_help=False, allow_abbrev=False)
    add_choice_options(parser)
    names = [action.dest for action in parser._actions]
    parser.set_defaults(usage_error=parser.error, timestamps=False)
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    query = {name.replace("_", "-"): value for name, value in given.items()}
    fragment = urlencode({"text": options.text} | query)

    def ready(url: str) -> None:
        print(f"{url}#{fragment} (Ctrl-C ends it)", flush=True)

    page = document(model, f"{options.model}: type a text", None)
    serve(page, answer, PORT if options.port is None else options.port, ready)


class _Parser(Parser):
    """A parser of a request, whose mistakes do not end the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _by_hand(text: str) -> dict[int, int]:
    """``2:14,3:5`` as tokens by step."""
    try:
        pairs = [pair.split(":") for pair in text.split(",") if pair]
        tokens = {int(step): int(token) for step, token in pairs}
    except ValueError:
        tokens = {}
    if len(tokens) < len(pairs):
        raise ValueError(f"hand must be pairs of a step and a token, 2:14,3:5, got {text:.40}")
    return tokens


def _port(text: str) -> int:
    if (port := whole(text)) >= 2**16:
        raise argparse.ArgumentTypeError(f"expected less than 2**16, got {port}")
    return port
