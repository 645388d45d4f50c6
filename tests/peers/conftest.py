"""What all tests of peers share."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """PyTorch computes with one thread, where it is installed."""
    if find_spec("torch") is None:
        yield
        return
    from planted import one_thread

    with one_thread():
        yield


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print how near a comparison came, among pytest's dots."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end=" ")

    return say
