"""From scores to a token: processors, choosers, and the uniform numbers of random choices.

A processor is a function of the scores ``(batch, vocab_size)`` and the `State` of the decoding
that returns scores; -inf removes a token. The modules ``filters`` and ``constraints`` define
them. A chooser has processors and a function that picks a token: `greedy` picks the best score,
`sample` inverts the cumulative distribution at one uniform number per row and step. The uniforms
come from a counter-based generator keyed by (seed, row id), so that the samples of a row do not
depend on the backend or on the other rows of the batch.
"""

import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec

import numpy as np

from ..backend import Array, array_namespace, freeze
from ..checks import on_host
from ..ops import log_softmax, softmax


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """The second argument of processors and choosers. Arrays are on the host and read-only."""

    tokens: np.ndarray  # (batch, n) prefix and new tokens so far; pad_id after a row's end
    n_new: np.ndarray  # (batch,) how many of them are new
    emitted: np.ndarray  # (batch,) True = the row takes the token that is chosen now
    source_index: np.ndarray  # (batch,) index of each row's source in the batch; beams share one
    source: np.ndarray | None  # (batch, n_source) token ids; None if it is frames or a Memory
    source_mask: np.ndarray | None  # (batch, n_source) True = real token
    uniforms: Callable[[], np.ndarray]  # returns this step's, (batch,) float64 in [0, 1)
    eos_ids: Sequence[int] | np.ndarray = ()  # (n_eos,) the token ids that end a row

    def __post_init__(self) -> None:
        freeze(self.tokens, self.n_new, self.emitted, self.source_index)
        freeze(self.source, self.source_mask, self.eos_ids)


SAMPLE_STRIDE = 2**32  # the row id of sample j of a source is the source's plus j times this

Processor = Callable[[Array, State], Array]
"""``(scores (batch, vocab_size), state) -> scores``; must not change its input."""

Pick = Callable[[Array, State], Array]
"""``(scores (batch, vocab_size), state) -> token ids (batch,)``."""

P = ParamSpec("P")


class MadeProcessor:
    """A processor that stores the call that made it: repr shows it, and unpickling repeats it."""

    def __init__(self, maker: Callable[..., Processor], args: Any, kwargs: Any) -> None:
        self.module, self.name = maker.__module__, maker.__name__
        self.args, self.kwargs = args, kwargs
        self._process = maker(*args, **kwargs)

    def __call__(self, scores: Array, state: State) -> Array:  # noqa: D102
        return self._process(scores, state)

    def __repr__(self) -> str:
        named = [f"{name}={described(x)}" for name, x in self.kwargs.items()]
        return f"{self.name}({', '.join([*map(described, self.args), *named])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_again, (self.module, self.name, self.args, self.kwargs)


def _make_again(module: str, name: str, args: Any, kwargs: Any) -> Processor:
    return getattr(import_module(module), name)(*args, **kwargs)


def makes_processor(maker: Callable[P, Processor]) -> Callable[P, Processor]:
    """Decorator for functions that return a processor: they then return a `MadeProcessor`."""

    @wraps(maker)
    def make(*args: P.args, **kwargs: P.kwargs) -> Processor:
        return MadeProcessor(maker, args, kwargs)

    make.is_maker = True  # type: ignore[attr-defined]
    return make


def apply(processors: Sequence[Processor], scores: Array, state: State) -> Array:
    """Apply the processors in order to scores (batch, vocab_size)."""
    if isinstance(scores, np.ndarray):
        scores = scores.view()
        scores.flags.writeable = False
    for process in processors:
        before, scores = scores, process(scores, state)
        kind = getattr(getattr(scores, "dtype", None), "kind", type(scores).__name__)
        if kind != "f" or scores.shape != before.shape or isinstance(scores, np.ma.MaskedArray):
            found = f"{scores.dtype} {scores.shape}" if hasattr(scores, "shape") else kind
            raise TypeError(
                f"a processor must return floating-point scores of the shape {before.shape}; "
                f"{described(process)} returns {found}"
            )
    return scores


