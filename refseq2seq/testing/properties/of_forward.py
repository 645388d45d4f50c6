"""Properties of the forward pass: inputs that must not affect the logits, and inputs that must."""

from collections.abc import Iterator

import numpy as np

from .catalogue import catches
from .implementation import Claim, Trial

# The implementation itself.


@catches("masks that produce NaN, overflow")
def finite(t: Trial) -> Iterator[Claim]:
    """Logits are finite."""
    logits = t.forward(t.source, t.target)
    yield Claim(logits, logits, t.inputs)


@catches("dropout left on, uninitialised arrays")
def deterministic(t: Trial) -> Iterator[Claim]:
    """Repeating a call gives the same logits."""
    yield Claim(t.forward(t.source, t.target), t.forward(t.source, t.target), t.inputs)


@catches("writing into the caller's tokens or mask")
def inputs_stay(t: Trial) -> Iterator[Claim]:
    """Input arrays are not modified."""
    source, mask, target = t.source.copy(), np.ones(t.source.shape[:2], bool), t.target.copy()
    t.subject.logits(t.subject.encode(source, mask if t.subject.padding else None), target)
    if t.subject.generate is not None:
        t.subject.generate(source, mask if t.subject.padding else None, 3)
    for given, before in ((source, t.source), (target, t.target), (mask, np.ones_like(mask))):
        yield Claim(given, before, t.inputs, slack=0)


@catches("returning a view of a buffer that is reused")
def results_stay(t: Trial) -> Iterator[Claim]:
    """Returned logits are not overwritten by later calls."""
    first = t.forward(t.source, t.target)
    before = first.copy()
    t.forward(t.source_tokens(*t.source.shape[:2]), t.target_tokens(*t.target.shape))
    yield Claim(first, before, t.inputs, slack=0)


@catches("state that encoding leaves in the module, such as the last source's keys and values")
def memory_is_its_own(t: Trial) -> Iterator[Claim]:
    """A memory gives the same logits after another source is encoded."""
    memory, other = t.encode(t.source), t.source_tokens(*t.source.shape[:2])
    before = t.logits(memory, t.target).copy()
    t.logits(t.encode(other), t.target)
    yield Claim(t.logits(memory, t.target), before, {**t.inputs, "encoded between": other})


@catches("decoding that modifies the memory, or stores data of one target in it")
def memory_serves_again(t: Trial) -> Iterator[Claim]:
    """A memory gives the same logits after another target is decoded from it."""
    memory, other = t.encode(t.source), t.target_tokens(*t.target.shape)
    t.logits(memory, other)
    fresh = t.forward(t.source, t.target)
    yield Claim(t.logits(memory, t.target), fresh, {**t.inputs, "decoded before": other})


@catches("position tables that are too short by one", needs=("max_source_length",))
def longest_source(t: Trial) -> Iterator[Claim]:
    """A source of the maximum length can be encoded."""
    source = t.source_tokens(1, t.subject.max_source_length)  # type: ignore[arg-type]
    logits = t.forward(source, t.target[:1])
    yield Claim(logits, logits, {"source": source, "target": t.target[:1]})


@catches("position tables that are too short by one", needs=("max_target_length",))
def longest_target(t: Trial) -> Iterator[Claim]:
    """A target of the maximum length can be decoded."""
    target = t.target_tokens(1, t.subject.max_target_length)  # type: ignore[arg-type]
    logits = t.forward(t.source[:1], target)
    yield Claim(logits, logits, {"source": t.source[:1], "target": target})


# Inputs that must not affect the logits.


@catches("a causal mask that is missing or off by one, target padding that affects earlier tokens")
def causality(t: Trial) -> Iterator[Claim]:
    """Logits do not depend on later target tokens or on their number."""
    place, memory = int(t.rng.integers(1, t.target.shape[1])), t.encode(t.source)
    before = t.logits(memory, t.target)[:, :place]
    changed = t.target_tokens(*t.target.shape)
    changed[:, :place] = t.target[:, :place]
    inputs = {**t.inputs, "changed target": changed}
    yield Claim(t.logits(memory, changed)[:, :place], before, inputs)
    yield Claim(t.logits(memory, t.target[:, :place]), before, {**t.inputs, "cut to": place})


@catches("rows mixed by a reshape, such as batch and heads swapped")
def batch_order(t: Trial) -> Iterator[Claim]:
    """Permuting the rows of a batch permutes their logits in the same way."""
    order = np.roll(np.arange(t.batch), 1)
    shuffled = t.forward(t.source[order], t.target[order])
    expected = t.forward(t.source, t.target)[order]
    yield Claim(shuffled, expected, {**t.inputs, "order": order})


@catches("statistics over the batch, one row's source used for all rows")
def row_alone(t: Trial) -> Iterator[Claim]:
    """A row gives the same logits alone as in a batch."""
    yield Claim(t.alone(t.source, t.target), t.forward(t.source, t.target), t.inputs)


@catches("a separate code path for masks that is wrong", needs=("padding",))
def full_mask(t: Trial) -> Iterator[Claim]:
    """A mask in which every token is real gives the same logits as no mask."""
    masked = t.forward(t.source, t.target, np.ones(t.source.shape[:2], dtype=bool))
    yield Claim(masked, t.forward(t.source, t.target), t.inputs)


