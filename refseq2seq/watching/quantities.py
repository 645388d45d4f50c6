"""Every named quantity: its shape, equation and meaning, and the quantities it is computed from.

    decoder.layers.1.cross_attention.weights     of `forward`, `encode` and `decode`
    step.3.decoder.layers.1.self_attention.q     of step 3 of a loop
    amateur.0.encoder.embed                      of the first amateur of contrastive decoding

This is the only list of the quantities that pass a tap. The documentation's table is made from
it, and the tests compare it with a trace: every name and shape, in this order.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Quantity:
    """A quantity that passes a tap.

    ``name`` has ``*`` for the index of a layer. ``equation`` uses the names of other quantities of
    the same part, of parameters and of the config; x is the residual stream. ``inputs`` are the
    names of the quantities from which it is computed, besides parameters; ``^`` stands for the
    input of the layer: the embedding or the frames, or the last quantity of the previous layer. Of
    several ``alternatives`` the first is right whose quantities the model has.
    """

    name: str
    shape: str
    equation: str
    meaning: str
    alternatives: tuple[tuple[str, ...], ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The quantities of all alternatives."""
        return tuple(name for names in self.alternatives for name in names)


def quantity(name: str) -> Quantity:
    """The quantity of a full name, such as ``step.3.decoder.layers.1.self_attention.q``.

    Raises
    ------
    KeyError
        If no quantity has that name.

    Examples
    --------
    >>> quantity("step.3.decoder.layers.1.self_attention.q").shape
    '(batch, n_heads, n_target, d_k)'
    """
    return BY_NAME[_in_table(name)]


def find_quantity(name: str) -> Quantity | None:
    """As `quantity`, but None for a name that no quantity has."""
    return BY_NAME.get(_in_table(name))


def _in_table(name: str) -> str:
    return re.sub(r"(?<=layers\.)\d+", "*", _split(name)[2])


def inputs_of(name: str, among: Collection[str]) -> list[str]:
    """The names ``among`` those given from which the quantity ``name`` is computed directly.

    Keys and values from earlier steps, in a cache, are omitted.

    Parameters
    ----------
    name : str
    among : collection of str
        In order of execution, as a `Trace` has them.

    Examples
    --------
    >>> names = ["encoder.embed", "encoder.final", "step.3.decoder.embed"]
    >>> inputs_of("step.3.decoder.layers.0.self_attention.input", names)
    ['step.3.decoder.embed']
    >>> inputs_of("decoder.layers.0.cross_attention.k", names)
    ['encoder.final']
    """
    step, amateur, bare = _split(name)
    layer = re.search(r"(?<=layers\.)\d+", bare)
    first, layers, last = "embed", "layers", "after_feed_forward"
    if ".frame_layers." in bare:
        first, layers, last = "frames", "frame_layers", "out"
    given = f"{layers}.{int(layer[0]) - 1}.{last}" if layer and int(layer[0]) else first
    for alternative in quantity(name).alternatives:
        found: list[str] = []
        for other in alternative:
            prefix = amateur if is_of_the_source(other) else step + amateur
            pattern = prefix + other.replace("^", given).replace("*", layer[0] if layer else "*")
            found += [candidate for candidate in among if fnmatchcase(candidate, pattern)][-1:]
        if found:
            return found
    return []


def _split(name: str) -> tuple[str, ...]:
    """The step, the amateur, and the rest, such as ``step.3.``, ``amateur.0.`` and ``logits``."""
    parts = re.match(r"(step\.\d+\.)?(amateur\.\d+\.)?(.*)", name, re.DOTALL)
    return parts.groups("")  # type: ignore[union-attr]


def is_of_the_source(name: str) -> bool:
    """Whether a quantity is computed once per source, before the first step."""
    return name.startswith("encoder.") or name.endswith(("cross_attention.k", "cross_attention.v"))


