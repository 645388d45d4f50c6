"""Which library a live module is of, what is asked of it, and the conditions it runs in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ...config import ModelConfig
from ...model import Model
from .hooks import Catch
from .huggingface import HuggingFaceModule
from .pytorch import PyTorchModule, Run
from .x_transformers import XTransformersModule


class Peer(Protocol):
    """A live module, and what can be done with it."""

    called: list[Any]  # the modules that run
    parts: list[Any]  # the same as they were before they were compiled

    def convert(self) -> Model:
        """Ours, of its weights."""

    def watch(self, catch: Catch, config: ModelConfig) -> None:
        """Hang hooks on the parts in which the quantities of ``config`` are seen."""

    def forward(self, source: Any, mask: Any, target: Any) -> None:
        """Teacher forcing. All are tensors; the mask is boolean or None."""

    def generate(self, source: Any, mask: Any, prefix: Any, n_new: int) -> None:
        """Greedy, with the module's own cache; nothing ends a row."""


def as_peer(module: Any, run: Run | None) -> Peer:
    """The module with what diagnosing it takes.

    Raises
    ------
    ImportError
        Without PyTorch.
    TypeError
        For a module of no library that is known here.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"diagnose needs the library of the module: pip install 'refseq2seq[peers]' ({error})"
        ) from error
    whole = getattr(module, "_orig_mod", module)
    if isinstance(whole, torch.nn.Transformer):
        return PyTorchModule(module, run)
    if run is not None:
        raise TypeError("run is for an nn.Transformer; other modules are run here")
    if hasattr(whole, "can_generate"):
        return HuggingFaceModule(module)
    if isinstance(whole, tuple) or _is_of("x_transformers", whole):
        return XTransformersModule(module)
    raise TypeError(
        "module must be an XTransformer, a pair (encoder, decoder) of TransformerWrapper, a model "
        f"of transformers or an nn.Transformer, got {type(whole).__qualname__}"
    )


def _is_of(package: str, module: Any) -> bool:
    """Whether a module is of a package's class, or of one made from it."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(module).__mro__)


def dtype_of(peer: Peer) -> str:
    """The floating-point dtype of the first parameter that has one."""
    dtypes = (x.dtype for part in peer.parts for x in part.parameters() if x.is_floating_point())
    return str(next(dtypes)).removeprefix("torch.")


@contextmanager
def running(peer: Peer, catch: Catch, config: ModelConfig) -> Iterator[Callable[[Any], Any]]:
    """Evaluation mode, no gradients, hooks in place; afterwards all is as it was.

    Gives the function that makes tensors, where the module is, of arrays; None stays None.
    """
    import torch

    device = next(peer.parts[0].parameters()).device
    modules = [module for part in peer.parts for module in part.modules()]
    modes = [module.training for module in modules]
    if anew := is_compiled(peer):
        torch.compiler.reset()  # what is compiled already has no hooks inside
    try:
        for module in modules:
            module.training = False
        peer.watch(catch, config)
        generators = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=generators):
            yield lambda x: None if x is None else torch.as_tensor(x, device=device)
    finally:
        catch.close()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        if anew:
            torch.compiler.reset()


def quantised_part(peer: Peer) -> str | None:
    """The name of a part that PyTorch quantised, if there is one, and what it is."""
    for part in peer.parts:
        for name, module in part.named_modules():
            if ".quantized." in type(module).__module__:
                return f"{name} is a {type(module).__module__}.{type(module).__qualname__}"
    return None


def is_compiled(peer: Peer) -> bool:
    """Whether a part was given to torch.compile, in any of the ways that there are."""
    return any(
        hasattr(module, "_orig_mod")
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for part in peer.called
        for module in part.modules()
    )
