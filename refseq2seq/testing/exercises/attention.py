"""Exercises on attention: one head, several heads, the source, and the cache."""
# mypy: allow-untyped-defs, allow-untyped-calls

import math

import numpy as np

from ... import attention as right
from ...masks import padding_mask
from .arrays import OF_KEEPDIMS, OF_THE_MASK, softmax
from .exercise import Exercise, Mistakes


def attention(
    q, k, v, mask=None, *, power=-0.5, d=None, turn="mT", product=np.matmul, weigh=True,
    **of_softmax,
):  # fmt: skip
    """Attention; the scores are multiplied by ``d`` to the ``power``."""
    sizes = {"d_v": v.shape[-1], "n_k": k.shape[-2], "n_q": q.shape[-2], "axis 1": q.shape[1]}
    turned = {"mT": k.mT, "T": k.T, "not": k}[turn]
    scores = product(q, turned) * float(sizes.get(d, d or q.shape[-1])) ** power
    weights = softmax(scores, mask, **of_softmax)
    return product(weights, v) if weigh else weights


def _attention(q, k, v, mask=None):
    return right.attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]), mask=mask)


def attention_inputs(rng):
    """One query, several, batches, masks; then large scores, and a query without a key."""

    def qkv(*batch_and_lengths):
        *batch, n_q, n_k, d_k, d_v = batch_and_lengths
        return [rng.standard_normal((*batch, *s)) for s in ((n_q, d_k), (n_k, d_k), (n_k, d_v))]

    for sizes in [(1, 1, 1, 1), (1, 2, 2, 1), (2, 2, 3, 2), (2, 3, 5, 2)]:
        yield qkv(*sizes)
    yield *qkv(2, 3, 2, 2), np.array([[True, False, True], [False, True, True]])
    yield [x.astype("float32") for x in qkv(2, 3, 5, 2, 3)]
    yield *qkv(2, 3, 3, 5, 2), np.tri(3, dtype=bool)
    yield qkv(2, 3, 5, 7, 3, 2)
    yield [s * x for s, x in zip((300, 100, 1), qkv(2, 3, 2, 2), strict=True)]
    yield *qkv(2, 3, 2, 2), np.array([[True, False, True], [False, False, False]])


OF_THE_SCALE: Mistakes = {
    "the scores are not divided by sqrt(d_k)": {"power": 0.0},
    "the scores are divided by d_k: divide by its square root": {"power": -1.0},
    "the scores are multiplied by sqrt(d_k): divide": {"power": 0.5},
    "the scores are divided by sqrt(d_v): d_k is the width of the keys": {"d": "d_v"},
    "the scores are divided by the root of the number of keys: d_k is their width": {"d": "n_k"},
    "the exponentials are not divided by their sum": {"divide": False},
}
OF_THE_AXIS: Mistakes = {
    "the scores are divided by the root of the number of queries: use sqrt(d_k)": {"d": "n_q"},
    "the width is q.shape[1] only without a batch: take q.shape[-1]": {"d": "axis 1"},
    "the softmax is over the queries: it must be over the keys": {"axis": -2},
    "the softmax is over axis 0: it must be over the last axis": {"axis": 0},
    "the softmax is over axis 1: it must be over the last axis, axis=-1": {"axis": 1},
    "the softmax is over the whole array: it must be over the last axis": {"axis": None},
}
OF_PRODUCTS: Mistakes = {
    "k.T reverses all axes: exchange the last two (k.mT or np.swapaxes(k, -1, -2))": {"turn": "T"},
    "k is not transposed: q @ k.mT": {"turn": "not"},
    "np.dot does not multiply batch by batch: use @": {"product": np.dot},
    "the weights are returned: multiply them by v": {"weigh": False},
}
OF_SCORES = OF_THE_SCALE | OF_PRODUCTS | OF_KEEPDIMS
ATTENTION = Exercise(
    reference=_attention,
    written=attention,
    inputs=attention_inputs,
    mistakes=OF_SCORES | OF_THE_AXIS | OF_THE_MASK,
    properties={
        "the order of the keys makes no difference": lambda f, q, k, v, *mask: (
            f(q, k[..., ::-1, :], v[..., ::-1, :], *(m[..., ::-1] for m in mask)),
            f(q, k, v, *mask),
        ),
        "if all values are 1 the result is 1, or 0 without a key": lambda f, q, k, v, *mask: (
            f(q, k, v**0, *mask),
            np.ones((*q.shape[:-1], v.shape[-1])) * (mask[0].any(-1)[..., None] if mask else 1),
        ),
    },
)


