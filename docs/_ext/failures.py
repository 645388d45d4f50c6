"""A cell that fails on purpose, such as an exercise without an answer, shows its message only."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def shorten(_app: Sphinx, doctree: nodes.document) -> None:
    """Drop the frames of tracebacks."""
    for block in doctree.findall(nodes.literal_block):
        if "traceback" in block["classes"]:
            message = re.split(r"\n(?=\w+Error: )", block.astext())[-1]
            block.rawsource, block["language"] = message, "text"
            block.children = [nodes.Text(message)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("doctree-read", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
