"""One picture of a model: its parts, the way of the data, and a place for every quantity.

The encoder is on the left, the decoder on the right, and data go down. A column is a stack: what
is drawn next begins at its ``y``. Colours are those of the page around the picture.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from ..model import Model
from ..watching.notebook import counted
from .facts import Fact, facts
from .parts import Part, parts
from .svg import Point, path, plus, rect, text, text_width, wrapped

Link = Callable[[str], str | None]

WIDTH, BOX, LANE, PAD, EDGE = 370, 150, 10, 6, 1
"""Widths of the picture, a box, the residual's lane, the inside of a frame, and the edge."""
CHIP, PILL, LINE, GAP, INSET = 20, 18, 16, 10, 6
"""Heights of a quantity, a norm, and a line of text; the space of an arrow; that inside a box."""
MEMORY = ("cross_attention.k", "cross_attention.v")


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
    TypeError
        If ``unfold`` is a str.
    ValueError
        If ``unfold`` names a part that the model does not have.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> svg = picture(rs.load("g2p"), unfold=["decoder.cross_attention"])
    >>> svg.count('class="quantity"'), 'data-name="decoder.layers.*.cross_attention.q"' in svg
    (9, True)
    """
    if isinstance(unfold, str):
        raise TypeError(f"unfold must be a collection of names, such as [{unfold!r}], got a str")
    c, found = model.config, parts(model.config, facts(model))
    unfold = None if unfold is None else [*unfold]
    for name in unfold or ():
        if not any(is_of(part.name, name) for part in found):
            raise ValueError(f"unfold must name parts, such as {found[0].name!r}, got {name!r}")
    encoder = Column(EDGE + PAD + LANE, -1, unfold, link or (lambda name: None))
    decoder = Column(WIDTH - EDGE - 2 * PAD - LANE - BOX, 1, unfold, encoder.link)
    encoder.label("source tokens" if c.encoder.vocab_size else "source frames")
    encoder.stack([p for p in found if p.name.startswith("encoder.")], c.encoder.n_layers)
    encoder.arrow()
    encoder.label("memory")
    decoder.label("target so far")
    decoder.stack([p for p in found if p.name.startswith("decoder.")], c.decoder.n_layers)
    for part in found[-2:]:
        decoder.arrow()
        decoder.box(part)
    decoder.arrow()
    decoder.label("next token")
    style = files(__package__).joinpath("picture.css").read_text(encoding="utf-8")
    height = max(encoder.y, decoder.y) + EDGE
    said = " ".join(f"{p.name}: {', '.join([p.title, *p.details])}." for p in found)
    drawn = [*encoder.drawn, *decoder.drawn, *_memory(encoder, decoder), _again(decoder)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="model-picture" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="{"group" if link else "img"}" '
        f'aria-label="The model"><desc>{escape(said)}</desc>'
        f"<style>{style}</style>{''.join(drawn)}</svg>"
    )


def is_of(part: str, name: str) -> bool:
    """Whether a part, such as ``encoder.embedding``, is ``name`` or is of the stack ``name``."""
    return part in (name, f"{name}.{part.rpartition('.')[2]}")


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

    def label(self, words: str) -> None:
        """A line of text, such as what goes in or comes out."""
        self.drawn.append(text(self.middle, self.y + LINE - 4, words, "soft"))
        half = text_width(words) / 2 + 4
        self.places[words] = (self.middle - half, self.y + LINE / 2, 2 * half)
        self.y += LINE

    def arrow(self, height: float = GAP, head: bool = True) -> None:
        """The main way down to the next element."""
        end = self.y + height
        self.drawn.append(path((self.middle, self.y), (self.middle, end), head=head))
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
            rect(x, top, BOX + LANE + 2 * PAD, self.y - top, "layers"),
            text(self.middle - self.side * (BOX + PAD) / 4, top + 14, counted(n_layers, "layer")),
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
        around = path(begin, (lane, begin[1]), (lane, end), (self.middle + self.side * 7, end))
        self.drawn += [around, plus(self.middle, end)]
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
            pill = rect(self.middle - 42, self.y, 84, PILL)
            words = text(self.middle, self.y + 13, kind)
            self.drawn.append(f'<g class="norm">{pill}{words}</g>')
            self.y += PILL

    def shows(self, part: Part) -> bool:
        """Whether the quantities of a part are shown."""
        return self.unfold is None or any(is_of(part.name, name) for name in self.unfold)

    def box(self, part: Part) -> None:
        """A part: title, details, and its quantities if they are shown."""
        top, shows = self.y, self.shows(part)
        self.places[part.name] = (self.x, top, BOX)
        words = [text(self.middle, top + LINE + 1, part.title, "title")]
        for line in wrapped(part.details, BOX - 4):
            self.y += LINE
            words.append(text(self.middle, self.y + LINE + 1, line, "soft"))
        self.y += LINE + INSET + 2
        here = len(self.drawn)
        if shows:
            self.quantities(part)
        kind = part.name.replace("self_", "").replace("cross_", "").replace("_", "-")
        marked = " marked" if shows and self.unfold is not None else ""
        box = rect(self.x, top, BOX, self.y - top) + "".join(words)
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
                    self.drawn.append(path((at, bottom), (at, y)))
        self.y += (max(rows.values()) + 1) * (CHIP + GAP) - GAP + INSET

    def quantity(self, fact: Fact, x: float, y: float, width: float) -> None:
        """The place of a quantity."""
        self.places[fact.name] = (x, y, width)
        words = text(x + width / 2, y + 14, fact.name.rpartition(".")[2])
        body = f"<title>{escape(fact.meaning)}</title>{rect(x, y, width, CHIP)}{words}"
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
        own = [other for other in inputs[name] if len(users[other]) == 1]
        own.sort(key=lambda other: not other.endswith(MEMORY))
        return [leaf for other in own for leaf in leaves(other)] or [name]

    order = [leaf for name in inputs if not users[name] for leaf in leaves(name)]
    columns = {}
    for name in inputs:
        below = users[name] if len(users[name]) > 1 else [name]
        at = [order.index(leaf) for user in below for leaf in leaves(user)]
        columns[name] = min(at), max(at) + 1
    return columns, rows


def _memory(encoder: Column, decoder: Column) -> list[str]:
    """The ways from the memory to the keys and values of cross-attention, or to its closed box."""
    x, y, width = encoder.places["memory"]
    gutter = (encoder.x + BOX + PAD + decoder.x - PAD) / 2
    start = ((x + width, y), (gutter, y))
    ends = [place for name, place in decoder.places.items() if name.endswith(MEMORY)]
    left, top, _ = decoder.places["decoder.cross_attention"]
    ways: list[list[Point]] = [
        [(gutter, y - 6), (x + width / 2, y - 6), (x + width / 2, y)] for x, y, width in ends
    ] or [[(gutter, top + LINE), (left, top + LINE)]]
    return [path(*start, *way, kind="memory") for way in ways]


def _again(decoder: Column) -> str:
    """The way of the next token back to the target."""
    (x, y, width), lane = decoder.places["next token"], WIDTH - EDGE - 1
    left, top, wide = decoder.places["target so far"]
    return path((x + width, y), (lane, y), (lane, top), (left + wide, top), kind="again")
