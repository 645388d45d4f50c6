"""The pictures of the course: small SVG panels that follow the page's light or dark theme.

    from figures import heat_map, show
    show(heat_map(weights, rows="abc", columns="xyz"), alt="what is to be seen")

A panel is as wide as a phone; `show` puts panels side by side where there is room. Text has the
colour of the page's text. Data have one of the colours below, each a pair for light and dark.
"""

import html
import io
import re
import textwrap
from functools import cache
from itertools import takewhile

import matplotlib as mpl
import numpy as np
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

import refseq2seq as rs

# What matplotlib draws with: names in disguise, which `_panel` turns into CSS colours.
INK, FILL, BLUE, ORANGE, GREEN, GREY = (f"#0a0b{i:02x}" for i in range(1, 7))
CSS = {
    INK: "currentColor",
    FILL: "var(--fill)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    GREY: "var(--grey)",
}
SERIES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (GREY, "-."))
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "refseq2seq",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
SHEET = """<style>
.drawn {margin: 0; --fill: #8ab8f2; --blue: #0b62b5; --orange: #b85c00; --green: #16754a;
  --grey: #6b7280}
html[data-theme=dark] .drawn, [data-jp-theme-light=false] .drawn {--fill: #24508f;
  --blue: #6db3f2; --orange: #f0a04b; --green: #5fc98f; --grey: #9aa4b2}
.drawn > div {display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: flex-start}
.drawn svg {max-width: 100%; height: auto; flex: none}
.drawn path[clip-path]:not([style*="fill: none"]) {shape-rendering: crispEdges}
html[data-theme=dark] .bd-content div.cell_output .text_html:has(figure.drawn) {
  background: none; color: inherit; padding: 0}
</style>"""


@cache
def _program():
    return rs.write_out(rs.load("g2p")).source


def _body(function):
    return _program().split(f"\ndef {function}(")[1].split("\n\n\n")[0]


def _code(*parts):
    text = "\n\n\n".join(textwrap.dedent(part).rstrip() for part in parts)
    return Markdown(f"```python\n{text}\n```")


def written(*names):
    """Functions of the shipped model's own program (the last chapter has the whole program)."""
    return _code(*[f"def {name}({_body(name)}" for name in names])


def written_lines(function, first, last):
    """Lines of a function of that program: from that which begins with ``first`` to ``last``."""
    lines = _body(function).splitlines()
    place = [next(i for i, x in enumerate(lines) if x.strip().startswith(y)) for y in (first, last)]
    return _code("\n".join(lines[place[0] : place[1] + 1]))


def written_sublayer(function, sublayer):
    """The lines of a sublayer in ``encode`` or ``step`` of that program."""
    body = _body(function)
    lines = body[body.index(f"        p, norms = layer.{sublayer},") :].splitlines()
    return _code("\n".join(takewhile(lambda line: line.startswith(" " * 8), lines)))


def show(*panels, alt):
    """Panels side by side, or below each other on a narrow page; ``alt`` says what they show."""
    return HTML(
        f'{SHEET}<figure class="drawn"><div role="img" aria-label="{html.escape(alt)}">'
        f"{''.join(panels)}</div></figure>"
    )


