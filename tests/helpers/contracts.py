"""Documented shapes, executed: what a docstring says of an array is checked in every call.

    x : array, shape (..., d_in)                       a parameter or a result
    q, k : arrays, shapes (batch, n_q) and (batch, n_k)
    bias : array, shape broadcastable to (..., n_q, n_k), optional
    positions : integer array, shape (n,) or (batch, n)
    \"\"\"... (batch, n, d_model) -> (batch, n_heads, n, d_k).\"\"\"   first array in, result out
    keys: Array  # (batch, n_heads, n, d_k)            a field of a dataclass

A letter means the same number throughout one call; ``...`` the same leading axes;
``[batch,]`` an axis that may be missing. `install` wraps every function and dataclass of the
package that documents a shape. It is done once, by conftest.py, for the whole suite.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import sys
import textwrap
from types import FunctionType

import numpy as np

GROUP = r"\((?:[^()]|\([^()]*\))*\)"
SHAPES = re.compile(
    rf"(?:arrays?(?: views| on the host)?,? (?:shapes? )?|shapes? )(broadcastable to )?"
    rf"({GROUP}(?:,? (?:and|or)[^(]* {GROUP})*)"
)
KINDS = {"boolean": "b", "integer": "iu", "int64": "i", "float64": "f"}
CALLS: dict[str, int] = {}  # how often each contract was checked


class ContractError(AssertionError):
    """A call does not keep to its documentation."""


@dataclasses.dataclass(frozen=True)
class Documented:
    """What is said of one array: one of some shapes, perhaps a dtype kind."""

    shapes: tuple[tuple[str, ...], ...]
    broadcastable: bool
    kind: str | None

    def check(self, name, x, env):
        items = x if isinstance(x, tuple) else (x,)
        for item in items:
            if hasattr(item, "shape"):
                self._check_array(name, item, env)

    def _check_array(self, name, x, env):
        if self.kind and kind_of(x) not in KINDS[self.kind]:
            raise ContractError(f"{name} is documented as {self.kind}, got {x.dtype}")
        trials = [dict(env) for _ in self.shapes]
        fits = [
            trial
            for dims, trial in zip(self.shapes, trials, strict=True)
            if self._fits(dims, tuple(x.shape), trial)
        ]
        if fits:  # where several do, a letter is known only if all say the same of it
            first, *rest = fits
            env.update({s: n for s, n in first.items() if all(t.get(s) == n for t in rest)})
            return
        known = {symbol: size for symbol, size in env.items() if isinstance(size, int | tuple)}
        documented = " or ".join(f"({', '.join(dims)})" for dims in self.shapes)
        raise ContractError(
            f"{name} is documented with the shape {documented}, got {tuple(x.shape)}; {known}"
        )

    def _fits(self, dims, shape, env):
        if self.broadcastable:
            return broadcasts(dims, shape, env)
        dims = [dim for dim in dims if not (dim.startswith("[") and len(shape) < len(dims))]
        dims = [dim.strip("[]") for dim in dims]
        if "..." in dims:
            at = dims.index("...")
            n = len(shape) - len(dims) + 1
            if n < 0 or env.setdefault("...", shape[at : at + n]) != shape[at : at + n]:
                return False
            dims, shape = dims[:at] + dims[at + 1 :], shape[:at] + shape[at + n :]
        return len(dims) == len(shape) and all(map(functools.partial(same, env), dims, shape))


def broadcasts(dims, shape, env):
    """Trailing axes are 1 or as documented; what is not known yet stays unknown."""
    dims = [dim for dim in dims if dim != "..."]
    for dim, size in zip(reversed(dims), reversed(shape), strict=False):
        if size != 1 and dim in env and env[dim] != size:
            return False
    return True


def same(env, dim, size):
    """Whether an axis documented as ``dim`` may have this size; binds a new letter."""
    if dim.isdigit():
        return int(dim) == size
    if dim.isidentifier():
        return env.setdefault(dim, size) == size
    factors = dim.split(" * ")
    unknown = [f for f in factors if f.isidentifier() and f not in env]
    if len(unknown) == 1 and all(f.isidentifier() or f.isdigit() for f in factors):
        rest = value(" * ".join(f for f in factors if f != unknown[0]), env)
        return rest is None or (size % rest == 0 and same(env, unknown[0], size // rest))
    expected = value(dim, env)
    return expected is None or expected == size


@functools.cache
def compiled(expression):
    return compile(expression, "shape", "eval")


def value(expression, env):
    """The number that an expression stands for, or None if something in it is not known."""
    try:
        return eval(compiled(expression), {"len": len}, env)
    except (NameError, SyntaxError, TypeError):
        return None


def documented(text):
    """All that a line says of shapes, in order; more than one where names share the line."""
    match = SHAPES.search(text)
    if match is None:
        return []
    kind = next((kind for kind in KINDS if text.lstrip().startswith(kind)), None)
    groups = [axes(group) for group in re.findall(GROUP, match[2])]
    broadcastable = match[1] is not None
    if " and " in match[2]:
        return [Documented((group,), broadcastable, kind) for group in groups]
    return [Documented(tuple(groups), broadcastable, kind)]


def axes(group):
    """The axes that a text such as ``([batch,] n, n_heads * d)`` names."""
    found = re.findall(r"\[[^\]]*\]|\.\.\.|(?:[^,()\[\]]|\([^()]*\))+", group[1:-1])
    return tuple(axis.strip().replace(",]", "]") for axis in found if axis.strip())


def contract(doc):
    """From a docstring: parameters (name -> Documented) and results (a list)."""
    doc = inspect.cleandoc(doc or "")
    parameters, results = {}, []
    for title, body in sections(doc).items():
        for line in body.splitlines():
            if not line or line.startswith(" "):
                continue
            names, colon, said = line.partition(" : ")
            found = documented(said if colon else line)
            if title == "Parameters" and found:
                names = [name.strip(" *") for name in names.split(",")]
                found = found * len(names) if len(found) == 1 else found
                parameters |= dict(zip(names, found, strict=True))
            elif title == "Returns" and found:
                names = [name for name in names.split(",") if colon]
                results += found * max(1, len(names)) if len(found) == 1 else found
    if arrow := re.search(rf"({GROUP}) -> ({GROUP})", doc.partition("\n\n")[0]):
        first, last = (documented(f"array {group}") for group in arrow.groups())
        return {"": first[0]}, last
    return parameters, results


def sections(doc):
    parts = re.split(r"^(\w+)\n-{3,}$", doc, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def watched(function, doc=None):
    """The function, with its contract checked in every call that returns.

    A call that raises is the function's own affair: it refuses what does not fit.
    """
    parameters, results = contract(doc or function.__doc__)
    if not parameters and not results:
        return function
    names = list(inspect.signature(function).parameters)
    name = f"{function.__module__}.{function.__qualname__}"
    CALLS.setdefault(name, 0)
    passed = set()  # the forms of calls that were found good: a form need not be checked twice

    @functools.wraps(function)
    def checked(*args, **kwargs):
        result = function(*args, **kwargs)
        forms = (*map(form, args), *kwargs, *map(form, kwargs.values()), form(result))
        if forms not in passed:
            given = dict(zip(names, args, strict=False)) | kwargs
            letters = {n: x for n, x in given.items() if isinstance(x, int | list | tuple)}
            for parameter, said in parameters.items():
                x = given.get(parameter) if parameter else first_array(given)
                said.check(f"{name}: {parameter or 'its array'}", x, letters)
            several = isinstance(result, tuple) and len(results) > 1
            for said, x in zip(results, result if several else (result,), strict=False):
                said.check(f"{name}: its result", x, letters)
            passed.add(forms)
        CALLS[name] += 1
        return result

    return checked


def kind_of(x):
    """The kind of its dtype as NumPy writes it; other libraries' dtypes have only a name."""
    return np.dtype(str(x.dtype).rpartition(".")[2]).kind


