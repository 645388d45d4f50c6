"""What a program says beside its lines: the names, conventions and shapes of quantities."""

import math
import re
import textwrap

from ..config import AttentionConfig, ModelConfig, StackConfig
from ..watching.quantities import quantity
from . import layout


class Comments:
    """The comments of a program's quantities; ``sizes`` are expressions of ``n_source`` etc."""

    def __init__(self, c: ModelConfig, **sizes: str) -> None:
        self.c, self.sizes = c, sizes

    def __call__(self, name: str, variable: str, *, is_new: bool) -> str:
        """The comment of a quantity: its name if the variable has another, its shape if new."""
        stack = self.c.encoder if name.startswith("encoder.") else self.c.decoder
        a = stack.cross_attention if "cross_attention" in name else stack.self_attention
        last = name.rpartition(".")[2]
        known = {"[batch,]": "batch,", "n_kv_heads": "n_kv_heads"} | self.sizes
        if a.n_kv_heads == a.n_heads:  # type: ignore[union-attr]
            known["n_kv_heads"] = "n_heads"
        pattern = "|".join(map(re.escape, known))
        shape = re.sub(pattern, lambda found: known[found[0]], quantity(name).shape)
        named = ": ".join([last] * (variable != last) + [shape] * is_new)
        found = "; ".join(filter(None, [_convention(last, stack, a, self.c), named]))  # type: ignore[arg-type]
        return found and f"# {found}"


def _convention(last: str, stack: StackConfig, a: AttentionConfig, c: ModelConfig) -> str:
    """The meaning of the factor in a quantity's expression; a factor of 1 is not written."""
    positions = stack.positions
    factors = {
        "scores": (a.scale, "d_k", a.d_k),
        "tokens": (stack.embedding_scale, "d_model", stack.d_model),
        "embed": (1.0, "d_model", stack.d_model),
        "positions": (positions.scale if positions else 1.0, "d_model", stack.d_model),
        "logits": (c.logits_scale, "d_model", stack.d_model),
    }
    if last not in factors:
        return ""
    factor, name, size = factors[last]
    if factor == 1:
        return "not scaled" if last == "scores" else ""
    if math.isclose(factor, math.sqrt(size)):
        return f"sqrt({name})"
    return f"1 / sqrt({name})" if math.isclose(factor, 1 / math.sqrt(size)) else "scale"


def sizes(c: ModelConfig) -> str:
    """The sizes of a model, for each stack, or for both if they are the same."""
    rows = []
    for stack in (c.encoder, c.decoder):
        a = stack.self_attention
        n_heads = (
            f"{a.n_heads}"
            if a.n_kv_heads == a.n_heads
            else f"{a.n_heads}, n_kv_heads {a.n_kv_heads}"
        )
        rows.append(
            f"n_layers {stack.n_layers}, vocab_size {stack.vocab_size}, d_model {stack.d_model}, "
            f"n_heads {n_heads}, d_k {a.d_k}, d_v {a.d_v}, d_ff {stack.feed_forward.d_ff}"
        )
    rows = (
        [f"encoder: {rows[0]}", f"decoder: {rows[1]}"]
        if rows[0] != rows[1]
        else [f"encoder and decoder: {rows[0]}"]
    )
    return "\n".join(textwrap.fill(row, layout.WIDTH, subsequent_indent="    ") for row in rows)
