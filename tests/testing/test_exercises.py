"""`implements` accepts right functions, however written, and names the mistakes it knows."""

import heapq
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.testing.exercises import all_exercises
from refseq2seq.testing.exercises.searching import Language

EXERCISES = all_exercises()
MISTAKES = [(name, mistake) for name, e in EXERCISES.items() for mistake in e.mistakes]


def message(name, function):
    with pytest.raises(AssertionError) as raised:
        rs.testing.implements(name, function)
    return str(raised.value)


# Right functions, each written in another way than the package's.


def softmax_of_lists(x, mask=None):
    """Loops, and a list as the result."""
    if x.ndim > 1:
        mask = [None] * len(x) if mask is None else np.broadcast_to(mask, x.shape)
        return [softmax_of_lists(row, m) for row, m in zip(x, mask, strict=True)]
    allowed = [True] * len(x) if mask is None else list(mask)
    used = [float(a) for a, m in zip(x, allowed, strict=True) if m]
    powers = [math.exp(a - max(used)) if m else 0.0 for a, m in zip(x, allowed, strict=True)]
    return [p / (math.fsum(powers) or 1.0) for p in powers]


def softmax_of_logarithms(x, mask=None):
    """e^(x - log sum), with -1e300 in the place of -inf."""
    mask = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    x = np.where(mask, x.astype("float64"), -1e300)
    return np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True)) * mask


def attention_of_einsum(q, k, v, mask=None):
    scores = np.einsum("...id,...jd->...ij", q, k) / np.sqrt(q.shape[-1])  # float64 of float32
    return np.einsum("...ij,...jd->...id", softmax_of_logarithms(scores, mask), v)


def attention_scaled_first(q, k, v, mask=None):
    scores = (q / math.sqrt(q.shape[-1])) @ np.swapaxes(k, -1, -2)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    top = np.max(scores, axis=-1, keepdims=True)
    e = np.exp(scores - np.where(top == -np.inf, 0, top))
    total = e.sum(-1, keepdims=True)
    return (e @ v) / np.where(total == 0, 1, total)


def layer_norm_of_numpy(x, gain, bias, eps):
    return gain * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + bias


def layer_norm_of_squares(x, gain, bias, eps):
    """The variance as the mean of squares minus the square of the mean."""
    n = x.shape[-1]
    mean = np.einsum("...i->...", x)[..., None] / n
    variance = np.maximum(np.einsum("...i,...i->...", x, x)[..., None] / n - mean**2, 0)
    return (x - mean) * (variance + eps) ** -0.5 * gain + bias


def rms_norm_of_norm(x, gain, eps):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return gain * (x / (length**2 / x.shape[-1] + eps) ** 0.5)


def gelu_of_math(x):
    return np.vectorize(lambda a: a * 0.5 * (1 + math.erf(a / math.sqrt(2))))(x)


def gelu_of_loop(x):
    out = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        out[i] = x[i] * math.erfc(-x[i] * math.sqrt(0.5)) / 2
    return out


def sinusoids_of_loops(positions, d_model):
    table = np.zeros((len(positions), d_model))
    for i, p in enumerate(positions):
        for j in range(0, d_model, 2):
            table[i, j] = math.sin(p / 10000 ** (j / d_model))
            table[i, j + 1] = math.cos(p / 10000 ** (j / d_model))
    return table


def sinusoids_of_columns(positions, d_model):
    """By logarithms, and all cosines as sines."""
    columns = np.arange(d_model)
    rates = np.exp(-math.log(10000) * (columns - columns % 2) / d_model)
    return np.sin(np.outer(positions, rates) + math.pi / 2 * (columns % 2))


