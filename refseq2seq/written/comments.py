"""What a program says beside its lines: the names, conventions and shapes of quantities."""

import math
import re

from ..config import AttentionConfig, ModelConfig, StackConfig
from ..watching.quantities import quantity
from .recording import Node


class Comments:
    """The comments of a program's quantities.

    Parameters
    ----------
    c : ModelConfig
    sizes : dict
        The expressions of the numbers of tokens in shapes, such as ``n_source``.
    """

    def __init__(self, c: ModelConfig, sizes: dict[str, str]) -> None:
        self.c, self.sizes = c, sizes

    def __call__(self, node: Node, is_new: bool) -> str:
        """The comment of a node; with its shape if its variable is new."""
        if node.kind != "tap":
            return ""
        stack = self.c.encoder if node.name.startswith("encoder.") else self.c.decoder
        last = node.name.rpartition(".")[2]
        has_other_variable = last in ("embed", "input", "final") or last.startswith("after_")
        named = [last] if has_other_variable else []
        shape = [self._shape(node.name, stack)] if is_new else []
        parts = [_convention(node.name, stack, self.c), ": ".join([*named, *shape])]
        found = "; ".join(filter(None, parts))
        return f"# {found}" if found else ""

    def _shape(self, name: str, stack: StackConfig) -> str:
        known = self.sizes | {"[batch,]": "batch,"}
        a = _attention(name, stack)
        if a.n_kv_heads == a.n_heads:
            known["n_kv_heads"] = "n_heads"
        pattern = "|".join(map(re.escape, known))
        return re.sub(pattern, lambda found: known[found[0]], quantity(name).shape)


def _convention(name: str, stack: StackConfig, c: ModelConfig) -> str:
    """The meaning of the number in a quantity's expression."""
    last = name.rpartition(".")[2]
    if last == "scores":
        a = _attention(name, stack)
        return _factor(a.scale, "d_k", a.d_k) or "not scaled"
    if last == "tokens":
        return _factor(stack.embedding_scale, "d_model", stack.d_model)
    if last == "positions" and stack.positions is not None:
        return _factor(stack.positions.scale, "d_model", stack.d_model)
    return _factor(c.logits_scale, "d_model", stack.d_model) if last == "logits" else ""


def _attention(name: str, stack: StackConfig) -> AttentionConfig:
    """The attention of a quantity."""
    cross = stack.cross_attention if "cross_attention" in name else None
    return cross or stack.self_attention


def _factor(x: float, name: str, size: int) -> str:
    """A factor as a root of a size; nothing for the factor 1, which the program omits."""
    if x == 1:
        return ""
    if math.isclose(x, math.sqrt(size)):
        return f"sqrt({name})"
    return f"1 / sqrt({name})" if math.isclose(x, 1 / math.sqrt(size)) else "scale"


def sizes(c: ModelConfig) -> str:
    """The sizes of a model, one line for each stack, or one for both."""
    texts = [_sizes(stack) for stack in (c.encoder, c.decoder)]
    if texts[0] == texts[1]:
        return f"encoder and decoder: {texts[0]}"
    return "\n".join(f"{name}: {text}" for name, text in zip(("encoder", "decoder"), texts, strict=True))


def _sizes(c: StackConfig) -> str:
    a = c.self_attention
    found = {
        "n_layers": c.n_layers, "vocab_size": c.vocab_size, "d_model": c.d_model,
        "n_heads": a.n_heads, "n_kv_heads": a.n_kv_heads, "d_k": a.d_k, "d_v": a.d_v,
        "d_ff": c.feed_forward.d_ff,
    }  # fmt: skip
    if a.n_kv_heads == a.n_heads:
        del found["n_kv_heads"]
    return ", ".join(f"{name} {size}" for name, size in found.items())
