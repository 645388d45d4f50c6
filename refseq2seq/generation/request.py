"""Decoding requests: arguments, validated on the host before the first step."""

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Self

import numpy as np

from ..backend import Array
from ..checks import Source, Tokens, as_tokens, check_int, on_host
from ..config import ModelConfig
from ..model import Memory, Model, check_fits, check_model, checked_source
from ..settings import FILTERS
from ..taps import Tap, check_tap, no_tap
from .constraints import MAKERS, begin_suppress, forced_bos, forced_eos, minimum_length, suppress
from .contrastive import Amateur, check_amateur
from .sampling import MadeProcessor, Processor, State, described, no_uniforms


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """Sources, prefixes, conditions that end targets, and options. Arrays are on the host.

    A loop also keeps ``take(source_index)``: the same request with one row for each target.
    """

    source: np.ndarray | Memory  # (batch, n_source) or, of vectors, (batch, n_source, d)
    source_mask: np.ndarray | None  # (batch, n_source) True = real token; None with a Memory
    prefix: np.ndarray  # (batch, longest prefix) token ids, left-aligned
    n_prefix: np.ndarray  # (batch,)
    forced_bos: np.ndarray  # (batch,) the new token forced after a prefix of one; -1 for none
    max_new_tokens: int
    min_new_tokens: int = 0
    eos_ids: np.ndarray  # (n_eos,)
    copies: int = 1  # targets of each source
    amateurs: Sequence[Amateur] = ()
    use_cache: bool = True
    stop: Callable[[Any], Any] | None = None
    tap: Tap = no_tap

    @property
    def batch(self) -> int:
        """The number of rows: sources, or targets after ``take(source_index)``."""
        return len(self.n_prefix)

    @cached_property
    def source_index(self) -> np.ndarray:
        """The index of each target's source, (batch * copies,)."""
        return np.repeat(np.arange(self.batch), self.copies)

    @cached_property
    def start(self) -> int:
        """The length of the shortest prefix, after which decoding starts in every row."""
        return int(self.n_prefix.min())

    @cached_property
    def end(self) -> int:
        """The largest number of tokens that a target can have, prefix included."""
        return int(self.n_prefix.max()) + self.max_new_tokens

    def take(self, rows: np.ndarray) -> Self:
        """The request whose row i is row ``rows[i]`` of this one, with one target each.

        A Memory is not copied: it keeps its rows.
        """
        names = ["prefix", "n_prefix", "forced_bos"]
        if not isinstance(self.source, Memory):
            names += ["source", "source_mask"]
        return replace(self, copies=1, **{name: getattr(self, name)[rows] for name in names})

    def state(
        self,
        tokens: np.ndarray,
        n_new: np.ndarray,
        emitted: np.ndarray,
        source_index: np.ndarray,
        uniforms: Callable[[], np.ndarray] = no_uniforms,
    ) -> State:
        """What processors and choosers may use, if this request has one target in each row."""
        ids, mask = token_source(self.source, self.source_mask)
        return State(
            tokens=tokens,
            n_new=n_new,
            emitted=emitted,
            source_index=source_index,
            source=ids,
            source_mask=mask,
            uniforms=uniforms,
            eos_ids=self.eos_ids,
        )

    def forced(self, n: int, ended: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows that have a prefix token at position ``n`` and have not ended, and that token.

        Two arrays (batch,): a mask, and token ids, ``pad_id`` where the mask is False.
        """
        forced = (n < self.n_prefix) & ~ended
        if not forced.any():
            return forced, np.full(self.batch, pad_id)
        return forced, np.where(forced, self.prefix[:, n], pad_id)


def as_request(
    model: Model,
    source: Source,
    *,
    source_mask: Array | None,
    prefix: Tokens | None,
    forced_bos_ids: Sequence[int] | None,
    max_new_tokens: int | None,
    min_new_tokens: int,
    eos_ids: Sequence[int] | None,
    copies: int,
    amateurs: Sequence[Amateur],
    use_cache: bool,
    stop: Callable[[Any], Any] | None,
    tap: Tap,
) -> Request:
    """Validate the arguments of `refseq2seq.decode_steps` and return them as a request."""
    check_model(model)
    check_tap(tap)
    if not isinstance(use_cache, bool):
        raise TypeError(f"use_cache must be a bool, got {type(use_cache).__name__}")
    if stop is not None and not callable(stop):
        raise TypeError(f"stop must be a function of a step, got {stop!r}")
    if not isinstance(amateurs, Sequence):
        raise TypeError(
            f"amateurs must be a sequence, such as [rs.amateur(model)], got {amateurs!r}"
        )
    for amateur in amateurs:
        check_amateur(amateur, model)
    c = model.config
    source, mask = checked_source(model, source, source_mask)
    for amateur in amateurs:
        if amateur.reads_source:
            if isinstance(source, Memory):
                raise ValueError(
                    "an amateur cannot read the source of a Memory: give the source itself, or "
                    "make it with reads_source=False"
                )
            checked_source(amateur.model, source, mask)
    batch = source.batch if isinstance(source, Memory) else len(source)
    prefix_ids, n_prefix = as_prefix(prefix, batch, c)
    check_fits("prefix", int(n_prefix.max()), c.decoder)
    most = _most_new_tokens(max_new_tokens, int(n_prefix.max()), c.decoder.max_length)
    least = check_int("min_new_tokens", min_new_tokens, 0)
    if least > most:
        raise ValueError(f"min_new_tokens must be at most max_new_tokens = {most}, got {least}")
    return Request(
        source=source,
        source_mask=mask,
        prefix=prefix_ids,
        n_prefix=n_prefix,
        forced_bos=as_forced_bos(forced_bos_ids, n_prefix, c),
        max_new_tokens=most,
        min_new_tokens=least,
        eos_ids=checked_eos(c.eos_ids if eos_ids is None else eos_ids, c.decoder.vocab_size),
        copies=copies,
        amateurs=tuple(amateurs),
        use_cache=use_cache,
        stop=stop,
        tap=tap,
    )


def token_source(
    source: np.ndarray | Memory, mask: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The token ids of a source and their mask, for processors; both None if it has no ids."""
    is_tokens = not isinstance(source, Memory) and source.ndim == 2
    return (source, mask) if is_tokens else (None, None)  # type: ignore[return-value]


def as_prefix(prefix: Tokens | None, batch: int, c: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Prefixes (batch, longest prefix) and their lengths (batch,); by default the start token.

    A single row is the prefix of each source.
    """
    if prefix is None:
        return np.full((batch, 1), c.decoder_start_id), np.ones(batch, dtype=np.int64)
    ids, mask = as_tokens("prefix", prefix, c.decoder.vocab_size)
    if len(ids) not in (1, batch):
        raise ValueError(f"prefix must have {batch} rows, one for each source, got {len(ids)}")
    return np.broadcast_to(ids, (batch, ids.shape[1])), np.broadcast_to(mask.sum(axis=1), batch)


def as_forced_bos(
    forced_bos_ids: Sequence[int] | None, n_prefix: np.ndarray, c: ModelConfig
) -> np.ndarray:
    """The token forced as the first new one of each row (batch,), -1 for none.

    By default the config's, which has no effect after a prefix of several tokens.
    """
    batch, vocab_size = len(n_prefix), c.decoder.vocab_size
    if forced_bos_ids is None:
        token = -1 if c.forced_bos_id is None else c.forced_bos_id
        return np.where(n_prefix == 1, token, -1)
    ids = on_host("forced_bos_ids", forced_bos_ids)
    is_fit = ids.shape == (batch,) and ids.dtype.kind in "iu"
    if not is_fit or ids.min() < -1 or ids.max() >= vocab_size:
        raise ValueError(
            f"forced_bos_ids must be {batch} token ids, one for each source, from 0 to "
            f"{vocab_size - 1}, or -1 for none, got {forced_bos_ids!r:.200}"
        )
    if (unused := (ids >= 0) & (n_prefix != 1)).any():
        row = int(unused.argmax())
        raise ValueError(
            f"forced_bos_ids = {ids[row]} in row {row} needs a prefix of one token, got "
            f"{n_prefix[row]}: put it into the prefix, or pass -1"
        )
    return ids.astype(np.int64)


def _most_new_tokens(max_new_tokens: int | None, n_prefix: int, max_length: int | None) -> int:
    """``max_new_tokens``, checked to fit after the prefix; the last token is never an input."""
    if max_new_tokens is None:
        if max_length is None:
            raise ValueError("max_new_tokens is needed: the model has no position table to end at")
        return max_length + 1 - n_prefix
    max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1)
    if max_length is not None and n_prefix + max_new_tokens - 1 > max_length:
        raise ValueError(
            f"max_new_tokens = {max_new_tokens} after a prefix of {n_prefix} needs "
            f"{n_prefix + max_new_tokens - 1} positions; the model's table has {max_length}: "
            f"pass at most {max_length + 1 - n_prefix}"
        )
    return max_new_tokens


def checked_eos(eos_ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Validated token ids that end a row, (n_eos,); there may be none."""
    ids = on_host("eos_ids", eos_ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"eos_ids must be a sequence of token ids, got {eos_ids!r}")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(f"eos_ids must be from 0 to {vocab_size - 1}, got {eos_ids!r}")
    return ids.astype(np.int64)


def stopped(stop: Callable[[Any], Any], step: Any, batch: int) -> np.ndarray:
    """The rows that ``stop`` ends: boolean, (batch,)."""
    ended = on_host("the result of stop", stop(step)).astype(bool)
    if ended.shape not in ((), (batch,)):
        raise ValueError(f"stop must return a boolean or an array ({batch},), got {ended.shape}")
    return np.broadcast_to(ended, (batch,))


@dataclass(frozen=True)
class Rule:
    """A processor that the model's config or the request requires."""

    origin: str  # the field that requires it, for errors
    process: Processor

    def __call__(self, scores: Array, state: State) -> Array:  # noqa: D102
        return self.process(scores, state)


def named(process: Processor) -> str:
    """The name of a rule or a processor in errors."""
    if isinstance(process, Rule):
        return f"the rule {process.origin}"
    return f"the processor {described(process)}"


def with_rules(
    request: Request,
    c: ModelConfig,
    processors: Sequence[Processor],
    of_logits: Sequence[Processor] = (),
) -> tuple[Processor, ...]:
    """All processors in order: ``of_logits``, bans, the caller's others, forced tokens.

    Raises
    ------
    ValueError
        If a token is forced that the config or a caller's processor suppresses.
    """
    of_config = "of the model's config"
    is_first_forced = request.forced_bos >= 0
    bans, forced = [], []
    if request.min_new_tokens:
        bans.append(Rule("min_new_tokens", minimum_length(request.min_new_tokens)))
    if c.suppressed_ids:
        bans.append(Rule(f"suppressed_ids {of_config}", suppress(c.suppressed_ids)))
    if c.begin_suppressed_ids:
        ban = begin_suppress(c.begin_suppressed_ids, after=is_first_forced.astype(int))
        bans.append(Rule(f"begin_suppressed_ids {of_config}", ban))
    if is_first_forced.any():
        forced.append(Rule(_origin_of_forced_bos(request, c), forced_bos(request.forced_bos)))
    if c.forced_eos_id is not None:
        force = forced_eos(c.forced_eos_id, request.max_new_tokens)
        forced.append(Rule(f"forced_eos_id {of_config}", force))
    if forced:
        _check_forced(request, c, (*of_logits, *bans, *processors))
    return (*of_logits, *bans, *processors, *forced)


def _origin_of_forced_bos(request: Request, c: ModelConfig) -> str:
    """The argument that differs from the config, or the config's field."""
    of_config = (request.forced_bos == c.forced_bos_id) | (request.forced_bos < 0)
    return "forced_bos_id of the model's config" if of_config.all() else "forced_bos_ids"


def _check_forced(request: Request, c: ModelConfig, processors: Sequence[Processor]) -> None:
    """Raise if a forced token is suppressed at the same position.

    Other processors may ban it, because forced tokens win. Hugging Face raises an error too
    where a forced token is suppressed.
    """
    index, every_row = np.arange(request.batch), np.ones(request.batch, dtype=bool)
    eos = np.full(request.batch, -1 if c.forced_eos_id is None else c.forced_eos_id)
    positions = (  # origin, the tokens (batch,), -1 for none, and which new token they are
        (_origin_of_forced_bos(request, c), request.forced_bos, 0),
        ("forced_eos_id of the model's config", eos, request.max_new_tokens - 1),
    )
    for origin, tokens, n_new in positions:
        rows = np.flatnonzero(tokens >= 0)
        state = request.state(request.prefix, np.full(request.batch, n_new), every_row, index)
        for processor in processors:
            ban = processor.process if isinstance(processor, Rule) else processor
            if not (isinstance(ban, MadeProcessor) and ban.name in ("suppress", "begin_suppress")):
                continue
            scores = ban(np.zeros((request.batch, c.decoder.vocab_size)), state)
            if (banned := rows[scores[rows, tokens[rows]] < 0]).size:
                name, _, of = origin.partition(" ")
                raise ValueError(
                    f"{name} = {tokens[banned[0]]} {of or f'in row {banned[0]}'} is forced as new "
                    f"token {n_new}, where {named(processor)} bans it: remove one of the two"
                )


def check_options(call: str, options: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """Raise a TypeError for the first of ``options`` that none of the ``functions`` takes.

    Parameters
    ----------
    call : str
        The name of the function that received the options, for the error.
    options : mapping of names to values
    *functions : callable
        The functions that take the options as keyword arguments.
    """
    known = keywords(functions)
    for name, value in options.items():
        if name not in known:
            from .like import instead  # here, because it is rarely needed

            raise TypeError(f"rs.{call} has no argument {name!r}: {instead(name, value, known)}")


@cache
def keywords(functions: tuple[Callable[..., Any], ...]) -> list[str]:
    """The names of the arguments that the functions take only by keyword."""
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


_PROCESSORS = (*MAKERS, "renormalize_logits")
# Arguments -> the settings that they replace.
_REPLACED: dict[str, tuple[str, ...]] = {
    "max_new_tokens": ("max_new_tokens", "max_length"),
    "min_new_tokens": ("min_new_tokens", "min_length"),
    "n_best": ("num_return_sequences",),
    "processors": _PROCESSORS,
    "choose": ("do_sample", *FILTERS, *_PROCESSORS),
}


def warn_of_settings(call: str, model: Model, given: Collection[str]) -> None:
    """Warn if a model has settings that a call does not apply.

    Parameters
    ----------
    call : str
        The name of the function.
    model : Model
    given : collection of str
        The arguments of the call; each replaces the settings of its kind.
    """
    if model.settings is None:
        return
    replaced = {name for argument in given for name in _REPLACED.get(argument, (argument,))}
    left = {n: value for n, value in model.settings.in_effect.items() if n not in replaced}
    if left:
        left |= dict(left.pop("not_implemented", ()))
        told = ", ".join(f"{name} = {value}" for name, value in left.items())
        warnings.warn(
            f"rs.{call} does not apply the model's settings {told}: call "
            "rs.generate_as_configured, or remove them: dataclasses.replace(model, settings=None)",
            stacklevel=3,
        )
