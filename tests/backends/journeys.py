"""What a user does with a model, once in each way: for each backend to do the same.

A journey takes a model, in any backend, and gives its results by name: arrays of the model's
backend or of the host. Whatever the package can do with arrays, some journey does.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import arrangements
import numpy as np

import refseq2seq as rs
from refseq2seq import config, like
from refseq2seq.backend import array_namespace

SOURCE = [[3, 4, 5, 6, 7, 22], [8, 9, 10]]
TARGET = np.array([[1, 4, 6, 7, 9, 4, 22, 2], [1, 5, 8, 3, 3, 10, 17, 0]])
PREFIX = [[1, 4, 7], [1]]

Results = dict[str, Any]


def _with_positions(**fields: Any) -> rs.ModelConfig:
    plain = {"positions": None, "relative_positions": None} | fields
    t5 = arrangements.t5_like
    return dataclasses.replace(
        t5,
        encoder=dataclasses.replace(t5.encoder, **plain),
        decoder=dataclasses.replace(t5.decoder, **plain),
    )


_T2T = config.SinusoidalPositions(layout="tensor2tensor", offset=0, scale=1.0)
_CONCATENATED = config.SinusoidalPositions(layout="concatenated", offset=2, scale=1.0)
_ROTARY = config.RotaryPositions(d_rotary=2, base=9.0, pairing="interleaved")


def _small() -> rs.ModelConfig:
    """One layer, and tokens that are forced or suppressed."""
    c = _with_positions()
    relu = config.FeedForwardConfig(
        d_ff=17, activation="relu", gated=False, biases=(), hidden_norm=None
    )
    norm = config.NormConfig(kind="l2_norm", eps=1e-6, gain="vector", bias=True)
    return dataclasses.replace(
        c,
        encoder=dataclasses.replace(c.encoder, n_layers=1, feed_forward=relu, norm=norm),
        decoder=dataclasses.replace(c.decoder, n_layers=1, positions=_T2T),
        forced_bos_id=5,
        forced_eos_id=2,
        suppressed_ids=(6,),
        begin_suppressed_ids=(7,),
    )


CONFIGS: dict[str, rs.ModelConfig] = arrangements.ALL | {
    "no positions": _with_positions(),
    "tensor2tensor": _with_positions(positions=_T2T),
    "concatenated, rotary": _with_positions(positions=_CONCATENATED, relative_positions=_ROTARY),
    "small": _small(),
}


def of_steps(steps: Any) -> Results:
    """The steps of a generation, by their index."""
    fields = ("tokens", "logits", "scores", "log_probs", "margin", "finished", "forced", "emitted")
    return {f"step.{s.index}.{name}": getattr(s, name) for s in steps for name in fields}


def forward(model: rs.Model) -> Results:
    trace = rs.Trace()
    rs.forward(model, SOURCE, TARGET, tap=trace)
    return dict(trace)


def in_pieces(model: rs.Model) -> Results:
    """With a memory taken apart, a cache, and rows that continue others."""
    xp = model.xp
    source, mask = xp.asarray([[3, 4, 5], [6, 7, 0]]), xp.asarray([[True] * 3, [True, True, False]])
    memory = rs.encode(model, source, mask).take(xp.asarray([1, 0, 1]))
    cache = rs.new_cache(model, 3, 8)
    target = TARGET[[0, 1, 1]]
    first = rs.decode(model, xp.asarray(target[:, :4]), memory, cache=cache)
    for layer in cache:
        layer.reorder(np.array([2, 1, 1]))
    then = rs.decode(model, target[:, 4:], memory, cache=cache)
    unpadded = rs.encode(model, SOURCE[:1]).hidden
    return {"hidden": memory.hidden, "first": first, "then": then, "unpadded": unpadded}


def greedily(model: rs.Model) -> Results:
    how = {"prefix": PREFIX, "min_new_tokens": 2, "max_new_tokens": 4}
    return of_steps(rs.decode_steps(model, SOURCE, **how))


def without_cache(model: rs.Model) -> Results:
    return of_steps(rs.decode_steps(model, SOURCE, max_new_tokens=3, use_cache=False))


FILTERS = {
    "temperature": rs.temperature(0.7),
    "top_k": rs.top_k(5),
    "top_k with ties": rs.top_k(3, keep_ties=True),
    "top_fraction": rs.top_fraction(0.3),
    "top_p": rs.top_p(0.8),
    "min_p": rs.min_p(0.1),
    "top_a": rs.top_a(0.3),
    "typical": rs.typical(0.7),
    "typical with ties": rs.typical(0.7, keep_ties=True),
    "epsilon": rs.epsilon(0.03),
    "eta": rs.eta(0.03),
    "gumbel_top_k": rs.gumbel_top_k(5, rs.temperature(0.7), seed=3),
}

CHOOSERS = {
    **{name: rs.sample(processor) for name, processor in FILTERS.items()},
    "all filters": rs.sample(*FILTERS.values()),
    "x_transformers": like.x_transformers(filter_logits_fn="top_p", temperature=0.9),
    "x_transformers top_k": like.x_transformers(),
    "huggingface": like.huggingface(do_sample=True, top_k=7, top_p=0.8, min_p=0.01),
    "huggingface greedy": like.huggingface(),
}

CONSTRAINTS = {
    "repetition_penalty": rs.repetition_penalty(1.3),
    "encoder_repetition_penalty": rs.encoder_repetition_penalty(1.3),
    "no_repeat_ngram": rs.no_repeat_ngram(2),
    "encoder_no_repeat_ngram": rs.encoder_no_repeat_ngram(2),
    "suppress": rs.suppress([3, 4]),
    "begin_suppress": rs.begin_suppress([6]),
    "bad_words": rs.bad_words([[3, 7], [11]]),
    "sequence_bias": rs.sequence_bias({(3, 7): 1.5, (11,): -2.0}),
    "exponential_decay": rs.exponential_decay(0, 1.3),
    "forced_bos": rs.forced_bos(9),
    "forced_eos": rs.forced_eos(2, 4),
    "allowed_tokens": rs.allowed_tokens(lambda row, tokens: range(2, 20)),
}


def sampled(chooser: rs.Chooser) -> Callable[[rs.Model], Results]:
    def journey(model: rs.Model) -> Results:
        return of_steps(rs.decode_steps(model, SOURCE, max_new_tokens=3, choose=chooser, seed=5))

    return journey


def sampled_twice(model: rs.Model) -> Results:
    """Two samples a source, at uniform numbers that are given."""
    uniforms = model.xp.asarray(np.random.default_rng(0).random((4, 3)))
    how = {"choose": rs.sample(), "num_return_sequences": 2, "uniforms": uniforms}
    return of_steps(rs.decode_steps(model, SOURCE, max_new_tokens=3, **how))


def raced(model: rs.Model) -> Results:
    """Noise on the host and on the device."""
    noise = np.random.default_rng(0).exponential(size=(3, 2, model.config.decoder.vocab_size))
    found = {}
    for name, given in (("host", noise), ("device", model.xp.asarray(noise))):
        choose = rs.exponential_race(given, rs.gumbel_top_k(7, noise=given))
        steps = of_steps(rs.decode_steps(model, SOURCE, max_new_tokens=3, choose=choose))
        found |= {f"{name}.{key}": x for key, x in steps.items()}
    return found


def constrained(model: rs.Model) -> Results:
    choose = rs.greedy(*CONSTRAINTS.values())
    return of_steps(rs.decode_steps(model, SOURCE, max_new_tokens=4, choose=choose))


def beams(**options: Any) -> Callable[[rs.Model], Results]:
    def journey(model: rs.Model) -> Results:
        how = {"prefix": PREFIX, "max_new_tokens": 4, "beams": 3, "n_best": 3} | options
        return dataclasses.asdict(rs.beam_search(model, SOURCE, **how))

    return journey


def contrasted(reads_source: bool) -> Callable[[rs.Model], Results]:
    def journey(model: rs.Model) -> Results:
        weaker = rs.Model.random(model.config, 7).astype(model.dtype.name).to(model.xp.__name__)
        amateurs = [rs.amateur(weaker, reads_source=reads_source), rs.amateur_of_li(weaker)]
        return of_steps(rs.decode_steps(model, SOURCE, max_new_tokens=3, amateurs=amateurs))

    return journey


def scored(model: rs.Model) -> Results:
    return dataclasses.asdict(rs.score(model, SOURCE, [[1, 4, 5, 2], [1, 6]], prefix=[[1], [1]]))


def in_half(model: rs.Model) -> Results:
    """float16, which is computed in float32."""
    half = model.astype("float16")
    return greedily(half) | operations(half) | beams()(half)


def operations(model: rs.Model) -> Results:
    """Functions of arrays that a model of the arrangements does not come by."""
    from refseq2seq import erf, ops

    x = model.xp.asarray(np.linspace(-6, 6, 39).reshape(3, 13), dtype=model.dtype)
    functions = [erf.erf, erf.erfc, erf.normal_cdf, ops.logsumexp, *ops.ACTIVATIONS.values()]
    norms = {name: norm(x, None, None, 1e-5) for name, norm in ops.NORMS.items()}
    assert array_namespace(x) is model.xp
    return {function.__name__: function(x) for function in functions} | norms


def written_out(model: rs.Model) -> Results:
    """The functions of its program."""
    xp, program = model.xp, rs.write_out(model)
    source, mask = xp.asarray([[3, 4, 5], [6, 7, 0]]), xp.asarray([[True] * 3, [True, True, False]])
    memory, cache = program.encode(source, mask), program.new_cache(2, 3)
    found = {f"memory.{i}": x for i, x in enumerate([memory[0], *memory[1], *memory[2]])}
    for t in range(3):
        found[f"step.{t}"] = program.step(xp.asarray([[4], [5]]), t, memory, cache)
    return found | {"tokens": program.greedy(source, limit=4)}


def heard(model: rs.Model) -> Results:
    """Frames of two lengths, in a list and on the device, with a cache and with beams."""
    width, rng, trace = model.config.encoder.input.widths[0], np.random.default_rng(0), rs.Trace()
    rows = [rng.standard_normal((n, width)) for n in (11, 7)]
    rs.forward(model, rows, TARGET, tap=trace)
    frames = model.xp.asarray(np.stack([rows[0][:7], rows[1]]))
    mask = model.xp.asarray(np.arange(7) < np.array([[7], [5]]))
    memory = rs.encode(model, frames, mask)
    steps = rs.decode_steps(model, frames, source_mask=mask, prefix=PREFIX, max_new_tokens=3)
    found = rs.beam_search(model, rows, beams=2, max_new_tokens=3)
    return {**trace, "hidden": memory.hidden} | of_steps(steps) | dataclasses.asdict(found)


def given(model: rs.Model) -> Results:
    """Embeddings, and a memory of vectors that another encoder left on the device."""
    vectors = np.random.default_rng(0).standard_normal((2, 5, model.config.encoder.d_model))
    x, mask = model.xp.asarray(vectors), model.xp.asarray(np.arange(5) < np.array([[3], [5]]))
    memory = rs.project_memory(model, x, mask)
    steps = rs.decode_steps(model, memory, num_return_sequences=2, max_new_tokens=3)
    found = rs.beam_search(model, memory, beams=3, max_new_tokens=3)
    scores = rs.score(model, memory, [[1, 4, 5, 2], [1, 6]], prefix=[[1], [1]])
    logits = {"embedded": rs.forward(model, x, TARGET, mask)}
    return logits | of_steps(steps) | dataclasses.asdict(found) | dataclasses.asdict(scores)


def refused(model: rs.Model) -> Results:
    """A memory whose second row overflows, and one of another backend: the errors say so."""
    with contextlib.suppress(TypeError):
        rs.generate(model, rs.encode(model.to("numpy"), SOURCE), max_new_tokens=2)
    hidden = np.ones((2, 3, model.config.encoder.d_model))
    hidden[1] = np.finfo(model.dtype).max
    with np.errstate(all="ignore"), contextlib.suppress(rs.NonFiniteLogitsError):
        rs.generate(model, rs.project_memory(model, model.xp.asarray(hidden)), max_new_tokens=2)
        return {}
    return {"refused": np.array([1])}


def explained(model: rs.Model) -> Results:
    """The record of a page whose second token is chosen by hand."""
    record = rs.explain.record(
        arrangements.readable(model), "dog", by_hand={1: 5}, max_new_tokens=3
    )
    probs = [step["stages"][0]["probs"] for step in record["steps"]]
    return {f"step.{t}": np.array(p) for t, p in enumerate(probs)}


TEACHER_FORCED = {"forward": forward, "in pieces": in_pieces, "written out": written_out}
DECODING = {"greedy": greedily, "without cache": without_cache, "beams": beams()}
CHOOSING = {
    "operations": operations,
    "contrastive": contrasted(True),
    "contrastive, one encoder": contrasted(False),
    "scores": scored,
    **{f"sample: {name}": sampled(chooser) for name, chooser in CHOOSERS.items()},
    "two samples": sampled_twice,
    "exponential race": raced,
    "given vectors": given,
    "refused memories": refused,
    "explained": explained,
    "timestamps": sampled(rs.sample(rs.timestamp_rules(14, 12, max_initial=2))),
    "constraints": constrained,
    "in float16": in_half,
    "beams, stopped at once": beams(early_stopping=True, length_penalty=0.0),
    "beams, never stopped early": beams(early_stopping="never", length_penalty=rs.gnmt_penalty(1)),
    "beams, constrained": beams(processors=[*CONSTRAINTS.values(), FILTERS["top_p"]]),
    "beams, of logits": beams(
        logits_processors=[*CONSTRAINTS.values()], processors=[rs.renormalize_logits()]
    ),
    "stochastic beams": beams(processors=[rs.gumbel_top_k(3, seed=1)]),
}


@dataclasses.dataclass(frozen=True)
class Journey:
    """One journey with one model."""

    config: rs.ModelConfig
    go: Callable[[rs.Model], Results]

    def model(self, dtype: str) -> rs.Model:
        """On the host, with the same numbers as weights in every dtype."""
        return rs.Model.random(self.config, 3, "float32").astype(dtype)


def _everywhere() -> dict[str, Journey]:
    """Teacher forcing with every config; decoding with two; each choice of tokens with one."""
    small = {"small": CONFIGS["small"]}
    two = small | {"rich": CONFIGS["rich"]}
    pairs = [(CONFIGS, TEACHER_FORCED), (two, DECODING), (small, CHOOSING)]
    pairs.append((arrangements.OF_FRAMES, {"frames": heard}))
    return {
        f"{name}: {what}": Journey(config, go)
        for configs, journeys in pairs
        for name, config in configs.items()
        for what, go in journeys.items()
    }


ALL = _everywhere()
