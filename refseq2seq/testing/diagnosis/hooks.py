"""What passes through the parts of a PyTorch module while it runs, under our names.

A part is watched with a forward hook, or a pre-hook for what it is given. A part that runs
several times in a pass, as layers that share their weights do, has a name for each time.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...config import StackConfig
from ...watching.quantities import is_of_the_source


@dataclass(frozen=True)
class Call:
    """One call of a module: what it was given, and, once it is known, what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    def argument(self, i: int, name: str) -> Any:
        """The argument at place ``i``, if it was not given by its name."""
        return self.kwargs[name] if name in self.kwargs else self.args[i]


Read = Callable[[Call], Any]
"""From a call to a tensor of the quantity's shape, or to None if it is not to be had."""


def first_argument(call: Call) -> Any:
    """What most modules are given: their first argument."""
    return call.args[0]


def nothing(call: Call) -> None:
    """Where there is nothing to read."""


def first_output(call: Call) -> Any:
    """The first of several things that the module gives, or the only one."""
    return call.output[0] if isinstance(call.output, tuple) else call.output


@dataclass
class Catch:
    """Collects what the watched parts compute, until it is closed.

    ``by_step``: each pass of the decoder is a step of a loop, and begins the names of what
    is caught in it. What is caught under a name first is kept.
    """

    by_step: bool
    tensors: dict[str, Any] = field(default_factory=dict)
    fed: list[Any] = field(default_factory=list)  # the new token ids of each pass of the decoder
    _handles: list[Any] = field(default_factory=list)
    _side: str = ""  # whose pass it is: encoder or decoder
    _calls: Counter[int] = field(default_factory=Counter)  # of each watch, in this pass

    def passes(self, part: Any, side: str, ids: Read = nothing) -> None:
        """A call of ``part`` is a pass of the encoder or decoder; ``ids`` reads the new tokens."""

        def begin(module: Any, args: Any, kwargs: Any) -> None:
            self._side = side
            self._calls.clear()
            if side == "decoder":
                self.fed.append(ids(Call(args, kwargs)))

        self._handles.append(part.register_forward_pre_hook(begin, with_kwargs=True))

    def given(self, part: Any, names: Sequence[str], read: Read = first_argument) -> None:
        """Watch what ``part`` is given; ``names`` are those of its calls, in order."""

        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self._keep(key, names, read, Call(args, kwargs))

        key = len(self._handles)
        self._handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))

    def gives(self, part: Any, names: Sequence[str], read: Read = first_output) -> None:
        """Watch what ``part`` gives; ``names`` are those of its calls, in order."""

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._keep(key, names, read, Call(args, kwargs, output))

        key = len(self._handles)
        self._handles.append(part.register_forward_hook(hook, with_kwargs=True))

    def _keep(self, key: int, names: Sequence[str], read: Read, call: Call) -> None:
        if not names[0].startswith((f"{self._side}.", "logits")):
            return  # a part of both, such as a table of token vectors, has a watch for each
        name = names[self._calls[key] % len(names)]
        self._calls[key] += 1
        tensor = read(call)
        if tensor is not None:
            self.keep(name, tensor)

    def keep(self, name: str, tensor: Any) -> None:
        """Keep a copy, unless the name is taken."""
        if self.by_step and not is_of_the_source(name):
            name = f"step.{len(self.fed) - 1}.{name}"
        if name not in self.tensors:
            self.tensors[name] = tensor.detach().clone()

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()

    def fed_tokens(self) -> list[np.ndarray]:
        """The token ids that each pass of the decoder began with."""
        return [ids.cpu().numpy() for ids in self.fed]

    def arrays(self) -> dict[str, np.ndarray]:
        """What was caught, in float64."""
        return {name: x.cpu().double().numpy() for name, x in self.tensors.items()}


def split_heads(x: Any, n_heads: int) -> Any:
    """(batch, n, n_heads * d) -> (batch, n_heads, n, d)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def watch_residuals(
    catch: Catch,
    at: str,
    norms: dict[str, Any],
    layer: Any,
    c: StackConfig,
    given: Read = first_argument,
    gives: Read = first_output,
) -> None:
    """Watch what is after each sublayer of the layer called ``at``.

    ``norms`` are those of the sublayers, in order. A norm after its sublayer gives what is
    asked for; otherwise the norm before the next sublayer is given it.
    """
    kinds = list(norms)
    for kind, following in itertools.pairwise(kinds):
        if "after" in c.norm_positions:
            catch.gives(norms[kind], [f"{at}.after_{kind}"], gives)
        else:
            catch.given(norms[following], [f"{at}.after_{kind}"], given)
    catch.gives(layer, [f"{at}.after_feed_forward"], gives)
