"""Docstrings are numpydoc's, and every public name is in the API pages."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import refseq2seq as rs

validate = pytest.importorskip(
    "numpydoc.validate", reason="needs numpydoc: pip install '.[docs]'"
).validate

NOT_ASKED = {
    *("ES01", "EX01", "SA01"),  # a longer text, examples and references where they help
    *("PR01", "PR04", "PR07", "RT01", "RT03", "YD01"),  # where one sentence says it all
    *("PR06", "RT02", "RT04"),  # shapes and dtypes in English
    *("SS02", "SS05", "SS06"),  # a summary may begin with an equation and take two lines
    "PR03",  # beam_steps documents the arguments that it shares with decode_steps together
}
ROOMS = [
    *("convert", "generation.like", "presets", "config", "ops", "erf", "attention", "positions"),
    *("masks", "model", "speech", "watching.quantities"),
]


def public_names():
    yield from (f"refseq2seq.{name}" for name in rs.__all__)
    yield from (f"refseq2seq.testing.{name}" for name in rs.testing.__all__)
    for room in ROOMS:
        module = importlib.import_module(f"refseq2seq.{room}")
        names = getattr(module, "__all__", None) or vars(module)
        for name in names:
            own = getattr(getattr(module, name), "__module__", "").startswith(module.__name__)
            if own and not name.startswith("_"):
                yield f"{module.__name__}.{name}"


def is_documented_object(name):
    module, _, last = name.rpartition(".")
    thing = getattr(importlib.import_module(module), last)
    return inspect.isclass(thing) or inspect.isfunction(thing)


NAMES = sorted({name for name in public_names() if is_documented_object(name)})


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_is_what_numpydoc_asks_for(name):
    faults = [f"{code}: {what}" for code, what in validate(name)["errors"] if code not in NOT_ASKED]
    assert faults == []


API = "\n".join(
    page.read_text(encoding="utf-8") for page in Path(__file__).parents[2].glob("docs/api/*.rst")
)


@pytest.mark.parametrize("name", [*rs.__all__])
def test_a_public_name_is_in_the_api(name):
    written = rf"(autofunction|autoclass|autoexception|autodata):: {name}$"
    room = rf"automodule:: refseq2seq\.(\w+\.)?{name}$"
    assert re.search(written, API, re.MULTILINE) or re.search(room, API, re.MULTILINE)
