"""The submodules of a live module of x-transformers 2.31 that compute our quantities."""

from collections import defaultdict
from functools import partial
from typing import Any

from ...config import RotaryPositions, StackConfig
from ...convert import UnsupportedFeature, from_x_transformers
from ...model import Model
from .hooks import SUBLAYERS, Call, Catch, Read

ACCEPTED = (
    "a module of x-transformers must be an XTransformer or a pair (encoder, decoder) of "
    "TransformerWrapper, with or without an AutoregressiveWrapper around the decoder"
)


class XTransformersModule:
    """An XTransformer, or a pair (encoder, decoder) of TransformerWrapper."""

    reads: tuple[str, ...] = ("tokens",)

    def __init__(self, module: Any) -> None:
        from x_transformers import AutoregressiveWrapper, TransformerWrapper, XTransformer

        pair = module
        if isinstance(_uncompiled(module), XTransformer):
            _check_not_compiled(module)
            pair = module.encoder, module.decoder
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TypeError(f"{ACCEPTED}, got {type(_uncompiled(module)).__qualname__}")
        self.encoder, decoder = pair
        wrapped = isinstance(_uncompiled(decoder), AutoregressiveWrapper)
        if wrapped:
            _check_not_compiled(decoder)
        self.decoder = decoder.net if wrapped else decoder
        self.called = [self.encoder, self.decoder]
        self.parts = self.stacks = [_uncompiled(part) for part in self.called]
        for part in self.parts:
            if not isinstance(part, TransformerWrapper):
                raise TypeError(f"{ACCEPTED}, got a pair with {type(part).__qualname__}")
        self.loop = decoder if wrapped else AutoregressiveWrapper(decoder)

    def convert(self) -> Model:
        """The converted model; start token 0 and no EOS, since the module defines neither."""
        return from_x_transformers(tuple(self.parts), decoder_start_id=0, eos_ids=())

    def forward(self, source: Any, target: Any, mask: Any) -> Any:
        memory = self.encoder(source, mask=mask, return_embeddings=True)
        return self.decoder(target, context=memory, context_mask=mask)

    def generate(self, source: Any, prefix: Any, mask: Any, n_new: int) -> tuple[Any, Any]:
        """Greedy decoding with the module's cache, by a filter that keeps only the best token."""
        import torch

        logits: list[Any] = []

        def only_the_best(x: Any) -> Any:
            logits.append(x)
            best = x.argmax(dim=-1, keepdim=True)
            return torch.full_like(x, -torch.inf).scatter(-1, best, 0.0)

        memory = self.encoder(source, mask=mask, return_embeddings=True)
        new = self.loop.generate(
            prefix, n_new, filter_logits_fn=only_the_best, context=memory, context_mask=mask
        )
        read = torch.cat([prefix[:, -1:], new[:, :-1]], dim=1)
        return read, torch.stack(logits, dim=1)

    def new_tokens(self, call: Call) -> Any:
        """The new tokens: a decoder with a cache gets all tokens, and only the last is new."""
        ids = call.args[0]
        return ids[:, -1:] if call.kwargs.get("cache") is not None else ids

    def watch(self, catch: Catch, side: str, stack: Any, c: StackConfig) -> None:
        def newest(call: Call) -> Any:
            """Only the last token, after step 0: a decoder with a cache embeds all tokens."""
            return call.output[..., -1:, :] if catch.by_step and len(catch.fed) > 1 else call.output

        catch.gives(stack.token_emb, [f"{side}.tokens"], newest)
        if c.positions is not None:
            catch.gives(stack.pos_emb, [f"{side}.positions"], newest)
        _watch_layers(catch, side, stack.attn_layers, c)
        if side == "decoder":
            catch.gives(stack, ["logits"])


def _uncompiled(module: Any) -> Any:
    """The module that was passed to ``torch.compile``; any other module itself."""
    return getattr(module, "_orig_mod", module)


def _check_not_compiled(module: Any) -> None:
    """Raise if ``module`` is compiled: only its parts run here, not its compiled code."""
    if module is not _uncompiled(module):
        raise UnsupportedFeature(
            f"a compiled {type(_uncompiled(module)).__qualname__} computes a loss: compile its "
            "parts and pass the pair (torch.compile(module.encoder), "
            "torch.compile(module.decoder.net))"
        )


