"""The lines of a program's function, from the graph of a recorded run.

Each quantity has a line, under its own name. Other arrays stand inside the expression that uses
them; those that several use, or that make a line too long, have a line under the name of the core's
variable. The lines of all layers of a stack must be the same, and become a loop.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import layout
from .recording import Node, Size

VARIABLES = {"embed": "x", "final": "x", "input": "h"}
"""Variables of quantities, if not their name: x flows from layer to layer, h into a sublayer."""

RENAMED = {"positions": "position_ids", "rotation": "angles", "mask": "allowed"}
"""Variables of the core that have the name of a quantity, an operation or an argument."""

_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)(?:\.|$)")
_TABLE = re.compile(r"(encoder|decoder)\.relative_bias\.(\d+)$")

Layer = tuple[str, int] | None
"""A stack and an index; None outside the layers."""


@dataclass(frozen=True)
class Line:
    """A statement, its comment, and the sublayer whose parameters it reads."""

    statement: str
    comment: str = field(compare=False)
    sublayer: str


class Body:
    """The statements that compute the results of a recorded run.

    Parameters
    ----------
    nodes : list of Node
        In order of execution. Those of kind "result" are what is computed.
    call : callable
        The expression of a call of an operation, from its name and its arguments as expressions
        or Python values.
    comment : callable
        The comment of a quantity, from its node and whether its variable is new.
    """

    def __init__(
        self,
        nodes: list[Node],
        call: Callable[[str, dict[str, Any]], ast.expr],
        comment: Callable[[Node, bool], str],
    ) -> None:
        self.call, self.comment = call, comment
        live = reachable(n for n in nodes if n.kind == "result")
        self.nodes = [node for node in nodes if node in live]
        self.users: dict[Node, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for used in dict.fromkeys(node.inputs()):
                self.users[used].append(node)
        self.layer = self._layers()
        self.of_quantities = {self._variable(n) for n in self.nodes if n.kind == "tap"}
        self.promoted: set[Node] = set()  # nodes that have a line because another is too long
        self.held: dict[str, Node] = {}  # the node that each variable holds
        self.done: set[Node] = set()
        self.index: int | None = None  # of the layer that is being written
        self.is_repeated = False  # whether it is not the first layer
        self.sizes: set[str] = set()  # the variables of sizes that the lines read
        self.read: list[str] = []  # the sublayers that the expression reads

    def lines(self) -> list[str]:
        """The text of the statements, with the indent of a function's body."""
        found: list[str] = []
        looped: set[str] = set()
        for node in self.nodes:
            if self.layer[node] is None:
                found += printed(self._up_to(node), 4)
            elif node.kind == "tap" and self.layer[node][0] not in looped:  # type: ignore[index]
                looped.add(self.layer[node][0])  # type: ignore[index]
                found += self._loop(self.layer[node][0])  # type: ignore[index]
        return found

    def _loop(self, stack: str) -> list[str]:
        """The loop over the layers of a stack, after the lines outside that it needs."""
        layers = sorted({layer for layer in self.layer.values() if layer and layer[0] == stack})
        inside = [[n for n in self.nodes if self.layer[n] == layer] for layer in layers]
        outside = [n for n in self.nodes if self.layer[n] is None]
        needed = {used for nodes in inside for node in nodes for used in node.inputs()}
        before = [line for n in outside if n in needed for line in self._up_to(n)]
        bodies = []
        for (_, self.index), nodes in zip(layers, inside, strict=True):
            # The lines of long expressions are those of the first layer.
            self.promoted |= {n for n, first in zip(nodes, inside[0], strict=False) if first in self.promoted}
            self.is_repeated = nodes is not inside[0]
            ends = [n for n in nodes if n.kind in ("tap", "store", "result")]
            bodies.append([line for n in ends for line in self._up_to(n)])
        self.index, self.is_repeated = None, False
        for i, body in enumerate(bodies):
            for line, other in zip(bodies[0], body, strict=False):
                if line != other:
                    raise NotImplementedError(
                        f"layer {i} of the {stack} computes {other.statement!r}, layer 0 "
                        f"{line.statement!r}: layers that differ cannot be written as a loop"
                    )
        body = [*printed(bodies[0], 8)]
        uses_index = any(re.search(r"\bi\b", line) for line in body)
        layers_of = f"for i, layer in enumerate({stack}.layers):"
        head = layers_of if uses_index else f"for layer in {stack}.layers:"
        return [*printed(before, 4), f"    {head}", *body]

    def _layers(self) -> dict[Node, Layer]:
        """The layer of each node: where it was computed, or the only one that it is for.

        A bias with a table for each layer is computed before the layers, and has its line there.
        """
        of_a_layer = {n: {n.layer} for n in self.nodes if n.layer}
        n_layers = Counter(stack for stack, _ in {x for xs in of_a_layer.values() for x in xs})
        found: dict[Node, Layer] = {}
        reads: dict[Node, set[Layer]] = defaultdict(set)
        for node in self.nodes:
            for used in node.inputs():
                place = _LAYER.match(used.name) or _TABLE.match(used.name)
                if place and (place.re is _LAYER or n_layers[place[1]] > 1):
                    reads[node].add((place[1], int(place[2])))
                reads[node] |= reads[used]
        for node in reversed(self.nodes):
            users = {found[user] for user in self.users[node]}
            if node.layer or node.kind in ("tap", "result"):
                place = _LAYER.match(node.name)
                found[node] = node.layer or ((place[1], int(place[2])) if place else None)
            else:
                found[node] = next(iter(users)) if len(users) == 1 and users <= reads[node] else None
        return found

    # Which nodes have a line.

    def _has_line(self, node: Node) -> bool:
        if node.kind == "tap":
            return not self._is_alias(node) and not self._is_merged(node)
        if node.kind in ("parameter", "input"):
            return False
        users = self.users[node]
        # What is computed outside the layers is not computed again in each.
        for_layers = self.layer[node] is None and any(self.layer[user] for user in users)
        several = (len(users) > 1 or for_layers) and bool(self._variable(node))
        return node.kind in ("store", "result") or several or node in self.promoted

    def _is_alias(self, tap: Node) -> bool:
        """Whether a quantity is an array that has a line already."""
        (x,) = tap.arguments
        return self._has_line(x) or (x.kind == "tap" and self._is_alias(x))

    def _is_merged(self, tap: Node) -> bool:
        """Whether a quantity is the next one too, or the result, which has the line."""
        users = self.users[tap]
        if len(users) > 1 or self.layer[users[0]] != self.layer[tap]:
            return False
        return users[0].kind == "tap" or users[0].variable.startswith("return")

    # Lines, each after those that it needs.

    def _up_to(self, node: Node) -> list[Line]:
        """The line of a node, if it has one that is not written, after those that it needs."""
        if node in self.done or node.kind == "parameter":
            return []
        before = [line for used in node.inputs() for line in self._up_to(used)]
        if not self._has_line(node):
            return before
        statement = self._statement(node)
        is_new = self._variable(node) not in self.held
        comment = self.comment(node, is_new)
        room = layout.WIDTH - (4 if self.index is None else 8)
        while len(f"{statement}  {comment}") > room and not self.is_repeated:
            cut = next(self._to_promote(node, too_long=len(statement) > room), None)
            if cut is None:
                break
            self.promoted.add(cut)
            before += self._up_to(cut)
            statement = self._statement(node)
        self.held[self._variable(node)] = node
        self.done.add(node)
        return [*before, Line(statement, comment, next(iter(self.read), ""))]

    def _to_promote(self, node: Node, *, too_long: bool) -> Iterator[Node]:
        """The nodes inside the expression of this one that may have a line of their own.

        They have a variable in the core. If the expression is not too long without its comment,
        it is not that of a quantity.
        """
        for n in node.inputs():
            if n.kind in ("parameter", "input") or self._has_line(n):
                continue
            if self.index is not None and self.layer[n] is None:
                continue  # it is for every layer
            variable = self._variable(n)
            allowed = too_long or variable not in self.of_quantities
            # The argument of a tap is its line already.
            if n.kind != "tap" != node.kind and variable and allowed and self._is_free(variable, n):
                yield n
            yield from self._to_promote(n, too_long=too_long)

    def _is_free(self, variable: str, node: Node) -> bool:
        """Whether no node but this one needs what the variable holds."""
        inside = reachable([node])

        def is_used(user: Node) -> bool:
            if user in inside or user in self.done:
                return True
            return not self._has_line(user) and all(map(is_used, self.users[user]))

        holds = self.held.get(variable)
        if holds is None or (self.index is not None and self.layer[holds] is None):
            return holds is None  # what stands before a loop is for every layer
        return all(map(is_used, self.users[holds]))

    def _statement(self, node: Node) -> str:
        self.read = []
        if node.kind == "result":
            return node.variable.format(layout.text(self._reference(node.arguments[0])))
        if node.kind == "store":
            array, index, x = (self._reference(argument) for argument in node.arguments)
            return f"{layout.text(ast.Subscript(array, index))} = {layout.text(x)}"
        return f"{self._variable(node)} = {layout.text(self._computed(node))}"

    def _variable(self, node: Node) -> str:
        if node.kind == "tap":
            last = node.name.rpartition(".")[2]
            return "x" if last.startswith("after_") else VARIABLES.get(last, last)
        return RENAMED.get(node.variable, node.variable)

    # Expressions.

    def _reference(self, value: Any) -> ast.expr:
        """A node or a Python value where it is used."""
        if isinstance(value, Size):
            self.sizes |= {*re.findall("[a-z]+", value.text)}
        if not isinstance(value, Node):
            return literal(value, self._reference)
        if value.kind == "tap" and not self._has_line(value):
            return self._reference(value.arguments[0])
        if value.kind == "store":
            return self._reference(value.arguments[0])
        if not self._has_line(value):
            return self._computed(value)
        variable = self._variable(value)
        if self.held.get(variable) is not value:
            raise NotImplementedError(f"the variable {variable!r} would hold two arrays at once: {value}")
        return ast.Name(variable)

    def _computed(self, node: Node) -> ast.expr:
        """How a node is computed."""
        if node.kind == "input":
            return expression(self._with_index(node.name))
        if node.kind == "parameter":
            return expression(self._parameter(node.name))
        if node.kind == "operation":
            return self.call(node.name, {name: self._reference(x) if isinstance(x, Node) else x for name, x in node.keywords.items()})
        arguments: list[Any] = [self._reference(x) for x in node.arguments]
        keywords = [ast.keyword(name, self._reference(x)) for name, x in node.keywords.items()]
        match node.kind:
            case "tap":
                return arguments[0]
            case "index":
                return ast.Subscript(*arguments, ast.Load())
            case "attribute":
                return ast.Attribute(*arguments, node.name, ast.Load())
            case "operator":
                operands = [ast.unparse(x) if isinstance(x, ast.Name) else f"({ast.unparse(x)})" for x in arguments]
                return expression(node.name.join(operands if len(operands) > 1 else ["", *operands]))
            case "function":
                return ast.Call(ast.Name(f"np.{node.name}"), arguments, keywords)
        return ast.Call(ast.Attribute(arguments[0], node.name), arguments[1:], keywords)

    def _with_index(self, text: str) -> str:
        """An expression in which the index of the layer is the variable of the loop."""
        return text if self.index is None else text.replace(f"[{self.index}]", "[i]")

    def _parameter(self, path: str) -> str:
        """The expression of a parameter; its sublayer is noted."""
        layer = _LAYER.match(path)
        if layer is None:
            return self._with_index(re.sub(r"\.(\d+)", r"[\1]", path if "." in path else f"model.{path}"))
        place, _, rest = path[layer.end() :].partition(".")
        self.read.append(place.removesuffix("_norms").removesuffix("_attention"))
        return f"norms.{rest}" if place.endswith("_norms") else f"p.{rest}"


