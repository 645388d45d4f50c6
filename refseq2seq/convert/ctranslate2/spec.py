"""CTranslate2's TransformerSpec: its attributes as our configuration, its variables as our arrays.

An attribute is a variable without axes. A part of the model exists if the file has its variables:
a norm without ``beta`` is an RMS norm, and a stack without positions adds sinusoids.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
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
)
from ...files.reading import FileError
from ...model import Model
from ...params import param_shapes
from ...presets import plain_attention
from ..table import (
    SpecialTokens,
    Table,
    Transform,
    convert_params,
    numbered,
    same,
)

ACTIVATIONS: dict[int, Activation] = {0: "relu", 1: "gelu_tanh", 2: "silu", 3: "gelu_erf"}

# Attributes without effect on the logits, for any value (None), or for the value that switches off
# a part that is not implemented.
IGNORED = {
    "alignment_layer": None, "alignment_heads": None, "embeddings_merge": None,
    "multi_query_attention": None, "alibi_use_positive_positions": None, "scale_alibi": None,
    "alibi": 0, "final_logit_softcapping": 0, "sliding_window": 0, "layer_norm_use_residual": 0,
    "layer_scalar": 1,
}  # fmt: skip

TABLES = {"encoder": "encoder/embeddings_0/weight", "decoder": "decoder/embeddings/weight"}
UNEMBEDDING, LOGITS_BIAS = "decoder/projection/weight", "decoder/projection/bias"
# Linear maps of their layer -> our part of the layer, and our maps, which are blocks of its rows.
LINEAR = {
    "self_attention/linear_0": ("self_attention", "q k v"),
    "self_attention/linear_1": ("self_attention", "o"),
    "attention/linear_0": ("cross_attention", "q"),
    "attention/linear_1": ("cross_attention", "k v"),
    "attention/linear_2": ("cross_attention", "o"),
    "ffn/linear_0": ("feed_forward", "in"),
    "ffn/linear_1": ("feed_forward", "out"),
}
GATED = {
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
        # The first input is a vector of zeros, whatever the token: see `add_zero_token`.
        self.starts_from_zero = bool(self.get("decoder/start_from_zero_embedding", 0))

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.pop(name, default)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a matrix; FileError if there is none."""
        if name not in self.arrays or self.arrays[name].ndim != 2:
            raise FileError(f"it has no matrix {name}")
        return self.arrays[name].shape

    def equal(self, a: str, b: str) -> bool:
        """Whether two arrays are the same; an alias shares memory."""
        x, y = self.arrays.get(a), self.arrays.get(b)
        return x is not None and y is not None and (x is y or np.array_equal(x, y))


def add_zero_token(spec: Spec) -> None:
    """Append the token that begins a target of Marian, with the embedding 0 and the probability 0.

    In transformers this token is ``<pad>``. The converter of CTranslate2 removes it.
    """
    size, width = spec.shape(TABLES["decoder"])
    names = [TABLES["decoder"], UNEMBEDDING]
    names += [TABLES["encoder"]] if spec.equal(*TABLES.values()) else []
    bias = spec.arrays.get(LOGITS_BIAS, np.zeros(size, "float32"))
    zeros = np.zeros((1, width), "float32")
    spec.arrays |= {name: np.vstack([spec.arrays[name], zeros]) for name in names}
    spec.arrays[LOGITS_BIAS] = np.append(bias, np.float32(NEVER))


