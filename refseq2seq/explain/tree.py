"""The tree of a beam search: every candidate, and whether it was kept, ended or dropped."""

from typing import Any

import numpy as np

from ..checks import Tokens
from ..generation.beam import BeamStep, beam_steps
from ..model import Model
from ..text import symbol


def search(model: Model, source: Tokens, *, beams: int, **options: Any) -> dict[str, Any]:
    """Run a beam search for one source, and record its candidates as nodes.

    The arguments are those of `refseq2seq.beam_steps`.

    Returns
    -------
    dict
        ``nodes``: step, parent (an index into ``nodes``, -1 for the start), token, symbol,
        log_prob in nats, score (a sum of log-probabilities in nats) and fate: "lives", "ends"
        or "out". ``hypotheses``: text, whether it has ended, and normalised score, best first.
        ``best``: the tokens of the best hypothesis. ``path``: the indices of its nodes.
    """
    nodes: list[dict[str, Any]] = []
    live = [-1] * beams  # the index of each live beam's node
    for step in beam_steps(model, source, beams=beams, **options):
        live = _grow(model, nodes, live, step)
    pool, vocabulary = step.pool, model.target_vocabulary
    found = [pool.tokens[0, k, :n].tolist() for k, n in enumerate(pool.lengths[0]) if n]
    hypotheses = [
        {
            "text": vocabulary.decode(tokens),  # type: ignore[union-attr]
            "finished": tokens[-1] in model.config.eos_ids,
            "score": float(score),
        }
        for tokens, score in zip(found, pool.scores[0], strict=False)
    ]
    best, path, parent = found[0], [], -1
    indices = {(node["step"], node["parent"], node["token"]): i for i, node in enumerate(nodes)}
    for place, token in enumerate(best):
        parent = indices[place, parent, token]
        path.append(parent)
    return {
        "beams": beams,
        "nodes": nodes,
        "hypotheses": hypotheses,
        "best": best,
        "path": path,
    }


def _grow(model: Model, nodes: list[dict[str, Any]], live: list[int], step: BeamStep) -> list[int]:
    """Add a step's candidates to ``nodes``; return the indices of the surviving beams' nodes."""
    vocabulary: Any = model.target_vocabulary
    c, survivors, index_of = step.candidates, step.survivors[0].tolist(), {}
    for place in np.flatnonzero(c.scores[0] > -np.inf).tolist():
        ends, lives = step.finishing[0, place], place in survivors and not step.done[0]
        token = int(c.tokens[0, place])
        index_of[place] = len(nodes)
        nodes.append(
            {
                "step": step.index,
                "parent": live[int(c.beams[0, place])],
                "token": token,
                "symbol": symbol(vocabulary, token),
                "log_prob": float(c.log_probs[0, place]),
                "score": float(c.scores[0, place]),
                "fate": "ends" if ends else "lives" if lives else "out",
            }
        )
    return [index_of.get(place, -1) for place in survivors]
