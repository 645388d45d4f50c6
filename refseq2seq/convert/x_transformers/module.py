"""A live module of x-transformers 2.31 as arrays and options.

The reader must notice everything that affects the module's output, so it has two steps. First
it reads the implemented options from the module. Then it builds a second module with these
options and compares all classes, parameter shapes, buffers and attributes of the two. A
difference means that the module has an option that is not implemented, or was altered.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn
from x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, XTransformer
from x_transformers import x_transformers as xt
from x_transformers.continuous import ContinuousTransformerWrapper

from ...checks import UnsupportedFeature
from ..given import numpy_arrays, plain_module, plain_name, wrong_module
from .options import AFTER_ENCODER

# Attributes that affect only training, speed, or arguments that are not used here.
WITHOUT_EFFECT = {
    "training", "dropout", "layer_dropouts", "cross_attn_tokens_dropout", "emb_frac_gradient",
    "train_max_recycle_steps", "train_max_looped_steps", "max_mem_len", "shift_mem_down",
    "create_causal_mask", "sdp_context_manager", "_is_torch_compile", "_compiled_call_impl",
}  # fmt: skip


def read_module(module: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and options of a module that `from_x_transformers` accepts.

    They have the names that an XTransformer gives them.
    """
    encoder, decoder = _pair(plain_module(module))
    options: dict[str, Any] = {}
    if type(plain_module(decoder)) is AutoregressiveWrapper:
        options["pad_value"], decoder = decoder.pad_value, decoder.net
    arrays: dict[str, np.ndarray] = {}
    for prefix, name, part in (("enc_", "encoder", encoder), ("dec_", "decoder.net", decoder)):
        wrapper = plain_module(part)
        classes = list(READERS) if name == "encoder" else [TransformerWrapper]
        if type(wrapper) not in classes:
            raise UnsupportedFeature(
                f"{name} is a {type(wrapper).__qualname__}; implemented are "
                f"{', '.join(c.__name__ for c in classes)}"
            )
        arrays |= numpy_arrays({f"{name}.{key}": x for key, x in wrapper.state_dict().items()})
        of_wrapper, of_layers = READERS[type(wrapper)](wrapper, name), _read_layers(wrapper, name)
        _check_same(name, part, _build(prefix, type(wrapper), of_wrapper, of_layers))
        options |= {prefix + option: value for option, value in (of_wrapper | of_layers).items()}
    options["tie_token_emb"] = decoder.token_emb is getattr(encoder, "token_emb", None)
    return arrays, options


def _pair(module: Any) -> tuple[Any, Any]:
    if type(module) is XTransformer:
        return module.encoder, module.decoder
    if isinstance(module, tuple) and len(module) == 2:
        return module
    kinds = "an XTransformer, a pair (encoder, decoder) of wrappers"
    raise wrong_module("module", kinds, module)


def _read_wrapper(wrapper: TransformerWrapper, name: str) -> dict[str, Any]:
    options = {"num_tokens": wrapper.num_tokens} | _read_embeddings(wrapper)
    if name != "encoder" and type(wrapper.to_logits) is FunctionType:
        if inspect.getclosurevars(wrapper.to_logits).nonlocals["self"] is not wrapper:
            raise UnsupportedFeature(
                f"{name} is a copy whose tied logits still use the embedding of its original"
            )
        options |= {"tie_embedding": True, "tie_embedding_scale": wrapper.tie_embedding_scale}
    return options


def _read_continuous(wrapper: ContinuousTransformerWrapper, name: str) -> dict[str, Any]:
    dim = wrapper.attn_layers.dim
    return {
        "dim_in": getattr(wrapper.project_in, "in_features", dim),
        "use_identity_if_same_dim": type(wrapper.project_in) is nn.Identity,
        **_read_embeddings(wrapper),
    }


def _read_embeddings(wrapper: Any) -> dict[str, Any]:
    return {
        "max_seq_len": wrapper.max_seq_len,
        "num_memory_tokens": len(getattr(wrapper, "memory_tokens", ())),
        "use_abs_pos_emb": type(wrapper.pos_emb) is not xt.always,
        "scaled_sinu_pos_emb": type(wrapper.pos_emb) is xt.ScaledSinusoidalEmbedding,
        "post_emb_norm": type(wrapper.post_emb_norm) is xt.LayerNorm,
    }


