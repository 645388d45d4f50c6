"""The native format: what was saved comes back bit for bit, and nothing else comes back."""

import dataclasses
import io
import json
import os
import pickle
import random
import re
import struct
import sys
import threading
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import arrangements
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.params import map_arrays, named_arrays, param_shapes
from refseq2seq.testing import strategies

HEADER = "checkpoint.json"
DTYPES = ("float16", "float32", "float64")


def small_model():
    """Of few and prime sizes, an array of each kind: 14 kB."""
    config = rs.presets.x_transformers(
        d_model=3,
        source_vocab_size=5,
        target_vocab_size=7,
        n_source_positions=11,
        n_target_positions=2,
        encoder_layers=1,
        decoder_layers=1,
        n_heads=2,
        d_k=2,
        decoder_start_id=1,
        eos_ids=(2, 3),
        pad_id=0,
    )
    source = rs.Vocabulary(
        symbols=("<pad>", "a", "b", "é", "\N{PILE OF POO}"),
        separator="",
        special=("<pad>",),
        replacements=(("A", "a"), ("2", "ab")),
    )
    target = rs.Vocabulary(
        symbols=("<pad>", "<s>", "</s>", "AH", "B", "K", ""),
        separator=" ",
        special=("<pad>", "<s>", "</s>"),
        replacements=(),
    )
    model = rs.Model.random(config, seed=1)
    return dataclasses.replace(model, source_vocabulary=source, target_vocabulary=target)


def tiny_model():
    """As few arrays as a model can have: 8 kB, so that a test can try every byte."""

    def bare(stack):
        no_norm = dataclasses.replace(stack.norm, gain="none", bias=False)
        feed_forward = dataclasses.replace(stack.feed_forward, d_ff=2, biases=())
        return dataclasses.replace(stack, norm=no_norm, positions=None, feed_forward=feed_forward)

    config = dataclasses.replace(
        MODEL.config,
        encoder=bare(MODEL.config.encoder),
        decoder=bare(MODEL.config.decoder),
        tied_logits=True,
    )
    params = rs.random_params(config, seed=2)
    return dataclasses.replace(MODEL, config=config, params=params)


MODEL = small_model()
TINY = tiny_model()


def filled(model, values):
    """The model with the values, again and again, in the place of all its parameters."""
    return dataclasses.replace(
        model, params=map_arrays(model.config, model.params, lambda x: np.resize(values, x.shape))
    )


def bits(model):
    """Everything a model is, in a form in which equal means equal bit for bit."""
    arrays = {n: (x.dtype.str, x.shape, x.tobytes()) for n, x in named_arrays(model.params)}
    return model.config, model.source_vocabulary, model.target_vocabulary, arrays


def saved(model, path, **options):
    rs.save(model, path, **options)
    return path.read_bytes()


def entries(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members, compression=zipfile.ZIP_STORED):
    """A zip file with right checksums, written without the package."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_header(content, change):
    """The checkpoint after ``change`` has worked on its parsed header."""
    members = entries(content)
    header = json.loads(members[HEADER])
    change(header)
    return packed(members | {HEADER: json.dumps(header).encode()})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One file for all examples of a test."""
    return tmp_path_factory.mktemp("checkpoint") / "model.npz"


@pytest.fixture(scope="module")
def content(path):
    return saved(MODEL, path)


@pytest.fixture(scope="module")
def tiny(path):
    return saved(TINY, path)


def refusal(path, content):
    """What `load` says of a bad file."""
    path.write_bytes(content)
    with pytest.raises(rs.CheckpointError) as caught:
        rs.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(str(path)) + 10 < len(message) < len(str(path)) + 1000
    return message


def refused_or(path, content, model):
    """True if `load` refuses the file; else what it gives must be ``model``, bit for bit."""
    path.write_bytes(content)
    try:
        loaded = rs.load(path)
    except rs.CheckpointError:
        return True
    assert bits(loaded) == bits(model)
    return False


