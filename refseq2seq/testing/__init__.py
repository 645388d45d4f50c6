"""Tools for testing another implementation against refseq2seq.

`refseq2seq.testing.strategies` contains the Hypothesis strategies, and
``refseq2seq.testing.plugin`` is the pytest plugin. Both need ``pip install 'refseq2seq[test]'``.
"""

from . import properties, vectors
from .agreement import (
    Divergence,
    TokenAgreement,
    assert_agrees,
    assert_tokens_agree,
)
from .compare import Difference, first_difference, row_ulp
from .diagnosis import Cause, Diagnosis, Fault, diagnose, diagnose_arrays
from .exercises import implements
from .expected import Expected
from .generation import assert_generation_agrees
from .rounding import rounded
from .tolerance import Spread, spread

__all__ = [
    "Cause", "Diagnosis", "Difference", "Divergence", "Expected", "Fault", "Spread",
    "TokenAgreement", "assert_agrees", "assert_generation_agrees", "assert_tokens_agree",
    "diagnose", "diagnose_arrays", "first_difference", "implements", "properties", "rounded",
    "row_ulp", "spread", "vectors",
]  # fmt: skip
