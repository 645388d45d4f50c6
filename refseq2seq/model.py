"""The encoder-decoder Transformer: encode, decode, forward. Read from top to bottom.

    memory = encode(model, source)             once per source
    logits = decode(model, target, memory)     all positions at once, or step by step
    logits = forward(model, source, target)    the two in a row: teacher forcing

What a model does not have is None, and its step is the identity: no function has two versions.
A float16 model computes in float32, and rounds each quantity that passes a tap to float16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from . import notebook, summary
from .attention import cross_attention, keys_values, self_attention
from .backend import Array, array_namespace, at_least_float32, to_cupy, to_numpy
from .cache import KeyValueCache
from .config import FeedForwardConfig, ModelConfig, NormConfig, RotaryPositions, StackConfig
from .exact import as_exact
from .masks import causal_mask, padding_mask, real_positions
from .ops import ACTIVATIONS, linear, normalize
from .params import (
    FeedForwardParams,
    LayerParams,
    Params,
    StackParams,
    SublayerNorms,
    check_params,
    map_arrays,
    random_params,
)
from .positions import position_embedding, rotation, score_bias
from .text import Tokenizer
from .tokens import Tokens, as_tokens
from .trace import RoundingTap, Tap, check_tap, no_tap


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Model:
    """Conventions, arrays, and, where there are any, the vocabularies of both languages.

    Raises
    ------
    ValueError
        If the arrays are not those of the config: by name.
    """

    config: ModelConfig
    params: Params
    source_vocabulary: Tokenizer | None = None
    target_vocabulary: Tokenizer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, ModelConfig):
            raise TypeError(f"config must be a ModelConfig, got {type(self.config).__name__}")
        check_params(self.config, self.params)

    @classmethod
    def random(cls, config: ModelConfig, seed: int, dtype: str = "float32") -> Model:
        """A model with the parameters of `random_params`."""
        return cls(config=config, params=random_params(config, seed, dtype))

    def __repr__(self) -> str:
        return f"<Model of {summary.count_parameters(self.config):,} parameters, {self.dtype}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what Hypothesis asks for
        printer.text(repr(self))

    def _repr_html_(self) -> str:
        return notebook.table("Model", ("what", "value"), summary.rows(self))

    @property
    def xp(self) -> ModuleType:
        """The array namespace of the parameters: numpy or cupy."""
        return array_namespace(self.params.decoder.embedding)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and so of everything computed from them."""
        return np.dtype(self.params.decoder.embedding.dtype)

    def astype(self, dtype: str) -> Model:
        """The same model with its arrays rounded, or widened, to ``dtype``.

        Parameters
        ----------
        dtype : "float16", "float32" or "float64"
        """
        if dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"dtype must be float16, float32 or float64, got {dtype!r}")
        return self._map(lambda x: x.astype(dtype))

    def to(self, backend: str) -> Model:
        """The same model with its arrays in ``"numpy"`` or ``"cupy"``.

        Raises
        ------
        BackendError
            If CuPy is missing, finds no device, or lacks its CUDA libraries.
        """
        if backend not in ("numpy", "cupy"):
            raise ValueError(f"backend must be 'numpy' or 'cupy', got {backend!r}")
        return self._map(to_numpy if backend == "numpy" else to_cupy)

    def exact(self) -> Model:
        """The same model with sums that add one term after the other, in order.

        Then a row's numbers do not depend, to the last bit, on the rows beside it, on
        padding, on the cache or on how a prefix is divided; see `refseq2seq.exact`.
        ``model.to("numpy")`` undoes it.
        """
        return self._map(as_exact)

    def _map(self, function: Callable[[Array], Array]) -> Model:
        return replace(self, params=map_arrays(self.config, self.params, function))


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """An encoded source: all that decoding needs of it, computed once."""

    hidden: Array  # (batch, n_source, d_model)
    mask: Array | None  # (batch, n_source) boolean, True = real token; None = all real
    keys: tuple[Array, ...]  # per decoder layer (batch, n_kv_heads, n_source, d_k)
    values: tuple[Array, ...]  # per decoder layer (batch, n_kv_heads, n_source, d_v)

    @property
    def batch(self) -> int:
        """Number of sources."""
        return int(self.hidden.shape[0])

    def take(self, rows: Array) -> Memory:
        """The memory whose row i is row ``rows[i]`` of this one."""
        return Memory(
            hidden=self.hidden[rows],
            mask=None if self.mask is None else self.mask[rows],
            keys=tuple(k[rows] for k in self.keys),
            values=tuple(v[rows] for v in self.values),
        )


