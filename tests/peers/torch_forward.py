"""A Transformer as one writes it in PyTorch, in any precision, and with one of many mistakes.

Not a translation of ours: fused norms and attention, matrices transposed, biases as tensors
of the mask. It serves layer and RMS norms before or after sublayers, and absolute positions.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

import refseq2seq as rs
from refseq2seq.config import LearnedPositions, SinusoidalPositions
from refseq2seq.params import named_arrays
from refseq2seq.positions import sinusoids

MISTAKES = (
    "gelu tanh for gelu erf", "quick gelu", "relu for the activation", "eps ten times",
    "unbiased variance", "scale off by 1 %", "scale of d_model", "source positions + 1",
    "target positions + 1", "mask off by one", "padding attended", "padding attended by the target",
    "heads interleaved", "no final norm of the encoder", "output bias missing",
    "no embedding scale", "residual after the norm", "memory of the layer before",
    "keys for values", "logits in half",
)  # fmt: skip
ACTIVATIONS = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


WRONG_ACTIVATIONS = {
    "gelu tanh for gelu erf": ACTIVATIONS["gelu_tanh"],
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu for the activation": F.relu,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchTransformer:
    """The model's arrays as tensors, and a forward pass over them."""

    def __init__(self, model, dtype, device="cpu", mistake=None):
        self.c, self.dtype, self.device, self.mistake = model.config, dtype, device, mistake
        self.w = {
            name: torch.tensor(np.asarray(x, np.float64), dtype=dtype, device=device)
            for name, x in named_arrays(model.params)
        }

    def __call__(self, source, target, mask=None):
        """Logits (batch, n_target, vocab_size), a tensor."""
        with torch.no_grad():
            ids = torch.as_tensor(source, device=self.device)
            real = torch.ones_like(ids, dtype=torch.bool)
            if mask is not None:
                real = torch.as_tensor(mask, device=self.device)
            memory = self.encode(ids, real)
            return self.decode(torch.as_tensor(target, device=self.device), memory, real)

    def encode(self, ids, real):
        c, keys = self.c.encoder, real[:, None, None, :]
        x = self.embed("encoder", c, ids, self.mistake == "source positions + 1")
        if self.mistake == "padding attended":
            keys = torch.ones_like(keys)
        for i in range(c.n_layers):
            if self.mistake == "memory of the layer before" and i == c.n_layers - 1:
                break
            at = f"encoder.layers.{i}"
            x = self.attention(at, "self", c, x, None, keys)
            x = self.feed_forward(at, c, x)
        if self.mistake == "no final norm of the encoder":
            return x
        return self.norm("encoder.final_norm", c, x)

    def decode(self, ids, memory, real):
        c, n = self.c.decoder, ids.shape[1]
        x = self.embed("decoder", c, ids, self.mistake == "target positions + 1")
        ahead = 1 if self.mistake == "mask off by one" else 0
        causal = torch.ones(n, n, dtype=torch.bool, device=self.device).tril(ahead)
        keys = real[:, None, None, :]
        if self.mistake == "padding attended by the target":
            keys = torch.ones_like(keys)
        for i in range(c.n_layers):
            at = f"decoder.layers.{i}"
            x = self.attention(at, "self", c, x, None, causal)
            x = self.attention(at, "cross", c, x, memory, keys)
            x = self.feed_forward(at, c, x)
        x = self.norm("decoder.final_norm", c, x) * self.c.logits_scale
        if self.mistake == "logits in half":
            return (x.half() @ self.w["unembedding"].half()).to(self.dtype)
        return F.linear(x, self.w["unembedding"].T, self.w.get("logits_bias"))

    def embed(self, side, c, ids, shifted):
        scale = 1.0 if self.mistake == "no embedding scale" else c.embedding_scale
        x = F.embedding(ids, self.w[f"{side}.embedding"]) * scale
        p = torch.arange(ids.shape[1], device=self.device) + shifted
        if isinstance(c.positions, LearnedPositions):
            x = x + self.w[f"{side}.positions"][p + c.positions.offset] * c.positions.scale
        if isinstance(c.positions, SinusoidalPositions):
            p = (p + c.positions.offset).cpu().numpy()
            waves = sinusoids(p, c.d_model, c.positions.layout) * c.positions.scale
            x = x + torch.tensor(waves, dtype=self.dtype, device=self.device)
        return x

    def residual(self, at, name, c, x, sublayer):
        before, after = f"{at}.{name}_norms.before", f"{at}.{name}_norms.after"
        h = self.norm(before, c, x)
        if self.mistake == "residual after the norm" and h is not x:
            x = h
        return self.norm(after, c, x + sublayer(h))

    def norm(self, at, c, x):
        gain, bias = self.w.get(f"{at}.gain"), self.w.get(f"{at}.bias")
        if gain is None:
            return x
        eps = c.norm.eps * (10 if self.mistake == "eps ten times" else 1)
        if c.norm.kind == "rms_norm":
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
            x = gain * wide.to(x.dtype)
            return x if bias is None else x + bias
        if self.mistake == "unbiased variance":
            centred = x - x.mean(-1, keepdim=True)
            x = centred / torch.sqrt(x.var(-1, keepdim=True) + eps) * gain
            return x if bias is None else x + bias
        return F.layer_norm(x, x.shape[-1:], gain, bias, eps)

    def attention(self, at, name, c, x, memory, allowed):
        def sublayer(h):
            return self.attend(at, name, c, h, h if memory is None else memory, allowed)

        return self.residual(at, name, c, x, sublayer)

    def feed_forward(self, at, c, x):
        return self.residual(at, "feed_forward", c, x, lambda h: self.transform(at, c, h))

    def attend(self, at, name, c, x, memory, allowed):
        a, at = getattr(c, f"{name}_attention"), f"{at}.{name}_attention"
        q, k, v = (
            self.split(F.linear(y, self.w[f"{at}.w_{n}"].T, self.w.get(f"{at}.b_{n}")), a.n_heads)
            for n, y in (("q", x), ("k", memory), ("v", memory))
        )
        v = k if self.mistake == "keys for values" else v
        scale = a.scale * (1.01 if self.mistake == "scale off by 1 %" else 1)
        scale = 1 / math.sqrt(c.d_model) if self.mistake == "scale of d_model" else scale
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
        bias = None if self.mistake == "output bias missing" else self.w.get(f"{at}.b_o")
        return F.linear(heads.transpose(1, 2).flatten(2), self.w[f"{at}.w_o"].T, bias)

    def split(self, x, n_heads):
        if self.mistake == "heads interleaved":
            return x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2)
        return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)

    def transform(self, at, c, x):
        at, right = f"{at}.feed_forward", ACTIVATIONS[c.feed_forward.activation]
        activation = WRONG_ACTIVATIONS.get(self.mistake, right)
        h = F.linear(x, self.w[f"{at}.w_in"].T, self.w.get(f"{at}.b_in"))
        if c.feed_forward.gated:
            gate = F.linear(x, self.w[f"{at}.w_gate"].T, self.w.get(f"{at}.b_gate"))
            h = activation(gate) * h
        else:
            h = activation(h)
        return F.linear(h, self.w[f"{at}.w_out"].T, self.w.get(f"{at}.b_out"))


