"""Tables of the decoding steps, printed while they run: ``refseq2seq generate --steps``."""

import sys
from collections.abc import Iterable, Iterator

import numpy as np

from ..backend import to_numpy
from ..generation.beam import BeamStep, Hypotheses
from ..generation.loop import Step
from ..model import Model
from ..ops import softmax
from ..text import symbol

SHOWN = 5  # candidates per step


def print_token_steps(model: Model, steps: Iterable[Step], row: int) -> None:
    """Print for each step the chosen token, its log-probability in nats and the best candidates."""
    print(f"  step  {'chosen':8} {'log-prob':>8}  candidates after the filters")
    total = 0.0
    for step in steps:
        total += step.log_probs[row]
        chosen = _symbol(model, step.tokens[row])
        candidates = "  ".join(_candidates(model, step, row))
        print(f"  {step.index:4}  {chosen:8} {step.log_probs[row]:8.3f}  {candidates}")
        sys.stdout.flush()
    print(f"  {'sum':4}  {'':8} {total:8.3f}")


def print_beam_steps(model: Model, steps: Iterable[BeamStep]) -> None:
    """Print for each step the live beams and the finished hypotheses, with sums of log-probs."""
    for step in steps:
        print(f"  step {step.index}")
        _print_hypotheses(model, step.live)
        c = step.candidates
        for place in np.flatnonzero(step.finishing[0]):
            print(
                f"    {c.scores[0, place]:8.3f}  finished with {_symbol(model, c.tokens[0, place])}"
            )
        sys.stdout.flush()
    print("  pool, by normalised score")
    _print_hypotheses(model, step.pool)


def _print_hypotheses(model: Model, found: Hypotheses) -> None:
    rows = zip(found.tokens[0], found.lengths[0], found.scores[0], strict=True)
    for tokens, length, score in rows:
        if score > -np.inf:
            print(f"    {score:8.3f}  {' '.join(_symbol(model, t) for t in tokens[:length])}")


def _candidates(model: Model, step: Step, row: int) -> Iterator[str]:
    probs = to_numpy(softmax(step.scores[row].astype("float64")))
    for token in np.argsort(-probs, kind="stable")[:SHOWN]:
        if probs[token] > 0:
            yield f"{_symbol(model, token):4} {probs[token]:.3f}"


def _symbol(model: Model, token: int) -> str:
    return symbol(model.target_vocabulary, token)  # type: ignore[arg-type]