def rotation_of_complex_numbers(x, positions):
    z = x[..., 0::2] + 1j * x[..., 1::2]
    d = x.shape[-1]
    z = z * np.exp(1j * np.outer(positions, 10000.0 ** (-np.arange(0, d, 2) / d)))
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def rotation_of_loops(x, positions):
    out, d = np.zeros_like(x), x.shape[-1]
    for i, p in enumerate(positions):
        for j in range(d // 2):
            c, s = (f(p * 10000 ** (-2 * j / d)) for f in (math.cos, math.sin))
            a, b = x[..., i, 2 * j], x[..., i, 2 * j + 1]
            out[..., i, 2 * j], out[..., i, 2 * j + 1] = a * c - b * s, b * c + a * s
    return out


def causal_mask_of_differences(q_positions, k_positions):
    return np.subtract.outer(q_positions, k_positions) >= 0


def causal_mask_of_lists(q_positions, k_positions):
    return [[j <= i for j in k_positions] for i in q_positions]


def split_heads_by_split(x, n_heads):
    return np.stack(np.split(x, n_heads, axis=-1), axis=1)


def split_heads_by_slices(x, n_heads):
    d = x.shape[-1] // n_heads
    return [[x[b, :, h * d : (h + 1) * d] for h in range(n_heads)] for b in range(len(x))]


def cross_attention_of_einsum(x, memory, w_q, w_k, w_v, w_o, n_heads, mask=None):
    def heads(y, w):
        return np.einsum("bnd,dhk->bhnk", y, w.reshape(len(w), n_heads, -1))

    mask = None if mask is None else mask[:, None, None]
    out = attention_of_einsum(heads(x, w_q), heads(memory, w_k), heads(memory, w_v), mask)
    return np.einsum("bhnk,hkd->bnd", out, w_o.reshape(n_heads, -1, w_o.shape[-1]))


def cross_attention_of_loops(x, memory, w_q, w_k, w_v, w_o, n_heads, mask=None):
    """One row and one head after the other; the parts of w_o are added up; padding is cut off."""
    out, d_k, d_v = np.zeros(x.shape), w_q.shape[1] // n_heads, w_v.shape[1] // n_heads
    for b, h in itertools.product(range(len(x)), range(n_heads)):
        source = memory[b] if mask is None else memory[b][mask[b]]
        k, v = slice(h * d_k, (h + 1) * d_k), slice(h * d_v, (h + 1) * d_v)
        out[b] += (
            attention_scaled_first(x[b] @ w_q[:, k], source @ w_k[:, k], source @ w_v[:, v])
            @ w_o[v]
        )
    return out


def cached_step_of_two_products(x, w_q, w_k, w_v, keys, values):
    """(x W_q) K^T as x (W_q K^T)."""
    keys, values = np.append(keys, x @ w_k, axis=1), np.append(values, x @ w_v, axis=1)
    scores = x @ (w_q @ keys.mT) / len(w_q[0]) ** 0.5
    return softmax_of_logarithms(scores) @ values, keys, values


def cached_step_of_rows(x, w_q, w_k, w_v, keys, values):
    outs, all_keys, all_values = [], [], []
    for row, old_k, old_v in zip(x, keys, values, strict=True):
        k, v = np.vstack([old_k, row @ w_k]), np.vstack([old_v, row @ w_v])
        outs.append(attention_scaled_first(row @ w_q, k, v))
        all_keys.append(k)
        all_values.append(v)
    return [np.stack(outs), np.stack(all_keys), np.stack(all_values)]


def top_k_of_sort(logits, k):
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    out = np.full_like(logits, -np.inf)
    np.put_along_axis(out, order, np.take_along_axis(logits, order, -1), -1)
    return out


def top_k_of_partition(logits, k):
    """The k-th largest by a partition; of those that equal it, the first ones."""
    k = min(k, logits.shape[-1])
    worst = -np.partition(-logits, k - 1, axis=-1)[..., k - 1, None]
    free = k - (logits > worst).sum(-1, keepdims=True)
    equal = logits == worst
    return np.where((logits > worst) | (equal & (np.cumsum(equal, -1) <= free)), logits, -np.inf)


def top_p_of_loops(logits, p):
    if logits.ndim > 1:
        return [top_p_of_loops(row, p) for row in logits]
    probs, out, total = np.exp(logits) / np.exp(logits).sum(), [-np.inf] * len(logits), 0.0
    for token in sorted(range(len(logits)), key=lambda t: -logits[t]):
        if total < p:
            out[token] = logits[token]
        total += probs[token]
    return out


def top_p_of_search(logits, p):
    """The number of tokens by which the sum reaches p, then top-k."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    best = np.take_along_axis(softmax_of_logarithms(logits), order, -1)
    n = 1 + (np.cumsum(best, -1)[..., :-1] < p).sum(-1, keepdims=True)
    return np.where(np.argsort(order, -1) < n, logits, -np.inf)


def greedy_of_while(next_logits, start, end, limit):
    new = []
    while len(new) < limit and end not in new:
        new.append(np.argmax(next_logits([start] + new)))
    return np.array(new, dtype=np.int32)


def greedy_of_recursion(next_logits, start, end, limit, before=()):
    if limit == 0:
        return []
    logits = next_logits([*before, start])
    token = max(range(len(logits)), key=lambda t: logits[t])
    rest = greedy_of_recursion(next_logits, token, end, limit - 1, (*before, start))
    return [token] + ([] if token == end else rest)


def beam_search_of_arrays(next_log_probs, start, end, beams, limit):
    """As Hugging Face: B copies at first, and all arrays of one length; it stops if it can."""
    live, sums, pool = [[start]] * beams, np.array([0.0] + [-1e9] * (beams - 1)), []
    for n in range(1, limit + 1):
        totals = np.array([next_log_probs(t) for t in live]) + sums[:, None]
        vocab = totals.shape[1]
        best = np.argsort(-totals.ravel(), kind="stable")[: 2 * beams]
        kept, kept_sums = [], []
        for rank, flat in enumerate(best):
            tokens, total = [*live[flat // vocab], int(flat % vocab)], totals.ravel()[flat]
            if tokens[-1] == end and rank < beams:
                pool.append((tokens[1:], total / n))
            elif tokens[-1] != end and len(kept) < beams:
                kept.append(tokens)
                kept_sums.append(total)
        live, sums = kept, np.array(kept_sums)
        pool = sorted(pool, key=lambda h: -h[1])[:beams]
        if len(pool) == beams and pool[-1][1] > sums[0] / n:
            return pool[0]
    return max([*pool, (live[0][1:], sums[0] / limit)], key=lambda h: h[1])


def beam_search_to_the_limit(next_log_probs, start, end, beams, limit):
    """A finished hypothesis stays in the heap of the candidates' results to the end."""
    live, best = {(start,): 0.0}, (-math.inf, ())
    for n in range(limit):
        candidates = {
            (*tokens, t): total + float(x)
            for tokens, total in live.items()
            for t, x in enumerate(next_log_probs(list(tokens)))
        }
        chosen = heapq.nlargest(2 * beams, candidates, key=candidates.get)
        ended = [c for c in chosen if c[-1] == end or n == limit - 1]
        best = max([best, *((candidates[c] / (n + 1), c[1:]) for c in ended)])
        live = {c: candidates[c] for c in [c for c in chosen if c[-1] != end][:beams]}
    return best[1], best[0]


RIGHT = [
    ("softmax", softmax_of_lists),
    ("softmax", softmax_of_logarithms),
    ("attention", attention_of_einsum),
    ("attention", attention_scaled_first),
    ("layer_norm", layer_norm_of_numpy),
    ("layer_norm", layer_norm_of_squares),
    ("rms_norm", rms_norm_of_norm),
    ("rms_norm", lambda x, gain, eps: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * gain),
    ("gelu", gelu_of_math),
    ("gelu", gelu_of_loop),
    ("sinusoids", sinusoids_of_loops),
    ("sinusoids", sinusoids_of_columns),
    ("rotation", rotation_of_complex_numbers),
    ("rotation", rotation_of_loops),
    ("causal_mask", causal_mask_of_differences),
    ("causal_mask", causal_mask_of_lists),
    ("split_heads", split_heads_by_split),
    ("split_heads", split_heads_by_slices),
    ("cross_attention", cross_attention_of_einsum),
    ("cross_attention", cross_attention_of_loops),
    ("cached_step", cached_step_of_two_products),
    ("cached_step", cached_step_of_rows),
    ("top_k", top_k_of_sort),
    ("top_k", top_k_of_partition),
    ("top_p", top_p_of_loops),
    ("top_p", top_p_of_search),
    ("greedy", greedy_of_while),
    ("greedy", greedy_of_recursion),
    ("beam_search", beam_search_of_arrays),
    ("beam_search", beam_search_to_the_limit),
]


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=lambda x: getattr(x, "__name__", x))
def test_a_right_function_passes(name, function):
    assert rs.testing.implements(name, function) is None


