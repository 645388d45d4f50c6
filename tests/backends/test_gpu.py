"""What only a device can show: that it is waited for once a step, and how exact its products are.

The rest of what is tested there is in `test_agreement.py`: ``python -m pytest -m gpu``.
"""

import os
import warnings

import numpy as np
import pytest
from backends import journeys, test_budgets
from backends.double import Device

import refseq2seq as rs
from refseq2seq import backend, erf, ops

pytestmark = pytest.mark.gpu

SEARCHES = test_budgets.SEARCHES


@pytest.fixture
def no_waiting(real_cupy, monkeypatch):
    """CuPy raises when the host waits for the device, but for the read of a step."""
    import cupyx

    if not hasattr(cupyx, "allow_synchronize"):
        pytest.skip("this CuPy does not detect when the host waits")
    reads = []

    def read(x):
        reads.append(x.shape)
        with cupyx.allow_synchronize(True):
            return rs.to_numpy(x)

    monkeypatch.setattr(backend, "to_numpy", read)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "cupyx.allow_synchronize")  # it may miss some
        yield cupyx.allow_synchronize, reads


def test_a_forward_pass_never_waits(real_cupy, no_waiting):
    model = journeys.ALL["rich: forward"].model("float32").to("cupy")
    rs.forward(model, journeys.SOURCE, journeys.TARGET)  # compiles
    with no_waiting[0](False):
        rs.forward(model, journeys.SOURCE, journeys.TARGET)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_step_waits_once(real_cupy, no_waiting, search):
    function, options = SEARCHES[search]
    model = journeys.ALL["rich: forward"].model("float32").to("cupy")
    allow, reads = no_waiting
    function(model, journeys.SOURCE, max_new_tokens=4, eos_ids=(), **options)
    reads.clear()
    with allow(False):
        function(model, journeys.SOURCE, max_new_tokens=4, eos_ids=(), **options)
    assert len(reads) == 4


