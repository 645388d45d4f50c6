"""Conversion of an XTransformer without torch: errors. The numbers: tests/test_vectors.py."""

import sys
from pathlib import Path

import numpy as np
import pytest
import test_vectors
from command_line import process

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_x_transformers

RECORDED = Path(__file__).parent / "vectors" / "x-transformers-swiglu.npz"
CONVENTIONS = {"decoder_start_id": 1, "eos_ids": [2]}


@pytest.fixture
def recorded():
    """The options of a network, and its arrays."""
    about, arrays, _ = test_vectors.read(RECORDED)
    return about["options"], arrays


def test_arrays_are_transposed_and_norms_have_a_unit_offset(recorded):
    options, arrays = recorded
    model = from_x_transformers(arrays, options, **CONVENTIONS)
    decoder, at = model.params.decoder, "decoder.net.attn_layers"
    for ours, theirs in (
        (decoder.final_norm.gain, arrays[f"{at}.final_norm.gamma"] + 1),
        (decoder.layers[0].cross_attention.w_o, arrays[f"{at}.layers.1.1.to_out.weight"].T),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert model.dtype == "float64"


@pytest.mark.parametrize(
    ("options", "changes", "kind", "message"),
    [
        ({"dec_macaron": True}, {}, UnsupportedFeature, "dec_macaron = True"),
        ({}, {"encoder.stray": np.ones(3)}, ValueError, r"encoder\.stray"),
        ({}, {"decoder.net.to_logits.weight": None}, ValueError, "decoder.net.to_logits.weight"),
    ],
)
def test_options_and_arrays_that_cannot_be_converted_raise(
    options, changes, kind, message, recorded
):
    given, arrays = recorded
    changed = {name: x for name, x in (arrays | changes).items() if x is not None}
    with pytest.raises(kind, match=message):
        from_x_transformers(changed, given | options, **CONVENTIONS)


def test_a_live_module_without_torch_raises():
    code = """
import sys
sys.modules["torch"] = None
import refseq2seq as rs
try:
    rs.convert.from_x_transformers(object(), decoder_start_id=1, eos_ids=[2])
except ImportError as error:
    print(error)
"""
    assert "refseq2seq[peers]" in process(sys.executable, "-c", code, check=True).stdout


def test_eos_ids_that_are_one_id_raise():
    with pytest.raises(TypeError, match=r"eos_ids .*got 2"):
        rs.convert.table.special_tokens(1, 2, 0)