@catches("a mask missing in the encoder's attention or in cross-attention", needs=("padding",))
def padding_content(t: Trial) -> Iterator[Claim]:
    """Logits do not depend on the ids or the vectors at masked positions."""
    source, mask = t.padded(t.subject.padding[0])
    changed = t.source_tokens(*mask.shape)
    changed[mask] = source[mask]
    inputs = {"source": source, "mask": mask, "target": t.target, "changed source": changed}
    yield Claim(t.forward(changed, t.target, mask), t.forward(source, t.target, mask), inputs)


def _padding(t: Trial, side: str) -> Iterator[Claim]:
    source, mask = t.padded(side)
    inputs = {"source": source, "mask": mask, "target": t.target}
    yield Claim(t.forward(source, t.target, mask), t.alone(t.rows, t.target), inputs)


@catches("means or norms over padding, masks off by one", needs=("right",))
def padding_right(t: Trial) -> Iterator[Claim]:
    """A source with padding on the right gives the logits of the unpadded source."""
    yield from _padding(t, "right")


@catches("positions that count padding", needs=("left",))
def padding_left(t: Trial) -> Iterator[Claim]:
    """A source with padding on the left gives the logits of the unpadded source."""
    yield from _padding(t, "left")


@catches("positions shifted by the total padding, masks reduced to lengths", needs=("between",))
def padding_between(t: Trial) -> Iterator[Claim]:
    """A source with padding at any positions gives the logits of the unpadded source."""
    yield from _padding(t, "between")


# Inputs that must affect the logits.


@catches("no cross-attention, a mask that hides the first or the last token")
def source_counts(t: Trial) -> Iterator[Claim]:
    """The logits depend on the first, a middle and the last source token."""
    n, before = t.source.shape[1], t.forward(t.source, t.target)
    for name, place in (("first", 0), ("middle", n // 2), ("last", n - 1)):
        changed = t.other_source(t.source, place)
        inputs = {**t.inputs, "changed source": changed}
        after = t.forward(changed, t.target)
        yield Claim(after, before, inputs, differ=f"the {name} source token")


@catches("ids clipped or wrapped, a table with one row too few")
def last_id_counts(t: Trial) -> Iterator[Claim]:
    """The last id of a vocabulary gives other logits than the id before it and the first id."""
    memory, last = t.encode(t.source), t.subject.target_vocab_size - 1
    logits = {i: t.logits(memory, np.full_like(t.target, i)) for i in (last, last - 1, 0)}
    for i in (last - 1, 0):
        inputs = {"source": t.source, "target": [last], "changed target": [i]}
        yield Claim(logits[last], logits[i], inputs, differ=f"target id {last} instead of {i}")
    if t.subject.source_vocab_size is None:
        return
    last = t.subject.source_vocab_size - 1
    logits = {i: t.forward(np.full_like(t.source, i), t.target) for i in (last, last - 1, 0)}
    for i in (last - 1, 0):
        inputs = {"source": [last], "target": t.target, "changed source": [i]}
        yield Claim(logits[last], logits[i], inputs, differ=f"source id {last} instead of {i}")


@catches("features cut off, frames transposed", needs=("source_features",))
def features_count(t: Trial) -> Iterator[Claim]:
    """The logits depend on the first and the last feature of a source of vectors."""
    before = t.forward(t.source, t.target)
    for name, place in (("first", 0), ("last", -1)):
        changed = t.source.copy()
        changed[..., place] = t.source_tokens(*t.source.shape[:2])[..., place]
        inputs = {**t.inputs, "changed source": changed}
        after = t.forward(changed, t.target)
        yield Claim(after, before, inputs, differ=f"the {name} feature of the source")


@catches("no positions in the encoder")
def source_order(t: Trial) -> Iterator[Claim]:
    """The logits depend on the order of the source tokens."""
    source, n = t.source_tokens(t.batch, t.most_source), t.most_source
    source[:, 1] = t.other_source(source, 2)[:, 2]
    # The even positions, then the odd ones. Reversal would keep the distances between tokens, on
    # which alone symmetric ALiBi depends; rotation would keep most of them.
    changed = source[:, [*range(0, n, 2), *range(1, n, 2)]]
    inputs = {"source": source, "target": t.target, "changed source": changed}
    before, after = t.forward(source, t.target), t.forward(changed, t.target)
    yield Claim(after, before, inputs, differ="the order of the source")


@catches("logits computed before the token at their position, a mask that hides the past")
def target_counts(t: Trial) -> Iterator[Claim]:
    """Logits depend on the token at their position, the one before it and the first one."""
    memory, last = t.encode(t.source), t.target.shape[1] - 1
    before = t.logits(memory, t.target)[:, last]
    for name, place in (("own", last), ("previous", last - 1), ("first", 1)):
        changed = t.other(t.target, place, t.subject.target_vocab_size)
        inputs = {**t.inputs, "changed target": changed}
        after = t.logits(memory, changed)[:, last]
        yield Claim(after, before, inputs, differ=f"the {name} target token")


@catches("no positions in a decoder of one layer, a history that is only a sum")
def target_order(t: Trial) -> Iterator[Claim]:
    """The logits depend on the order of earlier target tokens."""
    if t.target.shape[1] < 4:
        return
    memory, changed = t.encode(t.source), t.target.copy()
    changed[:, 1:-1] = changed[:, -2:0:-1]
    before, after = t.logits(memory, t.target)[:, -1], t.logits(memory, changed)[:, -1]
    inputs = {**t.inputs, "changed target": changed}
    yield Claim(after, before, inputs, differ="the order of the target")
