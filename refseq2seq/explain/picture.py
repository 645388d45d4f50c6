"""One picture of a model: its parts, the way of the data, and a place for every quantity.

The encoder is on the left, the decoder on the right, and data go down. A column is a stack: what
is drawn next begins at its ``y``. Colours are those of the page around the picture.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from html import escape

from ..model import Model
from .facts import Fact, facts
from .parts import TIMES, Part, count, parts

Link = Callable[[str], str | None]
Point = tuple[float, float]

WIDTH, BOX, LANE, PAD, EDGE = 370, 150, 10, 6, 1
"""Widths of the picture, a box, the residual's lane, the inside of a frame, and the edge."""
CHIP, PILL, LINE, GAP, INSET = 20, 18, 16, 10, 6
"""Heights of a quantity, a norm, and a line of text; the space of an arrow; that inside a box."""
MEMORY = ("cross_attention.k", "cross_attention.v")

STYLE = """
.model-picture{--attention:#2f7fd0;--feed-forward:#c9741a;width:100%;max-width:24rem;height:auto;
font:13px system-ui,"Segoe UI",Roboto,Helvetica,sans-serif}
.model-picture text{fill:currentColor;text-anchor:middle}
.model-picture .title{font-size:14px;font-weight:600}
.model-picture .soft{fill:color-mix(in srgb,currentColor 80%,transparent)}
.model-picture rect{rx:5px;stroke:color-mix(in srgb,currentColor 45%,transparent);
fill:color-mix(in srgb,currentColor 5%,transparent)}
.model-picture .layers{rx:9px;fill:none;stroke-dasharray:2 3}
.model-picture .norm rect{rx:9px}
.model-picture .quantity rect{stroke:color-mix(in srgb,currentColor 38%,transparent)}
.model-picture :is(.attention,.feed-forward) rect{stroke:var(--hue);
fill:color-mix(in srgb,var(--hue) 13%,transparent)}
.model-picture .attention{--hue:var(--attention)}
.model-picture .feed-forward{--hue:var(--feed-forward)}
.model-picture .marked rect{stroke-width:2.5px}
.model-picture :is(path,circle){fill:none;stroke:color-mix(in srgb,currentColor 65%,transparent);
stroke-width:1.2px;stroke-linejoin:round}
.model-picture .memory{stroke:var(--attention);stroke-width:1.6px}
.model-picture .again{stroke-dasharray:4 3}
.model-picture a,.model-picture a:hover{color:inherit;text-decoration:none}
.model-picture a:is(:hover,:focus-visible) rect{stroke:currentColor;stroke-width:2.5px}
"""


def picture(
    model: Model, *, unfold: Collection[str] | None = None, link: Link | None = None
) -> str:
    """Draw a model as an inline ``<svg>`` element.

    A part is an element with ``data-part``, such as ``decoder.cross_attention``. A quantity is one
    with the class ``quantity`` and its name as ``data-name``, with ``*`` for the layer; its
    ``<title>`` is its meaning. ``<desc>`` lists the parts in words.

    Parameters
    ----------
    model : Model
    unfold : collection of str, optional
        The parts that are marked and show their quantities, such as ``encoder`` or
        ``decoder.cross_attention``; the others are closed. By default all show their quantities,
        and none is marked.
    link : callable, optional
        From the name of a part or a quantity to the address to which it leads, or None.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If ``unfold`` names a part that the model does not have.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> svg = picture(rs.load("g2p"), unfold=["decoder.cross_attention"])
    >>> svg.count('class="quantity"'), 'data-name="decoder.layers.*.cross_attention.q"' in svg
    (9, True)
    """
    c, found = model.config, parts(model.config, facts(model))
    for name in unfold or ():
        if not any(is_of(part.name, name) for part in found):
            raise ValueError(f"unfold must name parts, such as {found[0].name!r}, got {name!r}")
    encoder = Column(EDGE + PAD + LANE, -1, unfold, link or (lambda name: None))
    decoder = Column(WIDTH - EDGE - 2 * PAD - LANE - BOX, 1, unfold, encoder.link)
    encoder.text("source tokens" if c.encoder.vocab_size else "source frames")
    encoder.stack([p for p in found if p.name.startswith("encoder.")], c.encoder.n_layers)
    encoder.arrow()
    encoder.text("memory")
    decoder.text("target so far")
    decoder.stack([p for p in found if p.name.startswith("decoder.")], c.decoder.n_layers)
    for part in found[-2:]:
        decoder.arrow()
        decoder.box(part)
    decoder.arrow()
    decoder.text("next token")
    height = max(encoder.y, decoder.y) + EDGE
    drawn = [*encoder.drawn, *decoder.drawn, *_memory(encoder, decoder), _again(decoder)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="model-picture" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="{"group" if link else "img"}" '
        f'aria-label="The model"><desc>{escape(_in_words(found))}</desc>'
        f"<style>{STYLE}</style>{''.join(drawn)}</svg>"
    )


