"""Rounding to bfloat16 and float16 is PyTorch's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")

import torch

from refseq2seq.testing import first_difference, row_ulp
from refseq2seq.testing.rounding import FORMATS, round_to

numbers = st.floats(width=32, allow_nan=False) | st.floats(-(2.0**-120), 2.0**-120, width=32)


@given(x=numbers)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_to_nearest_is_what_a_cast_gives(dtype, x):
    cast = torch.tensor([x], dtype=torch.float32).to(getattr(torch, dtype)).double().numpy()
    assert round_to(np.array([x]), dtype).tobytes() == cast.tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_formats_are_those_that_torch_knows(dtype):
    info = torch.finfo(getattr(torch, dtype))
    assert FORMATS[dtype].eps == info.eps
    assert FORMATS[dtype].max == info.max
    assert 2.0 ** FORMATS[dtype].min_exponent == info.tiny


def test_a_tensor_brings_its_dtype():
    e = torch.tensor([1.0, 3.0])
    assert row_ulp(e.bfloat16() + 2**-6, e) == 1.0
    assert row_ulp(torch.nn.Parameter(e + 2**-22), e) == 1.0


def test_tensors_of_integers_and_booleans_must_be_equal():
    found = first_difference({"t": np.array([29990, 30000])}, {"t": torch.tensor([29990, 30001])})
    assert (found.reason, found.place) == ("not equal", (1,))
    done = [True, False]
    assert first_difference({"done": np.array(done)}, {"done": torch.tensor(done)}) is None
