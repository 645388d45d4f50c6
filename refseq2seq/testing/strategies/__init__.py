"""Hypothesis strategies for random conventions, models and batches that are small enough to read.

    from hypothesis import given
    from refseq2seq.testing import strategies

    @given(case=strategies.cases())
    def test_my_decoder(case):
        expected = case.logits()

A failing case is printed as code that can be run. Its parts can also be drawn one by one:

    @given(st.data())
    def test_my_decoder(data):
        model = data.draw(strategies.models())
        source = data.draw(strategies.sources(model))
        target = data.draw(strategies.targets(model, source.batch))
        expected = rs.forward(model, source.tokens, target, source.mask)

Sizes are small primes where possible, so that swapped axes do not fit. Everything shrinks: to
one layer, one head, plain conventions and short rows. Use ``map`` to exclude conventions that
the implementation under test does not support, and ``frames=False`` if it reads tokens only:

    configs(frames=False).map(lambda c: dataclasses.replace(c, logits_bias=False))
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"refseq2seq.testing.strategies needs Hypothesis: pip install 'refseq2seq[test]' ({error})"
    ) from error

from .batches import Source, memories, prefixes, sources, targets, uniforms
from .cases import cases, kinds_of_parameters, models, parameters
from .conventions import (
    NORM_POSITIONS,
    absolute_positions,
    attentions,
    configs,
    feed_forwards,
    frame_inputs,
    norms,
    relative_positions,
    stacks,
)

__all__ = [
    "NORM_POSITIONS", "Source", "absolute_positions", "attentions", "cases", "configs",
    "feed_forwards", "frame_inputs", "kinds_of_parameters", "memories", "models", "norms",
    "parameters", "prefixes", "relative_positions", "sources", "stacks", "targets", "uniforms",
]  # fmt: skip