def is_of(part: str, name: str) -> bool:
    """Whether a part, such as ``encoder.embedding``, is ``name`` or is of the stack ``name``."""
    return part in (name, f"{name}.{part.rpartition('.')[2]}")


def _in_words(found: list[Part]) -> str:
    return " ".join(f"{p.name}: {', '.join([p.title, *p.details])}." for p in found)


@dataclass
class Column:
    """A stack of drawn elements."""

    x: float  # of the left edge of the boxes
    side: int  # of the residual's lane: -1 left, 1 right
    unfold: Collection[str] | None
    link: Link
    y: float = EDGE  # where the next element begins
    drawn: list[str] = field(default_factory=list)
    places: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # x, y, width

    @property
    def middle(self) -> float:
        """The x of the main way."""
        return self.x + BOX / 2

    def text(self, words: str) -> None:
        """A line of text, such as what goes in or comes out."""
        self.drawn.append(_text(self.middle, self.y + LINE - 4, words, "soft"))
        half = text_width(words) / 2 + 4
        self.places[words] = (self.middle - half, self.y + LINE / 2, 2 * half)
        self.y += LINE

    def arrow(self, height: float = GAP, head: bool = True) -> None:
        """The main way down to the next element."""
        end = self.y + height
        self.drawn.append(_path((self.middle, self.y), (self.middle, end), head=head))
        self.y = end

    def stack(self, found: list[Part], n_layers: int) -> None:
        """An encoder or a decoder: what is before the layers, one of the layers, the final norm."""
        layer = [part for part in found if part.after]
        *first, final = [part for part in found if not part.after]
        for part in first:
            self.arrow()
            self.box(part)
        if layer:
            self.layer(layer, n_layers)
        self.arrow()
        self.box(final)

    def layer(self, found: list[Part], n_layers: int) -> None:
        """The sublayers of a layer in a frame, which says how many layers there are."""
        self.arrow(GAP / 2, head=False)
        top = self.y
        for part in found:
            self.sublayer(part)
        self.arrow(GAP / 2, head=False)
        x = self.x - PAD - (LANE if self.side < 0 else 0)
        self.drawn += [
            _rect(x, top, BOX + LANE + 2 * PAD, self.y - top, "layers"),
            _text(self.middle - self.side * (BOX + PAD) / 4, top + 14, count(n_layers, "layer")),
        ]

    def sublayer(self, part: Part) -> None:
        """A sublayer with its norms, and the residual stream around it."""
        before, branch, after = part.norms
        self.arrow(GAP, head=False)
        begin, lane = (self.middle, self.y), self.middle + self.side * (BOX / 2 + LANE)
        self.norm(before)
        self.arrow()
        self.box(part)
        self.norm(branch)
        self.arrow()
        end = self.y + 7
        around = _path(begin, (lane, begin[1]), (lane, end), (self.middle + self.side * 7, end))
        self.drawn += [around, _sum(self.middle, end)]
        self.y += 14
        self.norm(after)
        if self.shows(part):
            self.arrow()
            self.quantity(part.after, self.x, self.y, BOX)  # type: ignore[arg-type]
            self.y += CHIP

    def norm(self, kind: str | None) -> None:
        """A norm on the main way, if there is one."""
        if kind is not None:
            self.arrow()
            pill = _rect(self.middle - 42, self.y, 84, PILL)
            words = _text(self.middle, self.y + 13, kind)
            self.drawn.append(f'<g class="norm">{pill}{words}</g>')
            self.y += PILL

    def shows(self, part: Part) -> bool:
        """Whether the quantities of a part are shown."""
        return self.unfold is None or any(is_of(part.name, name) for name in self.unfold)

    def box(self, part: Part) -> None:
        """A part: title, details, and its quantities if they are shown."""
        top, shows = self.y, self.shows(part)
        self.places[part.name] = (self.x, top, BOX)
        words = [_text(self.middle, top + LINE + 1, part.title, "title")]
        for line in _lines(part.details):
            self.y += LINE
            words.append(_text(self.middle, self.y + LINE + 1, line, "soft"))
        self.y += LINE + INSET + 2
        here = len(self.drawn)
        if shows:
            self.quantities(part)
        kind = part.name.replace("self_", "").replace("cross_", "").replace("_", "-")
        marked = " marked" if shows and self.unfold is not None else ""
        box = _rect(self.x, top, BOX, self.y - top) + "".join(words)
        self.drawn.insert(
            here,
            f'<g class="{kind.rpartition(".")[2]}{marked}" data-part="{part.name}">'
            f"{self.linked(part.name, box)}</g>",
        )

    def quantities(self, part: Part) -> None:
        """The quantities of a part in rows, and the lines between them."""
        columns, rows = _arranged(part.quantities)
        width = (BOX - 2 * INSET + 4) / max(end for _, end in columns.values())
        for fact in part.quantities:
            (first, end), row = columns[fact.name], rows[fact.name]
            x, y = self.x + INSET + first * width, self.y + row * (CHIP + GAP)
            self.quantity(fact, x, y, (end - first) * width - 4)
            for other in fact.inputs:
                if rows.get(other, row) < row:
                    a, b = max(first, columns[other][0]), min(end, columns[other][1])
                    at = self.x + INSET + (a + b) / 2 * width - 2
                    bottom = self.y + rows[other] * (CHIP + GAP) + CHIP
                    self.drawn.append(_path((at, bottom), (at, y)))
        self.y += (max(rows.values()) + 1) * (CHIP + GAP) - GAP + INSET

    def quantity(self, fact: Fact, x: float, y: float, width: float) -> None:
        """The place of a quantity."""
        self.places[fact.name] = (x, y, width)
        words = _text(x + width / 2, y + 14, fact.name.rpartition(".")[2])
        body = f"<title>{escape(fact.meaning)}</title>{_rect(x, y, width, CHIP)}{words}"
        linked = self.linked(fact.name, body)
        self.drawn.append(f'<g class="quantity" data-name="{fact.name}">{linked}</g>')

    def linked(self, name: str, body: str) -> str:
        """A drawing as a link, where ``name`` has an address."""
        address = self.link(name)
        return body if address is None else f'<a href="{escape(address)}">{body}</a>'


