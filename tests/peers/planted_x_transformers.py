"""Faults in live modules of x-transformers."""

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import planted
import torch
from einops.layers.torch import Rearrange
from planted import Faults, Subject, assign, given, nothing, swap, wrap
from torch import nn
from x_transformers import attend as xt_attend
from x_transformers import x_transformers as xt
from xt_networks import Network, both, random_network

from refseq2seq.testing import properties

SIZES = {"dim": 22} | both(
    num_tokens=11, max_seq_len=16, depth=2, heads=4, attn_dim_head=6, verbose=False
)


def subject(seed: int, padding: tuple[str, ...], **options: Any) -> Subject:
    """A network with these options."""
    network = random_network(np.random.default_rng(seed), SIZES | options)
    return Subject(network.module, network.convert(), implementation(network, padding))


def implementation(network: Network, padding: tuple[str, ...]) -> properties.Implementation:
    """The network as functions; with absolute positions it takes padding on the right only."""

    @torch.no_grad()
    def logits(memory: Any, target: np.ndarray) -> np.ndarray:
        return network.decoder.net(torch.as_tensor(target), **memory).numpy()

    def begin(memory: Any) -> Any:
        so_far, cache = torch.zeros((len(memory["context"]), 0), dtype=torch.long), None

        @torch.no_grad()
        def feed(tokens: np.ndarray) -> np.ndarray:
            nonlocal so_far, cache
            so_far = torch.cat([so_far, torch.as_tensor(tokens)], dim=1)
            out, cache = network.decoder.net(
                so_far,
                cache=cache,
                cache_age=tokens.shape[1],
                return_intermediates=True,
                **memory,
            )
            return out.numpy()

        return feed

    def generate(source: np.ndarray, mask: np.ndarray | None, n: int) -> np.ndarray:
        prompts = np.ones((len(source), 1), dtype=np.int64)
        return network.generate(source, mask, prompts, n, temperature=0.0, eos_token=None)

    return planted.implementation(
        encode=network.encode,
        logits=logits,
        begin=begin,
        generate=generate,
        max_source_length=16,
        max_target_length=16,
        padding=padding,
    )


FAULTS = Faults()
RIGHT, ENDS = ("right",), ("right", "left")


def on(where: str, seed: int, padding: tuple[str, ...] = RIGHT, **options: Any) -> Any:
    return FAULTS.on(partial(subject, seed, padding, **options), where)


MODERN = ("rotary_pos_emb", "use_rmsnorm", "ff_glu", "ff_swish", "ff_no_bias")
BUCKETS = {"rel_pos_bias": True, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 8}
pre_norm = on("pre-norm, learned positions, GELU", 1)
post_norm = on("post-norm, learned positions, GELU", 2, **both(pre_norm=False))
modern = on(
    "rotary, RMS norm, SwiGLU, grouped heads",
    3,
    ENDS,
    **both(**dict.fromkeys(MODERN, True), attn_kv_heads=2),
)
bucketed = on("relative bias", 4, ENDS, **both(**BUCKETS))
alibi = on("ALiBi", 5, **both(alibi_pos_bias=True))
other = on(
    "sinusoids, normalised queries and keys, learned key-value pairs, tied logits",
    6,
    **both(scaled_sinu_pos_emb=True, attn_qk_norm=True, attn_num_mem_kv=2),
    dec_tie_embedding=True,
)


def wrapper(s: Subject, side: str) -> Any:
    module = s.module
    encoder, decoder = module if isinstance(module, tuple) else (module.encoder, module.decoder)
    return encoder if side == "encoder" else decoder.net


def layers(s: Subject, side: str) -> Any:
    return wrapper(s, side).attn_layers


def sublayer(s: Subject, side: str, layer: int, kind: str) -> Any:
    """Norms, block and residual of the self-attention "a", cross-attention "c" or "f"."""
    kinds = "af" if side == "encoder" else "acf"
    return layers(s, side).layers[layer * len(kinds) + kinds.index(kind)]


def block(s: Subject, side: str, layer: int, kind: str) -> Any:
    return sublayer(s, side, layer, kind)[1]


# Scores, masks and softmax.


