"""Settings that every test runs under, and the backends that tests run on."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import contracts
import numpy as np
import pytest
from backends.double import Device
from hypothesis import HealthCheck, Phase, settings

contracts.install()  # every call of the suite is held to the shapes that docstrings promise

# No deadlines: a shared machine stalls. Derandomised: a failure is everybody's failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", patient, max_examples=30, derandomize=True, database=None)
settings.register_profile("thorough", patient, max_examples=500)
settings.register_profile(  # for mutation testing: a fault is to be found, not to be understood
    "mutation",
    patient,
    max_examples=6,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("default")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect test modules only: doctests are the package's."""
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if is_helper else None


@pytest.fixture(scope="session")
def double() -> Device:
    """A double of CuPy that writes down every call that the tests make."""
    return Device(records=True)


@pytest.fixture(scope="session")
def real_cupy() -> ModuleType:
    """CuPy, on a machine where it works."""
    if find_spec("cupy") is None:
        pytest.skip("needs a CUDA device: CuPy is not installed")
    import cupy

    if not cupy.is_available():
        pytest.skip("needs a CUDA device: CuPy finds none")
    return cupy


@pytest.fixture(
    scope="module", params=["numpy", "double", pytest.param("cupy", marks=pytest.mark.gpu)]
)
def xp(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Each array namespace in turn: NumPy, the double of CuPy, CuPy where it works.

    ``model.to(xp.__name__)`` moves a model there; ``rs.to_numpy`` gets results back.
    """
    if request.param == "double":
        with request.getfixturevalue("double").installed() as module:
            yield module
    else:
        yield np if request.param == "numpy" else request.getfixturevalue("real_cupy")
