"""The parameters of a model: frozen dataclasses, with a shape beside each field.

Matrices are stored as ``(d_in, d_out)``, so that code reads ``x @ w + b`` as in papers. A
parameter that a configuration does not have is None. `build_params` obtains each array by name
and shape from a function; creating, loading, checking and converting a model each pass one.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from .backend import Array
from .checks import check_int
from .config import (
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    StackConfig,
)

ArrayMaker = Callable[[str, tuple[int, ...]], Array]
"""Returns the array for a name such as ``encoder.layers.0.self_attention.w_q`` and a shape."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormParams:
    """Gain and bias of a normalisation."""

    gain: Array | None  # (d,) or () or, of heads, (n_heads, 1, d_k)
    bias: Array | None  # (d,) or (n_heads, 1, d_k)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SublayerNorms:
    """x = after(x + branch(sublayer(before(x)))); a norm that is None is the identity."""

    before: NormParams | None
    branch: NormParams | None
    after: NormParams | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionParams:
    """The projections of one multi-head attention, and parameters that only some models have."""

    w_q: Array  # (d_model, n_heads * d_k)
    b_q: Array | None  # (n_heads * d_k,)
    w_k: Array  # (d_memory, n_kv_heads * d_k); d_memory = d_model in self-attention
    b_k: Array | None  # (n_kv_heads * d_k,)
    w_v: Array  # (d_memory, n_kv_heads * d_v)
    b_v: Array | None  # (n_kv_heads * d_v,)
    w_o: Array  # (n_heads * d_v, d_model)
    b_o: Array | None  # (d_model,)
    q_norm: NormParams | None  # gain (n_heads, 1, d_k)
    k_norm: NormParams | None  # gain (n_kv_heads, 1, d_k)
    learned_k: Array | None  # (n_kv_heads, n_learned_kv, d_k)
    learned_v: Array | None  # (n_kv_heads, n_learned_kv, d_v)
    w_gate: Array | None  # (d_model, n_heads * d_v), or (d_model, n_heads) per head
    b_gate: Array | None  # (n_heads * d_v,), or (n_heads,) per head
    head_scale: Array | None  # (n_heads, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedForwardParams:
    """The matrices of one feed-forward sublayer."""

    w_in: Array  # (d_model, d_ff)
    b_in: Array | None  # (d_ff,)
    w_gate: Array | None  # (d_model, d_ff)
    b_gate: Array | None  # (d_ff,)
    hidden_norm: NormParams | None  # (d_ff,)
    w_out: Array  # (d_ff, d_model)
    b_out: Array | None  # (d_model,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerParams:
    """One encoder or decoder layer."""

    self_attention: AttentionParams
    self_norms: SublayerNorms
    cross_attention: AttentionParams | None  # decoder only
    cross_norms: SublayerNorms  # all None in an encoder
    feed_forward: FeedForwardParams
    feed_forward_norms: SublayerNorms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StackParams:
    """An encoder or a decoder."""

    embedding: Array  # (vocab_size, d_model)
    embedding_norm: NormParams | None
    positions: Array | None  # (n_positions, d_model)
    relative_bias: tuple[Array, ...]  # none, one or n_layers of (n_buckets, n_heads)
    register_tokens: Array | None  # (n_register_tokens, d_model)
    layers: tuple[LayerParams, ...]
    final_norm: NormParams | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Params:
    """All arrays of a model."""

    encoder: StackParams
    decoder: StackParams
    unembedding: Array  # (d_model, vocab_size)
    logits_bias: Array | None  # (vocab_size,)


def build_params(config: ModelConfig, array: ArrayMaker) -> Params:
    """The parameters of ``config``, each array obtained from ``array(name, shape)``.

    A tied table is requested once, under the name ``decoder.embedding``.
    """
    decoder = _stack(config.decoder, config.encoder.d_model, _under("decoder", array))
    if config.tied_logits:
        decoder = replace(decoder, embedding=_by_columns(decoder.embedding))
    shared = decoder.embedding if config.tied_embeddings else None
    encoder = _stack(config.encoder, 0, _under("encoder", array), embedding=shared)
    d_model, vocab_size = config.decoder.d_model, config.decoder.vocab_size
    return Params(
        encoder=encoder,
        decoder=decoder,
        unembedding=(
            decoder.embedding.T
            if config.tied_logits
            else array("unembedding", (d_model, vocab_size))
        ),
        logits_bias=array("logits_bias", (vocab_size,)) if config.logits_bias else None,
    )


def _by_columns(table: Array) -> Array:
    """The table in Fortran order, so that its transpose, the unembedding, is in C order.

    A step reads the whole unembedding, but only one row of the table per token.
    """
    in_rows = table.strides[0] > table.strides[1]
    return table.copy(order="F") if in_rows else table


