"""What models, their parts, steps and results show of themselves: a line, and an HTML table.

The classes call `described` (see `refseq2seq.shown`), so this module does not import them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from .quantities import find_quantity

SHOWN = 20  # the most rows of a table, and tokens of a row


class Table(NamedTuple):
    """A table; its caption is the line that ``repr`` shows."""

    caption: str
    head: Sequence[str]
    rows: Iterable[Sequence[Any]]
    most: int = SHOWN  # rows


def described(x: Any) -> Table:
    """The table of an object, by the name of its class or of a base."""
    known = (TABLES.get(kind.__name__) for kind in type(x).__mro__)
    return next(filter(None, known))(x)


def model(m: Any) -> Table:
    """The sizes, conventions, special tokens and symbols of a model."""
    caption = f"Model of {m.n_parameters:,} parameters, {m.dtype}"
    return Table(caption, ("what", "value"), model_rows(m))


def model_rows(m: Any) -> list[tuple[str, str]]:
    """Labels and texts that describe a model, also for ``refseq2seq info``."""
    c = m.config
    rows = [
        ("parameters", f"{m.n_parameters:,} in {m.dtype}"),
        ("encoder", _stack(c.encoder)),
        ("decoder", _stack(c.decoder)),
        ("logits", "tied to the decoder's embedding" if c.tied_logits else "own matrix"),
        ("tokens", _tokens(c)),
    ]
    if m.settings is not None:
        rows.append(("settings", str(m.settings) or "those of transformers"))
    vocabularies = {"source": m.source_vocabulary, "target": m.target_vocabulary}
    if names := getattr(m.target_vocabulary, "languages", ()):
        source = m.target_vocabulary.language
        rows.append(("languages", f"{len(names)}: {listed(names)}, source {source}"))
    return rows + [
        (name, " ".join(vocabulary.symbols[:60]))
        for name, vocabulary in vocabularies.items()
        if vocabulary is not None
    ]


def _tokens(c: Any) -> str:
    given: dict[str, Any] = {"forced first": c.forced_bos_id, "forced last": c.forced_eos_id}
    given |= {"suppressed": listed(c.suppressed_ids) or None}
    rest = [f", {name} {token}" for name, token in given.items() if token is not None]
    return f"start {c.decoder_start_id}, end {list(c.eos_ids)}, pad {c.pad_id}{''.join(rest)}"


def _stack(c: Any) -> str:
    a = c.self_attention
    reads = f"vocabulary {c.vocab_size}"
    if c.input.TYPE == "frames":
        reads = f"frames of width {c.input.n_features}"
    kinds = [p.TYPE for p in (c.positions, c.relative_positions) if p is not None]
    return (
        f"{c.n_layers} layers, width {c.d_model}, {a.n_heads} heads of {a.d_k}, "
        f"feed-forward {c.feed_forward.d_ff} ({c.feed_forward.activation}), "
        f"{c.norm.kind} {'+'.join(c.norm_positions)}, {reads}, "
        f"positions: {' and '.join(kinds) or 'none'}"
    )


def config(c: Any) -> Table:
    """The fields of a config; those of configs inside it in a line."""
    texts = {name: re.sub("['{}]", "", str(value)) for name, value in c.to_dict().items()}
    rows = [(name, text[:300] + "…" * (len(text) > 300)) for name, text in texts.items()]
    return Table(type(c).__name__, ("field", "value"), rows, len(rows))


def model_config(c: Any) -> Table:
    """The fields of both stacks side by side, then those of the model."""
    encoder, decoder, own = (config(x).rows for x in (c.encoder, c.decoder, c))
    rows = [(*e, d) for e, (_, d) in zip(encoder, decoder, strict=True)]
    rows += [(*row, "") for row in own if row[0] not in ("encoder", "decoder")]
    return Table("ModelConfig", ("field", "encoder", "decoder"), rows, len(rows))


def arrays(x: Any) -> Table:
    """The names and shapes of the arrays of each sublayer, and how many layers have them."""
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, array in x.named().items():
        folded = re.sub(r"\.\d+\b", ".*", name)
        [(part, rest)] = re.findall(r"^((?:.*layers\.\*\.)?\w+(?=\.)|)\.?(.+)$", folded)
        parts[part][f"{rest} {array.shape}"] += 1
    dtypes = sorted({str(array.dtype) for array in x.named().values()})
    caption = ", ".join([f"{type(x).__name__} of {len(x.named())} arrays", *dtypes])
    rows = [(part, max(texts.values()), ", ".join(texts)) for part, texts in parts.items()]
    return Table(caption, ("part", "layers", "arrays"), rows)


def memory(m: Any) -> Table:
    """The arrays of an encoded source."""
    source, dtype = m.hidden.shape[:2], m.hidden.dtype
    caption = f"Memory: source {source}, {len(m.keys)} layers of keys and values, {dtype}"
    return arrays(m)._replace(caption=caption)


def trace(t: Any) -> Table:
    """The name, shape, dtype and meaning of each quantity."""
    meanings = {name: found.meaning for name in t if (found := find_quantity(name))}
    rows = ((name, tuple(x.shape), x.dtype, meanings.get(name, "")) for name, x in t.items())
    return Table(f"Trace of {len(t)} arrays", ("name", "shape", "dtype", "meaning"), rows)


def step(s: Any) -> Table:
    """The token of each row, its log-probability and margin, and the state of the row."""
    head = ("row", "token", "log-probability", "margin", "state")
    states = np.where(s.emitted, np.where(s.finished, "new, the last", "new"), "ended")
    states = np.where(s.forced, "in its prefix", states)
    tokens = s.symbols_of(s.tokens)
    rows = zip(count(), tokens, _decimals(s.log_probs), _decimals(s.margin), states, strict=False)
    return Table(f"Step {s.index}: tokens {listed(tokens)}", head, rows)


def generation(g: Any) -> Table:
    """The tokens of each row, the sum of their log-probabilities, and whether it has ended."""
    tokens = (listed(g.symbols_of(row[:n])) for row, n in zip(g.tokens, g.lengths, strict=True))
    ended = ("yes" if finished else "no: cut off" for finished in g.finished)
    rows = zip(count(), tokens, _decimals(g.log_probs.sum(axis=1)), ended, strict=False)
    (least, most), n = (g.lengths.min(), g.lengths.max()), g.finished.sum()
    lengths = f"{least} to {most} tokens" if least < most else counted(least, "token")
    caption = f"Generation of {counted(len(g.lengths), 'row')}, {lengths}, {n} finished"
    return Table(caption, ("row", "tokens", "log-probability", "ended"), rows)


def scores(s: Any) -> Table:
    """The sum of the log-probabilities of each target, and how many tokens it scores."""
    rows = zip(count(), s.lengths, _decimals(s.total), strict=False)
    caption = f"Scores of {counted(len(s.total), 'target')}"
    return Table(caption, ("row", "tokens", "log-probability"), rows)


def targets(h: Any) -> Table:
    """The tokens, the score and the sum of log-probabilities of each target, best first."""
    (batch, k), columns = h.lengths.shape, (h.scores, h.log_probs.sum(axis=-1))
    named = zip(("score", "log-probability"), columns, strict=True)
    numbers = {name: x for name, x in named if x is not None}
    rows = (
        (*i, listed(h.symbols_of(h.tokens[i][:n])), *_decimals(x[i] for x in numbers.values()))
        for i, n in np.ndenumerate(h.lengths)
    )
    caption = f"{type(h).__name__} of {counted(batch, 'row')}, {counted(k, 'target')} each"
    return Table(caption, ("row", "target", "tokens", *numbers), rows)


def beam_step(s: Any) -> Table:
    """The candidates of each row, and what becomes of them."""
    c, lives, (batch, n_beams) = s.candidates, np.zeros_like(s.finishing), s.survivors.shape
    np.put_along_axis(lives, s.survivors, s.live.scores > -np.inf, axis=1)
    conditions = [s.finishing, s.done[:, None], lives]
    fates = np.select(conditions, ["a hypothesis", "the search is done", "lives on"], "dropped")
    index, tokens = np.indices(fates.shape)[0], s.symbols_of(c.tokens.flat)
    numbers = map(_decimals, (c.log_probs.flat, c.scores.flat))
    rows = zip(index.flat, c.beams.flat, tokens, *numbers, fates.flat, strict=True)
    each, done = counted(n_beams, "beam"), s.done.sum()
    caption = f"BeamStep {s.index}: {counted(batch, 'row')}, {each} each, {done} done"
    return Table(caption, ("row", "beam", "token", "log-probability", "score", "fate"), rows)


TABLES = {
    "Model": model, "ModelConfig": model_config, "Config": config, "Arrays": arrays,
    "Memory": memory, "Trace": trace, "Step": step, "Generation": generation,
    "BeamSearch": targets, "Hypotheses": targets, "ConfiguredGeneration": targets,
    "BeamStep": beam_step, "Scores": scores,
}  # fmt: skip


def html(table: Table) -> str:
    """The first rows of a table, and the number of the others."""
    rows, head = [*table.rows], _row("th", table.head)
    body = "".join(_row("td", row) for row in rows[: table.most])
    if left := len(rows[table.most :]):
        body += f'<tr><td colspan="{len(table.head)}">and {left:,} more</td></tr>'
    return f"<table><caption>{escape(table.caption)}</caption>{head}{body}</table>"


def counted(n: int, noun: str) -> str:
    """The number and the noun.

    Examples
    --------
    >>> counted(1, "layer"), counted(3, "layer")
    ('1 layer', '3 layers')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(values: Iterable[Any]) -> str:
    """The first values, separated by spaces, such as the tokens of a target."""
    texts = [str(value) for value in values]
    return " ".join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")


def _decimals(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _row(tag: str, cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
