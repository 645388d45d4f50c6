"""The data of a page: the steps of `refseq2seq.decode_steps`, and quantities from a tap."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..backend import Array, to_numpy
from ..config import ModelConfig
from ..generation.beam import EarlyStopping, LengthPenalty
from ..generation.loop import Step, decode_steps
from ..generation.sampling import Chooser, Processor, State, greedy, sample
from ..model import Model
from ..ops import softmax
from ..text import Tokenizer, symbol
from ..watching.trace import Trace
from .tree import search

SHOWN = 8  # candidates of each step, best first by the model's own probabilities


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
    **length
        ``max_new_tokens`` and ``min_new_tokens``, as in `refseq2seq.decode_steps`.

    Returns
    -------
    dict
        Of the types that JSON has. ``steps`` contains the numbers of `refseq2seq.Step`:
        ``log_prob`` and ``sum`` in nats, ``margin`` (None if only one token was left) and the
        candidates' probabilities by stage. ``cross_attention`` and ``self_attention`` contain
        the attention weights of the newest token, ``[step][layer][head][key]``.
        ``encoder_attention`` contains those of the encoder, ``[layer][head][query][key]``.

    Raises
    ------
    ValueError
        If the model reads frames, has no vocabularies, or the text is empty.
    """
    if not model.config.encoder.vocab_size:
        raise ValueError("the model reads frames, not texts: there is no text to explain")
    if model.source_vocabulary is None or model.target_vocabulary is None:
        raise ValueError("the model has no vocabularies: it cannot read or write text")
    if not text:
        raise ValueError("the text is empty: there is nothing to encode")
    source = [model.source_vocabulary.encode(text)]
    stages: list[tuple[str, Array]] = []
    watched = [_watched("the model's rules", lambda scores, state: scores, stages)]
    watched += [_watched(label, process, stages) for label, process in (processors or {}).items()]
    choose, tree = sample(*watched) if draws else greedy(*watched), None
    if beams is not None:
        tree = search(
            model,
            source,
            beams=beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            processors=[*(processors or {}).values()],
            **length,
        )
        best = np.asarray(tree["best"])
        choose = Chooser(tuple(watched), lambda scores, state: best[state.n_new])
    trace = Trace("*attention.weights")
    steps = decode_steps(model, source, choose=choose, seed=seed, tap=trace, **length)
    recorded = list(_steps(model, steps, stages))
    for rules in (-1, 1):  # stages of forced and of banned tokens: deleted if they change nothing
        shown = [step["stages"] for step in recorded]
        if all(stage[rules]["probs"] == stage[rules - 1]["probs"] for stage in shown):
            for stage in shown:
                del stage[rules]
    letters = [symbol(model.source_vocabulary, token) for token in source[0]]
    return {
        "text": text,
        "output": model.target_vocabulary.decode([step["token"] for step in recorded]),
        "source": letters,
        "start": symbol(model.target_vocabulary, model.config.decoder_start_id),
        "steps": recorded,
        **_attention(model.config, letters, trace, len(recorded)),
        "tree": tree,
    }


def _steps(
    model: Model, steps: Iterator[Step], stages: list[tuple[str, Array]]
) -> Iterator[dict[str, Any]]:
    vocabulary: Any = model.target_vocabulary
    total = 0.0
    for step in steps:
        token, log_prob = int(step.tokens[0]), float(step.log_probs[0])
        total += log_prob
        margin = float(step.margin[0])
        yield {
            "token": token,
            "symbol": symbol(vocabulary, token),
            "log_prob": log_prob,
            "sum": total,
            "margin": margin if math.isfinite(margin) else None,
            **_candidates(
                vocabulary,
                token,
                [("the model", step.logits), *stages, ("forced tokens", step.scores)],
            ),
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


def _attention(c: ModelConfig, letters: list[str], trace: Trace, n_steps: int) -> dict[str, Any]:
    """Attention weights of the encoder and of each step's newest token, with labels of the keys."""
    encoder, decoder = c.encoder, c.decoder

    def learned(n: int) -> list[str]:
        return [f"·{i + 1}" for i in range(n)]

    def newest(name: str) -> list[Any]:
        return [
            [
                _rounded(trace[f"step.{t}.decoder.layers.{i}.{name}.weights"][0, :, -1])
                for i in range(decoder.n_layers)
            ]
            for t in range(n_steps)
        ]

    return {
        "encoder_attention": [
            _rounded(trace[f"encoder.layers.{i}.self_attention.weights"][0])
            for i in range(encoder.n_layers)
        ],
        "encoder_keys": learned(encoder.self_attention.n_learned_kv + encoder.n_register_tokens)
        + letters,
        "encoder_queries": learned(encoder.n_register_tokens) + letters,
        "cross_attention": newest("cross_attention"),
        "cross_keys": learned(decoder.cross_attention.n_learned_kv) + letters,  # type: ignore[union-attr]
        "self_attention": newest("self_attention"),
        "self_learned": learned(decoder.self_attention.n_learned_kv),
    }


def _watched(label: str, process: Processor, stages: list[tuple[str, Array]]) -> Processor:
    """The same processor, which also appends its result to ``stages``."""

    def watched(scores: Array, state: State) -> Array:
        after = process(scores, state)
        stages.append((label, after))
        return after

    return watched


def _rounded(weights: Array) -> list[Any]:
    """The weights rounded to four decimals, which keep the page small."""
    return np.round(to_numpy(weights).astype(np.float64), 4).tolist()
