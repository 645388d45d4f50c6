"""The encoder-decoder Transformer: encode, decode, forward. Read from top to bottom.

    memory = encode(model, source)             once per source
    logits = decode(model, target, memory)     all positions at once, or step by step
    logits = forward(model, source, target)    both: teacher forcing

A parameter that a model lacks is None. A missing norm or bias then changes nothing, and an ``if``
skips any other missing part. A float16 model computes in float32 and rounds each quantity that
passes a tap to float16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from .attention import (
    CrossContext,
    KeyValueCache,
    SelfContext,
    cross_attention,
    keys_values,
    self_attention,
)
from .backend import Array, array_namespace, asarray_like, at_least_float32, to_cupy, to_numpy
from .checks import Source, Tokens, as_source, as_tokens, as_vectors
from .config import FeedForwardConfig, FrameInput, ModelConfig, RotaryPositions, StackConfig
from .exact import as_exact
from .frames import embed_frames, prepend
from .masks import causal_mask, padding_mask, real_positions, window_mask
from .ops import ACTIVATIONS, linear, normalize, soft_cap
from .params import (
    Arrays,
    FeedForwardParams,
    LayerParams,
    Params,
    StackParams,
    check_params,
    count_parameters,
    map_arrays,
    random_params,
)
from .positions import Rotation, position_embedding, rotation, score_bias
from .settings import Settings
from .shown import Shown
from .taps import RoundingTap, Tap, check_tap, no_tap
from .text import Tokenizer


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Model(Shown):
    """A config, its parameters, and optionally tokenizers and generation settings.

    Only `refseq2seq.generate_as_configured` and the command line apply the settings.

    Raises
    ------
    ValueError
        If the parameters do not fit the config; the error names the array.
    """

    config: ModelConfig
    params: Params
    source_vocabulary: Tokenizer | None = None
    target_vocabulary: Tokenizer | None = None
    settings: Settings | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config, ModelConfig):
            raise TypeError(f"config must be a ModelConfig, got {type(self.config).__name__}")
        check_params(self.config, self.params)

    @classmethod
    def random(cls, config: ModelConfig, seed: int, dtype: str = "float32") -> Model:
        """A model with the parameters of `random_params`."""
        return cls(config=config, params=random_params(config, seed, dtype))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # for IPython and Hypothesis
        printer.text(repr(self))

    @property
    def n_parameters(self) -> int:
        """The number of parameters; a tied table counts once."""
        return count_parameters(self.config)

    @property
    def xp(self) -> ModuleType:
        """The array namespace of the parameters: numpy or cupy."""
        return array_namespace(self.params.decoder.embedding)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, the logits and the other named quantities."""
        return np.dtype(self.params.unembedding.dtype)

    def astype(self, dtype: str) -> Model:
        """The same model with its arrays rounded or widened to ``dtype``.

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
        """The same model with batch-invariant sums, which add terms in the order of the index.

        The bits of a row then do not depend on the other rows of the batch, the padding, the
        cache or the split of a prefix; see `refseq2seq.exact`. ``model.to("numpy")`` undoes it.
        """
        return self._map(as_exact)

    def _map(self, function: Callable[[Array], Array]) -> Model:
        return replace(self, params=map_arrays(self.config, self.params, function))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Memory(Arrays):
    """An encoded source, computed once, and its keys and values in each decoder layer."""

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
    source: Source,
    target: Tokens,
    source_mask: Array | None = None,
    *,
    tap: Tap = no_tap,
) -> Array:
    r"""Logits of every target position, given the source and the target up to that position.

    .. math:: z_t, \quad P(y_{t+1} \mid y_{\le t}, x) = \mathrm{softmax}(z_t)

    Parameters
    ----------
    model : Model
    source : array (batch, n_source) or (batch, n_source, d), or list of rows
        Token ids, frames, embeddings or a `Memory`: see `encode`.
    target : integer array (batch, n_target), or list of lists of token ids
        It begins with the start token.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.
    tap : Tap

    Returns
    -------
    array, shape (batch, n_target, vocab_size)
        Logits at the padding of a shorter target have no meaning.
    """
    return decode(model, target, encode(model, source, source_mask, tap=tap), tap=tap)


def encode(
    model: Model, source: Source, source_mask: Array | None = None, *, tap: Tap = no_tap
) -> Memory:
    """Encode the source and project it to the keys and values of each decoder layer.

    Parameters
    ----------
    model : Model
    source : array (batch, n_source) or (batch, n_source, d), or list of rows
        Token ids: integers, or lists of lists of them. Frames, if the model reads them: a float
        array (batch, n_frames, n_features), or a list of arrays (n_frames, n_features).
        Embeddings, if it reads tokens: a float array (batch, n_source, d_model), or a list, which
        replaces ``encoder.tokens`` and is not scaled. Vectors are rounded to the model's dtype. A
        `Memory`, such as that of `project_memory`, is returned unchanged.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token. Positions count real tokens only, so padding on either side
        changes nothing. If a layer joins or skips frames, the real ones come first in a row.
    tap : Tap

    Returns
    -------
    Memory

    Raises
    ------
    TypeError, ValueError
        If the source or the mask have an invalid type or shape, or do not fit the model.
    """
    check_tap(tap)
    source, mask = checked_source(model, source, source_mask)
    return encode_checked(model, source, mask, tap=tap)


def checked_source(
    model: Model, source: Source, source_mask: Array | None
) -> tuple[np.ndarray | Memory, np.ndarray | None]:
    """A source and its mask on the host, or a Memory, validated for `encode_checked`."""
    check_model(model)
    if isinstance(source, Memory):
        return check_memory(model, source, source_mask), None
    c = model.config.encoder
    source, mask = as_source(c, source, source_mask, model.dtype)
    n = int(mask.sum(axis=1).max())
    what = f"embeddings, of {n} frames" if isinstance(c.input, FrameInput) else "tokens"
    check_fits("source", c.input.length(n), c, what)
    return source, mask


def encode_checked(
    model: Model, source: np.ndarray | Memory, mask: np.ndarray | None, *, tap: Tap
) -> Memory:
    """As `encode`, for a source and a mask that `checked_source` returned."""
    if isinstance(source, Memory):
        return source
    c, p, xp = model.config.encoder, model.params.encoder, model.xp
    inside = _rounding(model, tap).at("encoder")
    source_mask = None if mask is None or mask.all() else xp.asarray(mask)
    x, source_mask = embed_source(p, c, _as_array(model, source), source_mask, inside)
    positions = xp.arange(x.shape[1]) if source_mask is None else real_positions(source_mask)
    x = embed(p, c, x, positions, inside)
    key_mask = None if source_mask is None else padding_mask(source_mask)
    if p.register_tokens is not None:
        x, key_mask, positions = with_registers(p.register_tokens, x, key_mask, positions)
    rotation, biases = position_terms(p, c, positions, positions, x.dtype)
    masks = self_masks(c, key_mask, positions, positions)
    for i, layer in enumerate(p.layers):
        context = SelfContext(rotation, biases[i], masks[i])
        x = encoder_layer(layer, c, x, context, inside.at(f"layers.{i}"))
    hidden = inside("final", normalize(p.final_norm, c.norm, x))[:, c.n_register_tokens :]
    return _project(model, hidden, source_mask, tap)


def project_memory(
    model: Model, hidden: Array, mask: Array | None = None, *, tap: Tap = no_tap
) -> Memory:
    """The memory of the output of any encoder, for `generate` and the other loops.

    Parameters
    ----------
    model : Model
    hidden : float array, shape (batch, n_source, d_memory)
        The output of an encoder, or a list of arrays (n, d_memory); d_memory is the width of the
        model's own encoder. It is rounded to the model's dtype.
    mask : boolean array, shape (batch, n_source), optional
        True = real.
    tap : Tap
        Receives the keys and values of each cross-attention.

    Raises
    ------
    TypeError, ValueError
        If the arrays have an invalid type or shape.
    """
    check_model(model)
    check_tap(tap)
    width = model.config.encoder.d_model
    vectors, real = as_vectors("hidden", hidden, width, mask, dtype=model.dtype, of_mask="mask")
    mask = None if real.all() else model.xp.asarray(real)
    return _project(model, _as_array(model, vectors), mask, tap)


def _project(model: Model, hidden: Array, mask: Array | None, tap: Tap) -> Memory:
    c, dtype, keys, values = model.config.decoder, model.dtype, [], []
    hidden, tap = at_least_float32(hidden), _rounding(model, tap)
    for i, layer in enumerate(model.params.decoder.layers):
        inside = tap.at(f"decoder.layers.{i}.cross_attention")
        k, v = keys_values(layer.cross_attention, c.cross_attention, hidden)  # type: ignore[arg-type]
        # In C order, one head after another, as each step reads them.
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
    """Logits after each of ``tokens``, given the memory and the preceding tokens.

    Parameters
    ----------
    model : Model
    tokens : integer array (batch, n), or list of lists of token ids
        With a cache, the tokens after the cached ones; otherwise the whole target.
    memory : Memory
        From `encode`.
    cache : tuple of KeyValueCache, optional
        From `new_cache`. The keys and values of the tokens are appended to it.
    tap : Tap

    Returns
    -------
    array, shape (batch, n, vocab_size)
    """
    check_model(model)
    check_tap(tap)
    if not isinstance(memory, Memory):
        raise TypeError(f"memory must be a Memory from rs.encode, got {type(memory).__name__}")
    check_memory(model, memory)
    c = model.config.decoder
    ids, _ = as_tokens("target", tokens, c.vocab_size)
    if ids.shape[0] != memory.batch:
        raise ValueError(f"target must have the memory's {memory.batch} rows, got {ids.shape[0]}")
    check_fits("target", ids.shape[1] + (cache[0].length if cache else 0), c)
    return decode_checked(model, model.xp.asarray(ids), memory, cache=cache, tap=tap)


def decode_checked(
    model: Model, ids: Array, memory: Memory, *, cache: tuple[KeyValueCache, ...] | None, tap: Tap
) -> Array:
    """As `decode`, for validated token ids (batch, n) on the model's backend."""
    c, p, xp = model.config.decoder, model.params.decoder, model.xp
    start, n = cache[0].length if cache else 0, ids.shape[1]
    positions, so_far = xp.arange(start, start + n), xp.arange(start + n)
    causal = causal_mask(positions, so_far) if n > 1 else None  # one token attends to all
    masks = self_masks(c, causal, positions, so_far)
    source_mask = None if memory.mask is None else padding_mask(memory.mask)
    tap = _rounding(model, tap)
    inside = tap.at("decoder")
    x = embed(p, c, embed_tokens(p, c, ids, inside), positions, inside)
    rotation, biases = position_terms(p, c, positions, so_far, x.dtype)
    for i, layer in enumerate(p.layers):
        own = SelfContext(rotation, biases[i], masks[i], cache[i] if cache else None)
        cross = CrossContext(memory.keys[i], memory.values[i], source_mask)
        x = decoder_layer(layer, c, x, own, cross, inside.at(f"layers.{i}"))
    x = inside("final", normalize(p.final_norm, c.norm, x)) * model.config.logits_scale
    logits = linear(x, model.params.unembedding, model.params.logits_bias)
    logits = tap("logits", soft_cap(logits, model.config.logits_softcap))
    return logits.astype(model.dtype, copy=False)


