"""An encoder-decoder in JAX, and its tests against refseq2seq.

Replace `encode` and `decode` with your own functions, and run this file with pytest.
"""

import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.params import named_arrays
from refseq2seq.testing import assert_agrees, first_difference, properties, rounded, spread

jax = pytest.importorskip("jax", reason="needs JAX: pip install jax")
jnp = jax.numpy
jax.config.update("jax_enable_x64", True)

D_MODEL, N_HEADS, D_K, SOURCE_VOCAB, TARGET_VOCAB = 12, 2, 5, 13, 11

# --- your model: pre-norm, exact GELU, learned positions times 1/sqrt(d_model) ------------


def norm(x, gain):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain


def attention(p, at, x, memory, mask, trace):
    def heads(y):
        return y.reshape(*y.shape[:2], N_HEADS, D_K).swapaxes(1, 2)

    q = heads(x @ p[f"{at}.w_q"])
    k, v = heads(memory @ p[f"{at}.w_k"]), heads(memory @ p[f"{at}.w_v"])
    scores = trace(f"{at}.scores", q @ k.swapaxes(2, 3) / D_K**0.5)
    weights = trace(f"{at}.weights", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)))
    y = (weights @ v).swapaxes(1, 2).reshape(*x.shape[:2], N_HEADS * D_K)
    return trace(f"{at}.out", y @ p[f"{at}.w_o"])


def feed_forward(p, at, x, trace):
    hidden = jax.nn.gelu(x @ p[f"{at}.w_in"] + p[f"{at}.b_in"], approximate=False)
    return trace(f"{at}.out", hidden @ p[f"{at}.w_out"] + p[f"{at}.b_out"])


def embed(p, stack, tokens, trace):
    positions = p[f"{stack}.positions"][: tokens.shape[1]] * D_MODEL**-0.5
    return trace(f"{stack}.embed", p[f"{stack}.embedding"][tokens] + positions)


def encode(p, source, mask, trace):
    x, mask = embed(p, "encoder", source, trace), mask[:, None, None, :]
    at = "encoder.layers.0"
    h = norm(x, p[f"{at}.self_norms.before.gain"])
    x = x + attention(p, f"{at}.self_attention", h, h, mask, trace)
    h = norm(x, p[f"{at}.feed_forward_norms.before.gain"])
    x = x + feed_forward(p, f"{at}.feed_forward", h, trace)
    return trace("encoder.final", norm(x, p["encoder.final_norm.gain"]))


def decode(p, memory, target, mask, trace):
    x, mask = embed(p, "decoder", target, trace), mask[:, None, None, :]
    causal = np.tri(target.shape[1], dtype=bool)
    at = "decoder.layers.0"
    h = norm(x, p[f"{at}.self_norms.before.gain"])
    x = x + attention(p, f"{at}.self_attention", h, h, causal, trace)
    h = norm(x, p[f"{at}.cross_norms.before.gain"])
    x = x + attention(p, f"{at}.cross_attention", h, memory, mask, trace)
    h = norm(x, p[f"{at}.feed_forward_norms.before.gain"])
    x = x + feed_forward(p, f"{at}.feed_forward", h, trace)
    return trace("logits", norm(x, p["decoder.final_norm.gain"]) @ p["unembedding"])


# --- the tests ----------------------------------------------------------------------------

CONFIG = rs.presets.x_transformers(
    d_model=D_MODEL,
    source_vocab_size=SOURCE_VOCAB,
    target_vocab_size=TARGET_VOCAB,
    n_source_positions=17,
    n_target_positions=17,
    encoder_layers=1,
    decoder_layers=1,
    n_heads=N_HEADS,
    d_k=D_K,
    decoder_start_id=1,
    eos_ids=(2,),
    pad_id=0,
)
SOURCE = np.array([[3, 4, 5, 6, 7], [8, 9, 10, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=bool)
TARGET = np.array([[1, 4, 5, 6], [1, 7, 8, 9]])


def parameters(model, dtype):
    return {name: jnp.asarray(x, dtype) for name, x in named_arrays(model.params)}


@jax.jit
def memory_of(p, source, mask):
    return encode(p, source, mask, lambda _name, x: x)


@jax.jit
def logits_of(p, memory, target, mask):
    return decode(p, memory, target, mask, lambda _name, x: x)


def test_every_quantity_in_float64():
    model, reference, mine = rs.Model.random(CONFIG, seed=0, dtype="float64"), rs.Trace(), {}

    def keep(name, x):
        mine[name] = np.asarray(x)
        return x

    p = parameters(model, "float64")
    source, target, mask = SOURCE[:1], TARGET[:1], MASK[:1]  # a row without padding
    rs.forward(model, source, target, tap=reference)
    decode(p, encode(p, source, mask, keep), target, mask, keep)
    difference = first_difference(reference, mine, rtol=1e-12)
    assert difference is None, str(difference)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_as_near_as_the_format_allows(dtype):
    model = rounded(rs.Model.random(CONFIG, seed=0, dtype="float64"), dtype)
    p = parameters(model, dtype)
    logits = logits_of(p, memory_of(p, SOURCE, MASK), TARGET, MASK)
    reference = spread(model, SOURCE, TARGET, MASK, dtype=dtype)
    assert_agrees(np.asarray(logits, "float64"), reference)


def test_greedy_tokens():
    model = rs.Model.random(CONFIG, seed=0, dtype="float64")
    p, target = parameters(model, "float64"), TARGET[:, :1]
    memory = memory_of(p, SOURCE, MASK)
    for _ in range(4):
        logits = np.asarray(logits_of(p, memory, target, MASK))
        target = np.concatenate([target, logits[:, -1:].argmax(-1)], axis=1)
    out = rs.generate(model, SOURCE, source_mask=MASK, max_new_tokens=4, eos_ids=())
    assert target[:, 1:].tolist() == out.tokens.tolist()


def test_what_holds_of_any_encoder_decoder():
    p = parameters(rs.Model.random(CONFIG, seed=0, dtype="float64"), "float64")

    def encoded(source, mask):
        mask = np.ones(source.shape, dtype=bool) if mask is None else mask
        return memory_of(p, source, mask), mask

    mine = properties.Implementation(
        encode=encoded,
        logits=lambda memory, target: np.asarray(logits_of(p, memory[0], target, memory[1])),
        source_vocab_size=SOURCE_VOCAB,
        target_vocab_size=TARGET_VOCAB,
        start_id=1,
        max_source_length=17,
        max_target_length=17,
        padding=("right",),  # positions count padding too
    )
    # JAX compiles for every shape, so test only a few properties, with few trials each.
    properties.check(mine, only=("causality", "row_alone", "padding_right"), trials=2)
