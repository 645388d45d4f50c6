"""NumPy or CuPy, whose double replaces it here, so that no device is needed."""

import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from arrangements import small_vaswani
from backends.arrays import DeviceArray
from backends.double import Device
from command_line import process
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from naming import raises_naming

import refseq2seq as rs
from refseq2seq import backend
from refseq2seq.backend import CudaLibrariesMissing, CuPyNotInstalled, NoCudaDevice
from refseq2seq.params import named_arrays

CONFIG = small_vaswani(d_model=6, vocab_size=7, n_layers=1, d_ff=5)
MODEL = rs.Model.random(CONFIG, seed=0)


class CUDARuntimeError(RuntimeError):
    """Has the name of CuPy's."""


@pytest.fixture
def cupy():
    """The double of CuPy, in which everything works."""
    with Device().installed() as module:
        module.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1))
        yield module


def the_error(kind, *names):
    """What moving to CuPy raises, which names all of these: the same for an array and a model."""
    with pytest.raises(rs.BackendError) as of_array:
        rs.to_cupy(np.ones(3))
    with pytest.raises(rs.BackendError) as of_model:
        MODEL.to("cupy")
    assert type(of_array.value) is type(of_model.value) is kind
    assert str(of_array.value) == str(of_model.value)
    assert [name for name in names if name not in str(of_array.value)] == []
    return of_array.value


# Which library an array belongs to


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    "x",
    [
        np.ones(3),
        np.array(1.0),
        np.ones((2, 3))[:, ::2].T,
        np.ones(3).view(Subclass),
        np.ma.ones(3),
        MODEL.exact().params.unembedding,
    ],
    ids=["array", "0-d", "view", "subclass", "masked", "exact"],
)
def test_array_namespace_of_numpy_arrays_and_subclasses(x):
    assert rs.array_namespace(x) is np


def test_array_namespace_of_other_libraries(cupy):
    assert rs.array_namespace(cupy.asarray([1.0])) is cupy
    namespace = ModuleType("elsewhere")
    assert rs.array_namespace(SimpleNamespace(__array_namespace__=lambda: namespace)) is namespace


@pytest.mark.parametrize("x", [[1.0], (1.0,), 1.0, 1, None, "array", range(3), memoryview(b"a")])
def test_array_namespace_of_another_type_raises(x):
    with raises_naming(TypeError, f"got {type(x).__name__}"):
        rs.array_namespace(x)


# A large array a piece at a time


@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7),
    piece=st.integers(1, 11),
    transposed=st.booleans(),
)
def test_elementwise_calls_its_function_with_pieces(shape, piece, transposed):
    sizes = []

    @backend.elementwise
    def halved(x):
        """Half of x."""
        sizes.append(x.size)
        return 0.5 * x

    x = np.arange(math.prod(shape), dtype="float32").reshape(shape)
    x = x.T if transposed else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "PIECE", piece)
        y = halved(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x / 2, strict=True)
    whole, rest = divmod(x.size, piece)
    assert sizes == [piece] * whole + [rest] * (rest > 0 or whole == 0)
    assert halved.__doc__ == "Half of x."


def test_pieces_have_the_dtype_that_their_function_returns():
    x = np.arange(backend.PIECE + 1) % 7
    few, many = rs.ops.sigmoid(x[:7]), rs.ops.sigmoid(x)
    assert few.dtype == many.dtype == "float64"
    assert np.array_equal(many[:7], few)


@pytest.mark.parametrize("others", [(), (1.5,), (None, np.ones((7, 1)))], ids=["none", "1", "2"])
def test_elementwise_with_other_arrays_or_exact_ones_uses_no_pieces(others, monkeypatch):
    monkeypatch.setattr(backend, "PIECE", 3)
    given_to = []

    @backend.elementwise
    def same(x, *others):
        given_to.append((x, *others))
        return x

    x = np.ones(7) if others else rs.exact.as_exact(np.ones(7))
    assert same(x, *others) is x
    assert [id(part) for part in given_to[0]] == [id(part) for part in (x, *others)]
    assert len(given_to) == 1


def test_elementwise_makes_one_kernel_of_cupy_once(cupy):
    made = []

    def fuse(kernel_name):
        made.append(kernel_name)
        return lambda function: lambda *args: ("fused", function(*args))

    cupy.fuse = fuse

    @backend.elementwise
    def sum_of(x, y):
        return x + y

    for _ in range(2):
        kind, result = sum_of(cupy.asarray([1.0, 2.0]), 3.0)
        assert (kind, result.get().tolist()) == ("fused", [4.0, 5.0])
    assert made == ["fused_sum_of"]  # erf itself is a name of CUDA's


# Moving arrays and models


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_are_read_as_float64_on_the_host(dtype):
    numbers, places = np.array([[0.1, -math.inf], [math.nan, 3]], dtype), np.array([[5, 2**40]] * 2)
    exact = rs.exact.as_exact(numbers)
    for found in (backend.read(places, numbers, exact), backend.read(exact, places, numbers)):
        assert all(type(x) is np.ndarray and x.dtype == np.float64 for x in found)
    found = backend.read(places, numbers)
    np.testing.assert_array_equal(found[0], places)
    np.testing.assert_array_equal(found[1], numbers.astype("float64"))


def test_a_device_is_read_once():
    device = Device()
    there = [device.cupy.asarray(x) for x in ([5, 2**40], np.float32([0.1, -2]), [True, False])]
    with device.installed():
        found = backend.read(*there)
    assert device.reads == 1
    assert [x.dtype for x in found] == [np.float64] * 3
    assert [x.tolist() for x in found] == [[5, 2**40], [float(np.float32(0.1)), -2], [1, 0]]