_FRAMES = """\
encoder.frames : (batch, n_frames, n_features)
    source
    the frames of a source that is not tokens, in the model's dtype
encoder.frame_layers.*.projected : (batch, n_windows, d_out) <- encoder.^
    windows W_in + b_in
    a linear map of each window of successive frames, after the layer's norm where there is one
encoder.frame_layers.*.out : (batch, n_windows, d_out) <- ~.projected
    activation(projected)
    output of a frame layer, normalised where the model does so
"""
# {stack} is encoder or decoder, {n} its number of tokens, {keys} those that each attends to, and
# {attention} its last attention.
_EMBEDDING_AND_SELF_ATTENTION = """\
{stack}.tokens : (batch, {n}, d_model){from_frames}
    scale embedding[ids]{frames_scaled}
    token embeddings{or_frames}, scaled
{stack}.positions : ([batch,] {n}, d_model)
    scale table[positions]
    position embeddings, learned or sinusoids, scaled
{stack}.embed : (batch, {n}, d_model) <- {stack}.tokens, {stack}.positions
    tokens + positions
    the input of layer 0, normalised where the model has a norm
{stack}.layers.*.self_attention.input : (batch, {n}, d_model) <- {stack}.^
    norm(x)
    the residual stream x, after the sublayer's norm where there is one
{stack}.layers.*.self_attention.q : (batch, n_heads, {n}, d_k) <- ~.input
    input W_q + b_q
    queries of each head, normalised and rotated where the model does so
{stack}.layers.*.self_attention.k : (batch, n_kv_heads, {n}, d_k) <- ~.input
    input W_k + b_k
    keys of each head, normalised and rotated where the model does so
{stack}.layers.*.self_attention.v : (batch, n_kv_heads, {n}, d_v) <- ~.input
    input W_v + b_v
    values of each head
{stack}.layers.*.self_attention.scores : (batch, n_heads, {n}, {keys}) <- ~.q, ~.k
    scale q k^T + bias
    how well each key fits each query, before mask and softmax; the bias is of relative positions
{stack}.layers.*.self_attention.weights : (batch, n_heads, {n}, {keys}) <- ~.scores
    softmax(scores)
    each query's distribution over the keys that the mask allows, 0 elsewhere
{stack}.layers.*.self_attention.heads : (batch, n_heads, {n}, d_v) <- ~.weights, ~.v
    weights v
    weighted means of the values, before gates
{stack}.layers.*.self_attention.gate : (batch, {n}, n_gates) <- ~.input
    input W_gate + b_gate
    a gate for each head or each of its values, in gated models
{stack}.layers.*.self_attention.out : (batch, {n}, d_model) <- ~.heads, ~.gate
    concat(heads) W_o + b_o
    output of the sublayer; the heads are times sigmoid(gate) where the model has gates
{stack}.layers.*.after_self_attention : (batch, {n}, d_model) <- {stack}.^, @.self_attention.out
    x + out
    the residual stream after self-attention, normalised where the model does so
"""
_CROSS_ATTENTION = """\
decoder.layers.*.cross_attention.input : (batch, n_target, d_model) <- @.after_self_attention
    norm(x)
    the residual stream x, after the sublayer's norm where there is one
decoder.layers.*.cross_attention.q : (batch, n_heads, n_target, d_k) <- ~.input
    input W_q + b_q
    queries of each head, normalised where the model does so
decoder.layers.*.cross_attention.scores : (batch, n_heads, n_target, n_source) <- ~.q, ~.k
    scale q k^T
    how well each source token fits each query, before mask and softmax
decoder.layers.*.cross_attention.weights : (batch, n_heads, n_target, n_source) <- ~.scores
    softmax(scores)
    each query's distribution over the source tokens that the mask allows, 0 elsewhere
decoder.layers.*.cross_attention.heads : (batch, n_heads, n_target, d_v) <- ~.weights, ~.v
    weights v
    weighted means of the source's values, before gates
decoder.layers.*.cross_attention.gate : (batch, n_target, n_gates) <- ~.input
    input W_gate + b_gate
    a gate for each head or each of its values, in gated models
decoder.layers.*.cross_attention.out : (batch, n_target, d_model) <- ~.heads, ~.gate
    concat(heads) W_o + b_o
    output of the sublayer; the heads are times sigmoid(gate) where the model has gates
decoder.layers.*.after_cross_attention : (batch, n_target, d_model) <- @.after_self_attention, @.cross_attention.out
    x + out
    the residual stream after cross-attention, normalised where the model does so
"""
_FEED_FORWARD_AND_END = """\
{stack}.layers.*.feed_forward.input : (batch, {n}, d_model) <- @.after_{attention}
    norm(x)
    the residual stream x, after the sublayer's norm where there is one
{stack}.layers.*.feed_forward.projected : (batch, {n}, d_ff) <- ~.input
    input W_in + b_in
    the input in d_ff dimensions
{stack}.layers.*.feed_forward.gate : (batch, {n}, d_ff) <- ~.input
    input W_gate + b_gate
    a gate for each element of projected, in gated models
{stack}.layers.*.feed_forward.activated : (batch, {n}, d_ff) <- ~.projected, ~.gate
    activation(projected), or activation(gate) projected
    the hidden elements, in models that normalise them next
{stack}.layers.*.feed_forward.hidden : (batch, {n}, d_ff) <- ~.activated or ~.projected, ~.gate
    activation(projected), or activation(gate) projected
    the hidden elements, normalised where the model does so
{stack}.layers.*.feed_forward.out : (batch, {n}, d_model) <- ~.hidden
    hidden W_out + b_out
    output of the sublayer
{stack}.layers.*.after_feed_forward : (batch, {n}, d_model) <- @.after_{attention}, @.feed_forward.out
    x + out
    the residual stream after the feed-forward network, normalised where the model does so
{stack}.final : (batch, {n}, d_model) <- {stack}.layers.*.after_feed_forward{or_embed}
    norm(x)
    output of the last layer, after the final norm where there is one
"""
_SOURCE = """\
decoder.layers.*.cross_attention.k : (batch, n_kv_heads, n_source, d_k) <- encoder.final
    encoder.final W_k + b_k
    keys of the source, computed once, normalised where the model does so
decoder.layers.*.cross_attention.v : (batch, n_kv_heads, n_source, d_v) <- encoder.final
    encoder.final W_v + b_v
    values of the source, computed once
"""
_CHOICE = """\
logits : (batch, n_target, vocab_size) <- decoder.final
    (logits_scale decoder.final) W + b
    a number for each token of the vocabulary; W is the unembedding
contrast : (batch, vocab_size) <- logits
    expert_weight logits - amateur_weight amateur's logits
    the last logits, corrected by those of the amateurs, in contrastive decoding
scores : (batch, vocab_size) <- logits
    processors(logits)
    the last logits after the processors, -inf where a token is removed
chosen : (batch,) <- scores
    argmax(scores), or a draw from softmax(scores)
    token ids that the chooser picks; rows in their prefix or at their end take other tokens
log_probs : (batch,), or in beam search (batch * beams, vocab_size) <- logits
    log(softmax(logits))
    log-probability, in nats, of the token taken; in beam search of all tokens, after the processors
candidates.beams : (batch, n_candidates) <- log_probs
    candidates // vocab_size
    the live beam that each candidate continues, in beam search
candidates.tokens : (batch, n_candidates) <- log_probs
    candidates mod vocab_size
    the new token of each candidate
candidates.log_probs : (batch, n_candidates) <- log_probs
    log_probs[beam, token]
    log-probability of that token, after the processors
candidates.scores : (batch, n_candidates) <- log_probs
    scores[beam] + log_probs
    sum of the log-probabilities of its new tokens, best first
pool.scores : (batch, beams) <- candidates.scores
    scores / length^length_penalty
    normalised scores of the hypotheses so far, best first
"""

