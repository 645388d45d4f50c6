"""On a GPU: correct models are accepted in float32, TF32, bfloat16 and float16.

The table of docs/tolerances.md is that of

    TOLERANCE_CASES=60 python -m pytest -q -s -m gpu tests/peers/test_tolerances_gpu.py
"""

import os
from collections import defaultdict

import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")

import torch
from tally import Tally, generator, judge, judge_mistakes
from torch_forward import DTYPES, TorchTransformer, random_inputs, random_model

from refseq2seq.testing import rounded, spread

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

N = int(os.environ.get("TOLERANCE_CASES", "5"))
DTYPES = DTYPES | {"tf32": torch.float32}


@pytest.mark.parametrize("size", ["small", "wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_implementations_are_accepted(dtype, size, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", dtype == "tf32")
    tally, mistakes = Tally(), defaultdict(Tally)
    for seed in range(N if size == "small" else N // 5):
        rng = generator("gpu", size, seed)
        model = rounded(random_model(rng, wide=size == "wide"), dtype)
        inputs = random_inputs(rng, model)
        within = spread(model, *inputs, dtype=dtype)
        judge(tally, within, TorchTransformer(model, DTYPES[dtype], "cuda")(*inputs))
        judge_mistakes(mistakes, within, model, inputs, DTYPES[dtype], "cuda")
    evident, missed = (
        sum(getattr(t, name) for t in mistakes.values()) for name in ("evident", "evident_missed")
    )
    print(tally.row(f"PyTorch, {size}", dtype), evident, "evident mistakes,", missed, "missed")
    assert tally.ours == missed == 0, tally.said
    assert evident > 0
