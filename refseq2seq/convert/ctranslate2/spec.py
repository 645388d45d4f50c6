"""CTranslate2's TransformerSpec and WhisperSpec: attributes as our configuration, variables as our
arrays.

An attribute is a variable without axes. A part of the model exists if the file has its variables:
a norm without ``beta`` is an RMS norm, and a stack without positions adds sinusoids.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ...backend import Array
from ...checks import UnsupportedFeature
from ...config import (
    Activation,
    AttentionConfig,
    BucketedPositions,
    FeedForwardConfig,
    LearnedPositions,
    ModelConfig,
    NormConfig,
    SinusoidalPositions,
    StackConfig,
    TokenInput,
)
from ...files.reading import FileError
from ...model import Model
from ...params import param_shapes
from ...presets import plain_attention
from ..huggingface import whisper
from ..huggingface.common import token_tables
from ..table import SpecialTokens, Table, Transform, convert_params, kernel, numbered, same

ACTIVATIONS: dict[int, Activation] = {0: "relu", 1: "gelu_tanh", 2: "silu", 3: "gelu_erf"}

# Attributes without effect on the logits, for any value (None), or for the value that switches off
# a part that is not implemented.
IGNORED = {
    "alignment_layer": None, "alignment_heads": None, "embeddings_merge": None,
    "multi_query_attention": None, "alibi_use_positive_positions": None, "scale_alibi": None,
    "start_from_zero_embedding": 0, "alibi": 0, "final_logit_softcapping": 0, "sliding_window": 0,
    "layer_norm_use_residual": 0, "layer_scalar": 1,
}  # fmt: skip

# Of the source, of the target, and of the logits.
TABLES = "encoder/embeddings_0/weight", "decoder/embeddings/weight", "decoder/projection/weight"
LOGITS_BIAS = "decoder/projection/bias"
CONVOLUTIONS = "conv1", "conv2"  # of the encoder
RELATIVE = "layer_*/self_attention/relative_attention_bias"
# Their linear maps of a layer -> the part and the maps of ours that are their rows.
LINEAR = {
    "self_attention/linear_0": ("self_attention", "q k v"),
    "self_attention/linear_1": ("self_attention", "o"),
    "attention/linear_0": ("cross_attention", "q"),
    "attention/linear_1": ("cross_attention", "k v"),
    "attention/linear_2": ("cross_attention", "o"),
    "ffn/linear_0": ("feed_forward", "in"),
    "ffn/linear_1": ("feed_forward", "out"),
}
GATED = LINEAR | {
    "ffn/linear_0": ("feed_forward", "gate"),
    "ffn/linear_0_noact": ("feed_forward", "in"),
}
# Our norms -> theirs. {norm} is "before" or "after".
NORMS = {
    "embedding_norm": "layernorm_embedding",
    "final_norm": "layer_norm",
    "layers.*.self_norms.{norm}": "layer_*/self_attention/layer_norm",
    "layers.*.cross_norms.{norm}": "layer_*/attention/layer_norm",
    "layers.*.feed_forward_norms.{norm}": "layer_*/ffn/layer_norm",
}
NEVER = -1e4
"""A logit of probability 0, which float16 represents."""


class Spec:
    """The variables of a model. Reading an attribute removes it."""

    def __init__(self, variables: Mapping[str, np.ndarray]) -> None:
        self.arrays = {name: x for name, x in variables.items() if x.ndim}
        self.attributes = {name: x.item() for name, x in variables.items() if not x.ndim}

    @property
    def n_features(self) -> int:
        """The width of the frames that Whisper reads; 0 for a model that reads tokens."""
        x = self.arrays.get(f"encoder/{CONVOLUTIONS[0]}/weight", np.zeros(0))
        return x.shape[1] if x.ndim == 3 else 0

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a matrix; FileError if there is none."""
        if name not in self.arrays or self.arrays[name].ndim != 2:
            raise FileError(f"it has no matrix {name}")
        return self.arrays[name].shape


def add_zero_token(spec: Spec) -> None:
    """Append the token that begins a target of Marian, with the embedding 0 and the probability 0.

    In transformers this token is ``<pad>``. The converter of CTranslate2 removes it.
    """
    size, width = spec.shape(TABLES[1])
    _, ties = token_tables(spec.arrays, *TABLES, tied=())
    for name in TABLES[0 if ties["tied_embeddings"] else 1 :]:
        spec.arrays[name] = np.vstack([spec.arrays[name], np.zeros((1, width), "float32")])
    bias = spec.arrays.get(LOGITS_BIAS, np.zeros(size, "float32"))
    spec.arrays[LOGITS_BIAS] = np.append(bias, np.float32(NEVER))


