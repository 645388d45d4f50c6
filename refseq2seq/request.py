"""What decoding is asked for: checked at once, on the host, before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .backend import Array, read_only
from .checks import check_int
from .config import ModelConfig
from .model import Model, check_fits, check_model
from .tokens import Tokens, as_tokens, on_host

if TYPE_CHECKING:
    from .decoder import Amateur


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Sources, how each target begins, when it ends, and how it is computed.

    All arrays are on the host, and cannot be written to.
    """

    source: np.ndarray  # (batch, n_source) token ids
    source_mask: np.ndarray  # (batch, n_source) True = real token
    prefix: np.ndarray  # (batch, longest prefix) token ids, left-aligned
    n_prefix: np.ndarray  # (batch,)
    max_new_tokens: int
    min_new_tokens: int
    eos_ids: np.ndarray  # (n_eos,)
    copies: int  # targets of each source
    amateurs: tuple["Amateur", ...]
    use_cache: bool

    def __post_init__(self) -> None:
        for name in ("source", "source_mask", "prefix", "n_prefix", "eos_ids"):
            object.__setattr__(self, name, read_only(getattr(self, name)))

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.source)

    @property
    def start(self) -> int:
        """Tokens of the shortest prefix: decoding starts after them, in every row."""
        return int(self.n_prefix.min())

    @property
    def end(self) -> int:
        """The most tokens that any target can have, prefix included."""
        return int(self.n_prefix.max()) + self.max_new_tokens

    def take(self, rows: np.ndarray) -> Self:
        """The request whose row i is row ``rows[i]`` of this one, with one target each."""
        names = ("source", "source_mask", "prefix", "n_prefix")
        return replace(self, copies=1, **{name: getattr(self, name)[rows] for name in names})

    def one_per_target(self) -> Self:
        """The request with each row as often as it has targets, one after the other."""
        return self.take(np.repeat(np.arange(self.batch), self.copies))

    def forced(self, n: int, ended: np.ndarray, otherwise: int) -> tuple[np.ndarray, np.ndarray]:
        """Which rows that have not ended have a prefix token at position ``n``, and that token.

        Two arrays (batch,): a mask, and token ids, ``otherwise`` where the mask is False.
        """
        forced = (n < self.n_prefix) & ~ended
        if not forced.any():
            return forced, np.full(self.batch, otherwise)
        return forced, np.where(forced, self.prefix[:, n], otherwise)


def as_request(
    model: Model,
    source: Tokens,
    source_mask: Array | None,
    prefix: Tokens | None,
    max_new_tokens: int | None,
    min_new_tokens: int,
    eos_ids: Sequence[int] | None,
    *,
    copies: int = 1,
    amateurs: Sequence["Amateur"] = (),
    use_cache: bool = True,
) -> Request:
    """The arguments of `refseq2seq.decode_steps` as a request that the model can meet."""
    check_model(model)
    if not isinstance(use_cache, bool):
        raise TypeError(f"use_cache must be a bool, got {type(use_cache).__name__}")
    c = model.config
    ids, mask = as_tokens("source", source, c.encoder.vocab_size, source_mask)
    if mask is None:
        mask = np.ones(ids.shape, dtype=bool)
    check_fits("source", int(mask.sum(axis=1).max()), c.encoder)
    prefix_ids, n_prefix = as_prefix(prefix, len(ids), c)
    check_fits("prefix", int(n_prefix.max()), c.decoder)
    max_new_tokens = _fitting(max_new_tokens, int(n_prefix.max()), c.decoder.max_length)
    min_new_tokens = check_int("min_new_tokens", min_new_tokens, 0)
    if min_new_tokens > max_new_tokens:
        raise ValueError(
            f"min_new_tokens must be at most max_new_tokens = {max_new_tokens}, "
            f"got {min_new_tokens}"
        )
    return Request(
        source=ids,
        source_mask=mask,
        prefix=prefix_ids,
        n_prefix=n_prefix,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_ids=checked_eos(c.eos_ids if eos_ids is None else eos_ids, c.decoder.vocab_size),
        copies=copies,
        amateurs=tuple(amateurs),
        use_cache=use_cache,
    )


def as_prefix(prefix: Tokens | None, batch: int, c: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """How each target begins, (batch, longest prefix), and how many tokens that is, (batch,).

    By default the start token.
    """
    if prefix is None:
        prefix = np.full((batch, 1), c.decoder_start_id)
    ids, mask = as_tokens("prefix", prefix, c.decoder.vocab_size)
    if len(ids) != batch:
        raise ValueError(f"prefix has {len(ids)} rows, source has {batch}")
    return ids, np.full(batch, ids.shape[1]) if mask is None else mask.sum(axis=1)


def check_stop(stop: Any) -> None:
    """Raise unless ``stop`` is a function or None."""
    if stop is not None and not callable(stop):
        raise TypeError(f"stop must be a function of a step, got {stop!r}")


def stopped(stop: Callable[[Any], Any], step: Any, batch: int) -> np.ndarray:
    """Which rows ``stop`` ends: boolean, (batch,)."""
    ended = on_host("the answer of stop", stop(step)).astype(bool)
    if ended.shape not in ((), (batch,)):
        raise ValueError(f"stop must give a boolean or an array ({batch},), got {ended.shape}")
    return np.broadcast_to(ended, (batch,))


def _fitting(max_new_tokens: int | None, n_prefix: int, max_length: int | None) -> int:
    """``max_new_tokens``, if prefix and new tokens fit; the last token is never fed back."""
    if max_new_tokens is None:
        if max_length is None:
            raise ValueError("max_new_tokens is needed: the model has no position table to end at")
        return max_length + 1 - n_prefix
    max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1)
    if max_length is not None and n_prefix + max_new_tokens - 1 > max_length:
        raise ValueError(
            f"a prefix of {n_prefix} tokens and max_new_tokens = {max_new_tokens} need "
            f"{n_prefix + max_new_tokens - 1} positions; the model's table serves {max_length}"
        )
    return max_new_tokens


def checked_eos(eos_ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Token ids that end a row, (n_eos,), none or more of the vocabulary."""
    ids = on_host("eos_ids", eos_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"eos_ids must be a sequence of token ids, got {eos_ids!r}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"eos_ids must be from 0 to {vocab_size - 1}, got {eos_ids!r}")
    return ids.astype(np.int64)
