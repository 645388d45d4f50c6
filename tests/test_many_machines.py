"""The recipe of docs/scale.md, on a cluster of two processes of this machine."""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import refseq2seq as rs

pytest.importorskip("distributed", reason="needs the scale extra")

RECIPE = Path(__file__).parents[1] / "docs" / "scale" / "many_machines.py"


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("many_machines", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(tmp_path):
    """Lines of two pieces: an empty one, one that cannot be read, and 298 others."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 6))) for _ in range(300)]
    words[3], words[290] = "", "na_ve"
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(words))
    return path


def test_two_workers_give_the_lines_of_one_process(recipe, corpus, tmp_path):
    answers = tmp_path / "answers"
    result = subprocess.run(
        [sys.executable, str(RECIPE), str(corpus), str(answers)],
        env={**os.environ, "PYTHONPATH": str(RECIPE.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "pieces answered: 2\n"), result.stderr
    files, words = sorted(answers.iterdir()), corpus.read_text().split("\n")
    assert [path.name for path in files] == ["00000.jsonl", "00001.jsonl"]
    found = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert [line["input"] for line in found] == words
    assert found[3] == {"input": ""}
    assert found[290]["error"].startswith("line 291: 'na_ve' has unknown symbols")

    model = rs.load("g2p")
    kept = [i for i, line in enumerate(found) if "tokens" in line]
    assert len(kept) == 298
    out = rs.generate(
        model,
        [model.source_vocabulary.encode(words[i]) for i in kept],
        row_ids=kept,
        choose=rs.sample(rs.temperature(0.8), rs.top_k(5)),
        seed=recipe.SEED,
    )
    for i, tokens, n in zip(kept, out.tokens, out.lengths, strict=True):
        assert found[i]["tokens"] == tokens[:n].tolist()


def test_a_second_run_answers_what_lacks(recipe, corpus, tmp_path, monkeypatch):
    """In this process: which pieces are asked for has nothing to do with the cluster."""
    dask = pytest.importorskip("dask")
    asked = []
    monkeypatch.setattr(
        recipe, "generated", lambda model, texts, first: asked.append(first) or [{"n": first}]
    )
    answers = tmp_path / "answers"
    with dask.config.set(scheduler="synchronous"):
        assert recipe.run(corpus, answers) == 2
        (answers / "00001.jsonl").unlink()
        (answers / "00001.4711").write_text("left by a worker that died")
        assert recipe.run(corpus, answers) == 1
        assert recipe.run(corpus, answers) == 0
    assert sorted(asked) == [0, 256, 256]
    assert json.loads((answers / "00001.jsonl").read_text()) == {"n": 256}