pre_norm("no attention scale", "encoder.layers.1.self_attention.scores", "AttentionScale")(
    lambda s: assign(block(s, "encoder", 1, "a").attend, scale=1.0)
)
pre_norm(
    "attention scale 1/sqrt(d_model)", "decoder.layers.0.cross_attention.scores", "AttentionScale"
)(lambda s: assign(block(s, "decoder", 0, "c").attend, scale=22**-0.5))
pre_norm("attention scale 1 % off", "decoder.layers.1.self_attention.scores", "AttentionScale")(
    lambda s: assign(block(s, "decoder", 1, "a").attend, scale=1.01 * 6**-0.5)
)


@pre_norm(
    "causal mask off by one: next token visible",
    "decoder.layers.0.self_attention.weights",
    "CausalMask",
)
def _(s):
    block(s, "decoder", 0, "a").attend.create_causal_mask = lambda i, j, device: torch.ones(
        (i, j), dtype=torch.bool
    ).triu(j - i + 2)


pre_norm("no causal mask", "decoder.layers.1.self_attention.weights", "CausalMask")(
    lambda s: assign(block(s, "decoder", 1, "a"), causal=False)
)
pre_norm("encoder attends to padding", "encoder.layers.0.self_attention.weights", "PadLeak")(
    lambda s: given(block(s, "encoder", 0, "a"), mask=nothing)
)
pre_norm(
    "cross-attention attends to padding", "decoder.layers.0.cross_attention.weights", "PadLeak"
)(lambda s: given(block(s, "decoder", 0, "c"), context_mask=nothing))


@pre_norm("inverted mask", "decoder.layers.1.cross_attention.weights", "MaskInverted")
def _(s):
    def inverted(*args, context_mask, **_):
        return None if context_mask is None else ~context_mask

    given(block(s, "decoder", 1, "c"), context_mask=inverted)


pre_norm("softmax over the queries", "encoder.layers.1.self_attention.weights", "SoftmaxForm")(
    lambda s: assign(block(s, "encoder", 1, "a").attend, attn_fn=lambda x: x.softmax(-2))
)
pre_norm("softmax at temperature 1.05", "decoder.layers.1.cross_attention.weights", "Factor")(
    lambda s: assign(block(s, "decoder", 1, "c").attend, attn_fn=lambda x: (x / 1.05).softmax(-1))
)


# Heads and projections.


HEADS_LAST = Rearrange("b n (d h) -> b h n d", h=4)
pre_norm("heads split in the wrong order", "encoder.layers.0.self_attention.q", "HeadOrder")(
    lambda s: assign(block(s, "encoder", 0, "a"), split_q_heads=HEADS_LAST)
)
pre_norm("heads merged in the wrong order", "decoder.layers.0.self_attention.out", "HeadOrder")(
    lambda s: assign(block(s, "decoder", 0, "a"), merge_heads=Rearrange("b h n d -> b n (d h)"))
)
pre_norm("keys and values swapped", "encoder.layers.0.self_attention.k", "SwappedWeights")(
    lambda s: swap(block(s, "encoder", 0, "a"), "to_k", "to_v")
)


@modern(
    "key-value heads repeated in groups instead of in turn",
    "encoder.layers.0.self_attention.scores",
    "KeyValueHeads",
)
def _(s):
    repeat = xt_attend.repeat
    s.patch.setattr(
        xt_attend, "repeat", lambda x, how, **n: repeat(x, how.replace("(r kvh)", "(kvh r)"), **n)
    )


# What cross-attention reads.


pre_norm(
    "cross-attention to the decoder states", "decoder.layers.0.cross_attention.k", "OtherInput"
)(lambda s: given(block(s, "decoder", 0, "c"), context=lambda x, **_: x, context_mask=nothing))


@pre_norm(
    "cross-attention to the memory before the final norm",
    "decoder.layers.0.cross_attention.k",
    "OtherInput",
)
def _(s):
    seen = []
    layers(s, "encoder").final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for layer in range(2):
        given(block(s, "decoder", layer, "c"), context=lambda *_, **__: seen[-1])


@pre_norm(
    "cross-attention to the source of another row", "decoder.layers.1.cross_attention.k", "OtherRow"
)
def _(s):
    given(block(s, "decoder", 1, "c"), context=lambda *args, context, **_: context.roll(1, 0))


# Norms and residuals.


@pre_norm(
    "post-norm instead of pre-norm",
    "encoder.layers.0.self_attention.input",
    "NormMissing or NormPlace",
)
def _(s):
    norms = sublayer(s, "encoder", 0, "a")[0]
    norms[0], norms[2] = None, norms[0]


