"""The native format: a saved model comes back bit for bit, and all else is refused."""

import dataclasses
import json
import os
import pickle
import random
import re
import struct
import sys
import threading
import time
import zipfile
from functools import reduce
from operator import getitem
from pathlib import Path

import arrangements
import numpy as np
import pytest
from arrangements import small_x_transformers, vocabulary
from bad_files import cheap, npy, packed, spoiled
from bad_files import unpacked as entries
from hypothesis import given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.params import map_arrays, named_arrays, param_shapes
from refseq2seq.testing import strategies

HEADER = "checkpoint.json"
DTYPES = ("float16", "float32", "float64")


def small_model():
    """Of few and prime sizes, an array of each kind: 14 kB."""
    config = small_x_transformers(3, (5, 7), (11, 2), (1, 1), n_heads=2, d_k=2, eos_ids=(2, 3))
    letters, special = ["<pad>", "a", "b", "é", "\N{PILE OF POO}"], ("<pad>", "<s>", "</s>")
    source = vocabulary(letters, special=("<pad>",), replacements=(("A", "a"), ("2", "ab")))
    target = vocabulary([*special, "AH", "B", "K", ""], separator=" ", special=special)
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
    assert message.isprintable()
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
    rs.save(rs.Model.random(arrangements.vaswani, seed=3), path)
    loaded = rs.load(path)
    loaded.params.decoder.embedding[2, 3] = 11
    assert loaded.params.encoder.embedding[2, 3] == loaded.params.unembedding[3, 2] == 11
    assert "unembedding.npy" not in entries(path.read_bytes())


def test_the_same_model_gives_the_same_bytes(path, monkeypatch):
    first = saved(MODEL, path)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert saved(MODEL, path.with_name("other name.npz")) == first
    assert saved(rs.load(path), path) == first


def header_of(model):
    texts = {name: getattr(model, name) for name in ("source_vocabulary", "target_vocabulary")}
    return {
        "format": "refseq2seq",
        "version": 4,
        "dtype": str(model.dtype),
        "config": model.config.to_dict(),
        **{name: text and text.to_dict() for name, text in texts.items()},
        "settings": None,
    }


def test_numpy_and_json_read_the_file(path):
    rs.save(MODEL, path)
    with np.load(path) as file:
        assert json.loads(file[HEADER]) == header_of(MODEL)
        arrays = {name: file[name] for name in file.files if name != HEADER}
    assert arrays.keys() == param_shapes(MODEL.config).keys()
    for name, array in arrays.items():
        expected = dict(named_arrays(MODEL.params))[name]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected, strict=True)


def test_a_file_written_by_others_is_read(path):
    """By numpy.save and zipfile, in another order, with today's date and other spacing."""
    model = dataclasses.replace(MODEL, source_vocabulary=None, target_vocabulary=None)
    model = model.astype("float64")
    header, arrays = dict(reversed(header_of(model).items())), dict(named_arrays(model.params))
    members = {f"{name}.npy": npy(arrays[name]) for name in reversed(param_shapes(model.config))}
    path.write_bytes(packed(members | {HEADER: json.dumps(header).encode()}))
    assert bits(rs.load(path)) == bits(model)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_older_version_is_read(version):
    """Written by release 0.1, whose own numbers these are, with other names; and by a later one."""
    model = rs.load(Path(__file__).with_name("checkpoints") / f"version-{version}.npz")
    assert (version == 3) == (model.settings is not None)
    model = dataclasses.replace(model, settings=None)
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

    assert "'n_register_tokens'" in refusal(path, with_header(version_1, rename))


def test_a_file_of_version_3_with_a_field_of_version_4_is_refused(path):
    version_3 = Path(__file__).with_name("checkpoints").joinpath("version-3.npz").read_bytes()

    def add(header):
        header["config"]["decoder"]["self_attention"]["softcap"] = 2.0

    assert "'softcap'" in refusal(path, with_header(version_3, add))


@pytest.mark.parametrize(("stored", "code"), [("float16", "<e"), ("float32", "<f")])
@given(values=st.lists(st.floats(-65504, 65504), min_size=1))
def test_a_narrower_stored_dtype_rounds_once(path, stored, code, values):
    """Python's struct rounds to nearest, ties to even: the other implementation here."""
    model = filled(TINY, np.array(values))
    rs.save(model, path, stored_dtype=stored)
    rounded = [struct.unpack(code, struct.pack(code, value))[0] for value in values]
    assert bits(rs.load(path)) == bits(filled(TINY, np.array(rounded)))