def split_heads(x, n_heads, *, how="moved"):
    """The heads of each position."""
    batch, n, width = x.shape
    d = width // n_heads
    return {
        "moved": x.reshape(batch, n, n_heads, d).transpose(0, 2, 1, 3),
        "not moved": x.reshape(batch, n, n_heads, d),
        "reshaped": x.reshape(batch, n_heads, n, d),
        "strided": x.reshape(batch, n, d, n_heads).transpose(0, 3, 1, 2),
        "first": x.reshape(batch, n, n_heads, d).transpose(2, 0, 1, 3),
        "merged": x.reshape(batch, n, n_heads, d).transpose(0, 2, 1, 3).reshape(-1, n, d),
        "turned": x.reshape(batch, n, n_heads, d).transpose(0, 2, 3, 1),
    }[how]


def split_heads_inputs(rng):
    """Numbers that count from 0, so that a result says where they come from."""
    for batch, n, heads, d in [(1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 2, 2), (2, 3, 7, 5)]:
        yield np.arange(float(batch * n * heads * d)).reshape(batch, n, heads * d), heads


OF_HEADS: Mistakes = {
    "the reshape mixes positions: split the last axis first, then move it": {"how": "reshaped"},
    "a head takes every n_heads-th column: it takes d neighbouring ones": {"how": "strided"},
}
SPLIT_HEADS = Exercise(
    reference=right.split_heads,
    written=split_heads,
    inputs=split_heads_inputs,
    mistakes=OF_HEADS
    | {
        "the axis of the heads is not moved before that of the positions": {"how": "not moved"},
        "the axis of the heads comes first: the batch comes first": {"how": "first"},
        "the heads are merged with the batch: they have an axis of their own": {"how": "merged"},
        "positions and columns are exchanged: the columns come last": {"how": "turned"},
    },
    properties={
        "the heads side by side are x": lambda f, x, n_heads: (
            np.concatenate([f(x, n_heads)[:, h] for h in range(n_heads)], axis=-1),
            x,
        )
    },
)


def cross_attention(
    x, memory, w_q, w_k, w_v, w_o, n_heads, mask=None, *, how="moved", merge=True, project=True,
    exchange=False, itself=False, d=None, widen=(slice(None), None, None), one=False, add=0,
    **of_attention,
):  # fmt: skip
    """Cross-attention; ``widen`` indexes the mask, ``itself`` attends to x."""
    x, memory = (memory, x) if exchange else (x, memory)
    source, n_heads = x if itself else memory, 1 if one else n_heads
    q, k, v = (split_heads(y, n_heads, how=how) for y in (x @ w_q, source @ w_k, source @ w_v))
    d = {"all": w_q.shape[-1], "d_model": x.shape[-1]}.get(d, d)
    heads = attention(q, k, v, None if mask is None else mask[widen], d=d, **of_attention)
    merged = (heads.transpose(0, 2, 1, 3) if merge else heads).reshape(*x.shape[:2], -1)
    return add * x + (merged @ w_o if project else merged)


def _cross_attention(x, memory, w_q, w_k, w_v, w_o, n_heads, mask=None):
    q, k, v = (right.split_heads(y, n_heads) for y in (x @ w_q, memory @ w_k, memory @ w_v))
    mask = None if mask is None else padding_mask(mask)
    return right.merge_heads(_attention(q, k, v, mask)) @ w_o


def cross_attention_inputs(rng):
    """One head, several, a batch with padding, and large scores."""
    draw = rng.standard_normal

    def weights(batch, n, m, d_model, d_memory, heads, d_k, d_v):
        x, memory = draw((batch, n, d_model)), draw((batch, m, d_memory))
        w = [(d_model, heads * d_k), (d_memory, heads * d_k), (d_memory, heads * d_v)]
        return x, memory, *(draw(shape) for shape in [*w, (heads * d_v, d_model)]), heads

    yield weights(1, 1, 1, 1, 1, 1, 1, 1)
    yield weights(1, 1, 2, 2, 2, 1, 2, 2)
    yield weights(1, 2, 2, 4, 4, 2, 2, 2)
    yield weights(1, 2, 3, 4, 4, 2, 3, 5)
    yield *weights(2, 4, 5, 7, 11, 3, 2, 5), np.arange(5) < np.array([[5], [2]])
    x, *rest = weights(1, 2, 3, 5, 7, 2, 3, 2)
    yield 3000 * x, *rest


