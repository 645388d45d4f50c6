"""The data of a page: the steps of `refseq2seq.decode_steps`, and every quantity from a tap."""

import base64
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..backend import Array, array_namespace, to_numpy
from ..generation.beam import EarlyStopping, LengthPenalty
from ..generation.loop import Step, decode_steps
from ..generation.sampling import Chooser, Pick, Processor, State, greedy, sample
from ..model import Model, check_fits
from ..ops import softmax
from ..text import Tokenizer, symbol
from ..watching.quantities import quantity
from ..watching.trace import Trace
from .tree import search

SHOWN = 8  # candidates of each step, best first by the model's own probabilities
EXACT = ("batch", "n_source", "n_so_far", "vocab_size")  # last axes of arrays kept exactly,
EXACT_SIZE = 2**14  # up to this number of elements; the others are rounded
CODES = 125  # a rounded element is a multiple, up to about this, of the scale of its array


def record(
    model: Model,
    text: str,
    *,
    processors: Mapping[str, Processor] | None = None,
    draws: bool = False,
    seed: int = 0,
    beams: int | None = None,
    length_penalty: LengthPenalty = 1.0,
    early_stopping: EarlyStopping = False,
    by_hand: Mapping[int, int] | None = None,
    **length: Any,
) -> dict[str, Any]:
    """Decode one text and record each step.

    Parameters
    ----------
    model : Model
        With vocabularies.
    text : str
        The source text, not empty.
    processors : mapping of labels to processors, optional
        Applied in order; the candidates' probabilities are recorded before and after each.
    draws : bool
        True to sample, False to choose the best token.
    seed : int
        Seed of the uniform random numbers, used if ``draws`` is True.
    beams : int, optional
        Run a beam search with this number of beams first, record its tree, and let the steps
        follow the best hypothesis.
    length_penalty, early_stopping
        Options of the search, as in `refseq2seq.beam_steps`.
    by_hand : mapping of steps to tokens, optional
        Take these tokens in these steps, whatever their scores. Not with ``beams``.
    **length
        ``max_new_tokens`` and ``min_new_tokens``, as in `refseq2seq.decode_steps`.

    Returns
    -------
    dict
        Of the types that JSON has. ``steps`` contains the numbers of `refseq2seq.Step`:
        ``log_prob`` and ``sum`` in nats, ``margin`` (None if only one token was left),
        ``by_hand``, and the candidates' probabilities by stage. ``arrays`` contains all
        quantities, ``[name][step][layer]``, with one step if the source alone determines them:
        a shape, a scale and little-endian elements in base64. If the scale is 0 the elements are
        exact floats; otherwise they are int8 and times the scale, which is rounded by at most
        half of the scale, and -128 is -inf.

    Raises
    ------
    ValueError
        If the model reads frames, has no vocabularies, the text is empty, or ``by_hand`` is
        combined with ``beams``.
    """
    if not model.config.encoder.vocab_size:
        raise ValueError("the model reads frames, not texts: there is no text to explain")
    if model.source_vocabulary is None or model.target_vocabulary is None:
        raise ValueError("the model has no vocabularies: it cannot read or write text")
    if not text.strip():
        raise ValueError("the text is empty or only spaces: write a word")
    by_hand, processors = by_hand or {}, processors or {}
    if by_hand and beams is not None:
        raise ValueError("by_hand cannot be combined with beams: a search keeps several tokens")
    source = [model.source_vocabulary.encode(text)]
    check_fits("the text", len(source[0]), model.config.encoder)
    stages: list[tuple[str, Array]] = []
    watched = [_watched("the model's rules", lambda scores, state: scores, stages)]
    watched += [_watched(label, process, stages) for label, process in processors.items()]
    choose, tree, tokens = sample(*watched) if draws else greedy(*watched), None, by_hand
    if beams is not None:
        penalties = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        filters = [*processors.values()]
        tree = search(model, source, beams=beams, processors=filters, **penalties, **length)
        tokens = dict(enumerate(tree["best"]))
    choose = Chooser(choose.processors, _given(tokens, choose.pick))
    trace = Trace()
    steps = decode_steps(model, source, choose=choose, seed=seed, tap=trace, **length)
    recorded = list(_steps(model, steps, stages, by_hand))
    vocabulary, texts = model.target_vocabulary, [s for s in recorded if not s["finished"]]
    for rules in (-1, 1):  # stages of forced and of banned tokens: deleted if they change nothing
        shown = [step["stages"] for step in recorded]
        if all(stage[rules]["probs"] == stage[rules - 1]["probs"] for stage in shown):
            for stage in shown:
                del stage[rules]
    return {
        "text": text,
        "output": vocabulary.decode([step["token"] for step in recorded]),
        "omitted": [s["symbol"] for s in texts if not vocabulary.decode([s["token"]])],
        "source": [symbol(model.source_vocabulary, token) for token in source[0]],
        "start": symbol(model.target_vocabulary, model.config.decoder_start_id),
        "steps": recorded,
        "arrays": _arrays(trace),
        "tree": tree,
    }