def to_log_probs(scores: Array, state: State) -> Array:
    """A processor: the log-softmax of the scores, in nats."""
    return log_softmax(scores)


def check_processors(processors: Any, instead: str) -> tuple[Processor, ...]:
    """The processors as a tuple. Raise unless each is a processor.

    Parameters
    ----------
    processors : iterable of Processor
    instead : str
        The code that errors suggest for a processor: ``rs.greedy({})`` or ``processors=[{}]``.
    """
    if not isinstance(processors, Iterable):
        raise TypeError(
            f"processors must be a sequence: write {instead.format(_written(processors))}"
        )
    processors = tuple(processors)
    for processor in processors:
        if getattr(processor, "is_maker", False):
            call = f"rs.{processor.__name__}(...)"
            raise TypeError(
                f"rs.{processor.__name__} makes a processor when it is called: write "
                f"{instead.format(call)}"
            )
        if isinstance(processor, Chooser):
            inside = ", ".join(map(_written, processor.processors)) or "..."
            raise TypeError(
                "a processor must be a function of scores and state, and a chooser such as "
                f"rs.greedy(...) picks a token: write {instead.format(inside)}"
            )
        if not callable(processor):
            raise TypeError(
                "a processor must be a function of scores and state, such as rs.top_k(5); got "
                f"{reprlib.repr(processor)}: write {instead.format('rs.top_k(5)')}"
            )
    return processors


def _written(processor: Any) -> str:
    return f"rs.{processor!r}" if isinstance(processor, MadeProcessor) else described(processor)


def described(x: Any) -> str:
    """The call or name of a processor, for errors; or an argument of such a call, shortened."""
    if isinstance(x, MadeProcessor):
        return repr(x)
    return getattr(x, "__name__", None) or reprlib.repr(x)


@dataclass(frozen=True)
class Chooser:
    """Processors, applied in order, and a function that picks tokens from the resulting scores.

    Parameters
    ----------
    processors : tuple of Processor
    pick : function ``(scores, state) -> tokens``
        From (batch, vocab_size) to integers (batch,).
    """

    processors: tuple[Processor, ...]
    pick: Pick

    def __post_init__(self) -> None:
        check_processors(self.processors, instead="rs.greedy({})")


def check_chooser(choose: Any) -> Chooser:
    """``choose`` itself. Raise unless it is a `Chooser`; the error for a processor shows how to
    wrap it.
    """
    if isinstance(choose, MadeProcessor):
        raise TypeError(
            f"choose must be a Chooser, got the processor {choose!r}: write "
            f"rs.sample({_written(choose)}) or rs.greedy({_written(choose)})"
        )
    if not isinstance(choose, Chooser):
        raise TypeError(f"choose must be a Chooser, such as rs.greedy(), got {choose!r}")
    return choose


def greedy(*processors: Processor) -> Chooser:
    """Pick the token with the best score; of equal scores, the lowest id.

    Examples
    --------
    >>> greedy().pick(np.array([[1.0, 3.0, 3.0]]), None)
    array([1])
    """
    return Chooser(processors, _best)


def _best(scores: Array, state: State) -> Array:
    return scores.argmax(axis=-1)


GREEDY = greedy()


def sample(*processors: Processor) -> Chooser:
    """Draw a token from softmax(scores) by inverting its cumulative distribution.

    The token is the first, in the order of ids, whose cumulative probability exceeds the
    row's uniform number u; a token of probability 0 is never drawn. The cumulative sum
    is in float64. `torch.multinomial` draws by another method: see `exponential_race`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> state = SimpleNamespace(uniforms=lambda: np.array([0.2, 0.6, 0.9]))
    >>> sample().pick(np.log(np.array([[0.5, 0.3, 0.2]] * 3)), state)
    array([0, 1, 2])
    """
    return Chooser(processors, _inverse_cdf)


def _inverse_cdf(scores: Array, state: State) -> Array:
    xp = array_namespace(scores)
    cumulative = xp.cumsum(softmax(scores.astype("float64")), axis=-1)
    total = cumulative[:, -1:]
    u = xp.asarray(state.uniforms())[:, None]
    return (cumulative > u * total).argmax(axis=-1)  # u <= 1 - 2^-53: u * total < total


