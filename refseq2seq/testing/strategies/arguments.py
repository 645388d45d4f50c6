"""Argument checks of the strategies: values or strategies of them, and valid sizes."""

from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from ...config import FrameInput, ModelConfig, StackConfig
from ...model import Model

DTYPES = ("float16", "float32", "float64")


def one_of(name: str, value: Any, choices: Collection[str]) -> st.SearchStrategy[str]:
    """``value`` if it is a strategy; else the strategy of this one value, if it is a choice."""
    if isinstance(value, st.SearchStrategy):
        return value
    if value not in choices:
        raise InvalidArgument(
            f"{name} must be one of {tuple(choices)} or a strategy of them, got {value!r}"
        )
    return st.just(value)


def one_config(
    value: Any, default: st.SearchStrategy[ModelConfig]
) -> st.SearchStrategy[ModelConfig]:
    """``value`` if it is a strategy, the strategy of a single config, or the default for None."""
    if value is None or isinstance(value, st.SearchStrategy):
        return default if value is None else value
    if not isinstance(value, ModelConfig):
        raise InvalidArgument(
            f"config must be a ModelConfig or a strategy of them, got {type(value).__name__}"
        )
    return st.just(value)


def config_of(model: Any) -> ModelConfig:
    """The config of a model, or the config itself."""
    if isinstance(model, Model):
        return model.config
    if not isinstance(model, ModelConfig):
        raise InvalidArgument(
            f"model must be a Model or a ModelConfig, got {type(model).__name__}; "
            "to draw from a strategy of models, use data.draw or flatmap"
        )
    return model


def check_sizes(name: str, least: int, most: int, table: int | None = None) -> int:
    """``most``, or the length of the position table if that is smaller.

    Raises
    ------
    hypothesis.errors.InvalidArgument
        Unless ``least`` is from 1 to that number.
    """
    possible = most if table is None else min(most, table)
    if not 1 <= least <= possible:
        raise InvalidArgument(
            f"min_{name} must be from 1 to max_{name}, got {least} and {most}"
            + ("" if table is None else f"; the model's position table has {table} positions")
        )
    return possible


def source_sizes(c: StackConfig, least: int, most: int) -> tuple[int, int]:
    """The smallest and largest number of tokens or frames, from ``least`` to ``most``, that fit.

    Raises
    ------
    hypothesis.errors.InvalidArgument
        If no number fits. Frames must fill a window of each layer.
    """
    table = c.max_length
    check_sizes("length", least, most, None if isinstance(c.input, FrameInput) else table)
    lengths = {n: c.input.length(n) for n in range(least, most + 1)}
    fit = [n for n, length in lengths.items() if 0 < length <= (table or length)]
    if not fit:
        raise InvalidArgument(
            f"min_length and max_length must fit the encoder: {least} to {most} frames give "
            f"{lengths[least]} to {lengths[most]} embeddings, expected 1 to {table}"
        )
    return fit[0], fit[-1]
