"""The source of the core, read as syntax: run with a note of each branch, and copied without those
that were never taken.

A copied function has the names, the order and the comments of its source. It has no annotations and
no parameters that it does not use, and a private function that is one expression stands where it
was called.
"""

import ast
import builtins
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

import numpy as np

from .. import attention, erf, masks, model, ops, positions
from . import layout

MODULES = (masks, erf, positions, ops, attention, model)
"""The modules of the forward pass. No two of them define the same name."""


class Core:
    """The functions of the forward pass in a namespace of their own, which notes their branches."""

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {}
        self.definitions: dict[str, Any] = {}  # functions, classes, and assignments of constants
        self.branches: dict[int, set[bool]] = {}
        for module in MODULES:
            self.namespace |= vars(module)
        self.namespace["_branch"] = self._branch
        for module in MODULES:
            self.define(module)

    def define(self, source: ModuleType | Callable[..., Any]) -> None:
        """Define a module's functions, or one function, in the namespace; their branches are noted."""
        tree = layout.parsed(inspect.getsource(source))
        for node in ast.walk(tree):
            if isinstance(node, ast.If | ast.IfExp):
                node.key = len(self.branches)  # type: ignore[union-attr]
                self.branches[node.key] = set()  # type: ignore[union-attr]
        for statement in tree.body:
            self.definitions |= dict.fromkeys(_defined(statement), statement)
        noting = [
            _Noting().visit(copy.deepcopy(node))
            for node in tree.body
            if isinstance(node, ast.FunctionDef) or _defined(node) == ["KeyValueCache"]
        ]
        runnable = ast.fix_missing_locations(ast.Module(noting, type_ignores=[]))
        exec(compile(runnable, "<refseq2seq>", "exec"), self.namespace)

    def _branch(self, key: int, test: Any) -> bool:
        self.branches[key].add(bool(test))
        return bool(test)


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


class _Noting(ast.NodeTransformer):
    """Replaces the test of each branch by ``_branch(key, test)``."""

    def visit_If(self, node: Any) -> Any:
        key = ast.Constant(node.key)
        node.test = ast.Call(ast.Name("_branch", ast.Load()), [key, node.test], [])
        return self.generic_visit(node)

    visit_IfExp = visit_If  # noqa: N815


