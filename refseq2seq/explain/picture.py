"""One picture of a model: its parts, the way of the data, and a place for every quantity.

The encoder is on the left, the decoder on the right, and data go down. A column is a stack of
elements; only their heights are computed. Colours are those of the page around the picture.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from html import escape

from ..model import Model
from .facts import Fact, facts
from .parts import Part, parts

Link = Callable[[str], str | None]

WIDTH, BOX, LANE, PAD, MARGIN = 370, 150, 10, 6, 1
"""Widths of the picture, a box, the residual's lane, the frame around layers, and the edge."""
CHIP, GAP, LINE, TITLE = 20, 10, 16, 21
"""Heights of a quantity, the space above it, a line of details, and a title."""

STYLE = """
.model-picture { --attention: #2f7fd0; --feed-forward: #c9741a; max-width: 27rem; width: 100%;
  height: auto; color: inherit; font: 12.5px system-ui, "Segoe UI", Roboto, Helvetica, sans-serif; }
.model-picture text { fill: currentColor; text-anchor: middle; }
.model-picture .title { font-size: 13.5px; font-weight: 600; }
.model-picture .soft { fill: color-mix(in srgb, currentColor 78%, transparent); }
.model-picture rect { rx: 5px; stroke: color-mix(in srgb, currentColor 45%, transparent);
  fill: color-mix(in srgb, currentColor 6%, transparent); }
.model-picture .layers { rx: 9px; fill: none; stroke-dasharray: 2 3; }
.model-picture .attention > a > rect, .model-picture .attention > rect { stroke: var(--attention);
  fill: color-mix(in srgb, var(--attention) 14%, transparent); }
.model-picture .feed-forward > a > rect, .model-picture .feed-forward > rect { stroke: var(--feed-forward);
  fill: color-mix(in srgb, var(--feed-forward) 14%, transparent); }
.model-picture .marked > a > rect, .model-picture .marked > rect { stroke-width: 2.5px; }
.model-picture .norm rect { rx: 9px; }
.model-picture .quantity rect { fill: color-mix(in srgb, currentColor 4%, transparent); }
.model-picture path, .model-picture circle { fill: none; stroke: color-mix(in srgb, currentColor 65%, transparent);
  stroke-width: 1.2px; stroke-linejoin: round; }
.model-picture .memory { stroke: var(--attention); stroke-width: 1.6px; }
.model-picture .again { stroke-dasharray: 4 3; }
.model-picture a:hover rect, .model-picture a:focus rect { stroke-width: 2.5px; }
"""


def picture(
    model: Model, *, unfold: Collection[str] | None = None, link: Link | None = None
) -> str:
    """Draw a model as an inline ``<svg>`` element.

    A box is an element with ``data-part``, such as ``decoder.cross_attention``. A quantity is one
    with the class ``quantity`` and its name as ``data-name``, with ``*`` for the layer; its
    ``<title>`` is its meaning.

    Parameters
    ----------
    model : Model
    unfold : collection of str, optional
        The parts whose quantities are shown and whose boxes are marked, such as ``encoder`` or
        ``decoder.cross_attention``; the others are closed. By default all are shown, none marked.
    link : callable, optional
        From the name of a part or a quantity to the address to which it leads, or None.

    Returns
    -------
    str

    Examples
    --------
    >>> import refseq2seq as rs
    >>> svg = picture(rs.load("g2p"), unfold=["decoder.cross_attention"])
    >>> svg.count('class="quantity"'), 'data-name="decoder.layers.*.cross_attention.q"' in svg
    (10, True)
    """
    found = parts(model.config, facts(model))
    left = Column(MARGIN + PAD + LANE, -1, unfold, link or (lambda name: None))
    right = Column(WIDTH - MARGIN - 2 * PAD - LANE - BOX, 1, unfold, left.link)
    for column, stack, label in ((left, "encoder", "source"), (right, "decoder", "target so far")):
        column.text(label)
        column.stack(
            [p for p in found if p.name.startswith(stack)], getattr(model.config, stack).n_layers
        )
    for part in found[-2:]:
        right.down(GAP)
        right.box(part)
    height = max(left.y, right.y) + MARGIN + 2
    body = [*left.drawn, *right.drawn, _memory(left, right), _again(right)]
    said = escape(describe(found, model))
    role = "img" if link is None else "group"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="model-picture" viewBox="0 0 {WIDTH} {height}" '
        f'role="{role}" aria-label="The model"><desc>{said}</desc><style>{STYLE}</style>'
        f"{''.join(body)}</svg>"
    )


def describe(found: list[Part], model: Model) -> str:
    """The picture in words."""
    return " ".join(f"{part.name}: {', '.join([part.title, *part.details])}." for part in found)