def random_model(rng, wide=False):
    """A model that `TorchTransformer` serves: pre- or post-norm, of any such conventions."""
    d_k, n_heads = int(rng.choice([5, 8, 16])), int(rng.choice([2, 3, 4]))
    if wide:
        d_k, n_heads = int(rng.choice([32, 64])), int(rng.choice([4, 6]))
    sizes = {"d_model": d_k * n_heads, "n_heads": n_heads}
    tokens = {"decoder_start_id": 1, "eos_ids": (2,), "pad_id": 0}
    if rng.random() < 0.5:
        config = rs.presets.vaswani(
            vocab_size=int(rng.choice([29, 101, 499])), n_layers=int(rng.integers(1, 5)),
            d_ff=int(rng.integers(20, 150)), **sizes, **tokens,
        )  # fmt: skip
    else:
        config = rs.presets.x_transformers(
            source_vocab_size=31, target_vocab_size=int(rng.choice([29, 101, 499])), d_k=d_k,
            n_source_positions=33, n_target_positions=33, encoder_layers=int(rng.integers(1, 5)),
            decoder_layers=int(rng.integers(1, 5)), **sizes, **tokens,
        )  # fmt: skip
    norm = replace(
        config.encoder.norm,
        kind=str(rng.choice(["layer_norm", "rms_norm"])),
        eps=float(rng.choice([1e-5, 1e-6])),
    )
    gated = bool(rng.random() < 0.3)
    activation = str(rng.choice(["relu", "gelu_erf", "gelu_erf", "gelu_tanh", "silu"]))

    def stack(c):
        feed_forward = replace(c.feed_forward, activation=activation, gated=gated)
        return replace(c, norm=norm, feed_forward=feed_forward)

    config = replace(config, encoder=stack(config.encoder), decoder=stack(config.decoder))
    return rs.Model.random(config, int(rng.integers(2**31)), "float64")


def random_inputs(rng, model):
    """Source, target and a mask that pads on the right, or none."""
    n, batch = int(rng.integers(2, 30)), int(rng.integers(1, 4))
    lengths = np.array([n, *rng.integers(1, n + 1, batch - 1)])
    source = rng.integers(3, model.config.encoder.vocab_size, (batch, n))
    shape = (batch, int(rng.integers(1, 30)))
    target = rng.integers(3, model.config.decoder.vocab_size, shape)
    return source, target, np.arange(n) < lengths[:, None]
