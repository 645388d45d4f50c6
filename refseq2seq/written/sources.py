"""The source of the core as syntax: run with a note of each branch, and copied without the others.

A copied function has the names, the order and the comments of its source. It has no annotations, no
branch that was not taken and no parameter that it does not use. A private function without branches
stands where it is called.
"""

import ast
import copy
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from .. import attention, erf, frames, masks, model, ops, positions
from . import layout

MODULES = (masks, erf, positions, ops, frames, attention, model)
"""The modules of the forward pass. No two of them define the same name."""


class Core:
    """The functions of the forward pass in a namespace of their own, where they note branches.

    Attributes
    ----------
    namespace : dict
    definitions : dict
        The syntax of functions, classes and constants, by name.
    branches : list
        The outcomes of each test.
    """

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {"_branch": self._branch}
        self.definitions: dict[str, Any] = {}
        self.branches: list[set[bool]] = []
        for module in MODULES:
            self.namespace |= vars(module)
        self.namespace["elementwise"] = lambda function: function  # no kernels, no pieces
        for module in MODULES:
            self.define(module)

    def define(self, source: ModuleType | Callable[..., Any]) -> None:
        """Define a function, or the functions and the cache of a module."""
        tree = layout.parsed(inspect.getsource(source))
        run = copy.deepcopy(tree)
        for branch, noting in zip(ast.walk(tree), ast.walk(run), strict=True):
            if isinstance(branch, ast.If | ast.IfExp):
                key, note = ast.Constant(len(self.branches)), ast.Name("_branch", ast.Load())
                vars(noting)["test"] = ast.Call(note, [key, vars(noting)["test"]], [])
                vars(branch)["outcomes"] = outcomes = set[bool]()
                self.branches.append(outcomes)
        for node in tree.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(name)])
                    | ast.FunctionDef(name=name)
                    | ast.ClassDef(name=name)
                ):
                    self.definitions[name] = node
        run.body = [
            node
            for node in run.body
            if isinstance(node, ast.FunctionDef) or getattr(node, "name", "") == "KeyValueCache"
        ]
        exec(compile(ast.fix_missing_locations(run), "<refseq2seq>", "exec"), self.namespace)

    def _branch(self, key: int, test: Any) -> bool:
        self.branches[key].add(bool(test))
        return bool(test)


