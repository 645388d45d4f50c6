"""The double of CuPy: what it refuses, what it wraps, what it counts."""

import numpy as np
import pytest
from backends.double import Device

from refseq2seq.backend import array_namespace, elementwise


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def cupy(device):
    return device.cupy


HOST = np.arange(6.0).reshape(2, 3)

REFUSED = {
    "conversion": (lambda cp, x: np.asarray(x), "Implicit conversion"),
    "NumPy's function": (lambda cp, x: np.exp(x), "does not support ufuncs"),
    "NumPy's concatenate": (lambda cp, x: np.concatenate([x, x]), "Implicit conversion"),
    "device + host": (lambda cp, x: x + HOST, "Unsupported type"),
    "host + device": (lambda cp, x: HOST + x, "Unsupported type"),
    "device @ host": (lambda cp, x: x @ HOST.T, "Unsupported type"),
    "device += host": (lambda cp, x: x.__iadd__(HOST), "Unsupported type"),
    "where with the host's mask": (lambda cp, x: cp.where(HOST > 0, x, 0), "Unsupported type"),
    "concat with the host's": (lambda cp, x: cp.concat([x, HOST]), "Unsupported type"),
    "an index from the host": (lambda cp, x: x[np.array([0])], "index from the host"),
    "a list as an index": (lambda cp, x: x[[0, 1]], "index from the host"),
    "the host's numbers assigned": (lambda cp, x: x.__setitem__(0, HOST[0]), "cannot be used"),
    "a row assigned twice": (lambda cp, x: x.__setitem__(cp.asarray([0, 0]), x), "duplicate"),
    "another device's array": (lambda cp, x: x + Device().cupy.asarray(HOST), "another device"),
    "iteration": (lambda cp, x: list(x), "one by one"),
    "a number as a member": (lambda cp, x: x[0, 0] in {1.0}, "unhashable"),
    "a function that CuPy lacks": (lambda cp, x: cp.insert(x, 0, 1), "knows no function 'insert'"),
    "a method that CuPy lacks": (lambda cp, x: x.to_device("cpu"), "no array method 'to_device'"),
    "an argument that CuPy lacks": (lambda cp, x: cp.sum(x, where=x > 0), "'where'"),
    "where= of a ufunc": (lambda cp, x: cp.exp(x, where=x > 0), "Wrong arguments"),
    "a method's argument": (lambda cp, x: x.sum(initial=0), "'initial'"),
}


@pytest.mark.parametrize(("attempt", "message"), REFUSED.values(), ids=REFUSED)
def test_calls_that_cupy_does_not_take_raise(cupy, attempt, message):
    x = cupy.asarray(HOST)
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        attempt(cupy, x)


def test_arithmetic_indexing_and_assignment(cupy):
    x = cupy.asarray(HOST)
    assert (x + 1 - np.float32(2) * x).get().tolist() == (HOST + 1 - 2 * HOST).tolist()
    assert (2 - x)[:, None, ..., -1].get().tolist() == [[0.0], [-3.0]]
    assert x[cupy.asarray([1])].get().tolist() == [[3.0, 4.0, 5.0]]
    x[:, 1] = 7
    x[cupy.asarray([1, 0]), 2] = cupy.asarray([8.0, 9.0])
    x *= 2
    assert x.get().tolist() == [[0.0, 14.0, 18.0], [6.0, 14.0, 16.0]]


def test_an_index_out_of_range_wraps(cupy):
    x = cupy.asarray(HOST)
    assert x[cupy.asarray([5, -3])].get().tolist() == [[3.0, 4.0, 5.0]] * 2
    assert x[..., cupy.asarray([4])].get().tolist() == [[1.0], [4.0]]


def test_empty_is_nan(cupy):
    assert np.isnan(cupy.empty((2, 3), dtype="float16").get()).all()


def test_a_reduction_gives_an_array_without_dimensions(cupy):
    total = cupy.sum(cupy.asarray(HOST))
    assert type(total) is type(cupy.asarray(HOST))
    assert total.shape == ()
    assert float(total) == 15.0