def convert(spec: Spec, eps: float | None, tokens: SpecialTokens) -> Model:
    """The model without vocabularies; ``eps`` is that of the norms, None for the default."""
    rows, ties = token_tables(spec.arrays, *TABLES, tied=())
    encoder, decoder = _Side(spec, "encoder"), _Side(spec, "decoder")
    config = ModelConfig(
        encoder=encoder.config(eps),
        decoder=decoder.config(eps),
        logits_scale=float(decoder.get("scale_outputs", 1.0)),
        logits_bias=LOGITS_BIAS in spec.arrays,
        logits_softcap=None,
        **ties,
        **tokens,
    )
    rows = {"logits_bias": (LOGITS_BIAS, same), **rows}
    table = numbered(config, {**rows, **encoder.table(config), **decoder.table(config)})
    # A tied table is used once, as is a bias that all layers share.
    unused = {*TABLES, *encoder.layers(RELATIVE), *decoder.layers(RELATIVE)}
    for name in sorted(spec.arrays.keys() - unused - {theirs for theirs, _ in table.values()}):
        raise UnsupportedFeature(f"the variable {name} of a part that is not implemented")
    for name, value in spec.attributes.items():
        last = name.rpartition("/")[2]
        if last not in IGNORED or IGNORED[last] not in (None, value):
            raise UnsupportedFeature(f"the attribute {name} = {value} is not implemented")
    return Model(config=config, params=convert_params(config, table, spec.arrays, unused))