def forward(
    model: Model,
    source: Tokens,
    target: Tokens,
    source_mask: Array | None = None,
    *,
    tap: Tap = no_tap,
) -> Array:
    r"""Logits of every target position given the source and the target before it.

    .. math:: z_t, \quad P(y_{t+1} \mid y_{\le t}, x) = \mathrm{softmax}(z_t)

    Parameters
    ----------
    model : Model
    source, target : integer arrays (batch, n_source) and (batch, n_target)
        Or lists of lists of token ids. The target begins with the start token.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.
    tap : Tap

    Returns
    -------
    array, shape (batch, n_target, vocab_size)
        Where a shorter target was padded, the logits mean nothing.
    """
    return decode(model, target, encode(model, source, source_mask, tap=tap), tap=tap)


def encode(
    model: Model, source: Tokens, source_mask: Array | None = None, *, tap: Tap = no_tap
) -> Memory:
    """Encode the source, and project it to each decoder layer's keys and values.

    Parameters
    ----------
    model : Model
    source : integer array (batch, n_source), or list of lists of token ids
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token. Positions count real tokens only, so padding on either side
        changes nothing.
    tap : Tap

    Returns
    -------
    Memory

    Raises
    ------
    TypeError, ValueError
        If the tokens or the mask are not of the stated kind, or do not fit the model.
    """
    check_model(model)
    check_tap(tap)
    c, p, xp = model.config.encoder, model.params.encoder, model.xp
    # On the host, in NumPy, whatever device the model is on: so ids out of range are found.
    host_ids, host_mask = as_tokens("source", source, c.vocab_size, source_mask)
    n_real = host_ids.shape[1] if host_mask is None else int(host_mask.sum(axis=1).max())
    check_fits("source", n_real, c)
    ids = xp.asarray(host_ids)
    mask = None if host_mask is None else xp.asarray(host_mask)
    positions = xp.arange(ids.shape[1]) if mask is None else real_positions(mask)
    inside = _rounding(model, tap).at("encoder")
    x = embed(p, c, ids, positions, inside)
    x, real_keys, positions = _with_memory_tokens(p, x, mask, positions)
    key_mask = None if real_keys is None else padding_mask(real_keys)
    rotate, biases = relative(p, c, positions, positions)
    for i, layer in enumerate(p.layers):
        attend_to_itself = partial(self_attention, rotate=rotate, bias=biases[i], mask=key_mask)
        x = encoder_layer(layer, c, x, attend_to_itself, inside.at(f"layers.{i}"))
    hidden = inside("final", normalize(p.final_norm, c.norm, x))[:, c.n_memory_tokens :]
    return remember(model, hidden, mask, tap=tap)


def remember(model: Model, hidden: Array, mask: Array | None, *, tap: Tap = no_tap) -> Memory:
    """The memory of an encoded source: its keys and values in each cross-attention.

    Parameters
    ----------
    model : Model
    hidden : array, shape (batch, n_source, d_model)
        What an encoder gives.
    mask : boolean array, shape (batch, n_source), or None
        True = real token.
    tap : Tap
    """
    attention, keys, values = model.config.decoder.cross_attention, [], []
    wide, tap, dtype = at_least_float32(hidden), _rounding(model, tap), model.dtype
    for i, layer in enumerate(model.params.decoder.layers):
        inside = tap.at(f"decoder.layers.{i}.cross_attention")
        k, v = keys_values(layer.cross_attention, attention, wide)  # type: ignore[arg-type]
        # In C order, heads one after the other: every step reads them so.
        keys.append(inside("k", k).astype(dtype, order="C"))
        values.append(inside("v", v).astype(dtype, order="C"))
    hidden = hidden.astype(dtype, copy=False)
    return Memory(hidden=hidden, mask=mask, keys=tuple(keys), values=tuple(values))


