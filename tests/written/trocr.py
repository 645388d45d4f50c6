"""A model of 10,510 parameters, float32, as one program, written out by refseq2seq.

    python model.py model.npz frames.npy    prints up to 23 new tokens
    frames.npy: floats (n_frames, 4), n_frames at least 1 and at most 3

needs NumPy 2 and the arrays of the checkpoint. A variable that holds a quantity of refseq2seq has
its name, or that name after = in a comment.
encoder: n_layers 3, n_features 4, d_model 12, n_heads 3, d_k 4, d_v 4, d_ff 24
decoder: n_layers 1, vocab_size 41, d_model 24, n_heads 3, d_k 8, d_v 8, d_ff 10
"""

import math
import sys
from types import SimpleNamespace

import numpy as np


def encode(model, frames, mask):
    """The mask (True = real frame), and each decoder layer's keys and values of the source."""
    # frames (batch, n_frames, n_features), mask (batch, n_frames)
    # keys and values: of each layer, (batch, n_heads, n, d_k or d_v)
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
    batch = len(frames)
    frames = frames.astype("float32")  # (batch, n_frames, n_features)

    p = encoder.frame_layers[0]
    x = linear(np.where(mask[:, :, None], frames, 0.0), p.w_in, p.b_in)
    source_mask = np.concat([np.ones((batch, 1), dtype="bool"), mask], axis=-1)  # (batch, n)
    tokens = np.concat([np.broadcast_to(encoder.class_tokens, (batch, 1, 12)), x], axis=1)
    position_ids = np.maximum(np.cumsum(source_mask.astype("int64"), axis=-1) - 1, 0)
    positions = encoder.positions[position_ids]  # (batch, n, d_model)
    x = tokens + positions  # = embed, (batch, n, d_model)
    key_mask = source_mask[:, None, None, :]  # (batch, 1, 1, n)
    for layer in encoder.layers:
        p, norms = layer.self_attention, layer.self_norms
        h = layer_norm(x, norms.before.gain, norms.before.bias, eps=1e-12)
        q = split_heads(linear(h, p.w_q, p.b_q))  # (batch, n_heads, n, d_k)
        k = split_heads(linear(h, p.w_k, p.b_k))  # (batch, n_heads, n, d_k)
        v = split_heads(linear(h, p.w_v, p.b_v))  # (batch, n_heads, n, d_v)
        scores = q @ k.mT * 0.5  # 1 / sqrt(d_k); (batch, n_heads, n, n)
        weights = softmax(scores, key_mask)  # (batch, n_heads, n, n)
        heads = weights @ v  # (batch, n_heads, n, d_v)
        out = linear(merge_heads(heads), p.w_o, p.b_o)  # (batch, n, d_model)
        x = x + out  # = after_self_attention

        p, norms = layer.feed_forward, layer.feed_forward_norms
        h = layer_norm(x, norms.before.gain, norms.before.bias, eps=1e-12)  # = input
        projected = linear(h, p.w_in, p.b_in)  # (batch, n, d_ff)
        hidden = gelu_erf(projected)  # (batch, n, d_ff)
        out = linear(hidden, p.w_out, p.b_out)
        x = x + out  # = after_feed_forward
    x = layer_norm(x, encoder.final_norm.gain, encoder.final_norm.bias, eps=1e-12)  # = final
    for layer in decoder.layers:
        p = layer.cross_attention
        keys.append(split_heads(linear(x, p.w_k, p.b_k)).astype("float32", order="C"))  # = k
        values.append(split_heads(linear(x, p.w_v, p.b_v)).astype("float32", order="C"))  # = v
    return source_mask, keys, values


