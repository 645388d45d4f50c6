"""Sums in order have the same bits with other threads, BLAS kernels and vector units."""

import json
import os
import platform
import sys
from pathlib import Path

import pytest
from command_line import process

ROOT = Path(__file__).parents[1]
PROGRAM = """
import hashlib, json
import numpy as np
import refseq2seq as rs
from refseq2seq.exact import as_exact
from refseq2seq.ops import layer_norm

def digest(*arrays):
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()

config = rs.presets.x_transformers(
    d_model=67, source_vocab_size=29, target_vocab_size=23, n_source_positions=19,
    n_target_positions=17, encoder_layers=1, decoder_layers=1, n_heads=3, d_k=17,
    decoder_start_id=1, eos_ids=(2,), pad_id=0)
found = {}
for dtype in ("float32", "float64"):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(dtype) for s in ((31, 257), (257, 67)))
    trace = rs.Trace("encoder.layers.0.self_attention.*", "encoder.embed")
    model = rs.Model.random(config, 0, dtype).exact()
    rs.encode(model, [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7]], tap=trace)
    before_exp = ("embed", "input", "q", "k", "v", "scores")
    kept = [x for name, x in trace.items() if name.rpartition(".")[2] in before_exp]
    assert len(kept) == 6
    e = as_exact(x)
    found[dtype] = {
        "plain": digest(x @ w),
        "exact": digest(e @ w, e.sum(-1), layer_norm(e, None, None, 1e-5)),
        "model": digest(*kept),
    }
try:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    found["optional"] = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
except ImportError:
    found["optional"] = []
print(json.dumps(found))
"""


def digests(**environment):
    result = process(
        sys.executable, "-c", PROGRAM, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def as_it_is():
    return digests()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other kernels to choose from on x86-64")
def test_sums_in_order_have_the_same_bits(as_it_is):
    others = [
        as_it_is,
        digests(OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="Nehalem"),
        digests(NPY_DISABLE_CPU_FEATURES=" ".join(as_it_is["optional"])),
    ]
    for dtype in ("float32", "float64"):
        assert len({found[dtype]["exact"] for found in others}) == 1
        assert len({found[dtype]["model"] for found in others}) == 1
    # and BLAS's product does depend on them: otherwise this would show nothing
    assert len({found["float32"]["plain"] for found in others}) > 1


def test_a_process_gives_the_bits_of_another(as_it_is):
    """The same machine, versions and threads, and the default model's BLAS."""
    assert digests() == as_it_is
