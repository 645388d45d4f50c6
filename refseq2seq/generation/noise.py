"""Random choices by noise for every token: the exponential race and Gumbel top-k.

`exponential_race` draws a token from softmax(scores), as `torch.multinomial` does; `gumbel_top_k`
keeps k tokens, drawn without replacement. Both accept noise recorded in another library, to
replay its choices token for token.
"""

from functools import partial
from typing import Any

import numpy as np

from ..backend import Array, array_namespace
from ..checks import check_int
from ..ops import keep, softmax
from .filters import ranks
from .sampling import (
    Chooser,
    Processor,
    State,
    apply,
    check_keys,
    check_processors,
    makes_processor,
)


def exponential_race(noise: Array, *processors: Processor) -> Chooser:
    """Pick the token with the largest probability / noise: a race of exponential clocks.

    With ``noise`` drawn from Exp(1) this samples from softmax(scores), as
    `torch.multinomial(probs, 1)` does. To replay a PyTorch implementation token for token,
    record its noise with ``torch.empty_like(probs).exponential_()`` under the same generator
    state.

    Parameters
    ----------
    noise : array, shape (n_steps, batch, vocab_size)
        Positive and finite. ``noise[t]`` is for each row's new token number t, counted from 0.
    """
    check_noise("exponential_race", noise)
    if not (noise > 0).all():
        raise ValueError("exponential_race's noise must be positive")
    return Chooser(processors, partial(_race, noise))


def _race(noise: Array, scores: Array, state: State) -> Array:
    now = noise_of_step("exponential_race", noise, scores, state)
    return (softmax(scores) / now).argmax(axis=-1)


@makes_processor
def gumbel_top_k(
    k: int, *processors: Processor, seed: int = 0, noise: Array | None = None
) -> Processor:
    """Keep k tokens drawn from softmax(processors(scores)) without replacement.

    They are the best k after adding Gumbel noise (Vieira 2014; Kool, van Hoof and Welling 2019,
    section 2.3); their scores are unchanged. In beam search with k = beams this gives the
    stochastic beams of x-transformers, which draws the continuations of each beam in this way
    and ranks all of them by their own log-probabilities.

    Parameters
    ----------
    k : int
        At least 1; a smaller vocabulary is kept whole.
    *processors : Processor
        Such as a filter and a temperature: x-transformers filters first.
    seed : int
        Of the noise: Philox with the key (seed, index of the source in the batch) and the counter
        (0, new tokens so far, index among the rows of that source, 1). ``row_ids`` has no effect.
    noise : array, shape (n_steps, rows, vocab_size), optional
        Gumbel noise to use instead; ``noise[t]`` is for new token number t.
    """
    k = check_int("gumbel_top_k's k", k, 1)
    seed = check_int("gumbel_top_k's seed", seed, 0)
    check_keys(seed, [])
    processors = check_processors(processors, instead="rs.gumbel_top_k(k, {})")
    if noise is not None:
        check_noise("gumbel_top_k", noise)

    def process(scores: Array, state: State) -> Array:
        keys = apply(processors, scores, state)
        if noise is None:
            now = _gumbel(seed, state, scores.shape[-1])
        else:
            now = noise_of_step("gumbel_top_k", noise, scores, state)
        return keep(scores, ranks(keys + array_namespace(scores).asarray(now)) < k)

    return process


def _gumbel(seed: int, state: State, vocab_size: int) -> np.ndarray:
    noise = np.empty((len(state.source_index), vocab_size))
    for i, (row, t) in enumerate(
        zip(state.source_index.tolist(), state.n_new.tolist(), strict=True)
    ):
        place = i - int(np.argmax(state.source_index == row))
        key = np.array([seed, row], dtype=np.uint64)
        counter = np.array([0, t, place, 1], dtype=np.uint64)
        uniform = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(vocab_size)
        uniform = np.minimum(uniform + 2.0**-54, 1 - 2.0**-53)  # neither 0 nor 1: finite logarithms
        noise[i] = -np.log(-np.log(uniform))
    return noise


def check_noise(name: str, noise: Array) -> None:
    """Raise unless ``noise`` is finite and has the axes (n_steps, batch, vocab_size)."""
    if not hasattr(noise, "ndim") or noise.dtype.kind not in "fiu":
        found = getattr(noise, "dtype", type(noise).__name__)
        raise TypeError(f"{name}'s noise must be an array of numbers, got {found}")
    if noise.ndim != 3:
        raise _wrong_noise(name, noise, ("batch", "vocab_size"))
    if not array_namespace(noise).isfinite(noise).all():
        raise ValueError(f"{name}'s noise must be finite")


def noise_of_step(name: str, noise: Array, scores: Array, state: State) -> Array:
    """Each row's noise for its next new token, (batch, vocab_size), on the backend of ``scores``.

    Parameters
    ----------
    name : str
        The function that uses the noise, for errors.
    noise : array, shape (n_steps, batch, vocab_size)
    scores : array, shape (batch, vocab_size)
    state : State
    """
    if noise.shape[1:] != scores.shape:
        raise _wrong_noise(name, noise, scores.shape)
    t = np.where(state.emitted, state.n_new, 0)  # an ended row needs none
    if t.max() >= len(noise):
        raise ValueError(f"{name} has noise for {len(noise)} new tokens only")
    xp = array_namespace(noise)
    return array_namespace(scores).asarray(noise[xp.asarray(t), xp.arange(len(t))])


def _wrong_noise(name: str, noise: Array, of_a_step: tuple[Any, ...]) -> ValueError:
    return ValueError(
        f"{name}'s noise must have the shape (n_steps, batch, vocab_size) = "
        f"{('n_steps', *of_a_step)}, got {noise.shape}"
    )
