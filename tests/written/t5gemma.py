"""A model of 10,518 parameters, float32, as one program, written out by refseq2seq.

    python model.py model.npz 4 8 15    prints up to 64 new tokens

needs NumPy 2 and the arrays of the checkpoint. A variable that holds a quantity of refseq2seq has
its name, or that name after = in a comment.
encoder: n_layers 2, vocab_size 41, d_model 16, n_heads 4, n_kv_heads 2, d_k 4, d_v 4, d_ff 28
decoder: n_layers 2, vocab_size 43, d_model 10, n_heads 2, d_k 8, d_v 8, d_ff 26
"""

import math
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np


def encode(model, source, mask):
    """The mask (True = real token), and each decoder layer's keys and values of the source."""
    # source and mask (batch, n); keys and values: of each layer, (batch, n_heads, n, d_k or d_v)
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
    position_ids = np.maximum(np.cumsum(mask.astype("int64"), axis=-1) - 1, 0)  # real tokens only
    x = encoder.embedding[source] * 4.0  # = embed, (batch, n, d_model)
    key_mask = mask[:, None, None, :]  # (batch, 1, 1, n)
    angles = rotation(position_ids, d_rotary=4)
    masks = [key_mask & window_mask(position_ids, position_ids, back=3, ahead=3), key_mask]
    for i, layer in enumerate(encoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        h = rms_norm(x, norms.before.gain, eps=1e-06)  # = input, (batch, n, d_model)
        q = rotate(split_heads(linear(h, p.w_q), n_heads=4), angles)  # (batch, n_heads, n, d_k)
        k = rotate(split_heads(linear(h, p.w_k), n_heads=2), angles)  # (batch, n_kv_heads, n, d_k)
        v = split_heads(linear(h, p.w_v), n_heads=2)  # (batch, n_kv_heads, n, d_v)
        # scale; (batch, n_heads, n, n)
        scores = q @ np.repeat(k, 2, axis=1).mT * 0.3535533905932738
        scores = 1.5 * np.tanh(scores / 1.5)
        weights = softmax(scores, masks[i])  # (batch, n_heads, n, n)
        heads = weights @ np.repeat(v, 2, axis=1)  # (batch, n_heads, n, d_v)
        out = linear(merge_heads(heads), p.w_o)  # (batch, n, d_model)
        x = x + rms_norm(out, norms.branch.gain, eps=1e-06)  # = after_self_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = rms_norm(x, norms.before.gain, eps=1e-06)  # = input
        projected = linear(h, p.w_in)  # (batch, n, d_ff)
        gate = linear(h, p.w_gate)  # (batch, n, d_ff)
        hidden = gelu_tanh(gate) * projected  # (batch, n, d_ff)
        out = linear(hidden, p.w_out)
        x = x + rms_norm(out, norms.branch.gain, eps=1e-06)  # = after_feed_forward
    x = rms_norm(x, encoder.final_norm.gain, eps=1e-06)  # = final
    for layer in decoder.layers:
        p = layer.cross_attention
        keys.append(split_heads(linear(x, p.w_k), n_heads=2).astype("float32", order="C"))  # = k
        values.append(split_heads(linear(x, p.w_v), n_heads=2).astype("float32", order="C"))  # = v
    return mask, keys, values


def step(model, ids, t, memory, cache):
    """Logits after the tokens ids, (batch, 1), at position t, from 0: (batch, 1, vocab_size)."""
    # cache: own keys and values of each layer, (batch, n_heads, at least t + 1, d_k or d_v)
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
    position_ids = np.arange(t, t + 1)
    masks = [window_mask(position_ids, np.arange(t + 1), back=2, ahead=0), None]
    source_mask = mask[:, None, None, :]  # (batch, 1, 1, n)
    x = decoder.embedding[ids] * 3.1622776601683795  # = embed, (batch, 1, d_model)
    angles = rotation(position_ids, d_rotary=8)
    for i, layer in enumerate(decoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        h = rms_norm(x, norms.before.gain, eps=0.001)  # = input, (batch, 1, d_model)
        q = rotate(split_heads(linear(h, p.w_q), n_heads=2), angles)  # (batch, n_heads, 1, d_k)
        k = rotate(split_heads(linear(h, p.w_k), n_heads=2), angles)  # (batch, n_heads, 1, d_k)
        v = split_heads(linear(h, p.w_v), n_heads=2)  # (batch, n_heads, 1, d_v)
        own_keys[i][:, :, t : t + 1] = k
        own_values[i][:, :, t : t + 1] = v
        scores = q @ own_keys[i][:, :, : t + 1].mT  # not scaled; (batch, n_heads, 1, t + 1)
        scores = 1.5 * np.tanh(scores / 1.5)
        weights = softmax(scores, masks[i])  # (batch, n_heads, 1, t + 1)
        heads = weights @ own_values[i][:, :, : t + 1]  # (batch, n_heads, 1, d_v)
        out = linear(merge_heads(heads), p.w_o)  # (batch, 1, d_model)
        x = x + rms_norm(out, norms.branch.gain, eps=0.001)  # = after_self_attention

        p, norms = layer.cross_attention, layer.cross_norms
        h = rms_norm(x, norms.before.gain, eps=0.001)  # = input
        q = split_heads(linear(h, p.w_q), n_heads=2)
        scores = q @ keys[i].mT  # not scaled; (batch, n_heads, 1, n)
        scores = 1.5 * np.tanh(scores / 1.5)
        weights = softmax(scores, source_mask)  # (batch, n_heads, 1, n)
        heads = weights @ values[i]
        out = linear(merge_heads(heads), p.w_o)
        x = x + rms_norm(out, norms.branch.gain, eps=0.001)  # = after_cross_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = rms_norm(x, norms.before.gain, eps=0.001)  # = input
        projected = linear(h, p.w_in)  # (batch, 1, d_ff)
        gate = linear(h, p.w_gate)  # (batch, 1, d_ff)
        hidden = gelu_tanh(gate) * projected  # (batch, 1, d_ff)
        out = linear(hidden, p.w_out)
        x = x + rms_norm(out, norms.branch.gain, eps=0.001)  # = after_feed_forward
    x = rms_norm(x, decoder.final_norm.gain, eps=0.001)  # = final
    logits = linear(x, model.unembedding)  # (batch, 1, vocab_size)
    return 3.0 * np.tanh(logits / 3.0)  # = logits, (batch, 1, vocab_size)


def greedy(model, source, mask, limit):
    """Up to limit new tokens, each of the largest logit, without the start token 7."""
    memory, new = encode(model, source, mask), []
    ids, going = np.full((len(source), 1), 7), np.ones((len(source), 1), dtype="bool")
    cache = [[np.empty((len(source), 2, limit, d), "float32") for _ in range(2)] for d in (8, 8)]
    while len(new) < limit and going.any():
        logits = step(model, ids, len(new), memory, cache)
        chosen = logits.argmax(axis=-1)
        ids = np.where(going, chosen, 1)  # pad_id
        going = going & ~np.isin(ids, np.asarray((2, 5, 11, 17, 23, 29)))  # eos_ids
        new.append(ids)
    return np.concat(new, axis=1)


def rotation(positions, dtype="float32", base=50.0, pairing="halves", *, d_rotary):
    """The rotation angles of each position (Su et al. 2021, eq. 15)."""
    steps = np.arange(d_rotary // 2, dtype="float64")
    frequencies = np.exp(steps * (-2 * math.log(base) / d_rotary))
    angles = positions[Ellipsis, None, :, None].astype("float64") * frequencies
    return Rotation(np.cos(angles).astype(dtype), np.sin(angles).astype(dtype), pairing)


class Rotation(NamedTuple):
    """The angles by which `rotate` rotates queries and keys, and the elements that form a pair."""

    cos: object  # ([batch,] 1, n, d_rotary // 2)
    sin: object  # ([batch,] 1, n, d_rotary // 2)
    pairing: object


def window_mask(q_positions, k_positions, *, back, ahead):
    """True where the key is at most ``back`` before and ``ahead`` after the query."""
    distance = k_positions[Ellipsis, None, None, :] - q_positions[Ellipsis, None, :, None]
    return (distance >= -back) & (distance <= ahead)


def rms_norm(x, gain, *, eps):
    """Root-mean-square normalisation (Zhang and Sennrich 2019, eq. 4), as in T5."""
    return x / (np.sqrt(mean(x * x) + eps) % math.inf) * gain  # % inf: NaN if infinite


def mean(x):
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


def linear(x, weight):
    """Affine map x W + b, or x W without a bias; W has shape (d_in, d_out)."""
    y = x.reshape(-1, x.shape[-1]) @ weight
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def split_heads(x, *, n_heads):
    """(batch, n, n_heads * d) -> (batch, n_heads, n, d): head h has columns h d to (h+1) d - 1."""
    batch, n, width = x.shape
    return x.reshape(batch, n, n_heads, width // n_heads).transpose(0, 2, 1, 3)


def rotate(x, r):
    """Rotate queries or keys by their positions."""
    half = r.cos.shape[-1]
    turned, rest = x[Ellipsis, : 2 * half], x[Ellipsis, 2 * half :]
    a, b = turned[Ellipsis, :half], turned[Ellipsis, half:]
    pair = [a * r.cos - b * r.sin, b * r.cos + a * r.sin]
    turned = np.concat(pair, axis=-1)
    return np.concat([turned, rest], axis=-1)


def softmax(x, mask):
    """Probabilities proportional to exp(x) over the elements that the mask allows, or zeros."""
    if mask is None:
        top = x.max(axis=-1, keepdims=True)
    else:
        x = np.where(mask, x, -math.inf)
        top = np.where(np.any(mask, axis=-1, keepdims=True), x.max(axis=-1, keepdims=True), 0.0)
    exponentials = np.exp(x - top)
    return exponentials / np.maximum(exponentials.sum(axis=-1, keepdims=True), 1.0)  # not 0 / 0


def merge_heads(x):
    """(batch, n_heads, n, d) -> (batch, n, n_heads * d), the inverse of `split_heads`."""
    batch, n_heads, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, n, n_heads * d)


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    x = np.maximum(x, -30.0)  # tanh is -1 or 1 outside -30 to 30; clamping keeps cubes finite
    near = np.minimum(x, 30.0)
    inner = math.sqrt(2 / math.pi) * (near + 0.044715 * (near * near * near))
    return 0.5 * x * (1 + np.tanh(inner))


def tree(arrays):
    """The arrays called a.0.b and so on, as a tree: a[0].b."""
    if "" in arrays:
        return arrays[""]
    groups = {}
    for name, x in arrays.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = x
    members = {name: tree(group) for name, group in groups.items()}
    return list(members.values()) if "0" in members else SimpleNamespace(**members)


def read(path):
    """The arrays of a checkpoint; its configuration is not needed here."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name != "checkpoint.json"]
    return tree({name: arrays[name].astype("float32") for name in names})


if __name__ == "__main__":
    given = sys.argv[2:]
    if not 1 <= len(given) or not all(x.isdecimal() and int(x) < 41 for x in given):
        sys.exit(__doc__)
    source = np.asarray([[int(token) for token in given]])
    print(*greedy(read(sys.argv[1]), source, source >= 0, 64)[0].tolist())
