"""The recipe of docs/scale.md, on a cluster of two processes of this machine."""

import importlib.util
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import process

from refseq2seq import cli

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
    """Lines of two pieces: an empty one, four that cannot be read, and 295 others."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 6))) for _ in range(300)]
    words[3], words[290] = "", "na_ve"
    words[7], words[8], words[9] = "a\u2028b", "c\x0cd", "e\rf"  # which end no line
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(words).encode())
    return path


def test_two_workers_give_the_lines_of_one_process(recipe, corpus, tmp_path):
    answers = tmp_path / "answers"
    env = {**os.environ, "PYTHONPATH": str(RECIPE.parents[2]), "OMP_NUM_THREADS": "1"}
    result = process(sys.executable, RECIPE, corpus, answers, env=env, timeout=300)
    assert (result.returncode, result.stdout) == (0, "pieces answered: 2\n"), result.stderr
    files = sorted(answers.iterdir())
    assert [path.name for path in files] == ["00000.jsonl", "00001.jsonl"]
    content = b"".join(path.read_bytes() for path in files)
    found = [json.loads(line) for line in content.split(b"\n")[:-1]]
    assert found[3] == {"input": "", "samples": []}
    assert found[290]["error"].startswith("line 291: 'na_ve'")
    assert [i for i, line in enumerate(found) if "error" in line] == [7, 8, 9, 290]

    sampling = ["--temperature", "0.8", "--top-k", "5", "--seed", "1"]
    sizes = ["--window", str(recipe.LINES), "--batch-size", str(recipe.BATCH)]
    bulk = ["--input", str(corpus), "--output", str(tmp_path / "bulk.jsonl"), *sampling, *sizes]
    assert cli.main(["generate", *bulk]) == 3
    others = [json.loads(x) for x in (tmp_path / "bulk.jsonl").read_bytes().split(b"\n")[:-1]]
    for line, other in zip(found, others, strict=True):
        assert (line["input"], line.get("error")) == (other["input"], other.get("error"))
        for a, b in zip(line.get("samples", ()), other.get("samples", ()), strict=True):
            assert (a["text"], a["tokens"]) == (b["text"], b["tokens"])
            np.testing.assert_allclose(a["log_probs"], b["log_probs"], rtol=1e-4, atol=1e-6)


def test_a_second_run_answers_the_missing_pieces(recipe, corpus, tmp_path, monkeypatch):
    """In this process: the pieces that are asked for do not depend on the cluster."""
    dask = pytest.importorskip("dask")
    asked = []

    def answers(model, lines, method, batch_size):
        numbers = [line.number for line in lines]
        asked.append(numbers[0])
        return [{"n": n} for n in numbers]

    monkeypatch.setattr(recipe, "answers", answers)
    directory = tmp_path / "answers"
    with dask.config.set(scheduler="synchronous"):
        assert recipe.run(corpus, directory) == 2
        (directory / "00001.jsonl").unlink()
        (directory / "00001.4711").write_text("left by a worker that died")
        assert recipe.run(corpus, directory) == 1
        assert recipe.run(corpus, directory) == 0
    assert sorted(asked) == [0, 256, 256]
    found = (directory / "00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in found] == [*range(256, 300)]