def decode(
    model: Model,
    tokens: Tokens,
    memory: Memory,
    *,
    cache: tuple[KeyValueCache, ...] | None = None,
    tap: Tap = no_tap,
) -> Array:
    """Logits after each of ``tokens``, given the memory and the tokens before.

    Parameters
    ----------
    model : Model
    tokens : integer array (batch, n), or list of lists of token ids
        With a cache, the tokens that follow those it holds; otherwise the whole target.
    memory : Memory
        From `encode`.
    cache : tuple of KeyValueCache, optional
        From `new_cache`; receives the tokens' keys and values.
    tap : Tap

    Returns
    -------
    array, shape (batch, n, vocab_size)
    """
    check_model(model)
    check_tap(tap)
    if not isinstance(memory, Memory):
        raise TypeError(f"memory must be what encode gives, got {type(memory).__name__}")
    c = model.config.decoder
    ids, _ = as_tokens("target", tokens, c.vocab_size)
    if ids.shape[0] != memory.batch:
        raise ValueError(f"target has {ids.shape[0]} rows, the memory {memory.batch}")
    check_fits("target", ids.shape[1] + (cache[0].length if cache else 0), c)
    return decode_checked(model, model.xp.asarray(ids), memory, cache=cache, tap=tap)


def decode_checked(
    model: Model,
    ids: Array,
    memory: Memory,
    *,
    cache: tuple[KeyValueCache, ...] | None,
    tap: Tap,
) -> Array:
    """What `decode` gives, of an integer array (batch, n) of the model's backend.

    A loop that checks what it is asked for once need not do so in each step.
    """
    c, p, xp = model.config.decoder, model.params.decoder, model.xp
    start, n = cache[0].length if cache else 0, ids.shape[1]
    positions = xp.arange(start, start + n)
    so_far = xp.arange(start + n)
    causal = causal_mask(positions, so_far) if n > 1 else None  # the last token sees all
    source_mask = None if memory.mask is None else padding_mask(memory.mask)
    rotate, biases = relative(p, c, positions, so_far)
    tap = _rounding(model, tap)
    inside = tap.at("decoder")
    x = embed(p, c, ids, positions, inside)
    for i, layer in enumerate(p.layers):
        attend_to_target = partial(
            self_attention,
            rotate=rotate,
            bias=biases[i],
            mask=causal,
            cache=cache[i] if cache else None,
        )
        attend_to_source = partial(
            cross_attention, k=memory.keys[i], v=memory.values[i], mask=source_mask
        )
        x = decoder_layer(layer, c, x, attend_to_target, attend_to_source, inside.at(f"layers.{i}"))
    x = inside("final", normalize(p.final_norm, c.norm, x))
    unembedding, bias = model.params.unembedding, model.params.logits_bias
    logits = tap("logits", linear(x * model.config.logits_scale, unembedding, bias))
    return logits.astype(model.dtype, copy=False)


def _rounding(model: Model, tap: Tap) -> Tap:
    """``tap``, in a `RoundingTap` if the model is float16."""
    return RoundingTap(tap) if model.dtype == "float16" else tap


def new_cache(model: Model, batch: int, capacity: int) -> tuple[KeyValueCache, ...]:
    """An empty cache for `decode`, one part per decoder layer, for ``capacity`` tokens."""
    c, like = model.config.decoder.self_attention, model.params.decoder.embedding
    return tuple(
        KeyValueCache(batch, c.n_kv_heads, capacity, c.d_k, c.d_v, like)
        for _ in model.params.decoder.layers
    )


def encoder_layer(
    p: LayerParams, c: StackConfig, x: Array, attend_to_itself: Callable[..., Array], tap: Tap
) -> Array:
    """Self-attention, then feed-forward, each inside a residual: (batch, n, d_model)."""

    def self_attend(h: Array) -> Array:
        return attend_to_itself(p.self_attention, c.self_attention, h, tap=tap.at("self_attention"))

    def transform(h: Array) -> Array:
        return feed_forward(p.feed_forward, c.feed_forward, h, tap.at("feed_forward"))

    x = tap("after_self_attention", residual(p.self_norms, c.norm, x, self_attend))
    return tap("after_feed_forward", residual(p.feed_forward_norms, c.norm, x, transform))


def decoder_layer(
    p: LayerParams,
    c: StackConfig,
    x: Array,
    attend_to_target: Callable[..., Array],
    attend_to_source: Callable[..., Array],
    tap: Tap,
) -> Array:
    """Self-attention, cross-attention, feed-forward, each in a residual: (batch, n, d_model)."""

    def self_attend(h: Array) -> Array:
        return attend_to_target(p.self_attention, c.self_attention, h, tap=tap.at("self_attention"))

    def cross_attend(h: Array) -> Array:
        return attend_to_source(
            p.cross_attention, c.cross_attention, h, tap=tap.at("cross_attention")
        )

    def transform(h: Array) -> Array:
        return feed_forward(p.feed_forward, c.feed_forward, h, tap.at("feed_forward"))

    x = tap("after_self_attention", residual(p.self_norms, c.norm, x, self_attend))
    x = tap("after_cross_attention", residual(p.cross_norms, c.norm, x, cross_attend))
    return tap("after_feed_forward", residual(p.feed_forward_norms, c.norm, x, transform))