def literal(value: Any, member: Callable[[Any], ast.expr]) -> ast.expr:
    """The expression of a Python value, whose members have those of ``member``."""
    match value:
        case Size():
            return expression(value.text)
        case slice():
            bounds = [x if x is None else member(x) for x in (value.start, value.stop, value.step)]
            return ast.Slice(*bounds)
        case tuple():
            return ast.Tuple([member(x) for x in value], ast.Load())
        case list():
            return ast.List([member(x) for x in value], ast.Load())
        case np.dtype():
            return ast.Constant(value.name)
    return expression(repr(value)) if value is not ... else ast.Constant(...)


def expression(text: str) -> Any:
    """The syntax tree of an expression."""
    return ast.parse(text, mode="eval").body


def printed(lines: list[Line], indent: int) -> Iterator[str]:
    """The text of lines; each sublayer begins with its parameters."""
    margin, sublayer = " " * indent, ""
    for k, line in enumerate(lines):
        if line.sublayer not in ("", sublayer):
            sublayer = line.sublayer
            others = (j for j, x in enumerate(lines) if j > k and x.sublayer not in ("", sublayer))
            code = " ".join(x.statement for x in lines[k : next(others, len(lines))])
            attention = "" if sublayer == "feed_forward" else "_attention"
            places = {"p": f"layer.{sublayer}{attention}", "norms": f"layer.{sublayer}_norms"}
            used = [name for name in places if re.search(rf"\b{name}\.", code)]
            if k:
                yield ""
            yield f"{margin}{', '.join(used)} = {', '.join(places[name] for name in used)}"
        yield from layout.with_comment(layout.wrapped(line.statement, indent), line.comment)


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
