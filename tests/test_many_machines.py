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


def run(corpus, answers):
    result = subprocess.run(
        [sys.executable, str(RECIPE), str(corpus), str(answers)],
        env={**os.environ, "PYTHONPATH": str(RECIPE.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_workers_give_the_lines_of_one_process_and_only_those_that_lack(tmp_path):
    spec = importlib.util.spec_from_file_location("many_machines", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 6))) for _ in range(300)]
    words[3], words[290] = "", "na1ve!"
    corpus, answers = tmp_path / "corpus.txt", tmp_path / "answers"
    corpus.write_text("\n".join(words))
    assert run(corpus, answers) == "pieces answered: 2\n"
    files = sorted(answers.iterdir())
    assert [path.name for path in files] == ["00000.jsonl", "00001.jsonl"]
    found = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert [line["input"] for line in found] == words
    assert found[3] == {"input": ""}
    assert found[290]["error"].startswith("line 291: 'na1ve!' has unknown symbols")

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

    before = files[0].read_bytes()
    files[0].unlink()
    other = files[1].stat().st_mtime_ns
    assert run(corpus, answers) == "pieces answered: 1\n"
    assert files[0].read_bytes() == before
    assert files[1].stat().st_mtime_ns == other
