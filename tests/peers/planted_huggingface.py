"""Faults in live models of Hugging Face transformers."""

import math
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import numpy as np
import planted
import torch
import transformers
from hf_models import randomize
from planted import Faults, Subject, assign, given, nothing, swap, wrap
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

import refseq2seq as rs
from refseq2seq.testing import properties

# Nothing ends a row, so that no token is forced or forbidden.
TOKENS = {
    "vocab_size": 11,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "eos_token_id": None,
    "forced_eos_token_id": None,
}
BART = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 29,
    "decoder_ffn_dim": 29,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 17,
}
T5 = {
    "d_model": 22,
    "d_kv": 5,
    "d_ff": 29,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 8,
}
RIGHT, ENDS = ("right",), ("right", "left")


def subject(
    family: str, head: str, padding: tuple[str, ...], seed: int, options: dict[str, Any]
) -> Subject:
    """A model with attention that tells its weights."""
    config = getattr(transformers, f"{family}Config")(**TOKENS | options)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}{head}")(config).eval()
    randomize(model)
    model.set_attn_implementation("eager")
    converted = rs.convert.from_huggingface(model)
    return Subject(model, converted, implementation(model, padding))


def implementation(model: Any, padding: tuple[str, ...]) -> properties.Implementation:
    """The model as functions."""

    @torch.no_grad()
    def encode(source: np.ndarray, mask: np.ndarray | None) -> Any:
        mask = None if mask is None else torch.as_tensor(mask).long()
        hidden = model.get_encoder()(input_ids=torch.as_tensor(source), attention_mask=mask)[0]
        return {"encoder_outputs": BaseModelOutput(hidden), "attention_mask": mask}

    renamed = "cache" in signature(model.forward).parameters  # since transformers 5.24

    def decode(memory: Any, target: np.ndarray, cache: Any, use_cache: bool) -> Any:
        past = {"cache" if renamed else "past_key_values": cache}
        ids = torch.as_tensor(target)
        with torch.no_grad():
            return model(**memory, decoder_input_ids=ids, **past, use_cache=use_cache)

    def logits(memory: Any, target: np.ndarray) -> np.ndarray:
        return decode(memory, target, None, use_cache=False).logits.numpy()

    def begin(memory: Any) -> Any:
        held = SimpleNamespace(cache=None)

        def feed(tokens: np.ndarray) -> np.ndarray:
            out = decode(memory, tokens, held.cache, use_cache=True)
            held.cache = out.past_key_values
            return out.logits.numpy()

        return feed

    def generate(source: np.ndarray, mask: np.ndarray | None, n: int) -> np.ndarray:
        mask = np.ones(source.shape) if mask is None else mask
        out = model.generate(
            torch.as_tensor(source),
            attention_mask=torch.as_tensor(mask).long(),
            max_new_tokens=n,
            do_sample=False,
        )
        return out[:, 1:].numpy()

    return planted.implementation(
        encode=encode,
        logits=logits,
        begin=begin,
        generate=generate,
        max_source_length=17,
        max_target_length=17,
        padding=padding,
    )


FAULTS = Faults()
GENERATION = "ForConditionalGeneration"


def on(family: str, where: str, seed: int, head: str = GENERATION, **options: Any) -> Any:
    is_t5 = family == "T5"
    sizes, padding = (T5, ENDS) if is_t5 else (BART, RIGHT)
    return FAULTS.on(partial(subject, family, head, padding, seed, sizes | options), where)


