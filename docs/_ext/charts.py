"""The first charts of three pages, drawn from the figures that the page itself has.

```{chart} performance
```

Each function below returns the panels of a chart, what their marks mean, and a text alternative.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import refseq2seq as rs

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / "course"))

from figures import BLUE, CSS, FILL, GREEN, GREY, INK, ORANGE, _panel, show  # noqa: E402

PEERS = {
    "x-transformers": ("ours, x-transformers", BLUE, "o", "●"),
    "Hugging Face": ("ours, BART", ORANGE, "^", "▲"),
    "CTranslate2": ("ours, BART", GREEN, "D", "◆"),
}
"""Each engine: which of our models has its weights, its colour, and its mark in plot and text."""

Chart = tuple[list[str], list[tuple[str, str, str]], str]


def performance() -> Chart:
    """The time of each peer divided by ours, by size and number of rows."""
    figures = json.loads((DOCS / "performance.json").read_text())["figures"]
    ratios: dict[str, dict[int, dict[str, float]]] = {}
    for key, row in figures.items():
        size, batch, n_new = key.split()
        if n_new == "64":
            ms = {name: of["ms_per_token"] for name, of in row.items()}
            of_batch = ratios.setdefault(size, {})
            of_batch[int(batch)] = {peer: ms[peer] / ms[ours] for peer, (ours, *_) in PEERS.items()}
    panels = [_panel(partial(_dots, size, ratios[size]), 2.3, 2.2) for size in sorted(ratios)]
    marks = [(mark, colour, peer) for peer, (_, colour, _, mark) in PEERS.items()]
    marks.append(("│", GREY, "right of 1, ours is faster"))
    every = {peer: [r[peer] for of in ratios.values() for r in of.values()] for peer in PEERS}
    ranges = [f"{peer} {min(x):.2f} to {max(x):.2f}" for peer, x in every.items()]
    alt = f"Time per token of each peer divided by ours: {', '.join(ranges)}; the table has each."
    return panels, marks, alt


def _dots(size: str, of_batch: dict[int, dict[str, float]], axes: Any) -> None:
    axes.axvspan(1, 6, color=FILL, alpha=0.25, lw=0)
    axes.axvline(1, color=GREY, lw=1)
    batches = sorted(of_batch)
    for i, (peer, (_, colour, marker, _)) in enumerate(PEERS.items()):
        x = [of_batch[batch][peer] for batch in batches]
        axes.plot(x, np.arange(len(x)) + 0.2 * (i - 1), marker, color=colour, ms=5)
    axes.set_yticks(range(len(batches)), [f"{n} row{'s' * (n > 1)}" for n in batches])
    axes.set(title=size, xscale="log", xlim=(0.2, 6), ylim=(len(batches) - 0.5, -0.5))
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_xlabel("peer's time ÷ ours")


def cupy() -> Chart:
    """Milliseconds per token on the GPU of the page's table, ours and the peer's."""
    panels, ratios, size = [], [], ""
    rows = table_of("cupy.md", "| engine | size | batch |")
    pairs: dict[str, list[tuple[str, float, float]]] = {}
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        size = ours[1].partition(",")[0] or size
        times = float(ours[3]), float(theirs[3])
        ratios.append(times[0] / times[1])
        pairs.setdefault(theirs[0], []).append((f"{size}, {ours[2]}", *times))
    panels = [_panel(partial(_bars, peer, of_peer), 3.3, 2.6) for peer, of_peer in pairs.items()]
    marks = [("■", BLUE, "refseq2seq with CuPy"), ("□", INK, "the peer in eager PyTorch")]
    alt = (
        "Milliseconds per token for two sizes and 1 and 16 rows: refseq2seq takes "
        f"{min(ratios):.1f} to {max(ratios):.1f} times as long as the peer; the table has each."
    )
    return panels, marks, alt


def table_of(page: str, head: str) -> list[list[str]]:
    """The cells of the table on a page that begins with ``head``."""
    lines = (DOCS / page).read_text(encoding="utf-8").partition(f"\n{head}")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.split("\n")[2:]]


def _bars(peer: str, rows: list[tuple[str, float, float]], axes: Any) -> None:
    names, ours, theirs = zip(*rows, strict=True)
    at = np.arange(len(names))
    axes.barh(at - 0.2, ours, height=0.36, color=BLUE)
    axes.barh(at + 0.2, theirs, height=0.36, fc="none", ec=INK, lw=1)
    for x, y in [*zip(ours, at - 0.2, strict=True), *zip(theirs, at + 0.2, strict=True)]:
        axes.text(x + 0.15, y, f"{x:.2f}", va="center", fontsize=8)
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(title=f"against {peer}", xlabel="ms per token", xlim=(0, 12), ylabel="size, rows")


def tolerances() -> Chart:
    """A correct model in float16 and one with a mistake, by the derived limit and a fixed one."""
    config = rs.presets.x_transformers(
        d_model=24, source_vocab_size=11, target_vocab_size=13, n_source_positions=9,
        n_target_positions=9, encoder_layers=2, decoder_layers=2, n_heads=3, d_k=8,
        decoder_start_id=1, eos_ids=(2,), pad_id=0,
    )  # fmt: skip
    model = rs.testing.rounded(rs.Model.random(config, 1, "float64"), "float16")
    source, target = [[3, 4, 5, 6]], [[1, 7, 8, 5, 9]]
    within = rs.testing.spread(model, source, target, dtype="float16")
    attention = replace(config.decoder.self_attention, scale=24**-0.5)  # of d_model, not of d_k
    wrong = replace(config, decoder=replace(config.decoder, self_attention=attention))
    names = [name for name in within if (within[name].own_sigma > 0).any()]
    expected = [within[name] for name in names]
    derived = [6 * x.element_sigma for x in expected]
    fixed = [1e-5 + 1e-3 * np.abs(x.value) for x in expected]
    errors = {}
    for kind, theirs in (("correct", model), ("mistake", replace(model, config=wrong))):
        trace = rs.Trace()
        rs.forward(theirs.astype("float16"), source, target, tap=trace)
        errors[kind] = [np.abs(trace[n] - x.value) for n, x in zip(names, expected, strict=True)]
    blue, orange = _nearest(errors["correct"], derived), _nearest(errors["correct"], fixed)
    wrong_blue = _nearest(errors["mistake"], derived)
    starts = {name.split(".")[0]: i for i, name in reversed([*enumerate(names)])}
    panels = [
        _panel(partial(_errors, "correct", [(blue, BLUE, "-"), (orange, ORANGE, "--")], starts)),
        _panel(partial(_errors, "with a mistake", [(wrong_blue, BLUE, "-")], starts)),
    ]
    marks = [("─", BLUE, "derived tolerance"), ("╌", ORANGE, "defaults of torch.testing")]
    first = names[int(np.argmax(np.array(wrong_blue) > 1))]
    alt = (
        f"The largest error of each of {len(names)} quantities of a model in float16, divided by "
        f"its tolerance. Correct: at most {max(blue):.2f} of the derived tolerance, up to "
        f"{max(orange):.0f} times the fixed one. With a wrong scale in the decoder's "
        f"self-attention: more than the derived tolerance from {first} on."
    )
    return panels, marks, alt


def _nearest(errors: list[np.ndarray], limits: list[np.ndarray]) -> list[float]:
    """The largest error of each quantity, in units of its limit."""
    pairs = zip(errors, limits, strict=True)
    return [float((error / np.where(limit > 0, limit, np.inf)).max()) for error, limit in pairs]


def _errors(title: str, lines: Any, starts: dict[str, int], axes: Any) -> None:
    axes.axhspan(1, 1e4, color=FILL, alpha=0.25, lw=0)
    for errors, colour, stroke in lines:
        axes.plot(np.maximum(errors, 0.02), color=colour, ls=stroke, lw=1.6)
    axes.set(title=title, yscale="log", ylim=(0.02, 500), ylabel="largest error ÷ tolerance")
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.minorticks_off()
    axes.set_xticks([*starts.values()], [*starts], ha="left")
    axes.text(0.02, 0.95, "rejected", transform=axes.transAxes, va="top", fontsize=8)


CHARTS: dict[str, Callable[[], Chart]] = {
    chart.__name__: chart for chart in (performance, cupy, tolerances)
}


class DrawnChart(SphinxDirective):
    """A chart by its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        panels, marks, alt = CHARTS[self.arguments[0]]()
        return [nodes.raw("", drawn(panels, marks, alt), format="html")]


def drawn(panels: list[str], marks: list[tuple[str, str, str]], alt: str) -> str:
    """The panels side by side, or below each other, under a line that explains their marks."""
    legend = " &ensp; ".join(
        f'<span style="white-space: nowrap"><span style="color: {CSS[colour]}">{mark}</span> '
        f"{escape(text)}</span>"
        for mark, colour, text in marks
    )
    style = "font-size: 0.875rem; font-weight: 400; color: inherit; text-align: left"
    caption = f'<figcaption style="{style}">{legend}</figcaption>'
    return str(show(*panels, alt=alt).data).replace('<div role="img"', f'{caption}<div role="img"')


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_directive("chart", DrawnChart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
