"""What a program says beside its lines: the names, conventions and shapes of quantities."""

import math
import re
import textwrap

from ..config import AttentionConfig, ModelConfig, StackConfig
from ..watching.quantities import quantity
from . import layout

OF_VARIABLES = {
    "position_ids": "# real tokens only",
    "relative_position": "# key minus query",
    "borders": "# the smallest distance of each bucket but the first",
}
"""The comments of arrays that are not quantities."""


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
        named = ", ".join([f"= {last}"] * (variable != last) + [shape] * is_new)
        found = "; ".join(filter(None, [_convention(last, stack, a, self.c), named]))  # type: ignore[arg-type]
        return found and f"# {found}"


def _convention(last: str, stack: StackConfig, a: AttentionConfig, c: ModelConfig) -> str:
    """What the numbers in a quantity's expression mean; a factor of 1 is not written."""
    positions, d_model = stack.positions, ("d_model", stack.d_model)
    offset = positions.offset if positions else 0
    said = {
        "tokens": ["the decoder's table"] * (stack is c.encoder and c.tied_embeddings),
        "positions": [f"position + {offset}"] * (offset > 0),
    }
    factors = {
        "scores": (a.scale, "d_k", a.d_k),
        "tokens": (stack.embedding_scale, *d_model),
        "positions": (positions.scale if positions else 1.0, *d_model),
        "logits": (c.logits_scale, *d_model),
    }
    factor, name, size = factors.get(last, (1.0, *d_model))
    if factor == 1:
        factor_said = "not scaled" if last == "scores" else ""
    elif math.isclose(factor, math.sqrt(size)):
        factor_said = f"sqrt({name})"
    else:
        factor_said = f"1 / sqrt({name})" if math.isclose(factor, size**-0.5) else "scale"
    return "; ".join([*said.get(last, []), *filter(None, [factor_said])])


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