def _as_array(model: Model, source: np.ndarray) -> Array:
    """A source on the model's backend; vectors in the dtype and arithmetic of the model."""
    if source.ndim == 2:
        return model.xp.asarray(source)
    return at_least_float32(asarray_like(source, model.params.decoder.embedding))


def _rounding(model: Model, tap: Tap) -> Tap:
    """``tap``, wrapped in a `RoundingTap` if the model is float16."""
    return RoundingTap(tap) if model.dtype == "float16" else tap


def new_cache(model: Model, batch: int, capacity: int) -> tuple[KeyValueCache, ...]:
    """Empty caches for `decode`, one per decoder layer, for ``capacity`` tokens."""
    check_model(model)
    c, like = model.config.decoder.self_attention, model.params.decoder.embedding
    return tuple(
        KeyValueCache(batch, c.n_kv_heads, capacity, c.d_k, c.d_v, like)
        for _ in model.params.decoder.layers
    )


def encoder_layer(
    p: LayerParams, c: StackConfig, x: Array, context: SelfContext, tap: Tap
) -> Array:
    """Self-attention, then feed-forward, each added to its input: (batch, n, d_model).

    A norm stands before the sublayer (pre-norm), on its result, or after the addition (post-norm).
    """
    h = normalize(p.self_norms.before, c.norm, x)
    h = self_attention(p.self_attention, c.self_attention, h, context, tap.at("self_attention"))
    x = x + normalize(p.self_norms.branch, c.norm, h)
    x = tap("after_self_attention", normalize(p.self_norms.after, c.norm, x))

    h = normalize(p.feed_forward_norms.before, c.norm, x)
    h = feed_forward(p.feed_forward, c.feed_forward, h, tap.at("feed_forward"))
    x = x + normalize(p.feed_forward_norms.branch, c.norm, h)
    return tap("after_feed_forward", normalize(p.feed_forward_norms.after, c.norm, x))


