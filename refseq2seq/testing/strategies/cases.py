"""Strategies for parameters, models and complete cases."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

from hypothesis import strategies as st

from ...config import FrameInput, ModelConfig, StackConfig
from ...model import Model
from ...params import Params
from ..cases import PARAMETERS, Case, make_model, make_params
from .arguments import DTYPES, check_sizes, config_of, one_config, one_of, source_sizes
from .conventions import configs

Choice = str | st.SearchStrategy[str]
SEEDS = st.integers(0, 2**16)


def kinds_of_parameters() -> st.SearchStrategy[str]:
    """Names of the kinds of `parameters`; they shrink to ``well_scaled``."""
    return st.sampled_from(PARAMETERS)


def parameters(
    config: ModelConfig, *, kind: Choice = "well_scaled", dtype: Choice = "float64"
) -> st.SearchStrategy[Params]:
    """Random parameters for a config.

    Parameters
    ----------
    config : ModelConfig
    kind : str or strategy of str
        ``well_scaled``, ``large``, ``tiny_variances``, ``outliers`` or ``near_ties``, see
        `refseq2seq.testing.cases.make_params`; ``kinds_of_parameters()`` draws any of them.
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
    """Models with random parameters.

    Parameters
    ----------
    config : ModelConfig or strategy of them, optional
        Conventions of the model; `configs` by default.
    kind, dtype : str or strategy of str
        As in `parameters`.
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
    """Complete cases: a model, a source with its mask, a target, a prefix and uniform numbers.

    A case is printed as the code that creates it. A failing case shrinks to plain conventions,
    well-scaled parameters, one row and one token, as far as it still fails.

    Parameters
    ----------
    config : ModelConfig or strategy of them, optional
        `configs` by default.
    kind, dtype : str or strategy of str
        As in `parameters`.
    max_batch, max_length, max_new_tokens : int
        Maximum numbers of rows, of tokens in a row, and of new tokens; the minimum of each is
        1. Lengths never exceed the position tables.
    """
    c = draw(one_config(config, configs()))
    check_sizes("batch", 1, max_batch)
    check_sizes("new_tokens", 1, max_new_tokens)
    least, most = source_sizes(c.encoder, 1, max_length)
    n_target = check_sizes("length", 1, max_length, table := c.decoder.max_length)
    n_prefix = min(4, n_target)
    most_new = max_new_tokens if table is None else min(max_new_tokens, table + 1 - n_prefix)
    n_new = draw(st.integers(1, most_new))
    # Everything is drawn, and optional fields are dropped afterwards, so that dropping a field is
    # a simplification. All data of a row are drawn together, so that shrinking can remove a row.
    masked, *has = (draw(st.booleans()) for _ in range(4))
    row = st.tuples(
        st.lists(st.tuples(_read(c.encoder), st.booleans()), min_size=least, max_size=most),
        st.lists(_ids(c.decoder), min_size=1, max_size=n_target),
        st.lists(_ids(c.decoder), max_size=n_prefix - 1),
        st.lists(st.floats(0, 1, exclude_max=True), min_size=n_new, max_size=n_new),
    )
    rows = draw(st.lists(row, min_size=1, max_size=max_batch))
    sources, targets, prefixes, uniforms = zip(*rows, strict=True)
    if isinstance(c.encoder.input, FrameInput):  # the padding of frames comes last
        sources = tuple(_padded_last(row, least) for row in sources)
    shortest = min(map(len, targets))
    optional = {
        "target": [tokens[:shortest] for tokens in targets],
        "prefix": [[c.decoder_start_id, *tokens] for tokens in prefixes],
        "uniforms": list(uniforms),
    }
    return Case(
        config=c,
        parameters=draw(one_of("kind", kind, PARAMETERS)),
        seed=draw(SEEDS),
        dtype=draw(one_of("dtype", dtype, DTYPES)),
        max_new_tokens=n_new,
        **_source(sources, masked),
        **dict(compress(optional.items(), has)),
    )


def _ids(c: StackConfig) -> st.SearchStrategy[int]:
    return st.integers(0, c.vocab_size - 1)


def _read(c: StackConfig) -> st.SearchStrategy[Any]:
    """A token id, or a frame: a list of multiples of 1/8 from -2 to 2."""
    if not isinstance(c.input, FrameInput):
        return _ids(c)
    eighths, n = st.integers(-16, 16).map(lambda i: i / 8), c.input.n_features
    return st.lists(eighths, min_size=n, max_size=n)


def _padded_last(row: Sequence[tuple[Any, bool]], least: int) -> list[tuple[Any, bool]]:
    """Pairs (frame, hidden) with ``hidden`` true for none of the first ``least``, then sorted."""
    return sorted(
        ((x, hidden and i >= least) for i, (x, hidden) in enumerate(row)), key=lambda pair: pair[1]
    )


def _source(rows: Sequence[Sequence[tuple[Any, bool]]], masked: bool) -> dict[str, Any]:
    """The source from rows of pairs (id, hidden); if ``masked``, padded and with its mask.

    Instead of ids there may be frames.
    """
    if not masked:
        return {"source": [[token for token, _ in row] for row in rows]}
    longest, empty = max(map(len, rows)), rows[0][0][0]
    empty = 0 if isinstance(empty, int) else [0.0] * len(empty)
    padded = [[*row, *[(empty, True)] * (longest - len(row))] for row in rows]
    mask = [[not hidden for _, hidden in row] for row in padded]
    return {
        "source": [[token for token, _ in row] for row in padded],
        "source_mask": [real if any(real) else [True, *real[1:]] for real in mask],
    }