class Copies:
    """The definitions that a program needs, copied from the core after a recorded run."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.copied: dict[str, Any] = {}
        self.imports: set[str] = set()

    def add(self, name: str) -> None:
        """Copy a definition, unless it is copied, after its constants and before what it calls."""
        if name in self.copied:
            return
        node = self._pruned(name)
        used = {n: self.core.definitions[n] for n in _names(node) if n in self.core.definitions}
        constants = {n: x for n, x in used.items() if isinstance(x, ast.Assign)}
        self.copied |= constants | {name: node}
        for other in used:
            self.add(other)
        for other in {*_names(node)} - {*used, "np"}:
            value = self.core.namespace.get(other)
            origin = getattr(value, "__module__", None) or "refseq2seq"
            if isinstance(value, ModuleType):
                self.imports.add(f"import {value.__name__}")
            elif origin.partition(".")[0] not in ("builtins", "refseq2seq"):
                self.imports.add(f"from {origin} import {other}")

    def parameters(self, name: str) -> list[str]:
        """The parameters of a copied function."""
        return [a.arg for a in self.copied[name].args.args]

    def defaults(self, name: str) -> dict[str, str]:
        """The text of the defaults of a copied function, by parameter."""
        defaults = self.copied[name].args.defaults
        names = self.parameters(name)[len(self.parameters(name)) - len(defaults) :]
        return {n: layout.text(default) for n, default in zip(names, defaults, strict=True)}

    def splice(self) -> None:
        """Write the statements of private functions that are called once where they are called."""
        for name, function in list(self.copied.items()):
            if not name.startswith("_") or not isinstance(function, ast.FunctionDef):
                continue
            *body, last = _without_docstring(function)
            places = [
                (caller, i, node)
                for caller in self.copied.values()
                for i, statement in enumerate(getattr(caller, "body", []))
                for node in ast.walk(statement)
                if isinstance(node, ast.Call) and _name(node.func) == name
            ]
            straight = all(isinstance(x, ast.Assign | ast.AugAssign) for x in body)
            if not (len(places) == 1 and straight and isinstance(last, ast.Return)):
                continue
            ((caller, i, call),) = places
            given = _given(function, call)
            if all(isinstance(x, ast.Name | ast.Constant) for x in given.values()):
                values = _Substituted(given)
                value = values.visit(last.value)
                statement = _Replaced(call, value).visit(caller.body[i])
                caller.body[i : i + 1] = [*(values.visit(x) for x in body), statement]
                del self.copied[name]

    def drop_unused_parameters(self) -> None:
        """Remove parameters that their function does not use, from it and from calls to it."""
        functions = {n: f for n, f in self.copied.items() if isinstance(f, ast.FunctionDef)}
        unused = True
        while unused:
            unused = {
                (name, parameter)
                for name, f in functions.items()
                for parameter in self.parameters(name)
                if parameter not in _names(ast.Module(f.body, []))
            }
            for name, parameter in unused:
                index = self.parameters(name).index(parameter)
                _remove_argument(functions[name].args, index)
                for node in (n for f in functions.values() for n in ast.walk(f)):
                    if isinstance(node, ast.Call) and _name(node.func) == name:
                        del node.args[index : index + 1]
                        node.keywords = [k for k in node.keywords if k.arg != parameter]

    def lines(self) -> list[str]:
        """The text: functions in the order in which they are called, each after its constants.

        Private names are plain ones.
        """
        plain = _Substituted({name: ast.Name(name.lstrip("_")) for name in self.copied})
        written: list[str] = []
        found: list[str] = []
        for name, node in self.copied.items():
            if isinstance(node, ast.Assign):
                continue
            constants = {n: self.copied[n] for n in _names(node) if n in self.copied}
            found += ["", ""]
            for n, constant in constants.items():
                if isinstance(constant, ast.Assign) and n not in written:
                    written.append(n)
                    found += _constant(n.lstrip("_"), self.core.namespace[n], constant)
            found += ["", ""] if found[-1] else []
            node.name = name.lstrip("_")
            found += layout.lines([plain.visit(node)])
        return found

    def _pruned(self, name: str) -> Any:
        """A definition without untaken branches, annotations and calls of one expression."""
        node = copy.deepcopy(self.core.definitions[name])
        if isinstance(node, ast.FunctionDef):
            for argument in [a for a in node.args.args if a.arg == "c"]:  # a config
                config = self.core.namespace[ast.unparse(argument.annotation)]
                node.args.args.remove(argument)
                node.args.args += [ast.arg(field.name) for field in fields(config)]
                node = _Fields("c").visit(node)
        return _Pruning(self, node).visit(node)

    def expression(self, name: str, call: ast.Call) -> ast.expr | None:
        """The value of a call to a private function of one expression; None for another function."""
        if not name.startswith("_") or not isinstance(
            self.core.definitions.get(name), ast.FunctionDef
        ):
            return None
        function = self._pruned(name)
        *assignments, last = _without_docstring(function)
        if not isinstance(last, ast.Return):
            return None
        value = last.value
        for node in reversed(assignments):
            target = _name(node.targets[0]) if isinstance(node, ast.Assign) else None
            if target is None or _names(value).count(target) != 1:
                return None
            value = _Substituted({target: node.value}).visit(value)
        given = _given(function, call)
        once = all(_names(value).count(parameter) <= 1 for parameter in given)
        return _Substituted(given).visit(value) if once else None


class _Pruning(ast.NodeTransformer):
    """Removes what a program does not need from a definition."""

    def __init__(self, copies: Copies, definition: ast.AST) -> None:
        self.copies = copies
        calls = [_name(node.func) for node in ast.walk(definition) if isinstance(node, ast.Call)]
        self.once = {name for name in calls if name and calls.count(name) == 1}

    def visit_If(self, node: Any) -> Any:
        outcomes = self.copies.core.branches[node.key]
        self.generic_visit(node)
        if outcomes == {True, False}:
            return node
        return node.body if outcomes == {True} else node.orelse

    def visit_IfExp(self, node: Any) -> Any:
        outcomes = self.copies.core.branches[node.key]
        self.generic_visit(node)
        if outcomes == {True, False}:
            return node
        return node.body if outcomes == {True} else node.orelse

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.decorator_list = [d for d in node.decorator_list if _name(d) == "cache"]
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
        return self._documented(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Name("object")
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._documented(node)

    def _documented(self, node: Any) -> Any:
        """With the first paragraph of the docstring, or without any, as in the source."""
        self.generic_visit(node)
        if documentation := ast.get_docstring(node):
            node.body[0].value = ast.Constant(documentation.partition("\n\n")[0])
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        """Without ``xp = array_namespace(x)``, alone or in a tuple."""
        self.generic_visit(node)
        target = node.targets[0]
        if isinstance(target, ast.Name):
            return None if target.id == "np" else node
        names = [_name(element) for element in getattr(target, "elts", [])]
        if "np" in names:
            i = names.index("np")
            del target.elts[i], node.value.elts[i]  # type: ignore[attr-defined]
            if len(names) == 2:
                node.targets, node.value = [target.elts[0]], node.value.elts[0]  # type: ignore[attr-defined]
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name("np") if node.id == "xp" else node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if _name(node.func) == "array_namespace":
            return ast.Name("np")
        name = _name(node.func)
        return (name in self.once and self.copies.expression(name, node)) or node  # type: ignore[arg-type]


class _Replaced(ast.NodeTransformer):
    """Replaces one call by another expression."""

    def __init__(self, call: ast.Call, value: ast.expr) -> None:
        self.call, self.value = call, value

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return self.value if node is self.call else self.generic_visit(node)  # type: ignore[return-value]


class _Fields(ast.NodeTransformer):
    """Writes ``c.name`` as ``name``."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        return ast.Name(node.attr) if _name(node.value) == self.parameter else node


