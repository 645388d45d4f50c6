"""The command line in this process or in one of its own, and a model that reads any text."""

import dataclasses
import subprocess
import sys

from arrangements import small_vaswani

import refseq2seq as rs
from refseq2seq import cli


def in_process(capsys, *before):
    """A function from arguments to (status, output, errors)."""

    def call(*arguments):
        status = cli.main([*before, *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def process(*command, timeout=60, check=False, **options):
    """Run a command to its end, with its output and errors as text."""
    options = {"capture_output": True, "text": True, "timeout": timeout, "check": check} | options
    return subprocess.run([*map(str, command)], **options)  # noqa: PLW1510


def run(*arguments, stdin="", **options):
    """The command line in a process of its own."""
    return process(sys.executable, "-m", "refseq2seq", *arguments, input=stdin, **options)


def assert_refused(found, *named, status=1):
    """No output, and an error of one line that names all of these."""
    assert (found[:2], found[2].count("\n")) == ((status, ""), 1)
    assert found[2].startswith("refseq2seq: ")
    for name in named:
        assert str(name) in found[2]


class Characters:
    """Reads any text: a token for each character, but for spaces and the letter x."""

    definition = "characters"
    symbols = tuple("abcdefgh")

    def encode(self, text):
        if "x" in text:
            raise rs.UnknownSymbolError(f"{text!r} has an x")
        return [ord(character) % 8 for character in text if character != " "]

    def decode(self, ids):
        return "".join(self.symbols[i] for i in ids)


def any_text():
    """A model of characters without a table of positions."""
    special = {"decoder_start_id": 0, "eos_ids": (1,)}
    config = small_vaswani(d_model=4, vocab_size=8, n_layers=1, d_ff=4, **special)
    text = {f"{side}_vocabulary": Characters() for side in ("source", "target")}
    return dataclasses.replace(rs.Model.random(config, 0, "float64"), **text)
