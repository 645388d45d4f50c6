"""Hostile files: each is loaded, or refused in one line, in little time and memory."""

import errno
import json
import os
import re
import shutil
import struct
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import arrangements
import numpy as np
import pytest
from bad_files import cheap, npy, packed

pytest.importorskip("resource", reason="limits and named pipes are those of Unix")

import resource

import hostile
from hostile import SHARDS, WEIGHTS, Case, judge, write_json, write_sums

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_huggingface
from refseq2seq.files import FileError, safetensors
from refseq2seq.files.writing import replacing
from refseq2seq.testing import vectors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    hostile.make_directories(root)
    return root


@pytest.fixture
def directories(made, tmp_path):
    """Sound directories, for each test its own."""
    return {d.name: shutil.copytree(d, tmp_path / d.name) for d in made.iterdir()}


def refusal(load, path, kind=FileError, megabytes=50):
    """What is said of a bad file."""
    with cheap(megabytes, seconds=20), pytest.raises(kind) as caught:
        load(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def changed(path, **fields):
    """Change some fields of a JSON file."""
    write_json(path, json.loads(path.read_text()) | fields)


def with_arrays(path, arrays):
    """Add arrays to a safetensors file, or replace those of the same name."""
    safetensors.write(path, safetensors.read(path) | arrays)


# Every hostile file in the place of a sound one, and some of the other cases that
# `python tests/helpers/hostile.py` tries

SAMPLES = {
    "edits": lambda root: hostile.edits(root, n=40, seed=1),
    "files": hostile.files,
    "native": lambda root: hostile.native(root, n=20, seed=1),
    "traces": lambda root: hostile.traces(root, n=30, seed=1),
    "vectors": lambda root: hostile.hostile_vectors(root, n=10, seed=1, every=29),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_hostile_files_are_loaded_or_refused(kind, tmp_path):
    outcomes = set()
    for case in SAMPLES[kind](tmp_path):
        verdict = judge(case)
        assert verdict.outcome != "fault", (case.name, verdict.error)
        outcomes.add(verdict.outcome)
    assert outcomes == {"loaded", "refused"}


def raising(error):
    def load(path):
        raise error

    return load


FAULTS = {
    "another library's": raising(KeyError("x.npz")),
    "two lines": raising(FileError("x.npz: a\nb")),
    "which file": raising(FileError("it is empty")),
    "which file, by the system": raising(OSError("disk")),
    "an escape": raising(FileError("x.npz: \x1b[2J")),
    "a warning": lambda path: np.float32(1e30) * np.float32(1e30),
    "no memory": raising(MemoryError("x.npz")),
    "a hang": lambda path: threading.Event().wait(9),
}


@pytest.mark.parametrize("load", FAULTS.values(), ids=FAULTS)
def test_judge_finds_faults(load, monkeypatch):
    monkeypatch.setattr(hostile, "SECONDS", 0.1)
    assert judge(Case("", load, Path("x.npz"), "x.npz")).outcome == "fault"


def test_judge_finds_files_that_are_wrongly_loaded_or_refused():
    bad, good = raising(FileError("x.npz: bad")), str
    for load, loads, outcome in [
        (bad, None, "refused"),
        (bad, False, "refused"),
        (bad, True, "fault"),
        (good, None, "loaded"),
        (good, False, "fault"),
        (good, True, "loaded"),
    ]:
        assert judge(Case("", load, Path("x.npz"), "x.npz", loads)).outcome == outcome


# What once hung, took gigabytes, ended in a traceback or was believed


@pytest.mark.parametrize(
    ("family", "field", "value", "told"),
    [
        ("BART", "encoder_layers", 10**9, "more layers"),
        ("BART", "decoder_layers", 2**31 - 1, "more layers"),
        ("BART", "vocab_size", 10**9, r"\(31, 6\).*\(1000000000, 6\)"),
        ("T5", "relative_attention_max_distance", 10**15, r"max_distance .*2\*\*31"),
        ("BART", "d_model", None, "d_model .*(int, got NoneType|an int)"),
        ("BART", "encoder_attention_heads", 0, "encoder_attention_heads"),
        ("T5", "num_heads", "2", "num_heads .*str"),
        ("M2M100", "pad_token_id", [], "pad_token_id .*list"),
        ("BART", "eos_token_id", [[2]], "eos_token_id .*list"),
        ("T5", "feed_forward_proj", {}, "feed_forward_proj .*dict"),
        ("BART", "scale_embedding", 1, "scale_embedding .*int"),
        ("BART", "activation_function", "\x1b[2J", r"activation_function .*'\\x1b"),
    ],
)
def test_bad_config_fields_raise(directories, family, field, value, told):
    (directories[family] / "generation_config.json").unlink()
    changed(directories[family] / "config.json", **{field: value})
    kind = UnsupportedFeature if field == "activation_function" else FileError
    assert re.search(told, refusal(rs.load, directories[family], kind))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "tokenizers"),
        ({"model": {"type": "BPE", "vocab": {"a": 10**9}, "merges": []}}, "'a' has id 1000000000"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}, "no tokens"),
    ],
)
def test_bad_tokenizers_raise(directories, content, told):
    pytest.importorskip("tokenizers")
    write_json(directories["BART"] / "tokenizer.json", content)
    assert re.search(f"tokenizer.json: .*{told}", refusal(rs.load, directories["BART"]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a":' * 10**5, "nested too deeply"),
        (b"[" + b"0," * 2**22 + b"0]", "4,194,304"),
        (b" " * 2**26 + b"{}", "67,108,864"),
    ],
    ids=["deep", "values", "long"],
)
def test_json_that_is_too_large_raises(directories, content, told):
    """`hostile.files` has it and other bad JSON in each file; here memory is measured."""
    (directories["T5"] / "config.json").write_bytes(content)
    found = refusal(rs.load, directories["T5"], megabytes=200)
    assert re.search(f"config.json: .*{told}", found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_that_are_not_finite_raise(directories, value, dtype):
    path = directories["BART"] / WEIGHTS
    arrays = {name: x.astype(dtype) for name, x in safetensors.read(path).items()}
    safetensors.write(path, arrays | {"final_logits_bias": np.full((1, 31), value, dtype)})
    assert f"{WEIGHTS}: final_logits_bias " in refusal(rs.load, directories["BART"])


def test_an_array_in_two_shards_raises(directories):
    for name in SHARDS:
        with_arrays(directories["M2M100"] / name, {"final_logits_bias": np.ones((1, 31), "f4")})
    told = refusal(rs.load, directories["M2M100"])
    assert f"{SHARDS[1]} contains final_logits_bias" in told


def test_two_names_of_one_array_raise(directories):
    """One of them that of a compiled module."""
    name = "_orig_mod.final_logits_bias"
    with_arrays(directories["BART"] / WEIGHTS, {name: np.ones((1, 31), "f4")})
    assert f"final_logits_bias and {name}" in refusal(rs.load, directories["BART"])
    with pytest.raises(ValueError, match=r"a and _orig_mod\.a"):
        from_huggingface({"a": np.ones(1), "_orig_mod.a": np.ones(1)}, hostile.CONFIGS["BART"])


def test_names_with_escapes_of_a_terminal_are_printed_with_backslashes(directories):
    with_arrays(directories["BART"] / WEIGHTS, {"a\x1b[2J\nb\u2028c": np.zeros(1)})
    assert r"a\x1b[2J b c" in refusal(rs.load, directories["BART"])


@pytest.mark.parametrize(
    "shape", [[0, 10**12], [10**12, 0], [2**23] * 40 + [0], [10**4000] * 200 + [0], [1] * 65]
)
def test_axes_longer_than_the_file_raise(tmp_path, shape):
    """A sum along the other axes of an empty array would be an array of this length."""
    n = 0 if 0 in shape else 4
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, n]}
    text = json.dumps({"x": entry}).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(n)
    (tmp_path / "x.safetensors").write_bytes(content)
    assert "x.safetensors: x of shape" in refusal(safetensors.read, tmp_path / "x.safetensors")
    if len(str(shape)) < 999:
        member = hostile.array_that_says("'<f4'", str(tuple(shape)), n)
        (tmp_path / "x.npz").write_bytes(packed({"x.npy": member}))
        assert "x.npz: x has" in refusal(rs.Trace.load, tmp_path / "x.npz")