class Copies:
    """The functions that a program calls, copied from the core after a recorded run.

    Parameters
    ----------
    core : Core
    calls : mapping
        The arguments of each call of a function, by its name, in the order of the program: Python
        values, or nodes of the graph.
    """

    def __init__(self, core: Core, calls: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.core = core
        self.copied: dict[str, Any] = {}
        self.imports: set[str] = set()
        for name in calls:
            self._copy(name)
        self._drop_unused_parameters()
        self._inline()
        for name, arguments in calls.items():
            self._set_defaults(name, arguments)

    def call(self, name: str, arguments: Mapping[str, Any]) -> ast.expr:
        """The call with these expressions or Python values, without those that are defaults."""
        f, call = self.copied[name].args, ast.Call(ast.Name(name), [], [])
        last = f.args[len(f.args) - len(f.defaults) :]
        defaults = {p.arg: layout.text(x) for p, x in zip(last, f.defaults, strict=True)}
        by_position = True  # the arrays before the first Python value
        for parameter in [p.arg for p in [*f.args, *f.kwonlyargs]]:
            given: Any = arguments.get(parameter)
            value = given if isinstance(given, ast.expr) else layout.literal(given)
            by_position = by_position and value is given
            if by_position:
                call.args.append(value)
            elif layout.text(value) != defaults.get(parameter):
                call.keywords.append(ast.keyword(parameter, value))
        return call

    def lines(self) -> list[str]:
        """The text: functions in the order in which they are called, each after its constants."""
        found: list[str] = []
        definitions, namespace = self.core.definitions, self.core.namespace

        def folded(node: Any) -> Any:
            match node:
                case ast.Call(func=ast.Name("sum"), args=[ast.Name(name)]) if name in definitions:
                    return ast.Constant(sum(namespace[name]))
            return node

        def plain(node: Any) -> Any:
            if isinstance(node, ast.Name) and node.id in definitions:
                node.id = node.id.lstrip("_")
            return node

        written: set[str] = set()
        for name, function in self.copied.items():
            node = rewritten(function, folded)
            used = [n for n in _names(node) if isinstance(definitions.get(n), ast.Assign)]
            constants = [n for n in dict.fromkeys(used) if n not in written]
            written |= {*constants}
            node.name = name.lstrip("_")
            found += ["", ""] if constants else []
            for n in constants:
                found += _constant(n.lstrip("_"), namespace[n], definitions[n].beside)
            found += ["", "", *layout.lines([rewritten(node, plain)])]
        return found

    def _copy(self, name: str) -> None:
        """Copy a function or a class, and those that it uses, unless it is copied."""
        if name in self.copied:
            return
        node = copy.deepcopy(self.core.definitions[name])
        arguments: list[Any] = node.args.args if isinstance(node, ast.FunctionDef) else []
        for parameter in [a for a in arguments if a.arg == "c"]:
            config = self.core.namespace[ast.unparse(parameter.annotation)]
            arguments.remove(parameter)
            arguments += [ast.arg(field.name) for field in fields(config)]
        self.copied[name] = node = rewritten(node, self._pruned)
        for used in dict.fromkeys(_names(node)):
            value = self.core.namespace.get(used)
            origin = getattr(value, "__module__", None) or "refseq2seq"
            if isinstance(self.core.definitions.get(used), ast.FunctionDef | ast.ClassDef):
                self._copy(used)
            elif isinstance(value, ModuleType) and used != "np":
                self.imports.add(f"import {used}")
            elif origin.partition(".")[0] not in ("builtins", "refseq2seq"):
                self.imports.add(f"from {origin} import {used}")

    def _pruned(self, node: Any) -> Any:
        """A node without what no program needs."""
        outcomes = getattr(node, "outcomes", {True, False})
        if outcomes != {True, False}:
            return node.body if outcomes == {True} else node.orelse
        match node:
            case ast.Name("xp") | ast.Call(func=ast.Name("array_namespace")):
                return ast.Name("np")
            case ast.Assign(targets=[ast.Name("np")]):
                return None
            case ast.Assign(targets=[ast.Tuple([ast.Name("np"), x])], value=ast.Tuple([_, y])):
                node.targets, node.value = [x], y
            case ast.Attribute(value=ast.Name("c")):  # a field of a config is a parameter
                return ast.Name(node.attr)
            case ast.arg():
                node.annotation = None
            case ast.AnnAssign():
                node.annotation = ast.Name("object")
            case ast.FunctionDef() | ast.ClassDef():
                node.decorator_list, node.returns = [], None  # type: ignore[union-attr]
                if documentation := ast.get_docstring(node):
                    summary = ast.Constant(documentation.partition("\n\n")[0])
                    node.body[0].value = summary  # type: ignore[attr-defined]
                returns = [i for i, x in enumerate(node.body) if isinstance(x, ast.Return)]
                del node.body[min(returns, default=len(node.body)) + 1 :]  # of a taken branch
        return node

    def _drop_unused_parameters(self) -> None:
        """Remove parameters that their function does not use, from it and from calls to it."""
        functions = [f for f in self.copied.values() if isinstance(f, ast.FunctionDef)]
        unused = [
            (f, parameter)
            for f in functions
            for parameter in _parameters(f)
            if parameter not in _names(ast.Module(f.body, []))
        ]
        for f, parameter in unused:
            index = _parameters(f).index(parameter)
            del f.args.args[index]
            f.args.defaults = f.args.defaults[-len(f.args.args) or len(f.args.defaults) :]
            for call in (call for caller in functions for call in _calls(caller, f.name)):
                del call.args[index : index + 1]
                call.keywords = [k for k in call.keywords if k.arg != parameter]
        if unused:
            self._drop_unused_parameters()

    def _inline(self) -> None:
        """Write private functions without branches where they are called.

        Those that are one expression, if they are called once in a function; the others, if they
        are called once at all.
        """
        for name in reversed([n for n in self.copied if n.startswith("_")]):
            function = self.copied[name]
            body, value = _reduced(function)
            places = [
                (caller.body, statement, call, _given(function, call))
                for caller in self.copied.values()
                for statement in caller.body
                for call in _calls(statement, name)
            ]
            uses = Counter(_names(ast.Module([*body, ast.Expr(value)], []))) if value else Counter()
            is_repeated = any(
                uses[parameter] > 1 and not isinstance(x, ast.Name | ast.Constant)
                for *_, given in places
                for parameter, x in given.items()
            )
            callers = {id(statements) for statements, *_ in places}
            limit = 1 if body else len(callers)
            if value is None or len(places) > limit or is_repeated:
                continue
            for statements, statement, call, given in places:
                replaced = {id(call): _substituted(value, given)}
                whole = rewritten(statement, lambda n, r=replaced: r.get(id(n), n))  # type: ignore[misc]
                whole.beside = whole.beside or function.body[-1].beside
                i = statements.index(statement)
                statements[i : i + 1] = [*(_substituted(x, given) for x in body), whole]
            del self.copied[name]

    def _set_defaults(self, name: str, calls: Sequence[Mapping[str, Any]]) -> None:
        """Make a Python value that all calls give the default; one that differs has a keyword."""
        arguments = self.copied[name].args
        arguments.defaults = []
        for parameter in list(arguments.args):
            values = [call.get(parameter.arg) for call in calls]
            literals = [x for x in values if x is None or isinstance(x, int | float | str)]
            if len(literals) == len(values) and any(x != values[0] for x in values):
                arguments.args.remove(parameter)
                arguments.kwonlyargs.append(parameter)
                arguments.kw_defaults.append(None)
            elif literals or arguments.defaults:
                usual = values[0] if len(literals) == len(values) else None  # no array
                arguments.defaults.append(layout.literal(usual))


class _Rewriting(ast.NodeTransformer):
    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def visit(self, node: ast.AST) -> Any:
        return self.change(self.generic_visit(node))


def rewritten(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with each node replaced by ``change(node)``, leaves first."""
    return _Rewriting(change).visit(tree)


def _substituted(tree: Any, values: Mapping[str, ast.expr]) -> Any:
    """A copy of a tree with expressions in the place of names."""
    return rewritten(
        copy.deepcopy(tree),
        lambda n: copy.deepcopy(values.get(n.id, n)) if isinstance(n, ast.Name) else n,
    )


def _reduced(function: Any) -> tuple[list[Any], Any]:
    """The assignments and the value of a function without branches; no value for another one.

    Variables that are used once are replaced by their value.
    """
    *body, last = function.body[ast.get_docstring(function) is not None :]
    straight = all(isinstance(x, ast.Assign | ast.AugAssign) for x in body)
    if not straight or not isinstance(last, ast.Return):
        return [], None
    value = last.value
    while body and isinstance(body[-1], ast.Assign) and isinstance(body[-1].targets[0], ast.Name):
        target = body[-1].targets[0].id
        if _names(value).count(target) != 1:
            break
        last.beside = last.beside or body[-1].beside  # type: ignore[attr-defined]
        value = _substituted(value, {target: body.pop().value})
    return body, value


def _given(function: ast.FunctionDef, call: ast.Call) -> dict[str, ast.expr]:
    """The arguments of a call by the name of their parameter."""
    given = dict(zip(_parameters(function), call.args, strict=False))
    return given | {k.arg: k.value for k in call.keywords if k.arg}


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args]


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """The calls of a function in a tree."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]


def _names(tree: Any) -> list[str]:
    """The names in a tree, in the order of the text."""
    if isinstance(tree, ast.Name):
        return [tree.id]
    return [name for child in ast.iter_child_nodes(tree) for name in _names(child)]


def _constant(name: str, value: Any, comment: str) -> list[str]:
    """The assignment of a constant's value, in rows where it is long."""
    line = f"{name} = {value!r}"
    if len(line) <= layout.WIDTH:
        return layout.with_comment([line], comment)
    rows = textwrap.wrap(f"{value!r}"[1:-1] + ",", layout.WIDTH - 4)
    inside = [f"    {row}" for row in rows]
    return ["# fmt: off", f"{name} = (  {comment}".rstrip(), *inside, ")", "# fmt: on"]
