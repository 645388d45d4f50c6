"""Every named quantity: what its name means, its shape, and what it is computed from.

    decoder.layers.1.cross_attention.weights     of `forward`, `encode` and `decode`
    step.3.decoder.layers.1.self_attention.q     of step 3 of a loop
    amateur.0.encoder.embed                      of the first amateur of contrastive decoding

The one list of what passes a tap. The documentation's table is made from it, and the tests
hold it to what passes: every name, every shape, in this order.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Quantity:
    """A quantity that passes a tap.

    ``name`` has ``*`` for the number of a layer. ``inputs`` are the names of what it is
    computed from beside parameters; ``^`` stands for what the layer is given: the
    embedding, or the last quantity of the layer before.
    """

    name: str
    shape: str
    meaning: str
    inputs: tuple[str, ...]


def quantity(name: str) -> Quantity:
    """What a full name, such as ``step.3.decoder.layers.1.self_attention.q``, stands for.

    Raises
    ------
    KeyError
        If nothing of that name passes a tap.

    Examples
    --------
    >>> quantity("step.3.decoder.layers.1.self_attention.q").shape
    '(batch, n_heads, n_target, d_k)'
    """
    _, bare = _split(name)
    return BY_NAME[re.sub(r"(?<=layers\.)\d+", "*", bare)]


def known(name: str) -> Quantity | None:
    """As `quantity`, but None for a name that is not in the table."""
    try:
        return quantity(name)
    except KeyError:
        return None


def inputs_of(name: str, among: Collection[str]) -> list[str]:
    """Those of the names ``among`` from which the quantity ``name`` is computed directly.

    Keys and values that a cache holds from earlier steps are left out.

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
    prefix, bare = _split(name)
    layer = re.search(r"(?<=layers\.)\d+", bare)
    given = f"layers.{int(layer[0]) - 1}.after_feed_forward" if layer and int(layer[0]) else "embed"
    found: list[str] = []
    for other in quantity(name).inputs:
        at = _without_step(prefix) if is_of_the_source(other) else prefix
        pattern = at + other.replace("^", given).replace("*", layer[0] if layer else "*")
        found += [candidate for candidate in among if fnmatchcase(candidate, pattern)][-1:]
    return found


def _split(name: str) -> tuple[str, str]:
    """The prefix that says whose quantity it is and in which step, and the rest."""
    match = re.match(r"(step\.\d+\.)?(amateur\.\d+\.)?", name)
    return name[: match.end()], name[match.end() :]  # type: ignore[union-attr]


def is_of_the_source(name: str) -> bool:
    """Whether a quantity is computed once for a source, before the first step."""
    return name.startswith("encoder.") or name.endswith(("cross_attention.k", "cross_attention.v"))


def _without_step(prefix: str) -> str:
    """Sources are encoded once, before the first step."""
    return re.sub(r"^step\.\d+\.", "", prefix)


def _embedding(stack: str, n: str) -> list[Quantity]:
    return [
        Quantity(f"{stack}.tokens", f"(batch, {n}, d_model)", "token vectors, scaled", ()),
        Quantity(
            f"{stack}.positions", f"([batch,] {n}, d_model)", "what is added for positions", ()
        ),
        Quantity(
            f"{stack}.embed",
            f"(batch, {n}, d_model)",
            "the sum of both, normalised where the model does; layer 0 is given this",
            (f"{stack}.tokens", f"{stack}.positions"),
        ),
    ]


def _attention(at: str, given: str, n_q: str, n_k: str, own_keys: bool) -> list[Quantity]:
    """The quantities of an attention; keys and values of the source are `_memory`'s."""
    keys = [
        Quantity(
            f"{at}.k",
            f"(batch, n_kv_heads, {n_q}, d_k)",
            "keys: input W_k + b_k by heads, normalised and rotated where the model does",
            (f"{at}.input",),
        ),
        Quantity(
            f"{at}.v",
            f"(batch, n_kv_heads, {n_q}, d_v)",
            "values: input W_v + b_v by heads",
            (f"{at}.input",),
        ),
    ]
    return [
        Quantity(
            f"{at}.input",
            f"(batch, {n_q}, d_model)",
            "what the sublayer sees, after a norm before it where there is one",
            (given,),
        ),
        Quantity(
            f"{at}.q",
            f"(batch, n_heads, {n_q}, d_k)",
            "queries: input W_q + b_q by heads, normalised and rotated where the model does",
            (f"{at}.input",),
        ),
        *(keys if own_keys else []),
        Quantity(
            f"{at}.scores",
            f"(batch, n_heads, {n_q}, {n_k})",
            "scale q k^T, plus the bias of relative positions; before mask and softmax",
            (f"{at}.q", f"{at}.k"),
        ),
        Quantity(
            f"{at}.weights",
            f"(batch, n_heads, {n_q}, {n_k})",
            "softmax of the scores that the mask allows, 0 elsewhere",
            (f"{at}.scores",),
        ),
        Quantity(
            f"{at}.heads",
            f"(batch, n_heads, {n_q}, d_v)",
            "weights times values, before gates",
            (f"{at}.weights", f"{at}.v"),
        ),
        Quantity(
            f"{at}.out",
            f"(batch, {n_q}, d_model)",
            "heads, gated where the model does, side by side, times W_o + b_o",
            (f"{at}.heads",),
        ),
    ]