def residual(
    p: SublayerNorms, c: NormConfig, x: Array, sublayer: Callable[[Array], Array]
) -> Array:
    """after(x + branch(sublayer(before(x)))): pre-norm, post-norm, sandwich; absent norms pass."""
    branch = sublayer(normalize(p.before, c, x))
    return normalize(p.after, c, x + normalize(p.branch, c, branch))


def feed_forward(p: FeedForwardParams, c: FeedForwardConfig, x: Array, tap: Tap = no_tap) -> Array:
    """activation(x W_in + b_in) W_out + b_out, or its gated form (Shazeer 2020, eq. 5-6)."""
    x, activation = tap("input", x), ACTIVATIONS[c.activation]
    hidden = tap("projected", linear(x, p.w_in, p.b_in))
    if c.gated:
        hidden = activation(tap("gate", linear(x, p.w_gate, p.b_gate))) * hidden
    else:
        hidden = activation(hidden)
    if c.hidden_norm is not None:
        hidden = normalize(p.hidden_norm, c.hidden_norm, tap("activated", hidden))
    return tap("out", linear(tap("hidden", hidden), p.w_out, p.b_out))


def embed(p: StackParams, c: StackConfig, ids: Array, positions: Array, tap: Tap) -> Array:
    """Token embeddings, scaled, plus positions, normalised where the model has a norm."""
    x = tap("tokens", at_least_float32(p.embedding[ids]) * c.embedding_scale)
    if c.embedding_norm == "before_positions":
        x = normalize(p.embedding_norm, c.norm, x)
    if c.positions is not None:
        x = x + tap("positions", position_embedding(c.positions, p.positions, positions, like=x))
    if c.embedding_norm == "after_positions":
        x = normalize(p.embedding_norm, c.norm, x)
    return tap("embed", x)


def relative(
    p: StackParams, c: StackConfig, q_positions: Array, k_positions: Array
) -> tuple[Callable[[Array], Array] | None, list[Array | None]]:
    """How positions enter self-attention: a rotation of q and k, and each layer's score bias."""
    how, n_layers = c.relative_positions, c.n_layers
    if how is None:
        return None, [None] * n_layers
    if isinstance(how, RotaryPositions):
        return rotation(how, q_positions), [None] * n_layers
    tables = p.relative_bias or (None,)  # ALiBi has no table, T5 one, UMT5 one per layer
    dtype = at_least_float32(p.embedding[:0]).dtype
    biases = [score_bias(how, table, q_positions, k_positions, dtype) for table in tables]
    return None, biases if len(biases) == n_layers else biases * n_layers


def _with_memory_tokens(
    p: StackParams, x: Array, mask: Array | None, positions: Array
) -> tuple[Array, Array | None, Array]:
    """Put the learned vectors before the sequence, at positions -n to -1, never masked.

    They are parameters that x-transformers calls memory tokens, not the encoded source.
    """
    if p.memory_tokens is None:
        return x, mask, positions
    xp = array_namespace(x)
    n, d_model = p.memory_tokens.shape
    learned = xp.broadcast_to(p.memory_tokens, (x.shape[0], n, d_model))
    before = xp.broadcast_to(xp.arange(-n, 0), (*positions.shape[:-1], n))
    if mask is not None:
        mask = xp.concat([xp.ones((x.shape[0], n), dtype="bool"), mask], axis=1)
    return xp.concat([learned, x], axis=1), mask, xp.concat([before, positions], axis=-1)


def check_model(model: Any) -> None:
    """Raise unless ``model`` is a Model: a name or a path becomes one by `refseq2seq.load`."""
    if not isinstance(model, Model):
        cure = f": write rs.load({model!r})" if isinstance(model, str | os.PathLike) else ""
        raise TypeError(f"model must be a Model, got {type(model).__name__}{cure}")


def check_fits(name: str, n: int, c: StackConfig) -> None:
    """Raise unless the position table serves ``n`` tokens, which the error calls ``name``."""
    if c.max_length is not None and n > c.max_length:
        raise ValueError(
            f"{name} has {n} tokens; the model's position table serves at most {c.max_length}"
        )