def test_to_numpy(cupy):
    x = np.ones(3)
    assert rs.to_numpy(x) is x
    assert type(rs.to_numpy(x.view(Subclass))) is np.ndarray
    np.testing.assert_array_equal(rs.to_numpy([1, 2]), np.array([1, 2]), strict=True)
    np.testing.assert_array_equal(rs.to_numpy(cupy.asarray(x)), x, strict=True)


def test_a_model_goes_to_cupy_and_comes_back(cupy):
    there = MODEL.to("cupy")
    assert all(type(x) is DeviceArray for _, x in named_arrays(there.params))
    assert there.params.encoder.embedding is there.params.decoder.embedding  # still tied
    assert there.xp is cupy
    assert there.dtype == np.float32
    assert [n for n, _ in named_arrays(there.params)] == [n for n, _ in named_arrays(MODEL.params)]
    back = there.to("cupy").to("numpy")
    for (name, x), (_, original) in zip(
        named_arrays(back.params), named_arrays(MODEL.params), strict=True
    ):
        np.testing.assert_array_equal(x, original, strict=True, err_msg=name)
    assert back.xp is np


@pytest.mark.parametrize("name", ["torch", "CuPy", "", None, np])
def test_other_backends_raise(name):
    with raises_naming(ValueError, "backend", repr(name)):
        MODEL.to(name)


def test_exact_arithmetic_of_a_cupy_model_raises(cupy):
    with raises_naming(TypeError, "model.to('numpy').exact()"):
        MODEL.to("cupy").exact()


# Errors of a CuPy that cannot be used: what they name, and what to install


INSTALL = ["refseq2seq[cuda12]", "refseq2seq[cuda13]"]


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (ModuleNotFoundError("No module named 'cupy'"), INSTALL),
        (ImportError("CuPy is not correctly installed: libstdc++ is too old"), ["libstdc++ is"]),
    ],
)
def test_cupy_that_cannot_be_imported(monkeypatch, error, names):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise error

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert the_error(CuPyNotInstalled, *names).__cause__ is error


def fails_to_count():
    raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (fails_to_count, ["cudaErrorInsufficientDriver", "NVIDIA driver"]),
        (lambda: 0, ["0 devices"]),
    ],
)
def test_no_driver_or_no_device(cupy, count, names):
    cupy.is_available = lambda: False
    cupy.cuda.runtime.getDeviceCount = count
    the_error(NoCudaDevice, f"CuPy {cupy.__version__}", *names)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        # The types and the words of CuPy 14.2.
        ("matmul", ImportError('Failure finding "libcublasLt.so.13 or libcublasLt.so.12"')),
        ("exp", RuntimeError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12"\n')),
        ("ones", OSError("libnvrtc-builtins.so: cannot open shared object file")),
    ],
)
def test_no_cuda_libraries(cupy, monkeypatch, function, reason):
    def fail(*args):
        raise reason

    if function == "matmul":
        monkeypatch.setattr(DeviceArray, "__matmul__", fail)
    else:
        setattr(cupy, function, fail)
    error = the_error(CudaLibrariesMissing, str(reason).strip(), *INSTALL)
    assert error.__cause__ is reason


def test_the_three_errors_are_distinct_runtime_errors():
    errors = {CuPyNotInstalled, NoCudaDevice, CudaLibrariesMissing}
    assert len(errors) == 3
    assert all(issubclass(e, rs.BackendError) and issubclass(e, RuntimeError) for e in errors)
    assert not any(issubclass(a, b) for a in errors for b in errors - {a})


# Imports


def test_importing_the_package_imports_numpy_and_nothing_else():
    """Not even where it is installed, and not inside a ``try``."""
    program = """
import sys
import numpy, numpy.random
before = set(sys.modules)
asked = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        asked.append(name.partition(".")[0])
sys.meta_path.insert(0, Watch())
import refseq2seq
new = {name.partition(".")[0] for name in sys.modules.keys() - before} | set(asked)
known = {*sys.stdlib_module_names, "numpy", "org"}  # the standard library looks for Jython's
print(*sorted(new - known))
"""
    out = process(sys.executable, "-c", program, check=True)
    assert (out.stdout.split(), out.stderr) == (["refseq2seq"], "")


def test_only_the_backend_knows_cupy():
    package = Path(rs.__file__).parent
    importing = re.compile(r"^\s*(import|from) cupy", re.MULTILINE)
    files = [path for path in package.rglob("*.py") if importing.search(path.read_text("utf-8"))]
    assert [path.name for path in files] == ["backend.py"]


# The real CuPy, where it is installed


def test_the_real_cupy_without_a_device():
    installed = pytest.importorskip("cupy", reason="CuPy is not installed")
    if installed.is_available():
        pytest.skip("there is a CUDA device")
    the_error(NoCudaDevice, f"CuPy {installed.__version__} is installed")


@pytest.mark.gpu
def test_the_real_cupy_computes_what_numpy_computes(real_cupy):
    model = MODEL.astype("float64")
    source, target = [[3, 4, 5], [6]], [[1, 3], [1, 4]]
    logits = rs.forward(model.to("cupy"), source, target)
    assert isinstance(logits, real_cupy.ndarray)
    host = rs.to_numpy(logits)
    assert np.isfinite(host).all()
    # Sums of some 10 terms of size 1, in another order: some 10 units in the last place.
    np.testing.assert_allclose(host, rs.forward(model, source, target), atol=1e-13, rtol=1e-13)
