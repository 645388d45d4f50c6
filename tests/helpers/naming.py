"""Errors: their class and what they name, not their wording."""

import contextlib
import re

import pytest


@contextlib.contextmanager
def raises_naming(kind, *names):
    """The block raises ``kind`` with one line that contains each of ``names``."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert message
    assert "\n" not in message, message
    for name in names:
        assert str(name) in message, f"{name!r} is not in {message!r}"


def short(x):
    """An id for a parameter: its text without addresses, which differ between processes."""
    return re.sub(r" at 0x\w+", "", str(x))[:40]
