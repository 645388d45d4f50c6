"""Generation with a checkpoint's own settings.

    found = generate_as_configured(model, source)
    found = generate_as_configured(model, source, beams=1, max_new_tokens=20)

`as_configured` translates the settings into arguments of `refseq2seq.generate` or
`refseq2seq.beam_search`, which do not apply settings. The rules and their order are those of
Hugging Face transformers 5.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import Array
from ..checks import Source, Tokens, UnsupportedFeature, as_tokens
from ..config import ModelConfig, annotations
from ..model import Model, check_model
from ..settings import FILTERS, Settings
from ..shown import Shown
from ..text import name_tokens
from . import like
from .beam import beam_search, beam_steps
from .constraints import MAKERS
from .filters import renormalize_logits
from .loop import decode_steps, generate
from .request import keywords
from .sampling import Chooser, Processor, sample

PROMPT = {"language", "task", "forced_decoder_ids"}
"""Fields of Whisper that determine the prompt, and have no effect beside a given one."""

DEFAULT_NEW_TOKENS = 20
"""The maximum number of new tokens where the settings have none, as in transformers."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ConfiguredGeneration(Shown):
    """Targets generated with a model's settings. Arrays are on the host."""

    tokens: np.ndarray  # (batch, n_return, n) new tokens, EOS kept, pad_id after them
    lengths: np.ndarray  # (batch, n_return) new tokens, EOS counted
    log_probs: np.ndarray  # (batch, n_return, n) in nats; 0 after the end
    scores: np.ndarray | None  # (batch, n_return) of beam search, best first; otherwise None


def generate_as_configured(
    model: Model, source: Source, source_mask: Array | None = None, **overrides: Any
) -> ConfiguredGeneration:
    """Generate with the model's own settings: greedy tokens, samples or hypotheses of beam search.

    The result is that of ``generate(source)`` in Hugging Face transformers, without the start
    token.

    Parameters
    ----------
    model : Model
        With ``settings``, such as a converted model of transformers.
    source : array (batch, n_source) or (batch, n_source, d), or list of rows
        Token ids, frames, embeddings or a `Memory`: see `refseq2seq.encode`.
    source_mask : boolean array, shape (batch, n_source), optional
        True = real token.
    **overrides
        As for `as_configured`.

    Returns
    -------
    ConfiguredGeneration
        Log-probabilities are those of `Generation` or, for beams, of `BeamSearch`.

    Raises
    ------
    ValueError, TypeError
        As in `as_configured`, `generate` and `beam_search`.

    Notes
    -----
    transformers draws samples from PyTorch's generator. To draw the same samples, record its noise
    and pass ``pick=functools.partial(rs.exponential_race, noise)``. In transformers, the padding of
    a source is part of the source for ``encoder_repetition_penalty`` and
    ``encoder_no_repeat_ngram``; here it is not.
    """
    how = as_configured(model, **overrides)
    decode: Callable[..., Any] = beam_search if "beams" in how else generate
    out = decode(replace(model, settings=None), source, source_mask=source_mask, **how)
    n_return, n = how.get("n_best") or how["num_return_sequences"], out.tokens.shape[-1]
    found = ConfiguredGeneration(
        tokens=out.tokens.reshape(-1, n_return, n),
        lengths=out.lengths.reshape(-1, n_return),
        log_probs=out.log_probs.reshape(-1, n_return, n),
        scores=getattr(out, "scores", None),
    )
    return name_tokens(found, model.target_vocabulary)


def as_configured(
    model: Model,
    *,
    prefix: Tokens | None = None,
    processors: Sequence[Processor] = (),
    pick: Callable[..., Chooser] = sample,
    **overrides: Any,
) -> dict[str, Any]:
    """The arguments of `refseq2seq.generate` that apply a model's settings.

    If the settings have more than one beam, the result has ``beams`` and the other arguments of
    `refseq2seq.beam_search`.

    Parameters
    ----------
    model : Model
        With ``settings``.
    prefix : integer array (batch, n), or list of lists of token ids, optional
        As in `decode_steps`. By default the start token and the settings' ``prefix``. For Whisper,
        `refseq2seq.speech.prompt` makes it, and the language of the settings has no effect.
    processors : sequence of Processor
        Further ones, such as `timestamp_rules`. They apply after those of the settings and before
        the filters of sampling, like ``logits_processor`` in transformers. Settings of Whisper with
        ``return_timestamps`` need `timestamp_rules`.
    pick : function of processors
        Draws the samples: `sample`, or ``partial(exponential_race, noise)``.
    **overrides
        Fields of `refseq2seq.settings.Settings`, such as ``beams=1``, replace those of the model.
        Arguments of `decode_steps` or `beam_steps` that no setting determines, such as ``seed`` or
        ``tap``, are passed on.

    Raises
    ------
    UnsupportedFeature
        If an option of the settings is not implemented, or they ask for samples of beam search.
        The message names the option.
    ValueError
        If the model has no settings, or they contradict each other.
    TypeError
        If an override has an unknown name or the wrong type.

    Warns
    -----
    UserWarning
        If the minimum length exceeds the maximum. No target can then end before the maximum.

    Examples
    --------
    >>> import refseq2seq as rs
    >>> from dataclasses import replace
    >>> settings = rs.Settings(beams=3, max_length=20, no_repeat_ngram=2)
    >>> model = replace(rs.load("g2p"), settings=settings)
    >>> how = as_configured(model, early_stopping=True)
    >>> how["beams"], how["early_stopping"], how["processors"], how["max_new_tokens"]
    (3, True, [no_repeat_ngram(2)], 19)
    """
    check_model(model)
    if model.settings is None:
        raise ValueError(
            "the model has no settings, which converted models of transformers have: call "
            "rs.generate or rs.beam_search with your own"
        )
    settings, passed = _overridden(model.settings, overrides)
    processors = [*processors]
    satisfied = PROMPT if prefix is not None else set()
    if any(getattr(process, "name", None) == "timestamp_rules" for process in processors):
        satisfied = satisfied | {"return_timestamps"}
    _check_implemented(settings, satisfied)
    if prefix is None and settings.prefix:
        prefix = [[model.config.decoder_start_id, *settings.prefix]]
    length = _length(settings, model.config, prefix)
    passed |= length if prefix is None else length | {"prefix": prefix}
    asked = settings.asked
    own = [make(asked[name]) for name, make in MAKERS.items() if name in asked]
    processors = [*own, *processors]
    last = [renormalize_logits()] if settings.renormalize_logits else []
    if settings.beams > 1:
        return {
            "beams": settings.beams,
            "n_best": settings.num_return_sequences,
            "length_penalty": settings.length_penalty,
            "early_stopping": settings.early_stopping,
            "processors": [*processors, *last],
            **passed,
        }
    filters = {
        theirs: getattr(settings, name) for theirs, name in like.SETTINGS.items() if name in FILTERS
    }
    choose = like.huggingface(
        processors=processors, do_sample=settings.do_sample, pick=pick, **filters
    )
    choose = replace(choose, processors=(*choose.processors, *last))
    n = settings.num_return_sequences
    return {"choose": choose, "num_return_sequences": n, **passed}


