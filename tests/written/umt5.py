"""A model of 8,818 parameters, float32, as one program, written out by refseq2seq.

    python model.py model.npz 4 8 15    prints the new tokens, at most 64, after the source 4 8 15

encoder and decoder: n_layers 2, vocab_size 41, d_model 21, n_heads 1, d_k 4, d_v 4, d_ff 19
Variables have the names of refseq2seq's quantities; a comment has the name where it is another.
"""

import math
import sys
from _bisect import bisect_left
from functools import cache
from types import SimpleNamespace

import numpy as np


def encode(model, source, mask):
    """Mask, keys and values of the source tokens (batch, n); mask (batch, n): True = real token."""
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
    position_ids = np.maximum(np.cumsum(mask.astype("int64"), axis=-1) - 1, 0)
    x = decoder.embedding[source]  # embed: (batch, n, d_model)
    key_mask = mask[:, None, None, :]
    relative_position = position_ids[..., None, :] - position_ids[..., :, None]
    buckets = t5_bucket(relative_position)
    for i, layer in enumerate(encoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        h = rms_norm(x, norms.before.gain)  # input: (batch, n, d_model)
        q = split_heads(linear(h, p.w_q))  # (batch, n_heads, n, d_k)
        k = split_heads(linear(h, p.w_k))  # (batch, n_heads, n, d_k)
        v = split_heads(linear(h, p.w_v))  # (batch, n_heads, n, d_v)
        bias = np.moveaxis(encoder.relative_bias[i][buckets], -1, -3)
        scores = q @ k.mT + bias  # not scaled; (batch, n_heads, n, n)
        weights = softmax(scores, key_mask)  # (batch, n_heads, n, n)
        heads = weights @ v  # (batch, n_heads, n, d_v)
        out = linear(merge_heads(heads), p.w_o)  # (batch, n, d_model)
        x = x + out  # after_self_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = rms_norm(x, norms.before.gain)  # input
        projected = linear(h, p.w_in)  # (batch, n, d_ff)
        gate = linear(h, p.w_gate)  # (batch, n, d_ff)
        hidden = gelu_tanh(gate) * projected  # (batch, n, d_ff)
        out = linear(hidden, p.w_out)
        x = x + out  # after_feed_forward
    x = rms_norm(x, encoder.final_norm.gain)  # final
    for layer in decoder.layers:
        p = layer.cross_attention
        keys.append(split_heads(linear(x, p.w_k)).astype("float32", order="C"))  # k
        values.append(split_heads(linear(x, p.w_v)).astype("float32", order="C"))  # v
    return mask, keys, values


def step(model, ids, t, memory, cache):
    """Logits (batch, 1, vocab_size) after token number t, from 0, of each row: ids (batch, 1)."""
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
    position_ids = np.arange(t, t + 1)
    so_far = np.arange(t + 1)
    source_mask = mask[:, None, None, :]
    relative_position = so_far[..., None, :] - position_ids[..., :, None]
    buckets = t5_bucket(relative_position, bidirectional=False)
    x = decoder.embedding[ids]  # embed: (batch, 1, d_model)
    for i, layer in enumerate(decoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        h = rms_norm(x, norms.before.gain)  # input: (batch, 1, d_model)
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
        x = x + out  # after_self_attention

        p, norms = layer.cross_attention, layer.cross_norms
        h = rms_norm(x, norms.before.gain)  # input
        q = split_heads(linear(h, p.w_q))
        scores = q @ keys[i].mT  # not scaled
        weights = softmax(scores, source_mask)
        heads = weights @ values[i]
        out = linear(merge_heads(heads), p.w_o)
        x = x + out  # after_cross_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = rms_norm(x, norms.before.gain)  # input
        projected = linear(h, p.w_in)  # (batch, 1, d_ff)
        gate = linear(h, p.w_gate)  # (batch, 1, d_ff)
        hidden = gelu_tanh(gate) * projected  # (batch, 1, d_ff)
        out = linear(hidden, p.w_out)
        x = x + out  # after_feed_forward
    x = rms_norm(x, decoder.final_norm.gain)  # final
    # 1 / sqrt(d_model); logits: (batch, 1, vocab_size)
    return linear(x * 0.2182178902359924, model.unembedding)


def greedy(model, source, mask, n):
    """The most probable next tokens, at most n: (batch, up to n); 1 after the end of a row."""
    memory, new = encode(model, source, mask), []
    ids, going = np.full((len(source), 1), 2), np.ones((len(source), 1), dtype="bool")
    cache = [[np.empty((len(source), 1, n, d), "float32") for _ in range(2)] for d in (4, 4)]
    while len(new) < n and going.any():
        logits = step(model, ids, len(new), memory, cache)
        chosen = logits.argmax(axis=-1)
        ids = np.where(going, chosen, 1)
        going = going & (ids != np.asarray((2, 5, 11, 17, 23, 29))).all(axis=-1, keepdims=True)
        new.append(ids)
    return np.concat(new, axis=1)


def t5_bucket(relative_position, n_buckets=10, max_distance=10, bidirectional=True):
    """The bucket of a relative position, key minus query (Raffel et al. 2020, section 2.1)."""
    if bidirectional:
        n = n_buckets // 2
        offset = np.where(relative_position > 0, n, 0)
        distance = np.abs(relative_position)
    else:
        n, offset = n_buckets, 0
        distance = np.maximum(-relative_position, 0)
    borders = np.asarray(bucket_borders(n, max_distance))
    return offset + np.searchsorted(borders, distance, side="right")


@cache
def bucket_borders(n, max_distance):
    """The smallest distance of each bucket except the first, computed in integers: a rounded
    logarithm may fall short of a border, as at distance 64 with T5's maximum of 128.
    """
    exact = n // 2
    wide = n - exact

    def border(k):  # the smallest r with log(r / exact) / log(max / exact) * wide >= k
        power = max_distance**k * exact**wide
        distances = range(max_distance + 1)
        return bisect_left(distances, power, lo=exact, key=lambda r: r**wide * exact**k)

    widening = [border(k) for k in range(1, wide)]
    return *range(1, exact + 1), *widening


def rms_norm(x, gain, eps=0.001):
    """Root-mean-square normalisation (Zhang and Sennrich 2019, eq. 4), as in T5."""
    return x / (np.sqrt(mean(x * x) + eps) % math.inf) * gain


def mean(x):
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


def linear(x, weight):
    """Affine map."""
    # One 2-D product: matmul would compute a (batch, 1, d_in) stack as ``batch`` small products.
    y = x.reshape(-1, x.shape[-1]) @ weight
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def split_heads(x, n_heads=1):
    """(batch, n, n_heads * d) -> (batch, n_heads, n, d): head h has columns h d to (h+1) d - 1."""
    batch, n, width = x.shape
    return x.reshape(batch, n, n_heads, width // n_heads).transpose(0, 2, 1, 3)


def softmax(x, mask=None):
    """Probabilities proportional to exp(x) over the elements that the mask allows."""
    if mask is None:
        top = x.max(axis=-1, keepdims=True)
    else:
        x = np.where(mask, x, -math.inf)
        top = np.where(np.any(mask, axis=-1, keepdims=True), x.max(axis=-1, keepdims=True), 0.0)
    exponentials = np.exp(x - top)
    return exponentials / np.maximum(exponentials.sum(axis=-1, keepdims=True), 1.0)


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
    """The model of a checkpoint."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name != "checkpoint.json"]
    model = tree({name: arrays[name].astype("float32") for name in names})
    return model


if __name__ == "__main__":
    source = np.asarray([[int(token) for token in sys.argv[2:]]])
    mask = (0 <= source) & (source < 41)
    if len(sys.argv) < 3 or not mask.all():
        sys.exit(__doc__)
    print(*greedy(read(sys.argv[1]), source, mask, 64)[0].tolist())