def _panel(draw, width=3.3, height=2.5):
    """The SVG that ``draw(axes)`` makes, of a size in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # panels of a page would share them
    svg = re.sub(r"font: (\S+) 'DejaVu Sans'[^;\"]*", r"font: \1 sans-serif", svg)
    for colour, css in CSS.items():
        svg = svg.replace(colour, css)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def heat_map(weights, rows, columns, title="", y_label="", x_label=""):
    """Weights between 0 and 1, written in percent: the fuller a cell, the greater its weight."""
    weights, (n_rows, n_columns) = np.asarray(weights), np.shape(weights)

    def draw(axes):
        _cells(axes, weights, lambda weight: FILL)
        for (i, j), weight in np.ndenumerate(weights):
            if weight >= 0.005:
                axes.text(j, i, f"{100 * weight:.0f}", ha="center", va="center")
        axes.set_xticks(range(n_columns), columns)
        axes.set_yticks(range(n_rows), rows)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)

    side = min(0.36, 2.6 / n_columns)
    return _panel(draw, width=side * n_columns + 0.7, height=side * n_rows + 0.75)


def signed_map(values, title="", y_label="", x_label=""):
    """Values between -1 and 1: blue where positive, orange where negative, bare at zero."""
    values = np.asarray(values)

    def draw(axes):
        _cells(axes, values, lambda value: BLUE if value > 0 else ORANGE)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)

    return _panel(draw, height=3.2)


def _cells(axes, values, colour):
    for (i, j), value in np.ndenumerate(values):
        if abs(value) > 0.004:
            axes.add_patch(
                Rectangle(
                    (j - 0.5, i - 0.5),
                    1,
                    1,
                    fc=colour(value),
                    alpha=min(1.0, abs(float(value))),
                )
            )
    n_rows, n_columns = values.shape
    axes.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def curves(x, lines, title="", x_label="", y_label="", log=False):
    """Lines by name over ``x``, told apart by colour and by stroke."""

    def draw(axes):
        for (name, y), (colour, stroke) in zip(lines.items(), SERIES, strict=False):
            axes.plot(x, y, color=colour, ls=stroke, lw=1.8, label=name)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, yscale="log" if log else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(lines) > 1:
            axes.legend()

    return _panel(draw)


def bars(names, before, after, title=""):
    """Probabilities, at most 0.6, before (outlines) and after (filled) a filter."""
    places = np.arange(len(names))

    def draw(axes):
        axes.barh(places, after, height=0.7, color=FILL)
        axes.barh(places, before, height=0.7, fc="none", ec=GREY, ls="--")
        for place, probability in enumerate(after):
            percent = f"{100 * probability:.0f}" if probability >= 0.005 else "< 1"
            text = percent if probability > 0 else "out"
            at = max(probability, before[place]) + 0.015
            axes.text(at, place, text, va="center", color=INK if probability > 0 else ORANGE)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set(title=title, xlim=(0, 0.7), xticks=[0, 0.25, 0.5], xticklabels=["0", "25", "50 %"])

    return _panel(draw, width=2.25, height=0.24 * len(names) + 0.75)


def unit_interval(probabilities, names, uniforms):
    """The interval from 0 to 1 cut into pieces as long as probabilities, and numbers in it."""

    def draw(axes):
        left = 0.0
        for i, (p, name) in enumerate(zip(probabilities, names, strict=True)):
            axes.add_patch(Rectangle((left, 0), p, 1, fc=FILL, ec=INK, alpha=0.9 - 0.3 * (i % 2)))
            if p > 0.045:
                axes.text(left + p / 2, 0.5, name, ha="center", va="center")
            left += p
        for u in uniforms:
            axes.annotate(
                f"{u:.2f}",
                (u, 1),
                (u, 1.75),
                ha="center",
                arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 1.5},
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 2.2), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
        axes.spines["left"].set_visible(False)

    return _panel(draw, width=3.5, height=1.2)


def beam_tree(steps, symbols, start):
    """The candidates of each `BeamStep` below each other, the best on the left.

    Boxes live on, green ones have ended, grey text was dropped. ``symbols`` are the names of
    token ids, ``start`` is what stands at the root.
    """
    box = {"boxstyle": "round,pad=0.25", "lw": 1.2}
    fates = {
        "lives": {"bbox": box | {"fc": FILL, "ec": BLUE}},
        "ends": {"bbox": box | {"fc": "none", "ec": GREEN, "ls": "--"}, "color": GREEN},
        "dropped": {"color": GREY},
    }

    def draw(axes):
        parents = [(1.5, 0)]  # where the live beams stand
        axes.text(1.5, 0, start, ha="center", va="center", **fates["lives"])
        for depth, step in enumerate(steps, 1):
            tokens, scores = step.candidates.tokens[0], step.candidates.scores[0]
            alive = () if step.done[0] else step.survivors[0]
            for place, token in enumerate(tokens):
                fate = "lives" if place in alive else "dropped"
                fate = "ends" if step.finishing[0, place] else fate
                x, y = parents[step.candidates.beams[0, place]]
                colour = {"lives": BLUE, "ends": GREEN, "dropped": GREY}[fate]
                axes.plot([x, place], [y + 0.27, depth - 0.3], color=colour, lw=1, zorder=0)
                label = f"{symbols[token]}\n{scores[place]:.2f}"
                axes.text(place, depth, label, ha="center", va="center", fontsize=8, **fates[fate])
            parents = [(place, depth) for place in step.survivors[0]]
        axes.set(xlim=(-0.5, len(tokens) - 0.5), ylim=(len(steps) + 0.4, -0.35))
        axes.axis("off")

    return _panel(draw, width=3.5, height=0.78 * len(steps) + 0.8)
