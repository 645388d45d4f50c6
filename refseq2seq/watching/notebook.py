"""Small HTML tables of models, traces, steps and generations, for notebooks.

The classes of these objects call the functions, so this module does not import the classes.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import count
from typing import Any

import numpy as np

from ..config import FrameInput, ModelConfig, StackConfig
from ..params import count_parameters
from ..text import MultilingualTokenizer
from .quantities import find_quantity

SHOWN = 20  # the most rows of a table, and tokens of a row


def model(m: Any) -> str:
    """The sizes, conventions, special tokens and symbols of a model."""
    return table("Model", ("what", "value"), model_rows(m))


def model_rows(m: Any) -> list[tuple[str, str]]:
    """Labels and texts that describe a model, also for ``refseq2seq info``."""
    c = m.config
    rows = [
        ("parameters", f"{count_parameters(c):,} in {m.dtype}"),
        ("encoder", _stack(c.encoder)),
        ("decoder", _stack(c.decoder)),
        ("logits", "tied to the decoder's embedding" if c.tied_logits else "own matrix"),
        ("tokens", _tokens(c)),
    ]
    if m.settings is not None:
        rows.append(("settings", str(m.settings) or "those of transformers"))
    vocabularies = {"source": m.source_vocabulary, "target": m.target_vocabulary}
    if isinstance(vocabulary := m.target_vocabulary, MultilingualTokenizer):
        names = vocabulary.languages
        rows.append(("languages", f"{len(names)}: {listed(names)}, source {vocabulary.language}"))
    return rows + [
        (name, " ".join(vocabulary.symbols[:60]))
        for name, vocabulary in vocabularies.items()
        if vocabulary is not None
    ]


def _tokens(c: ModelConfig) -> str:
    given: dict[str, Any] = {"forced first": c.forced_bos_id, "forced last": c.forced_eos_id}
    given |= {"suppressed": listed(c.suppressed_ids) or None}
    rest = [f", {name} {token}" for name, token in given.items() if token is not None]
    return f"start {c.decoder_start_id}, end {list(c.eos_ids)}, pad {c.pad_id}{''.join(rest)}"


def _stack(c: StackConfig) -> str:
    a = c.self_attention
    reads = f"vocabulary {c.vocab_size}"
    if isinstance(c.input, FrameInput):
        reads = f"frames of width {c.input.n_features}"
    kinds = [p.TYPE for p in (c.positions, c.relative_positions) if p is not None]
    return (
        f"{c.n_layers} layers, width {c.d_model}, {a.n_heads} heads of {a.d_k}, "
        f"feed-forward {c.feed_forward.d_ff} ({c.feed_forward.activation}), "
        f"{c.norm.kind} {'+'.join(c.norm_positions)}, {reads}, "
        f"positions: {' and '.join(kinds) or 'none'}"
    )


def trace(arrays: Any) -> str:
    """The name, shape, dtype and meaning of each quantity."""
    meanings = {name: found.meaning for name in arrays if (found := find_quantity(name))}
    rows = [(name, tuple(x.shape), x.dtype, meanings.get(name, "")) for name, x in arrays.items()]
    return table("Trace", ("name", "shape", "dtype", "meaning"), rows)


def step(s: Any) -> str:
    """The token of each row, its log-probability and margin, and the state of the row."""
    head = ("row", "token", "log-probability", "margin", "state")
    states = np.where(s.emitted, np.where(s.finished, "new, the last", "new"), "ended")
    states = np.where(s.forced, "in its prefix", states)
    columns = (s.tokens, _decimals(s.log_probs), _decimals(s.margin), states)
    return table(f"step {s.index}", head, [*zip(count(), *columns, strict=False)])


def generation(g: Any) -> str:
    """The tokens of each row, the sum of their log-probabilities, and whether it has ended."""
    tokens = [listed(row[:n]) for row, n in zip(g.tokens, g.lengths, strict=True)]
    ended = ["yes" if finished else "no: cut off" for finished in g.finished]
    columns = (tokens, _decimals(g.log_probs.sum(axis=1)), ended)
    head = ("row", "tokens", "log-probability", "ended")
    return table(repr(g).strip("<>"), head, [*zip(count(), *columns, strict=False)])


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a caption. It shows the first rows and counts the others.

    Examples
    --------
    >>> table("two", ["a"], [[1], ["<"]])[-49:]
    '<tr><td>1</td></tr><tr><td>&lt;</td></tr></table>'
    """
    rows = list(rows)
    shown = [_row("td", row) for row in rows[:SHOWN]]
    left = len(rows) - len(shown)
    rest = f'<tr><td colspan="{len(head)}">and {left:,} more</td></tr>' if left else ""
    body = "".join(shown) + rest
    return f"<table><caption>{escape(caption)}</caption>{_row('th', head)}{body}</table>"


def listed(values: Iterable[Any]) -> str:
    """The first values, separated by spaces, such as the tokens of a target."""
    texts = [str(value) for value in values]
    return " ".join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")


def _decimals(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _row(tag: str, cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