def _watch_layers(catch: Catch, side: str, layers: Any, c: StackConfig) -> None:
    """Sublayers may run in any order and repeatedly; each has a name for every call."""
    names = defaultdict(list)
    kinds = SUBLAYERS[side]
    for place, index in enumerate(layers.layers_execute_order):
        layer, sublayer = divmod(place, len(kinds))
        names[index].append((f"{side}.layers.{layer}", kinds[sublayer]))
    for index, at in names.items():
        norms, block, residual = layers.layers[index]
        places = [f"{layer}.{kind}" for layer, kind in at]
        catch.given(block, [f"{place}.input" for place in places])
        catch.gives(block, [f"{place}.out" for place in places])
        last = residual if norms[2] is None else norms[2]
        catch.gives(last, [f"{layer}.after_{kind}" for layer, kind in at])
        if at[0][1] == "feed_forward":
            _watch_feed_forward(catch, block.ff, places, c.feed_forward.hidden_norm is not None)
        else:
            # It rotates memory tokens from position 0, and we from -n, so that q and k differ.
            turned = c.n_register_tokens and isinstance(c.relative_positions, RotaryPositions)
            _watch_attention(catch, _uncompiled(block), places, "v" if turned else "qkv")
    norms, block, _ = layers.layers[layers.layers_execute_order[0]]
    first = block if norms[0] is None else norms[0]
    catch.given(first, [f"{side}.embed"], lambda call: call.args[0][:, c.n_register_tokens :])
    catch.gives(layers.final_norm, [f"{side}.final"])


def _watch_attention(catch: Catch, attention: Any, places: list[str], visible: str) -> None:
    import torch

    def scores(call: Call) -> Any:
        """The scores; masked ones, set to the minimum of the dtype, are recomputed without mask."""
        inner = call.output[1]
        if inner.pre_softmax_attn is None:
            return None  # flash attention does not return scores
        bias = call.kwargs.get("attn_bias")
        unmasked = inner.qk_similarities if bias is None else inner.qk_similarities + bias
        least = torch.finfo(unmasked.dtype).min
        return unmasked.where(inner.pre_softmax_attn == least, inner.pre_softmax_attn)

    def under(name: str) -> list[str]:
        return [f"{place}.{name}" for place in places]

    attend, is_self = attention.attend, places[0].endswith("self_attention")
    for name in visible:
        catch.given(
            attend, under(name), partial(_head_input, attention, is_self, "qkv".index(name))
        )
    catch.gives(attend, under("scores"), scores)
    catch.gives(attend, under("weights"), lambda call: call.output[1].post_softmax_attn)
    catch.gives(attend, under("heads"))
    for gate in (attention.to_v_gate, attention.to_v_head_gate):
        if gate is not None:
            catch.gives(gate, under("gate"))


def _head_input(attention: Any, is_self: bool, i: int, call: Call) -> Any:
    """Queries, keys or values (i = 0, 1, 2) of the new tokens, without learned keys and values."""
    x = call.args[i]
    if i:
        x = x[:, :, attention.num_mem_kv :]
    if i and is_self:
        x = x[:, :, -call.args[0].shape[2] :]  # earlier positions come from the cache
    # Their qk_norm scales vectors to length 1, ours to length sqrt(d).
    return x * x.shape[-1] ** 0.5 if attention.qk_norm and i < 2 else x


def _watch_feed_forward(catch: Catch, parts: Any, places: list[str], normed: bool) -> None:
    def half(i: int) -> Read:
        return lambda call: call.output.chunk(2, dim=-1)[i]

    into, out = parts[0], [part for part in parts if hasattr(part, "in_features")][-1]
    projected = [f"{place}.projected" for place in places]
    if hasattr(into, "proj"):  # a GLU
        catch.gives(into.proj, projected, half(0))
        catch.gives(into.proj, [f"{place}.gate" for place in places], half(1))
    else:
        catch.gives(into[0], projected)
    if normed:
        catch.gives(into, [f"{place}.activated" for place in places])
    catch.given(out, [f"{place}.hidden" for place in places])