def _arranged(found: tuple[Fact, ...]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """The columns of each quantity of a box, from the first to behind the last, and its row.

    A quantity is below those from which it is computed, and as wide as they are together. One
    from which several are computed, such as the input of q, k and v, is as wide as these.
    """
    inputs: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for fact in found:
        name = fact.name
        inputs[name] = [other for other in fact.inputs if other in inputs]
        above = 0 if name.endswith(MEMORY) else -1  # beside the queries
        rows[name] = 1 + max([rows[other] for other in inputs[name]], default=above)
    users = {name: [user for user in inputs if name in inputs[user]] for name in inputs}

    def leaves(name: str) -> list[str]:
        own = sorted((i for i in inputs[name] if len(users[i]) == 1), key=_right_of_memory)
        return [leaf for other in own for leaf in leaves(other)] or [name]

    order = [leaf for name in inputs if not users[name] for leaf in leaves(name)]
    places = {
        name: [order.index(leaf) for leaf in leaves(name)]
        for name in inputs
        if len(users[name]) < 2
    }
    for name in inputs:
        if name not in places:
            places[name] = [place for user in users[name] for place in places[user]]
    return {name: (min(at), max(at) + 1) for name, at in places.items()}, rows


def _right_of_memory(name: str) -> bool:
    return not name.endswith(MEMORY)


def _memory(encoder: Column, decoder: Column) -> list[str]:
    """The ways from the memory to the keys and values of cross-attention, or to its closed box."""
    x, y, width = encoder.places["memory"]
    gutter = (encoder.x + BOX + PAD + decoder.x - PAD) / 2
    start = ((x + width, y), (gutter, y))
    ends = [place for name, place in decoder.places.items() if name.endswith(MEMORY)]
    if not ends:
        left, top, _ = decoder.places["decoder.cross_attention"]
        return [_path(*start, (gutter, top + LINE), (left, top + LINE), kind="memory")]
    paths = []
    for left, top, width in ends:
        above, middle = top - GAP + 4, left + width / 2
        paths.append(_path(*start, (gutter, above), (middle, above), (middle, top), kind="memory"))
    return paths


def _again(decoder: Column) -> str:
    """The way of the next token back to the target."""
    (x, bottom, width), (left, top, wide) = (
        decoder.places["next token"],
        decoder.places["target so far"],
    )
    lane = WIDTH - EDGE - 1
    return _path((x + width, bottom), (lane, bottom), (lane, top), (left + wide, top), kind="again")


def text_width(words: str, size: float = 13) -> float:
    """An estimate from above of the width of a text, in a wide font without serifs."""
    widths = {"ijlI,.:;|!' /": 0.33, "frt()-[]": 0.41, "csz": 0.55, "mwMWGOQDNHU%+=" + TIMES: 0.98}
    return size * sum(next((em for of, em in widths.items() if c in of), 0.64) for c in words)


def _lines(details: tuple[str, ...]) -> list[str]:
    """The details, as many in a line as fit into a box."""
    lines: list[str] = []
    for detail in details:
        if lines and text_width(f"{lines[-1]}, {detail}") < BOX - 4:
            lines[-1] += f", {detail}"
        else:
            lines.append(detail)
    return lines


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def _sum(x: float, y: float) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="7"/><path d="M{x - 4:g} {y:g}h8m-4 -4v8"/>'


def _path(*points: Point, kind: str = "", head: bool = True) -> str:
    """Horizontal and vertical lines with rounded corners, and a head at the end."""
    d = "M{:g} {:g}".format(*points[0])
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        a, b = _towards(at, before, 5), _towards(at, after, 5)
        d += "L{:g} {:g}Q{:g} {:g} {:g} {:g}".format(*a, *at, *b)
    x, y = points[-1]
    d += f"L{x:g} {y:g}"
    if head:
        back_x, back_y = _towards((x, y), points[-2], 4)
        dx, dy = 0.75 * (back_y - y), 0.75 * (back_x - x)
        d += f"M{back_x + dx:g} {back_y + dy:g}L{x:g} {y:g}L{back_x - dx:g} {back_y - dy:g}"
    return f'<path d="{d}" class="{kind}"/>'


def _towards(a: Point, b: Point, distance: float) -> Point:
    """The point between a and b at most ``distance`` from a, in each direction."""
    dx, dy = (max(-distance, min(distance, end - start)) for start, end in zip(a, b, strict=True))
    return a[0] + dx, a[1] + dy
