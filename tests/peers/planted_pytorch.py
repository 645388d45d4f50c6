"""Faults in a live torch.nn.Transformer, and in what its user puts around it."""

import math
from functools import partial
from typing import Any

import numpy as np
import planted
import torch
from planted import Faults, Subject, assign, wrap
from torch import nn

import refseq2seq as rs
from refseq2seq.config import SinusoidalPositions
from refseq2seq.testing import properties

D_MODEL, ROOM = 24, 17


class Translator:
    """An nn.Transformer with embeddings, sinusoids and masks, as its tutorials have it."""

    def __init__(self, seed: int, **options: Any) -> None:
        torch.manual_seed(seed)
        self.transformer = nn.Transformer(D_MODEL, 3, 2, 2, 29, batch_first=True, **options).eval()
        self.source_table, self.target_table = nn.Embedding(11, D_MODEL), nn.Embedding(11, D_MODEL)
        self.unembedding = nn.Linear(D_MODEL, 11)
        for x in (*self.transformer.parameters(), *self.unembedding.parameters()):
            x.data += 0.2 * torch.randn_like(x)  # nothing may stay at 0 or 1
        self.scale, self.first = math.sqrt(D_MODEL), 0
        angles = torch.arange(ROOM)[:, None] / 10000 ** (torch.arange(0, D_MODEL, 2) / D_MODEL)
        self.sinusoids = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    def embed(self, table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        """Scaled token vectors plus sinusoids."""
        return table(ids) * self.scale + self.sinusoids[self.first :][: ids.shape[1]]

    def padding(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """PyTorch's True is a place that is not seen."""
        return None if mask is None else ~mask

    def memory_padding(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """The same, for cross-attention."""
        return self.padding(mask)

    def causal(self, n: int) -> torch.Tensor | None:
        """True above the diagonal."""
        return torch.ones(n, n, dtype=torch.bool).triu(1)

    @torch.no_grad()
    def encode(self, source: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, n_source, d_model)."""
        return self.transformer.encoder(
            self.embed(self.source_table, source), src_key_padding_mask=self.padding(mask)
        )

    @torch.no_grad()
    def logits(
        self, memory: torch.Tensor, mask: torch.Tensor | None, target: torch.Tensor
    ) -> torch.Tensor:
        """(batch, n_target, vocab_size)."""
        hidden = self.transformer.decoder(
            self.embed(self.target_table, target),
            memory,
            tgt_mask=self.causal(target.shape[1]),
            memory_key_padding_mask=self.memory_padding(mask),
        )
        return self.unembedding(hidden)

    def run(
        self, source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What diagnose calls."""
        return self.logits(self.encode(source, mask), mask, target)


def subject(seed: int, **options: Any) -> Subject:
    """A translator, as it should be."""
    net = Translator(seed, **options)
    positions = SinusoidalPositions(layout="interleaved", offset=0, scale=1.0)
    model = rs.convert.from_pytorch(
        net.transformer,
        source_embedding=net.source_table,
        target_embedding=net.target_table,
        unembedding=net.unembedding,
        embedding_scale=net.scale,
        source_positions=positions,
        target_positions=positions,
        decoder_start_id=1,
        eos_ids=(),
        pad_id=0,
    )
    return Subject(net.transformer, model, implementation(net), net.run, net)


def implementation(net: Translator) -> properties.Implementation:
    """The translator as functions; padding on the left shifts its positions."""

    def encode(source: np.ndarray, mask: np.ndarray | None) -> Any:
        mask = None if mask is None else torch.as_tensor(mask)
        return net.encode(torch.as_tensor(source), mask), mask

    def logits(memory: Any, target: np.ndarray) -> np.ndarray:
        return net.logits(*memory, torch.as_tensor(target)).numpy()

    def generate(source: np.ndarray, mask: np.ndarray | None, n: int) -> np.ndarray:
        memory, target = encode(source, mask), np.ones((len(source), 1), dtype=np.int64)
        for _ in range(n):
            best = logits(memory, target)[:, -1].argmax(-1)
            target = np.concatenate([target, best[:, None]], axis=1)
        return target[:, 1:]

    return planted.implementation(
        encode=encode,
        logits=logits,
        generate=generate,
        max_source_length=ROOM - 1,
        max_target_length=ROOM - 1,
        padding=("right",),
    )


FAULTS = Faults()
post_norm = FAULTS.on(partial(subject, 1), "nn.Transformer, post-norm")
pre_norm = FAULTS.on(partial(subject, 2, norm_first=True), "nn.Transformer, pre-norm")


def layer(s: Subject, side: str, i: int) -> Any:
    return getattr(s.module, side).layers[i]


post_norm("no causal mask", "decoder.layers.0.self_attention.out")(
    lambda s: assign(s.net, causal=lambda n: None)
)
post_norm("causal mask off by one: next token visible", "decoder.layers.0.self_attention.out")(
    lambda s: assign(s.net, causal=lambda n: torch.ones(n, n, dtype=torch.bool).triu(2))
)


@post_norm("encoder attends to padding", "encoder.layers.0.self_attention.out")
def _(s):
    s.net.memory_padding, s.net.padding = s.net.padding, lambda mask: None


post_norm("cross-attention attends to padding", "decoder.layers.0.cross_attention.out")(
    lambda s: assign(s.net, memory_padding=lambda mask: None)
)
post_norm("inverted mask", "encoder.layers.0.self_attention.out")(
    lambda s: assign(s.net, padding=lambda mask: mask)
)
post_norm("embedding not scaled", "encoder.embed")(lambda s: assign(s.net, scale=1.0))
post_norm("positions start at 1", "encoder.embed")(lambda s: assign(s.net, first=1))


@post_norm("sines and cosines concatenated", "encoder.embed")
def _(s):
    net = s.net
    net.sinusoids = torch.cat([net.sinusoids[:, 0::2], net.sinusoids[:, 1::2]], dim=-1)


post_norm("four heads instead of three", "encoder.layers.1.self_attention.out")(
    lambda s: assign(layer(s, "encoder", 1).self_attn, num_heads=4, head_dim=D_MODEL // 4)
)


@post_norm("batch and position axes swapped", "encoder.layers.0.self_attention.out")
def _(s):
    def forward(right, x, *args, **options):
        x = x.transpose(0, 1)
        return right(x, x, x, need_weights=False)[0].transpose(0, 1), None

    wrap(layer(s, "encoder", 0).self_attn, forward)


post_norm("pre-norm instead of post-norm", "decoder.layers.1.self_attention.input")(
    lambda s: assign(layer(s, "decoder", 1), norm_first=True)
)
pre_norm("post-norm instead of pre-norm", "encoder.layers.0.self_attention.input")(
    lambda s: assign(layer(s, "encoder", 0), norm_first=False)
)


@post_norm("eps added to an unbiased standard deviation", "encoder.layers.0.after_self_attention")
def _(s):
    """The layer norm of The Annotated Transformer."""
    norm = layer(s, "encoder", 0).norm1
    norm.forward = lambda x: (
        norm.weight * (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6) + norm.bias
    )


post_norm("no final encoder norm", "encoder.final")(
    lambda s: assign(s.module.encoder, norm=nn.Identity())
)
post_norm("GELU instead of ReLU", "decoder.layers.0.feed_forward.hidden")(
    lambda s: assign(layer(s, "decoder", 0), activation=nn.functional.gelu)
)
post_norm("no query, key and value biases", "decoder.layers.1.cross_attention.out")(
    lambda s: layer(s, "decoder", 1).multihead_attn.in_proj_bias.data.zero_()
)


@post_norm(
    "cross-attention reads the memory in reverse order", "decoder.layers.0.cross_attention.out"
)
def _(s):
    def forward(right, q, k, v, **options):
        return right(q, k.flip(1), v.flip(1), **options)

    wrap(layer(s, "decoder", 0).multihead_attn, forward)


pre_norm("residual adds the normalised input", "encoder.layers.1.after_self_attention")(
    lambda s: wrap(layer(s, "encoder", 1).norm1, lambda right, x: x.copy_(right(x)))
)
pre_norm("no logits bias", "logits")(lambda s: s.net.unembedding.bias.data.zero_())
