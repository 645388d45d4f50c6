"""Everything that happens in each step of a decoding, as data or as one HTML page.

explain.page(model, "oracle")                          a self-contained HTML page
explain.record(model, "oracle", beams=4)               the numbers of such a page
refseq2seq explain oracle --html oracle.html           the page from the command line
"""

from .page import page
from .record import record

__all__ = ["page", "record"]
