"""How things show themselves in a notebook: small tables of HTML."""

from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 20  # rows of a table, and tokens of a row, before the rest is left out


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a caption; what comes after the first rows is counted, not shown.

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
    return f"<table><caption>{_text(caption)}</caption>{_row('th', head)}{body}</table>"


def listed(values: Iterable[Any]) -> str:
    """Numbers in a row, such as the tokens of a target."""
    texts = [str(value) for value in values]
    return " ".join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")


def decimals(values: Iterable[float]) -> list[str]:
    """Numbers with three decimals."""
    return [f"{value:.3f}" for value in values]


def _row(tag: str, cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"


def _text(x: Any) -> str:
    from html import escape  # here: few programs show tables, and all import this module

    return escape(str(x))
