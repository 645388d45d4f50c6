"""Programs that models are written out as: the layers of several side by side, and whole programs.

```{layers} encode bart t5_1_1
```

```{program} bart
```

The models are small ones with random weights, recorded from the library that defines each family.
"""

import json
import re
from collections import Counter
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tables import table

import refseq2seq as rs

VECTORS = Path(__file__).parents[2] / "tests" / "vectors"
FAMILIES = {
    "bart": ("BART", "transformers-bart"),
    "t5_1_1": ("T5 1.1", "transformers-t5-1-1"),
    "marian": ("Marian", "transformers-marian"),
    "x_transformers": ("x-transformers", "x-transformers-defaults"),
    "whisper": ("Whisper", "transformers-whisper"),
}


@cache
def source(family: str) -> str:
    """The program of a family; of the shipped model if it is g2p."""
    if family == "g2p":
        return rs.write_out(rs.load("g2p")).source
    with np.load(VECTORS / f"{FAMILIES[family][1]}.npz") as file:
        about = json.loads(file["about"].item())
        names = [name for name in file.files if name.startswith("array.")]
        arrays = {name.removeprefix("array."): file[name].astype("float32") for name in names}
    if about["peer"] == "transformers":
        model = rs.convert.from_huggingface(arrays, about["options"], about.get("generation"))
    else:
        special = {"decoder_start_id": 1, "eos_ids": (2,)}
        model = rs.convert.from_x_transformers(arrays, about["options"], **special)
    return rs.write_out(model).source


def statements(family: str, function: str) -> list[tuple[str, str]]:
    """The lines of a function: what each is about, and its code with the meaning of its numbers.

    A line is about the variable that it assigns, in the sublayer whose parameters were named last.
    """
    body = source(family).partition(f"\ndef {function}(")[2].partition("\n\n\n")[0]
    found, place, above, loops = [], "", "", 0
    for line in body.splitlines()[3:]:
        code, _, comment = line.strip().partition("  # ")
        if code.startswith("# "):
            above = code.removeprefix("# ")
            continue
        if not code or code.startswith("encoder, decoder"):
            continue
        loops += code.startswith("for ")
        place = code if code.startswith(("p = ", "p, ")) else place
        place = place if line.startswith(" " * 8) else f"after {loops} loops"
        said = [part for part in (comment or above).split("; ") if not re.match(r"= |\(", part)]
        above = ""
        about = re.split(r"[ .\[(]", code)[0]
        found.append((f"{place} {about}", code + "".join(f"  # {part}" for part in said if part)))
    return found


def aligned(families: list[str], function: str) -> list[dict[str, str]]:
    """Rows of the code of each family, those that are about the same in one row."""
    keys: list[str] = []
    rows: list[dict[str, str]] = []
    for family in families:
        lines = statements(family, function)
        theirs = [key for key, _ in lines]
        merged: list[dict[str, str]] = []
        merged_keys: list[str] = []
        for _, a, b, c, d in SequenceMatcher(None, keys, theirs, autojunk=False).get_opcodes():
            same = keys[a:b] == theirs[c:d]
            for i in range(a, b):
                merged.append(rows[i] | ({family: lines[c + i - a][1]} if same else {}))
                merged_keys.append(keys[i])
            for j in range(c, d) if not same else ():
                merged.append({family: lines[j][1]})
                merged_keys.append(theirs[j])
        keys, rows = merged_keys, merged
    return rows


class Layers(SphinxDirective):
    """A function of several programs side by side; what differs from most is marked."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        function, *families = self.arguments
        rows = []
        for row in aligned(families, function):
            usual = Counter(row.get(family, "") for family in families).most_common(1)[0][0]
            cells = []
            for family in families:
                code = row.get(family, "")
                classes = ["differs"] if code != usual else []
                cells.append(nodes.paragraph("", "", nodes.literal(text=code, classes=classes)))
            rows.append(cells)
        found = table([FAMILIES[family][0] for family in families], rows)
        found["classes"] += ["side-by-side"]
        return [found]


class Program(SphinxDirective):
    """A whole program."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = source(self.arguments[0])
        return [nodes.literal_block(text, text, language="python")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("layers", Layers)
    app.add_directive("program", Program)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