_ENCODER = {
    "stack": "encoder", "n": "n_source", "keys": "n_source", "attention": "self_attention",
    "from_frames": " <- encoder.frame_layers.*.out or encoder.frames",
    "or_frames": ", or the embeddings of frames, with class tokens before them",
    "frames_scaled": ", or scale out",
    "or_embed": " or encoder.embed",
}  # fmt: skip
_DECODER = {
    "stack": "decoder", "n": "n_target", "keys": "n_so_far", "attention": "cross_attention",
    "from_frames": "", "or_frames": "", "frames_scaled": "", "or_embed": "",
}  # fmt: skip

TABLE = (
    _FRAMES
    + _EMBEDDING_AND_SELF_ATTENTION.format(**_ENCODER)
    + _FEED_FORWARD_AND_END.format(**_ENCODER)
    + _SOURCE
    + _EMBEDDING_AND_SELF_ATTENTION.format(**_DECODER)
    + _CROSS_ATTENTION
    + _FEED_FORWARD_AND_END.format(**_DECODER)
    + _CHOICE
)
"""``name : shape <- inputs or inputs``, equation, meaning; ``@`` is the layer, ``~`` the sublayer."""


def _rows() -> Iterator[Quantity]:
    lines = TABLE.splitlines()
    for head, equation, meaning in zip(*(lines[i::3] for i in range(3)), strict=True):
        name, _, rest = head.partition(" : ")
        shape, _, inputs = rest.partition(" <- ")
        inputs = inputs.replace("@", name.partition(".*")[0] + ".*")
        inputs = inputs.replace("~", name.rpartition(".")[0])
        alternatives = tuple(tuple(x.split(", ")) for x in inputs.split(" or ") if x)
        yield Quantity(name, shape, equation.strip(), meaning.strip(), alternatives)


QUANTITIES = tuple(_rows())
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}
LOOPS = QUANTITIES[[quantity.name for quantity in QUANTITIES].index("logits") + 1 :]
"""The quantities of the decoding loops; the others belong to the model."""