def decoder_layer(
    p: LayerParams, c: StackConfig, x: Array, own: SelfContext, cross: CrossContext, tap: Tap
) -> Array:
    """Self-attention, cross-attention, then feed-forward, each added to its input."""
    h = normalize(p.self_norms.before, c.norm, x)
    h = self_attention(p.self_attention, c.self_attention, h, own, tap.at("self_attention"))
    x = x + normalize(p.self_norms.branch, c.norm, h)
    x = tap("after_self_attention", normalize(p.self_norms.after, c.norm, x))

    h = normalize(p.cross_norms.before, c.norm, x)
    h = cross_attention(p.cross_attention, c.cross_attention, h, cross, tap.at("cross_attention"))  # type: ignore[arg-type]
    x = x + normalize(p.cross_norms.branch, c.norm, h)
    x = tap("after_cross_attention", normalize(p.cross_norms.after, c.norm, x))

    h = normalize(p.feed_forward_norms.before, c.norm, x)
    h = feed_forward(p.feed_forward, c.feed_forward, h, tap.at("feed_forward"))
    x = x + normalize(p.feed_forward_norms.branch, c.norm, h)
    return tap("after_feed_forward", normalize(p.feed_forward_norms.after, c.norm, x))


def feed_forward(p: FeedForwardParams, c: FeedForwardConfig, x: Array, tap: Tap = no_tap) -> Array:
    """activation(x W_in + b_in) W_out + b_out, or its gated form (Shazeer 2020, eq. 5-6)."""
    x, activation = tap("input", x), ACTIVATIONS[c.activation]
    hidden = tap("projected", linear(x, p.w_in, p.b_in))
    if c.gated:
        hidden = activation(tap("gate", linear(x, p.w_gate, p.b_gate))) * hidden
    else:
        hidden = activation(hidden)
    if c.hidden_norm is not None:  # a model without it has no quantity "activated" either
        hidden = normalize(p.hidden_norm, c.hidden_norm, tap("activated", hidden))
    return tap("out", linear(tap("hidden", hidden), p.w_out, p.b_out))


