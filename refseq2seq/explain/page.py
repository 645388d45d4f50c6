"""The page: one HTML file that contains the record of a decoding, its style and its script."""

import base64
import hashlib
import json
import re
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

from ..model import Model
from .facts import facts
from .picture import picture
from .record import record


def page(model: Model, text: str, **options: Any) -> str:
    """Make an HTML document that shows how ``text`` is decoded, step by step.

    A picture of the model leads to the array of every quantity. The document loads no other
    file, so it works from a disk, in an email and without a network.

    Parameters
    ----------
    model, text, **options
        The arguments of `record`.

    Returns
    -------
    str
        The HTML.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> html = page(rs.load("g2p"), "oracle")
    >>> html.startswith("<!doctype html>")
    True
    """
    decoding = record(model, text, **options)
    return document(model, f"{text} → {decoding['output']}", decoding)


def document(model: Model, title: str, decoding: dict[str, Any] | None) -> str:
    """The page of a record; without one, a page that asks its server for records."""
    found = {name: asdict(fact) for name, fact in facts(model).items()}
    symbols = model.target_vocabulary.symbols  # type: ignore[union-attr]
    parts = {
        "title": escape(title),
        "style": _file("page.css"),
        "script": _file("page.js"),
        "picture": picture(model),
        "model": as_json({"facts": found, "symbols": list(symbols)}),
        "decoding": as_json(decoding),
    }
    names = "|".join(parts)
    return re.sub(f"@({names})@", lambda place: parts[place[1]], _file("page.html"))


def script_hash() -> str:
    """The hash of the page's script for a Content-Security-Policy."""
    script = f"\n{_file('page.js')}\n".encode()
    return "sha256-" + base64.b64encode(hashlib.sha256(script).digest()).decode()


def as_json(x: Any) -> str:
    """JSON that no text in it can turn into an end of a script element."""
    text = json.dumps(x, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
