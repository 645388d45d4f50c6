"""Faults in a live torch.nn.Transformer, and in what its user puts around it."""

import math
from functools import partial
from typing import Any

import planted
import torch
from planted import Faults, Subject, assign, wrap
from test_pytorch import INTERLEAVED, Network, convert
from torch import nn

from refseq2seq.testing import properties

D_MODEL, ROOM = 24, 17


def subject(seed: int, **options: Any) -> Subject:
    """A translator, as it should be."""
    torch.manual_seed(seed)
    transformer = nn.Transformer(D_MODEL, 3, 2, 2, 29, batch_first=True, **options).eval()
    tables, unembedding = [nn.Embedding(11, D_MODEL) for _ in range(2)], nn.Linear(D_MODEL, 11)
    for x in (*transformer.parameters(), *unembedding.parameters()):
        x.data += 0.2 * torch.randn_like(x)  # nothing may stay at 0 or 1
    angles = torch.arange(ROOM)[:, None] / 10000 ** (torch.arange(0, D_MODEL, 2) / D_MODEL)
    sinusoids = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    net = Network(transformer, *tables, unembedding, math.sqrt(D_MODEL), sinusoids)
    positions = {f"{side}_positions": INTERLEAVED for side in ("source", "target")}
    model = convert(net, seed, eos_ids=(), **positions)
    return Subject(transformer, model, implementation(net), net.run, net)


def implementation(net: Network) -> properties.Implementation:
    """The translator as functions; padding on the left shifts its positions."""
    return planted.implementation(
        encode=lambda source, mask: (source, mask),
        logits=lambda memory, target: net.logits(memory[0], target, memory[1]),
        generate=net.generate,
        max_source_length=ROOM - 1,
        max_target_length=ROOM - 1,
        padding=("right",),
    )


FAULTS = Faults()
post_norm = FAULTS.on(partial(subject, 1), "nn.Transformer, post-norm")
pre_norm = FAULTS.on(partial(subject, 2, norm_first=True), "nn.Transformer, pre-norm")


def layer(s: Subject, side: str, i: int) -> Any:
    return getattr(s.module, side).layers[i]


post_norm("no causal mask", "decoder.layers.0.self_attention.out", "CausalMask")(
    lambda s: assign(s.net, causal=lambda n: None)
)
post_norm(
    "causal mask off by one: next token visible",
    "decoder.layers.0.self_attention.out",
    "CausalMask",
)(lambda s: assign(s.net, causal=lambda n: torch.ones(n, n, dtype=torch.bool).triu(2)))


@post_norm("encoder attends to padding", "encoder.layers.0.self_attention.out", "PadLeak")
def _(s):
    s.net.memory_padding, s.net.padding = s.net.padding, lambda mask: None


post_norm("cross-attention attends to padding", "decoder.layers.0.cross_attention.out", "PadLeak")(
    lambda s: assign(s.net, memory_padding=lambda mask: None)
)
post_norm("inverted mask", "encoder.layers.0.self_attention.out", "MaskInverted")(
    lambda s: assign(s.net, padding=lambda mask: mask)
)
post_norm("embedding not scaled", "encoder.embed", "EmbeddingScale")(
    lambda s: assign(s.net, scale=1.0)
)
post_norm("positions start at 1", "encoder.embed", "OtherPositions")(
    lambda s: assign(s.net, first=1)
)


@post_norm("sines and cosines concatenated", "encoder.embed", "SinusoidLayout")
def _(s):
    net = s.net
    net.positions = torch.cat([net.positions[:, 0::2], net.positions[:, 1::2]], dim=-1)


post_norm("four heads instead of three", "encoder.layers.1.self_attention.out", "HeadCount")(
    lambda s: assign(layer(s, "encoder", 1).self_attn, num_heads=4, head_dim=D_MODEL // 4)
)


@post_norm("batch and position axes swapped", "encoder.layers.0.self_attention.out", "AxesSwapped")
def _(s):
    def forward(right, x, *args, **options):
        x = x.transpose(0, 1)
        return right(x, x, x, need_weights=False)[0].transpose(0, 1), None

    wrap(layer(s, "encoder", 0).self_attn, forward)


post_norm("pre-norm instead of post-norm", "decoder.layers.1.self_attention.input", "NormPlace")(
    lambda s: assign(layer(s, "decoder", 1), norm_first=True)
)
pre_norm(
    "post-norm instead of pre-norm",
    "encoder.layers.0.self_attention.input",
    "NormMissing or NormPlace",
)(lambda s: assign(layer(s, "encoder", 0), norm_first=False))


@post_norm(
    "eps added to an unbiased standard deviation",
    "encoder.layers.0.after_self_attention",
    "BiasedDeviation",
)
def _(s):
    """The layer norm of The Annotated Transformer."""
    norm = layer(s, "encoder", 0).norm1
    norm.forward = lambda x: (
        norm.weight * (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6) + norm.bias
    )


post_norm("no final encoder norm", "encoder.final", "NormMissing")(
    lambda s: assign(s.module.encoder, norm=nn.Identity())
)
post_norm("GELU instead of ReLU", "decoder.layers.0.feed_forward.hidden", "Activation")(
    lambda s: assign(layer(s, "decoder", 0), activation=nn.functional.gelu)
)
post_norm("no query, key and value biases", "decoder.layers.1.cross_attention.out", "BiasMissing")(
    lambda s: layer(s, "decoder", 1).multihead_attn.in_proj_bias.data.zero_()
)


@post_norm(
    "cross-attention reads the memory in reverse order",
    "decoder.layers.0.cross_attention.out",
    "ShiftedInput",
)
def _(s):
    def forward(right, q, k, v, **options):
        return right(q, k.flip(1), v.flip(1), **options)

    wrap(layer(s, "decoder", 0).multihead_attn, forward)


pre_norm(
    "residual adds the normalised input", "encoder.layers.1.after_self_attention", "OtherInput"
)(lambda s: wrap(layer(s, "encoder", 1).norm1, lambda right, x: x.copy_(right(x))))
pre_norm("no logits bias", "logits", "BiasMissing")(lambda s: s.net.unembedding.bias.data.zero_())