def embed_tokens(p: StackParams, c: StackConfig, ids: Array, tap: Tap) -> Array:
    """Scaled rows of the embedding table: (batch, n) -> (batch, n, d_model)."""
    return tap("tokens", at_least_float32(p.embedding[ids]) * c.embedding_scale)  # type: ignore[index]


def embed_source(
    p: StackParams, c: StackConfig, source: Array, mask: Array | None, tap: Tap
) -> tuple[Array, Array | None]:
    """Tokens or frames -> embeddings (batch, n_source, d_model), their mask (batch, n_source)."""
    if isinstance(c.input, FrameInput):
        x, mask = embed_frames(p, c.input, source, mask, tap)
        return tap("tokens", x * c.embedding_scale), mask
    if source.ndim == 3:  # embeddings in the place of tokens
        return tap("tokens", source), mask
    return embed_tokens(p, c, source, tap), mask


def embed(p: StackParams, c: StackConfig, x: Array, positions: Array, tap: Tap) -> Array:
    """Token embeddings ``x`` plus position embeddings, normalised where the model has a norm."""
    if c.embedding_norm == "before_positions":
        x = normalize(p.embedding_norm, c.norm, x)
    if c.positions is not None:
        x = x + tap("positions", position_embedding(c.positions, p.positions, positions, like=x))
    if c.embedding_norm == "after_positions":
        x = normalize(p.embedding_norm, c.norm, x)
    return tap("embed", x)


