"""Faults in a live Whisper of Hugging Face transformers, as ports of it have had.

Some are from the trackers of ports: the error function of GELU and the keys without a bias
(nurl-lang/nurl 475), the filters of the features (paiml/whisper.apr 7), encoder positions that were
not loaded (huggingface/transformers 20934), the padding of the features (SYSTRAN/faster-whisper
1101).
"""

import math
from functools import partial

import numpy as np
import torch
import transformers
from hf_models import randomize
from planted import Faults, Subject, assign, given, nothing, wrap
from planted_huggingface import BART, TOKENS
from torch import nn
from torch.nn.functional import conv1d, gelu, pad

import refseq2seq as rs

SIZES = {
    "num_mel_bins": 5,
    "max_source_positions": 13,
    "max_target_positions": 17,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
FRAMES = np.random.default_rng(41).normal(size=(3, 26, 5))


def subject() -> Subject:
    """A model with attention that tells its weights. The properties are about tokens."""
    torch.manual_seed(6)
    config = transformers.WhisperConfig(**TOKENS | BART | SIZES)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    randomize(model)
    model.set_attn_implementation("eager")
    converted = rs.convert.from_huggingface(model)
    return Subject(model, converted, implementation=None, source=FRAMES, source_mask=None)


FAULTS = Faults()
whisper = FAULTS.on(subject, "Whisper")


def encoder(s):
    return s.module.model.encoder


def decoder(s):
    return s.module.model.decoder


def features(change):
    """A fault in what the first convolution is given, (batch, n_features, n_frames)."""

    def plant(s):
        encoder(s).conv1.register_forward_pre_hook(lambda _, args: (change(args[0]),))

    return plant


def convolved(i, ends):
    """A fault in a convolution: other numbers of zeros at both ends."""

    def plant(s):
        of = getattr(encoder(s), f"conv{i}")
        wrap(of, lambda _, x: conv1d(pad(x, ends), of.weight, of.bias, of.stride))

    return plant


def kernel(i, change):
    """A fault in a kernel, (d_out, d_in, window)."""

    def plant(s):
        of = getattr(encoder(s), f"conv{i}")
        of.weight = nn.Parameter(change(of.weight.detach()).reshape(of.weight.shape))

    return plant


PROJECTED = "encoder.frame_layers.{}.projected".format

whisper("features in reverse order of frequency", "encoder.frames", "OtherFrames")(
    features(lambda x: x.flip(1))
)
whisper("features reshaped instead of transposed", "encoder.frames", "OtherFrames")(
    features(lambda x: x.mT.reshape(x.shape))
)
whisper("features not normalised", "encoder.frames", "OtherFrames")(features(lambda x: 4 * x - 4))
whisper("features one hop late", "encoder.frames", "ShiftedInput")(
    features(lambda x: pad(x, (1, 0))[..., :-1])
)
whisper("padding at the end only", PROJECTED(0), "FramePadding")(convolved(1, (0, 2)))
whisper("causal padding", PROJECTED(1), "FramePadding")(convolved(2, (2, 0)))
whisper("stride begins at 1", PROJECTED(1), "FramePadding")(convolved(2, (0, 1)))
whisper("padding repeats the edge", PROJECTED(0), "FramePadding")(
    lambda s: assign(encoder(s).conv1, padding_mode="replicate")
)
whisper("kernel reversed in time", PROJECTED(0), "FrameKernel")(kernel(1, lambda w: w.flip(2)))
whisper("kernel with input and output exchanged", PROJECTED(1), "FrameKernel")(
    kernel(2, lambda w: w.transpose(0, 1))
)
whisper("kernel stored as (window, d_in), read as (d_in, window)", PROJECTED(0), "FrameKernel")(
    kernel(1, lambda w: w.transpose(1, 2))
)
whisper("no bias in a convolution", PROJECTED(1), "BiasMissing")(
    lambda s: assign(encoder(s).conv2, bias=None)
)
whisper("tanh GELU after the convolutions", "encoder.frame_layers.0.out", "GeluForm")(
    lambda s: s.patch.setattr(nn.functional, "gelu", partial(gelu, approximate="tanh"))
)
whisper("tanh GELU in a feed-forward", "encoder.layers.1.feed_forward.hidden", "GeluForm")(
    lambda s: assign(encoder(s).layers[1], activation_fn=nn.GELU("tanh"))
)
whisper("encoder positions start at 1", "encoder.positions", "ShiftedInput")(
    lambda s: wrap(encoder(s).embed_positions, lambda right, ids: right((ids + 1).clip(max=12)))
)
whisper("no encoder positions", "encoder.positions", "PositionScale")(
    lambda s: encoder(s).embed_positions.weight.data.zero_()
)


@whisper("sines and cosines alternate in the encoder", "encoder.positions", "SinusoidLayout")
def _(s):
    table = encoder(s).embed_positions
    table.weight = nn.Parameter(table.weight.unflatten(-1, (2, -1)).mT.flatten(-2))


@whisper("decoder positions start at 1", "decoder.positions", "OtherPositions")
def _(s):
    def shifted(right, ids, cache_length, position_ids):
        return right(ids, cache_length + 1, None if position_ids is None else position_ids + 1)

    wrap(decoder(s).embed_positions, shifted)


@whisper(
    "decoder positions start anew with a cache",
    "step.1.decoder.positions",
    "OtherPositions",
    max_new_tokens=4,
)
def _(s):
    wrap(decoder(s).embed_positions, lambda right, ids, **how: right(ids))


@whisper("the bias of v added to k too", "encoder.layers.0.self_attention.k", "BiasAdded")
def _(s):
    attention = encoder(s).layers[0].self_attn
    attention.k_proj.bias = attention.v_proj.bias


whisper("a bias of k", "decoder.layers.1.cross_attention.k", "BiasAdded")(
    lambda s: assign(
        decoder(s).layers[1].encoder_attn.k_proj,
        bias=nn.Parameter(torch.linspace(-1, 1, 24)),
    )
)
whisper("no attention scale", "decoder.layers.0.self_attention.weights", "AttentionScale")(
    lambda s: assign(decoder(s).layers[0].self_attn, scaling=1.0)
)
whisper("norm eps 1e-6 instead of 1e-5", "encoder.layers.0.self_attention.input", "NormEps")(
    lambda s: assign(encoder(s).layers[0].self_attn_layer_norm, eps=1e-6)
)
whisper("a causal mask in the encoder", "encoder.layers.1.self_attention.weights", "OtherMask")(
    lambda s: given(
        encoder(s).layers[1].self_attn,
        attention_mask=lambda *_, **__: torch.full((13, 13), -torch.inf).triu(1),
    )
)
whisper("no causal mask", "decoder.layers.0.self_attention.weights", "CausalMask")(
    lambda s: given(decoder(s).layers[0].self_attn, attention_mask=nothing)
)
whisper(
    "memory cut to the length of the sound", "decoder.layers.0.cross_attention.k", "OtherInput"
)(
    lambda s: given(
        decoder(s).layers[0].encoder_attn,
        key_value_states=lambda *_, key_value_states, **__: key_value_states[:, :10],
    )
)
whisper("no norm after the encoder", "encoder.final", "NormMissing")(
    lambda s: assign(encoder(s), layer_norm=nn.Identity())
)
whisper("embedding scaled by sqrt(d_model)", "decoder.tokens", "EmbeddingScale")(
    lambda s: wrap(decoder(s).embed_tokens, lambda right, ids: right(ids) * math.sqrt(24))
)
whisper("logits scaled by 1 / sqrt(d_model)", "logits", "LogitsScale")(
    lambda s: wrap(s.module.proj_out, lambda right, x: right(x / math.sqrt(24)))
)
