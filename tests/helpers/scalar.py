"""The model a second time: from the papers' equations, one number after another.

The package is held to this (`test_model.py`), so it shares nothing with the package but
the configuration and the numbers in the parameters. There are no arrays here, no batch, no
padding and no cache: a sequence is a list of tokens or of vectors, a vector a list of
floats, and each sum is `math.fsum`, which rounds once. Slow, and meant to be.
"""

from functools import partial
from math import cos, erfc, exp, fsum, log, pi, sin, sqrt, tanh

from refseq2seq import Model
from refseq2seq.config import (
    AlibiPositions,
    BucketedPositions,
    FrameInput,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
)


def forward(model: Model, source, target):
    """Logits after each token of one target, given one source: a list per position."""
    return decode(model, target, encode(model, source))


def generate(model: Model, source, max_new_tokens, prefix=None):
    """Greedy: the most probable token, the lowest id among equals, until EOS."""
    c, memory = model.config, encode(model, source)
    target = list(prefix or [c.decoder_start_id])
    new, log_probs = [], []
    while len(new) < max_new_tokens and not (new and new[-1] in c.eos_ids):
        logits = decode(model, target + new, memory)[-1]
        token = logits.index(max(logits))
        new.append(token)
        log_probs.append(-log(fsum(exp(z - logits[token]) for z in logits)))
    return new, log_probs


def encode(model: Model, source):
    """One vector for each source token, or for each window of frames and each class token."""
    c, p = model.config.encoder, _lists(model.params.encoder)
    if isinstance(c.input, FrameInput):
        for layer, its in zip(c.input.layers, p["frame_layers"], strict=True):
            source = convolution(layer, its, source)
        vectors = (p["class_tokens"] or []) + source
    else:
        vectors = [p["embedding"][token] for token in source]
    xs = [embed(c, p, vector, t) for t, vector in enumerate(vectors)]
    register_tokens = p["register_tokens"] or []
    xs, first = register_tokens + xs, -len(register_tokens)
    for i, layer in enumerate(p["layers"]):
        xs = residual(
            c, layer["self_norms"], xs, partial(self_attention, c, p, i, first=first, causal=False)
        )
        xs = residual(c, layer["feed_forward_norms"], xs, partial(feed_forward, c, layer))
    return [norm(c.norm, p["final_norm"], x) for x in xs][len(register_tokens) :]


def decode(model: Model, target, memory):
    """Logits after each target token: that at t sees targets up to t, and all of memory."""
    c, p = model.config.decoder, _lists(model.params.decoder)
    xs = [embed(c, p, p["embedding"][token], t) for t, token in enumerate(target)]
    for i, layer in enumerate(p["layers"]):
        xs = residual(
            c, layer["self_norms"], xs, partial(self_attention, c, p, i, first=0, causal=True)
        )
        xs = residual(c, layer["cross_norms"], xs, partial(cross_attention, c, layer, memory))
        xs = residual(c, layer["feed_forward_norms"], xs, partial(feed_forward, c, layer))
    xs = [norm(c.norm, p["final_norm"], x) for x in xs]
    unembedding, bias = _lists(model.params.unembedding), _lists(model.params.logits_bias)
    scaled = [[z * model.config.logits_scale for z in x] for x in xs]
    cap = model.config.logits_softcap
    return [[capped(z, cap) for z in affine(x, unembedding, bias)] for x in scaled]


def convolution(c, p, xs):
    """Each output is that of one window; beyond the ends, a vector is zero."""
    xs = [norm(c.norm_before, p["norm_before"], x) for x in xs]
    zero, ys = [0.0] * len(xs[0]), []
    for first in range(-c.padding, len(xs) + c.padding - c.window + 1, c.stride):
        window = [xs[t] if 0 <= t < len(xs) else zero for t in range(first, first + c.window)]
        y = affine([number for x in window for number in x], p["w_in"], p["b_in"])
        if c.activation != "none":
            y = [activation(c, number) for number in y]
        ys.append(norm(c.norm_after, p["norm_after"], y))
    return ys


# Layers: a sublayer takes a sequence of vectors and gives one of the same length.


def residual(c, p, xs, sublayer):
    """x = after(x + branch(sublayer(before(x)))), with the norms that the model has."""
    branches = sublayer([norm(c.norm, p["before"], x) for x in xs])
    branches = [norm(c.norm, p["branch"], y) for y in branches]
    sums = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(xs, branches, strict=True)]
    return [norm(c.norm, p["after"], x) for x in sums]


