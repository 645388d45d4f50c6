"""Hostile files, and whether a loader loads or refuses them.

    OMP_NUM_THREADS=1 python tests/helpers/hostile.py           every kind, in some minutes
    OMP_NUM_THREADS=1 python tests/helpers/hostile.py traces    one kind

A kind is a generator of cases. It prepares the files of a case, yields it, and restores them
when it is asked for the next one. `judge` loads a case: its model may load, or be refused by an
error of one line that names the file. All else is a fault: an exception or a warning of another
library, a hang, a gigabyte. Each case follows from the seed of its kind.
"""

import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, reduce
from importlib.util import find_spec
from itertools import islice
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
from arrangements import small_vaswani, vocabulary
from bad_files import npy, packed, spoiled, unpacked
from sentencepieces import pieces

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, numbered
from refseq2seq.convert.huggingface import FAMILIES
from refseq2seq.convert.table import special_tokens
from refseq2seq.files import FileError, safetensors
from refseq2seq.params import param_shapes
from refseq2seq.testing import vectors
from refseq2seq.text import UnknownSymbolError

SECONDS, MEGABYTES = 5, 1000
OURS = (FileError, rs.CheckpointError, UnsupportedFeature, ImportError)


@dataclass(frozen=True)
class Case:
    """What is loaded, what an error must name, and whether it loads: None if it may."""

    name: str
    load: Callable[[Path], Any]
    path: Path
    named: str
    loads: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """How a case ended: "loaded", "refused" or "fault"."""

    outcome: str
    error: BaseException | None
    seconds: float


class Hang(BaseException):
    """Loading took too long."""


def judge(case: Case) -> Verdict:
    """Load a case. Loading is stopped after `SECONDS`."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    start, error = time.perf_counter(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case.load(case.path)
    except BaseException as caught:
        error = caught
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    outcome = "loaded" if error is None else "refused" if is_ours(error, case) else "fault"
    if case.loads is not None and case.loads != (outcome == "loaded"):
        outcome = "fault"
    return Verdict(outcome, error, time.perf_counter() - start)


def is_ours(error: BaseException, case: Case) -> bool:
    """Whether an error is one line that names the file: ours, or the system's about a file."""
    told = str(error)
    kind = type(error) in OURS or (isinstance(error, OSError) and error.filename is not None)
    short = len(told) < len(str(case.path)) + 1500
    return kind and short and told.isprintable() and case.named in told


def load_model(path: Path) -> Any:
    """Load a model and use its tokenizers."""
    model = rs.load(path)
    for tokenizer in filter(None, (model.source_vocabulary, model.target_vocabulary)):
        with suppress(UnknownSymbolError):
            tokenizer.decode(tokenizer.encode("a cat\N{PILE OF POO}"))
        _ = tokenizer.symbols
    return model


# Sound files, made without the libraries that usually make them

IDS = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
BART = {
    "is_encoder_decoder": True, "vocab_size": 31, "d_model": 6, "encoder_layers": 1,
    "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 3,
    "encoder_ffn_dim": 5, "decoder_ffn_dim": 7, "activation_function": "gelu",
    "max_position_embeddings": 11, "scale_embedding": False, **IDS,
}  # fmt: skip
T5 = {
    "vocab_size": 31, "d_model": 6, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2,
    "d_kv": 3, "d_ff": 5, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 4, "relative_attention_max_distance": 9, **IDS,
}  # fmt: skip
GEMMA = {
    "vocab_size": 31, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "sliding_window": 3,
    "attn_logit_softcapping": 2.0, "rope_parameters": {"rope_theta": 10.0},
}  # fmt: skip
CONFIGS = {
    "T5Gemma": {"model_type": "t5gemma", "encoder": GEMMA, "decoder": GEMMA, **IDS},
    "T5": T5 | {"model_type": "t5"},
    "ByT5": T5 | {"model_type": "t5", "vocab_size": 384},
    "BART": BART | {"model_type": "bart"},
    "Marian": BART | {"model_type": "marian", "static_position_embeddings": True},
    "M2M100": BART | {"model_type": "m2m_100", "scale_embedding": True},
}
TOKENS = special_tokens(decoder_start_id=2, eos_ids=(2,), pad_id=1)
GENERATION = IDS | {"forced_eos_token_id": 2, "suppress_tokens": [5], "bad_words_ids": [[3], [4]]}
WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "cat": 5}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": True}],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]},
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "<unk>"},
}  # fmt: skip


