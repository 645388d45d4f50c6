"""Directories of CTranslate2, written by a helper from the format's description."""

import dataclasses
import json
import pickle
import random
import struct

import numpy as np
import pytest
from bad_files import cheap, spoiled
from ctranslate2_files import model_bin, names, variables_of, write
from hypothesis import given, settings
from hypothesis import strategies as st

import refseq2seq as rs
from refseq2seq.config import (
    BucketedPositions,
    FeedForwardConfig,
    LearnedPositions,
    NormConfig,
    SinusoidalPositions,
    TokenInput,
)
from refseq2seq.convert import UnsupportedFeature, from_ctranslate2
from refseq2seq.presets import plain_attention, plain_model, plain_stack

TOKENS = {"decoder_start_id": 1, "eos_ids": (2,), "pad_id": 2}
LAYER_NORM = NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=True)


def config(*, tied=True, n_kv_heads=2, gated=False, more=(), **stack):
    """Of 2 encoder and 3 decoder layers; ``stack`` are fields of both stacks."""
    biases = () if gated else ("q", "k", "v", "o")
    attention = dataclasses.replace(plain_attention(2, 5, biases), n_kv_heads=n_kv_heads)
    fields = {
        "input": TokenInput(vocab_size=17), "d_model": 10, "embedding_scale": 1.5,
        "norm": LAYER_NORM,
        "positions": LearnedPositions(n_positions=13, offset=0, scale=1.0),
        "norm_positions": ("after",), "final_norm": False,
        "feed_forward": FeedForwardConfig(
            d_ff=7, activation="silu" if gated else "gelu_erf", gated=gated,
            biases=() if gated else ("in", "out"), hidden_norm=None,
        ),
    } | stack  # fmt: skip
    stacks = [
        plain_stack(attention, cross=cross, n_layers=n, **fields)
        for n, cross in ((2, False), (3, True))
    ]
    if isinstance(fields.get("relative_positions"), BucketedPositions):
        relative = dataclasses.replace(fields["relative_positions"], bidirectional=True)
        stacks[0] = dataclasses.replace(stacks[0], relative_positions=relative)
    return plain_model(*stacks, tied=tied, **TOKENS | dict(more))


def t5(per_layer):
    relative = BucketedPositions(
        n_buckets=6, max_distance=9, bidirectional=False, per_layer=per_layer, scale=1.0
    )
    norm = NormConfig(kind="rms_norm", eps=1e-6, gain="vector", bias=False)
    return config(
        gated=True, tied=per_layer, positions=None, relative_positions=relative, norm=norm,
        norm_positions=("before",), final_norm=True, embedding_scale=1.0,
        more={"logits_scale": 0.25},
    )  # fmt: skip


CONFIGS = {
    "post-norm": config(embedding_norm="after_positions", more={"logits_bias": True}),
    "pre-norm, not tied, sinusoids": config(
        tied=False, norm_positions=("before",), final_norm=True, embedding_scale=10**0.5,
        positions=SinusoidalPositions(layout="tensor2tensor", offset=1, scale=1.0),
    ),
    "multi-query": config(n_kv_heads=1),
    "T5": t5(per_layer=False),
    "UMT5": t5(per_layer=True),
}  # fmt: skip


def bfloat16(x):
    """The shape and the bytes of x, cut off, and what they stand for."""
    bits = x.astype("<f4").view("<u4") >> 16
    return (x.shape, bits.astype("<u2").tobytes()), (bits << 16).view("<f4")


def quantised(dtype):
    """Numbers of int8 or int16, with scales that are powers of two, so that 1 / scale is exact."""

    def store(x):
        scale = (
            np.ldexp(np.float32(1), np.arange(len(x)) % 5) if dtype == "int8" else np.float32(64)
        )
        column = scale[:, None] if dtype == "int8" else scale
        q = np.clip(np.rint(x * column * 8), -127, 127).astype(dtype)
        return {"": q, "_scale": scale}, q.astype("float32") / column

    return store