t5 = on("T5", "T5 1.0", 1, feed_forward_proj="relu")
t5_gated = on("T5", "T5 1.1", 2, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
bart = on("Bart", "BART", 3, scale_embedding=True)
mbart = on("MBart", "mBART", 4)
marian = on("Marian", "Marian", 5, "MTModel", activation_function="swish")


def layer(s: Subject, side: str, i: int) -> Any:
    stack = s.module.get_encoder() if side == "encoder" else s.module.get_decoder()
    return stack.block[i].layer if hasattr(stack, "block") else stack.layers[i]


# T5: relative positions.

BUCKET = "_relative_position_bucket"


@t5("encoder buckets unidirectional", "encoder.layers.0.self_attention.weights", "RelativeBuckets")
def _(s):
    def bucket(right, *args, bidirectional, **how):
        return right(*args, bidirectional=False, **how)

    wrap(layer(s, "encoder", 0)[0].SelfAttention, bucket, BUCKET)


t5("decoder buckets bidirectional", "decoder.layers.0.self_attention.weights", "RelativeBuckets")(
    lambda s: assign(layer(s, "decoder", 0)[0].SelfAttention, is_decoder=False)
)
t5(
    "bucket maximum distance 16 instead of 8",
    "encoder.layers.0.self_attention.weights",
    "RelativeBuckets",
)(lambda s: assign(layer(s, "encoder", 0)[0].SelfAttention, relative_attention_max_distance=16))


t5(
    "buckets of query minus key position",
    "encoder.layers.0.self_attention.weights",
    "OtherPositions",
)(
    lambda s: wrap(
        layer(s, "encoder", 0)[0].SelfAttention, lambda right, x, **how: right(-x, **how), BUCKET
    )
)
t5("buckets off by one position", "decoder.layers.0.self_attention.weights", "OtherPositions")(
    lambda s: wrap(
        layer(s, "decoder", 0)[0].SelfAttention, lambda right, x, **how: right(x + 1, **how), BUCKET
    )
)


def zeroed(*_, position_bias, **__):
    return torch.zeros_like(position_bias)


t5(
    "relative bias in the first layer only",
    "encoder.layers.1.self_attention.weights",
    "RelativeScale",
)(lambda s: given(layer(s, "encoder", 1)[0].SelfAttention, position_bias=zeroed))


@t5(
    "relative bias in cross-attention too",
    "decoder.layers.0.cross_attention.weights",
    "RelativeScale",
)
def _(s):
    layer(s, "decoder", 0)[1].EncDecAttention.has_relative_attention_bias = True
    bias = layer(s, "decoder", 0)[0].SelfAttention.relative_attention_bias
    layer(s, "decoder", 0)[1].EncDecAttention.relative_attention_bias = bias


t5("scores scaled by 1/sqrt(d_k)", "encoder.layers.0.self_attention.weights", "AttentionScale")(
    lambda s: assign(layer(s, "encoder", 0)[0].SelfAttention, scaling=5**-0.5)
)


@t5(
    "relative positions restart at 0 with a cache",
    "step.1.*.0.self_attention.weights",
    "OtherPositions",
    max_new_tokens=4,
)
def _(s):
    def compute_bias(right, *n, past_seen_tokens, device):
        return right(*n, device=device)

    wrap(layer(s, "decoder", 0)[0].SelfAttention, compute_bias, "compute_bias")


# T5: norms, activations, logits.


t5("layer norm instead of RMS norm", "decoder.layers.0.self_attention.input", "NormKind")(
    lambda s: wrap(
        layer(s, "decoder", 0)[0].layer_norm, lambda right, x: right(x - x.mean(-1, True))
    )
)
t5("RMS norm eps 1e-5 instead of 1e-6", "encoder.layers.0.feed_forward.input", "NormEps")(
    lambda s: assign(layer(s, "encoder", 0)[1].layer_norm, variance_epsilon=1e-5)
)
t5("tied logits not scaled", "logits", "LogitsScale")(
    lambda s: assign(s.module.config, scale_decoder_outputs=False)
)
t5("no final norm", "encoder.final", "NormMissing")(
    lambda s: assign(s.module.encoder, final_layer_norm=nn.Identity())
)
t5_gated(
    "gate and up swapped", "encoder.layers.0.feed_forward.gate or *.projected", "SwappedWeights"
)(lambda s: swap(layer(s, "encoder", 0)[1].DenseReluDense, "wi_0", "wi_1"))
t5_gated("erf GELU instead of tanh GELU", "decoder.layers.1.feed_forward.hidden", "GeluForm")(
    lambda s: assign(layer(s, "decoder", 1)[2].DenseReluDense, act=nn.GELU())
)
t5_gated("untied logits scaled", "logits", "LogitsScale")(
    lambda s: assign(s.module.config, scale_decoder_outputs=True)
)


# BART and its descendants.


bart("positions without the offset of 2", "encoder.positions", "OtherPositions")(
    lambda s: assign(s.module.model.encoder.embed_positions, offset=0)
)
bart("embedding not scaled", "decoder.tokens", "EmbeddingScale")(
    lambda s: assign(s.module.model.decoder.embed_tokens, embed_scale=1.0)
)
bart("no embedding norm", "encoder.embed", "NormPlace")(
    lambda s: assign(s.module.model.encoder, layernorm_embedding=nn.Identity())
)
bart("no logits bias", "logits", "BiasMissing")(
    lambda s: assign(s.module, final_logits_bias=torch.zeros_like(s.module.final_logits_bias))
)
bart("no query bias", "encoder.layers.1.self_attention.q", "BiasMissing")(
    lambda s: assign(layer(s, "encoder", 1).self_attn.q_proj, bias=None)
)
bart("no key bias", "decoder.layers.0.self_attention.k", "BiasMissing")(
    lambda s: assign(layer(s, "decoder", 0).self_attn.k_proj, bias=None)
)
bart("no value bias", "decoder.layers.1.cross_attention.v", "BiasMissing")(
    lambda s: assign(layer(s, "decoder", 1).encoder_attn.v_proj, bias=None)
)
bart("no output projection bias", "decoder.layers.1.self_attention.out", "BiasMissing")(
    lambda s: assign(layer(s, "decoder", 1).self_attn.out_proj, bias=None)
)
bart("queries scaled twice", "decoder.layers.0.cross_attention.weights", "AttentionScale")(
    lambda s: assign(layer(s, "decoder", 0).encoder_attn, scaling=1 / 6)
)
bart("ReLU instead of GELU", "encoder.layers.1.feed_forward.hidden", "Activation")(
    lambda s: assign(layer(s, "encoder", 1), activation_fn=nn.ReLU())
)
bart("norm eps ten times too large", "encoder.layers.0.after_self_attention", "NormEps")(
    lambda s: assign(layer(s, "encoder", 0).self_attn_layer_norm, eps=1e-4)
)
bart("norms of two sublayers swapped", "decoder.layers.1.after_self_attention", "NormParameters")(
    lambda s: swap(layer(s, "decoder", 1), "self_attn_layer_norm", "encoder_attn_layer_norm")
)
bart("encoder attends to padding", "encoder.layers.0.self_attention.weights", "PadLeak")(
    lambda s: given(layer(s, "encoder", 0).self_attn, attention_mask=nothing)
)
bart("no causal mask", "decoder.layers.0.self_attention.weights", "CausalMask")(
    lambda s: given(layer(s, "decoder", 0).self_attn, attention_mask=nothing)
)


@bart("cross-attention to the source embedding", "decoder.layers.0.cross_attention.k", "OtherInput")
def _(s):
    seen = []
    first = layer(s, "encoder", 0)
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    given(layer(s, "decoder", 0).encoder_attn, key_value_states=lambda *_, **__: seen[-1])


@bart(
    "position off by one with a cache",
    "step.1.decoder.positions",
    "CachePosition",
    max_new_tokens=4,
)
def _(s):
    table = s.module.model.decoder.embed_positions
    right = table.forward
    table.forward = lambda ids, n=0, position_ids=None: right(
        ids, n, None if position_ids is None else position_ids + (position_ids > 0)
    )


mbart("no final norm", "decoder.final", "NormMissing")(
    lambda s: assign(s.module.model.decoder, layer_norm=nn.Identity())
)


@mbart("residual adds the normalised input", "encoder.layers.0.after_self_attention", "OtherInput")
def _(s):
    """The layer adds the norm's input: the norm overwrites it with its output."""
    wrap(layer(s, "encoder", 0).self_attn_layer_norm, lambda right, x: x.copy_(right(x)))


@marian("sines and cosines interleaved", "decoder.positions", "SinusoidLayout")
def _(s):
    table = s.module.model.decoder.embed_positions
    table.weight = nn.Parameter(table.weight.unflatten(-1, (2, -1)).mT.flatten(-2))


@marian(
    "sinusoid exponents divided by d/2 - 1 instead of d/2", "encoder.positions", "SinusoidLayout"
)
def _(s):
    table = s.module.model.encoder.embed_positions
    n, d = table.weight.shape
    angles = torch.arange(n)[:, None] * torch.exp(
        torch.arange(d // 2) * -math.log(10000) / (d // 2 - 1)
    )
    table.weight = nn.Parameter(torch.cat([angles.sin(), angles.cos()], dim=-1))


marian("GELU instead of SiLU", "decoder.layers.0.feed_forward.hidden", "Activation")(
    lambda s: assign(layer(s, "decoder", 0), activation_fn=nn.GELU())
)