def _steps(
    model: Model,
    steps: Iterator[Step],
    stages: list[tuple[str, Array]],
    by_hand: Mapping[int, int],
) -> Iterator[dict[str, Any]]:
    vocabulary: Any = model.target_vocabulary
    total = 0.0
    for step in steps:
        token, log_prob = int(step.tokens[0]), float(step.log_probs[0])
        total, margin = total + log_prob, float(step.margin[0])
        all_stages = [("the model", step.logits), *stages, ("forced tokens", step.scores)]
        yield {
            "token": token,
            "symbol": symbol(vocabulary, token),
            "by_hand": step.index in by_hand,
            "finished": bool(step.finished[0]),
            "log_prob": log_prob,
            "sum": total,
            "margin": margin if math.isfinite(margin) else None,
            **_candidates(vocabulary, token, all_stages),
        }
        stages.clear()


def _candidates(
    vocabulary: Tokenizer, chosen: int, stages: list[tuple[str, Array]]
) -> dict[str, Any]:
    """The most probable tokens and the chosen one, with their probabilities at each stage."""
    probs = [to_numpy(softmax(scores[0].astype("float64"))) for _, scores in stages]
    best = np.argsort(-probs[0], kind="stable")[:SHOWN].tolist()
    shown = best if chosen in best else [*best, chosen]
    return {
        "candidates": [{"token": i, "symbol": symbol(vocabulary, i)} for i in shown],
        "stages": [
            {"label": label, "probs": p[shown].tolist(), "kept": int((p > 0).sum())}
            for (label, _), p in zip(stages, probs, strict=True)
        ],
    }


def _arrays(trace: Trace) -> dict[str, list[list[list[Any]]]]:
    """The quantities by name, step and layer."""
    arrays: dict[str, list[list[list[Any]]]] = {}
    for name, x in trace.items():
        row, step = quantity(name), re.match(r"step\.(\d+)", name)
        steps = arrays.setdefault(row.name, [])
        if len(steps) <= int(step[1] if step else 0):
            steps.append([])
        last_axis = re.findall(r"\w+", row.shape.partition(")")[0])[-1]
        steps[-1].append(_encoded(to_numpy(x), last_axis in EXACT))
    return arrays


def _encoded(x: np.ndarray, exact: bool) -> list[Any]:
    """Shape, scale and elements of an array, as `record` describes them."""
    x, scale = x.astype(np.result_type(x, np.float32)), 0.0
    if not exact or x.size > EXACT_SIZE:
        largest = float(np.abs(x[np.isfinite(x)]).max(initial=0))
        scale = float(f"{largest / CODES or 1:.4g}")
        x = np.clip(np.rint(x / scale), -128, 127).astype("int8")
    elements = x.astype(x.dtype.newbyteorder("<")).tobytes()
    return [x.shape, scale, base64.b64encode(elements).decode()]


def _given(tokens: Mapping[int, int], pick: Pick) -> Pick:
    """Take ``tokens`` in their steps, and pick in the others."""

    def picked(scores: Array, state: State) -> Array:
        token = tokens.get(int(state.n_new[0]))
        return pick(scores, state) if token is None else array_namespace(scores).asarray([token])

    return picked


def _watched(label: str, process: Processor, stages: list[tuple[str, Array]]) -> Processor:
    """The same processor, which also appends its result to ``stages``."""

    def watched(scores: Array, state: State) -> Array:
        after = process(scores, state)
        stages.append((label, after))
        return after

    return watched
