"""What a user of refseq2seq imports in tests of another implementation.

`refseq2seq.testing.strategies` has the Hypothesis strategies; it needs
``pip install 'refseq2seq[test]'``.
"""

from .compare import Difference, Expected, first_difference, row_ulp
from .rounding import rounded

__all__ = ["Difference", "Expected", "first_difference", "rounded", "row_ulp"]
