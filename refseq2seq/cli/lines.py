"""From lines of text to what is generated for them: what `generate` does, batch by batch."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..beam import beam_search
from ..decoding import generate
from ..model import Model
from ..text import UnknownSymbolError


class Line(NamedTuple):
    """One line of input: its number, counted from 0, and its text."""

    number: int
    text: str


def encoded(model: Model, line: Line) -> list[int]:
    """The token ids of a line.

    Raises
    ------
    UnknownSymbolError
        Naming the line, counted from 1.
    """
    try:
        return model.source_vocabulary.encode(line.text)  # type: ignore[union-attr]
    except UnknownSymbolError as error:
        raise UnknownSymbolError(f"line {line.number + 1}: {error}") from error


def outputs(
    model: Model, source: Sequence[list[int]], numbers: Sequence[int], method: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    """The samples, or the hypotheses with their scores, of each row.

    Parameters
    ----------
    model : Model
    source : sequence of lists of token ids
    numbers : sequence of int
        The numbers of their lines: a sample depends on that and the seed alone.
    method : dict
        Of `refseq2seq.cli.options.method_of`.
    """
    if "beams" in method:
        found = beam_search(model, source, **method)
        places = [(row, k) for row in range(len(source)) for k in range(found.scores.shape[1])]
        flat = [
            _output(model, found.tokens[p], found.log_probs[p], found.lengths[p])
            | {"score": float(found.scores[p])}
            for p in places
            if found.scores[p] > -np.inf
        ]
        counts = (found.scores > -np.inf).sum(axis=1).tolist()
    else:
        out = generate(model, source, row_ids=numbers, **method)
        flat = [
            _output(model, tokens, log_probs, n) | {"finished": bool(finished)}
            for tokens, log_probs, n, finished in zip(
                out.tokens, out.log_probs, out.lengths, out.finished, strict=True
            )
        ]
        counts = [method["num_return_sequences"]] * len(source)
    remaining = iter(flat)
    return [list(islice(remaining, n)) for n in counts]


def _output(model: Model, tokens: np.ndarray, log_probs: np.ndarray, n: int) -> dict[str, Any]:
    return {
        "text": model.target_vocabulary.decode(tokens[:n]),  # type: ignore[union-attr]
        "tokens": tokens[:n].tolist(),
        "log_probs": log_probs[:n].tolist(),
    }
