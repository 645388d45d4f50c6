"""Images to text: ViT or DeiT with the decoder of TrOCR or of a BART, or such a decoder alone.

Frames are the patches of an image: see `refseq2seq.patches`. A decoder alone has an encoder of 0
layers: its source is the output of any other encoder.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...checks import UnsupportedFeature
from ...config import (
    FrameInput,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    StackConfig,
)
from ...presets import plain_attention, plain_feed_forward, plain_frame_layer, plain_stack
from ..table import SpecialTokens, Table, module_rows, same, transposed
from . import bart
from .common import Arrays, Conversion, Fields, activation, token_tables

MODEL = "vision-encoder-decoder"
CLASS_TOKENS = {"vit": ("cls_token",), "deit": ("cls_token", "distillation_token")}
DECODERS = ("trocr", "bart", "mbart", "blenderbot", "blenderbot-small", "mvp", "plbart")

# Our names of a layer's modules -> theirs in a live module of transformers 5.24, and in files.
VIT = {
    "self_norms.before": ("layernorm_before", "layernorm_before"),
    "self_attention.q": ("attention.q_proj", "attention.attention.query"),
    "self_attention.k": ("attention.k_proj", "attention.attention.key"),
    "self_attention.v": ("attention.v_proj", "attention.attention.value"),
    "self_attention.o": ("attention.o_proj", "attention.output.dense"),
    "feed_forward_norms.before": ("layernorm_after", "layernorm_after"),
    "feed_forward.in": ("mlp.fc1", "intermediate.dense"),
    "feed_forward.out": ("mlp.fc2", "output.dense"),
}
LAYERS = ("encoder.layers.*.", "encoder.encoder.layer.*.")
EMBEDDINGS = "encoder.embeddings."
PATCHES = f"{EMBEDDINGS}patch_embeddings.projection"
POOLER = {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
BRIDGE = "enc_to_dec_proj"


def check(c: Fields) -> None:
    """Raise unless both parts of an encoder-decoder are of supported types."""
    encoder, decoder = (Fields(c[side])["model_type"] for side in ("encoder", "decoder"))
    if decoder not in DECODERS:
        raise UnsupportedFeature(
            f"decoder.model_type = {decoder!r}: supported are {', '.join(DECODERS)}"
        )
    if encoder not in CLASS_TOKENS:
        raise UnsupportedFeature(
            f"encoder.model_type = {encoder!r}: supported are {', '.join(CLASS_TOKENS)}; convert "
            "the decoder alone with the settings of the pair, from_huggingface(module.decoder, "
            "generation_config=module.generation_config), and generate from this encoder's output"
        )


def completed(json_fields: dict[str, Any]) -> Fields:
    """The fields of a config, with the defaults of its config classes for missing ones."""
    c = Fields({"is_encoder_decoder": True} | json_fields)
    if c["model_type"] != MODEL:
        return _completed_decoder(c)
    decoder = _completed_decoder(c["decoder"])
    made = {"encoder": {"qkv_bias": True} | c["encoder"], "decoder": decoder}
    return Fields(c | made | {"vocab_size": decoder["vocab_size"]})


def _completed_decoder(c: dict[str, Any]) -> Fields:
    return Fields({"cross_attention_hidden_size": None, "tie_word_embeddings": True} | c)


def convert(c: Fields, arrays: Arrays, tokens: SpecialTokens) -> Conversion:
    """The configuration and the table of arrays for an encoder-decoder, or for a decoder alone."""
    c = completed(c)
    if c["model_type"] != MODEL:
        return _conversion(c, "", None, arrays, tokens)
    vit, decoder = Fields(c["encoder"]), Fields(c["decoder"])
    learned = [f"{EMBEDDINGS}{name}" for name in CLASS_TOKENS[vit["model_type"]]]
    encoder = _vit(vit, len(learned))
    config, table, unused, _ = _conversion(decoder, "decoder.", encoder, arrays, tokens)
    made = _joined(vit, learned, arrays)
    unused |= {*learned, f"{EMBEDDINGS}mask_token", *POOLER}
    if vit["hidden_size"] != decoder["d_model"] and not decoder["cross_attention_hidden_size"]:
        made |= _bridged(config, arrays)
        unused |= {f"{BRIDGE}.weight", f"{BRIDGE}.bias"}
    return Conversion(config, {**table, **_vit_table(arrays)}, unused, made)


def _conversion(
    c: Fields, prefix: str, encoder: StackConfig | None, arrays: Arrays, tokens: SpecialTokens
) -> Conversion:
    """The conversion of a decoder, whose arrays have ``prefix``, without arrays of the encoder."""
    family, head = _family(c)
    bart.check_consistent(c, family)
    inside, head = f"{prefix}model.decoder.", f"{prefix}{head}"
    embedding = f"{inside}embed_tokens.weight"
    tied = (embedding, head) if c["tie_word_embeddings"] else ()
    if family.positions != "learned" and tokens["decoder_start_id"] == c["pad_token_id"]:
        raise UnsupportedFeature(
            "decoder_start_token_id = pad_token_id with use_learned_position_embeddings = False: "
            "transformers gives this token no position"
        )
    tables, ties = token_tables(arrays, embedding, embedding, head, tied=tied)
    decoder = bart.stack(c, family, "decoder", c["vocab_size"])
    config = ModelConfig(
        encoder=encoder or _alone(decoder, c["cross_attention_hidden_size"] or c["d_model"]),
        decoder=decoder,
        tied_embeddings=False,  # the encoder has no table
        tied_logits=ties["tied_logits"],
        logits_scale=1.0,
        logits_bias=False,
        logits_softcap=None,
        **tokens,
    )
    table = {**module_rows("decoder.", inside, bart.STACK, norm=family.norm), **tables}
    unused = {embedding, head, f"{inside}version", f"{inside}embed_positions._float_tensor"}
    return Conversion(config, table, unused)


def _family(c: Fields) -> tuple[bart.Family, str]:
    """The conventions of a decoder, and the name of its unembedding."""
    if c["model_type"] != "trocr":
        return bart.FAMILIES[c["model_type"]], "lm_head.weight"
    learned, normed = c["use_learned_position_embeddings"], c["layernorm_embedding"]
    family = bart.Family(
        norm="after",
        embedding_norm=bart.NORM if normed else bart.NO_NORM,
        positions="learned" if learned else "tensor2tensor",
        offset=2 if learned else "pad_token_id + 1",
    )
    return family, "output_projection.weight"


def _alone(decoder: StackConfig, width: int) -> StackConfig:
    """An encoder of 0 layers, whose output is its frames: other conventions have no effect."""
    return replace(
        decoder,
        input=FrameInput(n_features=width, layers=(), n_class_tokens=0),
        d_model=width,
        n_layers=0,
        embedding_scale=1.0,
        embedding_norm="none",
        positions=None,
        final_norm=False,
        cross_attention=None,
    )


def _vit(c: Fields, n_class_tokens: int) -> StackConfig:
    d_model, n_heads = c["hidden_size"], c["num_attention_heads"]
    return plain_stack(
        plain_attention(
            n_heads,
            c.get("head_dim", d_model // max(n_heads, 1)),
            biases=("q", "k", "v", "o") if c["qkv_bias"] else ("o",),
        ),
        cross=False,
        input=FrameInput(
            n_features=c["num_channels"] * math.prod(_pair(c, "patch_size")),
            layers=(plain_frame_layer(d_model),),
            n_class_tokens=n_class_tokens,
        ),
        d_model=d_model,
        n_layers=c["num_hidden_layers"],
        positions=LearnedPositions(n_positions=n_class_tokens + _n_patches(c), offset=0, scale=1.0),
        norm=NormConfig(kind="layer_norm", eps=c["layer_norm_eps"], gain="vector", bias=True),
        norm_positions=("before",),
        final_norm=True,
        feed_forward=plain_feed_forward(c["intermediate_size"], activation(c, "hidden_act")),
    )


def _pair(c: Fields, name: str) -> tuple[int, int]:
    """A height and a width, which are equal if the field is one number."""
    size = c[name]
    if len(size) not in (1, 2) or 0 in size:
        raise ValueError(f"the config's {name} must be a size, or two, of at least 1, got {size}")
    return size[0], size[-1]


def _n_patches(c: Fields) -> int:
    sizes = zip(_pair(c, "image_size"), _pair(c, "patch_size"), strict=True)
    return math.prod(image // patch for image, patch in sizes)


def _vit_table(arrays: Arrays) -> Table:
    in_file = any(name.startswith("encoder.encoder.") for name in arrays)
    names = {ours: theirs[in_file] for ours, theirs in VIT.items()}
    return {
        **module_rows("encoder.layers.*.", LAYERS[in_file], names),
        **module_rows("encoder.", "encoder.", {"final_norm": "layernorm"}),
        "encoder.class_tokens": (f"{EMBEDDINGS}cls_token", same),
        "encoder.positions": (f"{EMBEDDINGS}position_embeddings", same),
        "encoder.frame_layers.*.w_in": (f"{PATCHES}.weight", transposed),
        "encoder.frame_layers.*.b_in": (f"{PATCHES}.bias", same),
    }


def _joined(c: Fields, learned: list[str], arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays of other shapes than ours, and the class tokens, of which DeiT has two arrays."""
    d, kernel = c["hidden_size"], (c["num_channels"], *_pair(c, "patch_size"))
    class_tokens = [_array(arrays, name, (1, 1, d)) for name in learned]
    positions, weight = f"{EMBEDDINGS}position_embeddings", f"{PATCHES}.weight"
    return {
        **dict(zip(learned, class_tokens, strict=True)),
        learned[0]: np.concatenate(class_tokens)[:, 0],
        positions: _array(arrays, positions, (1, len(learned) + _n_patches(c), d))[0],
        weight: _array(arrays, weight, (d, *kernel)).reshape(d, math.prod(kernel)),
    }


