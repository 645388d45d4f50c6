"""Assert that another implementation generates what it was asked for.

Its outputs (`outputs`) are compared with those of the reference in float64 for the same request
(`comparison`): greedy or sampled tokens, with processors and prefixes, or the hypotheses of beams,
with their scores. If they differ by more than rounding, the request is changed by one rule at a
time (`rules`): a change with which the reference gives their output tells which rule they lack, or
apply otherwise.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...checks import Source, check_number
from ...model import Model, check_model
from ..agreement import TokenAgreement
from ..rounding import rounded
from ..tolerance import refuse_memory
from .comparison import Deviation, compared, is_given_by
from .outputs import Outputs, Request, read
from .rules import other_requests

__all__ = ["assert_generation_agrees"]


def assert_generation_agrees(
    theirs: Any,
    model: Model,
    source: Source,
    *,
    dtype: str = "float32",
    z: float = 6.0,
    vocabulary: Sequence[str] | None = None,
    **how: Any,
) -> TokenAgreement:
    """Raise unless another implementation's outputs are those that are asked for.

    Parameters
    ----------
    theirs : outputs of the other implementation
        What ``generate`` of Hugging Face returns, a tensor of ids or its dictionary with
        ``sequences`` and ``sequences_scores``; the list of results of CTranslate2's
        ``translate_batch``; a `Generation` or `BeamSearch`; or new token ids, (batch, n) or
        (batch, n_best, n), or a mapping with them under ``"tokens"`` and, optionally,
        ``"scores"`` (batch, n_best) and ``"log_probs"``, shaped as the tokens, in nats. The scores
        of CTranslate2 are compared only for beam search without a prefix: they count the prefix,
        and so does its maximum length. Where the reference has fewer hypotheses than ``n_best``,
        theirs are not compared.
    model, source
        As in `refseq2seq.generate`, but no `Memory`.
    dtype : "float16", "bfloat16", "tf32", "float32" or "float64"
        Number format in which they compute.
    z : float
        Tokens may differ if logits that are off by ``z`` spreads of rounding to ``dtype`` give
        theirs. Finite, not negative.
    vocabulary : sequence of str, optional
        The token of each id, for results that consist of tokens; by default the symbols of the
        model's vocabulary.
    **how
        What is asked: the arguments of `refseq2seq.generate` or, if ``beams`` or another of its
        arguments is among them, of `refseq2seq.beam_search`; those of a model's settings are
        ``**rs.as_configured(model)``. A sampled output needs its uniform numbers, or the
        ``choose`` that replays its random numbers.

    Returns
    -------
    TokenAgreement
        How many tokens agree, and the near-ties. In a row with a near-tie, the tokens after it
        have another history and are not compared; of beams, the whole row.

    Raises
    ------
    AssertionError
        If rounding does not explain a difference. The message names the first one, and each
        single change of the request with which the reference gives their outputs. Also if an
        output goes on after its end token.
    TypeError, ValueError
        If ``theirs`` has another form or number of rows, or the request is invalid.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> model = rs.load("g2p")
    >>> source = [model.source_vocabulary.encode(word) for word in ("banana", "cat")]
    >>> theirs = rs.generate(model, source)
    >>> print(assert_generation_agrees(theirs, model, source))
    11 of 11 tokens match the reference

    An output that may repeat tokens, although the request forbids it:

    >>> how = {"choose": rs.greedy(rs.no_repeat_ngram(1))}
    >>> assert_generation_agrees(theirs, model, source, **how)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: new token ... of row 0 is ...; the reference chose ..., and its processors ...
    With this change the reference gives their output: without no_repeat_ngram(1)
    """
    check_model(model)
    refuse_memory(source)
    z = check_number("z", z, "[0, inf)")
    reference = replace(rounded(model, dtype).to("numpy").astype("float64"), settings=None)
    request = Request(reference, source, how)
    found = read(theirs, request, vocabulary)
    try:
        return compared(request, found, dtype, z)
    except Deviation as deviation:
        causes = [text for text, other in other_requests(request) if _gives(other, found, dtype, z)]
        lines = [str(deviation)]
        lines += [f"With this change the reference gives their output: {text}" for text in causes]
        if not causes:
            lines.append("No change of a single rule gives their output.")
        raise AssertionError("\n".join(lines)) from None


def _gives(request: Request, theirs: Outputs, dtype: str, z: float) -> bool:
    """As `is_given_by`, but False for a request that is refused or leaves no token."""
    try:
        return is_given_by(request, theirs, dtype, z)
    except (TypeError, ValueError, RuntimeError):
        return False