class _Substituted(ast.NodeTransformer):
    """Replaces names by expressions."""

    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self.values.get(node.id, node))


def _without_docstring(function: ast.FunctionDef) -> list[ast.stmt]:
    return function.body[isinstance(function.body[0], ast.Expr) :]


def _given(function: ast.FunctionDef, call: ast.Call) -> dict[str, ast.expr]:
    """The arguments of a call by the name of their parameter."""
    given = dict(zip([a.arg for a in function.args.args], call.args, strict=False))
    return given | {k.arg: k.value for k in call.keywords}  # type: ignore[dict-item]


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _names(node: ast.AST) -> list[str]:
    """The names in a tree, in order of reading."""
    return [n.id for n in _in_order(node) if isinstance(n, ast.Name) and n.id.isidentifier()]


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _remove_argument(arguments: ast.arguments, index: int) -> None:
    first_default = len(arguments.args) - len(arguments.defaults)
    if index >= first_default:
        del arguments.defaults[index - first_default]
    del arguments.args[index]


def _constant(name: str, value: Any, node: ast.Assign) -> list[str]:
    """The assignment of a constant's value, in rows where it is long."""
    flat = f"{name} = {value!r}"
    if len(flat) <= layout.WIDTH:
        return layout.with_comment([flat], node.beside)  # type: ignore[attr-defined]
    rows = [""]
    for number in value:
        if len(rows[-1]) + len(f" {number!r},") > layout.WIDTH - 3:
            rows.append("")
        rows[-1] += f" {number!r},"
    inside = [f"   {row}" for row in rows]
    return ["# fmt: off", f"{name} = (  {node.beside}".rstrip(), *inside, ")", "# fmt: on"]  # type: ignore[attr-defined]
