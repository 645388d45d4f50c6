"""What decoding is asked for: checked at once, on the host, before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from .backend import Array
from .checks import check_int
from .model import Model, check_fits
from .tokens import Tokens, as_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Sources, how each target begins, and when it ends. All arrays are on the host."""

    source: np.ndarray  # (batch, n_source) token ids
    source_mask: np.ndarray  # (batch, n_source) True = real token
    prefix: np.ndarray  # (batch, longest prefix) token ids, left-aligned
    n_prefix: np.ndarray  # (batch,)
    max_new_tokens: int
    min_new_tokens: int
    eos_ids: np.ndarray  # (n_eos,)

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

    def repeated(self, copies: int) -> Self:
        """The request with each row ``copies`` times, one after the other."""
        if copies == 1:
            return self
        names = ("source", "source_mask", "prefix", "n_prefix")
        rows = np.repeat(np.arange(self.batch), copies)
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def forced(self, n: int, ended: np.ndarray, otherwise: int) -> tuple[np.ndarray, np.ndarray]:
        """Which rows that have not ended still have a prefix token at place ``n``, and that token.

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
) -> Request:
    """The arguments of `refseq2seq.decode_steps` as a request that the model can meet."""
    c = model.config
    ids, mask = as_tokens("source", source, c.encoder.vocab_size, source_mask)
    if mask is None:
        mask = np.ones(ids.shape, dtype=bool)
    check_fits("source", int(mask.sum(axis=1).max()), c.encoder)
    if prefix is None:
        prefix = np.full((len(ids), 1), c.decoder_start_id)
    prefix_ids, prefix_mask = as_tokens("prefix", prefix, c.decoder.vocab_size)
    if len(prefix_ids) != len(ids):
        raise ValueError(f"prefix has {len(prefix_ids)} rows, source has {len(ids)}")
    if prefix_mask is None:
        prefix_mask = np.ones(prefix_ids.shape, dtype=bool)
    n_prefix = prefix_mask.sum(axis=1)
    check_fits("prefix", int(n_prefix.max()), c.decoder)
    max_new_tokens = _fitting(max_new_tokens, int(n_prefix.max()), c.decoder.max_length)
    check_int("min_new_tokens", min_new_tokens, 0)
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
        eos_ids=_checked_eos(c.eos_ids if eos_ids is None else eos_ids, c.decoder.vocab_size),
    )


def _fitting(max_new_tokens: int | None, n_prefix: int, max_length: int | None) -> int:
    """``max_new_tokens``, if prefix and new tokens fit; the last token is never fed back."""
    if max_new_tokens is None:
        if max_length is None:
            raise ValueError("max_new_tokens is needed: the model has no position table to end at")
        return max_length + 1 - n_prefix
    check_int("max_new_tokens", max_new_tokens, 1)
    if max_length is not None and n_prefix + max_new_tokens - 1 > max_length:
        raise ValueError(
            f"a prefix of {n_prefix} tokens and max_new_tokens = {max_new_tokens} need "
            f"{n_prefix + max_new_tokens - 1} positions; the model's table serves {max_length}"
        )
    return int(max_new_tokens)


def _checked_eos(eos_ids: Sequence[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(eos_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"eos_ids must be a sequence of token ids, got {eos_ids!r}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"eos_ids must be from 0 to {vocab_size - 1}, got {eos_ids!r}")
    return ids.astype(np.int64)
