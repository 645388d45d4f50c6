"""Watch a model decode: everything that happens in each step, as data or as one page.

explain.page(model, "oracle")                          HTML that stands alone
explain.record(model, "oracle", beams=4)               the numbers on it
refseq2seq explain oracle --html oracle.html           the same from the command line
"""

from .page import page
from .record import record

__all__ = ["page", "record"]
