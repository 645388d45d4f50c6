"""Converter for ``torch.nn.Transformer`` of PyTorch 2.13.

nn.Transformer contains the layers only. Its users add the token embeddings, the positions and
the unembedding, so these are arguments here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal

import numpy as np

from ..config import (
    Activation,
    FeedForwardConfig,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    SinusoidalPositions,
    StackConfig,
)
from ..model import Model
from ..presets import plain_attention
from .given import (
    arrays_and_options,
    numpy_array,
    numpy_arrays,
    plain_module,
    plain_name,
    wrong_module,
)
from .table import (
    Table,
    UnsupportedFeature,
    convert_params,
    module_rows,
    numbered,
    same,
    special_tokens,
    transposed,
)

ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu_erf"}

OPTIONS = (
    "d_model",
    "nhead",
    "num_encoder_layers",
    "num_decoder_layers",
    "dim_feedforward",
    "activation",
    "layer_norm_eps",
    "norm_first",
    "bias",
)

# The classes that an unmodified nn.Transformer consists of.
PARTS = {
    "Transformer",
    "TransformerEncoder",
    "TransformerDecoder",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "ModuleList",
    "MultiheadAttention",
    "NonDynamicallyQuantizableLinear",
    "Linear",
    "LayerNorm",
    "Dropout",
}


# Our names of modules -> theirs. {norm} is the place of the norms, {last} the last norm's number.
LAYERS = {
    "layers.*.self_norms.{norm}": "layers.*.norm1",
    "layers.*.self_attention.o": "layers.*.self_attn.out_proj",
    "layers.*.cross_norms.{norm}": "layers.*.norm2",
    "layers.*.cross_attention.o": "layers.*.multihead_attn.out_proj",
    "layers.*.feed_forward_norms.{norm}": "layers.*.norm{last}",
    "layers.*.feed_forward.in": "layers.*.linear1",
    "layers.*.feed_forward.out": "layers.*.linear2",
    "final_norm": "norm",
}
# Our attentions -> the arrays in which theirs stack the maps to queries, keys and values.
PACKED = {
    "encoder.layers.*.self_attention": "encoder.layers.*.self_attn.in_proj",
    "decoder.layers.*.self_attention": "decoder.layers.*.self_attn.in_proj",
    "decoder.layers.*.cross_attention": "decoder.layers.*.multihead_attn.in_proj",
}


def from_pytorch(
    transformer: Any,
    options: Mapping[str, Any] | None = None,
    *,
    source_embedding: Any,
    target_embedding: Any,
    unembedding: Any,
    embedding_scale: float,
    source_positions: Any,
    target_positions: Any,
    decoder_start_id: int,
    eos_ids: Sequence[int],
    pad_id: int,
) -> Model:
    """Convert an nn.Transformer, its embeddings and its unembedding.

    Arrays may be NumPy arrays or PyTorch tensors, in PyTorch's shapes, or modules that contain
    them. Equal tables are tied. Modules, and mappings of arrays, may come from ``torch.compile``.

    Parameters
    ----------
    transformer : nn.Transformer, or mapping of names to arrays
        The mapping has the names of ``nn.Transformer.state_dict()``.
    options : mapping, only if ``transformer`` is a mapping
        The arguments of nn.Transformer: d_model, nhead, num_encoder_layers,
        num_decoder_layers, dim_feedforward, activation ("relu" or "gelu"), layer_norm_eps,
        norm_first, bias.
    source_embedding : nn.Embedding, or array (n_source_tokens, d_model)
    target_embedding : nn.Embedding, or array (n_target_tokens, d_model)
    unembedding : nn.Linear, array, or pair of an array and a bias
        The array has shape (n_target_tokens, d_model), the bias (n_target_tokens,).
    embedding_scale : float
        Multiplies the token vectors before positions are added: sqrt(d_model) in the
        paper and in PyTorch's tutorials, 1.0 for no scaling.
    source_positions, target_positions : nn.Embedding, array, SinusoidalPositions or None
        Row p of an nn.Embedding or array (n_positions, d_model) is added at position p,
        counted from 0. None adds nothing.
    decoder_start_id, eos_ids, pad_id : int, sequence of int, int
        The token that begins a target, those that end it, and the padding after them.

    Returns
    -------
    Model
        bfloat16 arrays become float32.

    Raises
    ------
    UnsupportedFeature
        If the transformer contains a module that is not PyTorch's own, its layers differ, or
        adapters are not merged.
    ValueError
        If an array is missing, unused, without values or of the wrong shape. The message names it.
    TypeError
        If an argument is neither a module nor arrays.
    """
    layers, options = arrays_and_options(
        transformer, options, "arguments of nn.Transformer", "torch", _reader
    )
    if missing := [name for name in OPTIONS if name not in options]:
        raise ValueError(f"options must have all arguments of nn.Transformer, lacks {missing}")
    around = {
        "source_embedding": _weight("source_embedding", source_embedding),
        "target_embedding": _weight("target_embedding", target_embedding),
        **_read_unembedding(unembedding),
    }
    positions: list[LearnedPositions | SinusoidalPositions | None] = []
    for name, given in (
        ("source_positions", source_positions),
        ("target_positions", target_positions),
    ):
        if given is None or isinstance(given, SinusoidalPositions):
            positions.append(given)
        else:
            around[name] = _weight(name, given)
            n_positions = len(around[name])
            positions.append(LearnedPositions(n_positions=n_positions, offset=0, scale=1.0))
    source, target = around["source_embedding"], around["target_embedding"]
    config = ModelConfig(
        encoder=_stack(options, "encoder", len(source), embedding_scale, positions[0]),
        decoder=_stack(options, "decoder", len(target), embedding_scale, positions[1]),
        tied_embeddings=np.array_equal(source, target),
        tied_logits=np.array_equal(around["unembedding"], target),
        logits_scale=1.0,
        logits_bias="unembedding.bias" in around,
        **special_tokens(decoder_start_id, eos_ids, pad_id),
    )
    table = numbered(config, _table("before" if options["norm_first"] else "after"))
    return Model(config=config, params=convert_params(config, table, layers | around, around))


def _stack(
    options: Mapping[str, Any],
    side: Literal["encoder", "decoder"],
    vocab_size: int,
    embedding_scale: float,
    positions: LearnedPositions | SinusoidalPositions | None,
) -> StackConfig:
    if options["activation"] not in ACTIVATIONS:
        raise UnsupportedFeature(
            f"activation = {options['activation']!r}: supported are {list(ACTIVATIONS)}"
        )
    d_model, n_heads, bias = options["d_model"], options["nhead"], options["bias"]
    attention = plain_attention(
        n_heads, d_model // n_heads, biases=("q", "k", "v", "o") if bias else ()
    )
    return StackConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=options[f"num_{side}_layers"],
        embedding_scale=embedding_scale,
        embedding_norm="none",
        positions=positions,
        relative_positions=None,
        n_register_tokens=0,
        norm=NormConfig(kind="layer_norm", eps=options["layer_norm_eps"], gain="vector", bias=bias),
        norm_positions=("before",) if options["norm_first"] else ("after",),
        final_norm=True,  # even after post-norm layers
        self_attention=attention,
        cross_attention=attention if side == "decoder" else None,
        feed_forward=FeedForwardConfig(
            d_ff=options["dim_feedforward"],
            activation=ACTIVATIONS[options["activation"]],
            gated=False,
            biases=("in", "out") if bias else (),
            hidden_norm=None,
        ),
    )


def _table(place: Literal["before", "after"]) -> Table:
    """The table from our names to theirs; ``place`` is the position of the norms."""
    table = {
        **module_rows("encoder.", "encoder.", LAYERS, norm=place, last=2),
        **module_rows("decoder.", "decoder.", LAYERS, norm=place, last=3),
        "encoder.embedding": ("source_embedding", same),
        "encoder.positions": ("source_positions", same),
        "decoder.embedding": ("target_embedding", same),
        "decoder.positions": ("target_positions", same),
        "unembedding": ("unembedding", transposed),
        "logits_bias": ("unembedding.bias", same),
    }
    for ours, theirs in PACKED.items():
        for i, name in enumerate("qkv"):
            table[f"{ours}.w_{name}"] = f"{theirs}_weight", partial(_third, i)
            table[f"{ours}.b_{name}"] = f"{theirs}_bias", partial(_third, i)
    return table


def _third(i: int, packed: np.ndarray) -> np.ndarray:
    """The queries' (0), keys' (1) or values' (2) part of a packed matrix or bias."""
    return np.split(packed, 3)[i].T  # a bias is its own transpose


