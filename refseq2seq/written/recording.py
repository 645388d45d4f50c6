"""Arrays that note what is done to them: the graph of one run of the forward pass.

A `Recorded` array has a value, which the core computes as always, and a `Node`, which says how.
The functions of the core run unchanged, in a namespace of their own. A call of one of `OPERATIONS`
is one node, whatever it computes inside, and so is each quantity that passes the tap.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..backend import Array
from ..config import Config
from ..model import Model
from ..ops import ACTIVATIONS, NORMS
from ..params import param_shapes
from ..taps import FunctionTap
from .sources import Core

OPERATIONS = (
    "linear", "softmax", *NORMS, *ACTIVATIONS, "sigmoid", "split_heads", "merge_heads",
    "rotation", "rotate", "sinusoids", "t5_bucket", "rounded",
)  # fmt: skip
"""The functions that a program calls by name. The others dissolve into what they do to arrays."""

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "matmul": "@", "le": "<="}
"""The operators between arrays, by the name of their method."""


@dataclass(eq=False)
class Node:
    """One array of the graph, and how it is computed.

    ``kind`` is "input" or "parameter", whose ``name`` is an expression or a path; "operation",
    "function" (of the array namespace), "method", "attribute", "operator" or "index"; "tap", the
    same array under the name of a quantity; or "part", one of several results. ``arguments`` are
    nodes, Python values, and tuples or lists of them.
    """

    kind: str
    name: str
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    variable: str = ""  # of the core, which held it
    layer: tuple[str, int] | None = None  # a stack and an index, if a layer computed it

    def inputs(self) -> Iterator["Node"]:
        """The nodes that this one is computed from, in the order of its arguments."""
        pending = [*self.arguments, *self.keywords.values()]
        while pending:
            value = pending.pop(0)
            if isinstance(value, Node):
                yield value
            elif isinstance(value, tuple | list):
                pending[:0] = value
            elif isinstance(value, slice):
                pending[:0] = [value.start, value.stop]


class Size(int):
    """A number of rows or of tokens, which differs between runs, and its expression."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def __new__(cls, value: int, text: str) -> "Size":
        """The size of this run."""
        size = super().__new__(cls, value)
        size.text = text
        return size

    def __add__(self, other: int) -> "Size":
        return Size(int(self) + other, f"{self.text} + {other}")

    def _compared(self, other: object) -> Any:
        if isinstance(other, _Unlimited):
            return NotImplemented
        raise NotImplementedError(f"a branch on a size, {self.text}, cannot be written out")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compared  # type: ignore[assignment]
    __hash__ = int.__hash__


