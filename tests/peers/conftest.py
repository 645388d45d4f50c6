"""What all tests of peers share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    from planted import one_thread  # which needs PyTorch

    with one_thread():
        yield
