"""Strategies for parameters, models and whole cases."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ...config import ModelConfig, StackConfig
from ...model import Model
from ...params import Params
from ..cases import PARAMETERS, Case, make_model, make_params
from .arguments import DTYPES, check_sizes, config_of, one_config, one_of
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
    c = draw(one_config(config, configs()))
    tokens = draw(_tokens_of_a_case(c, max_batch, max_length, max_new_tokens))
    return Case(
        config=c,
        parameters=draw(one_of("kind", kind, PARAMETERS)),
        seed=draw(SEEDS),
        dtype=draw(one_of("dtype", dtype, DTYPES)),
        **tokens,
    )


@st.composite
def _tokens_of_a_case(
    draw: st.DrawFn, c: ModelConfig, max_batch: int, max_length: int, max_new_tokens: int
) -> dict[str, Any]:
    """Source, mask, target, prefix, uniforms, and how many tokens are new."""
    check_sizes("batch", 1, max_batch)
    check_sizes("new_tokens", 1, max_new_tokens)
    n_source = check_sizes("length", 1, max_length, c.encoder.max_length)
    n_target = check_sizes("length", 1, max_length, table := c.decoder.max_length)
    n_prefix = min(4, n_target)
    most_new = max_new_tokens if table is None else min(max_new_tokens, table + 1 - n_prefix)
    n_new = draw(st.integers(1, most_new))
    # Everything is drawn, and some of it left out: that makes leaving out a simplification. A
    # row has all that belongs to it in one place, so that a whole row can be shrunk away.
    masked, *has = (draw(st.booleans()) for _ in range(4))
    row = st.tuples(
        st.lists(st.tuples(_ids(c.encoder), st.booleans()), min_size=1, max_size=n_source),
        st.lists(_ids(c.decoder), min_size=1, max_size=n_target),
        st.lists(_ids(c.decoder), max_size=n_prefix - 1),
        st.lists(st.floats(0, 1, exclude_max=True), min_size=n_new, max_size=n_new),
    )
    rows = draw(st.lists(row, min_size=1, max_size=max_batch))
    sources, targets, prefixes, uniforms = zip(*rows, strict=True)
    shortest = min(map(len, targets))
    found = {
        "target": [tokens[:shortest] for tokens in targets],
        "prefix": [[c.decoder_start_id, *tokens] for tokens in prefixes],
        "uniforms": list(uniforms),
    }
    chosen = {name: value for (name, value), there in zip(found.items(), has, strict=True) if there}
    return {"max_new_tokens": n_new, **_source(sources, masked), **chosen}


def _ids(c: StackConfig) -> st.SearchStrategy[int]:
    return st.integers(0, c.vocab_size - 1)


def _source(rows: Sequence[Sequence[tuple[int, bool]]], masked: bool) -> dict[str, Any]:
    """The source of pairs (id, hidden); ``masked``, with padding and its mask as well."""
    if not masked:
        return {"source": [[token for token, _ in row] for row in rows]}
    longest = max(map(len, rows))
    padded = [[*row, *[(0, True)] * (longest - len(row))] for row in rows]
    mask = [[not hidden for _, hidden in row] for row in padded]
    return {
        "source": [[token for token, _ in row] for row in padded],
        "source_mask": [real if any(real) else [True, *real[1:]] for real in mask],
    }