READS = {
    "get": (lambda cp, x: x.get(), 1),
    "item": (lambda cp, x: x[0, 0].item(), 1),
    "float": (lambda cp, x: float(x[0, 0]), 1),
    "int": (lambda cp, x: int(x[0, 0]), 1),
    "bool": (lambda cp, x: bool(x[0, 0] > 0), 1),
    "a condition": (lambda cp, x: 1 if (x > 0).all() else 0, 1),
    "an index of Python's": (lambda cp, x: [5, 6][cp.argmax(x[0, :2])], 1),
    "a mask as an index": (lambda cp, x: x[x > 2], 1),
    "arithmetic": (lambda cp, x: (x @ x.T + 1).reshape(-1)[:3], 0),
    "its shape": (lambda cp, x: len(x) + x.shape[1] + x.ndim, 0),
}


@pytest.mark.parametrize(("act", "reads"), READS.values(), ids=READS)
def test_reads(device, act, reads):
    act(device.cupy, device.cupy.asarray(HOST))
    assert device.reads == reads


STACK = np.zeros((2, 3, 5, 7))

LAUNCHES = {
    "elementwise": (lambda cp, x: x + 1, 1),
    "a view": (lambda cp, x: x.transpose(0, 2, 1, 3)[:, :1, None].mT, 0),
    "a view reshaped": (lambda cp, x: x.reshape(6, -1), 0),
    "a copy by reshaping": (lambda cp, x: x.transpose(0, 2, 1, 3).reshape(10, 21), 1),
    "a mean": (lambda cp, x: cp.mean(x, axis=-1), 2),
    "a matrix product": (lambda cp, x: x[0, 0] @ x[0, 0].T, 1),
    "products in a stack": (lambda cp, x: x[..., :2, :].copy() @ x[..., :7, :].mT.copy(), 3),
    "products of a view": (lambda cp, x: x @ x.mT, 2),
    "products by one matrix": (lambda cp, x: x @ x[0, 0].T.copy(), 1 + 6 + 1),
    "rows by their index": (lambda cp, x: x[cp.asarray([1, 0])], 1 + 1),
    "assigned": (lambda cp, x: x.__setitem__((slice(None), 1), 0.0), 1),
    "no kernel": (lambda cp, x: cp.empty((2, 3)), 0),
    "in place": (lambda cp, x: x.__imul__(2), 1),
    "put together": (lambda cp, x: cp.concat([x, x, x]), 3),
}


@pytest.mark.parametrize(("act", "launches"), LAUNCHES.values(), ids=LAUNCHES)
def test_launches(device, act, launches):
    x = device.cupy.asarray(STACK)
    device.launches.clear()
    act(device.cupy, x)
    assert device.launches.total() == launches


def test_a_fused_function_is_one_launch_however_deep():
    device = Device()

    @elementwise
    def doubled(x, by):
        return x + by * x

    @elementwise
    def squared(x):
        y = doubled(x, 1)
        y *= y
        return array_namespace(y).where(y > 9, y, 0.0)

    with device.installed():
        result = squared(device.cupy.asarray([[1.0, 2.0]]))
    assert device.launches == {"asarray": 1, "fused": 1}
    assert result.get().tolist() == [[0.0, 16.0]]


def test_a_kernel_that_fails_leaves_the_device_usable():
    device = Device()
    with device.installed():
        x = device.cupy.asarray([[1.0, 2.0]])
        with pytest.raises(NotImplementedError, match="reshape"):
            elementwise(lambda x: x.reshape(-1))(x)
        assert x.reshape(-1).shape == (2,)


def test_jitter_adds_errors_of_its_size():
    x, shaken = np.random.default_rng(0).random((40, 50)), Device(jitter=1e-6).cupy
    there = shaken.asarray(x)
    np.testing.assert_array_equal(there.get(), x)
    np.testing.assert_array_equal(shaken.max(there, axis=0).get(), x.max(axis=0))
    for actual, exact in ((there + 1, x + 1), (there @ there.T, x @ x.T)):
        error = np.abs(actual.get() - exact).max() / np.abs(exact).max()
        assert 1e-7 < error < 1e-5
