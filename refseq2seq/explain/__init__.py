"""A model as one picture, and everything that happens in each step of a decoding.

explain.picture(model)                                 the model as an inline <svg>
explain.facts(model)                                   what it computes, by which line of code
explain.page(model, "oracle")                          a self-contained HTML page
explain.record(model, "oracle", beams=4)               the numbers of such a page
refseq2seq explain oracle --html oracle.html           the page from the command line
refseq2seq explain --serve                             the page live, with what you type
"""

from .facts import Fact, facts
from .page import page
from .picture import picture
from .record import record

__all__ = ["Fact", "facts", "page", "picture", "record"]