@contextmanager
def cheap(megabytes, seconds=2.0):
    """Fails if what is inside allocates more than this, or computes longer."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert time.process_time() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


# What was saved comes back


@given(model=st.sampled_from(DTYPES).flatmap(lambda dtype: strategies.models(dtype=dtype)))
def test_round_trip_of_any_model(path, model):
    rs.save(model, path)
    assert bits(rs.load(path)) == bits(model)


@given(st.data())
def test_round_trip_of_any_finite_value(path, data):
    """Signed zeros, subnormals and the greatest numbers too."""
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=8 * dtype.itemsize)
    model = filled(TINY, np.array(data.draw(st.lists(finite, min_size=1)), dtype=dtype))
    rs.save(model, path)
    assert bits(rs.load(path)) == bits(model)


def test_loaded_arrays_can_be_written_and_tied_ones_are_shared(path):
    config = rs.presets.vaswani(
        d_model=6,
        vocab_size=7,
        n_layers=1,
        n_heads=2,
        d_ff=5,
        decoder_start_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    rs.save(rs.Model.random(config, seed=3), path)
    loaded = rs.load(path)
    loaded.params.decoder.embedding[2, 3] = 11
    assert loaded.params.encoder.embedding[2, 3] == 11
    assert loaded.params.unembedding[3, 2] == 11
    assert "unembedding.npy" not in entries(path.read_bytes())


def test_vocabularies_are_kept(path):
    rs.save(MODEL, path)
    loaded = rs.load(path)
    assert loaded.source_vocabulary.encode("Aé2") == [1, 3, 1, 2]
    assert loaded.target_vocabulary.decode([1, 3, 4, 2]) == "AH B"
    rs.save(dataclasses.replace(MODEL, source_vocabulary=None, target_vocabulary=None), path)
    assert rs.load(path).source_vocabulary is None
    assert rs.load(path).target_vocabulary is None


def test_the_same_model_gives_the_same_bytes(path, monkeypatch):
    first = saved(MODEL, path)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert saved(MODEL, path.with_name("other name.npz")) == first
    assert saved(rs.load(path), path) == first


def test_numpy_and_json_read_the_file(path):
    rs.save(MODEL, path)
    with np.load(path) as file:
        header = json.loads(file[HEADER])
        arrays = {name: file[name] for name in file.files if name != HEADER}
    assert arrays.keys() == param_shapes(MODEL.config).keys()
    for name, array in arrays.items():
        expected = dict(named_arrays(MODEL.params))[name]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected, strict=True)
    assert header == {
        "format": "refseq2seq",
        "version": 2,
        "dtype": "float32",
        "config": MODEL.config.to_dict(),
        "source_vocabulary": MODEL.source_vocabulary.to_dict(),
        "target_vocabulary": MODEL.target_vocabulary.to_dict(),
    }


def test_a_file_written_by_others_is_read(path):
    """By numpy.save and zipfile, in another order, with today's date and other spacing."""
    header = {
        "target_vocabulary": None,
        "source_vocabulary": None,
        "config": MODEL.config.to_dict(),
        "dtype": "float64",
        "version": 2,
        "format": "refseq2seq",
    }
    arrays = dict(named_arrays(MODEL.astype("float64").params))
    members = {f"{name}.npy": npy(arrays[name]) for name in reversed(param_shapes(MODEL.config))}
    path.write_bytes(packed(members | {HEADER: json.dumps(header).encode()}))
    expected = dataclasses.replace(MODEL, source_vocabulary=None, target_vocabulary=None)
    assert bits(rs.load(path)) == bits(expected.astype("float64"))


def test_a_file_of_version_1_is_read():
    """Written by release 0.1, whose own numbers these are; it named learned pairs memory."""
    model = rs.load(Path(__file__).with_name("checkpoints") / "version-1.npz")
    assert model.config == arrangements.rich
    source, model = [model.source_vocabulary.encode("Abc")], model.astype("float64").exact()
    out = rs.generate(model, source, max_new_tokens=5)
    assert out.tokens.tolist() == [[20, 20, 20, 13, 20]]
    log_probs = [-2.1538643741945824, -2.3462961070018924, -2.2976163680992703]
    np.testing.assert_allclose(out.log_probs[0, :3], log_probs, rtol=1e-13)


def test_a_file_of_version_1_with_names_of_version_2_is_refused(path):
    version_1 = Path(__file__).with_name("checkpoints").joinpath("version-1.npz").read_bytes()

    def rename(header):
        for side in ("encoder", "decoder"):
            stack = header["config"][side]
            stack["n_register_tokens"] = stack.pop("n_memory_tokens")

    said = refusal(path, with_header(version_1, rename))
    assert "it has version 1, which does not have 'n_register_tokens'" in said