def convert(spec: Spec, eps: float | None, tokens: SpecialTokens) -> Model:
    """The model without vocabularies. ``eps`` is that of the norms; None means the default."""
    tied = spec.equal(*TABLES.values()), spec.equal(TABLES["decoder"], UNEMBEDDING)
    config = ModelConfig(
        encoder=_stack(spec, "encoder", eps),
        decoder=_stack(spec, "decoder", eps),
        tied_embeddings=tied[0],
        tied_logits=tied[1],
        logits_scale=float(spec.get("decoder/scale_outputs", 1.0)),
        logits_bias=LOGITS_BIAS in spec.arrays,
        **tokens,
    )
    table = numbered(config, {
        **_table("encoder", config),
        **_table("decoder", config),
        "unembedding": (UNEMBEDDING, _rows()),
        "logits_bias": (LOGITS_BIAS, same),
    })  # fmt: skip
    unused = {*TABLES.values(), UNEMBEDDING}  # a tied table is used once
    for side, c in (("encoder", config.encoder), ("decoder", config.decoder)):
        unused.update(_relative(side, i) for i in range(c.n_layers))  # as a shared one is
    for name in sorted(spec.arrays.keys() - unused - {theirs for theirs, _ in table.values()}):
        raise UnsupportedFeature(f"the variable {name} of a part that is not implemented")
    for name, value in spec.attributes.items():
        last = name.rpartition("/")[2]
        if last not in IGNORED or IGNORED[last] not in (None, value):
            raise UnsupportedFeature(f"the attribute {name} = {value} is not implemented")
    return Model(config=config, params=convert_params(config, table, spec.arrays, unused))


def _stack(spec: Spec, side: Literal["encoder", "decoder"], eps: float | None) -> StackConfig:
    vocab_size, d_model = spec.shape(TABLES[side])
    first = f"{side}/layer_0"
    norm_bias = f"{first}/ffn/layer_norm/beta" in spec.arrays
    default_eps = 1e-5 if norm_bias else 1e-6
    n_layers = _n_layers(spec, side)
    n_heads = spec.get(f"{side}/num_heads", 8)
    if not 1 <= n_heads <= d_model:
        raise FileError(f"{side}/num_heads = {n_heads} for the width {d_model}")
    embedding_scale = spec.get(f"{side}/scale_embeddings", 1)
    if isinstance(embedding_scale, int):  # a flag
        embedding_scale = math.sqrt(d_model) if embedding_scale else 1.0
    has_embedding_norm = f"{side}/layernorm_embedding/gamma" in spec.arrays
    relative_positions = _relative_positions(spec, side, n_layers)

    def attention(part: str, ours: str) -> AttentionConfig:
        name = f"{side}/layer_*/{part}"
        c = plain_attention(n_heads, d_model // n_heads, biases=_biases(spec, first, LINEAR, ours))
        n_kv_heads = _in_layers(spec, f"{name}/num_heads_kv", n_layers, n_heads)
        scale = _in_layers(spec, f"{name}/queries_scale", n_layers, c.scale)
        return replace(c, n_kv_heads=n_kv_heads, scale=float(scale))

    return StackConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        embedding_scale=embedding_scale,
        embedding_norm="after_positions" if has_embedding_norm else "none",
        positions=None if relative_positions else _positions(spec, side),
        relative_positions=relative_positions,
        n_register_tokens=0,
        norm=NormConfig(
            kind="layer_norm" if norm_bias else "rms_norm",
            eps=default_eps if eps is None else eps,
            gain="vector",
            bias=norm_bias,
        ),
        norm_positions=("before",) if spec.get(f"{side}/pre_norm", 1) else ("after",),
        final_norm=f"{side}/layer_norm/gamma" in spec.arrays,
        self_attention=attention("self_attention", "self_attention"),
        cross_attention=attention("attention", "cross_attention") if side == "decoder" else None,
        feed_forward=_feed_forward(spec, side),
    )


def _n_layers(spec: Spec, side: str) -> int:
    found = {name.split("/")[1] for name in spec.arrays if name.startswith(f"{side}/layer_")}
    n_layers = next(i for i in range(len(found) + 1) if f"layer_{i}" not in found)
    if n_layers == 0:
        raise FileError(f"it has no variable of {side}/layer_0")
    return n_layers


def _in_layers(spec: Spec, name: str, n_layers: int, default: Any) -> Any:
    """An attribute that must have one value in all layers; ``*`` stands for the layer."""
    values = {spec.get(name.replace("*", str(i)), default) for i in range(n_layers)}
    if len(values) > 1:
        raise UnsupportedFeature(f"{name} has several values: {values}")
    return values.pop()