def position_terms(
    p: StackParams, c: StackConfig, q_positions: Array, k_positions: Array, dtype: str
) -> tuple[Rotation | None, list[Array | None]]:
    """Position terms of self-attention: the rotation of q and k, each layer's score bias."""
    relative, n_layers = c.relative_positions, c.n_layers
    if relative is None or not n_layers:
        return None, [None] * n_layers
    if isinstance(relative, RotaryPositions):
        return rotation(relative, q_positions, dtype), [None] * n_layers
    tables = p.relative_bias or (None,)  # ALiBi has no table, T5 one, UMT5 one per layer
    biases = [score_bias(relative, table, q_positions, k_positions, dtype) for table in tables]
    return None, biases if len(biases) == n_layers else biases * n_layers


def self_masks(
    c: StackConfig, mask: Array | None, q_positions: Array, k_positions: Array
) -> list[Array | None]:
    """The mask of each layer's self-attention: ``mask``, and the layer's window if it has one."""
    if not c.windows:
        return [mask] * c.n_layers
    masks = {w: window_mask(q_positions, k_positions, w) for w in c.windows if w is not None}
    if mask is not None:
        masks = {w: mask & window for w, window in masks.items()}
    return [mask if w is None else masks[w] for w in c.windows]


def with_registers(
    registers: Array, x: Array, mask: Array | None, positions: Array
) -> tuple[Array, Array | None, Array]:
    """Prepend the register tokens at positions -n to -1, never masked.

    They are learned vectors; x-transformers calls them memory tokens.
    """
    xp, n = array_namespace(x), registers.shape[0]
    before = xp.broadcast_to(xp.arange(-n, 0), (*positions.shape[:-1], n))
    return *prepend(registers, x, mask), xp.concat([before, positions], axis=-1)


def check_model(model: Any) -> None:
    """Raise unless ``model`` is a Model; for a name or a path, suggest `refseq2seq.load`."""
    if not isinstance(model, Model):
        cure = f": write rs.load({model!r})" if isinstance(model, str | os.PathLike) else ""
        raise TypeError(f"model must be a Model, got {type(model).__name__}{cure}")


def check_memory(model: Model, memory: Memory, source_mask: Array | None = None) -> Memory:
    """``memory``. Raise unless it fits the model's decoder, and no other mask is given."""
    if source_mask is not None:
        raise ValueError("source_mask cannot be given with a Memory, which has a mask of its own")
    config, c = model.config, model.config.decoder.cross_attention
    batch, n = (*getattr(memory.hidden, "shape", ()), 0, 0)[:2]
    keys, values = ((batch, c.n_kv_heads, n, d) for d in (c.d_k, c.d_v))  # type: ignore[union-attr]
    expected: dict[str, list[tuple[int, ...]]] = {
        "hidden": [(batch, n, config.encoder.d_model)],
        "mask": [] if memory.mask is None else [(batch, n)],
        "keys": [keys] * config.decoder.n_layers,
        "values": [values] * config.decoder.n_layers,
    }
    for name, shapes in expected.items():
        given, dtype = getattr(memory, name), "bool" if name == "mask" else str(model.dtype)
        arrays = given if isinstance(given, tuple) else () if given is None else (given,)
        found = [(getattr(x, "shape", ()), str(getattr(x, "dtype", type(x)))) for x in arrays]
        fit = [(shape, dtype) for shape in shapes]
        if found != fit or 0 in (batch, n):
            raise ValueError(
                f"a Memory's {name} must be {len(fit)} arrays {fit!r:.99}, none empty, got "
                f"{len(found)}, {found!r:.99}: make it with rs.encode or rs.project_memory and "
                "this model"
            )
        if any(array_namespace(x) is not model.xp for x in arrays):
            of, own = (type(x).__module__ for x in (arrays[0], model.params.decoder.embedding))
            raise TypeError(f"a Memory must be on the model's backend, {own}, got arrays of {of}")
    return memory


def check_fits(name: str, n: int, c: StackConfig, what: str = "tokens") -> None:
    """Raise if ``n`` tokens, called ``name`` in the error, exceed the position table."""
    if c.max_length is not None and n > c.max_length:
        raise ValueError(
            f"{name} has {n} {what}; the model serves at most {c.max_length}: shorten it"
        )
