"""What all tests of peers share."""

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    from planted import one_thread  # which needs PyTorch

    with one_thread():
        yield


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print how near a comparison came, among pytest's dots."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end=" ")

    return say