def form(x):
    """All of a value that a contract depends on."""
    if isinstance(x, np.ndarray):
        return x.shape, x.dtype.kind
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return x.shape, getattr(x.dtype, "kind", x.dtype)  # a tensor's dtype has none
    if isinstance(x, tuple) and x and hasattr(x[0], "shape"):
        return tuple(map(form, x))
    return x if isinstance(x, int) else len(x) if isinstance(x, list | tuple) else None


def first_array(given):
    return next(x for x in given.values() if hasattr(x, "shape"))


def watch_fields(cls):
    """Check the fields of a dataclass, by the comments beside them, when one is made."""
    said = {}
    for line in textwrap.dedent(inspect.getsource(cls)).splitlines():
        field = re.match(rf"    (\w+): [^#]*#[^(]*({GROUP}(?:,? or[^(]*{GROUP})*)", line)
        if field and (found := documented(f"array {field[2]}")):
            said[field[1]] = found[0]
    if not said:
        return
    name, init = f"{cls.__module__}.{cls.__qualname__}", cls.__init__
    CALLS.setdefault(name, 0)

    passed = set()

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        init(self, *args, **kwargs)
        values = {field: getattr(self, field) for field in said}
        if any(hasattr(x, "recorder") for x in values.values()):
            return  # its sizes must not be compared: see refseq2seq.written.recording
        forms = tuple(map(form, values.values()))
        if forms not in passed:
            letters = {}
            for field, x in values.items():
                said[field].check(f"{name}.{field}", x, letters)
            passed.add(forms)
        CALLS[name] += 1

    cls.__init__ = checked


def modules():
    """Every module of the package that NumPy alone imports."""
    for name in ("cli", "convert", "explain", "testing"):
        importlib.import_module(f"refseq2seq.{name}")
    return [m for name, m in sorted(sys.modules.items()) if name.split(".")[0] == "refseq2seq"]


def install():
    """Watch all of the package: wherever a module holds a function, it holds the watched one."""
    wrapped = {}
    for module in modules():
        for x in list(vars(module).values()):
            if getattr(x, "__module__", None) != module.__name__:
                continue
            if isinstance(x, FunctionType):
                wrapped[x] = watched(x, inherited(module, x))
            elif inspect.isclass(x):
                watch_class(x)
    for module in modules():
        for name, x in list(vars(module).items()):
            if isinstance(x, FunctionType):
                setattr(module, name, wrapped.get(x, x))
            elif isinstance(x, dict) and not name.startswith("__"):
                functions = {key: f for key, f in x.items() if isinstance(f, FunctionType)}
                x.update({key: wrapped.get(f, f) for key, f in functions.items()})


def inherited(module, function):
    """Its docstring; where that says "Arguments as in `other`", with the sections of the other."""
    doc = inspect.cleandoc(function.__doc__ or "")
    if reference := re.search(r"(?<=rguments)[^.`]* as in `(\w+)`", doc):
        other = vars(module).get(reference[1])
        doc += "\n\n" + inspect.cleandoc(other.__doc__).partition("\n\n")[2] if other else ""
    return doc


def watch_class(cls):
    for name, x in list(vars(cls).items()):
        if isinstance(x, FunctionType) and not name.startswith("__"):
            setattr(cls, name, watched(x))
    if dataclasses.is_dataclass(cls):
        watch_fields(cls)
