"""A model of 8,818 parameters, float32, as one program, written out by refseq2seq.

    python model.py model.npz 4 8 15    prints up to 64 new tokens

needs NumPy 2 and the arrays of the checkpoint. A variable that holds a quantity of refseq2seq has
its name, or that name after = in a comment.
encoder and decoder: n_layers 2, vocab_size 41, d_model 21, n_heads 1, d_k 4, d_v 4, d_ff 19
"""

import math
import sys
from types import SimpleNamespace

import numpy as np


def encode(model, source, mask):
    """The mask (True = real token), and each decoder layer's keys and values of the source."""
    # source and mask (batch, n); keys and values: of each layer, (batch, n_heads, n, d_k or d_v)
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
    position_ids = np.maximum(np.cumsum(mask.astype("int64"), axis=-1) - 1, 0)  # real tokens only
    x = decoder.embedding[source]  # = embed, (batch, n, d_model)
    key_mask = mask[:, None, None, :]  # (batch, 1, 1, n)
    relative_position = position_ids[Ellipsis, None, :] - position_ids[Ellipsis, :, None]
    offset = np.where(relative_position > 0, 5, 0)
    borders = np.asarray((1, 2, 4, 6))  # bucket j > 0 begins at distance borders[j - 1]
    buckets = offset + np.searchsorted(borders, np.abs(relative_position), side="right")
    for i, layer in enumerate(encoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        h = rms_norm(x, norms.before.gain)  # = input, (batch, n, d_model)
        q = split_heads(linear(h, p.w_q))  # (batch, n_heads, n, d_k)
        k = split_heads(linear(h, p.w_k))  # (batch, n_heads, n, d_k)
        v = split_heads(linear(h, p.w_v))  # (batch, n_heads, n, d_v)
        bias = np.moveaxis(encoder.relative_bias[i][buckets], -1, -3)
        scores = q @ k.mT + bias  # not scaled; (batch, n_heads, n, n)
        weights = softmax(scores, key_mask)  # (batch, n_heads, n, n)
        heads = weights @ v  # (batch, n_heads, n, d_v)
        out = linear(merge_heads(heads), p.w_o)  # (batch, n, d_model)
        x = x + out  # = after_self_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = rms_norm(x, norms.before.gain)  # = input
        projected = linear(h, p.w_in)  # (batch, n, d_ff)
        gate = linear(h, p.w_gate)  # (batch, n, d_ff)
        hidden = gelu_tanh(gate) * projected  # (batch, n, d_ff)
        out = linear(hidden, p.w_out)
        x = x + out  # = after_feed_forward
    x = rms_norm(x, encoder.final_norm.gain)  # = final
    for layer in decoder.layers:
        p = layer.cross_attention
        keys.append(split_heads(linear(x, p.w_k)).astype("float32", order="C"))  # = k
        values.append(split_heads(linear(x, p.w_v)).astype("float32", order="C"))  # = v
    return mask, keys, values


def step(model, ids, t, memory, cache):
    """Logits after the tokens ids, (batch, 1), at position t, from 0: (batch, 1, vocab_size)."""
    # cache: own keys and values of each layer, (batch, n_heads, at least t + 1, d_k or d_v)
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
    source_mask = mask[:, None, None, :]  # (batch, 1, 1, n)
    x = decoder.embedding[ids]  # = embed, (batch, 1, d_model)
    borders = np.asarray((*range(1, 10),))  # bucket j > 0 begins at distance borders[j - 1]
    so_far = np.arange(t + 1)
    position_ids = np.arange(t, t + 1)
    relative_position = so_far[Ellipsis, None, :] - position_ids[Ellipsis, :, None]
    distance = np.maximum(-relative_position, 0)
    buckets = np.searchsorted(borders, distance, side="right")
    for i, layer in enumerate(decoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        h = rms_norm(x, norms.before.gain)  # = input, (batch, 1, d_model)
        q = split_heads(linear(h, p.w_q))  # (batch, n_heads, 1, d_k)
        k = split_heads(linear(h, p.w_k))  # (batch, n_heads, 1, d_k)
        v = split_heads(linear(h, p.w_v))  # (batch, n_heads, 1, d_v)
        own_keys[i][:, :, t : t + 1] = k
        own_values[i][:, :, t : t + 1] = v
        scores = q @ own_keys[i][:, :, : t + 1].mT
        bias = np.moveaxis(decoder.relative_bias[i][buckets], -1, -3)
        scores = scores + bias  # not scaled; (batch, n_heads, 1, t + 1)
        weights = softmax(scores)  # (batch, n_heads, 1, t + 1)
        heads = weights @ own_values[i][:, :, : t + 1]  # (batch, n_heads, 1, d_v)
        out = linear(merge_heads(heads), p.w_o)  # (batch, 1, d_model)
        x = x + out  # = after_self_attention

        p, norms = layer.cross_attention, layer.cross_norms
        h = rms_norm(x, norms.before.gain)  # = input
        q = split_heads(linear(h, p.w_q))
        scores = q @ keys[i].mT  # not scaled; (batch, n_heads, 1, n)
        weights = softmax(scores, source_mask)  # (batch, n_heads, 1, n)
        heads = weights @ values[i]
        out = linear(merge_heads(heads), p.w_o)
        x = x + out  # = after_cross_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = rms_norm(x, norms.before.gain)  # = input
        projected = linear(h, p.w_in)  # (batch, 1, d_ff)
        gate = linear(h, p.w_gate)  # (batch, 1, d_ff)
        hidden = gelu_tanh(gate) * projected  # (batch, 1, d_ff)
        out = linear(hidden, p.w_out)
        x = x + out  # = after_feed_forward
    x = rms_norm(x, decoder.final_norm.gain)  # = final
    # 1 / sqrt(d_model); = logits, (batch, 1, vocab_size)
    return linear(x * 0.2182178902359924, model.unembedding)


def greedy(model, source, mask, limit):
    """Up to limit new tokens, each of the largest logit, without the start token 2."""
    memory, new = encode(model, source, mask), []
    ids, going = np.full((len(source), 1), 2), np.ones((len(source), 1), dtype="bool")
    cache = [[np.empty((len(source), 1, limit, d), "float32") for _ in range(2)] for d in (4, 4)]
    while len(new) < limit and going.any():
        logits = step(model, ids, len(new), memory, cache)
        chosen = logits.argmax(axis=-1)
        ids = np.where(going, chosen, 1)  # pad_id
        going = going & ~np.isin(ids, np.asarray((2, 5, 11, 17, 23, 29)))  # eos_ids
        new.append(ids)
    return np.concat(new, axis=1)


def rms_norm(x, gain, eps=0.001):
    """Root-mean-square normalisation (Zhang and Sennrich 2019, eq. 4), as in T5."""
    return x / (np.sqrt(mean(x * x) + eps) % math.inf) * gain  # % inf: NaN if infinite


def mean(x):
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


def linear(x, weight):
    """Affine map x W + b, or x W without a bias; W has shape (d_in, d_out)."""
    y = x.reshape(-1, x.shape[-1]) @ weight
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def split_heads(x, n_heads=1):
    """(batch, n, n_heads * d) -> (batch, n_heads, n, d): head h has columns h d to (h+1) d - 1."""
    batch, n, width = x.shape
    return x.reshape(batch, n, n_heads, width // n_heads).transpose(0, 2, 1, 3)


def softmax(x, mask=None):
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