def _after(layer: str, sublayer: str, given: str, n: str) -> Quantity:
    return Quantity(
        f"{layer}.after_{sublayer}",
        f"(batch, {n}, d_model)",
        f"residual: what the {sublayer.replace('_', '-')} was given, plus what it gave; "
        "norms after it included",
        (given, f"{layer}.{sublayer}.out"),
    )


def _feed_forward(at: str, given: str, n: str) -> list[Quantity]:
    return [
        Quantity(
            f"{at}.input",
            f"(batch, {n}, d_model)",
            "what the sublayer sees, after a norm before it where there is one",
            (given,),
        ),
        Quantity(f"{at}.projected", f"(batch, {n}, d_ff)", "input W_in + b_in", (f"{at}.input",)),
        Quantity(
            f"{at}.gate",
            f"(batch, {n}, d_ff)",
            "input W_gate + b_gate, in gated models",
            (f"{at}.input",),
        ),
        Quantity(
            f"{at}.activated",
            f"(batch, {n}, d_ff)",
            "activation(projected), or activation(gate) projected, in models that normalise it",
            (f"{at}.projected", f"{at}.gate"),
        ),
        Quantity(
            f"{at}.hidden",
            f"(batch, {n}, d_ff)",
            "activation(projected), or activation(gate) projected; normalised where the model does",
            (f"{at}.projected", f"{at}.gate", f"{at}.activated"),
        ),
        Quantity(f"{at}.out", f"(batch, {n}, d_model)", "hidden W_out + b_out", (f"{at}.hidden",)),
    ]


def _final(stack: str, n: str) -> Quantity:
    return Quantity(
        f"{stack}.final",
        f"(batch, {n}, d_model)",
        "output of the last layer, after the final norm where there is one",
        (f"{stack}.layers.*.after_feed_forward",),
    )


def _encoder() -> list[Quantity]:
    layer, n = "encoder.layers.*", "n_source"
    return [
        *_embedding("encoder", n),
        *_attention(f"{layer}.self_attention", "encoder.^", n, n, own_keys=True),
        _after(layer, "self_attention", "encoder.^", n),
        *_feed_forward(f"{layer}.feed_forward", f"{layer}.after_self_attention", n),
        _after(layer, "feed_forward", f"{layer}.after_self_attention", n),
        _final("encoder", n),
    ]


def _memory() -> list[Quantity]:
    at = "decoder.layers.*.cross_attention"
    return [
        Quantity(
            f"{at}.{name}",
            f"(batch, n_kv_heads, n_source, d_{name})",
            f"{word} of the source: encoder.final W_{name} + b_{name} by heads; computed once",
            ("encoder.final",),
        )
        for name, word in (("k", "keys"), ("v", "values"))
    ]


def _decoder() -> list[Quantity]:
    layer, n = "decoder.layers.*", "n_target"
    return [
        *_embedding("decoder", n),
        *_attention(f"{layer}.self_attention", "decoder.^", n, "n_so_far", own_keys=True),
        _after(layer, "self_attention", "decoder.^", n),
        *_attention(
            f"{layer}.cross_attention",
            f"{layer}.after_self_attention",
            n,
            "n_source",
            own_keys=False,
        ),
        _after(layer, "cross_attention", f"{layer}.after_self_attention", n),
        *_feed_forward(f"{layer}.feed_forward", f"{layer}.after_cross_attention", n),
        _after(layer, "feed_forward", f"{layer}.after_cross_attention", n),
        _final("decoder", n),
        Quantity(
            "logits",
            "(batch, n_target, vocab_size)",
            "(logits_scale decoder.final) W + b, W the unembedding",
            ("decoder.final",),
        ),
    ]


def _loops() -> list[Quantity]:
    return [
        Quantity(
            "contrast",
            "(batch, vocab_size)",
            "the last logits, corrected by those of amateurs; in contrastive decoding",
            ("logits",),
        ),
        Quantity(
            "scores",
            "(batch, vocab_size)",
            "the last logits after the processors, -inf where a token is out",
            ("logits",),
        ),
        Quantity(
            "chosen",
            "(batch,)",
            "token ids that the chooser picks; rows in their prefix or at their end take another",
            ("scores",),
        ),
        Quantity(
            "log_probs",
            "(batch,), or in beam search (batch * beams, vocab_size)",
            "of the token taken, under softmax(logits), in nats; in beam search of every token, "
            "after the processors",
            ("logits",),
        ),
        Quantity(
            "candidates.beams",
            "(batch, n_candidates)",
            "beam search: the live beam that each candidate continues",
            ("log_probs",),
        ),
        Quantity("candidates.tokens", "(batch, n_candidates)", "its new token", ("log_probs",)),
        Quantity(
            "candidates.log_probs",
            "(batch, n_candidates)",
            "of that token, after the processors",
            ("log_probs",),
        ),
        Quantity(
            "candidates.scores",
            "(batch, n_candidates)",
            "sum of the log-probabilities of its new tokens, best first",
            ("log_probs",),
        ),
        Quantity(
            "pool.scores",
            "(batch, beams)",
            "normalised scores of the hypotheses so far, best first",
            ("candidates.scores",),
        ),
    ]


LOOPS = tuple(_loops())
QUANTITIES = (*_encoder(), *_memory(), *_decoder(), *LOOPS)
BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}
