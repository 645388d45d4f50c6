"""Shell patterns for names of quantities: a pattern that matches no name raises an error."""

import re
from fnmatch import fnmatchcase
from functools import cache

from .quantities import LOOPS, QUANTITIES, is_of_the_source

NUMBER = re.compile(r"(?:(?<=[.*])|^)(?:\d|\?|\[[!\d-]+\])+\*?(?=\.)")
"""The parts of a pattern that stand for numbers: digits, ``?``, ``[01]``, ``1*``, before a dot."""


def check_pattern(pattern: str) -> None:
    """Raise unless the pattern matches the name of some quantity, with any numbers.

    Raises
    ------
    TypeError
        If the pattern is not a str.
    ValueError
        If no name matches. The message suggests the nearest pattern, if there is one.

    Examples
    --------
    >>> check_pattern("step.1?.decoder.layers.[01].*")
    >>> check_pattern("decoder.layer.2.*")
    Traceback (most recent call last):
        ...
    ValueError: no quantity has a name that 'decoder.layer.2.*' matches: is it 'decoder.layers.2.*'?
    """
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern must be a str, such as '*.scores', got {pattern!r}")
    if not _matches_a_name(pattern):
        near = _nearest(pattern)
        cure = f"is it {near!r}?" if near else "refseq2seq.watching.quantities lists the names"
        raise ValueError(f"no quantity has a name that {pattern!r} matches: {cure}")


@cache
def _names() -> tuple[str, ...]:
    """The full names of all quantities, every number 0."""
    names = []
    for row in QUANTITIES:
        steps = ("",) if is_of_the_source(row.name) else ("", "step.0.")
        amateurs = ("",) if row in LOOPS else ("", "amateur.0.")
        names += [f"{s}{a}{row.name.replace('*', '0')}" for s in steps for a in amateurs]
    return tuple(names)


@cache
def _matches_a_name(pattern: str) -> bool:
    forms = (NUMBER.sub("0", pattern), pattern, re.sub(r"\d+", "0", pattern))
    return any(fnmatchcase(name, form) for form in forms for name in _names())


def _nearest(pattern: str) -> str | None:
    """A matching pattern: this one with its spelling corrected, with a star, or without a step."""
    from difflib import get_close_matches  # here, because it is rarely needed

    words = {word for name in _names() for word in name.split(".")}
    spelt = ".".join(
        "".join(get_close_matches(word.lower(), words, n=1)) or word for word in pattern.split(".")
    )
    without_step = re.sub(r"^step\.[^.]*\.", "", spelt)
    candidates = (spelt, f"*.{spelt}", f"{spelt}.*", without_step)
    return next(filter(_matches_a_name, candidates), None)