def arrays_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random arrays of the names and shapes that a model of this config has in its files."""
    family = FAMILIES[config["model_type"]]
    fields, draw = family.completed(config), np.random.default_rng(0)
    table = getattr(family, "SHARED", family.DECODER)
    found = {table: np.zeros(1), "final_logits_bias": np.zeros(1)}
    conversion = family.convert(fields, found, TOKENS)
    rows = numbered(conversion.config, conversion.table)
    shapes = param_shapes(conversion.config)
    matrices = {ours for ours in rows if ours.rpartition(".")[2].startswith("w_")}
    return {
        theirs: draw.standard_normal(shapes[ours][:: -1 if ours in matrices else 1], "float32")
        for ours, (theirs, _) in rows.items()
    }


def _pieces() -> bytes:
    return pieces(("a cat sat on a mat", "a dog ate the hat"), 18)


def make_directories(root: Path) -> dict[str, Path]:
    """Small directories of Hugging Face models; M2M100 in two shards.

    A tokenizer is left out where the package that reads it is absent.
    """
    directories = {name: root / name for name in CONFIGS}
    for name, directory in directories.items():
        directory.mkdir()
        write_json(directory / "config.json", CONFIGS[name])
        write_json(directory / "generation_config.json", GENERATION)
        arrays = arrays_of(CONFIGS[name])
        if name == "M2M100":
            shards = {file: dict(list(arrays.items())[i::2]) for i, file in enumerate(SHARDS)}
            weight_map = {x: file for file, shard in shards.items() for x in shard}
            write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})
        else:
            shards = {WEIGHTS: arrays}
        for file, shard in shards.items():
            safetensors.write(directory / file, shard)
    write_json(directories["ByT5"] / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    if find_spec("tokenizers"):
        write_json(directories["BART"] / "tokenizer.json", TOKENIZER)
    if find_spec("sentencepiece"):
        (directories["T5"] / "spiece.model").write_bytes(_pieces())
        for file in ("source.spm", "target.spm"):
            (directories["Marian"] / file).write_bytes(_pieces())
        write_json(directories["Marian"] / "vocab.json", WORDS)
        (directories["M2M100"] / "sentencepiece.bpe.model").write_bytes(_pieces())
        write_json(directories["M2M100"] / "vocab.json", WORDS)
        settings = {"tokenizer_class": "M2M100Tokenizer", "src_lang": "fr"}
        write_json(directories["M2M100"] / "tokenizer_config.json", settings)
    return directories


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_json(path: Path, value: Any) -> None:
    """Write JSON; NaN and lone surrogates too."""
    path.write_text(json.dumps(value))


# Edits of JSON

VALUES = [
    None, True, False, -1, 0, 1, 3, 2**31 - 1, 10**9, 10**15, 10**30, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "1", "x" * 10**5, "\ud800\n\x1b[2J", [], {},
    [1, "a"], [[1], [2, 3]], {"type": "x"}, json.loads("[" * 200 + "]" * 200), [0] * 10**4,
]  # fmt: skip


def edited(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """JSON with a field at any depth replaced, left out or there twice; and what was done."""
    tree = json.loads(content)
    *parents, last = rng.choice(list(places(tree)))
    inside = reduce(getitem, parents, tree)
    value = rng.choice(VALUES)
    action = rng.choice(["replace", "replace", "replace", "delete", "double"])
    done = f"{action} {[*parents, last]} {value!r:.40}"
    if action == "delete":
        del inside[last]
    elif action == "replace":
        inside[last] = value
    elif isinstance(inside, dict):  # the same name twice, with two values
        inside["\0"] = value
        return done, json.dumps(tree).replace('"\\u0000"', json.dumps(last)).encode()
    else:
        inside.insert(last, value)
    return done, json.dumps(tree).encode()


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested objects and lists, but the outermost."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield (*place, key)
        yield from places(tree[key], (*place, key))


@contextmanager
def in_place_of(path: Path) -> Iterator[bytes]:
    """Give the content of a file, which may be replaced by anything, and restore it."""
    content = path.read_bytes()
    try:
        yield content
    finally:
        removed(path).write_bytes(content)


def removed(path: Path) -> Path:
    """Remove whatever there is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def edits(root: Path, n: int = 3000, seed: int = 0) -> Iterator[Case]:
    """Edits of every JSON file of the Hugging Face directories."""
    rng, directories = random.Random(seed), make_directories(root)
    files = sorted(path for d in directories.values() for path in d.glob("*.json"))
    files += 3 * [path for path in files if path.name == "config.json"]  # its fields are many
    for _ in range(n):
        path = rng.choice(files)
        with in_place_of(path) as content:
            done, new = edited(content, rng)
            path.write_bytes(new)
            title = f"{path.parent.name}/{path.name}: {done}"
            yield Case(title, load_model, path.parent, str(path.parent))