def _stack(
    c: StackConfig, d_memory: int, array: ArrayMaker, embedding: Array | None = None
) -> StackParams:
    if embedding is None:
        embedding = array("embedding", (c.vocab_size, c.d_model))
    n_tables, buckets = 0, (0, 0)
    if isinstance(c.relative_positions, BucketedPositions):
        n_tables = c.n_layers if c.relative_positions.per_layer else 1
        buckets = (c.relative_positions.n_buckets, c.self_attention.n_heads)
    return StackParams(
        embedding=embedding,
        embedding_norm=(
            _norm(c.norm, (c.d_model,), _under("embedding_norm", array))
            if c.embedding_norm != "none"
            else None
        ),
        positions=(
            array("positions", (c.positions.n_positions, c.d_model))
            if isinstance(c.positions, LearnedPositions)
            else None
        ),
        relative_bias=tuple(array(f"relative_bias.{i}", buckets) for i in range(n_tables)),
        register_tokens=(
            array("register_tokens", (c.n_register_tokens, c.d_model))
            if c.n_register_tokens
            else None
        ),
        layers=tuple(_layer(c, d_memory, _under(f"layers.{i}", array)) for i in range(c.n_layers)),
        final_norm=(
            _norm(c.norm, (c.d_model,), _under("final_norm", array)) if c.final_norm else None
        ),
    )


def _layer(c: StackConfig, d_memory: int, array: ArrayMaker) -> LayerParams:
    def attention(name: str, config: AttentionConfig, d_memory: int) -> AttentionParams:
        return _attention(config, c.d_model, d_memory, _under(name, array))

    def norms(name: str) -> SublayerNorms:
        return SublayerNorms(
            **{
                place: _norm(c.norm, (c.d_model,), _under(f"{name}.{place}", array))
                if place in c.norm_positions
                else None
                for place in ("before", "branch", "after")
            }
        )

    cross, no_norms = c.cross_attention, SublayerNorms(before=None, branch=None, after=None)
    return LayerParams(
        self_attention=attention("self_attention", c.self_attention, c.d_model),
        self_norms=norms("self_norms"),
        cross_attention=attention("cross_attention", cross, d_memory) if cross else None,
        cross_norms=norms("cross_norms") if cross else no_norms,
        feed_forward=_feed_forward(c.feed_forward, c.d_model, _under("feed_forward", array)),
        feed_forward_norms=norms("feed_forward_norms"),
    )


def _attention(
    c: AttentionConfig, d_model: int, d_memory: int, array: ArrayMaker
) -> AttentionParams:
    n_q, n_k, n_v = c.n_heads * c.d_k, c.n_kv_heads * c.d_k, c.n_kv_heads * c.d_v
    n_o = c.n_heads * c.d_v
    n_gates = {"none": 0, "per_value": n_o, "per_head": c.n_heads}[c.gate]

    def bias(name: str, size: int) -> Array | None:
        return array(f"b_{name}", (size,)) if name in c.biases else None

    def qk_norm(name: str, n_heads: int) -> NormParams | None:
        if c.qk_norm is None:
            return None
        return _norm(c.qk_norm, (n_heads, 1, c.d_k), _under(name, array))

    def learned(name: str, d: int) -> Array | None:
        return array(name, (c.n_kv_heads, c.n_learned_kv, d)) if c.n_learned_kv else None

    return AttentionParams(
        w_q=array("w_q", (d_model, n_q)),
        b_q=bias("q", n_q),
        w_k=array("w_k", (d_memory, n_k)),
        b_k=bias("k", n_k),
        w_v=array("w_v", (d_memory, n_v)),
        b_v=bias("v", n_v),
        w_o=array("w_o", (n_o, d_model)),
        b_o=bias("o", d_model),
        q_norm=qk_norm("q_norm", c.n_heads),
        k_norm=qk_norm("k_norm", c.n_kv_heads),
        learned_k=learned("learned_k", c.d_k),
        learned_v=learned("learned_v", c.d_v),
        w_gate=array("w_gate", (d_model, n_gates)) if n_gates else None,
        b_gate=array("b_gate", (n_gates,)) if n_gates else None,
        head_scale=array("head_scale", (c.n_heads, 1, 1)) if c.head_scale else None,
    )


def _feed_forward(c: FeedForwardConfig, d_model: int, array: ArrayMaker) -> FeedForwardParams:
    def bias(name: str, size: int) -> Array | None:
        return array(f"b_{name}", (size,)) if name in c.biases else None

    return FeedForwardParams(
        w_in=array("w_in", (d_model, c.d_ff)),
        b_in=bias("in", c.d_ff),
        w_gate=array("w_gate", (d_model, c.d_ff)) if c.gated else None,
        b_gate=bias("gate", c.d_ff),
        hidden_norm=(
            _norm(c.hidden_norm, (c.d_ff,), _under("hidden_norm", array))
            if c.hidden_norm is not None
            else None
        ),
        w_out=array("w_out", (c.d_ff, d_model)),
        b_out=bias("out", d_model),
    )


