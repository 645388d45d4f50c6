"""Strategies for parameters, models and whole cases."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import ModelConfig
from ...model import Model
from ...params import Params
from ..cases import PARAMETERS, Case, make_model, make_params
from .arguments import DTYPES, check_sizes, config_of, one_config, one_of
from .batches import prefixes, sources, targets, uniforms
from .conventions import configs

Choice = str | st.SearchStrategy[str]
SEEDS = st.integers(0, 2**16)


def kinds_of_parameters() -> st.SearchStrategy[str]:
    """Names of the kinds that `parameters` knows: well scaled first, then hard ones."""
    return st.sampled_from(PARAMETERS)


def parameters(
    config: ModelConfig, *, kind: Choice = "well_scaled", dtype: Choice = "float64"
) -> st.SearchStrategy[Params]:
    """Random parameters of a config.

    Parameters
    ----------
    config : ModelConfig
    kind : str or strategy of them
        ``well_scaled``, ``large``, ``tiny_variances``, ``outliers`` or ``near_ties``, see
        `refseq2seq.testing.cases.make_params`; ``kinds_of_parameters()`` for any of them.
    dtype : "float16", "float32" or "float64", or a strategy of them
        Large parameters can overflow in float16.
    """
    return st.builds(
        make_params,
        st.just(config_of(config)),
        kind=one_of("kind", kind, PARAMETERS),
        seed=SEEDS,
        dtype=one_of("dtype", dtype, DTYPES),
    )


def models(
    *,
    config: ModelConfig | st.SearchStrategy[ModelConfig] | None = None,
    kind: Choice = "well_scaled",
    dtype: Choice = "float64",
) -> st.SearchStrategy[Model]:
    """Models of those conventions, `configs` by default, with random parameters.

    Parameters
    ----------
    config : ModelConfig or strategy of them, optional
    kind, dtype : str or strategy of them
        Of the `parameters`.
    """
    return st.builds(
        make_model,
        one_config(config, configs()),
        parameters=one_of("kind", kind, PARAMETERS),
        seed=SEEDS,
        dtype=one_of("dtype", dtype, DTYPES),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    config: ModelConfig | st.SearchStrategy[ModelConfig] | None = None,
    kind: Choice = "well_scaled",
    dtype: Choice = "float64",
    max_batch: int = 3,
    max_length: int = 7,
    max_new_tokens: int = 5,
) -> Case:
    """Whole cases: a model, a source with its mask, a target, a prefix, uniform numbers.

    A case prints as the few lines that make it. Those that fail shrink to plain conventions,
    well-scaled parameters, one row and one token, but for what makes them fail.

    Parameters
    ----------
    config : ModelConfig or strategy of them, optional
        `configs` by default.
    kind, dtype : str or strategy of them
        Of the `parameters`.
    max_batch, max_length, max_new_tokens : int
        A case has at least one of each, and no more than its position tables serve.
    """
    check_sizes("new_tokens", 1, max_new_tokens)
    c = draw(one_config(config, configs()))
    source = draw(sources(c, max_batch=max_batch, max_length=max_length))
    batch, table = source.batch, c.decoder.max_length
    prefix = draw(st.none() | prefixes(c, batch, max_length=min(4, max_length)))
    longest = max(len(row) for row in prefix or [[0]])
    most = max_new_tokens if table is None else min(max_new_tokens, table + 1 - longest)
    n_new = draw(st.integers(1, most))
    return Case(
        config=c,
        parameters=draw(one_of("kind", kind, PARAMETERS)),
        seed=draw(SEEDS),
        dtype=draw(one_of("dtype", dtype, DTYPES)),
        source=_lists(source.tokens),
        source_mask=_lists(source.mask),
        target=_lists(draw(st.none() | targets(c, batch, max_length=max_length))),
        prefix=prefix,
        max_new_tokens=n_new,
        uniforms=_lists(draw(st.none() | uniforms(batch, n_new))),
    )


def _lists(x: Any) -> Any:
    return x.tolist() if isinstance(x, np.ndarray) else x
