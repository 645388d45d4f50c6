"""Wrappers of live modules of each library, and running them with and without hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ...config import ModelConfig, StackConfig
from ...model import Model
from .hooks import SUBLAYERS, Call, Catch
from .huggingface import HuggingFaceModule
from .pytorch import PyTorchModule, Run
from .x_transformers import XTransformersModule


class Peer(Protocol):
    """A live module, with a common interface for all libraries."""

    called: list[Any]  # the modules that run
    parts: list[Any]  # the same modules before torch.compile
    reads: tuple[str, ...]  # its sources: tokens, vectors or both

    @property
    def stacks(self) -> list[Any]:
        """Encoder and decoder, which compute the quantities."""

    def convert(self) -> Model:
        """Convert its weights to a `Model`."""

    def new_tokens(self, call: Call) -> Any:
        """The token ids that are new in a call of the decoder."""

    def watch(self, catch: Catch, side: str, stack: Any, c: StackConfig) -> None:
        """Register hooks on the submodules of encoder or decoder that compute our quantities."""

    def forward(self, source: Any, target: Any, mask: Any) -> Any:
        """Logits of teacher forcing, (batch, n_target, vocab_size).

        All are tensors; the mask is boolean (batch, n_source), True = real token, or None. Raises
        if the library cannot run it on such a source.
        """

    def generate(self, source: Any, prefix: Any, mask: Any, n_new: int) -> tuple[Any, Any]:
        """Decode greedily with the module's own cache; no token ends a row.

        Returns the last token that each step reads, (batch, n_new), and the logits after it,
        (batch, n_new, vocab_size).
        """


def as_peer(module: Any, run: Run | None) -> Peer:
    """Wrap a module for diagnosis.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError
        If the module is of an unsupported type.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"diagnose needs the library of the module: pip install 'refseq2seq[peers]' ({error})"
        ) from error
    whole = getattr(module, "_orig_mod", module)
    stacks = torch.nn.TransformerEncoder, torch.nn.TransformerDecoder
    parts = module if isinstance(module, tuple) else ()
    if isinstance(whole, torch.nn.Transformer) or any(
        isinstance(getattr(part, "_orig_mod", part), stacks) for part in parts
    ):
        return PyTorchModule(module, run)
    if run is not None:
        raise TypeError(
            f"run is only for an nn.Transformer, got {type(whole).__qualname__}: omit run"
        )
    if hasattr(whole, "can_generate"):
        return HuggingFaceModule(module)
    packages = {kind.__module__.partition(".")[0] for kind in type(whole).__mro__}
    if isinstance(whole, tuple) or "x_transformers" in packages:
        return XTransformersModule(module)
    raise TypeError(
        "module must be an XTransformer, a pair (encoder, decoder) of TransformerWrapper or of "
        "nn.Transformer's stacks, a model of transformers or an nn.Transformer, "
        f"got {type(whole).__qualname__}"
    )


def dtype_of(peer: Peer) -> str:
    """The dtype of the first floating-point parameter, such as "float32"."""
    dtypes = (x.dtype for part in peer.parts for x in part.parameters() if x.is_floating_point())
    return str(next(dtypes)).removeprefix("torch.")


def run_once(
    peer: Peer,
    source: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None,
    max_new_tokens: int | None,
) -> tuple[np.ndarray, Any]:
    """The tokens that the module reads, integers (batch, n), and its logits after each, a tensor.

    The module runs in evaluation mode and without gradients. Its modes and the random state of
    PyTorch are restored afterwards.
    """
    import torch

    device, dtype = next(peer.parts[0].parameters()).device, getattr(torch, dtype_of(peer))

    def tensor(x: np.ndarray | None) -> Any:
        of = dtype if x is not None and x.dtype.kind == "f" else None
        return None if x is None else torch.as_tensor(x, dtype=of, device=device)

    given = tensor(source), tensor(target), tensor(mask)
    generators = [device] if device.type == "cuda" else []
    with _evaluating(peer), torch.no_grad(), torch.random.fork_rng(devices=generators):
        if max_new_tokens is None:
            return target, peer.forward(*given).clone()  # compiled code may reuse the buffer
        tokens, logits = peer.generate(*given, max_new_tokens)
        return tokens.cpu().numpy(), logits


@contextmanager
def _evaluating(peer: Peer) -> Iterator[None]:
    modules = [module for part in peer.parts for module in part.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextmanager
def watching(peer: Peer, catch: Catch, config: ModelConfig) -> Iterator[None]:
    """Register hooks, recompile compiled code with them, and disable the fast paths."""
    import torch

    was_fast = torch.backends.mha.get_fastpath_enabled()
    if anew := is_compiled(peer):
        torch.compiler.reset()  # code that is already compiled has no hooks
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for side, stack in zip(SUBLAYERS, peer.stacks, strict=True):
            catch.passes(stack, side, peer.new_tokens)
            peer.watch(catch, side, stack, getattr(config, side))
        yield
    finally:
        catch.close()
        torch.backends.mha.set_fastpath_enabled(was_fast)
        if anew:
            torch.compiler.reset()


def changed_by_hooks(peer: Peer) -> tuple[str, ...]:
    """Lines that list code that runs differently, or not at all, while hooks are registered."""
    import torch
    from torch import nn

    lines = []
    if torch.backends.mha.get_fastpath_enabled():
        modules = [module for part in peer.parts for module in part.modules()]
        for kind in (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention):
            if any(isinstance(module, kind) for module in modules):
                lines.append(f"the fast path of torch.nn.{kind.__name__}, which is disabled")
    if is_compiled(peer):
        lines.append("code from torch.compile, which is recompiled with the hooks")
    return (*lines, "any code that checks whether hooks are registered")


def quantised_part(peer: Peer) -> str | None:
    """The name and type of the first submodule that PyTorch quantised, or None."""
    for part in peer.parts:
        for name, module in part.named_modules():
            if ".quantized." in type(module).__module__:
                return f"{name} is a {type(module).__module__}.{type(module).__qualname__}"
    return None


def is_compiled(peer: Peer) -> bool:
    """Whether a submodule is compiled by torch.compile, called in any of its ways."""
    return any(
        hasattr(module, "_orig_mod")
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for part in peer.called
        for module in part.modules()
    )