def _reader() -> Callable[[Any], tuple[dict[str, np.ndarray], dict[str, Any]]]:
    import_module("torch")
    return _read_module


def _read_module(transformer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an nn.Transformer, and the arguments of its constructor."""
    import torch

    transformer = plain_module(transformer)
    if not isinstance(transformer, torch.nn.Transformer):
        raise wrong_module("transformer", "an nn.Transformer", transformer)
    arrays = numpy_arrays(transformer.state_dict())
    for name, part in transformer.named_modules():
        kind = type(plain_module(part))
        if not kind.__module__.startswith("torch.nn.modules.") or kind.__name__ not in PARTS:
            raise UnsupportedFeature(f"transformer.{plain_name(name)} is a {kind.__qualname__}")
    encoder, decoder = transformer.encoder, transformer.decoder
    layers = [*encoder.layers, *decoder.layers]
    attentions = [layer.self_attn for layer in layers]
    attentions += [layer.multihead_attn for layer in decoder.layers]
    norms = [m for m in transformer.modules() if type(m) is torch.nn.LayerNorm]
    if any(attention.add_zero_attn for attention in attentions):
        raise UnsupportedFeature("add_zero_attn")
    functions = {torch.nn.functional.relu: "relu", torch.nn.functional.gelu: "gelu"}
    options = {
        "d_model": transformer.d_model,
        "nhead": _only("nhead", [attention.num_heads for attention in attentions]),
        "num_encoder_layers": len(encoder.layers),
        "num_decoder_layers": len(decoder.layers),
        "dim_feedforward": _only("dim_feedforward", [x.linear1.out_features for x in layers]),
        "activation": _only(
            "activation", [functions.get(x.activation, x.activation) for x in layers]
        ),
        "layer_norm_eps": _only("layer_norm_eps", [norm.eps for norm in norms]),
        "norm_first": _only("norm_first", [layer.norm_first for layer in layers]),
        "bias": _only("bias", [layer.linear1.bias is not None for layer in layers]),
    }
    return arrays, options


def _only(option: str, values: Iterable[Any]) -> Any:
    """The single value that all layers share."""
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise UnsupportedFeature(f"layers that differ in {option}: {different}")
    return different[0]


def _read_unembedding(given: Any) -> dict[str, np.ndarray]:
    weight, bias = given if isinstance(given, tuple) else (given, None)
    if hasattr(given, "in_features"):  # nn.Linear
        weight, bias = given.weight, given.bias
    arrays = {"unembedding": _weight("unembedding", weight)}
    if bias is not None:
        arrays["unembedding.bias"] = numpy_array("unembedding.bias", bias)
    return arrays


def _weight(name: str, given: Any) -> np.ndarray:
    """The table (rows, d_model) of an nn.Embedding, or ``given`` itself as an array."""
    if hasattr(given, "num_embeddings"):  # nn.Embedding
        if given.max_norm is not None:
            raise UnsupportedFeature(f"{name}: max_norm = {given.max_norm}")
        given = given.weight
    table = numpy_array(name, given)
    if table.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, (rows, d_model), got {table.shape}")
    return table
