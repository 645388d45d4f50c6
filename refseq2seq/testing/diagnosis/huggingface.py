"""The submodules of a live model of Hugging Face transformers 5.24 that compute our quantities."""

from functools import partial
from typing import Any

from ...config import StackConfig
from ...convert import UnsupportedFeature, from_huggingface
from ...convert.huggingface import bart, t5
from ...model import Model
from .hooks import (
    Call,
    Catch,
    Read,
    first_argument,
    first_output,
    watch_feed_forward,
    watch_residuals,
)


class HuggingFaceModule:
    """A ...ForConditionalGeneration model of a family that the converter supports."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.model = getattr(module, "_orig_mod", module)
        self.called, self.parts = [self.module], [self.model]
        self.family = self.model.config.model_type
        if self.family not in WATCHED:
            raise UnsupportedFeature(
                f"module is a {type(self.model).__qualname__}; diagnose knows the families "
                f"{', '.join(WATCHED)}: pass what it computes to diagnose_arrays"
            )
        self.reads: tuple[str, ...] = ("vectors",) if self.family == "whisper" else ("tokens",)

    @property
    def stacks(self) -> list[Any]:
        return [self.model.get_encoder(), self.model.get_decoder()]

    def convert(self) -> Model:
        return from_huggingface(self.model)

    def forward(self, source: Any, target: Any, mask: Any) -> Any:
        given = self._given(source, None if mask is None else mask.long())
        return self.module(**given, decoder_input_ids=target, use_cache=False).logits

    def _given(self, source: Any, mask: Any) -> dict[str, Any]:
        """The arguments for a source; transformers swaps the axes of Whisper's frames."""
        if self.family != "whisper":
            return {"input_ids": source, "attention_mask": mask}
        n = 2 * self.model.config.max_source_positions
        if mask is not None or source.shape[1] != n:
            raise UnsupportedFeature(
                f"source must have {n} frames and source_mask must be all True for Whisper of "
                f"transformers, got {source.shape[1]} frames: pad the sound with silence"
            )
        return {"input_features": source.mT}

    def generate(self, source: Any, prefix: Any, mask: Any, n_new: int) -> tuple[Any, Any]:
        """Greedy decoding with the model's cache; no token ends a row.

        Without a mask the library would infer one, so a mask of ones is passed. Whisper's own
        loop over segments is left out.
        """
        import torch
        from transformers import GenerationMixin

        generate = self.model.generate
        if self.family == "whisper":
            generate = partial(GenerationMixin.generate, self.model)
        elif mask is None:
            mask = torch.ones_like(source)
        found = generate(
            **self._given(source, None if mask is None else mask.long()),
            decoder_input_ids=prefix,
            max_new_tokens=n_new,
            min_new_tokens=n_new,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return found.sequences[:, -n_new - 1 : -1], torch.stack(found.logits, dim=1)

    def new_tokens(self, call: Call) -> Any:
        return call.argument(0, "input_ids")

    def watch(self, catch: Catch, side: str, stack: Any, c: StackConfig) -> None:
        if hasattr(stack, "conv1"):
            _watch_convolutions(catch, stack)
        elif c.embedding_scale == 1 or hasattr(stack.embed_tokens, "embed_scale"):
            catch.gives(stack.embed_tokens, [f"{side}.tokens"])
        WATCHED[self.family](catch, side, stack, c)
        if side == "decoder":
            catch.gives(self.model, ["logits"], lambda call: call.output.logits)


def _hidden_states(call: Call) -> Any:
    return call.argument(0, "hidden_states")


def _watch_convolutions(catch: Catch, stack: Any) -> None:
    """Register hooks on Whisper's convolutions, whose last axis is time."""
    catch.given(stack.conv1, ["encoder.frames"], lambda call: call.args[0].mT)
    catch.given(stack.conv2, ["encoder.frame_layers.0.out"], lambda call: call.args[0].mT)
    for i, of in enumerate((stack.conv1, stack.conv2)):
        catch.gives(of, [f"encoder.frame_layers.{i}.projected"], lambda call: call.output.mT)


def _watch_t5(catch: Catch, side: str, stack: Any, c: StackConfig) -> None:
    """Register hooks for T5 and related models: norms before each sublayer and at the end."""
    catch.given(stack.block[0], [f"{side}.embed"], _hidden_states)
    catch.gives(stack.final_layer_norm, [f"{side}.final"])
    for i, block in enumerate(stack.block):
        at = f"{side}.layers.{i}"
        attentions = {"self_attention": block.layer[0].SelfAttention}
        if side == "decoder":
            attentions["cross_attention"] = block.layer[1].EncDecAttention
        for layer, (kind, attention) in zip(block.layer, attentions.items(), strict=False):
            projections = attention.q, attention.k, attention.v, attention.o
            _watch_attention(catch, f"{at}.{kind}", attention, projections, c)
            catch.gives(layer, [f"{at}.after_{kind}"])
        inner = block.layer[-1].DenseReluDense
        gated = hasattr(inner, "wi_1")
        if gated:
            catch.gives(inner.wi_0, [f"{at}.feed_forward.gate"])
        watch_feed_forward(catch, at, inner.wi_1 if gated else inner.wi, inner.wo)
        catch.gives(block, [f"{at}.after_feed_forward"])


def _watch_bart(catch: Catch, side: str, stack: Any, c: StackConfig) -> None:
    """Register hooks for BART and related models, such as Whisper."""
    catch.given(stack.layers[0], [f"{side}.embed"], _hidden_states)
    catch.gives(stack.embed_positions, [f"{side}.positions"])
    last = stack.layer_norm if c.final_norm else stack.layers[-1]
    for i, layer in enumerate(stack.layers):
        at = f"{side}.layers.{i}"
        norms, attentions = [layer.self_attn_layer_norm], {"self_attention": layer.self_attn}
        if side == "decoder":
            norms.append(layer.encoder_attn_layer_norm)
            attentions["cross_attention"] = layer.encoder_attn
        for kind, attention in attentions.items():
            projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
            _watch_attention(catch, f"{at}.{kind}", attention, projections, c)
        watch_feed_forward(catch, at, layer.fc1, layer.fc2)
        watch_residuals(catch, at, [*norms, layer.final_layer_norm], layer, c)
    catch.gives(last, [f"{side}.final"])


def _watch_attention(
    catch: Catch, place: str, attention: Any, projections: tuple[Any, ...], c: StackConfig
) -> None:
    """Register hooks on the projections; their heads are concatenated, and split here."""

    def heads(read: Read) -> Read:
        """(batch, n, n_heads * d) -> (batch, n_heads, n, d)."""
        n_heads = c.self_attention.n_heads
        return lambda call: read(call).unflatten(-1, (n_heads, -1)).transpose(1, 2)

    *inner, out = projections
    catch.given(attention, [f"{place}.input"], _hidden_states)
    for name, projection in zip("qkv", inner, strict=True):
        catch.gives(projection, [f"{place}.{name}"], heads(first_output))
    catch.gives(attention, [f"{place}.weights"], lambda call: call.output[-1])  # None unless eager
    catch.given(out, [f"{place}.heads"], heads(first_argument))
    catch.gives(attention, [f"{place}.out"])


WATCHED = dict.fromkeys(t5.DEFAULTS, _watch_t5)
WATCHED |= dict.fromkeys((*bart.FAMILIES, "whisper"), _watch_bart)
"""The families, and the functions that register the hooks of their stacks."""