@pytest.mark.parametrize("name", EXERCISES)
def test_the_reference_and_the_written_function_pass(name):
    rs.testing.implements(name, EXERCISES[name].reference)
    rs.testing.implements(name, EXERCISES[name].written)
    assert len(EXERCISES[name].mistakes) >= 3


@pytest.mark.parametrize("name", [*EXERCISES])
def test_the_arguments_are_contiguous(name):
    """Other libraries, such as PyTorch, take no arrays with negative strides."""

    def function(*arguments):
        for x in arguments:
            assert not isinstance(x, np.ndarray) or min(x.strides, default=0) >= 0
        return EXERCISES[name].written(*arguments)

    rs.testing.implements(name, function)


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_fails_and_is_named(name, mistake):
    e = EXERCISES[name]
    said = message(name, lambda *a: e.written(*a, **e.mistakes[mistake]))
    assert said.splitlines()[0] == f"{e.signature}: {mistake}"


# Wrong functions that no table knows: the message has numbers, and no false name.


OTHERS = [
    ("softmax", lambda x, mask=None: x / x.sum(axis=-1, keepdims=True)),
    ("attention", lambda q, k, v, mask=None: 1.001 * EXERCISES["attention"].written(q, k, v, mask)),
    ("layer_norm", lambda x, gain, bias, eps: (x - np.median(x, -1, keepdims=True)) * gain + bias),
    ("rms_norm", lambda x, gain, eps: x / np.abs(x).mean(-1, keepdims=True) * gain),
    ("gelu", lambda x: np.maximum(x, 0)),
    ("gelu", lambda x: np.where(x > 3, x, gelu_of_loop(x))),
    ("sinusoids", lambda p, d: EXERCISES["sinusoids"].written(p, d) * math.sqrt(d)),
    ("rotation", lambda x, p: EXERCISES["rotation"].written(x, 2 * p)),
    ("causal_mask", lambda q, k: np.ones((len(q), len(k)), bool)),
    ("split_heads", lambda x, h: EXERCISES["split_heads"].written(x, h)[:, ::-1]),
    (
        "cross_attention",
        lambda x, memory, *w: x / 2 + EXERCISES["cross_attention"].written(x, memory, *w),
    ),
    ("top_k", lambda x, k: np.where(x >= x.max(-1, keepdims=True) - 1, x, -np.inf)),
    ("top_p", lambda x, p: np.where(x >= np.quantile(x, p, axis=-1, keepdims=True), x, -np.inf)),
    ("greedy", lambda f, start, end, limit: [end]),
    ("beam_search", lambda f, start, end, beams, limit: ([end], float(f([start])[end]))),
]


