"""Implementations with one mistake each: for every flag of the vectors, what it names.

A mistake is a case that is asked otherwise, or a function that changes a quantity on its
way, or a part of the package replaced while the case runs. Beside it stands the first
quantity in which it must show.
"""

import dataclasses
import math
from functools import partial

import numpy as np

import refseq2seq as rs
from refseq2seq import attention, frames, masks, model, ops
from refseq2seq.attention import KeyValueCache
from refseq2seq.generation.filters import keep, probability_before, ranks
from refseq2seq.params import build_params, named_arrays
from refseq2seq.taps import FunctionTap
from refseq2seq.testing.vectors import cases

FRAMES = "encoder.frame_layers.0."
SELF, CROSS = ".layers.0.self_attention.", ".layers.0.cross_attention."


def of_config(change, rename=lambda name: name, **fields):
    """The same arrays under other conventions of both stacks, or of the whole model."""

    def mistake(case, patch):
        c, arrays = case.model.config, dict(named_arrays(case.model.params))
        stacks = {name: change(getattr(c, name)) for name in ("encoder", "decoder")}
        config = dataclasses.replace(c, **stacks, **fields)
        params = build_params(config, lambda name, shape: arrays[rename(name)])
        model = dataclasses.replace(case.model, config=config, params=params)
        return dataclasses.replace(case, model=model), None

    return mistake


def of_stack(**fields):
    """A change of fields of both stacks."""
    return lambda stack: dataclasses.replace(stack, **fields)


def inside(part, **fields):
    """A change of one part of a stack's config, such as its norm."""

    def change(stack):
        value = getattr(stack, part)
        new = {name: f(getattr(value, name)) for name, f in fields.items()} if value else {}
        return dataclasses.replace(stack, **{part: value and dataclasses.replace(value, **new)})

    return change


def of_case(**fields):
    return lambda case, patch: (
        dataclasses.replace(case, **{name: f(case) for name, f in fields.items()}),
        None,
    )


def of_quantity(fault):
    return lambda case, patch: (case, fault)


def replaced(where, name, new):
    def mistake(case, patch):
        (patch.setitem if isinstance(where, dict) else patch.setattr)(where, name, new)
        return case, None

    return mistake


def mean_of_padding(name, x):
    """Attention to nothing gives every key the same weight."""
    if not name.endswith(".weights"):
        return x
    return np.where(x.sum(axis=-1, keepdims=True) == 0, 1 / x.shape[-1], x)


class StalePosition:
    """Each step of the cache adds the position of the one before."""

    def __init__(self):
        self.last = None

    def __call__(self, name, x):
        if name.startswith("step.") and name.endswith("decoder.positions"):
            x, self.last = (x if self.last is None else self.last), x
        return x


def short_table(name, x):
    """The last position is that before it."""
    if name in ("encoder.positions", "decoder.positions"):
        return np.concatenate([x[..., :-1, :], x[..., -2:-1, :]], axis=-2)
    return x


def other_twin(name, x):
    return np.where(x == 18, 17, x ^ 1) if name.endswith("chosen") else x


def first_of_all(name, x):
    """At the uniform number 0 the search for it in the cumulative sum gives the first id."""
    return np.where(np.arange(3) == 0, 0, x) if name == "step.0.chosen" else x


def without_crossing(p):
    def process(scores, state):
        probs = ops.softmax(scores)
        inside = probability_before(scores) + probs <= p
        return keep(scores, inside | (ranks(scores) == 0))

    return process


def naive_softmax(x, mask=None):
    with np.errstate(all="ignore"):
        e = np.exp(x) if mask is None else np.where(mask, np.exp(x), 0)
        return e / e.sum(axis=-1, keepdims=True)


