"""What must hold of every encoder-decoder, tried on yours: no converted weights are needed.

    from refseq2seq.testing import properties

    mine = properties.Implementation(
        encode=lambda source, mask: my_encoder(source, mask),
        logits=lambda memory, target: my_decoder(target, memory),
        source_vocab_size=32000,
        target_vocab_size=32000,
        start_id=0,
    )
    properties.check(mine)

The properties relate results of the implementation to each other: cached to uncached, a row
alone to the row in a batch, a source to the source with padding. They do not say what the
values are; `refseq2seq.testing.diagnose` and `refseq2seq.testing.assert_agrees` do. Nothing but
NumPy is needed. Trials are random and reproducible, the smallest first.
"""

from .catalogue import Property
from .implementation import Implementation
from .report import ALL, Outcome, PropertyError, Report, check, default_rtol, examine, table

__all__ = [
    "ALL",
    "Implementation",
    "Outcome",
    "Property",
    "PropertyError",
    "Report",
    "check",
    "default_rtol",
    "examine",
    "table",
]
