"""Functions that all families use: reading a config and finding the token tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict, get_origin

import numpy as np

from ...checks import UnsupportedFeature
from ...config import Activation, ModelConfig, check_type, from_json
from ...params import MIN_LAYER
from ..table import Table, same, transposed

Arrays = Mapping[str, np.ndarray]


# The fields of a config that are read, and their types; other fields are ignored.
TYPES: dict[str, Any] = {
    "model_type": str, "tokenizer_class": str | None, "is_encoder_decoder": bool,
    "is_decoder": bool, "vocab_size": int, "d_model": int,
    # T5
    "num_layers": int, "num_decoder_layers": int | None, "num_heads": int, "d_kv": int, "d_ff": int,
    "feed_forward_proj": str, "dense_act_fn": str, "is_gated_act": bool,
    "layer_norm_epsilon": float, "relative_attention_num_buckets": int,
    "relative_attention_max_distance": int, "scale_decoder_outputs": bool,
    # BART
    "encoder_layers": int, "decoder_layers": int, "encoder_attention_heads": int,
    "decoder_attention_heads": int, "encoder_ffn_dim": int, "decoder_ffn_dim": int,
    "activation_function": str, "max_position_embeddings": int, "scale_embedding": bool,
    "decoder_vocab_size": int | None, "share_encoder_decoder_embeddings": bool,
    "tie_word_embeddings": bool, "normalize_before": bool, "add_final_layer_norm": bool,
    "normalize_embedding": bool, "static_position_embeddings": bool, "use_prompt": bool,
    # T5Gemma
    "encoder": dict, "decoder": dict, "hidden_size": int, "intermediate_size": int,
    "num_hidden_layers": int, "num_attention_heads": int, "num_key_value_heads": int,
    "head_dim": int, "hidden_activation": str, "rms_norm_eps": float,
    "rope_parameters": dict | None, "rope_scaling": dict | None, "rope_theta": float,
    "rope_type": str, "attention_bias": bool, "query_pre_attn_scalar": int,
    "sliding_window": int | None, "layer_types": tuple[str, ...],
    "final_logit_softcapping": float | None, "attn_logit_softcapping": float | None,
    "is_causal": bool,
    # Vision
    "hidden_act": str, "layer_norm_eps": float, "image_size": tuple[int, ...],
    "patch_size": tuple[int, ...], "num_channels": int, "qkv_bias": bool,
    "use_learned_position_embeddings": bool, "layernorm_embedding": bool,
    "cross_attention_hidden_size": int | None,
    # Whisper
    "num_mel_bins": int, "max_source_positions": int, "max_target_positions": int,
    "language": str | None, "task": str | None,
    "forced_decoder_ids": tuple[tuple[int, int | None], ...], "no_timestamps_token_id": int | None,
    "return_timestamps": bool | None,
    # Generation
    "decoder_start_token_id": int | None, "bos_token_id": int | None, "pad_token_id": int | None,
    "forced_bos_token_id": int | None, "force_bos_token_to_be_generated": bool,
    "eos_token_id": tuple[int, ...], "forced_eos_token_id": tuple[int, ...],
    "suppress_tokens": tuple[int, ...], "begin_suppress_tokens": tuple[int, ...],
    "bad_words_ids": tuple[tuple[int, ...], ...],
}  # fmt: skip


class Fields(dict[str, Any]):
    """The fields of a config; reading a field raises if it is missing or of the wrong type.

    A list of tokens may be None or a single token. Errors name the field.
    """

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ValueError(
                f"the config has no field {name!r}; all are in transformers' config.to_dict()"
            )
        value, expected = super().__getitem__(name), TYPES[name]
        if get_origin(expected) is tuple:
            value = [] if value is None else [value] if isinstance(value, int) else value
        try:
            value = from_json(name, expected, value)
            check_type(name, expected, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the config's {error}") from error
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or ``default`` if it is missing."""
        return self[name] if name in self else default  # noqa: SIM401 - that would call itself


ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def activation(c: Fields, field: str) -> Activation:
    """Our name of the activation in a field of the config."""
    if c[field] not in ACTIVATIONS:
        raise UnsupportedFeature(f"{field} = {c[field]!r}: supported are {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[c[field]]


def in_one_dtype(arrays: Arrays) -> Arrays:
    """All floating-point arrays as float64 if any of them is float64, otherwise as float32."""
    dtypes = {x.dtype.name for x in arrays.values()}
    dtype = "float64" if "float64" in dtypes else "float32"
    floating = {"float16", "float32", "float64"}
    return {
        name: x.astype(dtype, copy=False) if x.dtype.name in floating else x
        for name, x in arrays.items()
    }


def check_layers(config: ModelConfig, arrays: Arrays) -> None:
    """Raise if the arrays are too few for the layers, before a table of all of them is made."""
    if MIN_LAYER * (config.encoder.n_layers + config.decoder.n_layers) > len(arrays):
        raise ValueError(f"the config has more layers than there are arrays for, {len(arrays)}")


class Conversion(NamedTuple):
    """Our config, and the arrays that become its parameters."""

    config: ModelConfig
    table: Table  # with * for a layer's number
    unused: set[str]  # arrays that the model has but generation does not need
    made: Arrays = {}  # noqa: RUF012 - arrays that replace those of the same name


class Ties(TypedDict):
    """The fields of `ModelConfig` that say which token tables are equal."""

    tied_embeddings: bool
    tied_logits: bool


def token_tables(
    arrays: Arrays, encoder: str, decoder: str, unembedding: str, *, tied: tuple[str, ...]
) -> tuple[Table, Ties]:
    """Find each token table under its own name, or else under another of the ``tied`` names.

    As in transformers, a file may omit a table that is tied to another, and tables that
    differ are not tied, whatever the config says.
    """

    def find(name: str) -> str:
        others = tied if name in tied else ()
        return next((found for found in (name, *others) if found in arrays), name)

    def equal(a: str, b: str) -> bool:
        if a == b or a not in arrays or b not in arrays:
            return a == b
        x, y = arrays[a], arrays[b]
        return x.shape == y.shape and np.array_equal(np.asarray(x), np.asarray(y))

    e, d, u = find(encoder), find(decoder), find(unembedding)
    rows = {
        "encoder.embedding": (e, same),
        "decoder.embedding": (d, same),
        "unembedding": (u, transposed),
    }
    return rows, {"tied_embeddings": equal(e, d), "tied_logits": equal(u, d)}
