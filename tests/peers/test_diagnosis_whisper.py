"""`refseq2seq.testing.diagnose` on a live Whisper; its planted bugs are in `planted_whisper`."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import planted_huggingface
import planted_pytorch
import planted_x_transformers
import torch
import transformers
from planted import SOURCE, TARGET
from planted_whisper import FRAMES, subject

from refseq2seq.checks import UnsupportedFeature
from refseq2seq.testing import diagnose, diagnose_arrays

CONVOLUTIONS = {
    "encoder.frames",
    "encoder.frame_layers.0.projected",
    "encoder.frame_layers.0.out",
    "encoder.frame_layers.1.projected",
    "encoder.positions",
    "encoder.embed",
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_right_module_in_all_dtypes(dtype):
    s = subject()
    module = s.module.to(getattr(torch, dtype))
    for options in ({}, {"max_new_tokens": 3}):
        target = TARGET[:, :1] if options else TARGET
        found = diagnose(module, FRAMES, target, runs=16, **options)
        assert found.first is None, found.report()
        assert set(found.compared) >= CONVOLUTIONS
        kinds = {name.rpartition(".")[2] for name in found.not_compared}
        assert kinds == {"tokens", "out", "scores"}


def test_the_start_token_is_that_of_the_model():
    found = diagnose(subject().module, FRAMES, max_new_tokens=2, runs=16)
    assert found.first is None
    assert "step.1.logits" in found.compared


def test_a_dump_of_another_program():
    """What a program stored, with frames of its own, whose order is found."""
    s = subject()
    stored = {}
    convolution = s.module.model.encoder.conv1
    convolution.register_forward_hook(
        lambda _, args, out: stored.update(
            {"encoder.frames": args[0].mT, "encoder.frame_layers.0.projected": out.mT}
        )
    )
    with torch.no_grad():
        frames = torch.tensor(FRAMES, dtype=torch.float32).mT.flip(1)
        stored["logits"] = s.module(frames, decoder_input_ids=torch.tensor(TARGET)).logits
    found = diagnose_arrays(s.model, stored, FRAMES, TARGET, dtype="float32", runs=16)
    assert [(f.name, f.cause.flag) for f in found.faults] == [("encoder.frames", "OtherFrames")]


def whisper(source, mask=None, **options):
    return lambda: diagnose(subject().module, source, TARGET, mask, **options)


def other(planted, source, of=None):
    s = planted.FAULTS.all[0].make()
    model = s.model if of is None else of().model
    return lambda: diagnose(s.module, source, TARGET, model=model)


def unsupported():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    stack = sizes | {"intermediate_size": 8, "num_key_value_heads": 2, "vocab_size": 11}
    config = transformers.T5GemmaConfig(encoder=stack, decoder=stack, vocab_size=11)
    module = transformers.T5GemmaForConditionalGeneration(config)
    model = planted_huggingface.FAULTS.all[0].make().model
    return diagnose(module, SOURCE, TARGET, model=model)


EMBEDDINGS = np.zeros((3, 9, 22))
WRONG = UnsupportedFeature
REFUSED = {
    "a mask": (whisper(FRAMES, np.arange(26) < [[26], [9], [13]]), WRONG, "source_mask"),
    "ragged frames": (whisper([FRAMES[0], FRAMES[1, :9]] * 2), WRONG, "source_mask"),
    "too few frames": (whisper(FRAMES[:, :24]), WRONG, "source must have 26 frames.*got 24"),
    "frames with swapped axes": (whisper(FRAMES.swapaxes(1, 2)), ValueError, "source .*5.*26"),
    "tokens for Whisper": (whisper(SOURCE), ValueError, "source"),
    "embeddings for T5": (other(planted_huggingface, EMBEDDINGS), WRONG, "is vectors"),
    "frames for T5": (other(planted_huggingface, FRAMES, of=subject), WRONG, "is vectors"),
    "embeddings for another": (other(planted_x_transformers, EMBEDDINGS), WRONG, "vectors"),
    "another family": (unsupported, WRONG, "T5GemmaForConditionalGeneration"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case):
    run, kind, told = REFUSED[case]
    with pytest.raises(kind, match=told):
        run()


def test_embeddings_for_a_function_that_takes_them():
    """Only the user of an nn.Transformer knows how its source is embedded."""
    s = planted_pytorch.FAULTS.all[0].make()
    x = np.random.default_rng(43).normal(size=(3, 7, s.model.config.encoder.d_model))
    s.net.source_embedding = lambda x: x / s.net.scale
    found = diagnose(s.module, x, TARGET, model=s.model, run=s.net.run, runs=16)
    assert found.first is None, found.report()