def _read_vit(wrapper: xt.ViTransformerWrapper, name: str) -> dict[str, Any]:
    p, n_features = wrapper.patch_size, len(wrapper.patch_to_embedding[0].gamma)
    return {
        "image_size": math.isqrt(wrapper.pos_embedding.shape[1]) * p,
        "patch_size": p,
        "channels": n_features // p**2,
        "num_register_tokens": len(getattr(wrapper, "register_tokens", ())),
        "post_emb_norm": type(wrapper.post_emb_norm) is xt.LayerNorm,
    }


READERS: dict[type, Callable[[Any, str], dict[str, Any]]] = {
    TransformerWrapper: _read_wrapper,
    ContinuousTransformerWrapper: _read_continuous,
    xt.ViTransformerWrapper: _read_vit,
}


def _read_layers(wrapper: Any, name: str) -> dict[str, Any]:
    layers = wrapper.attn_layers
    block = ("a", "f") if name == "encoder" else ("a", "c", "f")
    depth = len(layers.layer_types) // len(block)
    if depth < 1 or tuple(layers.layer_types) != block * depth:
        raise UnsupportedFeature(
            f"{name}.attn_layers.layer_types is {layers.layer_types}; only repetitions of {block} "
            "are implemented: not cross_attend in an encoder nor its absence in a decoder, "
            "only_cross, only_attn, macaron, custom_layers, par_ratio or sandwich_coef"
        )
    norm = next(norm for norm in [*layers.layers[0][0], xt.SimpleRMSNorm(1)] if norm is not None)
    has_offset = (xt.LayerNorm, xt.RMSNorm, xt.ScaleNorm)
    options = {
        "dim": layers.dim,
        "depth": depth,
        "heads": layers.attn_heads,
        "layers_execute_order": tuple(layers.layers_execute_order),
        "use_scalenorm": type(norm) is xt.ScaleNorm,
        "use_rmsnorm": type(norm) is xt.RMSNorm,
        "use_simple_rmsnorm": type(norm) is xt.SimpleRMSNorm,
        "norm_add_unit_offset": norm.unit_offset if isinstance(norm, has_offset) else True,
        "pre_norm": layers.pre_norm,
        "pre_norm_has_final_norm": type(layers.final_norm) is not xt.Identity,
        "pre_and_post_norm": layers.pre_and_post_norm,
        "sandwich_norm": layers.sandwich_norm,
        "disable_abs_pos_emb": layers.disable_abs_pos_emb,
    }
    options |= _read_relative_positions(layers)
    for place, part in zip(block, layers.layers, strict=False):
        if place == "f":
            options |= _read_feed_forward(_first(xt.FeedForward, part), layers.dim)
        else:
            prefix = "attn_" if place == "a" else "cross_attn_"
            options |= _read_attention(_first(xt.Attention, part), prefix)
    return options


def _first(kind: type, part: nn.Module) -> Any:
    """The first submodule of class ``kind``, inside any wrappers."""
    for inner in part.modules():
        if isinstance(inner, kind):
            return inner
    raise UnsupportedFeature(f"a layer has no {kind.__qualname__}, only {part}")


def _read_relative_positions(layers: Any) -> dict[str, Any]:
    if type(layers.rel_pos) is xt.AlibiPositionalBias:
        options = {"alibi_pos_bias": True, "alibi_num_heads": layers.rel_pos.heads}
    elif type(layers.rel_pos) is xt.RelativePositionBias:
        options = {
            "rel_pos_bias": True,
            "rel_pos_num_buckets": layers.rel_pos.num_buckets,
            "rel_pos_max_distance": layers.rel_pos.max_distance,
        }
    else:
        options = {}
    if layers.rotary_pos_emb is not None:
        # The last of n frequencies is 10000^(-2(n - 1)/d), where d is 2n or 2n - 1.
        frequencies = layers.rotary_pos_emb.inv_freq
        n, last = len(frequencies), frequencies[-1].item()
        d = min((2 * n - 1, 2 * n), key=lambda d: abs(10000.0 ** (-2 * (n - 1) / d) - last))
        options |= {"rotary_pos_emb": True, "rotary_emb_dim": d}
    return options


