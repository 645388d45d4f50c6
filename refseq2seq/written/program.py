"""A model, written out: the program of one checkpoint, derived from the forward pass of all."""

import ast
import os
from typing import Any

from ..backend import Array
from ..checks import check_int
from ..files.writing import replacing
from ..model import Model, check_model
from ..params import count_parameters, named_arrays
from . import layout, templates
from .comments import Comments, sizes
from .lines import Body, literal, reachable
from .recording import Node, record
from .sources import Copies


class Program:
    """The program of one model; its functions are callable here, on the model's arrays.

    Attributes
    ----------
    source : str
        The text. It imports NumPy, or for a model on a device CuPy, and the standard library.
    """

    def __init__(self, source: str, model: Model) -> None:
        self.source = source
        self._of = model
        self._defined: dict[str, Any] = {"__name__": "program"}
        exec(compile(source, "<program>", "exec"), self._defined)
        self._model = self._defined["tree"](dict(named_arrays(model.params)))

    def __repr__(self) -> str:
        return f"<Program of {self._of!r}, {self.source.count(chr(10))} lines>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the text to a file."""
        with replacing(path) as file:
            file.write(self.source.encode())

    def encode(self, source: Array, mask: Array) -> tuple[Array, list[Array], list[Array]]:
        """The mask, and the keys and values of the source for each decoder layer.

        Parameters
        ----------
        source : integer array, shape (batch, n)
            Tokens are not validated, here and in `step` and `greedy`.
        mask : boolean array, shape (batch, n)
            True = real token.
        """
        return self._defined["encode"](self._model, source, mask)

    def new_cache(self, batch: int, capacity: int) -> list[list[Array]]:
        """The cache of `step` before the first token: its own keys, then values, of each layer."""
        xp, c = self._of.xp, self._of.config.decoder
        a, shape = c.self_attention, (batch, c.self_attention.n_kv_heads, capacity)
        widths = (a.d_k, a.d_v)
        return [[xp.empty((*shape, d), self._of.dtype) for _ in range(c.n_layers)] for d in widths]

    def step(self, ids: Array, t: int, memory: Any, cache: list[list[Array]]) -> Array:
        """The logits after one more token of each row: (batch, 1, vocab_size).

        Parameters
        ----------
        ids : integer array, shape (batch, 1)
        t : int
            The position of these tokens: 0 for the start token.
        memory : tuple
            From `encode`.
        cache : list
            From `new_cache`; the keys and values of these tokens are stored in it.
        """
        return self._defined["step"](self._model, ids, t, memory, cache)

    def greedy(self, source: Array, mask: Array, n: int) -> Array:
        """The most probable next tokens, at most ``n``: integers (batch, up to n).

        They are those of `refseq2seq.generate`, up to rounding: that drops rows that have ended.
        """
        return self._defined["greedy"](self._model, source, mask, check_int("n", n, 1))


def write_out(model: Model) -> Program:
    """Write a model out as one program of NumPy: what this checkpoint computes, and nothing else.

    The forward pass runs once on arrays that note what is done to them; the program is what they
    noted. So it has no option and no branch that the model does not take, and its numbers have
    the bits of `refseq2seq.encode` and `refseq2seq.decode`.

    Parameters
    ----------
    model : Model
        For a model on a device, the program imports CuPy instead of NumPy.

    Returns
    -------
    Program

    Raises
    ------
    NotImplementedError
        If the forward pass cannot be written as a loop over equal layers, without branches on
        sizes. No model of `refseq2seq.convert` or `refseq2seq.presets` is refused.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> program = rs.write_out(rs.load("g2p"))
    >>> print(program.source[program.source.index("        scores = ") :].partition("\\n")[0])
            scores = q @ k.mT * 0.15811388300841897  # 1 / sqrt(d_k); (batch, n_heads, n, n)
    """
    check_model(model)
    return Program(_source(model), model)


def _source(model: Model) -> str:
    recorder, encode, step = record(model)
    nodes = [*encode, *step]
    live = reachable(node for node in nodes if node.kind == "result")
    calls = Calls(Copies(recorder.core), [n for n in nodes if n in live and n.kind == "operation"])
    bodies = [
        _body(encode, "source", calls, Comments(model.config, {"n_source": "n"})),
        _body(step, "ids", calls, Comments(model.config, {"n_target": "1", "n_so_far": "t + 1"})),
    ]
    dtype, xp = model.dtype.name, model.xp.__name__
    functions = [
        templates.ENCODE.format(body=bodies[0]),
        templates.STEP.format(body=bodies[1]),
        templates.greedy(model.config, dtype),
        *(line + "\n" for line in calls.copies.lines()),
        templates.ending(model),
    ]
    code = "".join(functions)
    head = templates.HEAD.format(
        n_parameters=count_parameters(model.config),
        dtype=dtype,
        usage=templates.USAGE_TEXT if templates.reads_text(model) else templates.USAGE_IDS,
        sizes=sizes(model.config),
        imports=templates.imports(code, calls.copies.imports),
        xp=xp,
    )
    return head + code


def _body(nodes: list[Node], ids: str, calls: "Calls", comments: Comments) -> str:
    """The lines of a function, after those of the sizes that they use."""
    body = Body(nodes, calls.expression, comments)
    lines = body.lines()
    sizes = {"batch": f"    batch = len({ids})", "n": f"    n = {ids}.shape[1]"}
    return "\n".join([*(line for name, line in sizes.items() if name in body.sizes), *lines])


class Calls:
    """How the operations of a run are called: what is usual is the default of the parameter."""

    def __init__(self, copies: Copies, nodes: list[Node]) -> None:
        self.copies = copies
        found: dict[str, list[dict[str, Any]]] = {}
        for node in nodes:
            copies.add(node.name)
            found.setdefault(node.name, []).append(node.keywords)
        copies.drop_unused_parameters()
        copies.splice()
        for name, calls in found.items():
            defaults: list[ast.expr] = []
            for parameter in copies.parameters(name):
                values = [call.get(parameter) for call in calls]
                literals = [x for x in values if not isinstance(x, Node)]
                if literals or defaults:
                    is_literal = len(literals) == len(values)
                    usual = max(literals, key=literals.count) if is_literal else None
                    defaults.append(literal(usual, literal))
            copies.copied[name].args.defaults = defaults

    def expression(self, name: str, arguments: dict[str, Any]) -> ast.expr:
        """The call; arguments that are Python values, and those after omitted ones, are named."""
        defaults, call = self.copies.defaults(name), ast.Call(ast.Name(name), [], [])
        omitted = False
        for parameter in self.copies.parameters(name):
            given = arguments.get(parameter)
            value = given if isinstance(given, ast.AST) else literal(given, literal)
            if layout.text(value) == defaults.get(parameter):
                omitted = True
            elif omitted or call.keywords or value is not given:
                call.keywords.append(ast.keyword(parameter, value))
            else:
                call.args.append(value)
        return call
