"""The submodules of a live ``torch.nn.Transformer``, or its stacks, that compute our quantities.

Its attention is a single function, inside which hooks capture nothing: queries, keys, values,
scores and weights are not compared.
"""

from collections.abc import Callable
from typing import Any

from ...config import StackConfig
from ...model import Model
from .hooks import Call, Catch, watch_feed_forward, watch_residuals

Run = Callable[[Any, Any, Any], Any]
"""Maps tensors (source, target, source_mask or None) to logits (batch, n_target, vocab_size)."""


class PyTorchModule:
    """An nn.Transformer, or a pair of its stacks, and the function that embeds tokens, runs it
    and returns logits.
    """

    reads: tuple[str, ...] = ("tokens", "vectors")  # whatever ``run`` takes

    def __init__(self, module: Any, run: Run | None) -> None:
        if run is None:
            raise TypeError(
                "an nn.Transformer needs run: pass a function of (source, target, source_mask) "
                "that embeds the tokens, runs the module and returns logits"
            )
        self.called = list(module) if isinstance(module, tuple) else [module]
        self.parts = [getattr(part, "_orig_mod", part) for part in self.called]
        whole = self.parts[0]
        self.stacks = [whole.encoder, whole.decoder] if len(self.parts) == 1 else self.parts
        self.run = run

    def convert(self) -> Model:
        """Raise: embeddings and output projection are not part of an nn.Transformer."""
        raise TypeError("an nn.Transformer needs model: pass the result of from_pytorch")

    def forward(self, source: Any, target: Any, mask: Any) -> Any:
        return self.run(source, target, mask)

    def generate(self, source: Any, prefix: Any, mask: Any, n_new: int) -> tuple[Any, Any]:
        """Raise: an nn.Transformer has neither a loop nor a cache."""
        raise TypeError("an nn.Transformer does not generate: pass a target, not max_new_tokens")

    def new_tokens(self, call: Call) -> None:
        """Nothing: the module reads embeddings."""

    def watch(self, catch: Catch, side: str, stack: Any, c: StackConfig) -> None:
        catch.sequence_first = not stack.layers[0].self_attn.batch_first
        catch.given(stack.layers[0], [f"{side}.embed"])
        last = stack.layers[-1] if stack.norm is None else stack.norm
        catch.gives(last, [f"{side}.final"])
        for i, layer in enumerate(stack.layers):
            at = f"{side}.layers.{i}"
            norms, attentions = [layer.norm1, layer.norm2], {"self_attention": layer.self_attn}
            if side == "decoder":
                norms.append(layer.norm3)
                attentions["cross_attention"] = layer.multihead_attn
            for kind, attention in attentions.items():
                catch.given(attention, [f"{at}.{kind}.input"])
                catch.gives(attention, [f"{at}.{kind}.out"])
            watch_feed_forward(catch, at, layer.linear1, layer.linear2)
            watch_residuals(catch, at, norms, layer, c)