def feed_forward(c, layer, xs):
    """Shazeer 2020, equations 1 and 5, with the activation of the model."""
    c, p, ys = c.feed_forward, layer["feed_forward"], []
    for x in xs:
        hidden = affine(x, p["w_in"], p["b_in"])
        if c.gated:
            gates = affine(x, p["w_gate"], p["b_gate"])
            hidden = [activation(c, g) * h for g, h in zip(gates, hidden, strict=True)]
        else:
            hidden = [activation(c, h) for h in hidden]
        ys.append(affine(norm(c.hidden_norm, p["hidden_norm"], hidden), p["w_out"], p["b_out"]))
    return ys


def self_attention(c, p, i, xs, *, first, causal):
    """The vector at s stands at position first + s; ``causal`` hides those that come later."""
    how, tables = c.relative_positions, p["relative_bias"]
    window = c.windows[i] if c.windows else None

    def seen(s):
        visible = range(s + 1 if causal else len(xs))
        if window is None:
            return visible
        return [t for t in visible if s - window.back <= t <= s + window.ahead]

    table = tables[i if len(tables) > 1 else 0] if tables else None
    return multi_head(
        c.self_attention,
        p["layers"][i]["self_attention"],
        xs,
        xs,
        seen=seen,
        bias=lambda head, s, t: score_bias(how, table, head, t - s),
        turn=lambda s, x: rotate(how, first + s, x) if isinstance(how, RotaryPositions) else x,
    )


def cross_attention(c, layer, memory, xs):
    return multi_head(
        c.cross_attention,
        layer["cross_attention"],
        xs,
        memory,
        seen=lambda s: range(len(memory)),
        bias=lambda head, s, t: 0.0,
        turn=lambda s, x: x,
    )