def _bridged(c: ModelConfig, arrays: Arrays) -> dict[str, np.ndarray]:
    """The projections of keys and values, multiplied by that of the memory.

    W (P h + p) + b = (W P) h + (W p + b), where h is the encoder's output: the memory is h here and
    P h + p in transformers. Products are in float64 and rounded to the model's dtype.
    """
    d, d_memory = c.decoder.d_model, c.encoder.d_model
    matrix = _array(arrays, f"{BRIDGE}.weight", (d, d_memory)).astype("float64")
    bias = _array(arrays, f"{BRIDGE}.bias", (d,)).astype("float64")
    made = {f"{BRIDGE}.weight": matrix, f"{BRIDGE}.bias": bias}
    for i in range(c.decoder.n_layers):
        for part in ("k_proj", "v_proj"):
            name = f"decoder.model.decoder.layers.{i}.encoder_attn.{part}"
            w, b = _array(arrays, f"{name}.weight", (d, d)), _array(arrays, f"{name}.bias", (d,))
            made[f"{name}.weight"] = (w @ matrix).astype(w.dtype)
            made[f"{name}.bias"] = (w @ bias + b).astype(b.dtype)
    return made


def _array(arrays: Arrays, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One of the arrays, whose shape is checked before it is read."""
    if name not in arrays:
        raise ValueError(f"there is no array {name}")
    if arrays[name].shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}")
    return np.asarray(arrays[name])
