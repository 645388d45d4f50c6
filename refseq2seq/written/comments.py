"""What a program says beside its lines: the names, conventions and shapes of quantities."""

import math
import textwrap
from typing import Any

from ..config import AttentionConfig, FrameInput, ModelConfig, StackConfig
from ..watching.quantities import quantity
from . import layout

ENCODE = {"[batch,]": "batch,", "n_source": "n"}
STEP = {"[batch,] ": "", "n_target": "1", "n_so_far": "t + 1", "n_source": "n"}
"""The expressions of the sizes of quantities in the functions of a program."""

OF_STATEMENTS = {
    "position_ids = np.maximum(": "# real tokens only",
    "relative_position = ": "# key minus query",
    "borders = ": "# bucket j > 0 begins at distance borders[j - 1]",
    "biases = ": "# (..., n_heads)",
    "key_mask = ": "# (batch, 1, 1, n)",
    "source_mask = mask[:, None": "# (batch, 1, 1, n)",
    "source_mask = ": "# (batch, n)",
}
"""The comments of statements that compute no quantity, by how they begin."""


def comment(
    c: ModelConfig, sizes: dict[str, str], shown: dict[str, str], name: str, variable: str
) -> str:
    """The comment of a quantity: conventions, its name if not the variable's, its shape if new.

    ``sizes`` is `ENCODE` or `STEP`, ``shown`` the last shape of each variable.
    """
    stack = c.encoder if name.startswith("encoder.") else c.decoder
    a: Any = stack.cross_attention if "cross_attention" in name else stack.self_attention
    last = name.rpartition(".")[2]
    shape = quantity(name).shape.replace("n_gates", _n_gates(a))
    for size, text in sizes.items():
        shape = shape.replace(size, text)
    if a.n_kv_heads == a.n_heads:
        shape = shape.replace("n_kv_heads", "n_heads")
    n_registers = c.encoder.n_register_tokens * name.startswith(("encoder.layers", "encoder.final"))
    shape = _longer(shape, n_registers, a.n_learned_kv * (last in ("scores", "weights")))
    is_new = shown.get(variable) != shape and bool(variable or last == "logits")
    shown[variable] = shape
    named = ", ".join([f"= {last}"] * (variable != last) + [shape] * is_new)
    found = "; ".join([*_conventions(last, stack, a, c), *filter(None, [named])])
    return found and f"# {found}"


def _n_gates(a: AttentionConfig) -> str:
    return "n_heads" if a.gate == "per_head" else "n_heads * d_v"


def _longer(shape: str, n_registers: int, n_learned_keys: int) -> str:
    """A shape with register tokens on the axes of source tokens, and learned keys on the last."""
    axes = shape.strip("()").split(", ")
    more = [n_registers if axis == "n" else 0 for axis in axes]
    more[-1] += n_learned_keys
    for i, k in enumerate(more):
        if k:
            axes[i] = f"t + {1 + k}" if axes[i] == "t + 1" else f"{axes[i]} + {k}"
    return f"({', '.join(axes)})"


def _conventions(last: str, stack: StackConfig, a: AttentionConfig, c: ModelConfig) -> list[str]:
    """What the numbers in a quantity's expression mean; a factor of 1 is not written."""
    positions: Any = stack.positions
    said, factor, name, size = [], 1.0, "d_model", stack.d_model
    match last:
        case "tokens":
            factor = stack.embedding_scale
            said = ["the decoder's table"] * (stack is c.encoder and c.tied_embeddings)
        case "positions":
            factor = positions.scale
            said = [f"position + {positions.offset}"] * (positions.offset > 0)
        case "scores":
            factor, name, size = a.scale, "d_k", a.d_k
            said = ["not scaled"] * (factor == 1)
        case "logits":
            factor = c.logits_scale
    if factor == 1:
        return said
    if math.isclose(factor, math.sqrt(size)):
        return [*said, f"sqrt({name})"]
    return [*said, f"1 / sqrt({name})" if math.isclose(factor, size**-0.5) else "scale"]


def sizes(c: ModelConfig) -> str:
    """The sizes of a model, for each stack, or for both if they are the same."""
    rows = []
    for stack in (c.encoder, c.decoder):
        a = stack.self_attention
        own, cross = _heads(a), _heads(stack.cross_attention or a)
        frames = stack.input if isinstance(stack.input, FrameInput) else None
        read = f"n_features {frames.n_features}" if frames else f"vocab_size {stack.vocab_size}"
        rows.append(
            f"n_layers {stack.n_layers}, {read}, d_model {stack.d_model}, {own}, "
            f"d_ff {stack.feed_forward.d_ff}"
        )
        if cross != own:
            rows[-1] += f"; in cross-attention {cross}"
    names = ("encoder", "decoder") if rows[0] != rows[1] else ("encoder and decoder",)
    rows = [f"{name}: {row}" for name, row in zip(names, rows, strict=False)]
    return "\n".join(textwrap.fill(row, layout.WIDTH, subsequent_indent="    ") for row in rows)


def _heads(a: AttentionConfig) -> str:
    n_kv_heads = f", n_kv_heads {a.n_kv_heads}" if a.n_kv_heads != a.n_heads else ""
    return f"n_heads {a.n_heads}{n_kv_heads}, d_k {a.d_k}, d_v {a.d_v}"
