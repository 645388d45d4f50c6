"""The page: the record of a decoding inside a file that needs nothing else."""

import json
import re
from html import escape
from importlib.resources import files
from typing import Any

from ..model import Model
from .record import record


def page(model: Model, text: str, **options: Any) -> str:
    """One HTML document that shows how ``text`` is decoded, step by step.

    It loads nothing: it works from a disk, in a mail, without a network.

    Parameters
    ----------
    model, text
        As in `record`, whose other arguments it takes too.

    Returns
    -------
    str

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
        "@data@": data.replace("<", "\\u003c"),  # nothing in it can end the script
    }
    document = here.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub("@(title|style|script|data)@", lambda place: parts[place[0]], document)