@pytest.mark.parametrize(("name", "function"), OTHERS)
def test_an_unknown_mistake_gets_numbers_and_no_name(name, function):
    first, *rows = message(name, function).splitlines()
    assert "wrong" in first or "shape" in first
    assert {"expected", "got"} <= {row.split()[0] for row in rows}
    assert not any(mistake in first for mistake in EXERCISES[name].mistakes)


def test_an_unknown_mistake_of_the_cache_gets_numbers_and_no_name():
    def step(x, *w):
        out, keys, values = EXERCISES["cached_step"].written(x, *w)
        return 2 * out, keys, values

    assert "out: the values are wrong" in message("cached_step", step)


def test_three_mistakes_are_named_together():
    def naive(q, k, v, mask=None):
        e = np.exp(q @ k.mT)
        return e / e.sum(axis=-1, keepdims=True) @ v

    first = message("attention", naive).splitlines()[0]
    assert [word in first for word in ("sqrt(d_k)", "not used", "overflows")] == [True] * 3


# What a class wrote. Functions that raise are explained too, if the mistake raises the same.


def attention_of(
    mask_used=True, turn=lambda k: k.mT, divided=lambda e: e / e.sum(-1, keepdims=True)
):
    def function(q, k, v, mask=None):
        scores = q @ turn(k) / math.sqrt(q.shape[-1])
        if mask_used and mask is not None:
            scores = np.where(mask, scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        return np.nan_to_num(divided(np.exp(scores - np.where(top == -np.inf, 0, top)))) @ v

    return function


def norm_of(epsilon, axis=-1, **keepdims):
    def function(x, gain, bias, eps):
        centred = x - x.mean(axis, **keepdims)
        return centred / np.sqrt(x.var(axis, **keepdims) + (epsilon or eps)) * gain + bias

    return function


def ones(q, k):
    return np.ones((len(q), len(k)), bool)


CLASS = [
    ("attention", attention_of(turn=lambda k: k.T), ["k.T reverses all axes"]),
    ("attention", attention_of(False, lambda k: k.T), ["k.T reverses", "the mask is not used"]),
    ("attention", attention_of(divided=lambda e: e / e.sum(-1)), ["the sum needs keepdims"]),
    ("attention", attention_of(divided=lambda e: e / e.sum(axis=1)), ["keepdims=True", "axis 1"]),
    ("layer_norm", norm_of(None), ["the mean of the squares needs", "the mean needs keepdims"]),
    ("layer_norm", norm_of(None, axis=1, keepdims=True), ["the mean is over axis 1"]),
    ("layer_norm", norm_of(1e-6, keepdims=True), ["eps is always 1e-6"]),
    ("causal_mask", lambda q, k: np.triu(ones(q, k)), ["this is the upper triangle (np.triu)"]),
    (
        "causal_mask",
        lambda q, k: np.triu(ones(q, k), 1),
        ["inverted", "not used: this is the mask of 0"],
    ),
    (
        "causal_mask",
        lambda q, k: np.triu(ones(q, k), len(k) - len(q)),
        ["the wrong way round", "not used: this is the mask of the last"],
    ),
    ("causal_mask", lambda q, k: q >= k, ["each query needs a row"]),
]


@pytest.mark.parametrize(("name", "function", "mistakes"), CLASS)
def test_what_a_class_wrote(name, function, mistakes):
    found = message(name, function).splitlines()[0].split("; and ")
    assert len(found) == len(mistakes)
    assert all(mistake in text for mistake, text in zip(mistakes, found, strict=True))


def attention_if_mask(q, k, v, mask=None):
    return attention_scaled_first(q, k, v, mask if mask else None)


def softmax_with_an_index(x, mask=None):
    return softmax_of_logarithms(x, mask) if mask is None or x.ndim == 1 else x[~mask]


def top_k_of_kth(logits, k):
    return np.where(logits >= np.sort(logits, axis=-1)[..., -k], logits, -np.inf)


CURED = [
    ("attention", attention_if_mask, "`if mask is not None`"),
    ("softmax", lambda x, mask=None: x * ~mask, "ask `if mask is not None`"),
    ("softmax", softmax_with_an_index, "use np.where"),
    ("gelu", lambda x: x / 2 * (1 + math.erf(x / 2**0.5)), "np.vectorize"),
    ("sinusoids", lambda p, d: 10000 ** -(p + 1), "a float is needed"),
    ("split_heads", lambda x, h: x.reshape(*x.shape[:2], h, x.shape[2] / h), "divide by //"),
    ("rms_norm", lambda x, gain, eps: np.swapaxes(x, 1, 2), "count from the end"),
    ("rms_norm", lambda x, gain, eps: x.transpose(0, 2, 1), "count from the end"),
    ("rms_norm", lambda x, gain, eps: x[:, 0], "count from the end"),
    ("attention", lambda q, k, v, mask=None: np.einsum("bqd,bkd->bqk", q, k), "count from the end"),
    ("layer_norm", lambda x, *w: [(a, b) for a, b in [x.shape]], "shape[-1] is the last"),
    ("top_p", lambda x, p: x[[1]], "fewer elements than you ask for"),
    ("top_k", top_k_of_kth, "[..., None] keeps it"),
]


@pytest.mark.parametrize(("name", "function", "cure"), CURED)
def test_an_exception_gets_its_cure(name, function, cure):
    first, *rows = message(name, function).splitlines()
    assert cure in first
    assert rows[-1].strip().startswith("raises")


def test_an_exception_of_another_cause_gets_no_name():
    def function(q, k, v, mask=None):
        if q.ndim > 2:
            raise ValueError("only two axes")
        return attention_scaled_first(q, k, v, mask)

    said = message("attention", function)
    assert said.splitlines()[0].endswith("it raises ValueError: only two axes")


def test_a_model_that_was_called_too_often_is_new_in_the_next_call():
    """Otherwise every mistake would raise what an endless loop raises, and explain it."""

    def endless(next_logits, start, end, limit):
        while True:
            next_logits([start])

    said = message("greedy", endless).splitlines()[0]
    assert said.endswith("the model is called without end: stop after `limit` new tokens")
    assert "one list of all tokens, not 0" in message("greedy", lambda f, start, *a: f(start))


def test_an_empty_answer():
    for name, e in EXERCISES.items():
        assert f"{e.signature}: it returns None: return " in message(name, lambda *a: None)


def test_an_exception_is_shown_and_chained():
    with pytest.raises(AssertionError, match="it raises ZeroDivisionError: ") as raised:
        rs.testing.implements("gelu", lambda x: 1 / 0)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert "without end" in message("greedy", lambda f, *a: [f([1]) for _ in itertools.count()])


def in_place(x, mask=None):
    result = EXERCISES["softmax"].written(x, mask)
    x[...] = result
    return result


@pytest.mark.parametrize(
    ("name", "function", "text"),
    [
        ("softmax", in_place, "it changes its argument x: compute with a copy"),
        ("softmax", lambda x, mask=None: x[None], "the shape is (1, 1), not (1,)"),
        ("softmax", lambda x, mask=None: "a", "it returns no numbers, but 'a'"),
        (
            "softmax",
            lambda x, mask=None: [[1.0], [1.0, 2.0]],
            "it returns no numbers, but [[1.0], [1.0, 2.0]]",
        ),
        ("softmax", lambda x, mask=None: x * np.nan, "the result has NaN"),
        ("causal_mask", lambda q, k: 1.0 * (k <= q[:, None]), "must be booleans (dtype=bool)"),
        ("gelu", lambda x: gelu_of_loop(x).astype("float16"), "keep the dtype"),
        ("sinusoids", lambda p, d: np.zeros((len(p), d), int), "must be floating-point numbers"),
        ("cached_step", lambda x, *w: x, "return out, keys, values"),
        ("greedy", lambda f, *a: [1.0], "must be integers"),
    ],
)
def test_a_wrong_form_is_told_in_one_line(name, function, text):
    assert text in message(name, function).splitlines()[0]


def test_unknown_names_and_values_that_are_no_functions():
    with pytest.raises(ValueError, match=r"name must be one of softmax, .*; got 'soft'"):
        rs.testing.implements("soft", max)
    with pytest.raises(TypeError, match="function must be callable, got float"):
        rs.testing.implements("softmax", 1.0)


def test_large_arrays_are_not_printed():
    said = message("split_heads", lambda x, h: split_heads_by_split(x, h) + (x.size > 12))
    assert "float64 array of shape (2, 3, 35)" in said
    assert len(said.splitlines()) < 9


def test_a_message_is_always_the_same():
    assert len({message("beam_search", OTHERS[-1][1]) for _ in range(2)}) == 1


# What is right, by hand and by enumeration.


def test_the_second_beam_wins_by_hand():
    """[2, end]: (log 0.25 + log 0.98) / 2 = -0.703 beats [end]: log 0.4 = -0.916."""
    by_hand = EXERCISES["beam_search"].inputs(np.random.default_rng(0))
    next(by_hand)
    tokens, score = EXERCISES["beam_search"].reference(*next(by_hand))
    assert tokens == [2, 0]
    assert abs(score - (math.log(0.25) + math.log(0.98)) / 2) < 1e-15


def test_a_beam_search_with_enough_beams_finds_the_best_of_all_targets():
    for seed in range(20):
        table = np.random.default_rng(seed).dirichlet(np.ones(3), 3)
        language = Language(np.log(table))

        def mean(tokens, language=language):
            sums = [language([1, *tokens[:i]])[t] for i, t in enumerate(tokens)]
            return math.fsum(sums) / len(tokens)

        ended = {
            t[: t.index(0) + 1] if 0 in t else t for t in itertools.product(range(3), repeat=4)
        }
        best = max(ended, key=mean)
        tokens, score = EXERCISES["beam_search"].reference(language, 1, 0, 81, 4)
        assert (tuple(tokens), score) == (best, pytest.approx(mean(best), abs=1e-12))


def test_no_sum_of_probabilities_is_near_p():
    for logits, p in EXERCISES["top_p"].inputs(np.random.default_rng(0)):
        probs = np.sort(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), axis=-1)
        sums = np.cumsum(probs[..., ::-1], axis=-1)
        assert p == 1 or np.abs(sums - p).min() > 1e-3


def test_the_page_has_every_signature():
    page = Path(__file__).parents[2].joinpath("docs/exercises.md").read_text(encoding="utf-8")
    assert all(f"| `{e.signature}` |" in page for e in EXERCISES.values())


def test_the_exercises_are_imported_on_first_use_and_need_no_hypothesis():
    code = """
import sys, numpy as np, refseq2seq as rs
rs.testing
assert "refseq2seq.testing.exercises.arrays" not in sys.modules
rs.testing.implements("causal_mask", lambda q, k: k <= q[:, None])
assert "hypothesis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_result_that_numpy_cannot_read_is_shown():
    class Tensor:
        def __array__(self, *_, **__):
            raise RuntimeError("a tensor that requires a gradient")

        def __repr__(self):
            return "tensor(1., requires_grad=True)"

    with pytest.raises(AssertionError, match="it returns no numbers, but tensor"):
        rs.testing.implements("gelu", lambda x: Tensor())


def test_a_result_of_lower_precision_is_refused_with_the_cure():
    with pytest.raises(AssertionError, match="float32, not float64: keep the dtype"):
        rs.testing.implements("gelu", lambda x: x.astype("float32"))
