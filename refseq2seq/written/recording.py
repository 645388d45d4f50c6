"""Arrays that record each operation: the graph of one run of the forward pass.

A `Recorded` array has a value, which the core computes as always, and a `Node`, which says how.
The functions of the core run unchanged, in a namespace of their own. A call of one of `OPERATIONS`
is one node, whatever it computes inside, and so is each quantity that passes the tap.
"""

import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import accumulate, combinations, count
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..backend import Array
from ..config import Config, FrameInput, FrameLayerConfig, StackConfig
from ..model import Model
from ..ops import ACTIVATIONS, NORMS
from ..params import param_shapes
from ..taps import FunctionTap
from .layout import WriteOutError
from .sources import Core

OPERATIONS = (
    "linear", "softmax", *NORMS, *ACTIVATIONS, "sigmoid", "split_heads", "merge_heads",
    "rotation", "rotate", "sinusoids", "rounded", "windows", "window_mask",
)  # fmt: skip
"""The functions that a program calls by name. The others dissolve into what they do to arrays."""

OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "matmul": "@", "le": "<=", "gt": ">",
    "and_": "&",
}  # fmt: skip
"""The operators between arrays, by the name of their method."""

NEUTRAL = {"+": 0, "*": 1}

UNKNOWN = "the number of frames"
"""In place of the expression of a size that has none."""


@dataclass(eq=False, repr=False)
class Node:
    """One array of the graph, and how it is computed.

    ``kind`` is "input" or "parameter", whose ``name`` is an expression or a path; "operation",
    "function" (of the array namespace), "method", "attribute", "operator" or "index"; "tap", the
    same array as a quantity; "store", an array after an assignment to a part of it; "list", the
    arrays of the layers, and "member", one of them; or "result", a statement that takes an array.
    Arguments are nodes, Python values, and lists of them.
    """

    kind: str
    name: str
    arguments: Any = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    variable: str = ""  # of the core, which held it; the statement of a result
    layer: tuple[str, int] | None = None  # the stack and index of the layer that computes it

    def inputs(self) -> Iterator["Node"]:
        """The nodes that this one is computed from, in the order of its arguments."""
        pending = [*self.arguments, *self.keywords.values()]
        while pending:
            value = pending.pop(0)
            if isinstance(value, Node):
                yield value
            elif isinstance(value, tuple | list):
                pending[:0] = value


class Size(int):
    """A number of rows or of tokens, which differs between runs, and its expression."""

    text: str

    def __new__(cls, value: int, text: str) -> "Size":
        """The size of this run."""
        size = super().__new__(cls, value)
        size.text = text
        return size

    def __repr__(self) -> str:
        return self.text

    def __add__(self, other: int) -> "Size":
        return Size(int(self) + other, f"{self.text} + {other}")

    def __gt__(self, other: object) -> bool:
        return False if other == math.inf else self._compared(other)  # a cache of any capacity

    def _compared(self, other: object) -> bool:
        raise WriteOutError(f"a branch on a size, {self.text}, cannot be written out")

    __eq__ = __ne__ = __lt__ = __le__ = __ge__ = _compared
    __hash__ = int.__hash__


