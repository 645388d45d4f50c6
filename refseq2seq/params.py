"""The parameters of a model: frozen dataclasses, with a shape beside each field.

Matrices are stored as ``(d_in, d_out)``, so that code reads ``x @ w + b`` as in papers. A
parameter that a configuration does not have is None. `build_params` obtains each array by name
and shape from a function; creating, loading, converting and mapping a model each pass one.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from .backend import Array, copy_transposed
from .checks import check_int
from .config import (
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    FrameInput,
    FrameLayerConfig,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from .shown import Shown

ArrayMaker = Callable[[str, tuple[int, ...]], Array]
"""Returns the array for a name such as ``encoder.layers.0.self_attention.w_q`` and a shape."""


class Arrays(Shown):
    """Base of dataclasses whose fields are arrays, such dataclasses, or tuples of them."""

    __slots__ = ()

    def named(self) -> dict[str, Array]:
        """Every array with its name, such as ``encoder.layers.0.self_attention.w_q``."""
        return dict(named_arrays(self))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class NormParams(Arrays):
    """Gain and bias of a normalisation."""

    gain: Array | None  # (d,) or () or, of heads, (n_heads, 1, d_k)
    bias: Array | None  # (d,) or (n_heads, 1, d_k)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class SublayerNorms(Arrays):
    """x = after(x + branch(sublayer(before(x)))); a norm that is None is the identity."""

    before: NormParams | None
    branch: NormParams | None
    after: NormParams | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AttentionParams(Arrays):
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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class FeedForwardParams(Arrays):
    """The matrices of one feed-forward sublayer."""

    w_in: Array  # (d_model, d_ff)
    b_in: Array | None  # (d_ff,)
    w_gate: Array | None  # (d_model, d_ff)
    b_gate: Array | None  # (d_ff,)
    hidden_norm: NormParams | None  # (d_ff,)
    w_out: Array  # (d_ff, d_model)
    b_out: Array | None  # (d_model,)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class LayerParams(Arrays):
    """One encoder or decoder layer."""

    self_attention: AttentionParams
    self_norms: SublayerNorms
    cross_attention: AttentionParams | None  # decoder only
    cross_norms: SublayerNorms  # all None in an encoder
    feed_forward: FeedForwardParams
    feed_forward_norms: SublayerNorms


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class FrameLayerParams(Arrays):
    """One convolution over time."""

    norm_before: NormParams | None  # (d_in,)
    w_in: Array  # (window * d_in, d_out), the rows of a window's first vector first
    b_in: Array | None  # (d_out,)
    norm_after: NormParams | None  # (d_out,)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class StackParams(Arrays):
    """An encoder or a decoder."""

    embedding: Array | None  # (vocab_size, d_model); None if the stack reads frames
    frame_layers: tuple[FrameLayerParams, ...]
    class_tokens: Array | None  # (n_class_tokens, d_model)
    embedding_norm: NormParams | None
    positions: Array | None  # (n_positions, d_model)
    relative_bias: tuple[Array, ...]  # none, one or n_layers of (n_buckets, n_heads)
    register_tokens: Array | None  # (n_register_tokens, d_model)
    layers: tuple[LayerParams, ...]
    final_norm: NormParams | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Params(Arrays):
    """All arrays of a model."""

    encoder: StackParams
    decoder: StackParams
    unembedding: Array  # (d_model, vocab_size)
    logits_bias: Array | None  # (vocab_size,)


def build_params(config: ModelConfig, array: ArrayMaker) -> Params:
    """The parameters of ``config``, each array obtained from ``array(name, shape)``.

    A tied table is requested once, under the name ``decoder.embedding``.
    """
    shapes, tied = _shapes(config), {}
    decoder = _filled("decoder", shapes.decoder, array)
    if config.tied_logits:
        decoder = replace(decoder, embedding=_by_columns(decoder.embedding))
        tied["unembedding"] = decoder.embedding.T
    if config.tied_embeddings:
        tied["encoder.embedding"] = decoder.embedding

    def array_or_tied(name: str, shape: tuple[int, ...]) -> Array:
        return tied[name] if name in tied else array(name, shape)

    return Params(
        encoder=_filled("encoder", shapes.encoder, array_or_tied),
        decoder=decoder,
        unembedding=_filled("unembedding", shapes.unembedding, array_or_tied),
        logits_bias=_filled("logits_bias", shapes.logits_bias, array),
    )


def _filled(name: str, part: Any, array: ArrayMaker) -> Any:
    """A part of the tree of `_shapes` with the arrays that ``array`` returns."""
    if is_dataclass(part):
        names = [field.name for field in fields(part)]
        members = {n: _filled(f"{name}.{n}", getattr(part, n), array) for n in names}
        return replace(part, **members)  # type: ignore[type-var]
    if isinstance(part, tuple):
        return tuple(_filled(f"{name}.{i}", member, array) for i, member in enumerate(part))
    return None if part is None else array(name, part.shape)


def _by_columns(table: Array) -> Array:
    """The table in Fortran order, so that its transpose, the unembedding, is in C order.

    A step reads the whole unembedding, but only one row of the table per token.
    """
    if table.strides[0] <= table.strides[1]:
        return table
    if type(table) is not np.ndarray:
        return table.copy(order="F")
    result = np.empty(table.shape, table.dtype, order="F")
    copy_transposed(table, result.T)
    return result


def _shapes(config: ModelConfig) -> Params:
    """The tree of the parameters of ``config``; its arrays have a shape but no memory."""
    d_model, vocab_size = config.decoder.d_model, config.decoder.vocab_size
    return Params(
        encoder=_stack(config.encoder, d_memory=0),
        decoder=_stack(config.decoder, d_memory=config.encoder.d_model),
        unembedding=_shape(d_model, vocab_size),
        logits_bias=_shape(vocab_size, where=config.logits_bias),
    )


def _shape(*shape: int, where: bool = True) -> Array | None:
    """An array without memory, or None where the configuration has no such parameter."""
    return np.broadcast_to(np.float64(0), shape) if where else None


def _stack(c: StackConfig, d_memory: int) -> StackParams:
    norm, n_positions, tables = _norm(c.norm, c.d_model), 0, []
    frames = c.input if isinstance(c.input, FrameInput) else None
    n_class = frames.n_class_tokens if frames else 0
    if isinstance(c.positions, LearnedPositions):
        n_positions = c.positions.n_positions
    if isinstance(c.relative_positions, BucketedPositions):
        table = _shape(c.relative_positions.n_buckets, c.self_attention.n_heads)
        tables = [table] * (c.n_layers if c.relative_positions.per_layer else 1)
    return StackParams(
        embedding=_shape(c.vocab_size, c.d_model, where=frames is None),
        frame_layers=tuple(map(_frame_layer, frames.widths, frames.layers)) if frames else (),
        class_tokens=_shape(n_class, c.d_model, where=n_class > 0),
        embedding_norm=norm if c.embedding_norm != "none" else None,
        positions=_shape(n_positions, c.d_model, where=n_positions > 0),
        relative_bias=tuple(tables),
        register_tokens=_shape(c.n_register_tokens, c.d_model, where=c.n_register_tokens > 0),
        layers=(_layer(c, d_memory),) * c.n_layers,
        final_norm=norm if c.final_norm else None,
    )


def _frame_layer(d_in: int, c: FrameLayerConfig) -> FrameLayerParams:
    return FrameLayerParams(
        norm_before=_norm(c.norm_before, d_in),
        w_in=_shape(c.window * d_in, c.d_out),
        b_in=_shape(c.d_out, where=c.bias),
        norm_after=_norm(c.norm_after, c.d_out),
    )


def _layer(c: StackConfig, d_memory: int) -> LayerParams:
    norm, cross = _norm(c.norm, c.d_model), c.cross_attention
    none = SublayerNorms(before=None, branch=None, after=None)
    chosen: dict[str, NormParams | None] = dict.fromkeys(c.norm_positions, norm)
    norms = replace(none, **chosen)
    return LayerParams(
        self_attention=_attention(c.self_attention, c.d_model, c.d_model),
        self_norms=norms,
        cross_attention=_attention(cross, c.d_model, d_memory) if cross else None,
        cross_norms=norms if cross else none,
        feed_forward=_feed_forward(c.feed_forward, c.d_model),
        feed_forward_norms=norms,
    )


def _attention(c: AttentionConfig, d_model: int, d_memory: int) -> AttentionParams:
    n_q, n_k, n_v = c.n_heads * c.d_k, c.n_kv_heads * c.d_k, c.n_kv_heads * c.d_v
    n_o, n_learned = c.n_heads * c.d_v, c.n_learned_kv
    n_gates = {"none": 0, "per_value": n_o, "per_head": c.n_heads}[c.gate]
    return AttentionParams(
        w_q=_shape(d_model, n_q),
        b_q=_shape(n_q, where="q" in c.biases),
        w_k=_shape(d_memory, n_k),
        b_k=_shape(n_k, where="k" in c.biases),
        w_v=_shape(d_memory, n_v),
        b_v=_shape(n_v, where="v" in c.biases),
        w_o=_shape(n_o, d_model),
        b_o=_shape(d_model, where="o" in c.biases),
        q_norm=_norm(c.qk_norm, c.n_heads, 1, c.d_k),
        k_norm=_norm(c.qk_norm, c.n_kv_heads, 1, c.d_k),
        learned_k=_shape(c.n_kv_heads, n_learned, c.d_k, where=n_learned > 0),
        learned_v=_shape(c.n_kv_heads, n_learned, c.d_v, where=n_learned > 0),
        w_gate=_shape(d_model, n_gates, where=n_gates > 0),
        b_gate=_shape(n_gates, where=n_gates > 0),
        head_scale=_shape(c.n_heads, 1, 1, where=c.head_scale),
    )


def _feed_forward(c: FeedForwardConfig, d_model: int) -> FeedForwardParams:
    return FeedForwardParams(
        w_in=_shape(d_model, c.d_ff),
        b_in=_shape(c.d_ff, where="in" in c.biases),
        w_gate=_shape(d_model, c.d_ff, where=c.gated),
        b_gate=_shape(c.d_ff, where="gate" in c.biases),
        hidden_norm=_norm(c.hidden_norm, c.d_ff),
        w_out=_shape(c.d_ff, d_model),
        b_out=_shape(d_model, where="out" in c.biases),
    )


def _norm(c: NormConfig | None, *shape: int) -> NormParams | None:
    if c is None:
        return None
    gains = {"vector": _shape(*shape), "scalar": _shape(), "none": None}
    return NormParams(gain=gains[c.gain], bias=_shape(*shape, where=c.bias))


MIN_LAYER = 6
"""The minimum number of arrays of a layer: four of attention, two of the feed-forward. A loader
refuses a config with more layers than its arrays can have before it builds them."""


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of ``config``, in the order of `build_params`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, shape: tuple[int, ...]) -> Array:
        shapes[name] = shape
        return _shape(*shape)

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
    expected = {name: x.shape for name, x in named_arrays(_shapes(config))}
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


def random_params(config: ModelConfig, seed: int, dtype: str = "float32") -> Params:
    """Random parameters, scaled so that each matrix product keeps about the size of its input.

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