CROSS_ATTENTION = Exercise(
    reference=_cross_attention,
    written=cross_attention,
    inputs=cross_attention_inputs,
    mistakes=OF_SCORES
    | OF_THE_AXIS
    | OF_HEADS
    | {text: how for text, how in OF_THE_MASK.items() if "row" not in text or "exp" in text}
    | {
        "queries are computed from memory, keys and values from x: exchange": {"exchange": True},
        "keys and values are computed from x: compute them from memory": {"itself": True},
        "d_k is taken as the width of all heads: it is that of one": {"d": "all"},
        "d_k is taken as d_model: it is the width of one head": {"d": "d_model"},
        "n_heads is not used: this is one head of the whole width": {"one": True},
        "the mask lacks the axes of heads and queries: mask[:, None, None, :]": {"widen": ...},
        "the mask lacks an axis: mask[:, None, None, :]": {"widen": (slice(None), None)},
        "the heads are merged before their axis is moved back": {"merge": False},
        "w_o is left out": {"project": False},
        "x is added: a layer does that, not its attention": {"add": 1},
    },
    properties={
        "other targets make no difference to one target": lambda f, x, *more: (
            f(x[:, :1], *more),
            f(x, *more)[:, :1],
        ),
        "source tokens that are not real make no difference": lambda f, x, memory, *more: (
            f(x, memory + (~more[-1][..., None] if len(more) > 5 else 0), *more),
            f(x, memory, *more),
        ),
    },
)


def cached_step(
    x, w_q, w_k, w_v, keys, values, *, sees="all", append="end", join=1, swap=False, d=None,
    **of_attention,
):  # fmt: skip
    """One step with a cache; ``sees`` says to which positions it attends."""
    new, order = (x @ w_k, x @ w_v), -1 if append == "start" else 1
    k, v = (
        np.concatenate([old, y][::order], join) for old, y in zip((keys, values), new, strict=True)
    )
    seen = {"all": (k, v), "earlier": (keys, values), "newest": new}[sees]
    out = attention(x @ w_q, *seen, d=x.shape[-1] if d == "d_model" else d, **of_attention)
    kept = (keys, values) if append == "never" else (v, k) if swap else (k, v)
    return out, *kept


def cached_step_inputs(rng):
    """A cache of one position, an empty one, and longer ones."""
    draw = rng.standard_normal
    for batch, t, d_model, d_k, d_v in [
        (1, 1, 1, 1, 1), (1, 0, 2, 2, 2), (1, 2, 2, 3, 2), (2, 3, 5, 2, 7)
    ]:  # fmt: skip
        w = draw((d_model, d_k)), draw((d_model, d_k)), draw((d_model, d_v))
        yield draw((batch, 1, d_model)), *w, draw((batch, t, d_k)), draw((batch, t, d_v))


def _cached_and_full(f, x, w_q, w_k, w_v, keys, values):
    """The results of three steps from an empty cache, and of all positions at once."""
    whole, outs = np.concatenate([x, -x, x / 2], axis=1), []
    keys, values = keys[:, :0], values[:, :0]
    for i in range(3):
        out, keys, values = f(whole[:, i : i + 1], w_q, w_k, w_v, keys, values)
        outs.append(out)
    full = _attention(whole @ w_q, whole @ w_k, whole @ w_v, np.tri(3, dtype=bool))
    return np.concatenate(outs, axis=1), full


CACHED_STEP = Exercise(
    reference=cached_step,
    written=cached_step,
    inputs=cached_step_inputs,
    returns=("out", "keys", "values"),
    mistakes=OF_SCORES
    | {
        "the softmax is over the queries: it must be over the keys": {"axis": -2},
        "the newest position does not attend to itself: append its key first": {"sees": "earlier"},
        "the newest position attends only to itself: use the cache too": {"sees": "newest"},
        "the new key and value are put first: append them at the end": {"append": "start"},
        "np.concatenate joins axis 0: the positions are on axis 1, axis=1": {"join": 0},
        "d_k is taken as d_model: it is the width of the keys": {"d": "d_model"},
        "the old cache is returned: return it with the new key and value": {"append": "never"},
        "keys and values are exchanged in the result": {"swap": True},
    },
    properties={"step by step gives what all positions at once give": _cached_and_full},
)
