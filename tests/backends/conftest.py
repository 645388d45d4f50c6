"""What the tests of backends share."""

import functools
from collections.abc import Callable

import pytest
from backends import agreement
from backends.double import Device
from backends.journeys import Journey


@pytest.fixture(scope="session")
def travelled(double: Device) -> Callable[[Journey], agreement.HostResults]:
    """A journey's results in float64 on the double that records; each journey is made once."""

    @functools.cache
    def results(journey: Journey) -> agreement.HostResults:
        with double.installed():
            return agreement.results(journey, "float64", "cupy")

    return results