class Uniforms:
    """The uniform numbers of a generation's rows, drawn at the first call.

    Parameters
    ----------
    seed, row_ids, uniforms
        As in `refseq2seq.decode_steps`.
    batch, copies, n_steps : int
        The numbers of sources, of targets per source, and of new tokens.
    """

    def __init__(
        self,
        seed: int,
        row_ids: Sequence[int] | None,
        uniforms: Array | None,
        *,
        batch: int,
        copies: int,
        n_steps: int,
    ) -> None:
        ids = range(batch) if row_ids is None else on_host("row_ids", row_ids).tolist()
        if not isinstance(ids, list | range):
            raise TypeError(f"row_ids must be a sequence of ints, got {row_ids!r}")
        if len(ids) != batch:
            raise ValueError(f"row_ids must have {batch} ids, one for each source, got {len(ids)}")
        check_keys(seed, ids)
        if copies > 1 and max(ids) >= SAMPLE_STRIDE:
            raise ValueError(f"row_ids must be below 2**32 for several samples, got {max(ids)}")
        self._seed, self._n_steps = seed, n_steps
        self._ids = [int(row_id) + SAMPLE_STRIDE * j for row_id in ids for j in range(copies)]
        self._table = None if uniforms is None else self._checked(uniforms)

    def __call__(self, n_new: np.ndarray) -> np.ndarray:
        """The number for each row's new token number ``n_new``, counted from 0: both (rows,)."""
        if self._table is None:
            self._table = draw_uniforms(self._seed, self._ids, self._n_steps)
        return self._table[np.arange(len(n_new)), np.minimum(n_new, self._n_steps - 1)]

    def _checked(self, uniforms: Array) -> np.ndarray:
        host, shape = on_host("uniforms", uniforms), (len(self._ids), self._n_steps)
        if host.dtype.kind not in "fiu":
            raise TypeError(f"uniforms must be numbers, got {host.dtype}")
        host = host.astype(np.float64)
        if host.ndim != 2 or host.shape[0] != shape[0] or host.shape[1] < shape[1]:
            raise ValueError(
                f"uniforms must have the shape (batch, max_new_tokens) = {shape}, "
                f"or more columns, got {host.shape}"
            )
        if not ((host >= 0) & (host < 1)).all():
            raise ValueError("uniforms must be in [0, 1)")
        return host


def no_uniforms() -> np.ndarray:
    """The ``uniforms`` of a `State` in functions that draw none: it raises an error."""
    raise ValueError("beam search and score draw no uniform numbers: use other processors")


def draw_uniforms(seed: int, row_ids: Sequence[int] | np.ndarray, n_steps: int) -> np.ndarray:
    """The uniform numbers that `sample` uses, in [0, 1).

    Row i contains the first ``n_steps`` doubles of ``numpy.random.Philox`` (Salmon et al.
    2011) with the 128-bit key (seed, row_ids[i]), low word first. Philox4x64-10 in any language
    draws the same numbers: counters 1, 2, 3, ... give four words each (NumPy increments the
    counter before it draws), and a word gives the double (word >> 11) * 2^-53.

    Parameters
    ----------
    seed : int
        0 to 2^64 - 1.
    row_ids : sequence of int
        One per row, each 0 to 2^64 - 1.
    n_steps : int

    Returns
    -------
    float64 array, shape (len(row_ids), n_steps)
    """
    check_keys(seed, row_ids)
    uniforms = np.empty((len(row_ids), n_steps))
    for row, row_id in zip(uniforms, row_ids, strict=True):
        key = np.array([seed, row_id], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=row)
    return uniforms


def check_keys(seed: Any, row_ids: Iterable[Any]) -> None:
    """Raise unless all are unsigned 64-bit integers, which key a generator."""
    kinds = (("seed must be an integer", [seed]), ("row_ids must be integers", row_ids))
    for what, values in kinds:
        for value in values:
            if not (isinstance(value, int | np.integer) and 0 <= value < 2**64):
                raise ValueError(f"{what} from 0 to 2**64 - 1, got {value!r}")