def _read_attention(attention: xt.Attention, prefix: str) -> dict[str, Any]:
    heads, kv_heads = attention.heads, attention.kv_heads
    options = {
        "dim_head": attention.to_q.out_features // heads,
        "dim_context": attention.to_k.in_features,
        "kv_heads": kv_heads,
        "value_dim_head": attention.to_v.out_features // kv_heads,
        "project_out": type(attention.to_out) is not nn.Identity,
        "num_mem_kv": attention.num_mem_kv,
        "qk_norm": attention.qk_norm,
        "qk_norm_scale": attention.qk_norm_scale,
        "qk_norm_dim_scale": attention.qk_norm_dim_scale,
        "qk_rmsnorm": attention.q_rmsnorm is not None,
        "gate_values": attention.to_v_gate is not None,
        "gate_values_headwise": attention.gate_values_headwise,
        "gate_value_heads": attention.to_v_head_gate is not None,
        "head_scale": attention.head_scale,
        "softclamp_logits": attention.attend.softclamp_logits,
        "logit_softclamp_value": attention.attend.logit_softclamp_value,
        "flash": attention.attend.flash,
    }
    return {prefix + option: value for option, value in options.items()}


def _read_feed_forward(feed_forward: xt.FeedForward, dim: int) -> dict[str, Any]:
    into, *_ = parts = list(feed_forward.ff)
    glu = type(into) is xt.GLU
    activation = into.act if glu else into[-1]
    out = [part for part in parts if type(part) is nn.Linear][-1]
    return {
        "ff_mult": (out.in_features + 0.5) / dim,  # d_ff is rounded down
        "ff_glu": glu,
        "ff_swish": type(activation) is nn.SiLU,
        "ff_relu_squared": type(activation) is xt.ReluSquared,
        "ff_post_act_ln": any(type(part) is xt.LayerNorm for part in parts),
        "ff_no_bias": out.bias is None,
    }


def _build(
    prefix: str, kind: type, of_wrapper: dict[str, Any], of_layers: dict[str, Any]
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # leave the caller's random numbers alone
        if prefix == "enc_":
            layers = Encoder(verbose=False, **of_layers)
        else:
            layers = Decoder(verbose=False, cross_attend=True, **of_layers)
        if kind is TransformerWrapper:
            of_wrapper = {"return_only_embed": prefix == "enc_"} | of_wrapper
        module: nn.Module = kind(attn_layers=layers, **of_wrapper)
        return module


def _check_same(name: str, module: nn.Module, implemented: nn.Module) -> None:
    found, expected = dict(_traits(module)), dict(_traits(implemented))
    for path in found | expected:
        if name == "encoder" and path.startswith(AFTER_ENCODER):
            continue
        a, b = found.get(path), expected.get(path)
        if not _equal(a, b):
            raise UnsupportedFeature(
                f"x-transformers' {name}.{path} is {a}, which is not implemented; only {b} is"
            )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.cpu(), b.to(a.dtype))
    return type(a) is type(b) and a == b


def _traits(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that determines what a module computes, by name: strings and buffers' tensors."""
    for path, part in module.named_modules(remove_duplicate=False):
        at = plain_name(f"{path}.") if path else ""
        if hasattr(part, "_orig_mod"):
            for name, value in vars(part).items():  # otherwise it computes what the original does
                if name.endswith("_hooks") and value:
                    yield f"{at}compiled.{name}", _text(value)
        elif type(part) is not nn.Dropout:
            yield from _traits_of(at, part)


def _traits_of(at: str, part: nn.Module) -> Iterator[tuple[str, Any]]:
    """The traits of one module, without its submodules."""
    yield f"{at}class", f"{type(part).__module__}.{type(part).__qualname__}"
    for name, value in vars(part).items():
        if name == "_parameters":
            for parameter, x in value.items():
                if x is not None:
                    yield f"{at}{parameter}", f"a parameter of shape {tuple(x.shape)}"
        elif name == "_buffers":
            for buffer, x in value.items():
                if x is not None and buffer != "bias":  # ALiBi's cache of its last call
                    yield f"{at}{buffer}", x
        elif name not in WITHOUT_EFFECT | {"_modules"} and value is not None:
            yield f"{at}{name}", _text(value)


def _text(value: Any) -> str:
    """A string for a value; two strings are equal if and only if the values are."""
    if type(value) is FunctionType:
        return f"{value.__module__}.{value.__qualname__}"
    if type(value) is xt.always:
        return f"always {value.val!r}"
    return repr(sorted(value) if type(value) is set else value)