@dataclass
class Column:
    """A stack of elements, drawn from top to bottom; y is where the next one begins."""

    x: float  # of the left edge of the boxes
    side: int  # of the residual's lane: -1 left, 1 right
    unfold: Collection[str] | None
    link: Link
    y: float = MARGIN
    drawn: list[str] = field(default_factory=list)
    places: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)

    @property
    def middle(self) -> float:
        return self.x + BOX / 2

    @property
    def lane(self) -> float:
        """The x of the way around a sublayer."""
        return self.middle + self.side * (BOX / 2 + LANE)

    def text(self, words: str, kind: str = "soft") -> None:
        self.y += LINE
        self.drawn.append(_text(self.middle, self.y - 4, words, kind))

    def down(self, height: float) -> None:
        """An arrow to what comes next."""
        self.drawn.append(_arrow(f"M{self.middle} {self.y}", self.middle, self.y + height))
        self.y += height

    def stack(self, found: list[Part], n_layers: int) -> None:
        """The parts of an encoder or a decoder, with a frame around those of a layer."""
        top = bottom = None
        for part in found:
            if part.after is None:
                if top is not None and bottom is None:
                    bottom = self.y + 4
                    self.y = bottom
                    self.frame(top, bottom, n_layers)
                self.down(GAP)
                self.box(part)
            else:
                if top is None:
                    top = self.y + 5
                    self.drawn.append(_line(f"M{self.middle} {self.y}V{self.y + 5}"))
                    self.y = top
                self.sublayer(part)

    def frame(self, top: float, bottom: float, n_layers: int) -> None:
        x = self.x - PAD - (LANE if self.side < 0 else 0)
        rect = _rect(x, top, BOX + LANE + 2 * PAD, bottom - top, "layers")
        self.drawn.insert(0, rect)
        at = self.middle - self.side * BOX / 4
        self.drawn.append(_text(at, top + 14, f"× {n_layers}", "title"))

    def sublayer(self, part: Part) -> None:
        """A sublayer with its norms, and the residual stream around it."""
        before, branch, after = part.norms
        top = self.y + 8
        self.drawn.append(_line(f"M{self.middle} {self.y}V{top}"))
        self.y = top
        self.norm(before)
        self.down(GAP)
        self.box(part)
        self.norm(branch)
        self.down(GAP)
        end = self.y + 7
        turn = self.lane - self.side * 5
        self.drawn.append(
            _line(
                f"M{self.middle} {top}H{turn}Q{self.lane} {top} {self.lane} {top + 5}"
                f"V{end - 5}Q{self.lane} {end} {turn} {end}H{self.middle + self.side * 7}"
                f"m{self.side * 4} -3l{-self.side * 4} 3l{self.side * 4} 3"
            )
        )
        self.drawn.append(
            f'<circle cx="{self.middle}" cy="{end}" r="7"/>'
            + _line(f"M{self.middle - 4} {end}h8M{self.middle} {end - 4}v8")
        )
        self.y = end + 7
        self.norm(after)
        if self.shows(part):
            self.down(GAP)
            self.quantity(part.after, self.x, self.y, BOX)
            self.y += CHIP

    def norm(self, kind: str) -> None:
        if kind:
            self.down(GAP)
            rect = _rect(self.middle - 42, self.y, 84, 18)
            words = _text(self.middle, self.y + 13, kind)
            self.drawn.append(f'<g class="norm">{rect}{words}</g>')
            self.y += 18

    def shows(self, part: Part) -> bool:
        """Whether the quantities of a part are shown."""
        return self.unfold is None or any(
            part.name == name or part.name.startswith(f"{name}.") for name in self.unfold
        )

    def box(self, part: Part) -> None:
        """A part, with its quantities in rows if it is unfolded."""
        top, y = self.y, self.y + TITLE - 4
        words = [_text(self.middle, y, part.title, "title")]
        for line in _wrapped(part.details):
            y += LINE
            words.append(_text(self.middle, y, line, "soft"))
        self.y = y + 7
        open_ = self.shows(part)
        chips = self.chips(part) if open_ else ""
        rect = _rect(self.x, top, BOX, self.y - top)
        kind = (
            "attention"
            if "attention" in part.name
            else part.name.rpartition(".")[2].replace("_", "-")
        )
        marked = " marked" if open_ and self.unfold is not None else ""
        self.places[part.name] = (self.x, top, BOX, self.y - top)
        self.drawn.append(
            f'<g class="part {kind}{marked}" data-part="{part.name}">'
            f"{self.linked(part.name, rect + ''.join(words))}</g>{chips}"
        )

    def chips(self, part: Part) -> str:
        """The quantities of a part in rows, and the lines between them."""
        inside = {fact.name: fact for fact in part.quantities}
        columns, rows = _arranged(inside)
        n = max(last for _, last in columns.values())
        width = (BOX - 12 + 4) / n
        below = self.y - 3
        lines = []
        for name, fact in inside.items():
            first, last = columns[name]
            x, y = self.x + 6 + first * width, below + rows[name] * (CHIP + GAP)
            self.quantity(fact, x, y, (last - first) * width - 4)
            for other in fact.inputs:
                if other in inside:
                    a, b = columns[other]
                    middle = self.x + 6 + (max(a, first) + min(b, last)) / 2 * width - 2
                    bottom = below + rows[other] * (CHIP + GAP) + CHIP
                    lines.append(_arrow(f"M{middle} {bottom}", middle, y))
        self.y = below + (max(rows.values()) + 1) * (CHIP + GAP) - 4
        return "".join(lines)

    def quantity(self, fact: Fact, x: float, y: float, width: float) -> None:
        """A place of a quantity."""
        last = fact.name.rpartition(".")[2]
        self.places[fact.name] = (x, y, width, CHIP)
        words = _text(x + width / 2, y + 14, last)
        body = f"<title>{escape(fact.meaning)}</title>{_rect(x, y, width, CHIP)}{words}"
        self.drawn.append(
            f'<g class="quantity" data-name="{fact.name}">{self.linked(fact.name, body)}</g>'
        )

    def linked(self, name: str, body: str) -> str:
        address = self.link(name)
        return body if address is None else f'<a href="{escape(address)}">{body}</a>'


