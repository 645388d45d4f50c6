"""Converter for ``torch.nn.Transformer`` of PyTorch 2.13, or its two stacks.

They contain the layers only. Their users add the token embeddings, the positions and the
unembedding, so these are arguments here. Options are read from each stack by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal

import numpy as np

from ..checks import UnsupportedFeature
from ..config import (
    Activation,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    SinusoidalPositions,
    StackConfig,
    TokenInput,
)
from ..model import Model
from ..presets import plain_attention, plain_feed_forward, plain_stack
from .given import (
    arrays_and_options,
    numpy_array,
    numpy_arrays,
    plain_module,
    plain_name,
    wrong_module,
)
from .table import Table, convert_params, module_rows, numbered, same, special_tokens, transposed

ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu": "gelu_erf"}

Side = Literal["encoder", "decoder"]

# The arguments of nn.Transformer that both stacks share.
SHARED = (
    "d_model", "nhead", "dim_feedforward", "activation", "layer_norm_eps", "norm_first", "bias"
)  # fmt: skip
OPTIONS = (*SHARED, "num_encoder_layers", "num_decoder_layers")
STACK_OPTIONS = (*SHARED, "num_layers", "final_norm")

# The classes that an unmodified nn.Transformer, or a pair of its stacks, consists of.
PARTS = {
    "ModuleDict", "Transformer", "TransformerEncoder", "TransformerDecoder",
    "TransformerEncoderLayer", "TransformerDecoderLayer", "ModuleList", "MultiheadAttention",
    "NonDynamicallyQuantizableLinear", "Linear", "LayerNorm", "Dropout",
}  # fmt: skip


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
    """Convert an nn.Transformer, or its two stacks, with embeddings and an unembedding.

    Arrays may be NumPy arrays or PyTorch tensors, in PyTorch's shapes, or modules that contain
    them. Equal tables are tied. Modules, and mappings of arrays, may come from ``torch.compile``.

    Parameters
    ----------
    transformer : nn.Transformer, pair of its stacks, or mapping of names to arrays
        The pair is (nn.TransformerEncoder, nn.TransformerDecoder); the two may differ in
        everything but d_model, and lack the final norm, and so may the custom_encoder and
        custom_decoder of an nn.Transformer. The mapping has the names of
        ``nn.Transformer.state_dict()``; those of a pair have the prefix "encoder." or "decoder.".
    options : mapping, only if ``transformer`` is a mapping
        The arguments of nn.Transformer: d_model, nhead, num_encoder_layers,
        num_decoder_layers, dim_feedforward, activation ("relu" or "gelu"), layer_norm_eps,
        norm_first, bias. Or, if the stacks differ, ``{"encoder": {...}, "decoder": {...}}``, each
        with num_layers instead of the two numbers, and final_norm, which is True or False.
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
        If the transformer contains a module that is not PyTorch's own, the layers of a stack
        differ, or adapters are not merged.
    ValueError
        If an array is missing, unused, without values or of the wrong shape. The message names it.
    TypeError
        If an argument is neither a module nor arrays.
    """
    layers, options = arrays_and_options(
        transformer, options, "arguments of nn.Transformer", "torch", _reader
    )
    stacks = _by_stack(options)
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
        encoder=_stack(stacks, "encoder", len(source), embedding_scale, positions[0]),
        decoder=_stack(stacks, "decoder", len(target), embedding_scale, positions[1]),
        tied_embeddings=np.array_equal(source, target),
        tied_logits=np.array_equal(around["unembedding"], target),
        logits_scale=1.0,
        logits_bias="unembedding.bias" in around,
        logits_softcap=None,
        **special_tokens(decoder_start_id, eos_ids, pad_id),
    )
    table = numbered(config, _table(config))
    return Model(config=config, params=convert_params(config, table, layers | around, around))


def _by_stack(options: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The `STACK_OPTIONS` of each stack, given as such or as arguments of nn.Transformer."""
    if "encoder" in options or "decoder" in options:
        for side in ("encoder", "decoder"):
            if not isinstance(given := options.get(side), Mapping):
                kind = type(given).__name__
                raise TypeError(f"options[{side!r}] must be a mapping of its options, got {kind}")
            if missing := [name for name in STACK_OPTIONS if name not in given]:
                raise ValueError(f"options[{side!r}] must have all options, lacks {missing}")
        return options
    if missing := [name for name in OPTIONS if name not in options]:
        raise ValueError(f"options must have all arguments of nn.Transformer, lacks {missing}")
    for name in ("custom_encoder", "custom_decoder"):
        if options.get(name) is not None:
            raise UnsupportedFeature(f"{name}: give options by stack, {{'encoder': ..., ...}}")
    shared = {name: options[name] for name in SHARED} | {"final_norm": True}  # even if post-norm
    return {
        side: shared | {"num_layers": options[f"num_{side}_layers"]}
        for side in ("encoder", "decoder")
    }