def _norm(c: NormConfig, shape: tuple[int, ...], array: ArrayMaker) -> NormParams:
    gain_shape = {"vector": shape, "scalar": (), "none": None}[c.gain]
    return NormParams(
        gain=None if gain_shape is None else array("gain", gain_shape),
        bias=array("bias", shape) if c.bias else None,
    )


def _under(prefix: str, array: ArrayMaker) -> ArrayMaker:
    return lambda name, shape: array(f"{prefix}.{name}", shape)


MIN_LAYER = 6
"""The minimum number of arrays of a layer: four of attention, two of the feed-forward."""


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of ``config``, in the order of `build_params`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, shape: tuple[int, ...]) -> Array:
        shapes[name] = shape
        return _shaped(name, shape)

    build_params(config, note)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters of a model; a tied table counts once."""
    return sum(math.prod(shape) for shape in param_shapes(config).values())


def check_params(config: ModelConfig, params: Params) -> None:
    """Raise a TypeError or ValueError unless the arrays, their ties and dtype fit ``config``."""
    for name, x in named_arrays(params):
        if not hasattr(x, "dtype") or isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} must be an array without a mask, got {type(x).__name__}")
    expected = {name: x.shape for name, x in named_arrays(build_params(config, _shaped))}
    found = {name: x.shape for name, x in named_arrays(params)}
    for name in expected | found:
        if name not in found:
            raise ValueError(f"params lacks {name}, of shape {expected[name]} by the config")
        if name not in expected:
            raise ValueError(
                f"params has {name}, of shape {found[name]}, which the config does not use"
            )
        if found[name] != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} by the config, got {found[name]}"
            )
    dtypes = {str(x.dtype) for _, x in named_arrays(params)}
    if len(dtypes) > 1:
        raise ValueError(f"the parameters must have one dtype, got {sorted(dtypes)}")
    if dtypes - {"float16", "float32", "float64"}:
        raise ValueError(f"the parameters must be float16, float32 or float64, got {dtypes.pop()}")
    table = params.decoder.embedding
    if config.tied_logits and not _is_same(params.unembedding.T, table):
        raise ValueError("tied_logits is True, but unembedding is not decoder.embedding transposed")
    if config.tied_embeddings and not _is_same(params.encoder.embedding, table):
        raise ValueError("tied_embeddings is True, but encoder.embedding is not decoder.embedding")


def _is_same(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape share their data or are equal.

    Arrays on a device are assumed to be equal: a comparison would wait for the device.
    """
    if not isinstance(a, np.ndarray) or a.ctypes.data == b.ctypes.data:
        return True
    return np.array_equal(a, b)


def _shaped(name: str, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.float64(0), shape)  # the shape, without allocation


def random_params(config: ModelConfig, seed: int, dtype: str = "float32") -> Params:
    """Random parameters, scaled so that activations keep unit size through the layers.

    Each array has its own generator, keyed by ``seed`` and the array's name, so that it does
    not depend on the other arrays. Biases and gains are random too, so that a test that omits
    one fails.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        0 or more.
    dtype : "float16", "float32" or "float64"
    """
    if not isinstance(config, ModelConfig):
        raise TypeError(f"config must be a ModelConfig, got {type(config).__name__}")
    if dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"dtype must be float16, float32 or float64, got {dtype!r}")
    seed = check_int("seed", seed, 0)

    def draw(name: str, shape: tuple[int, ...]) -> Array:
        normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        kind = name.rpartition(".")[2]
        if kind in ("gain", "head_scale"):
            normal = 1 + normal / 8
        elif kind in ("bias", "logits_bias") or kind.startswith("b_"):
            normal = normal / 8
        elif kind.startswith("w_") or kind == "unembedding":
            normal = normal / shape[0] ** 0.5
        return np.asarray(normal, dtype=dtype)

    return build_params(config, draw)


def named_arrays(params: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Every array of a parameter tree with its name. Tied tables occur more than once."""
    if is_dataclass(params):
        for field in fields(params):
            yield from named_arrays(getattr(params, field.name), f"{prefix}{field.name}.")
    elif isinstance(params, tuple):
        for i, member in enumerate(params):
            yield from named_arrays(member, f"{prefix}{i}.")
    elif params is not None:
        yield prefix.removesuffix("."), params


def map_arrays(config: ModelConfig, params: Params, function: Callable[[Array], Array]) -> Params:
    """Apply ``function`` to each array of the parameters; tied tables stay tied."""
    arrays = dict(named_arrays(params))
    return build_params(config, lambda name, shape: function(arrays[name]))