def test_products_in_float32_are_not_rounded_to_tensorfloat(real_cupy):
    """Its 11 bits would be off by 1e-3."""
    assert not int(os.environ.get("CUPY_TF32", "0"))
    a, b = np.random.default_rng(0).normal(size=(2, 509, 509)).astype("float32")
    exact = a.astype("float64") @ b
    for product in (
        real_cupy.asarray(a) @ real_cupy.asarray(b),
        (real_cupy.asarray(a)[None, None] @ real_cupy.asarray(b)[None, None])[0, 0],
    ):
        assert np.abs(rs.to_numpy(product) - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.fixture
def launches_of(real_cupy):
    """How many kernels, copies and fills a function launches: by PyTorch's profiler."""
    profiler = pytest.importorskip("torch.profiler", reason="PyTorch counts the launches")

    def count(function):
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            function()
            real_cupy.cuda.Device().synchronize()
        return sum(event.count for event in profile.key_averages() if event.device_time_total)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Profiler clears events")
        count(lambda: real_cupy.ones(3))  # the first trace has launches of its own
        yield count


OPERATIONS = {
    "exp": lambda xp, x: xp.exp(x),
    "in place": lambda xp, x: x.__imul__(2),
    "power": lambda xp, x: x**2,
    "where": lambda xp, x: xp.where(x > 0, x, 0.0),
    "sum": lambda xp, x: xp.sum(x, axis=-1, keepdims=True),
    "max": lambda xp, x: xp.max(x, axis=-1),
    "mean": lambda xp, x: xp.mean(x, axis=-1, keepdims=True),
    "var": lambda xp, x: xp.var(x, axis=-1),
    "argmax": lambda xp, x: xp.argmax(x, axis=-1),
    "cumsum": lambda xp, x: xp.cumsum(x, axis=-1),
    "sort": lambda xp, x: xp.sort(x, axis=-1),
    "argsort": lambda xp, x: xp.argsort(x, axis=-1, kind="stable"),
    "partition": lambda xp, x: xp.partition(x, 7, axis=-1),
    "searchsorted": lambda xp, x: xp.searchsorted(x[0], x),
    "take_along_axis": lambda xp, x: xp.take_along_axis(x, xp.asarray([[0], [1]]), axis=-1),
    "rows": lambda xp, x: x[xp.asarray([1, 0])],
    "elements": lambda xp, x: x[xp.asarray([1, 0]), xp.asarray([0, 1])],
    "assigned": lambda xp, x: x.__setitem__((slice(None), 0), 1.0),
    "rows assigned": lambda xp, x: x.__setitem__(xp.asarray([1, 0]), x[:2].copy()),
    "concat": lambda xp, x: xp.concat([x, x, x], axis=-1),
    "stack": lambda xp, x: xp.stack([x, x]),
    "repeat": lambda xp, x: xp.repeat(x, 3, axis=1),
    "tile": lambda xp, x: xp.tile(x, (1, 2)),
    "astype": lambda xp, x: x.astype("float16"),
    "new": lambda xp, x: [xp.arange(5), xp.zeros((3, 4)), xp.full((3, 4), 1.0), xp.empty(3)],
    "from the host": lambda xp, x: xp.asarray(np.ones(3)),
    "to the host": lambda xp, x: x.T.get(),
    "reshaped": lambda xp, x: x.T.reshape(-1),
    "products": lambda xp, x: (x[:, :4, None] * x[:, None, :4]) @ x[:, :4, None],
    "products of a view": lambda xp, x: x[:, :16].reshape(-1, 4, 4).mT @ x[0, :4],
    "fused": lambda xp, x: erf.gelu_erf(x),
    "fused, of several arrays": lambda xp, x: ops.layer_norm(x, x[0], None, 1e-5),
    "fused, masked": lambda xp, x: ops.softmax(x, x > 0),
}


@pytest.mark.parametrize("width", [29, 1000])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_the_double_counts_what_an_operation_launches(launches_of, operation, width):
    import cupy

    x, device = np.random.default_rng(0).normal(size=(2, width)), Device()
    there, on_double = cupy.asarray(x), device.cupy.asarray(x)
    operation(cupy, there)  # compiles
    measured = launches_of(lambda: operation(cupy, there))
    device.launches.clear()
    with device.installed():
        operation(device.cupy, on_double)
    assert device.launches.total() == measured


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 1, 509), (67, 127, 251)], ids=str)
@pytest.mark.parametrize("name", [*ops.ACTIVATIONS, *ops.NORMS, "softmax"])
def test_fused_functions_agree_with_numpy(real_cupy, name, shape, dtype):
    """Of few numbers and of many, in rows that broadcast; where all of a row is masked too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    gain, bias = rng.normal(size=(2, shape[-1])).astype(dtype)
    mask = rng.random((shape[0], 1, shape[-1])) < 0.5
    mask[0] = False

    def result(xp):
        if name in ops.ACTIVATIONS:
            return ops.ACTIVATIONS[name](xp.asarray(x))
        if name in ops.NORMS:
            return ops.NORMS[name](xp.asarray(x), xp.asarray(gain), xp.asarray(bias), 1e-5)
        return ops.softmax(xp.asarray(x), xp.asarray(mask))

    here, there = result(np), rs.to_numpy(result(real_cupy))
    assert there.dtype == here.dtype
    error = np.abs(there.astype("float64") - here).max()
    assert error <= 16 * np.finfo(dtype).eps * np.abs(here).astype("float64").max()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", ["pre-norm", "x_transformers"])
def test_the_double_counts_what_a_step_launches(launches_of, name, search):
    """But for the products, which cuBLAS may divide."""
    config = test_budgets.with_layers(name, 2)
    function, options = SEARCHES[search]
    model = rs.Model.random(config, 0).to("cupy")

    def steps(n):
        function(model, test_budgets.SOURCE, max_new_tokens=n, eos_ids=(), **options)

    steps(5)
    measured = (launches_of(lambda: steps(5)) - launches_of(lambda: steps(3))) / 2
    predicted = test_budgets.cost(config, function, **options)[0]
    assert measured == pytest.approx(predicted, rel=0.1)
