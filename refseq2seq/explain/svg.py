"""Elements of an SVG: rectangles, texts and their widths, and ways with arrows."""

from collections.abc import Iterable
from html import escape

Point = tuple[float, float]


def text_width(words: str, size: float = 13) -> float:
    """An estimate from above of the width of a text, in a wide font without serifs."""
    widths = {"ijlI,.:;|!' /": 0.33, "frt()-[]": 0.41, "csz": 0.55, "mwMWGOQDNHU%+=": 0.98}
    return size * sum(next((em for of, em in widths.items() if c in of), 0.64) for c in words)


def wrapped(details: Iterable[str], width: float) -> list[str]:
    """The details, in lines, as many in each as fit."""
    lines: list[str] = []
    for detail in details:
        if lines and text_width(f"{lines[-1]}, {detail}") < width:
            lines[-1] += f", {detail}"
        else:
            lines.append(detail)
    return lines


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A text centred at x, on the line y."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str = "") -> str:
    """A rectangle by its corner and its sizes."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def plus(x: float, y: float) -> str:
    """A sum: a plus in a circle."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="7"/><path d="M{x - 4:g} {y:g}h8m-4 -4v8"/>'


def path(*points: Point, kind: str = "", head: bool = True) -> str:
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
