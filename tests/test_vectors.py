"""Numbers of the pinned peers, recorded by tests/vectors/record.py, are computed here."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

import refseq2seq as rs

HERE = Path(__file__).parent
FILES = sorted((HERE / "vectors").glob("*.npz"))


def read(path):
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    arrays = {
        name.removeprefix("array."): x.astype(np.float64) if x.dtype == np.float16 else x
        for name, x in values.items()
        if name.startswith("array.")
    }
    return json.loads(values["about"].item()), arrays, values


def converted(about, arrays):
    """The plain form of each converter: no peer is needed."""
    options = about["options"]
    if about["peer"] == "x-transformers":
        return rs.convert.from_x_transformers(arrays, options, decoder_start_id=1, eos_ids=(2,))
    if about["peer"] == "transformers":
        model = rs.convert.from_huggingface(arrays, options, about.get("generation"))
        return dataclasses.replace(model, settings=None)  # Blenderbot's class and Whisper have some
    names = ("source", "target", "positions")
    around = {name: arrays.pop(f"around.{name}", None) for name in names}
    unembedding, bias = arrays.pop("around.unembedding"), arrays.pop("around.bias", None)
    return rs.convert.from_pytorch(
        arrays,
        options,
        source_embedding=around["source"],
        target_embedding=around["target"],
        unembedding=unembedding if bias is None else (unembedding, bias),
        embedding_scale=about["scale"],
        source_positions=around["positions"],
        target_positions=around["positions"],
        decoder_start_id=1,
        eos_ids=(2, 5, 11, 17),
        pad_id=0,
    )


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_logits_and_greedy_tokens_are_those_of_the_peers(path):
    about, arrays, values = read(path)
    model = converted(about, arrays)
    logits = rs.forward(model, values["source"], values["target"], values["mask"])
    assert logits.dtype == np.float64
    scale = np.abs(values["logits"]).max()
    np.testing.assert_allclose(
        logits, values["logits"], rtol=0, atol=1e-12 * scale, equal_nan=False
    )
    out = rs.generate(model, values["source"], source_mask=values["mask"], max_new_tokens=7)
    theirs = values["tokens"]
    for row, n in enumerate(out.lengths):
        assert out.tokens[row, :n].tolist() == theirs[row, :n].tolist()
        assert n == 7 or theirs[row, n - 1] in model.config.eos_ids


def test_the_recorded_versions_are_the_pinned_ones():
    with open(HERE.parent / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    pinned = dict(line.split("==") for line in extras["peers"] if "==" in line)
    peers = {}
    for path in FILES:
        about, _, _ = read(path)
        peers.setdefault(about["peer"], set()).add(about["version"])
    assert peers == {name: {pinned[name]} for name in ("x-transformers", "transformers", "torch")}
    assert sum(path.stat().st_size for path in FILES) < 3_000_000