def test_an_array_longer_than_a_plain_zip_can_hold(path, monkeypatch):
    """Beyond 2 GiB an entry needs zip64; here, beyond 100 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    rs.save(MODEL, path)
    assert bits(rs.load(path)) == bits(MODEL)


def test_stored_dtype_is_what_the_file_holds(path):
    sizes = [len(saved(MODEL, path, stored_dtype=dtype)) for dtype in DTYPES]
    assert bits(rs.load(path)) == bits(MODEL)  # the last, and wider one, has the same numbers
    n = sum(np.prod(shape, dtype=int) for shape in param_shapes(MODEL.config).values())
    assert [sizes[1] - sizes[0], sizes[2] - sizes[1]] == [2 * n, 4 * n]


# What cannot be saved


def test_a_parameter_beyond_the_stored_dtype_is_refused(tmp_path):
    """float16 ends at 65504; from 65520 on, the nearest is infinity."""
    path = tmp_path / "model.npz"
    rs.save(filled(TINY, np.array([65519.0])), path, stored_dtype="float16")
    before = path.read_bytes()
    with np.errstate(all="raise"), pytest.raises(ValueError, match="float16"):
        rs.save(filled(TINY, np.array([65520.0])), path, stored_dtype="float16")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def with_source(vocabulary):
    return dataclasses.replace(TINY, source_vocabulary=vocabulary)


EMPTY = dataclasses.replace(TINY.source_vocabulary, symbols=(), special=())


@pytest.mark.parametrize(
    ("model", "stored_dtype", "kind", "message"),
    [
        (filled(TINY, np.float32([0, x])), None, ValueError, r"decoder\.embedding .* float32")
        for x in (np.nan, np.inf, -np.inf)
    ]
    + [(TINY, name, ValueError, f"stored_dtype .*{name}") for name in ("int8", "complex64", "S4")]
    + [
        (with_source(TINY.target_vocabulary), None, ValueError, "source .*7 .*5"),
        (with_source(EMPTY), None, ValueError, "source .*0 .*5"),
        (with_source(object()), None, TypeError, "source .*object"),
    ],
)
def test_models_that_cannot_be_saved_raise(tmp_path, model, stored_dtype, kind, message):
    with pytest.raises(kind, match=message):
        rs.save(model, tmp_path / "model.npz", stored_dtype=stored_dtype)
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


def test_save_neither_replaces_nor_makes_a_directory(tmp_path):
    target = tmp_path / "model.npz"
    target.mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's business
        rs.save(TINY, target)
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == []
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


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("absent.npz", FileNotFoundError, "absent"),
        (".", FileNotFoundError, r"config\.json"),
        (3, TypeError, "path .*int"),
        (None, TypeError, "path .*NoneType"),
        (b"model.npz", TypeError, "path .*bytes"),
        ("", ValueError, "path is empty"),
    ],
)
def test_paths_without_a_file_raise(path, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        rs.load(path)


@pytest.mark.parametrize("name", ["t5", "G2P", "google/mt5-small"])
def test_an_unknown_name_raises(name):
    """The command line prints the two parts of the error."""
    with pytest.raises(FileNotFoundError, match="'g2p'") as caught:
        rs.load(name)
    assert caught.value.filename == name


@pytest.mark.parametrize(
    ("name", "cure"),
    [("model.safetensors", "directory.*config.json"), ("config.json", "directory")]
    + [("model.gguf", "GGUF is not read.*directory")]
    + [(f"model{suffix}", "refseq2seq.convert") for suffix in (".bin", ".pt", ".PTH", ".ckpt")],
)
@pytest.mark.parametrize("content", [b"\x80\x02", packed({"model/data.pkl": b""})])
def test_files_of_other_programs_raise(tmp_path, name, cure, content):
    assert re.search(cure, refusal(tmp_path / name, content))


def test_a_checkpoint_may_have_the_name_of_any_file(tmp_path):
    for name in ("model.bin", "model.safetensors", "g2p", "m" * 251 + ".npz"):
        for path in (tmp_path / name, str(tmp_path / name)):
            rs.save(TINY, path)
            assert bits(rs.load(path)) == bits(TINY)


# Damage raises, or has no effect


def test_flipped_bits(path, tiny):
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


def test_appended_zeros(path, tiny):
    for n in (1, 22, 65535, 65536, 10**6):  # a comment has at most 65535 bytes
        refused_or(path, tiny + bytes(n), TINY)


def test_random_mutations(path, tiny):
    """Bytes set to telling values, cut out, doubled; half of them in the records of the zip."""
    rng, size = random.Random(7), len(tiny)
    records = [(m.start(), m.start() + 50) for m in re.finditer(b"PK[\1\3\5]", tiny)]
    for i in range(1000):
        start, end = (rng.randrange(size), size) if i % 2 else rng.choice(records)
        refused_or(path, spoiled(tiny[:end], rng, start) + tiny[end:], TINY)


CENTRAL_FIELDS = {  # place in a record of the central directory, and size
    "extract version": (6, 2), "flags": (8, 2), "method": (10, 2), "checksum": (16, 4),
    "compressed size": (20, 4), "size": (24, 4), "name length": (28, 2), "extra length": (30, 2),
    "comment length": (32, 2), "offset": (42, 4),
}  # fmt: skip


@pytest.mark.parametrize("field", CENTRAL_FIELDS)
def test_wrong_fields_of_the_central_directory(path, content, field):
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
def test_wrong_fields_of_the_end_records(path, tiny, field, value):
    """Of a zip64 file, whose numbers have 64 bits."""
    end = len(tiny) - 22
    size_cd, offset_cd = struct.unpack("<LL", tiny[end + 12 : end + 20])
    fields = {"size_cd": size_cd, "offset_cd": offset_cd}
    record = {"n": tiny.count(b"PK\1\2"), **fields, field: value}
    n, size_cd, offset_cd = record["n"], record["size_cd"], record["offset_cd"]
    zip64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, n, n, size_cd, offset_cd)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    with cheap(megabytes=2):
        assert not refused_or(path, tiny, TINY)
        refused_or(path, tiny[:end] + zip64 + locator + tiny[end:], TINY)


def test_a_name_that_is_not_utf8(path, tiny):
    at = tiny.index(b"PK\1\2")
    flags = struct.pack("<H", 2**11)
    lie = tiny[: at + 8] + flags + tiny[at + 10 : at + 46] + b"\xff" + tiny[at + 47 :]
    assert "not a complete zip" in refusal(path, lie)


# Foreign files


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"PK", b"Once upon a time\n" * 99, b"\x89PNG\r\n", npy(np.ones(3)), b"PK\5\6"],
)
def test_a_file_that_is_no_zip(path, content):
    assert "not a complete zip file" in refusal(path, content)


@pytest.mark.parametrize("content", [packed({"a.npy": npy(np.ones(3))}), packed({})])
def test_another_zip_file(path, content):
    assert "not a refseq2seq checkpoint" in refusal(path, content)


# Headers


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
    n_accepted, told = 0, []
    for *parents, last in filter(None, nodes(header)):
        if parents[:2] == ["config", "decoder"]:
            continue  # its fields are the encoder's
        inside = reduce(getitem, parents, header)
        before = inside[last]
        for value in WRONG:
            inside[last] = value
            path.write_bytes(packed(members | {HEADER: json.dumps(header).encode()}))
            try:
                loaded = rs.load(path)
            except rs.CheckpointError as error:
                told.append(str(error))
                continue
            n_accepted += 1
            assert json.dumps(loaded.config.to_dict()) == json.dumps(header["config"])
            assert loaded.dtype == header["dtype"]
            assert (loaded.source_vocabulary is None) == (header["source_vocabulary"] is None)
        inside[last] = before
    assert n_accepted < 60
    assert all(message.startswith(str(path)) for message in told)


def test_every_key_of_the_header_left_out(path, tiny):
    for *parents, last in filter(None, nodes(json.loads(entries(tiny)[HEADER]))):
        if isinstance(last, str):

            def leave_out(header, parents=parents, last=last):
                del reduce(getitem, parents, header)[last]

            assert last in refusal(path, with_header(tiny, leave_out)) or last == "format"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("format", "other", "refseq2seq checkpoint"),
        ("version", 5, "version 5; .*1 to 4"),
        ("version", "1", "version '1'"),
        ("dtype", "int8", "dtype .*'int8'"),
        ("dtype", ["float32"], "dtype"),
        ("more", 1, "must have the entries"),
        ("config more", 1, "'more'"),
        ("config pad_id", 7, "pad_id .*0 to 6, got 7"),
        ("config eos_ids", [[2]], "eos_ids .*list"),
        ("config encoder n_layers", 10**9, "more layers"),
        ("config decoder n_layers", 2**31 - 1, "more layers"),
        ("config decoder n_layers", 10**30, r"n_layers .*2\*\*31"),
        ("config encoder input vocab_size", 10**9, "encoder.embedding .*shape"),
        ("config decoder d_model", 10**9, "shape"),
        ("config encoder norm eps", 1, "eps .*int"),
        ("config encoder norm kind", "batch_norm", "kind .*'batch_norm'"),
        ("config encoder positions", {"type": "absolute"}, "type .*'absolute'"),
        ("config encoder relative_positions", {"type": "alibi", "slopes": []}, "slopes"),
        ("source_vocabulary symbols", ["<pad>"], "1 symbols, .*5"),
        ("source_vocabulary special", ["b", "x"], "special .*'x'"),
        ("source_vocabulary replacements", [["a"]], "replacements"),
        ("settings", ["beams"], "settings .*list"),
        ("settings", {"beam": 2}, "settings .*'beam'"),
        ("settings", {"beams": 0}, "beams .*0"),
        ("settings", {"exponential_decay": [1]}, "exponential_decay .*2 entries"),
    ],
)
def test_wrong_fields_of_the_header_raise(path, tiny, keys, value, message):
    def change(header):
        *places, last = keys.split()
        reduce(getitem, places, header)[last] = value

    with cheap(megabytes=2):
        assert re.search(message, refusal(path, with_header(tiny, change)))


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\xff\xfe\0", b"\x80", b"null", b'""', b"[1]"]
    + [text * 10**5 for text in (b"[" * 10, b'{"":', b"9")],
    ids=["empty", "cut", "utf-16", "bytes", "null", "string", "list", "lists", "objects", "digits"],
)
def test_a_header_that_is_no_json_object(path, tiny, header):
    recursion_limit = sys.getrecursionlimit()
    with cheap(megabytes=20):
        assert HEADER in refusal(path, packed(entries(tiny) | {HEADER: header}))
    assert sys.getrecursionlimit() == recursion_limit


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


# Arrays


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
        (npy(ARRAY.T.copy()), r"shape .*got \(3, 5\)"),
        (npy(ARRAY.ravel()), r"shape .*got \(15,\)"),
        (npy(ARRAY[None]), r"shape .*got \(1, 5, 3\)"),
        (npy(np.float32(1)), r"shape .*got \(\)"),
        (npy(np.asfortranarray(ARRAY)), "C order"),
        (npy(ARRAY.astype(">f4")), "little-endian float in C order, got >f4"),
        (npy(ARRAY.astype("int32")), "little-endian float in C order, got <i4"),
        (npy(ARRAY.astype(bool)), r"little-endian float in C order, got \|b1"),
        (npy(ARRAY.astype(complex)), "little-endian float in C order, got <c16"),
        (npy(ARRAY.astype("S4")), "must contain numbers"),
        (npy(ARRAY.astype([("a", "<f4")])), "no .npy header"),
        (npy(ARRAY.astype(object)), "must contain numbers"),
        (npy(ARRAY * np.float32(np.nan)), "float32"),
        (npy(ARRAY + np.float32(np.inf)), "float32"),
        (npy(ARRAY)[:-4], "56 bytes"),
        (npy(ARRAY)[:128] + bytes(2**23), "8388608 bytes"),  # which are not read
        (npy(ARRAY) + b"\0", "61 bytes"),
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
        (npy(ARRAY).replace(b"(5, 3), }" + b" " * 9, b"(5, 3000000000), }"), "60 bytes"),
        (npy(ARRAY).replace(b"False", b"1==2 "), "no .npy header"),
    ],
)
def test_wrong_arrays_raise(path, tiny, member, message):
    content = packed(entries(tiny) | {"encoder.embedding.npy": member})
    with cheap(megabytes=2):
        found = refusal(path, content)
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
    objects = npy(array)
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


def test_overlapping_entries(path, tiny):
    """Each array claims all bytes up to the end of the file."""
    lie = bytearray(tiny)
    for record in re.finditer(b"PK\1\2", tiny):
        offset = struct.unpack_from("<L", tiny, record.start() + 42)[0]
        struct.pack_into("<LL", lie, record.start() + 20, *[len(tiny) - offset] * 2)
    assert "overlap" in refusal(path, bytes(lie))
