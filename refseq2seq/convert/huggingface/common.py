"""What the families share: reading a config, finding the token tables, naming arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from ...config import Activation
from ..table import Table, Transform, UnsupportedFeature, same, transposed

Arrays = Mapping[str, np.ndarray]


class Fields(dict[str, Any]):
    """The fields of a config; a missing one is an error that names it, not a guess."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"the config lacks the field {name!r}; all are in transformers' config.to_dict()"
        )


class SpecialTokens(TypedDict):
    """The fields of `ModelConfig` that come from the generation settings."""

    decoder_start_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    forced_bos_id: int | None
    forced_eos_id: int | None
    suppressed_ids: tuple[int, ...]
    begin_suppressed_ids: tuple[int, ...]


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
    """Our name of the activation that a field of the config names."""
    if c[field] not in ACTIVATIONS:
        raise UnsupportedFeature(f"{field} = {c[field]!r}: supported are {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[c[field]]


@dataclass(frozen=True, kw_only=True)
class TokenTables:
    """Under which name each table of token vectors is found, and which are the same."""

    encoder: str
    decoder: str
    unembedding: str
    tied_embeddings: bool
    tied_logits: bool


def token_tables(
    arrays: Arrays, *, encoder: str, decoder: str, unembedding: str, tied: tuple[str, ...]
) -> TokenTables:
    """Find the token tables: each under its own name, or under another of the ``tied`` ones.

    As in transformers, a file may leave out a table that is tied to another; and tables
    that differ are two, whatever the config says.
    """

    def find(name: str) -> str:
        others = tied if name in tied else ()
        return next((found for found in (name, *others) if found in arrays), name)

    def equal(a: str, b: str) -> bool:
        return a == b or (a in arrays and b in arrays and np.array_equal(arrays[a], arrays[b]))

    e, d, u = find(encoder), find(decoder), find(unembedding)
    return TokenTables(
        encoder=e,
        decoder=d,
        unembedding=u,
        tied_embeddings=equal(e, d),
        tied_logits=equal(u, d),
    )


def table(names: Mapping[str, str]) -> Table:
    """Names, ours -> theirs, with what makes our array of theirs."""
    return {ours: (theirs, _transform(ours)) for ours, theirs in names.items()}


def _transform(ours: str) -> Transform:
    if ours == "logits_bias":
        return lambda x: x.reshape(-1)  # stored as (1, vocab_size)
    matrix = ours == "unembedding" or ours.rpartition(".")[2].startswith("w_")
    return transposed if matrix else same