@post_norm(
    "norm before the residual is added", "decoder.layers.0.after_self_attention", "NormPlace"
)
def _(s):
    norms = sublayer(s, "decoder", 0, "a")[0]
    norms[1], norms[2] = norms[2], None


pre_norm("norm eps ten times too large", "encoder.layers.1.feed_forward.input", "NormEps")(
    lambda s: assign(sublayer(s, "encoder", 1, "f")[0][0].ln, eps=1e-4)
)
pre_norm("norm eps 1e-6 instead of 1e-5", "encoder.layers.0.self_attention.input", "NormEps")(
    lambda s: assign(sublayer(s, "encoder", 0, "a")[0][0].ln, eps=1e-6)
)
pre_norm(
    "gain stored as gain - 1, used without adding 1",
    "decoder.layers.0.cross_attention.input",
    "GainMinusOne",
)(lambda s: assign(sublayer(s, "decoder", 0, "c")[0][0], unit_offset=False))


@pre_norm("unbiased variance", "decoder.layers.1.feed_forward.input", "BiasedDeviation")
def _(s):
    def forward(x):
        return (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()

    assign(sublayer(s, "decoder", 1, "f")[0][0].ln, forward=forward)


pre_norm("no final norm", "decoder.final", "NormMissing")(
    lambda s: assign(layers(s, "decoder"), final_norm=nn.Identity())
)
modern("RMS norm without sqrt(d)", "decoder.layers.0.self_attention.input", "Factor")(
    lambda s: assign(sublayer(s, "decoder", 0, "a")[0][0], scale=1.0)
)
modern("layer norm instead of RMS norm", "encoder.layers.1.self_attention.input", "NormKind")(
    lambda s: wrap(
        sublayer(s, "encoder", 1, "a")[0][0], lambda right, x: right(x - x.mean(-1, True))
    )
)


@pre_norm(
    "residual adds the normalised input", "encoder.layers.0.after_self_attention", "OtherInput"
)
def _(s):
    (norm, _, _), _, residual = sublayer(s, "encoder", 0, "a")
    residual.forward = lambda x, given, **_: x + norm(given)


pre_norm("no residual", "decoder.layers.1.after_feed_forward", "OtherInput")(
    lambda s: assign(sublayer(s, "decoder", 1, "f")[2], forward=lambda x, given, **_: x)
)


# Feed-forward.


pre_norm("tanh GELU instead of erf GELU", "encoder.layers.0.feed_forward.hidden", "GeluForm")(
    lambda s: assign(block(s, "encoder", 0, "f").ff[0][-1], approximate="tanh")
)
pre_norm("ReLU instead of GELU", "decoder.layers.1.feed_forward.hidden", "Activation")(
    lambda s: assign(block(s, "decoder", 1, "f").ff[0][-1], forward=nn.functional.relu)
)
pre_norm(
    "no bias in the first feed-forward layer",
    "decoder.layers.0.feed_forward.projected",
    "BiasMissing",
)(lambda s: assign(block(s, "decoder", 0, "f").ff[0][0], bias=None))
pre_norm(
    "no bias in the second feed-forward layer", "encoder.layers.1.feed_forward.out", "BiasMissing"
)(lambda s: assign(block(s, "encoder", 1, "f").ff[-1], bias=None))
modern("GELU instead of SiLU in the gate", "encoder.layers.0.feed_forward.hidden", "Activation")(
    lambda s: assign(block(s, "encoder", 0, "f").ff[0], act=nn.GELU())
)


@modern("gate and up swapped", "decoder.layers.0.feed_forward.hidden", "SwappedWeights")
def _(s):
    glu = block(s, "decoder", 0, "f").ff[0]

    def forward(x):
        gate, up = glu.proj(x).chunk(2, dim=-1)
        return up * glu.act(gate)

    glu.forward = forward


# Positions.


pre_norm("positions start at 1", "encoder.positions", "OtherPositions")(
    lambda s: wrap(
        wrapper(s, "encoder").pos_emb, lambda right, x, **how: right(x, **how | {"offset": 1})
    )
)
pre_norm("positions not scaled", "decoder.positions", "PositionScale")(
    lambda s: assign(wrapper(s, "decoder").pos_emb, scale=1.0)
)


@other(
    "sines and cosines interleaved instead of concatenated", "encoder.positions", "SinusoidLayout"
)
def _(s):
    def forward(right, x, **options):
        return right(x, **options).unflatten(-1, (2, -1)).mT.flatten(-2)

    wrap(wrapper(s, "encoder").pos_emb, forward)


@modern(
    "rotary pairs from the two halves instead of neighbours",
    "encoder.layers.0.self_attention.q",
    "RotaryPairing",
)
def _(s):
    def rotate_half(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], dim=-1)

    s.patch.setattr(xt, "rotate_half", rotate_half)


