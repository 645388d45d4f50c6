"""Python text from syntax trees, with comments, as the project's formatter lays it out."""

import ast
import copy
import io
import json
import tokenize
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WIDTH = 100

_SIMPLE = (ast.Name, ast.Constant, ast.UnaryOp)

_FOR_TOOLS = ("# type:", "# fmt:", "# noqa")


class WriteOutError(ValueError):
    """A model cannot be written out; the message says why."""


def parsed(source: str) -> ast.Module:
    """The syntax tree of a module; each statement has the comments ``above`` and ``beside`` it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    comments = {n: text for n, text in comments.items() if not text.startswith(_FOR_TOOLS)}
    own = {n for n, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            first = node.lineno
            while first - 1 in own:
                first -= 1
            node.above = [comments[n] for n in range(first, node.lineno) if n in comments]  # type: ignore[attr-defined]
            node.beside = comments.get(node.lineno, "")  # type: ignore[attr-defined]
    return tree


def lines(statements: Sequence[ast.stmt], indent: int = 0) -> list[str]:
    """The lines of statements."""
    found: list[str] = []
    for node in statements:
        found += [" " * indent + comment for comment in getattr(node, "above", [])]
        found += _statement(node, indent)
    return found


def _statement(node: Any, indent: int) -> list[str]:
    margin, beside = " " * indent, getattr(node, "beside", "")
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        documentation = str(node.value.value)
        end = "\n" if "\n" in documentation else ""
        return [margin + line for line in f'"""{documentation}{end}"""'.split("\n")]
    if not hasattr(node, "body"):
        return with_comment(wrapped(text(node), indent), beside)
    head = copy.copy(node)
    head.body, head.orelse = [ast.Pass()], []
    found = with_comment([margin + text(head).split("\n")[0]], beside)
    for i, part in enumerate(node.body):
        found += [""] * (i == 1 and isinstance(node, ast.ClassDef))  # after its docstring
        found += lines([part], indent + 4)
    if getattr(node, "orelse", []):
        found += [f"{margin}else:", *lines(node.orelse, indent + 4)]
    return found


def with_comment(code: list[str], comment: str) -> list[str]:
    """Lines of one statement with its comment: beside them where it fits, or else above."""
    if not comment:
        return code
    if len(code) == 1 and len(code[0]) + 2 + len(comment) <= WIDTH:
        return [f"{code[0]}  {comment}"]
    margin = code[0][: len(code[0]) - len(code[0].lstrip())]
    return [margin + comment, *code]


def wrapped(statement: str, indent: int) -> list[str]:
    """The lines of a simple statement: one, or split inside its last brackets if it is too long."""
    margin = " " * indent
    if len(margin + statement) <= WIDTH:
        return [margin + statement]
    code = statement.removesuffix(",")
    comma = statement[len(code) :]
    if code[-1] not in ")]}":
        target, equals, value = code.partition(" = ")
        if not equals:
            raise WriteOutError(f"an expression is too long for a line: {code}")
        return [f"{margin}{target}{equals}(", *wrapped(value, indent + 4), f"{margin})"]
    end = len(code)
    begin = _opening(code, end)
    while code[begin - 1] == ")" and len(margin) + begin >= WIDTH:  # an index of a long call
        end, begin = begin, _opening(code, begin)
    head, inside, tail = code[: begin + 1], code[begin + 1 : end - 1], code[end - 1 :] + comma
    if len(margin) + 4 + len(inside) <= WIDTH:
        return [margin + head, f"{margin}    {inside}", margin + tail]
    parts = [line for part in _split(inside) for line in wrapped(part + ",", indent + 4)]
    return [margin + head, *parts, margin + tail]


def _opening(code: str, end: int) -> int:
    """The index of the bracket that the last character before ``end`` closes."""
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += (code[i] in ")]}") - (code[i] in "([{")
        if depth == 0:
            return i
    raise AssertionError(code)


def _split(inside: str) -> list[str]:
    """The elements between the brackets."""
    parts: list[str] = []
    for piece in inside.split(", "):
        is_open = parts and sum(map(parts[-1].count, "([{")) > sum(map(parts[-1].count, ")]}"))
        parts = [*parts[:-1], f"{parts[-1]}, {piece}"] if is_open else [*parts, piece]
    return parts


def text(node: ast.AST) -> str:
    """A statement or an expression on one line, without its comments."""
    node = _Formatted().visit(copy.deepcopy(node))
    return ast.unparse(ast.fix_missing_locations(node))


class _Formatted(ast.NodeTransformer):
    """Writes as names, which are printed as they stand, what `ast.unparse` lays out otherwise."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """Double quotes, and exponents without a plus."""
        if isinstance(node.value, str):
            return ast.Name(json.dumps(node.value))
        return ast.Name(repr(node.value).replace("e+", "e"))

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        """Spaces around the colon between expressions."""
        bounds = [node.lower, node.upper]
        simple = all(b is None or isinstance(b, _SIMPLE) for b in bounds)
        lower, upper = ("" if b is None else text(b) for b in bounds)
        sliced = f"{lower}:{upper}" if simple else f"{lower} : {upper}".strip()
        step = f" : {text(node.step)}" if node.step and not simple else ""
        return ast.Name(sliced + (step or (f":{text(node.step)}" if node.step else "")))

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """No spaces around the power of simple operands."""
        operands = (node.left, node.right)
        if isinstance(node.op, ast.Pow) and all(isinstance(x, _SIMPLE) for x in operands):
            return ast.Name(f"{text(node.left)}**{text(node.right)}")
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_Assign(self, node: ast.Assign | ast.Return) -> ast.stmt:
        """No brackets around a tuple."""
        if isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
            node.value = ast.Name(", ".join(text(element) for element in node.value.elts))
        return self.generic_visit(node)  # type: ignore[return-value]

    visit_Return = visit_Assign  # noqa: N815


def literal(value: Any, member: Callable[[Any], ast.expr] | None = None) -> ast.expr:
    """The expression of a Python value; ``member`` gives those of its members."""
    of = member or literal
    match value:
        case slice():
            start = value.start if value.step is None else value.start or None
            bounds = (start, value.stop, value.step if value.step != 1 else None)
            return ast.Slice(*(x if x is None else of(x) for x in bounds))
        case tuple() if (run := _run(value)) > 3:  # the borders of T5's buckets
            return expression(f"(*range(1, {run + 1}), {str(value[run:])[1:-1]})")
        case tuple() | list():
            kind = ast.Tuple if isinstance(value, tuple) else ast.List
            return kind([of(x) for x in value], ast.Load())
        case int() | float():
            return expression(repr(value))
    return ast.Constant(value.name if isinstance(value, np.dtype) else value)


def _run(value: tuple[Any, ...]) -> int:
    """How many members count from 1."""
    return next((i for i, x in enumerate(value) if type(x) is not int or x != i + 1), len(value))


def expression(text: str) -> Any:
    """The syntax tree of an expression."""
    return ast.parse(text, mode="eval").body


def operation(operator: str, *operands: ast.expr) -> ast.expr:
    """An operator, such as ``@``, before one operand or between two."""
    texts = [f"({ast.unparse(operand)})" for operand in operands]
    return expression(operator.join(texts if len(texts) > 1 else ["", *texts]))