STORED = {
    "float32": lambda x: ({"": x}, x),
    "float16": lambda x: ({"": x.astype("float16")}, x.astype("float16").astype("float32")),
    "bfloat16": lambda x: ({"": bfloat16(x)[0]}, bfloat16(x)[1]),
    "int8": quantised("int8"),
    "int16": quantised("int16"),
}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_gives_the_model_that_it_was_written_from(name, dtype, tmp_path):
    model = rs.Model.random(CONFIGS[name], 3)
    variables, aliases = variables_of(model)
    stored, expected = {}, {}
    for path, x in variables.items():
        is_weight = path.endswith("/weight")
        as_is = not np.ndim(x) or (dtype.startswith("int") and not is_weight)
        parts, expected[path] = STORED["float32" if as_is else dtype](x)
        stored |= {f"{path}{suffix}": part for suffix, part in parts.items()}
    read = rs.load(write(tmp_path / "ct2", stored, aliases))
    assert read.config == model.config
    assert read.dtype == "float32"
    again, _ = variables_of(read)
    assert again.keys() == expected.keys()
    for path, x in expected.items():
        assert np.array_equal(again[path], x), path


def small(directory, fields=(), *, changes=(), more=(), **header):
    """A small model's directory; a change of None removes a variable, ``more`` are aliases."""
    variables, aliases = variables_of(rs.Model.random(CONFIGS["post-norm"], 3))
    changed = {name: x for name, x in (variables | dict(changes)).items() if x is not None}
    return write(directory, changed, aliases | dict(more), fields, **header)


def test_marian_begins_with_zeros_whatever_its_first_token(tmp_path):
    """The additional token has the embedding 0, and never a probability."""
    variables, aliases = variables_of(rs.Model.random(CONFIGS["post-norm"], 3))
    variables["decoder/start_from_zero_embedding"] = np.int8(1)
    marian = rs.load(write(tmp_path / "marian", variables, aliases))
    start = marian.config.decoder_start_id
    assert (start, marian.config.pad_id, marian.config.suppressed_ids) == (17, 17, (17,))
    with pytest.raises(rs.FileError, match="t9"):
        from_ctranslate2(tmp_path / "marian", decoder_start_token="t9")
    variables["decoder/start_from_zero_embedding"] = np.int8(0)
    embedding = variables["decoder/embeddings/weight"].copy()
    embedding[1] = 0  # a model whose token 1 has the embedding 0
    aliases = {"encoder/embeddings_0/weight": "decoder/embeddings/weight"}
    untied = variables | {"decoder/projection/weight": variables["decoder/embeddings/weight"]}
    untied["decoder/embeddings/weight"] = embedding
    other = rs.load(write(tmp_path / "other", untied, aliases))
    source = [[3, 4, 5]]
    expected = rs.forward(other, source, [[1, 7, 8]])
    logits = rs.forward(marian, source, [[start, 7, 8]])
    np.testing.assert_allclose(logits[..., :17], expected, rtol=2e-5, atol=2e-5, equal_nan=False)
    assert (np.exp(logits[..., 17] - logits.max(axis=-1)) == 0).all()


def test_text_has_the_tokens_that_the_engine_would_add(tmp_path):
    model = rs.load(small(tmp_path, {"add_source_bos": True, "add_source_eos": True}))
    assert model.source_vocabulary.encode("t4 t9 </s> none t3") == [1, 4, 9, 2, 0, 3, 2]
    assert model.source_vocabulary.encode("") == [1, 2]
    assert model.target_vocabulary.decode([1, 4, 0, 9, 2, 2, 17]) == "t4 <unk> t9"
    model = rs.load(small(tmp_path, tokens=["a b", *names(17)[1:]]))
    assert model.source_vocabulary is None
    model = rs.load(small(tmp_path, tokens=["x", *names(17)[1:]]))  # without an unknown token
    with pytest.raises(rs.text.UnknownSymbolError, match="none"):
        model.source_vocabulary.encode("t4 none")


@pytest.mark.parametrize(
    ("end", "first"), [("\n", "<unk>"), ("\r\n", "<unk>"), ("\r\n", "a\n<unk>")]
)
def test_vocabularies_of_text(tmp_path, end, first):
    """A carriage return belongs to the tokens unless all lines end with one."""
    (small(tmp_path) / "shared_vocabulary.json").unlink()
    lines = [first, *names(17 - first.count("\n"))[1:]]
    text = end.join(lines) + end
    for side in ("source", "target"):
        (tmp_path / f"{side}_vocabulary.txt").write_bytes(text.encode())
    if "a" in first:  # then </s> is </s>\r, which config.json does not name
        with pytest.raises(rs.FileError, match="</s>"):
            rs.load(tmp_path)
    else:
        assert rs.load(tmp_path).target_vocabulary.symbols == tuple(names(17))