def _arranged(
    inside: dict[str, Fact],
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """The columns (first, and behind the last) and the row of each quantity of a box.

    A quantity spans the columns of those from which it is computed; one that several others are
    computed from spans theirs.
    """
    inputs = {name: [i for i in fact.inputs if i in inside] for name, fact in inside.items()}
    users = {name: [n for n in inside if name in inputs[n]] for name in inside}
    of_source = {name: _from_the_source(name, inside) for name in inside}
    rows: dict[str, int] = {}

    def row(name: str) -> int:
        start = (
            0
            if any("encoder.final" in i for i in inside[name].inputs) and name.startswith("decoder")
            else -1
        )
        return 1 + max([row(i) for i in inputs[name]], default=start)

    rows = {name: row(name) for name in inside}
    leaves: list[str] = []

    def span(name: str) -> list[str]:
        above = [i for i in inputs[name] if len(users[i]) == 1]
        if not above:
            return [name]
        ordered = sorted(above, key=lambda i: not of_source[i])
        return [leaf for i in ordered for leaf in span(i)]

    spans = {name: span(name) for name in inside if len(users[name]) < 2}
    for name in inside:
        if not users[name]:
            leaves += spans[name]
    columns = {name: (leaves.index(s[0]), leaves.index(s[-1]) + 1) for name, s in spans.items()}
    for name in inside:
        if name not in columns:
            theirs = [columns[n] for n in users[name]]
            columns[name] = (min(a for a, _ in theirs), max(b for _, b in theirs))
    return columns, rows


def _from_the_source(name: str, inside: dict[str, Fact]) -> bool:
    """Whether a quantity of cross-attention depends on the source alone."""
    return name.endswith(("cross_attention.k", "cross_attention.v"))


def _memory(left: Column, right: Column) -> str:
    """The way from the encoder's output to the keys and values of cross-attention."""
    x, y, width, height = left.places["encoder.final"]
    gutter = (left.x + BOX + PAD + right.x - PAD) / 2
    start = f"M{x + width} {y + height / 2}H{gutter}"
    keys = [
        right.places[n]
        for n in right.places
        if n.endswith(("cross_attention.k", "cross_attention.v"))
    ]
    if keys:
        at = min(y for _, y, _, _ in keys) - GAP / 2 - 1
        paths = [
            _arrow(f"{start}V{at}H{x + width / 2}", x + width / 2, y, "memory")
            for x, y, width, _ in keys
        ]
        return "".join(paths)
    x, y, _, height = right.places["decoder.cross_attention"]
    return _line(f"{start}V{y + height / 2}H{x}m-4 -3l4 3l-4 3", "memory")


def _again(right: Column) -> str:
    """The way of the chosen token back to the decoder's input."""
    x, y, width, height = right.places["choice"]
    outer = WIDTH - MARGIN - 2
    return _line(
        f"M{x + width} {y + height / 2}H{outer - 5}Q{outer} {y + height / 2} {outer} {y + height / 2 - 5}"
        f"V{MARGIN + 15}Q{outer} {MARGIN + 10} {outer - 5} {MARGIN + 10}H{right.middle + 46}m4 -3l-4 3l4 3",
        "again",
    )


def text_width(words: str, size: float = 12.5) -> float:
    """An estimate from above of the width of a text, in a wide sans-serif font."""
    wide, narrow = "mwMWGOQDN%+=×", "fijltrI,.:;-()|! '[]/"
    return size * sum(0.97 if c in wide else 0.41 if c in narrow else 0.66 for c in words)


def _wrapped(details: tuple[str, ...]) -> list[str]:
    """The details, as many in a line as fit."""
    lines: list[str] = []
    for detail in details:
        if lines and text_width(f"{lines[-1]}, {detail}") < BOX - 8:
            lines[-1] += f", {detail}"
        else:
            lines.append(detail)
    return lines


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def _line(path: str, kind: str = "") -> str:
    return f'<path d="{path}" class="{kind}"/>'


def _arrow(start: str, x: float, y: float, kind: str = "") -> str:
    """A path that goes on from ``start`` down to (x, y), with a head."""
    return _line(f"{start}V{y:g}m-3 -4l3 4l3 -4", kind)