class Recorded:
    """An array with its node. An operation that leaves the array unchanged makes no node."""

    def __init__(self, recorder: "Recorder", value: Any, node: Node) -> None:
        self.recorder, self.value, self.node = recorder, value, node

    def __array_namespace__(self) -> Any:
        return self.recorder

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return np.dtype(self.value.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, in which numbers of rows and of tokens are a `Size`."""
        sizes = {} if self.node.kind == "parameter" else self.recorder.sizes
        return tuple(Size(n, sizes[n]) if n in sizes else n for n in self.value.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self.value.ndim)

    @property
    def mT(self) -> "Recorded":  # noqa: N802
        """The array with its last two axes exchanged."""
        return self.recorder.note("attribute", "mT", lambda x: x.mT, self)

    def astype(self, dtype: Any, *, copy: bool = True, **order: str) -> "Recorded":
        """The array in another dtype or order."""
        if self.dtype == dtype and not order:
            return self
        compute = lambda x, dtype, **order: x.astype(dtype, **order)  # noqa: E731
        return self.recorder.note("method", "astype", compute, self, np.dtype(dtype).name, **order)

    def __getitem__(self, index: Any) -> "Recorded":
        axes = index if isinstance(index, tuple) else (index,)
        if all(isinstance(x, slice) and x.step in (None, 1) for x in axes) and all(
            x.stop is None and not x.start for x in axes
        ):
            return self
        return self.recorder.note("index", "[]", operator.getitem, self, index)

    def __setitem__(self, index: Any, x: "Recorded") -> None:
        def store(array: Array, index: Any, x: Array) -> Array:
            array[index] = x
            return array

        self.node = self.recorder.note("store", "[]", store, self, index, x).node

    def __radd__(self, other: Any) -> "Recorded":
        return self + other

    def __rmul__(self, other: Any) -> "Recorded":
        return self.recorder.note("operator", "*", operator.mul, other, self)

    def __neg__(self) -> "Recorded":
        return self.recorder.note("operator", "-", operator.neg, self)


def _operator(name: str, symbol: str) -> Callable[[Recorded, Any], Recorded]:
    def method(x: Recorded, y: Any) -> Recorded:
        if isinstance(y, int | float) and y == NEUTRAL.get(symbol):
            return x
        return x.recorder.note("operator", symbol, getattr(operator, name), x, y)

    return method


for _name, _symbol in OPERATORS.items():
    setattr(Recorded, f"__{_name.strip('_')}__", _operator(_name, _symbol))


class Recorder:
    """Runs functions of the core on recorded arrays; it is the array namespace of these.

    Attributes
    ----------
    nodes : list of Node
        In order of execution.
    core : Core
    model : object
        The model with recorded parameters, as the functions of the core use it.
    sizes : dict
        The expression of each number of rows or tokens, which no other axis has.
    """

    def __init__(self, model: Model) -> None:
        self.nodes: list[Node] = []
        self._known: set[Node] = set()
        self.sizes: dict[int, str] = {}
        self.core, self._xp = Core(), model.xp
        self._layer: tuple[str, int] | None = None
        self._ends: set[Node] = set()  # what the layers return
        self._noted: dict[str, Node] = {}
        space = self.core.namespace
        self.core.define(rounded)
        for name in OPERATIONS:
            space[name] = partial(self._operation, name, space[name])
        space["NORMS"] = {name: space[name] for name in NORMS}
        space["ACTIVATIONS"] = {name: space[name] for name in ACTIVATIONS}
        space["frame_layer"] = partial(self._frame_layer, space["frame_layer"])
        space["self_masks"] = partial(self._masks, space["self_masks"])
        for stack in ("encoder", "decoder"):
            space[f"{stack}_layer"] = partial(self._in_layer, stack, space[f"{stack}_layer"])
        space["RoundingTap"] = self._rounding
        space["check_model"] = lambda model: None  # it is the recorded one
        params = self._recorded("", model.params)
        for stack in ("encoder", "decoder"):
            tables = getattr(params, stack).relative_bias
            for i, table in enumerate(tables if len(tables) > 1 else ()):
                table.node.layer = (stack, i)
        if model.config.tied_embeddings:
            params.encoder.embedding.node.name = "decoder.embedding"
        if model.config.tied_logits:
            params.unembedding.node.name = "decoder.embedding.T"
        self.model = SimpleNamespace(config=model.config, params=params, dtype=model.dtype, xp=self)

    def run(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of the core; what it computes is not shared with an earlier call."""
        self._noted.clear()
        tap = FunctionTap(lambda name, x: self.note("tap", name, lambda x: x, x))
        return self.core.namespace[name](self.model, *arguments, **options, tap=tap)

    def input(self, text: str, value: Any) -> Recorded:
        """An array that a program gets, and its expression there."""
        return self._with_node(value, Node("input", text))

    def result(self, statement: str, x: Recorded) -> None:
        """Note that a program's statement, such as ``keys.append({})``, takes an array."""
        self.nodes.append(Node("result", "", (x.node,), {}, statement, x.node.layer))

    def note(
        self, kind: str, name: str, compute: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> Recorded:
        """The result of a computation on recorded arrays and Python values, with its node."""
        used: list[Recorded] = []

        def value(x: Any) -> Any:
            if isinstance(x, Recorded):
                used.append(x)
                return x.value
            return int(x) if isinstance(x, Size) else x

        values = _mapped(value, [arguments, keywords])
        nodes = _mapped(lambda x: x.node if isinstance(x, Recorded) else x, [arguments, keywords])
        self._note_variables(used)
        inherited = (x.node.layer for x in used if x.node.layer and x.node not in self._ends)
        layer = self._layer or next(inherited, None)
        node = Node(kind, name, nodes[0], nodes[1], layer=layer)
        if kind not in ("tap", "store"):
            node = self._noted.setdefault(repr([kind, name, nodes]), node)
            if node.layer != layer:
                node.layer = None  # it is computed once, before the layers
        return self._with_node(compute(*values[0], **values[1]), node)

    def asarray(self, x: Any, **keywords: Any) -> Recorded:
        """A recorded array, in the dtype if one is given; or an array of Python values."""
        if isinstance(x, Recorded):
            return x.astype(keywords.get("dtype", x.dtype))
        return self.__getattr__("asarray")(x, **keywords)

    def __getattr__(self, name: str) -> Callable[..., Recorded]:
        return partial(self.note, "function", name, getattr(self._xp, name))

    def _with_node(self, value: Any, node: Node) -> Recorded:
        if node not in self._known:
            self._known.add(node)
            self.nodes.append(node)
        return Recorded(self, value, node)

    def _in_layer(self, stack: str, function: Callable[..., Any], p: Any, *arguments: Any) -> Any:
        """Call the function of a layer."""
        self._layer = (stack, getattr(self.model.params, stack).layers.index(p))
        x = function(p, *arguments)
        self._layer = None
        self._ends.add(x.node)
        return x

    def _frame_layer(self, function: Any, p: Any, *arguments: Any) -> tuple[Recorded, Recorded]:
        """Call the function of a layer of frames; each shorter mask has a name of its own."""
        x, mask = function(p, *arguments)
        i = self.model.params.encoder.frame_layers.index(p)
        mask.node.variable = mask.node.variable or f"mask_{i}" * (mask.node.kind == "index")
        return x, mask

    def _masks(self, function: Any, c: StackConfig, mask: Any, *positions: Recorded) -> list[Any]:
        """The masks of the layers; if they differ, those of a list."""
        masks = function(c, mask, *positions)
        nodes = [x and x.node for x in masks]
        windows = [x for x in dict.fromkeys(nodes) if x and (mask is None or x is not mask.node)]
        for j, x in enumerate(windows):
            x.variable = f"window_{j}" if len(windows) > 1 else "window"
        if len({*nodes}) < 2:
            return masks
        if c.self_attention.n_learned_kv and {*nodes} != {*windows}:
            raise WriteOutError(
                "learned keys with windows in some layers only cannot be written out"
            )
        stack = "decoder" if c is self.model.config.decoder else "encoder"
        n = next(n for n in range(1, c.n_layers + 1) if nodes[:n] * (c.n_layers // n) == nodes)
        times = (c.n_layers // n,) if n < c.n_layers else ()
        every = Node("list", "", (nodes[:n], *times), variable="masks")
        self.nodes.append(every)
        members = [Node("member", "", (every,), layer=(stack, i)) for i in range(c.n_layers)]
        values = [getattr(x, "value", None) for x in masks]
        return [self._with_node(x, member) for x, member in zip(values, members, strict=True)]

    def _recorded(self, path: str, part: Any) -> Any:
        """A part of the tree of parameters with recorded arrays."""
        if is_dataclass(part):
            names = [f.name for f in fields(part)]
            members = {n: self._recorded(f"{path}.{n}", getattr(part, n)) for n in names}
            return SimpleNamespace(**members)
        if isinstance(part, tuple):
            return tuple(self._recorded(f"{path}.{i}", x) for i, x in enumerate(part))
        if part is None:
            return None
        place = re.match(r"\.(\w+)\.layers\.(\d+)", path)
        layer = (place[1], int(place[2])) if place else None
        return Recorded(self, part, Node("parameter", path[1:], layer=layer))

    def _operation(self, name: str, function: Any, *arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(function).bind(*arguments, **named).arguments
        if not any(isinstance(x, Recorded) for x in bound.values()):
            return function(*arguments, **named)  # inside another operation
        frames = bound.get("c")
        if isinstance(frames, FrameLayerConfig) and frames.window == frames.stride == 1:
            return bound["x"]  # its windows
        recorded = self.note("operation", name, function, **bound)
        keywords = recorded.node.keywords
        for parameter in [p for p, x in keywords.items() if isinstance(x, Config)]:
            config = keywords.pop(parameter)
            keywords |= {f.name: getattr(config, f.name) for f in fields(config)}
        keywords |= {p: x.name for p, x in keywords.items() if isinstance(x, np.dtype)}
        return recorded

    def _rounding(self, tap: Any) -> Any:
        """The place of `RoundingTap`: the quantity that passes the tap is the rounded one."""
        round_ = self.core.namespace["rounded"]
        return FunctionTap(lambda name, x: tap(name, x if _is_rounded(x.node) else round_(x)))

    def _note_variables(self, arrays: list[Recorded]) -> None:
        """Note the outermost variable of the core that holds each array, where none is noted."""
        frames, frame = [], sys._getframe()
        while frame := frame.f_back:  # type: ignore[assignment]
            if frame.f_globals is self.core.namespace:
                frames.append(frame)
        for x in arrays:
            held = (n for f in reversed(frames) for n, y in f.f_locals.items() if y is x)
            x.node.variable = x.node.variable or next(held, "")


def rounded(x: Any) -> Any:
    """The nearest float16 numbers, in float32."""
    return x.astype("float16").astype("float32")


def _is_rounded(node: Node) -> bool:
    """Whether the elements of an array are all from quantities and parameters."""
    is_moved = node.name in ("concat", "broadcast_to", "[]")
    if node.name == "astype" and node.arguments[1] == "float32":  # of frames in float16
        return node.arguments[0].name == "astype" and node.arguments[0].arguments[1] == "float16"
    return node.kind in ("tap", "parameter") or (is_moved and all(map(_is_rounded, node.inputs())))


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """A value with ``function`` applied to the members of its containers."""
    if type(x) in (tuple, list):
        return type(x)(_mapped(function, member) for member in x)
    if isinstance(x, dict):
        return {name: _mapped(function, member) for name, member in x.items()}
    if isinstance(x, slice):
        return slice(*(_mapped(function, member) for member in (x.start, x.stop, x.step)))
    return function(x)


def reachable(nodes: Iterable[Node]) -> set[Node]:
    """The nodes and all that they are computed from."""
    found: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.inputs()
    return found


def _lengths(c: StackConfig, n: int) -> list[int]:
    """The lengths of n tokens or frames: after each frame layer, as embeddings, with registers."""
    layers = c.input.layers if isinstance(c.input, FrameInput) else ()
    lengths = accumulate(layers, lambda n, layer: layer.length(n), initial=n)
    return [*lengths, c.input.length(n), c.input.length(n) + c.n_register_tokens]


def record(model: Model) -> tuple[Core, list[Node], list[Node]]:
    """Record `encode` and one step of `decode` with a cache: the core, and what the results need.

    The source has padding, so that the program is right for every mask.
    """
    recorder, xp, c = Recorder(model), model.xp, model.config
    a, n_registers = c.decoder.self_attention, c.encoder.n_register_tokens
    dimensions = {n for shape in param_shapes(c).values() for n in shape} | {0, 1}
    for x in (c.encoder.self_attention, a, c.decoder.cross_attention):
        dimensions |= {x.n_heads, x.n_kv_heads, x.d_k, x.d_v}  # type: ignore[union-attr]
    batch = next(n for n in count(2) if n not in dimensions)

    def differ(n: int) -> list[bool]:
        return [x != y for x, y in combinations(_lengths(c.encoder, n), 2)]

    n_given = next(
        n
        for n in count(batch + 1)
        if not {*_lengths(c.encoder, n)} & (dimensions | {batch}) and differ(n) == differ(1000 * n)
    )
    *inside, n, with_registers = _lengths(c.encoder, n_given)
    recorder.sizes = dict.fromkeys(inside, UNKNOWN) | {batch: "batch"}
    recorder.sizes |= {with_registers: f"n + {n_registers}", n: "n"}

    name, source = "source", xp.zeros((batch, n_given), dtype="int64")
    if isinstance(c.encoder.input, FrameInput):  # of another dtype than the model's
        dtype = "float64" if model.dtype != "float64" else "float32"
        name, source = "frames", xp.zeros((*source.shape, c.encoder.input.n_features), dtype)
    mask = xp.broadcast_to(xp.arange(n_given) < 1, source.shape[:2])
    source, source_mask = recorder.input(name, source), recorder.input("mask", mask)
    source_mask.all = lambda: False  # type: ignore[attr-defined]
    memory = recorder.run("encode_checked", source, source_mask)
    for k, v in zip(memory.keys, memory.values, strict=True):
        recorder.result("keys.append({})", k)
        recorder.result("values.append({})", v)
    if memory.mask is not source_mask:
        memory.mask.node.variable = "source_mask"
    recorder.result("return {}, keys, values", memory.mask)
    encode = recorder.nodes.copy()

    memory = SimpleNamespace(
        mask=recorder.input("mask", memory.mask.value),
        keys=[recorder.input(f"keys[{i}]", k.value) for i, k in enumerate(memory.keys)],
        values=[recorder.input(f"values[{i}]", v.value) for i, v in enumerate(memory.values)],
    )
    caches, like = [], model.params.decoder.embedding
    for i in range(c.decoder.n_layers):
        cache = recorder.core.namespace["KeyValueCache"](batch, a.n_kv_heads, 1, a.d_k, a.d_v, like)
        cache._keys = recorder.input(f"own_keys[{i}]", xp.zeros_like(cache._keys))
        cache._values = recorder.input(f"own_values[{i}]", xp.zeros_like(cache._values))
        cache.length, cache.capacity = Size(0, "t"), math.inf
        caches.append(cache)
    new = recorder.input("ids", xp.zeros((batch, 1), dtype="int64"))
    logits = recorder.run("decode_checked", new, memory, cache=tuple(caches))
    recorder.result("return {}", logits)
    live = reachable(node for node in recorder.nodes if node.kind == "result")
    needed = [[n for n in nodes if n in live] for nodes in (encode, recorder.nodes[len(encode) :])]
    return recorder.core, needed[0], needed[1]
