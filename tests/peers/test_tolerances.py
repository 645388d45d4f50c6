"""Derived tolerances accept correct implementations and reject mistakes, in every precision.

Correct random models of x-transformers, of Hugging Face and of a Transformer written in
PyTorch, in float32, bfloat16 and float16, and our own in float32; and the one written in
PyTorch with planted mistakes. `torch.testing.assert_close` with its default tolerances judges
the same numbers.

By default a few of each are tried. The table of docs/tolerances.md is that of

    TOLERANCE_CASES=80 python -m pytest -q -s tests/peers/test_tolerances.py
"""

import os
from collections import defaultdict

import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import hf_models
import test_x_transformers
import torch
import torch_forward
import xt_networks
from tally import Tally, generator, judge, judge_mistakes
from torch_forward import DTYPES

import refseq2seq as rs
from refseq2seq.testing import first_difference, rounded, spread

N = int(os.environ.get("TOLERANCE_CASES", "2"))  # of each kind and dtype
FREQUENCIES = ("rotary", "sinusoids", "modern")  # that a cast to half precision would cast too


def written_in_torch(seed, dtype):
    """A model, its inputs, and its logits by PyTorch."""
    rng = generator("torch", seed)
    model = rounded(torch_forward.random_model(rng), dtype)
    inputs = torch_forward.random_inputs(rng, model)
    return model, inputs, torch_forward.TorchTransformer(model, DTYPES[dtype])(*inputs)


def of_x_transformers(seed, dtype):
    options = list(test_x_transformers.CASES.items())
    if dtype != "float32":
        options = [(name, o) for name, o in options if not any(f in name for f in FREQUENCIES)]
    _, option = options[seed % len(options)]
    rng = generator("x-transformers", seed)
    network = xt_networks.random_network(rng, option)
    round_parameters(network.parts, dtype)
    model = rounded(network.convert(), dtype)
    batch = xt_networks.random_batch(rng, network.options, "right")
    for part in network.parts:
        part.to(DTYPES[dtype])
    if dtype != "float32":  # with a mask x-transformers mixes dtypes there, and raises
        batch.mask = None
    logits = network.tensor_of_logits(batch.source, batch.mask, batch.target)
    return model, (batch.source, batch.target, batch.mask), logits


def of_hugging_face(seed, dtype):
    names = list(hf_models.CASES)
    theirs = hf_models.random_model(names[seed % len(names)], seed, exact=False)
    round_parameters([theirs], dtype)
    model = rounded(rs.convert.from_huggingface(theirs), dtype)
    batch = hf_models.random_batch(theirs, seed)
    logits = hf_models.tensor_of_logits(theirs.to(DTYPES[dtype]), batch)
    return model, (batch.source, batch.target, batch.mask), logits


def round_parameters(modules, dtype):
    for module in modules:
        for x in module.parameters():
            if x.requires_grad:  # tables of sinusoids must be recognised
                x.data = x.data.to(DTYPES[dtype]).to(x.dtype)


MAKERS = {
    "x-transformers": of_x_transformers,
    "Hugging Face": of_hugging_face,
    "PyTorch": written_in_torch,
}


@pytest.fixture(scope="module")
def report():
    """Lines that are printed at the end, where all was tried."""
    lines = []
    yield lines
    if "TOLERANCE_CASES" in os.environ:
        print("\n" + "\n".join(lines))


@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_implementations_are_accepted(dtype, report):
    for name, maker in MAKERS.items():
        theirs, ours = Tally(), Tally()
        for seed in range(N):
            model, inputs, logits = maker(seed, dtype)
            within = spread(model, *inputs, dtype=dtype)
            judge(theirs, within, logits)
            if dtype == "float32":
                trace = rs.Trace()
                rs.forward(model.astype("float32"), *inputs, tap=trace)
                judge(ours, within, torch.tensor(trace["logits"]))
                everything = first_difference(within, trace)
                assert everything is None, everything
        report.append(theirs.row(name, dtype))
        if ours.n:
            report.append(ours.row(f"refseq2seq, models of {name}", dtype))
        assert theirs.ours + ours.ours == 0, theirs.said + ours.said


@pytest.mark.parametrize("dtype", DTYPES)
def test_evident_mistakes_are_rejected(dtype, report):
    tallies = defaultdict(Tally)
    for seed in range(N):
        model, inputs, _ = written_in_torch(seed, dtype)
        within = spread(model, *inputs, dtype=dtype)
        judge_mistakes(tallies, within, model, inputs, DTYPES[dtype])
    report.extend(t.row_of_a_mistake(mistake, dtype) for mistake, t in tallies.items())
    assert not any(t.evident_missed for t in tallies.values())
    assert sum(t.evident for t in tallies.values()) > N * len(torch_forward.MISTAKES) / 3
