"""Contrastive decoding: the logits of an expert, corrected by those of weaker models."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array, widened
from ..checks import check_number
from ..model import Model, check_model
from ..ops import keep


@dataclass(frozen=True, kw_only=True)
class Amateur:
    r"""A weaker model whose logits are subtracted from those of an expert.

    .. math:: s = w_e s_e - w_a s_a \quad\text{where}\quad
        s_e \ge \max s_e + \log \alpha, \qquad -\infty \text{ elsewhere}

    Make one with `amateur` or `amateur_of_li`.
    """

    model: Model
    alpha: float  # removes tokens less than alpha times as probable as the expert's best
    expert_weight: float
    amateur_weight: float
    reads_source: bool  # False = uses the expert's encoding, as x-transformers does

    def __post_init__(self) -> None:
        check_model(self.model)
        check_number("an amateur's alpha", self.alpha, "(0, 1]")
        for name in ("expert_weight", "amateur_weight"):
            weight = getattr(self, name)
            check_number(f"an amateur's {name}", weight, "(-inf, inf)")


def amateur(
    model: Model, *, alpha: float = 0.1, beta: float = 0.5, reads_source: bool = True
) -> Amateur:
    """(1 + beta) expert - beta amateur (O'Brien and Lewis 2023, Algorithm 2; x-transformers).

    Parameters
    ----------
    model : Model
        It must have the expert's target vocabulary.
    alpha : float
        In (0, 1]. Tokens less than alpha times as probable as the expert's best are removed.
    beta : float
        Finite.
    reads_source : bool
        True encodes the source with the amateur's own encoder. False gives its decoder
        the expert's encoding, which must have the same width, as x-transformers does.
    """
    beta = check_number("an amateur's beta", beta, "(-inf, inf)")
    return Amateur(
        model=model,
        alpha=alpha,
        expert_weight=1 + beta,
        amateur_weight=beta,
        reads_source=reads_source,
    )


def amateur_of_li(model: Model, *, alpha: float = 0.1, reads_source: bool = True) -> Amateur:
    """Expert minus amateur (Li et al. 2022, eq. 3), up to a constant because they are logits."""
    return Amateur(
        model=model, alpha=alpha, expert_weight=1.0, amateur_weight=1.0, reads_source=reads_source
    )


@widened
def contrast(expert: Array, theirs: Array, amateur: Amateur) -> Array:
    """The expert's logits corrected by ``theirs``, an amateur's: all (batch, vocab_size)."""
    best = expert.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # the loop reports non-finite numbers
        contrasted = float(amateur.expert_weight) * expert - float(amateur.amateur_weight) * theirs
    return keep(contrasted, expert >= best + math.log(amateur.alpha))


def check_amateur(amateur: Any, expert: Model) -> None:
    """Raise unless ``amateur`` is an Amateur whose logits and encoding fit the expert's."""
    if not isinstance(amateur, Amateur):
        raise TypeError(f"amateurs must be made by rs.amateur(model), got {amateur!r}")
    ours, theirs = expert.config, amateur.model.config
    if theirs.decoder.vocab_size != ours.decoder.vocab_size:
        raise ValueError(
            f"an amateur must have the expert's target vocabulary of {ours.decoder.vocab_size} "
            f"tokens, got {theirs.decoder.vocab_size}"
        )
    if not amateur.reads_source and theirs.encoder.d_model != ours.encoder.d_model:
        raise ValueError(
            f"an amateur that uses the expert's encoding must have its width "
            f"{ours.encoder.d_model}, got {theirs.encoder.d_model}"
        )