def multi_head(c, p, xs, memory, *, seen, bias, turn):
    """Vaswani et al. 2017, section 3.2.2, with learned key-value pairs, gates and scales.

    The query at s sees the keys at ``seen(s)``; ``turn`` is how positions rotate.
    """
    qs = [affine(x, p["w_q"], p["b_q"]) for x in xs]
    ks = [affine(m, p["w_k"], p["b_k"]) for m in memory]
    vs = [affine(m, p["w_v"], p["b_v"]) for m in memory]
    share = c.n_heads // c.n_kv_heads

    def head(s, h):
        g = h // share if c.kv_head_order == "grouped" else h % c.n_kv_heads
        q = turn(s, head_norm(c, p["q_norm"], h, _block(qs[s], h, c.d_k)))
        keys = [p["learned_k"][g][m] for m in range(c.n_learned_kv)]
        keys += [turn(t, head_norm(c, p["k_norm"], g, _block(ks[t], g, c.d_k))) for t in seen(s)]
        values = [p["learned_v"][g][m] for m in range(c.n_learned_kv)]
        values += [_block(vs[t], g, c.d_v) for t in seen(s)]
        biases = [0.0] * c.n_learned_kv + [bias(h, s, t) for t in seen(s)]
        scores = [c.scale * dot(q, k) + b for k, b in zip(keys, biases, strict=True)]
        weights = softmax([capped(z, c.softcap) for z in scores])
        scale = 1.0 if p["head_scale"] is None else p["head_scale"][h][0][0]
        return [scale * dot(weights, column) for column in zip(*values, strict=True)]

    ys = []
    for s, x in enumerate(xs):
        y = [number for h in range(c.n_heads) for number in head(s, h)]
        if c.gate != "none":
            gates = [sigmoid(z) for z in affine(x, p["w_gate"], p["b_gate"])]
            width = {"per_value": 1, "per_head": c.d_v}[c.gate]
            y = [number * gates[j // width] for j, number in enumerate(y)]
        ys.append(affine(y, p["w_o"], p["b_o"]))
    return ys


def _block(x, i, width):
    return x[i * width : (i + 1) * width]


# Positions.


def embed(c, p, vector, position):
    x = [c.embedding_scale * e for e in vector]
    if c.embedding_norm == "before_positions":
        x = norm(c.norm, p["embedding_norm"], x)
    if isinstance(c.positions, LearnedPositions):
        row = p["positions"][position + c.positions.offset]
        x = [a + c.positions.scale * b for a, b in zip(x, row, strict=True)]
    if isinstance(c.positions, SinusoidalPositions):
        row = sinusoid(c.positions.layout, position + c.positions.offset, c.d_model)
        x = [a + c.positions.scale * b for a, b in zip(x, row, strict=True)]
    if c.embedding_norm == "after_positions":
        x = norm(c.norm, p["embedding_norm"], x)
    return x


def sinusoid(layout, position, d):
    """Vaswani et al. 2017, section 3.5, and the two other layouts that bear the name."""
    half, row = d // 2, [0.0] * d
    for j in range(half):
        if layout == "tensor2tensor":
            angle = position / 10000 ** (j / max(half - 1, 1))
        else:
            angle = position / 10000 ** (2 * j / d)
        at_sin, at_cos = (2 * j, 2 * j + 1) if layout == "interleaved" else (j, half + j)
        row[at_sin], row[at_cos] = sin(angle), cos(angle)
    return row


def rotate(c, position, x):
    """Su et al. 2021, equation 15: pair j turns by position * base^(-2j/d)."""
    y = list(x)
    for j in range(c.d_rotary // 2):
        a, b = (2 * j, 2 * j + 1) if c.pairing == "interleaved" else (j, j + c.d_rotary // 2)
        angle = position / c.base ** (2 * j / c.d_rotary)
        y[a] = x[a] * cos(angle) - x[b] * sin(angle)
        y[b] = x[b] * cos(angle) + x[a] * sin(angle)
    return y


def score_bias(c, table, head, distance):
    """What a key at ``distance`` after the query (negative: before) adds to its score."""
    if isinstance(c, AlibiPositions):
        return -c.slopes[head] * abs(distance)
    if isinstance(c, BucketedPositions):
        return c.scale * table[bucket(c, distance)][head]
    return 0.0


def bucket(c, distance):
    """Raffel et al. 2020, section 2.1, decided by integers, so that no logarithm is rounded.

    Far distances r take the largest k with exact (max / exact)^(k / wide) <= r.
    """
    n, first = c.n_buckets, 0
    if c.bidirectional:
        n = n // 2
        first = n if distance > 0 else 0
    elif distance > 0:
        distance = 0
    r, exact = abs(distance), n // 2
    if r < exact:
        return first + r
    wide, k = n - exact, 0
    while k < wide - 1 and c.max_distance ** (k + 1) * exact**wide <= r**wide * exact ** (k + 1):
        k += 1
    return first + exact + k


# Operations on vectors and numbers.


def dot(a, b):
    return fsum(x * y for x, y in zip(a, b, strict=True))


def affine(x, matrix, bias):
    y = [dot(x, column) for column in zip(*matrix, strict=True)]
    return y if bias is None else [a + b for a, b in zip(y, bias, strict=True)]


def capped(x, cap):
    """Gemma 2's soft cap of scores and logits."""
    return x if cap is None else cap * tanh(x / cap)


def softmax(x):
    top = max(x)
    e = [exp(z - top) for z in x]
    return [z / fsum(e) for z in e]


def norm(c, p, x):
    """The four norms; ``p`` is None where the model has no norm."""
    if p is None:
        return x
    d = len(x)
    if c.kind in ("layer_norm", "std_norm"):
        mean = fsum(x) / d
        x = [z - mean for z in x]
    squares = fsum(z * z for z in x)
    divisor = {
        "layer_norm": lambda: sqrt(squares / d + c.eps),
        "rms_norm": lambda: sqrt(squares / d + c.eps),
        "l2_norm": lambda: max(sqrt(squares), c.eps) / sqrt(d),
        "std_norm": lambda: sqrt(squares / (d - 1)) + c.eps,
    }[c.kind]()
    gain = (
        p["gain"] if isinstance(p["gain"], list) else [1.0 if p["gain"] is None else p["gain"]] * d
    )
    bias = p["bias"] or [0.0] * d
    return [z / divisor * g + b for z, g, b in zip(x, gain, bias, strict=True)]


def head_norm(c, p, head, x):
    """The norm of one head's query or key, whose gains and biases are its own."""
    if p is None:
        return x
    own = {name: a[head][0] if isinstance(a, list) else a for name, a in p.items()}
    return norm(c.qk_norm, own, x)


def activation(c, x):
    return {
        "relu": lambda: max(x, 0.0),
        "relu_squared": lambda: max(x, 0.0) ** 2,
        "silu": lambda: x * sigmoid(x),
        "gelu_erf": lambda: x * erfc(-x / sqrt(2)) / 2,
        "gelu_tanh": lambda: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
    }[c.activation]()


def sigmoid(x):
    return 1 / (1 + exp(-x)) if x > 0 else exp(x) / (1 + exp(x))


def _lists(tree):
    """Parameters as nested dictionaries and lists of Python floats."""
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return [_lists(member) for member in tree]
    if hasattr(tree, "tolist"):
        return tree.tolist()
    return {name: _lists(getattr(tree, name)) for name in tree.__slots__}