class _Side:
    """The encoder or the decoder. Names lack the side, and have ``*`` for the number of a layer."""

    def __init__(self, spec: Spec, side: Literal["encoder", "decoder"]) -> None:
        self.spec, self.side = spec, side
        self.is_speech = side == "encoder" and spec.n_features > 0
        table = TABLES[side == "decoder" or self.is_speech]  # of the decoder, which is as wide
        self.vocab_size, self.d_model = spec.shape(table)
        self.d_ff = spec.shape(f"{side}/layer_0/ffn/linear_0/weight")[0]
        found = {name.split("/")[1] for name in spec.arrays if name.startswith(f"{side}/layer_")}
        self.n_layers = next(i for i in range(len(found) + 1) if f"layer_{i}" not in found)
        self.linear = GATED if self.has("layer_0/ffn/linear_0_noact/weight") else LINEAR
        self.n_heads = self.get("num_heads", 8)
        if not 1 <= self.n_heads <= self.d_model:
            raise FileError(f"{side}/num_heads = {self.n_heads} for the width {self.d_model}")

    def has(self, name: str) -> bool:
        return f"{self.side}/{name}" in self.spec.arrays

    def layers(self, name: str) -> list[str]:
        """The full names of all layers."""
        return [f"{self.side}/{name.replace('*', str(i))}" for i in range(self.n_layers)]

    def get(self, name: str, default: Any) -> Any:
        """An attribute, which must have one value in all layers."""
        names = self.layers(name) if "*" in name else [f"{self.side}/{name}"]
        values = {self.spec.attributes.pop(name, default) for name in names}
        if len(values) > 1:
            raise UnsupportedFeature(f"{self.side}/{name} has several values: {values}")
        return values.pop()

    def config(self, eps: float | None) -> StackConfig:
        norm_bias = self.has("layer_0/ffn/layer_norm/beta")
        default_eps = 1e-5 if norm_bias else 1e-6
        embedding_scale = self.get("scale_embeddings", 0 if self.is_speech else 1)
        if isinstance(embedding_scale, int):  # a flag
            embedding_scale = math.sqrt(self.d_model) if embedding_scale else 1.0
        relative_positions = self.relative_positions()
        tokens, n_features = TokenInput(vocab_size=self.vocab_size), self.spec.n_features
        return StackConfig(
            input=whisper.frames(n_features, self.d_model) if self.is_speech else tokens,
            d_model=self.d_model,
            n_layers=self.n_layers,
            embedding_scale=embedding_scale,
            embedding_norm="after_positions" if self.has("layernorm_embedding/gamma") else "none",
            positions=None if relative_positions else self.positions(),
            relative_positions=relative_positions,
            n_register_tokens=0,
            windows=(),
            norm=NormConfig(
                kind="layer_norm" if norm_bias else "rms_norm",
                eps=default_eps if eps is None else eps,
                gain="vector",
                bias=norm_bias,
            ),
            norm_positions=("before",) if self.get("pre_norm", 1) else ("after",),
            final_norm=self.has("layer_norm/gamma"),
            self_attention=self.attention("self_attention", "self_attention"),
            cross_attention=self.attention("attention", "cross_attention")
            if self.side == "decoder"
            else None,
            feed_forward=self.feed_forward(),
        )

    def attention(self, theirs: str, part: str) -> AttentionConfig:
        c = plain_attention(self.n_heads, self.d_model // self.n_heads, self.biases(part))
        return replace(
            c,
            n_kv_heads=self.get(f"layer_*/{theirs}/num_heads_kv", c.n_heads),
            scale=float(self.get(f"layer_*/{theirs}/queries_scale", c.scale)),
        )

    def positions(self) -> LearnedPositions | SinusoidalPositions:
        if self.has("position_encodings/encodings"):
            n_positions = self.spec.shape(f"{self.side}/position_encodings/encodings")[0]
            return LearnedPositions(n_positions=n_positions, offset=0, scale=1.0)
        if self.d_model % 2:
            raise UnsupportedFeature(f"sinusoids of the odd width {self.d_model}")
        return SinusoidalPositions(layout="tensor2tensor", offset=1, scale=1.0)

    def relative_positions(self) -> BucketedPositions | None:
        x, tables = self.spec.arrays, self.layers(RELATIVE)
        if not x.keys() & set(tables):
            return None
        return BucketedPositions(
            n_buckets=self.spec.shape(tables[0])[0],
            max_distance=self.get("layer_*/self_attention/relative_attention_max_distance", None),
            bidirectional=self.side == "encoder",
            per_layer=any(t not in x or not np.array_equal(x[tables[0]], x[t]) for t in tables),
            scale=1.0,
        )

    def feed_forward(self) -> FeedForwardConfig:
        activation = self.get("activation", 3 if self.is_speech else 0)
        if activation not in ACTIVATIONS:
            raise UnsupportedFeature(
                f"{self.side}/activation = {activation}: supported are {ACTIVATIONS}"
            )
        return FeedForwardConfig(
            d_ff=self.d_ff,
            activation=ACTIVATIONS[activation],
            gated=self.linear is GATED,
            biases=self.biases("feed_forward"),
            hidden_norm=None,
        )

    def biases(self, part: str) -> Any:
        """Our linear maps of a part that have a bias."""
        found = [ours for theirs, (of, ours) in self.linear.items()
                 if of == part and self.has(f"layer_0/{theirs}/bias")]  # fmt: skip
        return tuple(" ".join(found).split())

    def table(self, config: ModelConfig) -> Table:
        c, shapes = getattr(config, self.side), param_shapes(config)
        table: dict[str, tuple[str, Transform]] = {
            "positions": ("position_encodings/encodings", same),
            "relative_bias.*": (RELATIVE, same),
        }
        for i, theirs in enumerate(CONVOLUTIONS):
            table[f"frame_layers.{i}.w_in"] = f"{theirs}/weight", kernel
            table[f"frame_layers.{i}.b_in"] = f"{theirs}/bias", same
        for ours, theirs in NORMS.items():
            path = ours.format(norm=c.norm_positions[0])
            table |= {f"{path}.gain": (f"{theirs}/gamma", same)}
            table |= {f"{path}.bias": (f"{theirs}/beta", same)}
        for theirs, (part, ours) in self.linear.items():
            names = ours.split()
            widths = [
                shapes.get(f"{self.side}.layers.0.{part}.w_{our}", (0, 0))[1] for our in names
            ]
            for i, our in enumerate(names):
                rows = partial(_rows, i, np.cumsum(widths[:-1]))
                table[f"layers.*.{part}.w_{our}"] = f"layer_*/{theirs}/weight", rows
                table[f"layers.*.{part}.b_{our}"] = f"layer_*/{theirs}/bias", rows
        return {
            f"{self.side}.{ours}": (f"{self.side}/{theirs}", transform)
            for ours, (theirs, transform) in table.items()
        }


def _rows(i: int, starts: np.ndarray, x: Array) -> Array:
    """Part i of a matrix's rows, transposed, or of a vector; another begins at each of starts."""
    return np.split(x, starts)[i].T
