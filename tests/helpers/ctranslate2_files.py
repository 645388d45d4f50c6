"""Directories of CTranslate2, written from the description of their format."""

import json
import struct
from pathlib import Path

import numpy as np

from refseq2seq import Model

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
CONFIG = {
    "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "decoder_start_token": "<s>",
    "add_source_bos": False, "add_source_eos": False, "layer_norm_epsilon": None,
}  # fmt: skip
ACTIVATIONS = {"relu": 0, "gelu_tanh": 1, "silu": 2, "gelu_erf": 3}


def string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name, array):
    """Of a NumPy array, or of a pair: the shape and the bytes of bfloat16."""
    if isinstance(array, tuple):
        shape, code, data = array[0], 5, array[1]
    else:
        array = np.asarray(array)
        shape, code, data = array.shape, CODES[array.dtype.name], array.tobytes()
    axes = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return string(name) + axes + struct.pack("<BI", code, len(data)) + data


def model_bin(variables, aliases=(), spec="TransformerSpec", revision=7, version=6):
    """The bytes of the file."""
    parts = [struct.pack("<I", version), string(spec), struct.pack("<II", revision, len(variables))]
    parts += [variable(name, array) for name, array in variables.items()]
    parts += [struct.pack("<I", len(aliases))]
    parts += [string(alias) + string(name) for alias, name in dict(aliases).items()]
    return b"".join(parts)


def write(directory: Path, variables, aliases=(), config=(), tokens=None, **header):
    """A directory with one vocabulary for both sides."""
    directory.mkdir(exist_ok=True)
    (directory / "model.bin").write_bytes(model_bin(variables, aliases, **header))
    (directory / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    table = variables["decoder/embeddings/weight"]
    tokens = tokens or names(table[0][0] if isinstance(table, tuple) else len(table))
    (directory / "shared_vocabulary.json").write_text(json.dumps(tokens))
    return directory


def names(n):
    return ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, n))]


def variables_of(model: Model):
    """The variables of a model, and the aliases of its tied tables."""
    found, c, p = {}, model.config, model.params
    for side in ("encoder", "decoder"):
        found |= {f"{side}/{n}": x for n, x in _stack(getattr(c, side), getattr(p, side)).items()}
    embedding = found.pop("encoder/embeddings/weight")
    found["encoder/embeddings_0/weight"] = embedding
    found["decoder/projection/weight"] = p.unembedding.T
    if c.logits_bias:
        found["decoder/projection/bias"] = p.logits_bias
    if c.logits_scale != 1:
        found["decoder/scale_outputs"] = np.float32(c.logits_scale)
    aliases = {}
    for name, tied in (
        ("encoder/embeddings_0/weight", c.tied_embeddings),
        ("decoder/projection/weight", c.tied_logits),
    ):
        if tied:
            del found[name]
            aliases[name] = "decoder/embeddings/weight"
    return found, aliases


def _stack(c, p):
    found = {
        "num_heads": np.int16(c.self_attention.n_heads),
        "pre_norm": np.int8(c.norm_positions == ("before",)),
        "activation": np.int8(ACTIVATIONS[c.feed_forward.activation]),
        "scale_embeddings": np.int8(1)
        if c.embedding_scale == c.d_model**0.5
        else np.float32(c.embedding_scale),
        "embeddings/weight": p.embedding,
        "position_encodings/encodings": p.positions,
        **_norm("layernorm_embedding", p.embedding_norm),
        **_norm("layer_norm", p.final_norm),
    }
    for i, layer in enumerate(p.layers):
        name = f"layer_{i}"
        found |= _attention(f"{name}/self_attention", c.self_attention, layer.self_attention, 0)
        found |= _norm(f"{name}/self_attention/layer_norm", _one(layer.self_norms))
        if layer.cross_attention is not None:
            found |= _attention(f"{name}/attention", c.cross_attention, layer.cross_attention, 1)
            found |= _norm(f"{name}/attention/layer_norm", _one(layer.cross_norms))
        ff, first = layer.feed_forward, f"{name}/ffn/linear_0"
        found |= _linear(f"{first}_noact" if c.feed_forward.gated else first, (ff.w_in, ff.b_in))
        if c.feed_forward.gated:
            found |= _linear(first, (ff.w_gate, ff.b_gate))
        found |= _linear(f"{name}/ffn/linear_1", (ff.w_out, ff.b_out))
        found |= _norm(f"{name}/ffn/layer_norm", _one(layer.feed_forward_norms))
        if p.relative_bias:
            bias = p.relative_bias[i if c.relative_positions.per_layer else 0]
            distance = np.int32(c.relative_positions.max_distance)
            found[f"{name}/self_attention/relative_attention_bias"] = bias
            found[f"{name}/self_attention/relative_attention_max_distance"] = distance
    return {name: x for name, x in found.items() if x is not None}


def _one(norms):
    return norms.before or norms.after


def _norm(name, p):
    return {} if p is None else {f"{name}/gamma": p.gain, f"{name}/beta": p.bias}


def _linear(name, *maps):
    found = {f"{name}/weight": np.concatenate([w.T for w, _ in maps])}
    if maps[0][1] is not None:
        found[f"{name}/bias"] = np.concatenate([b for _, b in maps])
    return found


def _attention(name, c, p, is_cross):
    q, k, v, o = (p.w_q, p.b_q), (p.w_k, p.b_k), (p.w_v, p.b_v), (p.w_o, p.b_o)
    fused = [(q,), (k, v), (o,)] if is_cross else [(q, k, v), (o,)]
    found = {}
    if c.scale != c.d_k**-0.5:
        found[f"{name}/queries_scale"] = np.float32(c.scale)
    if c.n_kv_heads != c.n_heads:
        found[f"{name}/num_heads_kv"] = np.int32(c.n_kv_heads)
    for i, maps in enumerate(fused):
        found |= _linear(f"{name}/linear_{i}", *maps)
    return found