def test_the_start_token(tmp_path):
    small(tmp_path, {"decoder_start_token": None})
    with pytest.raises(ValueError, match="decoder_start_token"):
        rs.load(tmp_path)
    assert from_ctranslate2(tmp_path, decoder_start_token="t9").config.decoder_start_id == 9
    with pytest.raises(rs.FileError, match="t99"):
        from_ctranslate2(tmp_path, decoder_start_token="t99")


def test_the_epsilon_of_the_config(tmp_path):
    config = rs.load(small(tmp_path, {"layer_norm_epsilon": 0.125})).config
    assert config.encoder.norm.eps == config.decoder.norm.eps == 0.125


REFUSED = {
    "decoder/alibi": np.int8(1),
    "decoder/final_logit_softcapping": np.float32(30),
    "encoder/activation": np.int8(4),
    "encoder/embeddings_1/weight": np.ones((5, 3), "float32"),
    "encoder/layer_0/self_attention/relative_position_keys": np.ones((5, 7), "float32"),
    "decoder/layer_1/self_attention/rotary_dim": np.int32(4),
    "encoder/layer_1/self_attention/q_norm/gamma": np.ones(5, "float32"),
    "encoder/layer_0/self_attention/queries_scale": np.float32(1),
    "encoder/layer_0/ffn/layer_norm/layer_norm_use_residual": np.int8(1),
    "decoder/project_in/weight": np.ones((5, 3), "float32"),
    "decoder/layer_0/ffn/linear_0/weight": np.ones((7, 10), "int32"),
    "encoder/layer_0/self_attention/head_dim": np.int32(5),
    "decoder/layer_0/layer_scalar": np.float32(0.5),
    "decoder/a_new_option": np.int8(0),
}


LINEAR = "encoder/layer_0/ffn/linear_0"
INT8 = {f"{LINEAR}/weight": np.ones((7, 10), "int8")}
DAMAGED = {
    "none missing": ({"changes": {"decoder/layer_2/ffn/linear_1/weight": None}}, "linear_1/weight"),
    "a layer missing": ({"changes": {f"{LINEAR}/weight": None}}, f"{LINEAR}/weight"),
    "NaN": ({"changes": {f"{LINEAR}/bias": np.full(7, np.nan, "f4")}}, LINEAR),
    "wrong shape": ({"changes": {f"{LINEAR}/bias": np.ones(8, "f4")}}, LINEAR),
    "fused too long": (
        {"changes": {"encoder/layer_0/self_attention/linear_0/weight": np.ones((31, 10), "f4")}},
        "linear_0",
    ),
    "scale of 0": (
        {"changes": INT8 | {f"{LINEAR}/weight_scale": np.zeros(7, "f4")}}, f"{LINEAR}/weight",
    ),
    "too few scales": (
        {"changes": INT8 | {f"{LINEAR}/weight_scale": np.ones(6, "f4")}}, "weight_scale",
    ),
    "no heads": ({"changes": {"encoder/num_heads": np.int16(0)}}, "num_heads"),
    "half a head": ({"changes": {"encoder/num_heads": np.float32(1.5)}}, ""),
    "alias of nothing": ({"more": {"decoder/more": "encoder/none"}}, "encoder/none"),
    "aliases of all": (
        {"more": {f"x{i}": "decoder/embeddings/weight" for i in range(500)}}, "aliases",
    ),
    "Whisper without convolutions": ({"spec": "WhisperSpec", "revision": 3}, "convolutions"),
    "no eos": ({"fields": {"eos_token": "?"}}, "?"),
    "eos is a number": ({"fields": {"eos_token": 2}}, "eos_token"),
    "eps is NaN": ({"fields": {"layer_norm_epsilon": float("nan")}}, "eps"),
}  # fmt: skip
UNSUPPORTED = {
    **{name: ({"changes": {name: x}}, name) for name, x in REFUSED.items()},
    "AWQ": ({"fields": {"quantization_type": 1}}, "quantization_type"),
    "an old Whisper": ({"spec": "WhisperSpec", "revision": 2}, "WhisperSpec"),
    "a decoder": ({"spec": "TransformerDecoderSpec"}, "TransformerDecoderSpec"),
    "an old revision": ({"revision": 4}, "4"),
    "an old version": ({"version": 5}, "5"),
}