class Recorded:
    """An array with its node."""

    def __init__(self, recorder: "Recorder", value: Any, node: Node) -> None:
        self.recorder, self.value, self.node = recorder, value, node

    def __array_namespace__(self) -> Any:
        return self.recorder.xp

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return np.dtype(self.value.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array; those of its axes that are rows or tokens are a `Size`."""
        sizes = {} if self.node.kind == "parameter" else self.recorder.sizes
        return tuple(Size(n, sizes[n]) if n in sizes else n for n in self.value.shape)

    @property
    def mT(self) -> "Recorded":  # noqa: N802
        """The array with its last two axes exchanged."""
        return self.recorder.note("attribute", "mT", lambda x: x.mT, self)

    def astype(self, dtype: Any, *, copy: bool = True, order: str = "K") -> "Recorded":
        """The array in another dtype or order; the same array if both are as they were."""
        if self.dtype == dtype and order == "K":
            return self
        how = {} if order == "K" else {"order": order}
        convert = lambda x, dtype, **how: x.astype(dtype, **how)  # noqa: E731
        return self.recorder.note("method", "astype", convert, self, np.dtype(dtype).name, **how)

    def __getitem__(self, index: Any) -> "Recorded":
        axes = index if isinstance(index, tuple) else (index,)
        if all(isinstance(axis, slice) and axis.stop is None and not axis.start for axis in axes):
            return self
        return self.recorder.note("index", "[]", lambda x, index: x[index], self, index)

    def __setitem__(self, index: Any, x: "Recorded") -> None:
        def store(array: Array, index: Any, x: Array) -> Array:
            array[index] = x
            return array

        self.node = self.recorder.note("store", "[]", store, self, index, x).node

    def __neg__(self) -> "Recorded":
        return self.recorder.note("operator", "-", lambda x: -x, self)


def _operator(name: str, symbol: str) -> Callable[[Recorded, Any], Recorded]:
    def method(x: Recorded, y: Any) -> Recorded:
        if isinstance(y, int | float) and y == {"+": 0, "*": 1}.get(symbol):
            return x
        return x.recorder.note("operator", symbol, lambda x, y: getattr(x, f"__{name}__")(y), x, y)

    return method


for _name, _symbol in OPERATORS.items():
    setattr(Recorded, f"__{_name}__", _operator(_name, _symbol))


class Recorder:
    """Runs functions of the core on recorded arrays.

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
        self.layer: tuple[str, int] | None = None
        self._computed: dict[tuple[str, str, str], Node] = {}
        self.sizes: dict[int, str] = {}
        self.core = Core()
        self.xp = _Namespace(self, model.xp)
        space = self.core.namespace
        self.core.define(rounded)
        for name in OPERATIONS:
            space[name] = partial(self._operation, name, space[name])
        space["NORMS"] = {name: space[name] for name in NORMS}
        space["ACTIVATIONS"] = {name: space[name] for name in ACTIVATIONS}
        for stack in ("encoder", "decoder"):
            space[f"{stack}_layer"] = partial(self._in_layer, stack, space[f"{stack}_layer"])
        space["check_model"] = lambda model: None  # it is the recorded one
        space["RoundingTap"] = self._rounding
        params = self._recorded("", model.params)
        if model.config.tied_embeddings:
            params.encoder.embedding.node.name = "decoder.embedding"
        if model.config.tied_logits:
            params.unembedding.node.name = "decoder.embedding.T"
        self.model = SimpleNamespace(
            config=model.config, params=params, dtype=model.dtype, xp=self.xp
        )

    def forget(self) -> None:
        """Begin another program, which computes again what the last one did."""
        self._computed.clear()

    def result(self, statement: str, x: Recorded, place: str = "") -> None:
        """Note that a program's statement, such as ``keys.append({})``, takes an array."""
        self.nodes.append(Node("result", place, (x.node,), {}, statement))

    def run(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of the core."""
        return self.core.namespace[name](*arguments, **options, tap=FunctionTap(self._tap))

    def input(self, text: str, value: Any) -> Recorded:
        """An array that a program gets, and its expression there."""
        return Recorded(self, value, self._node("input", text))

    def note(
        self, kind: str, name: str, compute: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> Recorded:
        """The result of a computation on recorded arrays and Python values, with its node."""
        used: list[Recorded] = []
        _mapped(lambda x: used.append(x) if isinstance(x, Recorded) else x, [*arguments, keywords])
        self._note_variables(used)
        value = compute(*(_values(x) for x in arguments), **_values(keywords))
        arguments, keywords = _nodes(arguments), _nodes(keywords)
        key = repr(_mapped(lambda x: id(x) if isinstance(x, Node) else x, [arguments, keywords]))
        if kind in ("tap", "store"):
            return Recorded(self, value, self._node(kind, name, arguments, keywords))
        node = self._computed.get((kind, name, key))
        if node is None:
            node = self._node(kind, name, arguments, keywords)
            self._computed[kind, name, key] = node
        elif node.layer != self.layer:
            node.layer = None  # it is computed once, before the layers
        return Recorded(self, value, node)

    def _node(self, *fields: Any) -> Node:
        self.nodes.append(Node(*fields, layer=self.layer))
        return self.nodes[-1]

    def _in_layer(self, stack: str, function: Callable[..., Any], p: Any, *arguments: Any) -> Any:
        """Call the function of a layer."""
        layers = getattr(self.model.params, stack).layers
        self.layer = (stack, layers.index(p))
        x = function(p, *arguments)
        self.layer = None
        return x

    def _recorded(self, path: str, part: Any) -> Any:
        """A part of the tree of parameters with recorded arrays."""
        if is_dataclass(part):
            members = {f.name: getattr(part, f.name) for f in fields(part)}
            return SimpleNamespace(
                **{name: self._recorded(f"{path}.{name}", x) for name, x in members.items()}
            )
        if isinstance(part, tuple):
            return tuple(self._recorded(f"{path}.{i}", x) for i, x in enumerate(part))
        if part is None:
            return None
        return Recorded(self, part, self._node("parameter", path[1:]))

    def _operation(
        self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Any:
        bound = inspect.signature(function).bind(*arguments, **named).arguments
        if not any(isinstance(x, Recorded) for x in bound.values()):
            return function(*arguments, **named)  # inside another operation
        recorded = self.note("operation", name, lambda **values: function(**values), **bound)
        keywords = recorded.node.keywords
        for parameter in [p for p, x in keywords.items() if isinstance(x, Config)]:
            c = keywords.pop(parameter)
            keywords |= {f.name: getattr(c, f.name) for f in fields(c)}
        return recorded

    def _tap(self, name: str, x: Recorded) -> Recorded:
        return self.note("tap", name, lambda x: x, x)

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


class _Namespace:
    """The array namespace, whose functions return recorded arrays."""

    def __init__(self, recorder: Recorder, xp: Any) -> None:
        self._recorder, self._xp = recorder, xp

    def asarray(self, x: Any, **keywords: Any) -> Recorded:
        """A recorded array unchanged, or an array of Python values."""
        if isinstance(x, Recorded):
            return x
        return self._recorder.note("function", "asarray", self._xp.asarray, x, **keywords)

    def __getattr__(self, name: str) -> Callable[..., Recorded]:
        return partial(self._recorder.note, "function", name, getattr(self._xp, name))


class _RecordedCache:
    """The cache of layer ``i`` before token t, as `KeyValueCache` has it."""

    def __init__(self, recorder: Recorder, model: Model, batch: int, i: int) -> None:
        c, like = model.config.decoder.self_attention, model.params.decoder.embedding
        for name, width in (("keys", c.d_k), ("values", c.d_v)):
            array = model.xp.zeros((batch, c.n_kv_heads, 1, width), dtype=like.dtype)
            setattr(self, f"_{name}", recorder.input(f"own_{name}[{i}]", array))
        self.length, self.capacity = Size(0, "t"), _Unlimited()
        self.append = partial(recorder.core.namespace["KeyValueCache"].append, self)


class _Unlimited:
    """A capacity that every number of tokens fits."""

    def __lt__(self, other: Size) -> bool:
        return False


def record(model: Model) -> tuple[Recorder, list[Node], list[Node]]:
    """Record `encode` and one step of `decode` with a cache: the recorder, and the nodes of both.

    The source has padding, so that the program is right for every mask.
    """
    recorder, xp, c = Recorder(model), model.xp, model.config
    dimensions = {n for shape in param_shapes(c).values() for n in shape} | {1}
    for a in (c.encoder.self_attention, c.decoder.self_attention, c.decoder.cross_attention):
        dimensions |= {a.n_heads, a.n_kv_heads, a.d_k, a.d_v}  # type: ignore[union-attr]
    others = (n for n in count(2) if n not in dimensions)
    batch, n_registers = next(others), c.encoder.n_register_tokens
    n_source = next(n for n in others if n + n_registers not in dimensions)
    size = Size(n_source, "n")
    recorder.sizes = {batch: "batch", n_source: size.text}
    if n_registers:
        recorder.sizes[n_source + n_registers] = (size + n_registers).text

    ids = xp.zeros((batch, n_source), dtype="int64")
    mask = xp.broadcast_to(xp.arange(n_source) < 1, (batch, n_source))
    source, source_mask = recorder.input("source", ids), _Padded(recorder.input("mask", mask))
    memory = recorder.run("encode_checked", recorder.model, source, source_mask)
    for i, (k, v) in enumerate(zip(memory.keys, memory.values, strict=True)):
        recorder.result("keys.append({})", k, f"decoder.layers.{i}")
        recorder.result("values.append({})", v, f"decoder.layers.{i}")
    encode = recorder.nodes.copy()
    recorder.forget()

    remembered = SimpleNamespace(
        mask=recorder.input("mask", mask),
        keys=[recorder.input(f"keys[{i}]", k.value) for i, k in enumerate(memory.keys)],
        values=[recorder.input(f"values[{i}]", v.value) for i, v in enumerate(memory.values)],
    )
    cache = [_RecordedCache(recorder, model, batch, i) for i in range(c.decoder.n_layers)]
    new = recorder.input("ids", ids[:, :1])
    logits = recorder.run("decode_checked", recorder.model, new, remembered, cache=cache)
    recorder.result("return {}", logits)
    return recorder, encode, recorder.nodes[len(encode) :]


class _Padded(Recorded):
    """A mask of a source with padding."""

    def __init__(self, mask: Recorded) -> None:
        super().__init__(mask.recorder, mask.value, mask.node)

    def all(self) -> bool:
        """Whether no token is padding."""
        return False


def _is_rounded(node: Node) -> bool:
    """Whether the elements of an array are all from quantities and parameters."""
    moved = node.name in ("concat", "broadcast_to", "[]") and node.kind in ("function", "index")
    return node.kind in ("tap", "parameter") or (moved and all(map(_is_rounded, node.inputs())))


def rounded(x: Any) -> Any:
    """The nearest float16 numbers, in float32."""
    return x.astype("float16").astype("float32")


def _values(x: Any) -> Any:
    """The arrays of recorded ones in an argument, and plain sizes."""
    plain = {Recorded: lambda x: x.value, _Padded: lambda x: x.value, Size: int}
    return _mapped(lambda x: plain.get(type(x), lambda x: x)(x), x)


def _nodes(x: Any) -> Any:
    """The nodes of recorded arrays in an argument."""
    return _mapped(lambda x: x.node if isinstance(x, Recorded) else x, x)


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    if type(x) in (tuple, list):
        return type(x)(_mapped(function, member) for member in x)
    if isinstance(x, dict):
        return {name: _mapped(function, member) for name, member in x.items()}
    return function(x)
