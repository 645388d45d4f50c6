"""What a user of refseq2seq imports in tests of another implementation.

`refseq2seq.testing.strategies` has the Hypothesis strategies; it needs
``pip install 'refseq2seq[test]'``.
"""

from .compare import Difference, first_difference, row_ulp
from .expected import Expected
from .rounding import rounded
from .tolerance import Spread, spread

__all__ = ["Difference", "Expected", "Spread", "first_difference", "rounded", "row_ulp", "spread"]
