"""The lines of a program's function, from the graph of a recorded run.

Each quantity has a line, under its own name. Other arrays stand inside the expression that uses
them; those that several use, or that make a line too long, have a line under the name of the core's
variable. The lines of all layers of a stack must be the same, and become a loop.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

from . import layout
from .comments import OF_STATEMENTS
from .recording import UNKNOWN, Node, Size, reachable

VARIABLES = {"embed": "x", "final": "x", "input": "h"}
"""Variables of quantities, if not their name: x flows from layer to layer, h into a sublayer."""

RENAMED = {"positions": "position_ids", "rotation": "angles", "mask": "allowed"}
"""Variables of the core that have the name of a quantity, an operation or an argument."""


class Line(NamedTuple):
    """A statement, the sublayer whose parameters it reads, and its comment."""

    statement: str
    sublayer: str
    comment: str


class Body:
    """The statements that compute the results of a recorded run.

    Parameters
    ----------
    nodes : list of Node
        In order of execution, without those that no node of kind "result" needs.
    call : callable
        The expression of a call of an operation, from its name and its arguments.
    comment : callable
        The comment of a quantity, from its name and its variable.
    """

    def __init__(
        self,
        nodes: list[Node],
        call: Callable[[str, dict[str, Any]], ast.expr],
        comment: Callable[..., str],
    ) -> None:
        self.nodes, self.call, self.comment = nodes, call, comment
        self.users: dict[Node, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for used in dict.fromkeys(node.inputs()):
                self.users[used].append(node)
        self.quantities = {self._variable(n) for n in self.nodes if n.kind == "tap"}
        self.promoted: set[Node] = set()  # nodes that have a line because another is too long
        self.held: dict[str, Node] = {}  # the node that each variable holds
        self.done: set[Node] = set()
        self.index: int | None = None  # of the layer that is being written, or None outside them
        self.sizes: set[str] = set()  # the variables of sizes that the lines read
        self.sublayer = ""  # the first whose parameters the statement reads

    def text(self, ids: str) -> str:
        """The lines, with the indent of a function's body, for token ids of this name."""
        outside: list[Line] = []
        loops: list[str] = []
        for node in self.nodes:
            if node.layer is None:
                outside += self._up_to(node)
            elif node not in self.done and self._has_line(node):
                before, loop = self._loop(node.layer[0])
                loops += [*printed(outside + before, 4), *loop]
                outside = []
        first = {"batch": f"    batch = len({ids})", "n": f"    n = {ids}.shape[1]"}
        used = [line for size, line in first.items() if size in self.sizes]
        return "\n".join([*used, *loops, *printed(outside, 4)])

    def _loop(self, stack: str) -> tuple[list[Line], list[str]]:
        """The lines outside that the loop over the layers of a stack needs, and the loop."""
        layers: dict[int, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if node.layer and node.layer[0] == stack:
                layers[node.layer[1]].append(node)
        needed = {used for nodes in layers.values() for node in nodes for used in node.inputs()}
        outside = [n for n in self.nodes if n.layer is None and n in needed]
        before = [line for n in outside for line in self._up_to(n)]
        bodies = []
        for self.index, nodes in layers.items():
            # The lines of long expressions are those of the first layer.
            promoted = {a for a, b in zip(nodes, layers[0], strict=False) if b in self.promoted}
            self.promoted |= promoted
            ends = [n for n in nodes if n.kind in ("tap", "store", "result")]
            bodies.append([line for n in ends if self._has_line(n) for line in self._up_to(n)])
        self.index = None
        nothing = Line("nothing more", "", "")
        for i, body in enumerate(bodies):
            for line, other in zip_longest(bodies[0], body, fillvalue=nothing):
                if line[:2] != other[:2]:
                    raise layout.WriteOutError(
                        f"layer {i} of the {stack} computes {other.statement!r}, layer 0 "
                        f"{line.statement!r}: layers that differ cannot be written as a loop"
                    )
        uses_i = any(re.search(r"\bi\b", line.statement) for line in bodies[0])
        loop = f"i, layer in enumerate({stack}.layers)" if uses_i else f"layer in {stack}.layers"
        return before, [f"    for {loop}:", *printed(bodies[0], 8)]

    # Which nodes have a line.

    def _has_line(self, node: Node) -> bool:
        users = self.users[node]
        if node.kind == "tap":
            return not self._is_alias(node) and not self._is_next(node)
        if node.kind in ("store", "result") or node in self.promoted or self._capped(node):
            return True
        # What is computed before the layers is not computed again in each.
        for_layers = node.layer is None and any(user.layer for user in users)
        computed = node.kind not in ("parameter", "input") and self._variable(node)
        return bool(computed) and (len(users) > 1 or for_layers)

    def _capped(self, node: Node) -> Node | None:
        """The quantity that is a node under a soft cap, c tanh(node / c)."""
        for name in ("/", "tanh", "*"):
            if [user.name for user in self.users[node]] != [name]:
                return None
            (node,) = self.users[node]
        (quantity, *_) = self.users[node]
        return self.users[quantity][0] if quantity.name == "rounded" else quantity

    def _is_alias(self, tap: Node) -> bool:
        """Whether a quantity is an array that has a line already."""
        (x,) = tap.arguments
        return self._has_line(x) or (x.kind == "tap" and self._is_alias(x))

    def _is_next(self, tap: Node) -> bool:
        """Whether a quantity is the next one too, or a result, which has the line."""
        (user, *others) = self.users[tap]
        if user.kind == "method":  # the result is in the dtype and order of storage
            (user, *others) = self.users[user] + others
        return user.kind in ("tap", "result") and user.layer == tap.layer and not others

    # Lines, each after those that it needs.

    def _up_to(self, node: Node) -> list[Line]:
        """The line of a node, if it has one that is not written, after those that it needs."""
        if node in self.done or node.kind == "parameter":
            return []
        before = [line for used in node.inputs() for line in self._up_to(used)]
        if not self._has_line(node):
            return before
        statement = self._statement(node)
        comment = self._comment(node, statement)
        room = layout.WIDTH - (4 if self.index is None else 8)
        while len(f"{statement}  {comment}") > room and not self.index:
            cut = next(self._to_promote(node, too_long=len(statement) > room), None)
            if cut is None:
                break
            self.promoted.add(cut)
            before += self._up_to(cut)
            statement = self._statement(node)
        self.held[self._variable(node)] = node
        self.done.add(node)
        return [*before, Line(statement, self.sublayer, comment)]

    def _to_promote(self, node: Node, *, too_long: bool) -> Iterator[Node]:
        """The nodes inside the expression of this one that may have a line of their own.

        They have a variable of the core; if only the comment is too long, not that of a quantity.
        """
        for n in node.inputs():
            is_outside = self.index is not None and n.layer is None
            if self._has_line(n) or is_outside or n.kind in ("parameter", "input"):
                continue
            variable = self._variable(n)
            allowed = too_long or variable not in self.quantities
            # The argument of a tap is its line already.
            if n.kind != "tap" != node.kind and variable and allowed and self._is_free(variable, n):
                yield n
            yield from self._to_promote(n, too_long=too_long)

    def _is_free(self, variable: str, node: Node) -> bool:
        """Whether no node but this one needs what the variable holds."""
        inside, holds = reachable([node]), self.held.get(variable)

        def is_used(user: Node) -> bool:
            if user in inside or user in self.done:
                return True
            return not self._has_line(user) and all(map(is_used, self.users[user]))

        if holds is None or (self.index is not None and holds.layer is None):
            return holds is None  # what stands before a loop is for every layer
        return all(map(is_used, self.users[holds]))

    def _statement(self, node: Node) -> str:
        self.sublayer = ""
        if node.kind == "result":
            return node.variable.format(layout.text(self._reference(node.arguments[0])))
        if node.kind == "store":
            array, index, x = map(self._reference, node.arguments)
            return f"{layout.text(ast.Subscript(array, index))} = {layout.text(x)}"
        return f"{self._variable(node)} = {layout.text(self._computed(node))}"

    def _comment(self, node: Node, statement: str) -> str:
        """The comment of a line: of the quantity that it is, or of how its statement begins."""
        x, variable = node, self._variable(node)
        while x.kind in ("result", "method"):
            (x, *_) = x.inputs()
        x = self._capped(x) or x
        if x.kind != "tap":
            found = (said for begin, said in OF_STATEMENTS.items() if statement.startswith(begin))
            return next(found, "")
        if self.index:
            return ""
        said = self.comment(x.name, variable)
        is_cap = x is node and any(self._capped(used) is x for used in reachable([x]))
        return said if not is_cap or "# = " in said else ""  # the conventions are under the cap

    def _variable(self, node: Node) -> str:
        if node.kind in ("result", "store"):
            return ""
        node = self._capped(node) or node
        if node.kind == "tap":
            last = node.name.rpartition(".")[2]
            flows = last.startswith("after_") or node.name.startswith("encoder.frame_layers.")
            return "x" if flows and last != "projected" else VARIABLES.get(last, last)
        return RENAMED.get(node.variable, node.variable)

    # Expressions.

    def _reference(self, value: Any) -> ast.expr:
        """A node or a Python value where it is used."""
        if isinstance(value, Size):
            if UNKNOWN in value.text:
                raise layout.WriteOutError(f"{UNKNOWN} inside the encoder cannot be written out")
            self.sizes |= {*re.findall("[a-z]+", value.text)}
        if not isinstance(value, Node):
            return layout.literal(value, self._reference)
        if value.kind == "store" or (value.kind == "tap" and not self._has_line(value)):
            return self._reference(value.arguments[0])
        if not self._has_line(value):
            return self._computed(value)
        variable = self._variable(value)
        if self.held.get(variable) is not value:
            raise layout.WriteOutError(f"the variable {variable!r} would hold two arrays at once")
        return ast.Name(variable)

    def _computed(self, node: Node) -> ast.expr:
        """How a node is computed."""
        if node.kind in ("input", "parameter"):
            text = node.name if node.kind == "input" else self._parameter(node.name)
            return layout.expression(text.replace(f"[{self.index}]", "[i]"))
        if node.kind == "operation":
            arrays = {p: x for p, x in node.keywords.items() if isinstance(x, Node)}
            references = {p: self._reference(x) for p, x in arrays.items()}
            return self.call(node.name, node.keywords | references)
        x, *arguments = map(self._reference, node.arguments)
        keywords = [ast.keyword(name, self._reference(y)) for name, y in node.keywords.items()]
        found = x  # of a tap
        match node.kind:
            case "function":
                found = ast.Call(ast.Name(f"np.{node.name}"), [x, *arguments], keywords)
            case "method":
                found = ast.Call(ast.Attribute(x, node.name), arguments, keywords)
            case "attribute":
                found = ast.Attribute(x, node.name, ast.Load())
            case "operator":
                found = layout.operation(node.name, x, *arguments)
            case "list":
                found = layout.operation("*", x, *arguments) if arguments else x
            case "member":
                found = ast.Subscript(x, ast.Name("i"), ast.Load())
            case "index":
                found = ast.Subscript(x, arguments[0], ast.Load())
        return found

    def _parameter(self, path: str) -> str:
        """The expression of a parameter; its sublayer is noted."""
        if layer := re.match(r"encoder\.frame_layers\.\d+\.", path):
            self.sublayer = self.sublayer or re.sub(r"\.(\d+)", r"[\1]", layer[0])[:-1]
            return "p." + path[layer.end() :]
        if not (layer := re.match(r"\w+\.layers\.\d+\.(\w+)\.", path)):
            path = re.sub(r"\.(\d+)", r"[\1]", path)
            return path if "." in path else f"model.{path}"
        sublayer = layer[1].removesuffix("_norms").removesuffix("_attention")
        self.sublayer = self.sublayer or sublayer
        return ("norms." if layer[1].endswith("_norms") else "p.") + path[layer.end() :]


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
            if "[" in sublayer:  # of frames
                places = {"p": sublayer}
            used = [name for name in places if re.search(rf"\b{name}\.", code)]
            if k:
                yield ""
            yield f"{margin}{', '.join(used)} = {', '.join(places[name] for name in used)}"
        written, comment = layout.wrapped(line.statement, indent), line.comment
        if ";" not in comment and len(written[0]) + 2 + len(comment) > layout.WIDTH:
            comment = ""  # only a name or a shape
        yield from layout.with_comment(written, comment)