def _overridden(settings: Settings, overrides: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings with the overrides of their fields, and the other overrides."""
    fields = annotations(Settings)
    determined = {"choose", "logits_processors", "source_mask"}
    arguments = {*keywords((decode_steps, beam_steps))} - determined
    other_names = like.SETTINGS | {"n_best": "num_return_sequences"}
    for name, value in overrides.items():
        if name not in fields and name not in arguments:
            ours = other_names.get(name)
            known = ", ".join([*fields, *sorted(arguments - fields.keys())])
            cure = f"write {ours}={value!r}" if ours else f"known are {known}"
            raise TypeError(f"rs.generate_as_configured has no argument {name!r}: {cure}")
    new = {name: value for name, value in overrides.items() if name in fields}
    for limit in ("max", "min"):  # one of the two limits replaces the other
        if f"{limit}_length" in new:
            new.setdefault(f"{limit}_new_tokens", None)
    if new.get("max_new_tokens") is not None:
        new.setdefault("max_length", None)
    passed = {name: value for name, value in overrides.items() if name not in fields}
    return settings.with_fields(new), passed


def _check_implemented(settings: Settings, satisfied: set[str]) -> None:
    cures = dict.fromkeys(
        PROMPT, 'prefix=[rs.speech.prompt(model.target_vocabulary, "de")], for one'
    )
    cures["return_timestamps"] = "processors=[rs.timestamp_rules(...)]"
    for name, value in settings.not_implemented:
        if name not in satisfied:
            raise UnsupportedFeature(
                f"the model's settings have {name} = {value}, which is not implemented: "
                f"pass {cures.get(name, 'not_implemented=() to ignore it')}"
            )
    if settings.beams > 1 and settings.do_sample:
        raise UnsupportedFeature(
            f"samples of beam search, which the settings do_sample and beams = {settings.beams} "
            "ask for: pass do_sample=False or beams=1"
        )
    n = settings.num_return_sequences
    if n > settings.beams and not settings.do_sample:
        raise ValueError(
            f"num_return_sequences = {n} must be at most beams = {settings.beams} unless do_sample"
        )


def _length(settings: Settings, c: ModelConfig, prefix: Tokens | None) -> dict[str, int]:
    """``max_new_tokens`` and ``min_new_tokens``, from limits that may count the prefix."""
    lengths = {1}
    if prefix is not None:
        lengths = {*as_tokens("prefix", prefix, c.decoder.vocab_size)[1].sum(axis=1).tolist()}
    n_prefix = max(lengths)
    longest, least = settings.max_length, settings.min_new_tokens
    if len(lengths) > 1 and (longest is not None or (least is None and settings.min_length)):
        raise ValueError(
            f"max_length and min_length count the prefix, and prefixes have lengths {lengths}: "
            "pass max_new_tokens and min_new_tokens"
        )
    maxima = [] if settings.max_new_tokens is None else [settings.max_new_tokens]
    if longest is not None:
        if longest <= n_prefix:
            raise ValueError(
                f"max_length = {longest} leaves no new token after {n_prefix} of the prefix: pass "
                "max_new_tokens"
            )
        maxima.append(longest - n_prefix)
    table = c.decoder.max_length
    room = DEFAULT_NEW_TOKENS if table is None else min(DEFAULT_NEW_TOKENS, table - n_prefix)
    most = min(maxima, default=room)
    if least is None:
        least = max(settings.min_length - n_prefix, 0)
    if least > most:
        warnings.warn(
            f"the settings ask for at least {least} and at most {most} new tokens: no target can "
            "end before the maximum",
            stacklevel=4,
        )
    return {"max_new_tokens": most, "min_new_tokens": min(least, most)}
