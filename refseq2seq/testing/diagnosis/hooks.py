"""Capture of the inputs and outputs of submodules of a PyTorch module, under our names.

A forward hook captures the output of a submodule, and a forward pre-hook its input. A submodule
that runs several times in a pass, such as a layer with shared weights, has a name for each call.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import StackConfig
from ...watching.quantities import is_of_the_source

SUBLAYERS = {
    "encoder": ("self_attention", "feed_forward"),
    "decoder": ("self_attention", "cross_attention", "feed_forward"),
}


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments and, in a forward hook, its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    def argument(self, i: int, name: str) -> Any:
        """The argument that is passed as ``name``, or else at index ``i``."""
        return self.kwargs[name] if name in self.kwargs else self.args[i]


Read = Callable[[Call], Any]
"""Maps a call to a tensor of the quantity's shape, or to None if it is not available."""


def first_argument(call: Call) -> Any:
    """The first positional argument, which is the input of most modules."""
    return call.args[0]


def first_output(call: Call) -> Any:
    """The output of the module, or its first element if it is a tuple."""
    return call.output[0] if isinstance(call.output, tuple) else call.output


@dataclass
class Catch:
    """Collects the inputs and outputs of submodules until it is closed.

    With ``by_step``, each pass of the decoder is a step of a loop, and the names of quantities
    in it begin with ``step.N.``. Only the first tensor of each name is kept.
    """

    by_step: bool
    sequence_first: bool = False  # parts registered from now on have tensors (n, batch, d)
    tensors: dict[str, Any] = field(default_factory=dict)  # captured tensors, by name
    fed: list[Any] = field(default_factory=list)  # new token ids of each pass of the decoder
    _handles: list[Any] = field(default_factory=list)
    _side: str = ""  # the stack that runs: encoder or decoder
    _calls: Counter[int] = field(default_factory=Counter)  # calls of each hook in this pass

    def passes(self, part: Any, side: str, ids: Read) -> None:
        """Register ``part`` as the stack ``side``, encoder or decoder; ``ids`` reads new tokens."""

        def begin(module: Any, args: Any, kwargs: Any) -> None:
            self._side = side
            self._calls.clear()
            if side == "decoder":
                self.fed.append(ids(Call(args, kwargs)))

        self._handles.append(part.register_forward_pre_hook(begin, with_kwargs=True))

    def given(self, part: Any, names: Sequence[str], read: Read = first_argument) -> None:
        """Capture the input of ``part``; ``names`` has a name for each of its calls, in order."""
        self._capture(part.register_forward_pre_hook, names, read)

    def gives(self, part: Any, names: Sequence[str], read: Read = first_output) -> None:
        """Capture the output of ``part``; ``names`` has a name for each of its calls, in order."""
        self._capture(part.register_forward_hook, names, read)

    def _capture(self, register: Callable[..., Any], names: Sequence[str], read: Read) -> None:
        def hook(module: Any, args: Any, kwargs: Any, output: Any = None) -> None:
            if not names[0].startswith((f"{self._side}.", "logits")):
                return  # a submodule of both stacks, such as shared embeddings, has a hook for each
            name = names[self._calls[key] % len(names)]
            self._calls[key] += 1
            tensor = read(Call(args, kwargs, output))
            if tensor is not None:
                self.keep(name, tensor.transpose(0, 1) if transposed else tensor)

        key, transposed = len(self._handles), self.sequence_first  # as it is at registration
        self._handles.append(register(hook, with_kwargs=True))

    def keep(self, name: str, tensor: Any) -> None:
        """Store a copy, unless there is already a tensor of this name."""
        if self.by_step and not is_of_the_source(name):
            name = f"step.{len(self.fed) - 1}.{name}"
        if name not in self.tensors:
            self.tensors[name] = tensor.detach().clone()

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()

    def fed_tokens(self) -> list[np.ndarray]:
        """The new token ids of each pass of the decoder."""
        return [ids.cpu().numpy() for ids in self.fed]

    def arrays(self) -> dict[str, np.ndarray]:
        """The captured tensors, as float64 arrays by name."""
        return {name: x.cpu().double().numpy() for name, x in self.tensors.items()}


def watch_feed_forward(catch: Catch, at: str, into: Any, out: Any) -> None:
    """Capture the inputs and outputs of the two projections of the layer called ``at``."""
    place = f"{at}.feed_forward"
    catch.given(into, [f"{place}.input"])
    catch.gives(into, [f"{place}.projected"])
    catch.given(out, [f"{place}.hidden"])
    catch.gives(out, [f"{place}.out"])


def watch_residuals(
    catch: Catch, at: str, norms: Sequence[Any], layer: Any, c: StackConfig
) -> None:
    """Capture the residual stream after each sublayer of the layer called ``at``.

    If norms come after the sublayers, the quantity is the output of the sublayer's norm;
    otherwise it is the input of the next sublayer's norm. ``norms`` has one for each sublayer.
    """
    kinds = SUBLAYERS["encoder" if c.cross_attention is None else "decoder"]
    for kind, (own, following) in zip(kinds[:-1], itertools.pairwise(norms), strict=True):
        if "after" in c.norm_positions:
            catch.gives(own, [f"{at}.after_{kind}"])
        else:
            catch.given(following, [f"{at}.after_{kind}"])
    catch.gives(layer, [f"{at}.after_feed_forward"])
