"""Errors: their class and what they name, not their wording."""

import contextlib
import re

import pytest


@contextlib.contextmanager
def raises_naming(kind, *names):
    """The block raises ``kind`` with one line that contains each of ``names``, as whole words."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert message
    assert "\n" not in message, message
    for name in map(str, names):
        begin, end = (r"\b" if character.isalnum() else "" for character in (name[0], name[-1]))
        words = begin + re.escape(name) + end
        assert re.search(words, message), f"{name!r} is not in {message!r}"


def short(x):
    """An id for a parameter: its text without addresses, which differ between processes."""
    return re.sub(r" at 0x\w+", "", str(x))[:40]