def step(model, ids, t, memory, cache):
    """Logits after the tokens ids, (batch, 1), at position t, from 0: (batch, 1, vocab_size)."""
    # cache: own keys and values of each layer, (batch, n_heads, at least t + 1, d_k or d_v)
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
    source_mask = mask[:, None, None, :]  # (batch, 1, 1, n)
    tokens = decoder.embedding[ids]  # (batch, 1, d_model)
    positions = decoder.positions[np.arange(t, t + 1) + 2]  # position + 2; (1, d_model)
    x = tokens + positions
    x = layer_norm(x, decoder.embedding_norm.gain, decoder.embedding_norm.bias, eps=1e-05)
    for i, layer in enumerate(decoder.layers):
        p, norms = layer.self_attention, layer.self_norms
        q = split_heads(linear(x, p.w_q, p.b_q))  # (batch, n_heads, 1, d_k)
        k = split_heads(linear(x, p.w_k, p.b_k))  # (batch, n_heads, 1, d_k)
        v = split_heads(linear(x, p.w_v, p.b_v))  # (batch, n_heads, 1, d_v)
        own_keys[i][:, :, t : t + 1] = k
        own_values[i][:, :, t : t + 1] = v
        # 1 / sqrt(d_k); (batch, n_heads, 1, t + 1)
        scores = q @ own_keys[i][:, :, : t + 1].mT * 0.35355339059327373
        weights = softmax(scores)  # (batch, n_heads, 1, t + 1)
        heads = weights @ own_values[i][:, :, : t + 1]  # (batch, n_heads, 1, d_v)
        out = linear(merge_heads(heads), p.w_o, p.b_o)  # (batch, 1, d_model)
        x = layer_norm(x + out, norms.after.gain, norms.after.bias, eps=1e-05)

        p, norms = layer.cross_attention, layer.cross_norms
        q = split_heads(linear(x, p.w_q, p.b_q))
        scores = q @ keys[i].mT * 0.35355339059327373  # 1 / sqrt(d_k); (batch, n_heads, 1, n)
        weights = softmax(scores, source_mask)  # (batch, n_heads, 1, n)
        heads = weights @ values[i]
        out = linear(merge_heads(heads), p.w_o, p.b_o)
        x = layer_norm(x + out, norms.after.gain, norms.after.bias, eps=1e-05)

        p, norms = layer.feed_forward, layer.feed_forward_norms
        projected = linear(x, p.w_in, p.b_in)  # (batch, 1, d_ff)
        hidden = gelu_erf(projected)  # (batch, 1, d_ff)
        out = linear(hidden, p.w_out, p.b_out)
        x = layer_norm(x + out, norms.after.gain, norms.after.bias, eps=1e-05)
    return linear(x, decoder.embedding.T)  # = logits, (batch, 1, vocab_size)


def greedy(model, source, mask, limit):
    """Up to limit new tokens, each of the largest logit, without the start token 7."""
    memory, new = encode(model, source, mask), []
    ids, going = np.full((len(source), 1), 7), np.ones((len(source), 1), dtype="bool")
    cache = [[np.empty((len(source), 3, limit, d), "float32") for _ in range(1)] for d in (8, 8)]
    while len(new) < limit and going.any():
        logits = step(model, ids, len(new), memory, cache)
        chosen = logits.argmax(axis=-1)
        ids = np.where(going, chosen, 1)  # pad_id
        going = going & ~np.isin(ids, np.asarray((2, 5, 11, 17, 23, 29)))  # eos_ids
        new.append(ids)
    return np.concat(new, axis=1)


def linear(x, weight, bias=None):
    """Affine map x W + b, or x W without a bias; W has shape (d_in, d_out)."""
    y = x.reshape(-1, x.shape[-1]) @ weight
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def layer_norm(x, gain, bias, *, eps):
    """Layer normalisation (Ba, Kiros and Hinton 2016, eq. 4)."""
    centred = x - mean(x)
    variance = mean(centred * centred)
    return centred / (np.sqrt(variance + eps) % math.inf) * gain + bias  # % inf: NaN if infinite


def mean(x):
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


def split_heads(x, n_heads=3):
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


# fmt: off
SHORT = (  # erfcx(t) in powers of y = 3 / (t + 3), from y^0 (h is 3); relative error 3e-9
    0.0, 0.18802819768824947, 0.18882296839834237, 0.17035618522311455, 0.19687502808599547,
    -0.015005654910979532, 0.42697436110740483, -0.4684886921302902, 0.5556532882368124,
    -0.30042856375832033, 0.05721288361979039,
)
# fmt: on


def gelu_erf(x):
    """Gaussian error linear unit x Phi(x), exact (Hendrycks and Gimpel 2016, eq. 1)."""
    half = 0.5 * np.minimum(np.abs(x), 40.0)  # erfc is 0 beyond 40, and inf * 0 is NaN
    t = np.abs(x).astype(np.float64) * 0.7071067811865476
    result = polynomial(SHORT, 3 / (t + 3))  # erfcx(t)
    t *= -t  # in place: memory access is slower here than arithmetic
    result *= np.exp(t)  # erfc(t)
    result *= half
    return np.maximum(x, 0) - result.astype(x.dtype)


def polynomial(coefficients, v):
    """c0 + c1 v + c2 v^2 + ... by Horner's rule."""
    total = coefficients[-1] * v
    for c in coefficients[-2:0:-1]:
        total += c
        total *= v
    total += coefficients[0]
    return total


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
    model = tree({name: arrays[name].astype("float32") for name in names})
    model.decoder.embedding = model.decoder.embedding.copy(order="F")  # read by columns: faster
    return model


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    frames = np.load(sys.argv[2])
    if frames.dtype.kind != "f" or frames.ndim != 2 or frames.shape[1] != 4:
        sys.exit(__doc__)
    if not 1 <= len(frames) <= 3:
        sys.exit(__doc__)
    mask = np.ones((1, len(frames)), dtype="bool")
    print(*greedy(read(sys.argv[1]), frames[None], mask, 23)[0].tolist())
