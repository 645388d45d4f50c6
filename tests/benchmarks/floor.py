"""How far NumPy could go: greedy steps written out for one model, beside `generate`.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/floor.py --size d128 d256 --batch 1

The same tokens by fewer and cheaper calls, for the x-transformers model alone: query, key and
value in one product, means as products, everything in place, no masks, taps, probabilities,
margins or steps. What this does not reach is out of reach of a program in NumPy.
"""

import argparse
from functools import partial
from types import SimpleNamespace

import numpy as np
from costs import in_turns, network, rows
from peers import SIZES

import refseq2seq as rs

N_NEW = 64


def joined(layer: rs.params.LayerParams, scale: float) -> SimpleNamespace:
    """The arrays of a layer, made ready once: query, key and value in one, queries scaled."""
    own, cross, forward = layer.self_attention, layer.cross_attention, layer.feed_forward
    norms = (layer.self_norms, layer.cross_norms, layer.feed_forward_norms)
    return SimpleNamespace(
        gains=[of_sublayer.before.gain for of_sublayer in norms],
        w_qkv=np.concatenate([own.w_q * np.float32(scale), own.w_k, own.w_v], axis=1),
        w_o=own.w_o,
        w_q=cross.w_q * np.float32(scale),
        w_cross_o=cross.w_o,
        w_in=forward.w_in,
        b_in=forward.b_in,
        w_out=forward.w_out,
        b_out=forward.b_out,
    )


def written_out(model: rs.Model, layers: list[SimpleNamespace], source: np.ndarray) -> np.ndarray:
    """The new tokens (batch, N_NEW), encoding included."""
    stack, c = model.params.decoder, model.config.decoder
    heads, d_k = c.self_attention.n_heads, c.self_attention.d_k
    memory, batch = rs.encode(model, source), len(source)
    shape = (c.n_layers, batch, heads, N_NEW, d_k)
    keys, values = np.empty(shape, "float32"), np.empty(shape, "float32")
    averages, eps = np.full((c.d_model, 1), 1 / c.d_model, "float32"), np.float32(1e-5)
    positions = stack.positions * np.float32(c.positions.scale)

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        x = x - x @ averages
        deviation = (x * x) @ averages
        deviation += eps
        np.sqrt(deviation, deviation)
        x /= deviation
        x *= gain
        return x

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        scores = q @ k.mT
        scores -= np.maximum.reduce(scores, -1, keepdims=True)
        np.exp(scores, scores)
        heads_out = scores @ v
        heads_out /= np.add.reduce(scores, -1, keepdims=True)
        return heads_out.reshape(batch, -1)

    tokens = np.full((batch, N_NEW + 1), model.config.decoder_start_id)
    for t in range(N_NEW):
        x = stack.embedding[tokens[:, t]]
        x += positions[t]
        for i, p in enumerate(layers):
            qkv = (norm(x, p.gains[0]) @ p.w_qkv).reshape(batch, 3, heads, 1, d_k)
            keys[i, :, :, t], values[i, :, :, t] = qkv[:, 1, :, 0], qkv[:, 2, :, 0]
            until = slice(t + 1)
            x += attend(qkv[:, 0], keys[i, :, :, until], values[i, :, :, until]) @ p.w_o
            q = (norm(x, p.gains[1]) @ p.w_q).reshape(batch, heads, 1, d_k)
            x += attend(q, memory.keys[i], memory.values[i]) @ p.w_cross_o
            hidden = norm(x, p.gains[2]) @ p.w_in
            hidden += p.b_in
            x += rs.special.gelu_erf(hidden) @ p.w_out
            x += p.b_out
        logits = norm(x, stack.final_norm.gain) @ model.params.unembedding
        tokens[:, t + 1] = logits.argmax(-1)
    return tokens[:, 1:]


def generated(model: rs.Model, source: np.ndarray) -> np.ndarray:
    return rs.generate(model, source, eos_ids=(), max_new_tokens=N_NEW).tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["d128"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    for name in options.size:
        model = network(SIZES[name])
        scale = model.config.decoder.self_attention.scale
        layers = [joined(layer, scale) for layer in model.params.decoder.layers]
        for batch in options.batch:
            source = rows(SIZES[name], batch)
            plain = partial(generated, model, source)
            floor = partial(written_out, model, layers, source)
            share = (plain() == floor()).mean()
            ours, best = (1000 * s / N_NEW for s in in_turns(options.repeats, plain, floor))
            print(
                f"{name}, {batch} rows: generate {ours:.3f}, written out {best:.3f} ms per token, "
                f"{ours / best:.2f} times; {share:.0%} of the tokens are the same",
                flush=True,
            )


if __name__ == "__main__":
    main()
