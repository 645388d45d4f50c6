"""Errors: their class and what they name, not their wording."""

import contextlib

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
