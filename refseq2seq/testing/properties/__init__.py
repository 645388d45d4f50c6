"""Properties that every encoder-decoder must have, tested on yours without converted weights.

    from refseq2seq.testing import properties

    mine = properties.Implementation(
        encode=lambda source, mask: my_encoder(source, mask),
        logits=lambda memory, target: my_decoder(target, memory),
        source_vocab_size=32000,
        target_vocab_size=32000,
        start_id=0,
    )
    properties.check(mine)

The properties compare results of the implementation with each other: cached with uncached, a row
alone with the row in a batch, a source with the padded source. They do not check the values
themselves; use `refseq2seq.testing.diagnose` and `refseq2seq.testing.assert_agrees` for that. Only
NumPy is required. Trials are random and reproducible, and the first ones are the smallest.
"""

from .catalogue import Property
from .implementation import Implementation
from .report import ALL, Outcome, PropertyError, Report, check, default_rtol, examine, table

__all__ = [
    "ALL", "Implementation", "Outcome", "Property", "PropertyError", "Report", "check",
    "default_rtol", "examine", "table",
]  # fmt: skip
