"""Shell patterns for names of quantities: could one match, whatever the numbers in the names?"""

import re
from fnmatch import fnmatchcase
from functools import cache

from .quantities import LOOPS, QUANTITIES, is_of_the_source


def check_pattern(pattern: str) -> None:
    """That a shell pattern can match the full name of a quantity, with whatever numbers in it.

    Raises
    ------
    ValueError
        If it cannot; with the nearest pattern that can, if one is near.
    TypeError
        If it is no str.

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
    if not _matches_one(pattern):
        near = _nearest(pattern)
        cure = f"is it {near!r}?" if near else "refseq2seq.quantities lists the names"
        raise ValueError(f"no quantity has a name that {pattern!r} matches: {cure}")


@cache
def _forms() -> tuple[str, ...]:
    """The full names of all quantities, with ``#`` for each number."""
    forms = []
    for row in QUANTITIES:
        steps = ("",) if is_of_the_source(row.name) else ("", "step.#.")
        amateurs = ("",) if row in LOOPS else ("", "amateur.#.")
        prefixes = [step + amateur for step in steps for amateur in amateurs]
        forms += [prefix + row.name.replace("*", "#") for prefix in prefixes]
    return tuple(forms)


@cache
def _matches_one(pattern: str) -> bool:
    return any(_matches(pattern, form) for form in _forms())


def _matches(pattern: str, form: str) -> bool:
    """Whether a shell pattern matches a form of names with some number for each ``#``.

    The form is read once, and with it all positions in the pattern that may be reached.
    """
    parts = re.findall(r"\[!?\]?[^]]*\]|.", re.sub(r"\*+", "*", pattern), re.DOTALL)

    def past_stars(reached: set[int]) -> set[int]:
        return reached | {i + 1 for i in reached if parts[i : i + 1] == ["*"]}

    def after(reached: set[int], characters: str) -> set[int]:
        """The positions after one of the characters."""
        inside = [i for i in reached if i < len(parts)]
        return past_stars(
            {
                i + (parts[i] != "*")
                for i in inside
                if any(fnmatchcase(character, parts[i]) for character in characters)
            }
        )

    reached = past_stars({0})
    for character in form:
        if character != "#":
            reached = after(reached, character)
            continue
        zero, reached = after(reached, "0"), after(reached, "123456789")
        while (longer := reached | after(reached, "0123456789")) != reached:
            reached = longer
        reached |= zero
    return len(parts) in reached


def _nearest(pattern: str) -> str | None:
    """A pattern that matches and looks like this one, with the same numbers in it."""
    from difflib import get_close_matches  # here, because it is seldom needed

    number = r"(?<=\.)[-0]*([\d?[\]-]+|\*(?=\.))(?=\.|$)"
    known = set(_forms())
    for name in (form.split(".") for form in _forms()):
        for n in range(1, len(name)):
            known |= {".".join([*name[:n], "*"]), ".".join(["*", *name[n:]])}
    near = get_close_matches(re.sub(number, "#", pattern.lower()), sorted(known), n=1)
    numbers = iter(re.findall(number, pattern))
    looks_alike = re.sub("#", lambda _: next(numbers, "*"), "".join(near))
    without_step = re.sub(r"^step\.[^.]*\.", "", pattern)
    candidates = (f"*.{pattern}", without_step, looks_alike)
    return next((pattern for pattern in candidates if _matches_one(pattern)), None)
