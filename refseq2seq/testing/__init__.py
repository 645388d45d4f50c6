"""What a user of refseq2seq imports in tests of another implementation.

`refseq2seq.testing.strategies` has the Hypothesis strategies; it needs
``pip install 'refseq2seq[test]'``.
"""

from . import vectors
from .agreement import (
    Divergence,
    TokenAgreement,
    assert_agrees,
    assert_tokens_agree,
)
from .compare import Difference, first_difference, row_ulp
from .expected import Expected
from .rounding import rounded
from .tolerance import Spread, spread

__all__ = [
    "Difference",
    "Divergence",
    "Expected",
    "Spread",
    "TokenAgreement",
    "assert_agrees",
    "assert_tokens_agree",
    "first_difference",
    "rounded",
    "row_ulp",
    "spread",
    "vectors",
]