def _stack(
    stacks: Mapping[str, Mapping[str, Any]],
    side: Side,
    vocab_size: int,
    embedding_scale: float,
    positions: LearnedPositions | SinusoidalPositions | None,
) -> StackConfig:
    options = stacks[side]
    if options["activation"] not in ACTIVATIONS:
        raise UnsupportedFeature(
            f"activation = {options['activation']!r}: supported are {list(ACTIVATIONS)}"
        )
    d_model, n_heads, bias = options["d_model"], options["nhead"], options["bias"]
    attention = plain_attention(
        n_heads, d_model // n_heads, biases=("q", "k", "v", "o") if bias else ()
    )
    return plain_stack(
        attention,
        cross=side == "decoder",
        input=TokenInput(vocab_size=vocab_size),
        d_model=d_model,
        n_layers=options["num_layers"],
        embedding_scale=embedding_scale,
        positions=positions,
        norm=NormConfig(kind="layer_norm", eps=options["layer_norm_eps"], gain="vector", bias=bias),
        norm_positions=("before",) if options["norm_first"] else ("after",),
        final_norm=options["final_norm"],
        feed_forward=plain_feed_forward(
            options["dim_feedforward"],
            ACTIVATIONS[options["activation"]],
            biases=("in", "out") if bias else (),
        ),
    )


def _table(c: ModelConfig) -> Table:
    """The table from our names to theirs."""
    table = {
        **module_rows("encoder.", "encoder.", LAYERS, norm=c.encoder.norm_positions[0], last=2),
        **module_rows("decoder.", "decoder.", LAYERS, norm=c.decoder.norm_positions[0], last=3),
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


def _read_module(given: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an nn.Transformer or of a pair of stacks, and the options of each stack."""
    transformer = _whole(given)
    arrays = numpy_arrays(transformer.state_dict())
    for name, part in transformer.named_modules():
        kind = type(plain_module(part))
        if not kind.__module__.startswith("torch.nn.modules.") or kind.__name__ not in PARTS:
            raise UnsupportedFeature(f"transformer.{plain_name(name)} is a {kind.__qualname__}")
    return arrays, {
        "encoder": _read_stack("encoder", transformer.encoder),
        "decoder": _read_stack("decoder", transformer.decoder),
    }


def _whole(given: Any) -> Any:
    """An nn.Transformer, or one module of a pair's stacks, in which they have the same names."""
    import torch

    pair = given if isinstance(given, tuple) and len(given) == 2 else ()
    if pair and all(isinstance(part, torch.nn.Module) for part in pair):
        encoder, decoder = map(plain_module, pair)
        return torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    transformer = plain_module(given)
    if not isinstance(transformer, torch.nn.Transformer):
        kinds = "an nn.Transformer, a pair (nn.TransformerEncoder, nn.TransformerDecoder)"
        raise wrong_module("transformer", kinds, transformer)
    return transformer


def _read_stack(side: Side, stack: Any) -> dict[str, Any]:
    """The `STACK_OPTIONS` of a stack, of which all layers must have the same."""
    import torch

    kind, expected = type(plain_module(stack)).__name__, f"Transformer{side.title()}"
    if kind != expected or not len(stack.layers):
        raise UnsupportedFeature(
            f"transformer.{side} is a {kind}; it must be an nn.{expected} with at least one layer"
        )
    norms = [part for part in stack.modules() if type(part) is torch.nn.LayerNorm]
    attentions = [part for part in stack.modules() if type(part) is torch.nn.MultiheadAttention]
    if any(attention.add_zero_attn for attention in attentions):
        raise UnsupportedFeature("add_zero_attn")
    functions = {torch.nn.functional.relu: "relu", torch.nn.functional.gelu: "gelu"}
    found = {
        "d_model": [attention.embed_dim for attention in attentions],
        "nhead": [attention.num_heads for attention in attentions],
        "dim_feedforward": [layer.linear1.out_features for layer in stack.layers],
        "activation": [functions.get(x.activation, x.activation) for x in stack.layers],
        "layer_norm_eps": [norm.eps for norm in norms],
        "norm_first": [layer.norm_first for layer in stack.layers],
        "bias": [part.bias is not None for part in (*norms, *(x.linear1 for x in stack.layers))],
    }
    shared = {option: _only(side, option, values) for option, values in found.items()}
    return shared | {"num_layers": len(stack.layers), "final_norm": stack.norm is not None}


def _only(side: Side, option: str, values: list[Any]) -> Any:
    """The single value that all layers and norms of a stack share."""
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise UnsupportedFeature(
            f"layers or norms of the {side} that differ in {option}: {different}"
        )
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