def _positions(spec: Spec, side: str) -> LearnedPositions | SinusoidalPositions:
    name = f"{side}/position_encodings/encodings"
    if name in spec.arrays:
        return LearnedPositions(n_positions=spec.shape(name)[0], offset=0, scale=1.0)
    if (width := spec.shape(TABLES[side])[1]) % 2:
        raise UnsupportedFeature(f"sinusoids of the odd width {width}")
    return SinusoidalPositions(layout="tensor2tensor", offset=1, scale=1.0)


def _relative(side: str, layer: int) -> str:
    return f"{side}/layer_{layer}/self_attention/relative_attention_bias"


def _relative_positions(spec: Spec, side: str, n_layers: int) -> BucketedPositions | None:
    tables = [_relative(side, i) for i in range(n_layers)]
    if not spec.arrays.keys() & set(tables):
        return None
    distance = f"{side}/layer_*/self_attention/relative_attention_max_distance"
    return BucketedPositions(
        n_buckets=spec.shape(tables[0])[0],
        max_distance=_in_layers(spec, distance, n_layers, None),
        bidirectional=side == "encoder",
        per_layer=not all(spec.equal(tables[0], table) for table in tables),
        scale=1.0,
    )


def _feed_forward(spec: Spec, side: str) -> FeedForwardConfig:
    first, activation = f"{side}/layer_0", spec.get(f"{side}/activation", 0)
    if activation not in ACTIVATIONS:
        raise UnsupportedFeature(f"{side}/activation = {activation}: supported are {ACTIVATIONS}")
    gated = f"{first}/ffn/linear_0_noact/weight" in spec.arrays
    return FeedForwardConfig(
        d_ff=spec.shape(f"{first}/ffn/linear_0/weight")[0],
        activation=ACTIVATIONS[activation],
        gated=gated,
        biases=_biases(spec, first, LINEAR | GATED if gated else LINEAR, "feed_forward"),
        hidden_norm=None,
    )


def _biases(spec: Spec, layer: str, linear: Mapping[str, tuple[str, str]], part: str) -> Any:
    """Our linear maps of a part that have a bias."""
    found = [ours for name, (of, ours) in linear.items()
             if of == part and f"{layer}/{name}/bias" in spec.arrays]  # fmt: skip
    return tuple(" ".join(found).split())


def _table(side: Literal["encoder", "decoder"], config: ModelConfig) -> Table:
    """The rows of one side, with * for the number of a layer."""
    c, shapes = getattr(config, side), param_shapes(config)
    table: dict[str, tuple[str, Transform]] = {
        f"{side}.embedding": (TABLES[side], same),
        f"{side}.positions": (f"{side}/position_encodings/encodings", same),
        f"{side}.relative_bias.*": (_relative(side, 0).replace("layer_0", "layer_*"), same),
    }
    for our, their in NORMS.items():
        path = f"{side}.{our}".format(norm=c.norm_positions[0])
        table[f"{path}.gain"] = f"{side}/{their}/gamma", same
        table[f"{path}.bias"] = f"{side}/{their}/beta", same
    for their, (part, ours) in (LINEAR | GATED if c.feed_forward.gated else LINEAR).items():
        start = 0
        for our in ours.split():
            width = shapes.get(f"{side}.layers.0.{part}.w_{our}", (0, 0))[1]
            rows = _rows(start, None if our == ours.split()[-1] else start + width)
            table[f"{side}.layers.*.{part}.w_{our}"] = f"{side}/layer_*/{their}/weight", rows
            table[f"{side}.layers.*.{part}.b_{our}"] = f"{side}/layer_*/{their}/bias", rows
            start += width
    return table


def _rows(start: int = 0, stop: int | None = None) -> Transform:
    """Rows of a matrix (d_out, d_in), transposed, or elements of a vector."""

    def rows(x: Array) -> Array:
        return x[start:stop].T

    return rows