@modern("rotary base 500", "decoder.layers.0.self_attention.q", "RotaryBase")
def _(s):
    rotary = layers(s, "decoder").rotary_pos_emb
    d = 2 * len(rotary.inv_freq)
    rotary.inv_freq = 500.0 ** (-torch.arange(0, d, 2) / d)


@modern("queries one position ahead of keys", "encoder.layers.0.self_attention.q", "OtherPositions")
def _(s):
    right = xt.apply_rotary_pos_emb

    def ahead(x, freqs, scale=1):
        is_query = x.shape[1] == 4  # there are two key-value heads
        return right(x, freqs + (freqs[:, 1:2] - freqs[:, :1]) * is_query, scale)

    s.patch.setattr(xt, "apply_rotary_pos_emb", ahead)


bucketed("relative bias not scaled", "encoder.layers.0.self_attention.scores", "RelativeScale")(
    lambda s: assign(layers(s, "encoder").rel_pos, scale=1.0)
)
bucketed(
    "relative bias off by one position", "decoder.layers.0.self_attention.scores", "OtherPositions"
)(lambda s: wrap(layers(s, "decoder").rel_pos, lambda right, i, j: right(i + 1, j + 1)[:, 1:, :-1]))
alibi("ALiBi slopes squared", "encoder.layers.0.self_attention.scores", "AlibiSlopes")(
    lambda s: layers(s, "encoder").rel_pos.slopes.pow_(2)
)


# Other conventions.


other(
    "normalised queries and keys not scaled by 10",
    "decoder.layers.0.self_attention.scores",
    "AttentionScale",
)(lambda s: assign(block(s, "decoder", 0, "a").attend, scale=6**-0.5))
other(
    "learned keys and values swapped", "encoder.layers.0.self_attention.scores", "SwappedWeights"
)(lambda s: swap(block(s, "encoder", 0, "a"), "mem_k", "mem_v"))
other("tied logits not scaled", "logits", "LogitsScale")(
    lambda s: assign(wrapper(s, "decoder"), tie_embedding_scale=1.0)
)


# The cache.


pre_norm(
    "position off by one with a cache",
    "step.1.decoder.positions",
    "CachePosition",
    max_new_tokens=4,
)(
    lambda s: wrap(
        wrapper(s, "decoder").pos_emb, lambda right, x, **_: right(x, offset=int(x.shape[1] > 1))
    )
)


@modern(
    "query not rotated by its position with a cache",
    "step.1.*.0.self_attention.q",
    "OtherPositions",
    max_new_tokens=4,
)
def _(s):
    right = xt.apply_rotary_pos_emb

    def restarting(x, freqs, scale=1):
        return right(x, freqs[:, :1] if x.shape[2] == 1 else freqs, scale)

    s.patch.setattr(xt, "apply_rotary_pos_emb", restarting)


def cached(attention: nn.Module, change: Any) -> None:
    """Let ``attention`` find other keys and values in its cache."""

    def changed(*args, cache=None, **kwargs):
        if cache is not None:
            cache.cached_kv = tuple(change(x) for x in cache.cached_kv)
        return cache

    given(attention, cache=changed)


@pre_norm(
    "second token missing from the cache",
    "step.2.*.1.self_attention.scores",
    "CacheContents",
    max_new_tokens=4,
)
def _(s):
    def overlooked(x):
        return torch.cat([x[:, :, :1], torch.zeros_like(x[:, :, 1:2]), x[:, :, 2:]], dim=2)

    cached(block(s, "decoder", 1, "a"), overlooked)


# All rows have the same first token, and so the same first key.
pre_norm(
    "cache of another row", "step.2.*.0.self_attention.scores", "CacheContents", max_new_tokens=4
)(lambda s: cached(block(s, "decoder", 0, "a"), lambda x: x.roll(1, 0)))
pre_norm(
    "cached source keys and values in reverse order",
    "step.1.*.1.cross_attention.scores",
    "CacheContents",
    max_new_tokens=4,
)(lambda s: cached(block(s, "decoder", 1, "c"), lambda x: x.flip(2)))