@pytest.mark.parametrize(("stored", "code"), [("float16", "<e"), ("float32", "<f")])
@given(values=st.lists(st.floats(-65504, 65504), min_size=1))
def test_a_narrower_stored_dtype_rounds_once(path, stored, code, values):
    """Python's struct rounds to nearest, ties to even: the other implementation here."""
    model = filled(TINY, np.array(values))
    rs.save(model, path, stored_dtype=stored)
    rounded = [struct.unpack(code, struct.pack(code, value))[0] for value in values]
    assert bits(rs.load(path)) == bits(filled(TINY, np.array(rounded)))


def test_a_wider_stored_dtype_changes_nothing(path):
    rs.save(MODEL, path, stored_dtype="float64")
    assert bits(rs.load(path)) == bits(MODEL)


def test_an_array_longer_than_a_plain_zip_can_hold(path, monkeypatch):
    """Beyond 2 GiB an entry needs zip64; here, beyond 100 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    rs.save(MODEL, path)
    assert bits(rs.load(path)) == bits(MODEL)


def test_stored_dtype_is_what_the_file_holds(path):
    sizes = [len(saved(MODEL, path, stored_dtype=dtype)) for dtype in DTYPES]
    n = sum(np.prod(shape, dtype=int) for shape in param_shapes(MODEL.config).values())
    assert [sizes[1] - sizes[0], sizes[2] - sizes[1]] == [2 * n, 4 * n]


# What cannot be saved


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_parameter_that_is_not_finite_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"decoder\.embedding is not finite as float32"):
        rs.save(filled(TINY, np.array([0, value], dtype="float32")), tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_beyond_the_stored_dtype_is_refused(tmp_path):
    """float16 ends at 65504; from 65520 on, the nearest is infinity."""
    path = tmp_path / "model.npz"
    rs.save(filled(TINY, np.array([65519.0])), path, stored_dtype="float16")
    before = path.read_bytes()
    with np.errstate(all="raise"), pytest.raises(ValueError, match="is not finite as float16"):
        rs.save(filled(TINY, np.array([65520.0])), path, stored_dtype="float16")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("dtype", ["int8", "complex64", "S4"])
def test_other_stored_dtypes_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=f"stored_dtype must be one of .*{dtype}"):
        rs.save(TINY, tmp_path / "model.npz", stored_dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_do_not_fit_the_config_are_refused(tmp_path):
    def changed(**changes):
        return dataclasses.replace(MODEL, params=dataclasses.replace(MODEL.params, **changes))

    path = tmp_path / "model.npz"
    with pytest.raises(ValueError, match=r"unembedding must have shape \(3, 7\) .* got \(7, 3\)"):
        rs.save(changed(unembedding=MODEL.params.unembedding.T), path)
    with pytest.raises(ValueError, match=r"params has logits_bias, of shape \(7,\)"):
        rs.save(changed(logits_bias=np.ones(7, dtype="float32")), path)
    with pytest.raises(ValueError, match=r"params lacks encoder.final_norm.gain, of shape \(3,\)"):
        rs.save(changed(encoder=dataclasses.replace(MODEL.params.encoder, final_norm=None)), path)
    with pytest.raises(ValueError, match=r"one dtype, got \['float32', 'float64'\]"):
        rs.save(changed(unembedding=MODEL.params.unembedding.astype("float64")), path)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_does_not_fit_the_config_is_refused(tmp_path):
    swapped = dataclasses.replace(TINY, source_vocabulary=TINY.target_vocabulary)
    with pytest.raises(ValueError, match="source vocabulary has 7 symbols, the config 5"):
        rs.save(swapped, tmp_path / "model.npz")
    nothing = dataclasses.replace(TINY.source_vocabulary, symbols=(), special=())
    with pytest.raises(ValueError, match="source vocabulary has 0 symbols, the config 5"):
        rs.save(dataclasses.replace(TINY, source_vocabulary=nothing), tmp_path / "model.npz")
    with pytest.raises(TypeError, match="source tokenizer is a object"):
        rs.save(dataclasses.replace(TINY, source_vocabulary=object()), tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


# Whole or not at all


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("n_written", [0, 3])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, error, n_written):
    path = tmp_path / "model.npz"
    before = saved(TINY, path)
    write, count = np.lib.format.write_array, iter(range(100))

    def failing(file, array, **options):
        if next(count) == n_written:
            raise error
        write(file, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", failing)
    with pytest.raises(error):
        rs.save(MODEL, path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    assert path.read_bytes() == before


def test_a_directory_is_not_replaced(tmp_path):
    target = tmp_path / "model.npz"
    target.mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's business
        rs.save(TINY, target)
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == []


def test_no_directory_is_made_up(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rs.save(TINY, tmp_path / "nowhere" / "model.npz")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    old = os.umask(umask)
    try:
        rs.save(TINY, tmp_path / "model.npz")
    finally:
        os.umask(old)
    assert (tmp_path / "model.npz").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "model.npz", tmp_path / "store" / "model.npz"
    link.symlink_to(target)
    rs.save(TINY, link)
    assert link.is_symlink()
    assert bits(rs.load(target)) == bits(TINY)


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("m" * 251 + ".npz")
    rs.save(TINY, path)
    assert bits(rs.load(path)) == bits(TINY)


def test_concurrent_writers_and_readers_see_whole_files(tmp_path):
    path, models = tmp_path / "model.npz", [filled(TINY, np.float32([i])) for i in range(4)]
    rs.save(models[0], path)
    expected, failures = [bits(model) for model in models], []

    def write(model):
        try:
            for _ in range(5):
                rs.save(model, path)
                assert bits(rs.load(path)) in expected
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


# Paths


def test_what_is_no_path_to_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        rs.load(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match=r"save_pretrained.*config\.json"):
        rs.load(tmp_path)
    for path in (3, None, b"model.npz"):
        with pytest.raises(TypeError, match=f"path must be a str .* {type(path).__name__}"):
            rs.load(path)
    with pytest.raises(ValueError, match="path is empty: give"):
        rs.load("")


@pytest.mark.parametrize("name", ["t5", "G2P", "google/mt5-small"])
def test_a_name_that_is_not_known(name):
    """The command line prints the two parts of the error."""
    with pytest.raises(FileNotFoundError, match=r"No such file.*'g2p'.*give the path") as caught:
        rs.load(name)
    assert caught.value.filename == name


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("model.safetensors", "directory that contains it and its config.json"),
        *(
            (f"model{suffix}", "Pickles .* refseq2seq.convert")
            for suffix in (".bin", ".pt", ".PTH")
        ),
        ("model.ckpt", "Pickles .* refseq2seq.convert"),
    ],
)
@pytest.mark.parametrize("content", [b"\x80\x02", packed({"model/data.pkl": b""})])
def test_a_file_of_another_program(tmp_path, name, cure, content):
    assert re.search(cure, refusal(tmp_path / name, content))


def test_a_checkpoint_may_have_the_name_of_any_file(tmp_path):
    for name in ("model.bin", "model.safetensors", "g2p"):
        rs.save(TINY, tmp_path / name)
        assert bits(rs.load(tmp_path / name)) == bits(TINY)


def test_a_path_may_be_a_string(tmp_path):
    rs.save(TINY, str(tmp_path / "model.npz"))
    assert bits(rs.load(str(tmp_path / "model.npz"))) == bits(TINY)


# Damage: refused, or without effect


def test_flipped_bits_all_over(path, tiny):
    """What may be flipped without effect is dates, versions, and what the zip says twice."""
    n_unnoticed, places = 0, range(0, len(tiny), 11)  # 11: each bit of a byte has its turn
    for i in places:
        flipped = bytes([tiny[i] ^ (1 << i % 8)])
        n_unnoticed += not refused_or(path, tiny[:i] + flipped + tiny[i + 1 :], TINY)
    assert n_unnoticed < 70 * len(entries(tiny)) / 11


@settings(max_examples=200)
@given(data=st.data())
def test_a_few_changed_bytes_anywhere(path, content, data):
    changed = bytearray(content)
    places = st.integers(0, len(content) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1)):
        changed[place] = byte
    refused_or(path, bytes(changed), MODEL)


def test_every_cut_tail(path, tiny):
    for length in [*range(0, len(tiny), 19), *range(len(tiny) - 100, len(tiny))]:
        refusal(path, tiny[:length])


@given(tail=st.binary(min_size=1), before=st.booleans())
def test_added_bytes(path, tiny, tail, before):
    refused_or(path, tail + tiny if before else tiny + tail, TINY)


@pytest.mark.parametrize("n", [1, 22, 65535, 65536, 10**6])
def test_an_appended_tail_of_zeros(path, tiny, n):
    refused_or(path, tiny + bytes(n), TINY)


def test_random_mutations(path, tiny):
    """Bytes set to telling values, cut out, doubled, moved, overwritten by other parts."""
    rng = random.Random(7)
    telling = [b"", b"\0", b"\xff", b"\xff\xff", bytes(4), b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"]
    telling += [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\x80", b"\x93NUMPY", b"|O"]
    records = [m.start() for m in re.finditer(b"PK[\1\3\5]", tiny)]

    def place():
        return min(rng.choice(records) + rng.randrange(50), rng.randrange(len(tiny)))

    for _ in range(1000):
        mutant = bytearray(tiny)
        for _ in range(rng.choice([1, 1, 2, 4])):
            i, j, n = place(), place(), rng.randrange(1, 60)
            part = rng.choice([rng.choice(telling), mutant[j : j + n], rng.randbytes(n)])
            mutant[i : i + rng.choice([0, n, len(part), len(part)])] = part
        refused_or(path, bytes(mutant), TINY)


CENTRAL_FIELDS = {  # place in a record of the central directory, and size
    "extract version": (6, 2),
    "flags": (8, 2),
    "method": (10, 2),
    "checksum": (16, 4),
    "compressed size": (20, 4),
    "size": (24, 4),
    "name length": (28, 2),
    "extra length": (30, 2),
    "comment length": (32, 2),
    "offset": (42, 4),
}


@pytest.mark.parametrize("field", CENTRAL_FIELDS)
def test_lies_in_the_central_directory(path, content, field):
    start, size = CENTRAL_FIELDS[field]
    values = [0, 1, 2, 8, 2**11, 2**15, 2**16 - 1, len(content), 2**31 - 1, 2**31, 2**32 - 1]
    with cheap(megabytes=2):
        for record in list(re.finditer(b"PK\1\2", content))[:3]:
            at = record.start() + start
            for value in values:
                lie = (value % 2 ** (8 * size)).to_bytes(size, "little")
                refused_or(path, content[:at] + lie + content[at + size :], MODEL)


@pytest.mark.parametrize("field", ["size_cd", "offset_cd"])
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1])
def test_lies_in_the_end_records(path, tiny, field, value):
    """Of a zip64 file, whose numbers have 64 bits."""
    end, size = len(tiny) - 22, len(tiny)
    size_cd, offset_cd = struct.unpack("<LL", tiny[end + 12 : end + 20])
    fields = {"size_cd": size_cd, "offset_cd": offset_cd}
    record = {"n": tiny.count(b"PK\1\2"), **fields, field: value}
    n, size_cd, offset_cd = record["n"], record["size_cd"], record["offset_cd"]
    zip64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, n, n, size_cd, offset_cd)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    with cheap(megabytes=2):
        assert not refused_or(path, tiny, TINY)
        refused_or(path, tiny[:end] + zip64 + locator + tiny[end:], TINY)
    assert size == len(tiny)


def test_a_name_that_is_not_utf8(path, tiny):
    at = tiny.index(b"PK\1\2")
    flags = struct.pack("<H", 2**11)
    lie = tiny[: at + 8] + flags + tiny[at + 10 : at + 46] + b"\xff" + tiny[at + 47 :]
    assert "not a complete zip" in refusal(path, lie)


# Foreign files


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"PK", b"Once upon a time\n" * 99, b"\x89PNG\r\n", npy(np.ones(3)), b"PK\5\6"],
    ids=["empty", "zero", "PK", "text", "png", "npy", "end"],
)
def test_a_file_that_is_no_zip(path, content):
    assert "not a complete zip file" in refusal(path, content)


def test_another_zip_file(path):
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    assert "not a refseq2seq checkpoint" in refusal(path, file.getvalue())
    assert "not a refseq2seq checkpoint" in refusal(path, packed({}))
    assert "must contain a JSON object, got list" in refusal(path, packed({HEADER: b"[1]"}))


# Hostile headers


def nodes(tree, place=()):
    """Every place in nested dictionaries, and the first of each list."""
    yield place
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree[:1])):
            yield from nodes(tree[key], (*place, key))


WRONG = [None, True, -1, 10**30, 1.5, float("nan"), "x", [], [[]], {}, {"type": []}]


def test_every_value_of_the_header_replaced_by_others(path, tiny):
    """What is not refused is a model of exactly the config that stands in the file."""
    members = entries(tiny)
    header = json.loads(members[HEADER])
    n_accepted = 0
    for *parents, last in filter(None, nodes(header)):
        if parents[:2] == ["config", "decoder"]:
            continue  # its fields are the encoder's
        inside = header
        for key in parents:
            inside = inside[key]
        before = inside[last]
        for value in WRONG:
            inside[last] = value
            path.write_bytes(packed(members | {HEADER: json.dumps(header).encode()}))
            try:
                loaded = rs.load(path)
            except rs.CheckpointError:
                continue
            n_accepted += 1
            assert json.dumps(loaded.config.to_dict()) == json.dumps(header["config"])
            assert loaded.dtype == header["dtype"]
            assert (loaded.source_vocabulary is None) == (header["source_vocabulary"] is None)
        inside[last] = before
    assert n_accepted < 60


def test_every_key_of_the_header_left_out(path, tiny):
    for *parents, last in filter(None, nodes(json.loads(entries(tiny)[HEADER]))):
        if isinstance(last, str):

            def leave_out(header, parents=parents, last=last):
                for key in parents:
                    header = header[key]
                del header[last]

            assert "must have" in (message := refusal(path, with_header(tiny, leave_out))) or (
                "lacks" in message or "not that of" in message or "version None" in message
            )


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], "other", "is not that of a refseq2seq checkpoint"),
        (["version"], 3, "has version 3; this package reads 1 to 2"),
        (["version"], "1", "has version '1'"),
        (["dtype"], "int8", "dtype must be one of .* got 'int8'"),
        (["dtype"], ["float32"], "dtype must be one of"),
        (["more"], 1, "must have the entries"),
        (["config"], None, "config"),
        (["config"], "x", "config"),
        (["config"], [], "config"),
        (["config", "more"], 1, r"unknown fields \['more'\]"),
        (["config", "pad_id"], 7, "pad_id must be in the decoder's vocabulary, 0 to 6, got 7"),
        (["config", "pad_id"], {}, "pad_id must be an int, got dict"),
        (["config", "eos_ids"], {}, "eos_ids must be a tuple, got dict"),
        (["config", "eos_ids"], [[2]], "eos_ids must be an int, got list"),
        (["config", "encoder"], None, "encoder must be StackConfig, got NoneType"),
        (["config", "encoder", "n_layers"], 10**9, "more layers than the file has arrays"),
        (["config", "decoder", "n_layers"], 2**31 - 1, "more layers than the file has arrays"),
        (["config", "decoder", "n_layers"], 10**30, r"n_layers must not be 2\*\*31 or more"),
        (["config", "encoder", "vocab_size"], 10**9, "encoder.embedding must have shape"),
        (["config", "encoder", "vocab_size"], 10**30, "config"),
        (["config", "decoder", "d_model"], 10**9, "must have shape"),
        (["config", "encoder", "norm"], {}, r"norm lacks the fields \['bias', 'eps'"),
        (["config", "encoder", "norm", "eps"], 1, "eps must be a Python float, got int"),
        (["config", "encoder", "norm", "kind"], "batch_norm", "kind must be one of"),
        (["config", "encoder", "norm", "kind"], {}, "kind must be one of"),
        (["config", "encoder", "positions"], {"type": "absolute"}, "type must be one of"),
        (["config", "encoder", "positions"], {"type": []}, "type must be one of"),
        (["config", "encoder", "relative_positions"], {"type": "alibi", "slopes": []}, "slopes"),
        (["source_vocabulary"], "x", "source_vocabulary"),
        (["source_vocabulary", "symbols"], ["<pad>"], "vocabulary has 1 symbols, its config 5"),
        (["source_vocabulary", "symbols"], ["a", "b", "a", "c", "d"], "must all be different"),
        (["source_vocabulary", "symbols"], [1, 2, 3, 4, 5], "symbols must be str, got int"),
        (["source_vocabulary", "special"], ["b", "x"], r"special must be among the symbols"),
        (["source_vocabulary", "replacements"], [["a"]], "replacements must be pairs"),
        (["target_vocabulary", "separator"], None, "separator must be str, got NoneType"),
    ],
)
def test_a_header_that_does_not_hold(path, tiny, keys, value, message):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    with cheap(megabytes=2):
        assert re.search(message, refusal(path, with_header(tiny, change)))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\xff\xfe\0",
        b"\x80",
        b"[" * 10**5,
        b'{"":' * 10**5,
        b"9" * 10**5,
        b"null",
        b'""',
    ],
    ids=["empty", "cut", "utf-16", "bytes", "lists", "objects", "digits", "null", "string"],
)
def test_a_header_that_is_no_json_object(path, tiny, header):
    with cheap(megabytes=20):
        assert HEADER in refusal(path, packed(entries(tiny) | {HEADER: header}))


def test_a_deeply_nested_value_in_the_config(path, tiny):
    nested = b"[" * 900 + b"]" * 900
    header = entries(tiny)[HEADER].replace(b'"layer_norm"', nested, 1)
    refusal(path, packed(entries(tiny) | {HEADER: header}))


def test_a_vocabulary_is_checked_in_linear_time(path, tiny):
    def change(header):
        symbols = [str(i) for i in range(20_000)]
        header["source_vocabulary"] |= {"symbols": symbols, "special": symbols[::-1]}

    with cheap(megabytes=100):
        assert "has 20000 symbols" in refusal(path, with_header(tiny, change))


# Hostile arrays


def test_missing_extra_and_repeated_arrays(path, tiny):
    members = entries(tiny)
    name = "encoder.embedding.npy"
    rest = {n: x for n, x in members.items() if n != name}
    assert f"lacks {name}" in refusal(path, packed(rest))
    assert "config does not have: more.npy" in refusal(path, packed(members | {"more.npy": b""}))
    assert "config does not have: up/" in refusal(path, packed(members | {"up/": b""}))
    for old in (name, HEADER):  # the same name twice, once with other content
        other = "x" * len(old)
        twice = packed(members | {other: members[old]}).replace(other.encode(), old.encode())
        assert "the same name" in refusal(path, twice)
    headless = {n: x for n, x in members.items() if n != HEADER}
    assert f"has no {HEADER}" in refusal(path, packed(headless))
    many = {f"more.{i}.npy": b"" for i in range(300)}
    assert "and 295 more" in refusal(path, packed(members | many))


ARRAY = np.arange(15, dtype="float32").reshape(5, 3)  # the encoder's embedding


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(ARRAY.T.copy()), r"must have shape \(5, 3\), got \(3, 5\)"),
        (npy(ARRAY.ravel()), r"must have shape \(5, 3\), got \(15,\)"),
        (npy(ARRAY[None]), r"must have shape \(5, 3\), got \(1, 5, 3\)"),
        (npy(np.float32(1)), r"must have shape \(5, 3\), got \(\)"),
        (npy(np.asfortranarray(ARRAY)), "must be little-endian float in C order"),
        (npy(ARRAY.astype(">f4")), "must be little-endian float in C order, got >f4"),
        (npy(ARRAY.astype("int32")), "must be little-endian float in C order, got <i4"),
        (npy(ARRAY.astype(bool)), r"must be little-endian float in C order, got \|b1"),
        (npy(ARRAY.astype(complex)), "must be little-endian float in C order, got <c16"),
        (npy(ARRAY.astype("S4")), r"must contain numbers, got dtype"),
        (npy(ARRAY.astype([("a", "<f4")])), "no .npy header"),
        (npy(ARRAY.astype(object), allow_pickle=True), r"must contain numbers, got dtype"),
        (npy(ARRAY * np.float32(np.nan)), "is not finite as float32"),
        (npy(ARRAY + np.float32(np.inf)), "is not finite as float32"),
        (npy(ARRAY)[:-4], "has 56 bytes, which do not fit shape"),
        (npy(ARRAY) + b"\0", "has 61 bytes, which do not fit shape"),
        (npy(ARRAY)[:127], "no .npy header"),
        (npy(ARRAY)[:9], "no .npy header"),
        (b"", "no .npy header"),
        (b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535, "no .npy header"),
        (b"\x93NUMPY\1\0\xff\xff" + b"{'descr': '" + b"'" * 65524, "no .npy header"),
        (npy(ARRAY).replace(b"\1\0", b"\2\0", 1), "no .npy header of version 1.0"),
        (npy(ARRAY).replace(b"(5, 3)", b"(5L,3)"), "no .npy header"),
        (npy(ARRAY).replace(b"'descr'", b"'''desc"), "no .npy header"),
        (npy(ARRAY).replace(b"(5, 3)", b"(5, -3)"), "no .npy header"),
        (npy(ARRAY).replace(b"(5, 3)", b"[5, 3]"), "no .npy header"),
        (
            npy(ARRAY).replace(b"(5, 3), }" + b" " * 9, b"(5, 3000000000), }"),
            "has 60 bytes, which do not fit shape",
        ),
        (npy(ARRAY).replace(b"False", b"1==2 "), "no .npy header"),
    ],
)
def test_an_array_that_does_not_hold(path, tiny, member, message):
    with cheap(megabytes=2):
        found = refusal(path, packed(entries(tiny) | {"encoder.embedding.npy": member}))
    assert re.search(message, found)
    assert "encoder.embedding" in found


@given(data=st.data())
@settings(max_examples=100)
def test_any_bytes_in_the_header_of_an_array(path, tiny, data):
    """With right checksums. What is accepted is the same array: only padding may differ."""
    members = entries(tiny)
    member = bytearray(members["encoder.embedding.npy"])
    places = st.tuples(st.integers(0, 127), st.sampled_from(b" \0\n'(){},0123456789<>|fFT#\\\xff"))
    for place, byte in data.draw(st.lists(places, min_size=1, max_size=3)):
        member[place] = byte
    refused_or(path, packed(members | {"encoder.embedding.npy": bytes(member)}), TINY)


@pytest.mark.parametrize("value", [1e39, 65520.0])
def test_an_array_that_overflows_the_models_dtype(path, value):
    """Stored as float64 in a model that says float16: no infinity, and no warning."""
    members = entries(saved(filled(TINY, np.array([value])), path))
    header = members[HEADER].replace(b'"float64"', b'"float16"')
    assert "is not finite as float16" in refusal(path, packed(members | {HEADER: header}))


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_nothing_is_ever_unpickled(tmp_path, tiny):
    path, trace, members = tmp_path / "model.npz", tmp_path / "trace", entries(tiny)
    pickled, array = pickle.dumps(Bomb(trace)), np.full((5, 3), Bomb(trace), dtype=object)
    objects = npy(array, allow_pickle=True)
    float_objects = objects.replace(b"'|O', ", b"'<f4',")
    for bad in [
        pickled,
        objects,
        packed(members | {HEADER: pickled}),
        packed(members | {"encoder.embedding.npy": pickled}),
        packed(members | {"encoder.embedding.npy": objects}),
        packed(members | {"encoder.embedding.npy": float_objects}),
        packed(members | {"more.npy": objects}),
        packed(members | {"more.pkl": pickled}),
    ]:
        refusal(path, bad)
        assert not trace.exists()
    path.write_bytes(objects)
    np.load(path, allow_pickle=True)
    assert trace.exists()  # the bomb is live


# Bombs


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused_unread(path, tiny, compression):
    zeros = bytes(2**23)
    bombs = [
        packed(entries(tiny), compression),
        packed(entries(tiny) | {"encoder.embedding.npy": npy(ARRAY)[:128] + zeros}, compression),
        packed(entries(tiny) | {HEADER: zeros.replace(b"\0", b" ")}, compression),
        packed(entries(tiny) | {"more.npy": zeros}, compression),
    ]
    for bomb in bombs:
        with cheap(megabytes=2):
            assert "compressed" in refusal(path, bomb)


def test_an_array_of_honest_but_absurd_size_is_not_read(path, tiny):
    bomb = packed(entries(tiny) | {"encoder.embedding.npy": npy(ARRAY)[:128] + bytes(2**23)})
    path.write_bytes(bomb)
    with cheap(megabytes=2), pytest.raises(rs.CheckpointError, match="has 8388608 bytes"):
        rs.load(path)


def test_overlapping_entries(path, tiny):
    """Each array claims all bytes up to the end of the file."""
    lie = bytearray(tiny)
    for record in re.finditer(b"PK\1\2", tiny):
        offset = struct.unpack_from("<L", tiny, record.start() + 42)[0]
        struct.pack_into("<LL", lie, record.start() + 20, *[len(tiny) - offset] * 2)
    assert "overlap" in refusal(path, bytes(lie))


def test_the_recursion_limit_is_not_touched(path, tiny):
    before = sys.getrecursionlimit()
    refusal(path, packed(entries(tiny) | {HEADER: b"[" * 10**6}))
    assert sys.getrecursionlimit() == before
