"""docs/examples/smiles.py against annalog 1.0.6, whose trained network it converts.

annalog imports rdkit and partialsmiles, which it needs to judge molecules only; where they are
missing, empty modules take their place. docs/your-own-model.md tells the story: its Python
blocks run here, and print what the page says.
"""

import importlib.util
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")

import torch
from comparisons import relative_error
from test_page import BLOCK, run

import refseq2seq as rs

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("annalog") is None,
    reason="needs annalog: pip install --no-deps annalog==1.0.6",
)
MOLECULES = (
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",  # aspirin
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",  # caffeine
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",  # ibuprofen
    "CN1CCC[C@H]1c1cccnc1",  # nicotine
    "Clc1ccccc1Br",
    "O=C(O)c1cc(N=Nc2ccc(S(=O)(=O)Nc3ccccn3)cc2)ccc1O",  # sulfasalazine
    "OCC1OC(O)C(O)C(O)C1O",  # glucose
    "NCCc1ccc(O)c(O)c1",  # dopamine
    "C1CC1",
    "O",
)


@pytest.fixture
def annalog(monkeypatch):
    """The package, and smiles.py as a module beside it."""
    monkeypatch.syspath_prepend(DOCS / "examples")
    for name in ("partialsmiles", "rdkit"):
        if importlib.util.find_spec(name) is None:
            empty = types.ModuleType(name)
            empty.Chem = None
            monkeypatch.setitem(sys.modules, name, empty)
    return importlib.import_module("annalog")


@pytest.fixture
def theirs(annalog):
    """The package's own model with its vocabulary."""
    folder = Path(annalog.__file__).parent / "ckpt_and_vocab"
    vocabulary = folder / "stereo_experiment_vocab_ttf.pkl"
    return annalog.SMILESModelHandler(
        vocabulary, vocabulary, folder / "Lev_extended.pt", device="cpu"
    )


def test_logits_tokens_and_scores_are_those_of_the_package(annalog, theirs, say):
    """Their beam search of one beam is greedy; it adds up log-probabilities."""
    import smiles

    model = smiles.load()
    assert model.source_vocabulary.symbols == tuple(theirs.SRC.vocab.itos)
    generator, worst, changed = annalog.SMILESGenerator(theirs), 0.0, 0
    for molecule in MOLECULES:
        source = smiles.encode(model, molecule)
        tokens = theirs.SRC.process([theirs.SRC.preprocess(molecule)])
        assert [source] == tokens.tolist()
        out = rs.generate(model, [source], max_new_tokens=101)
        [(text, score)] = generator.generate_smiles(
            molecule, generation_number=1, generation_method="beam"
        )
        assert model.target_vocabulary.decode(out.tokens[0]).replace(" ", "") == text
        assert out.log_probs.sum() == pytest.approx(score, abs=1e-4)
        target = np.concatenate([[[2]], out.tokens], axis=1)
        with torch.no_grad():
            logits = theirs.model(tokens, torch.tensor(target))[0].numpy()
        worst = max(worst, relative_error(rs.forward(model, [source], target), logits))
        changed += text != molecule
    say(f"logits within {worst:.1e} of the largest, {changed} of {len(MOLECULES)} are new")
    assert worst < 3e-6
    assert changed > 1


def test_a_padded_batch(theirs):
    import smiles

    model = smiles.load()
    source = theirs.SRC.process([theirs.SRC.preprocess(molecule) for molecule in MOLECULES])
    target = source[:, :9]
    with torch.no_grad():
        logits = theirs.model(source, target)[0].numpy()
    ours = rs.forward(model, source.numpy(), target.numpy(), (source != 1).numpy())
    seen = (target != 1).numpy()
    assert relative_error(ours[seen], logits[seen]) < 3e-6


def test_the_page_prints_what_it_says(annalog):
    page, namespace = (DOCS / "your-own-model.md").read_text(encoding="utf-8"), {}
    blocks = [block for block in BLOCK.findall(page) if not block[0].startswith(">>>")]
    assert len(blocks) == 3
    for code, expected in blocks:
        assert run(code, namespace) == expected, code


def test_the_script_prints_molecules(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smiles.py", "CCO", "Clc1ccccc1Br"])
    runpy.run_path(str(DOCS / "examples" / "smiles.py"), run_name="__main__")
    written = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert written == [["CCO", "CCOC(CO)CCOC(=O)CCO"], ["Clc1ccccc1Br", "Clc1ccccc1Br"]]