def test_empty_arrays_of_modest_shapes_are_read(tmp_path):
    arrays = {"a": np.zeros((0, 4096), "float32"), "b": np.zeros((2, 0, 64)), "c": np.zeros(0)}
    safetensors.write(tmp_path / "x.safetensors", arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    for read in (safetensors.read(tmp_path / "x.safetensors"), rs.Trace.load(tmp_path / "x.npz")):
        shapes = {"a": (0, 4096), "b": (2, 0, 64), "c": (0,)}
        assert {name: x.shape for name, x in read.items()} == shapes


def test_a_compressed_trace_is_not_unpacked(tmp_path):
    """1.4 MB that once took 1.5 GB."""
    zeros = npy(np.zeros(2**27, "u1"))
    (tmp_path / "x.npz").write_bytes(packed({"x.npy": zeros}, zipfile.ZIP_DEFLATED))
    del zeros
    assert "x.npy" in refusal(rs.Trace.load, tmp_path / "x.npz")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_in_another_encoding_of_unicode_is_loaded(directories, encoding):
    path = directories["T5"] / "config.json"
    path.write_text(path.read_text(), encoding=encoding)
    assert rs.load(directories["T5"]).config.encoder.d_model == 6


# Vectors whose checksums are right


@pytest.fixture
def reference(tmp_path):
    """Vectors and a copy that is another program's."""
    (name,) = vectors.make(tmp_path / "ours", families=["t5"], cases=1)
    shutil.copytree(tmp_path / "ours" / name, tmp_path / "theirs" / name)
    return tmp_path / "ours", name


def check_refusal(root):
    """What `vectors.check` says of changed files with right checksums."""
    write_sums(root)
    return refusal(lambda _: vectors.check(root, root.with_name("theirs")), root)


@pytest.mark.parametrize(
    ("file", "name", "x"),
    [
        ("inputs", "source_mask", np.ones((3, 5))),
        ("inputs", "source_mask", np.ones((0, 5), bool)),
        ("inputs", "source_mask", np.array(True)),
        ("inputs", "source_mask", np.ones((1, 2**20), bool)),
        ("inputs", "prefix_lengths", np.array([np.nan, np.inf, 1])),
        ("inputs", "prefix_lengths", np.ones(0, int)),
        ("outputs", "lengths", np.ones((2**20, 1), int)),
        ("outputs", "lengths", np.array([0.5, 1, 2])),
        ("outputs", "tokens", np.zeros((1, 2**20), int)),
        ("forward", "encoder.embed", np.zeros((2**16, 1))),
        ("forward", "x", np.zeros(1)),
    ],
)
def test_vectors_that_do_not_belong_together_raise(reference, file, name, x):
    root, case = reference
    with_arrays(root / case / f"{file}.safetensors", {name: x})
    assert f"{root / case}: " in check_refusal(root)


@pytest.mark.parametrize("method", [None, 1, [], {}, "greedy"])
def test_a_case_without_its_method_raises(reference, method):
    root, case = reference
    changed(root / case / "case.json", method=method)
    assert f"{root / case}: " in check_refusal(root)


def test_integers_of_the_other_program_are_a_difference(reference, tmp_path):
    """Scores are minus infinity where a token is masked, which no integer is: no warning."""
    root, case = reference
    path = tmp_path / "theirs" / case / "generation.safetensors"
    theirs = safetensors.read(path)
    for dtype in ("int64", "bool", "float16"):
        safetensors.write(path, {x: np.zeros(y.shape, dtype) for x, y in theirs.items()})
        assert any(one.difference for one in vectors.check(root, tmp_path / "theirs"))


# A full disk


@contextmanager
def full_disk(n_bytes):
    """No file may have more bytes than these."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_page(path):
    with replacing(path) as file:
        file.write(b"<!doctype html>" * 999)


def save_trace(path):
    trace = rs.Trace()
    trace("logits", np.arange(999.0))
    trace.save(path)


WRITERS = {
    "Trace.save": save_trace,
    "a page": write_page,
    "save": lambda path: rs.save(rs.load("g2p"), path),
    "safetensors": lambda path: safetensors.write(path, {"x": np.arange(999.0)}),
}


@pytest.mark.parametrize("n_bytes", [0, 1, 4000])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_old_file(write, n_bytes, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with full_disk(n_bytes):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(path)
    assert len(path.read_bytes()) > 4000


@pytest.mark.parametrize("exists", [True, False])
def test_vectors_that_fail_midway_leave_nothing(tmp_path, exists):
    root = tmp_path / "vectors"
    if exists:
        root.mkdir()
    with full_disk(100_000):  # weights are written before, quantities have more bytes
        vectors.make(root, families=["t5"], cases=1)
    assert list(tmp_path.rglob("*")) == [root] * exists


# What is no file is written to, and not replaced


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_device_stays_a_device(write):
    before = os.stat("/dev/null")
    write("/dev/null")
    assert os.stat("/dev/null")[:3] == before[:3]


def test_a_pipe_is_written_to_by_any_of_its_names(tmp_path):
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_page(path)
    reader.join(timeout=10)
    assert read == [b"<!doctype html>" * 999]
    assert path.is_fifo()
    reading, writing = os.pipe()
    try:
        with replacing(f"/dev/fd/{writing}") as file:
            file.write(b"through")
        assert os.read(reading, 100) == b"through"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_link_to_itself_is_replaced(tmp_path):
    (tmp_path / "file").symlink_to(tmp_path / "file")
    write_page(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"<!doctype html>" * 999


# Bounds


@pytest.mark.parametrize(
    ("field", "most"), [("suppress_tokens", 2**19), ("eos_token_id", 99), ("bad_words_ids", 99)]
)
def test_a_list_of_ids_is_bounded(directories, field, most, monkeypatch):
    """At the bound itself and, quicker, at a lower one."""
    assert rs.config.MAX_LIST == 2**19
    monkeypatch.setattr(rs.config, "MAX_LIST", most)
    entry = [3] if field == "bad_words_ids" else 3
    changed(directories["BART"] / "generation_config.json", **{field: [entry] * (most + 1)})
    told = refusal(rs.load, directories["BART"], megabytes=200)
    assert f"{field} must have at most {most:,}" in told


@pytest.mark.parametrize("name", ["windows", "layers"])
def test_a_list_of_configs_is_bounded(name):
    """Otherwise those of a small file take minutes."""
    fields = arrangements.frames.to_dict()
    inside = fields["encoder"] if name == "windows" else fields["encoder"]["input"]
    inside[name] = inside[name][:1] * 2**18
    started = time.perf_counter()
    with pytest.raises(ValueError, match=rf"{name} must have at most 16,384 entries"):
        rs.ModelConfig.from_dict(fields)
    assert time.perf_counter() - started < 2


def test_layers_are_bounded_by_arrays_that_hold_nothing(directories):
    path = directories["BART"] / WEIGHTS
    with_arrays(path, {f"x{i}": np.zeros(0, "f4") for i in range(100)})
    n_layers = len(safetensors.read(path)) // 6 + 1
    changed(directories["BART"] / "config.json", encoder_layers=n_layers)
    assert "more layers" in refusal(rs.load, directories["BART"])


def test_entries_of_a_zip_are_bounded(tmp_path):
    path = tmp_path / "x.npz"
    one = packed({"x": b""})
    start, end = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    record, last = one[start:end] * (2**16 + 1), bytearray(one[end:])
    struct.pack_into("<L", last, 12, len(record))  # the size of all records
    path.write_bytes(one[:start] + record + last)
    with pytest.raises(FileError, match="65,536"):
        rs.Trace.load(path)


@pytest.mark.parametrize("shape", [(11, 0), (0, 0), (11, 1), (11, 7), (6,), (), (2, 2, 6)])
def test_sinusoids_of_another_shape_raise(directories, shape):
    name = "model.encoder.embed_positions.weight"
    with_arrays(directories["Marian"] / WEIGHTS, {name: np.zeros(shape, "f4")})
    told = refusal(rs.load, directories["Marian"])
    assert re.search(rf"{name} .*shape .*got {re.escape(str(shape))}", told)


def test_a_long_replacement_raises():
    with pytest.raises(ValueError, match="at most 100"):
        rs.Vocabulary(symbols=("a",), separator="", special=(), replacements=(("b", "a" * 101),))


# What writing keeps


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as file:
        file.write(b"new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)


def test_an_error_names_the_file_and_not_its_temporary_one(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(OSError, match="No space") as caught, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "missing" / "x"):
        pass
    assert caught.value.filename == str(tmp_path / "missing")
