"""The page: one HTML file that contains the record of a decoding, its style and its script."""

import json
import re
from html import escape
from importlib.resources import files
from typing import Any

from ..model import Model
from .record import record


def page(model: Model, text: str, **options: Any) -> str:
    """Make an HTML document that shows how ``text`` is decoded, step by step.

    It loads no other file, so it works from a disk, in an email and without a network.

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
    data = json.dumps(decoding, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    here = files(__package__)
    parts = {
        "@title@": escape(f"{text} → {decoding['output']}"),
        "@style@": here.joinpath("page.css").read_text(encoding="utf-8"),
        "@script@": here.joinpath("page.js").read_text(encoding="utf-8"),
        "@data@": data.replace("<", "\\u003c"),  # so that no text can end the script element
    }
    document = here.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub("@(title|style|script|data)@", lambda place: parts[place[0]], document)