def biased(x, gain, bias, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / (np.sqrt((centred**2).mean(axis=-1, keepdims=True)) + eps) * gain + bias


def to_after(name):
    return name.replace(".before.", ".after.")


def sees_the_next(q, k):
    return k[None, :] <= q[:, None] + 1


def from_the_edge(mask):
    return np.broadcast_to(np.arange(mask.shape[1]), mask.shape)


def from_the_first_token(mask):
    n_before = mask.argmax(axis=1)
    return np.maximum(np.arange(mask.shape[1]) - n_before[:, None], 0)


def halved_lengths(mask, c):
    """The length of a row over the stride, rounded down."""
    n_windows = RIGHT["mask_of_windows"](mask, c).shape[1]
    return np.arange(n_windows) < mask.sum(axis=1, keepdims=True) // c.stride


def zeros_at_the_end(x, c):
    later = np.concat([x[:, c.padding :], np.zeros_like(x[:, : c.padding])], axis=1)
    return RIGHT["windows"](later, c)


def reversed_taps(x, c):
    right = RIGHT["windows"](x, c)
    return right.reshape(*right.shape[:2], c.window, -1)[:, :, ::-1].reshape(right.shape)


def norm_first(p, c, x, mask, tap):
    """activation(norm(...)): the norm that stands after the activation stands before it."""
    inner = FunctionTap(lambda name, x: x if name == "out" else tap(name, x))
    x, mask = RIGHT["frame_layer"](p, dataclasses.replace(c, activation="none"), x, mask, inner)
    return tap("out", ops.ACTIVATIONS[c.activation](x)), mask


def appended(learned, x, mask):
    n, (x, mask) = len(learned), RIGHT["prepend"](learned, x, mask)
    return np.roll(x, -n, axis=1), np.roll(mask, -n, axis=1)


def wider(q, k, c):
    return masks.window_mask(q, k, dataclasses.replace(c, back=c.back + 1))


def capped_after_the_mask(x, mask=None):
    return ops.softmax(x if mask is None else np.where(mask, x, -2.0))  # the cap of -inf


OF_FRAMES = ("windows", "mask_of_windows", "frame_layer", "prepend")
RIGHT = {name: getattr(frames, name) for name in OF_FRAMES}
SWAPPED = {}
for pair in (("gelu_erf", "gelu_tanh"), ("grouped", "tiled"), ("halves", "interleaved")):
    SWAPPED |= {pair[0]: pair[1], pair[1]: pair[0]}
REVERSED = dict(reversed(cases.FILTERS.items()))


def ended_by_its_prefix(case, patch):
    """A row whose prefix holds EOS generates nothing: its neighbours' masks say no more."""
    holds = np.isin(case.prefix, case.eos_ids).any(axis=1)
    return case, ("lengths", lambda lengths: np.where(holds, 0, lengths))


# flag: the mistake, and the first quantity in which it shows
MISTAKES = {
    "PadLeak": (
        of_case(source_mask=lambda case: np.ones_like(case.source_mask)),
        f"encoder{SELF}weights",
    ),
    "CausalMask": (replaced(model, "causal_mask", sees_the_next), f"decoder{SELF}weights"),
    "AllMaskedRow": (of_quantity(mean_of_padding), f"decoder{CROSS}weights"),
    "PadIdInferred": (
        of_case(source_mask=lambda case: case.source != case.model.config.pad_id),
        "encoder.positions",
    ),
    "PositionAfterPadding": (replaced(model, "real_positions", from_the_edge), "encoder.positions"),
    "ScatteredMask": (replaced(model, "real_positions", from_the_first_token), "encoder.positions"),
    "CachePosition": (lambda case, patch: (case, StalePosition()), "step.1.decoder.positions"),
    "LastPosition": (of_quantity(short_table), "encoder.positions"),
    "RaggedPrefix": (
        of_case(
            prefix=lambda case: case.prefix[:, :1],
            prefix_lengths=lambda case: np.ones_like(case.prefix_lengths),
        ),
        "step.0.log_probs",
    ),
    "EosInPrefix": (ended_by_its_prefix, "lengths"),
    "FinishedRow": (of_case(eos_ids=lambda case: ()), "lengths"),
    "ArgmaxTie": (of_quantity(other_twin), "step.0.chosen"),
    "TopKTie": (
        replaced(cases.FILTERS, "top_k", partial(rs.top_k, keep_ties=True)),
        "step.0.scores",
    ),
    "FilterOrder": (replaced(cases, "FILTERS", REVERSED), "step.0.scores"),
    "TopPCrossing": (replaced(cases.FILTERS, "top_p", without_crossing), "step.0.scores"),
    "UniformEdge": (of_quantity(first_of_all), "step.0.chosen"),
    "BeamReorder": (
        replaced(KeyValueCache, "reorder", lambda cache, rows: None),
        f"step.*.decoder{SELF}scores",
    ),
    "LengthPenalty": (
        of_case(method=lambda case: case.method | {"length_penalty": 0.0}),
        "step.*.pool.scores",
    ),
    "SoftmaxOverflow": (replaced(attention, "softmax", naive_softmax), f"encoder{SELF}weights"),
    "NormEps": (of_config(inside("norm", eps=lambda eps: eps / 10)), f"encoder{SELF}input"),
    "NormPlace": (of_config(of_stack(norm_positions=("before",)), to_after), f"encoder{SELF}input"),
    "EmbeddingScale": (
        of_config(of_stack(embedding_scale=1.0)),
        "encoder.tokens",
    ),
    "SinusoidLayout": (
        of_config(inside("positions", layout=lambda layout: "concatenated")),
        "encoder.positions",
    ),
    "GeluForm": (
        of_config(inside("feed_forward", activation=SWAPPED.get)),
        "encoder.layers.0.feed_forward.hidden",
    ),
    "PositionScale": (of_config(inside("positions", scale=lambda scale: 1.0)), "encoder.positions"),
    "RelativeBuckets": (
        of_config(inside("relative_positions", bidirectional=lambda _: True)),
        f"decoder{SELF}scores",
    ),
    "AttentionScale": (
        of_config(inside("self_attention", scale=lambda scale: 1 / math.sqrt(5))),
        f"encoder{SELF}scores",
    ),
    "LogitsScale": (of_config(of_stack(), logits_scale=1.0), "logits"),
    "RotaryPairing": (
        of_config(inside("relative_positions", pairing=SWAPPED.get)),
        f"encoder{SELF}q",
    ),
    "KeyValueHeads": (
        of_config(inside("self_attention", kv_head_order=SWAPPED.get)),
        f"encoder{SELF}scores",
    ),
    "FrameMask": (replaced(frames, "mask_of_windows", halved_lengths), "encoder.positions"),
    "FramePadding": (replaced(frames, "windows", zeros_at_the_end), f"{FRAMES}projected"),
    "FrameKernel": (replaced(frames, "windows", reversed_taps), f"{FRAMES}projected"),
    "FrameNorm": (replaced(frames, "frame_layer", norm_first), f"{FRAMES}out"),
    "ClassTokens": (replaced(frames, "prepend", appended), "encoder.tokens"),
    "WindowEdge": (replaced(model, "window_mask", wider), f"encoder{SELF}weights"),
    "CapOrder": (replaced(attention, "softmax", capped_after_the_mask), f"encoder{SELF}weights"),
    "LogitsCap": (of_config(of_stack(), logits_softcap=None), "logits"),
    "BiasedDeviation": (replaced(ops.NORMS, "std_norm", biased), "decoder.embed"),
}