@pytest.mark.parametrize("what", DAMAGED | UNSUPPORTED)
def test_files_that_are_damaged_or_not_supported_are_refused(what, tmp_path):
    how, named = (DAMAGED | UNSUPPORTED)[what]
    with pytest.raises(UnsupportedFeature if what in UNSUPPORTED else rs.FileError) as refused:
        rs.load(small(tmp_path, **how))
    told = str(refused.value)
    assert told.startswith(str(tmp_path))
    assert named.replace("layer_0", "layer_*") in told.replace("layer_0", "layer_*")


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '["a"]', '["a", ["b"]]', "no JSON", "[" * 9999, json.dumps(names(18))]
)
def test_vocabularies_that_do_not_fit_are_refused(content, tmp_path):
    (small(tmp_path) / "shared_vocabulary.json").write_text(content)
    with pytest.raises(rs.FileError, match="shared_vocabulary"):
        rs.load(tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "shared_vocabulary.json"])
def test_missing_files_are_named(missing, tmp_path):
    (small(tmp_path) / missing).unlink()
    with pytest.raises((FileNotFoundError, rs.FileError), match=missing.partition(".")[0]):
        rs.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        from_ctranslate2(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="give its directory"):
        from_ctranslate2(tmp_path / "model.bin")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = small(tmp_path_factory.mktemp("sound"))
    return directory, (directory / "model.bin").read_bytes()


def refused_or_loaded(directory, content):
    """Whether it is refused, by an error of one line that names the file."""
    (directory / "model.bin").write_bytes(content)
    try:
        from_ctranslate2(directory)
    except (rs.FileError, UnsupportedFeature) as error:
        told = str(error)
        assert told.startswith(str(directory)), told
        assert told.isprintable()
        return True
    return False


def test_every_cut_is_refused(sound):
    directory, content = sound
    for n in [*range(400), *range(400, len(content), 97), len(content) - 1]:
        assert refused_or_loaded(directory, content[:n]), n
    assert refused_or_loaded(directory, content + b"\0")
    assert not refused_or_loaded(directory, content)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), length=st.sampled_from([60, 3000, 10**9]))
def test_spoiled_files_are_refused_or_load(sound, seed, length):
    directory, content = sound
    head, rest = content[:length], content[length:]
    with cheap(megabytes=20, seconds=5):
        refused_or_loaded(directory, spoiled(head, random.Random(seed)) + rest)


@pytest.mark.parametrize("huge", [2**31, 2**32 - 1])
def test_counts_are_limited_by_the_size_of_the_file(sound, huge):
    directory, content = sound
    variables, _ = variables_of(rs.Model.random(CONFIGS["post-norm"], 3))
    n_variables = len(model_bin({})) - 8  # the place of the number of variables
    n_axes = n_variables + 4 + 2 + len(next(iter(variables))) + 1
    places = {
        "variables": (n_variables, struct.pack("<I", huge)),
        "aliases": (len(model_bin(variables)) - 4, struct.pack("<I", huge)),
        "a scalar with axes": (n_axes, struct.pack("<B2I", 2, huge, huge)),
        "axes": (n_axes, b"\xff"),
    }
    for place, new in places.values():
        with cheap(megabytes=5):
            assert refused_or_loaded(directory, content[:place] + new + content[place + len(new) :])


def test_which_directories_are_of_ctranslate2(tmp_path):
    """A pickle keeps its error, and safetensors come first."""
    small(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(rs.FileError, match="model_type"):  # of Hugging Face's config.json
        rs.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert rs.load(str(tmp_path)).config == CONFIGS["post-norm"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    for content in (pickle.dumps([1]), b"PK\3\4" + bytes(99), b""):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(rs.FileError) as refused:
            rs.load(tmp_path)
        assert "CTranslate2" not in str(refused.value)