# Hostile files in the place of a sound one

Maker = Callable[[Path, bytes], Any]
"""Makes a file at a path that is free; the bytes are those of the sound one."""


def of_bytes(change: Callable[[bytes], bytes]) -> Maker:
    """A regular file with changed bytes."""
    return lambda path, content: path.write_bytes(change(content))


def link_to(make: Maker) -> Maker:
    """A link to a file out of the directory, as a cache has them."""

    def make_link(path: Path, content: bytes) -> None:
        target = removed(path.parent.with_name("elsewhere"))
        make(target, content)
        path.symlink_to(target)

    return make_link


UNREADABLE = {
    "empty": of_bytes(lambda x: b""),
    "garbage": of_bytes(lambda x: random.Random(1).randbytes(500)),
    "zeros": of_bytes(lambda x: bytes(500)),
    "a directory": lambda path, _: path.mkdir(),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a link to an endless device": lambda path, _: path.symlink_to("/dev/zero"),
    "a link to a FIFO": link_to(lambda path, _: os.mkfifo(path)),
    "a link to itself": lambda path, _: path.symlink_to(path),
    "a link to nothing": link_to(lambda path, _: None),
}
SOUND = {"a link to the file": link_to(of_bytes(lambda x: x))}
EITHER = {
    "cut in the middle": of_bytes(lambda x: x[: len(x) // 2]),
    "cut at the end": of_bytes(lambda x: x[:-1]),
    "flipped": of_bytes(lambda x: bytes(b ^ (i % 97 == 5) << i % 8 for i, b in enumerate(x))),
    "doubled": of_bytes(lambda x: x + x),
    **{f"spoiled {i}": of_bytes(lambda x, i=i: spoiled(x, random.Random(i))) for i in range(30)},
}
JSON_UNREADABLE = {
    "deep lists": of_bytes(lambda x: b"[" * 10**5),
    "deep objects": of_bytes(lambda x: b'{"a":' * 10**5),
    "deep in a field": of_bytes(lambda x: x[:-1] + b', "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    "millions of commas": of_bytes(lambda x: x[:-1] + b', "x": [0' + b",0" * 5_000_000 + b"]}"),
    "millions of lists": of_bytes(lambda x: x[:-1] + b', "x": [[]' + b",[]" * 2_500_000 + b"]}"),
    "too long": of_bytes(lambda x: x[:-1] + b" " * 2**26 + b"}"),
    "many digits": of_bytes(lambda x: x[:-1] + b', "x": ' + b"9" * 10**5 + b"}"),
    "a list": of_bytes(lambda x: b"[" + x + b"]"),
    "null": of_bytes(lambda x: b"null"),
    "bytes that are not UTF-8": of_bytes(lambda x: x[:-1] + b', "\xff": 1}'),
}
JSON_EITHER = {
    "a byte order mark": of_bytes(lambda x: b"\xef\xbb\xbf" + x),
    "UTF-16": of_bytes(lambda x: x.decode().encode("utf-16")),
    "a lone surrogate": of_bytes(lambda x: x[:-1] + rb', "\ud800": 1}'),
}


def of_json(change: Callable[[Any], Any]) -> Maker:
    """A regular file with changed JSON."""
    return of_bytes(lambda x: json.dumps(change(json.loads(x))).encode())


IDS_UNREADABLE = {
    f"an id {value!r}": of_json(lambda ids, value=value: ids | {"cat": value})
    for value in (10**9, 10**30, 40, -1, True, None, 5.0, float("nan"), "5", [5], {})
} | {
    "no <unk>": of_bytes(lambda x: b'{"</s>": 0, "<pad>": 1}'),
    "no pieces": of_bytes(lambda x: b"{}"),
}


INDEX_UNREADABLE = {
    f"a shard {value!r:.30}": of_json(
        lambda x, value=value: x | {"weight_map": x["weight_map"] | {min(x["weight_map"]): value}}
    )
    for value in (
        1, None, True, [], {}, "", ".", "..", "/etc/passwd", "../M2M100/config.json", "missing",
        "config.json", "a\0b", "a\nb", "\ud800", "x" * 300, "x" * 10**6, ["a"],
    )
} | {
    f"weight_map {value}": of_bytes(lambda x, value=value: b'{"weight_map": %s}' % value)
    for value in (b"[]", b"null", b"{}", b'"x"')
}  # fmt: skip


HUGE_NUMBERS = b"[%s, 0]" % b",".join([b"1" + b"0" * 4000] * 2000)


def lies(content: bytes) -> dict[str, bytes]:
    """Safetensors files whose header lies, or which hold what no weights hold."""
    n = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + n]), content[8 + n :]
    first, second = sorted(header, key=lambda name: header[name]["data_offsets"])[:2]
    end = header[first]["data_offsets"][1]
    count = end // {"F32": 4, "F64": 8, "I64": 8, "BOOL": 1}[header[first]["dtype"]]

    def said(text: bytes, rest: bytes = data) -> bytes:
        return len(text).to_bytes(8, "little") + text + rest

    def with_entry(changes: Any, rest: bytes = data) -> bytes:
        entry = header[first] | changes if isinstance(changes, dict) else changes
        text = json.dumps(header | {first: entry}).encode()
        return said(text.replace(b'"of huge numbers"', HUGE_NUMBERS), rest)

    def number(x: float, dtype: str = "<f4") -> bytes:
        return np.float64(x).astype(dtype).tobytes() + data[np.dtype(dtype).itemsize :]

    def renamed(name: str) -> bytes:
        entries = {name if old == first else old: entry for old, entry in header.items()}
        return said(json.dumps(entries).encode())

    lengths = {f"length {k}": k.to_bytes(8, "little") for k in (0, 1, n + 1, 2**62, 2**64 - 1)}
    shapes = [
        [-1, -count], [float(count)], [True] * 3, [2**62, 0], [10**30, 0], [10**30], [count, "1"],
        str(count), None, {}, count, [count, 1], [1] * 70 + [count], "of huge numbers",
        [[count]], [], [0],
    ]  # fmt: skip
    offsets = [
        [end, 0], [0, end - 4], [0, end + 4], [4, end], [-4, end - 4], [0, 10**30], [0, end, end],
        [0], [], None, "0", ["0", str(end)], [0.0, float(end)], [False, end], {}, 0,
        header[second]["data_offsets"],
    ]  # fmt: skip
    dtypes = ["F8_E4M3", "I8", "U64", "f4", "", 4, None, [], {}, "I32", "BOOL", "BF16", "F64"]
    return {
        **{name: start + content[8:] for name, start in lengths.items()},
        **{f"shape {x!r:.40}": with_entry({"shape": x}) for x in shapes},
        **{f"offsets {x!r}": with_entry({"data_offsets": x}) for x in offsets},
        **{f"dtype {x!r}": with_entry({"dtype": x}) for x in dtypes if x != header[first]["dtype"]},
        **{f"entry {x!r}": with_entry(x) for x in (None, [], 1, "x")},
        **{f"name {x!r:.20}": renamed(x) for x in ("", "x", "a\n\x1b\ud800", "x" * 10**5)},
        **{f"number {x}": said(content[8 : 8 + n], number(x)) for x in (np.nan, np.inf, -np.inf)},
        "no entries": said(b"{}"),
        "a header that is a list": said(b"[]"),
        "a header of commas": said(b'{"x":[0' + b",0" * 2**22 + b"]}"),
        "a deep header": said(b'{"x":' * 10**5),
        "a deep offset": with_entry({"data_offsets": VALUES[-2]}),
        "bytes after the last": content + b"\0",
    }


NO_TEXT = {"a piece that is no text": of_bytes(lambda x: x.replace(b"<unk>", b"<un\xff>"))}
GROUPS: tuple[tuple[str, bool | None, dict[str, Maker]], ...] = (
    ("*", False, UNREADABLE),
    ("*.spm", False, NO_TEXT),
    ("spiece.model", False, NO_TEXT),
    ("*", True, SOUND),
    ("*", None, EITHER),
    ("*.json", False, JSON_UNREADABLE),
    ("*.json", None, JSON_EITHER),
    ("vocab.json", False, IDS_UNREADABLE),
    (INDEX, False, INDEX_UNREADABLE),
)


def replacements(path: Path) -> Iterator[tuple[str, Maker, bool | None]]:
    """What may be put in the place of a file: its name, its maker, and whether it loads."""
    for pattern, loads, makers in GROUPS:
        if path.match(pattern):
            yield from ((name, make, loads) for name, make in makers.items())
    if path.suffix == ".safetensors":
        for name, content in lies(path.read_bytes()).items():
            yield name, of_bytes(lambda _, content=content: content), False


SLOW = {"too long", "millions of commas", "millions of lists", "shape 'of huge numbers'"}


def in_turn(paths: list[Path], every: int = 1) -> Iterator[tuple[Path, str, bool | None]]:
    """Put hostile files in the place of each of the paths; of them, one in ``every``.

    Paths of one name are read by one function: a slow file is put in the place of the first.
    """
    cases = ((path, *replacement) for path in paths for replacement in replacements(path))
    done = set()
    for path, name, make, loads in islice(cases, 0, None, every):
        if name in SLOW and (path.name, name) in done:
            continue
        done.add((path.name, name))
        with in_place_of(path) as content:
            make(removed(path), content)
            yield path, name, loads


def files(root: Path, every: int = 1) -> Iterator[Case]:
    """Hostile files in the directories of Hugging Face models."""
    paths = [path for d in make_directories(root).values() for path in sorted(d.iterdir())]
    for path, name, loads in in_turn(paths, every):
        is_part = path.name == INDEX or path.suffix == ".safetensors"
        told = path.parent if is_part or name.startswith("spoiled") else path
        title = f"{path.parent.name}/{path.name}: {name}"
        yield Case(title, load_model, path.parent, str(told), loads)


# Native checkpoints


def checkpoint() -> bytes:
    """A small one."""
    letters = vocabulary(["<pad>", "<s>", "</s>", "a"], special=("<pad>",))
    config = small_vaswani(d_model=2, vocab_size=4, n_layers=1, d_ff=2)
    model = replace(rs.Model.random(config, 0), source_vocabulary=letters)
    with tempfile.TemporaryDirectory() as directory:
        rs.save(model, path := Path(directory, "model.npz"))
        return path.read_bytes()


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint with a few bytes changed, cut out or put in, or with other entries."""
    kind = rng.choice(["header", "entry", "zip", "bytes", "bytes", "bytes"])
    if kind in ("header", "entry"):
        entries = unpacked(content)
        name = min(entries) if kind == "header" else rng.choice(sorted(entries))  # checkpoint.json
        is_json = kind == "header" and name.endswith(".json")
        change = edited(entries[name], rng)[1] if is_json else spoiled(entries[name], rng)
        return packed(entries | {name: change})
    if kind == "zip":  # what its directory says of an entry, or its end of the directory
        records = [i for i in range(len(content) - 4) if content[i : i + 4] in ZIP_RECORDS]
        start = rng.choice(records)
        return spoiled(content[: start + 46], rng, start) + content[start + 46 :]
    return spoiled(content, rng)


ZIP_RECORDS = (b"PK\1\2", b"PK\3\4", b"PK\5\6")


def native(root: Path, n: int = 60_000, seed: int = 0, every: int = 1) -> Iterator[Case]:
    """Mutations of a native checkpoint, and hostile files in its place."""
    rng, content, path = random.Random(seed), checkpoint(), root / "native" / "model.npz"
    path.parent.mkdir()
    for i in range(n):
        path.write_bytes(mutated(content, rng))
        yield Case(f"mutation {i}", rs.load, path, str(path))
    path.write_bytes(content)
    for _, name, loads in in_turn([path], every):
        yield Case(name, rs.load, path, str(path), loads)


# Traces


def array_that_says(descr: str, shape: str, n_bytes: int = 48) -> bytes:
    """Zeros behind a header of NumPy that says this of them."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(n_bytes)


@cache
def bad_traces() -> dict[str, bytes]:
    """Files that are no traces, although NumPy reads some of them."""
    x = npy(np.arange(6.0).reshape(2, 3))
    sound = packed({"x.npy": x})
    return {
        "empty": b"",
        "text": b"x,y\n1,2\n",
        "an .npy file": x,
        "cut": sound[:-30],
        "deflated": packed({"x.npy": npy(np.zeros(2**24, "u1"))}, zipfile.ZIP_DEFLATED),
        "bzip2": packed({"x.npy": x}, zipfile.ZIP_BZIP2),
        "pickled objects": packed({"x.npy": npy(np.array([{}]))}),
        "a structured dtype": packed({"x.npy": npy(np.zeros(2, [("a", "f8")]))}),
        "text as numbers": packed({"x.npy": npy(np.array(["a"]))}),
        "dates": packed({"x.npy": npy(np.array(["2000-01-01"], "M8[D]"))}),
        "no .npy inside": packed({"x.txt": b"hello"}),
        "the same name twice": packed({"x.npy": x, "y.npy": x}).replace(b"y.npy", b"x.npy"),
        "x and x.npy": packed({"x": x, "x.npy": x}),
        "encrypted": sound.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
        "a checksum that lies": sound.replace(x[-8:], x[:8]),
        **{
            f"shape {shape!r:.20}": packed({"x.npy": array_that_says("'<f8'", shape)})
            for shape in ("(9, 3)", "(-2, -3)", "(999999999999, 9)", f"({2**32}, {2**32})",
                          "exit()", "(0, 999999999999999999)", "(" + "1, " * 65 + ")", "6", "()")
        },
        **{
            f"dtype {descr}": packed({"x.npy": array_that_says(descr, "(6,)")})
            for descr in ("'|O8'", "'|V8'", "'<f9'", "'<U2'", "exit()", "[('a', '<f8')]", "'<f4'")
        },
    }  # fmt: skip


def traces(root: Path, n: int = 3000, seed: int = 0) -> Iterator[Case]:
    """Every kind of bad trace, and mutations of a good one."""
    rng, path = random.Random(seed), root / "traces" / "trace.npz"
    path.parent.mkdir()
    for name, content in bad_traces().items():
        path.write_bytes(content)
        yield Case(name, rs.Trace.load, path, str(path), loads=False)
    sound = packed({f"{name}.npy": npy(np.arange(6.0).reshape(2, 3)) for name in "xyz"})
    for i in range(n):
        path.write_bytes(mutated(sound, rng))
        yield Case(f"mutation {i}", rs.Trace.load, path, str(path))
    path.write_bytes(sound)
    for _, name, loads in in_turn([path]):
        yield Case(name, rs.Trace.load, path, str(path), loads)


# Vectors


def hostile_vectors(root: Path, n: int = 1000, seed: int = 0, every: int = 1) -> Iterator[Case]:
    """Files of another program, and then a reference that was changed and has right checksums."""
    rng, ours, theirs = random.Random(seed), root / "ours", root / "theirs"
    (name,) = vectors.make(ours, families=["t5"], cases=1)
    shutil.copytree(ours / name, theirs / name)

    def check(path: Path) -> Any:
        return vectors.check(ours, theirs)

    paths = sorted((theirs / name).glob("*.safetensors"))
    compared = [p for p in paths if p.stem in ("forward", "generation", "outputs")]
    for path, title, loads in in_turn(compared, every):
        may = title.startswith(("number", "shape", "dtype"))  # be sound, and differ from ours
        yield Case(f"theirs, {path.name}: {title}", check, path, str(path), None if may else loads)
    for i in range(n):
        path = rng.choice([*paths, *ours.glob("**/*.json"), *ours.glob("**/*.safetensors")])
        with in_place_of(path) as content, in_place_of(ours / "SHA256SUMS"):
            if path.suffix == ".json":
                path.write_bytes(edited(content, rng)[1])
            else:
                safetensors.write(path, redrawn(safetensors.read(path), rng))
            write_sums(ours)
            yield Case(f"edit {i}, {path.relative_to(root)}", check, path, str(root))
    for path, title, loads in in_turn([ours / "SHA256SUMS"], every):
        yield Case(f"SHA256SUMS: {title}", check, path, str(ours), loads)


def redrawn(arrays: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Arrays of which one has another shape, dtype or other numbers, or is left out."""
    name = rng.choice(list(arrays))
    x = np.asarray(arrays[name])
    wide = np.full(x.shape, rng.choice([np.nan, np.inf, -np.inf, 1e308, -1.0]))
    new = rng.choice([
        wide, x.T, x[None], x.ravel(), x.ravel()[:1], x.ravel()[:0], x[..., :0], x[:1], x * 0 - 5,
        np.zeros((0, *x.shape)), np.zeros((2**40, 0)), np.zeros((0, 2**40)), np.float64(3),
        np.full(x.shape, 2**62), np.zeros(x.shape, bool), np.full(x.shape, 7.5, "float16"),
    ])  # fmt: skip
    rest = {other: y for other, y in arrays.items() if other != name}
    return rng.choice([rest, rest | {"x": x}, *[arrays | {name: new}] * 8])


def write_sums(root: Path) -> None:
    """SHA256SUMS as sha256sum writes it."""
    paths = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = (
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root).as_posix()}\n"
        for p in paths
    )
    (root / "SHA256SUMS").write_text("".join(lines))


# The whole counts

KINDS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "edits": edits,
    "files": files,
    "native": native,
    "traces": traces,
    "vectors": hostile_vectors,
}


def run(kind: str) -> int:
    """Judge every case of a kind, print the faults and a row of the table."""
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    outcomes, slowest = Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as directory:
        for case in KINDS[kind](Path(directory)):
            faulthandler.dump_traceback_later(9 * SECONDS, exit=True)  # if no signal is heard
            verdict = judge(case)
            outcomes[verdict.outcome] += 1
            slowest = max(slowest, verdict.seconds)
            if verdict.outcome == "fault":
                print(f"{case.name}\n    {verdict.error!r:.300}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tried = (outcomes.total(), *(outcomes[name] for name in ("loaded", "refused", "fault")))
    print(f"{kind:10}" + "".join(f"{n:9}" for n in tried) + f"{slowest:9.2f}{peak:9.0f}")
    return int(outcomes["fault"] > 0 or peak > MEGABYTES)


def main() -> int:
    """Run each kind in a process of its own, whose memory is limited and measured."""
    if len(sys.argv) > 1:
        return run(sys.argv[1])
    columns = ("tried", "loaded", "refused", "fault", "slowest s", "peak MB")
    print(f"{'kind':10}" + "".join(f"{name:>9}" for name in columns), flush=True)
    runs = [subprocess.run([sys.executable, __file__, kind], check=False) for kind in KINDS]
    return int(any(run.returncode for run in runs))


if __name__ == "__main__":
    sys.exit(main())
