"""The example in C, built with the system's compiler: the same bits, and errors it finds."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refseq2seq.testing import vectors
from refseq2seq.testing.vectors import safetensors

SOURCE = Path(__file__).parents[2] / "docs" / "vectors" / "layer_norm.c"
FLAGS = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off"]

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The compiled program, and a case."""
    root = tmp_path_factory.mktemp("c")
    program = root / "layer_norm"
    subprocess.run(["cc", *FLAGS, "-o", str(program), str(SOURCE), "-lm"], check=True)
    (name,) = vectors.make(root / "vectors", families=["x_transformers"], cases=1)
    return program, root / "vectors" / name


@pytest.fixture
def run(example, tmp_path):
    """Run the program on a copy of the case, some arrays of it changed."""
    program, original = example
    case = tmp_path / "case"
    shutil.copytree(original, case)

    def changed(file=None, **changes):
        if file:
            path = case / f"{file}.safetensors"
            arrays = safetensors.read(path)
            arrays |= {name: change(arrays[name]) for name, change in changes.items()}
            safetensors.write(path, arrays)
        result = subprocess.run(
            [str(program), str(case)], capture_output=True, text=True, timeout=20, check=False
        )
        return result.returncode, result.stdout, result.stderr

    changed.case = case
    return changed


def test_the_bits_are_the_same(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith("layer norm: OK, 195 numbers")
    assert out.splitlines()[1].startswith("linear: OK, 780 numbers")


def last_bit_off(x):
    y = x.copy()
    y.flat[-1] = np.nextafter(y.flat[-1], np.inf)
    return y


@pytest.mark.parametrize(
    ("file", "name", "wrong"),
    [
        ("forward", "encoder.layers.0.self_attention.input", "layer norm: row 14, column 12"),
        ("forward", "encoder.layers.0.feed_forward.projected", "linear: row 14, column 51"),
        ("weights", "encoder.layers.0.feed_forward.w_in", "linear: row 0, column 51"),
    ],
)
def test_one_wrong_bit_is_found(file, name, wrong, run):
    status, out, _ = run(file, **{name: last_bit_off})
    assert status == 1
    assert wrong in out
    assert out.count("OK") == 1


def test_another_gain_or_input_is_found(run):
    gain = "encoder.layers.0.self_norms.before.gain"
    assert run("weights", **{gain: lambda x: x * 1.5})[0] == 1
    assert run("weights", **{gain: lambda x: x / 1.5})[0] == 0
    assert run("forward", **{"encoder.embed": lambda x: x[..., ::-1]})[0] == 1


def test_files_that_are_cut_off_give_status_2(run):
    path = run.case / "forward.safetensors"
    whole = path.read_bytes()
    for n in (0, 7, 100, 12000):
        path.write_bytes(whole[:n])
        status, out, err = run()
        assert (status, out) == (2, "")
        assert "cut off" in err
    path.unlink()
    assert run() == (2, "", f"cannot open: {path}\n")
