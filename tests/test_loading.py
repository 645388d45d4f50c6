"""Loading: each number is read once, little memory is taken, and nothing is left of the file."""

import io
import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
from bad_files import cheap
from benchmarks import loading

pytest.importorskip("resource", reason="the limits of hostile files are those of Unix")

import hostile
from hostile import SHARDS, WEIGHTS

import refseq2seq as rs
from refseq2seq import backend
from refseq2seq.cli import progress
from refseq2seq.files import FileError, checkpoint, safetensors
from refseq2seq.params import named_arrays
from refseq2seq.watching.notebook import model_rows


@pytest.fixture
def directories(tmp_path):
    return hostile.make_directories(tmp_path)


SMALL = (59, 1, 61, 67)  # d_model, layers, d_ff, vocabulary


@pytest.fixture
def bart(tmp_path):
    directory = tmp_path / "bart"
    directory.mkdir()
    loading.make(directory, *SMALL)
    return directory


def data_bytes(path):
    with path.open("rb") as file:
        return path.stat().st_size - 8 - struct.unpack("<Q", file.read(8))[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (256, 256), (257, 511), (0, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_copy_in_tiles_is_a_copy(shape, dtype):
    x = (np.arange(np.prod(shape)) % 2039).reshape(shape).astype(dtype)
    for given in (x, x.T):
        copy = backend.c_ordered(given)
        assert (copy.dtype, copy.shape) == (given.dtype, given.shape)
        assert copy.flags.c_contiguous
        assert np.array_equal(copy, given)
        assert not np.shares_memory(copy, given)


def test_each_number_is_read_once(directories, tmp_path):
    for name in ("BART", "T5", "M2M100"):
        files = [directories[name] / file for file in (SHARDS if name == "M2M100" else [WEIGHTS])]
        read = []
        rs.load(directories[name], advance=read.append)
        assert sum(read) == sum(map(data_bytes, files)), name
    model = rs.load(directories["M2M100"])
    model = replace(model, source_vocabulary=None, target_vocabulary=None)
    rs.save(model, tmp_path / "model.npz", stored_dtype="float16")
    read = []
    rs.load(tmp_path / "model.npz", advance=read.append)
    assert sum(read) == 2 * rs.params.count_parameters(model.config)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_matrices_wider_than_a_tile(bart, dtype):
    """They are transposed piece by piece, and widened."""
    loading.make(bart, 260, 1, 521, 67)
    path = bart / WEIGHTS
    arrays = safetensors.read(path)
    if dtype == "BF16":
        halves = {name: (x.view("<u4") >> 16).astype("<u2") for name, x in arrays.items()}
        safetensors.write(path, {name: x.view("<f2") for name, x in halves.items()})
        call_them_bfloat16(path)
        arrays = {name: (x.astype("<u4") << 16).view("<f4") for name, x in halves.items()}
    elif dtype == "F16":
        safetensors.write(path, {name: x.astype("float16") for name, x in arrays.items()})
        arrays = {name: x.astype("float16").astype("float32") for name, x in arrays.items()}
    model, read = rs.load(bart), []
    layer = model.params.decoder.layers[0]
    assert np.array_equal(layer.feed_forward.w_in, arrays["model.decoder.layers.0.fc1.weight"].T)
    assert np.array_equal(
        layer.cross_attention.w_o, arrays["model.decoder.layers.0.encoder_attn.out_proj.weight"].T
    )
    assert np.array_equal(model.params.encoder.embedding, arrays["model.shared.weight"])
    for name, x in named_arrays(model.params):
        assert x.dtype == "float32", name
        assert x.flags.writeable, name
        assert x.flags.c_contiguous or name.endswith("coder.embedding"), name
    rs.load(bart, advance=read.append)
    assert sum(read) == data_bytes(path)


def call_them_bfloat16(path):
    (n,), content = struct.unpack("<Q", path.read_bytes()[:8]), path.read_bytes()[8:]
    header = content[:n].replace(b'"F16"', b'"BF16"')
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[n:])


@pytest.mark.parametrize("change", ["zeros", "cut off", "deleted"])
def test_a_model_does_not_depend_on_its_file(bart, change):
    model, path = rs.load(bart), bart / WEIGHTS
    before = rs.forward(model, [[3, 5]], [[7, 11, 13]])
    if change == "zeros":
        with path.open("r+b") as file:  # the same file, and not another of its name
            file.write(bytes(path.stat().st_size))
    elif change == "cut off":
        with path.open("r+b") as file:
            file.truncate(100)
    else:
        path.unlink()
    assert np.array_equal(rs.forward(model, [[3, 5]], [[7, 11, 13]]), before)


def test_a_file_that_is_cut_off_while_it_is_read_raises(bart):
    def cut(n):
        with (bart / WEIGHTS).open("r+b") as file:
            file.truncate(10_000)

    with pytest.raises(FileError, match=f"{WEIGHTS}: it ends"):
        rs.load(bart, advance=cut)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_command_line_shows_the_progress_of_a_large_file(bart, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress.load(bart)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(progress, "LARGE", 1000)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    progress.load(bart)
    read, total = f"{data_bytes(bart / WEIGHTS):,}", f"{(bart / WEIGHTS).stat().st_size:,}"
    assert sys.stderr.getvalue().splitlines()[-1] == f"{read} of {total} B done"


# The outline, for `refseq2seq info`


def test_the_outline_has_all_of_a_model_but_its_numbers(directories, tmp_path):
    rs.save(rs.load("g2p"), tmp_path / "g2p.npz", stored_dtype="float16")
    for path in ("g2p", tmp_path / "g2p.npz", *directories.values()):
        outline, model = checkpoint.load_outline(path), rs.load(path)
        assert model_rows(outline) == model_rows(model)
        assert outline.config == model.config
        assert sum(x.strides != (0,) * x.ndim for _, x in named_arrays(outline.params)) == 0


def test_the_outline_of_a_huge_file_takes_no_time_and_memory(bart):
    """A file of 2.4 GB, almost all of it a hole."""
    n_positions, entries, end = 5_000_000, {}, 0
    fields = json.loads((bart / "config.json").read_text())
    fields["max_position_embeddings"] = n_positions - 2
    (bart / "config.json").write_text(json.dumps(fields))
    for name, x in safetensors.read(bart / WEIGHTS).items():
        shape = [n_positions, x.shape[1]] if "embed_positions" in name else list(x.shape)
        begin, end = end, end + 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    with (bart / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    with cheap(megabytes=5):
        outline = checkpoint.load_outline(bart)
    assert outline.params.encoder.positions.shape[0] == n_positions


@pytest.mark.parametrize("equal", [True, False])
def test_the_outline_says_whether_two_tables_are_equal(bart, equal):
    path = bart / WEIGHTS
    arrays = safetensors.read(path)
    table = arrays["model.shared.weight"].copy()
    table[-1, -1] += 0 if equal else 1
    safetensors.write(path, arrays | {"lm_head.weight": table})
    for model in (checkpoint.load_outline(bart), rs.load(bart)):
        assert model.config.tied_logits == equal


@pytest.mark.parametrize("field", ["d_model", "vocab_size", "encoder_ffn_dim"])
def test_the_outline_finds_a_wrong_shape(bart, field):
    fields = json.loads((bart / "config.json").read_text())
    fields |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    (bart / "config.json").write_text(json.dumps(fields | {field: fields[field] + 1}))
    said = []
    for load in (rs.load, checkpoint.load_outline):
        with pytest.raises(FileError, match="has shape") as caught:
            load(bart)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_memory_of_loading(bart):
    loading.make(bart, 512, 4, 2048, 10007)
    megabytes = (bart / WEIGHTS).stat().st_size / 1e6
    assert megabytes > 100
    _, taken = loading.measured("refseq2seq", bart)
    assert taken < 1.25 * megabytes
    _, taken = loading.measured("outline", bart)
    assert taken < 0.1 * megabytes
