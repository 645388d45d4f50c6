"""The situations of cases: changes of an ordinary case that reveal a mistake."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from ...backend import Array
from ...config import FrameInput, ModelConfig
from ...model import Model
from ...params import build_params, named_arrays
from ..rounding import rounded
from .cases import Case, outputs_of

N_SOURCE, N_TARGET, N_NEW = 5, 4, 4
MOST_FRAMES = 4096
Rng = np.random.Generator
Fields = dict[str, Any]  # of a `Case`
Change = Callable[[Case, Rng], Fields]

OF_FAMILY = {
    "vaswani": ("NormPlace", "EmbeddingScale", "SinusoidLayout"),
    "x_transformers": ("GeluForm", "PositionScale"),
    "t5": ("GeluForm", "RelativeBuckets", "AttentionScale", "LogitsScale"),
    "everything": ("RotaryPairing", "KeyValueHeads", "BiasedDeviation"),
    "whisper": ("FrameMask", "FramePadding", "FrameKernel"),
    "captions": ("FrameNorm", "ClassTokens"),
    "t5gemma": ("WindowEdge", "CapOrder", "LogitsCap"),
}
"""Flags of the conventions of each family that its first case already reveals."""


def ordinary(family: str, of: ModelConfig | Model, rng: Rng) -> Case:
    """Three sources of different lengths, padded on the right; greedy decoding.

    The weights of a model are its own. Those of a config are random, and exactly representable in
    float16, bfloat16 and float32, so that an implementation in any of them starts from the same
    values.
    """
    if isinstance(of, Model):
        model = replace(of.to("numpy").astype("float64"), settings=None)
        config = of.config
    else:
        config = of
        model = Model.random(config, int(rng.integers(2**32)), "float64")
        model = rounded(rounded(model, "bfloat16"), "float16")
    frames = config.encoder.input if isinstance(config.encoder.input, FrameInput) else None
    lengths = [_n_frames(frames, n) for n in (N_SOURCE, 3, 2)] if frames else [N_SOURCE, 3, 2]
    mask = np.arange(lengths[0]) < np.array(lengths)[:, None]
    if frames:  # exact in every format; the padding is not zero
        source = rng.integers(-64, 65, (*mask.shape, frames.n_features)) / 32
    else:
        ids = rng.integers(3, config.encoder.vocab_size, mask.shape)
        source = np.where(mask, ids, config.pad_id)
    target = rng.integers(3, config.decoder.vocab_size, (3, N_TARGET))
    target[:, 0] = config.decoder_start_id
    absolute = config.decoder.positions is not None
    return Case(
        name="",
        flags=(
            *("PadLeak", "CausalMask"),
            *(["CachePosition"] if absolute else []),
            *OF_FAMILY.get(family, ()),
        ),
        comment="sources padded on the right; greedy",
        model=model,
        source=source,
        source_mask=mask,
        target=target,
        prefix=target[:, :1],
        prefix_lengths=np.ones(3, dtype=np.int64),
        uniforms=None,
        eos_ids=(),
        max_new_tokens=N_NEW,
        method={"name": "greedy"},
    )


@cache
def _n_frames(c: FrameInput, n: int) -> int:
    """The number of frames of n embeddings, besides class tokens: the largest one if n is 3."""
    found = [k for k in range(1, MOST_FRAMES) if c.length(k) == n + c.n_class_tokens]
    return found[-1 if n == 3 else 0]


SITUATIONS: dict[str, Callable[[Case, Rng], Case]] = {"ordinary": lambda case, rng: case}


def _situation(comment: str, *flags: str) -> Callable[[Change], Change]:
    """Decorator of a function that returns the fields of an ordinary case that a situation changes.

    It adds the situation to `SITUATIONS`, under the function's name without its underscore: the
    names and the order of the functions are those of the cases.
    """

    def register(change: Change) -> Change:
        def changed(case: Case, rng: Rng) -> Case:
            return replace(case, comment=comment, flags=flags, **change(case, rng))

        SITUATIONS[change.__name__.removeprefix("_")] = changed
        return change

    return register


@_situation("sources padded on the left; greedy", "PositionAfterPadding")
def _left_padding(case: Case, rng: Rng) -> Fields:
    return {"source": case.source[:, ::-1], "source_mask": case.source_mask[:, ::-1]}


@_situation(
    "masked places between real tokens; a real token is pad_id", "PadIdInferred", "ScatteredMask"
)
def _scattered(case: Case, rng: Rng) -> Fields:
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 1, 0, 1, 1]], dtype=bool)
    source = rng.integers(3, case.model.config.encoder.vocab_size, mask.shape)
    source[np.arange(3), [2, 2, 3]] = case.model.config.pad_id
    return {"source": source, "source_mask": mask}


@_situation("the second source has no real token: attention to it is zero", "AllMaskedRow")
def _empty_source(case: Case, rng: Rng) -> Fields:
    mask = case.source_mask.copy()
    mask[1] = False
    return {"source_mask": mask}


@_situation(
    "prefixes of 1, 3 and 2 tokens; one holds an end token, which ends nothing",
    "RaggedPrefix",
    "EosInPrefix",
)
def _prefixes(case: Case, rng: Rng) -> Fields:
    c, prefix = case.model.config, case.target[:, :3].copy()
    lengths = np.array([1, 3, 2])
    eos_ids = c.eos_ids or (c.decoder.vocab_size - 1,)
    prefix[1, 1] = eos_ids[0]
    prefix[np.arange(3) >= lengths[:, None]] = c.pad_id
    return {"prefix": prefix, "prefix_lengths": lengths, "eos_ids": eos_ids}


@_situation("a row ends before the others, which go on", "FinishedRow")
def _ending(case: Case, rng: Rng) -> Fields:
    return {"eos_ids": (int(outputs_of(case)["tokens"][0, 1]),)}


@_situation("target and source, if of tokens, fill their position tables", "LastPosition")
def _table_end(case: Case, rng: Rng) -> Fields:
    c = case.model.config
    n_source, n_target = c.encoder.max_length or N_SOURCE, c.decoder.max_length or 0
    mask = np.ones((2, n_source), dtype=bool)
    mask[1, 0] = False
    source, vocab_size = case.source[:2], c.encoder.vocab_size
    if vocab_size:
        source = rng.integers(3, vocab_size, mask.shape)
    else:
        mask = case.source_mask[:2]
    target = rng.integers(3, c.decoder.vocab_size, (2, n_target))
    target[:, 0] = c.decoder_start_id
    return {
        "source": source,
        "source_mask": mask,
        "target": target,
        "prefix": target[:, :1],
        "prefix_lengths": np.ones(2, dtype=np.int64),
        "max_new_tokens": n_target,  # the last one is never fed back
    }


@_situation(
    "sampled: temperature, then top-k, then top-p", "FilterOrder", "TopPCrossing", "UniformEdge"
)
def _sampling(case: Case, rng: Rng) -> Fields:
    uniforms = rng.random((3, N_NEW)).round(3)
    uniforms[0, 0], uniforms[1, 1] = 0.0, 1 - 2**-24  # the largest float32 below 1
    method = {"name": "sample", "temperature": 1.5, "top_k": 7, "top_p": 0.75}
    return {"uniforms": uniforms, "method": method}


@_situation("tokens 2i and 2i + 1 have equal logits; greedy", "ArgmaxTie")
def _ties(case: Case, rng: Rng) -> Fields:
    return {"model": _with(case.model, _twins)}


@_situation("tokens 2i and 2i + 1 have equal logits; sampled from the best 3", "TopKTie")
def _sampled_ties(case: Case, rng: Rng) -> Fields:
    return {
        "model": _with(case.model, _twins),
        "uniforms": np.array([[0.1, 0.95, 0.5, 0.99]] * 3)[:, rng.permutation(N_NEW)],
        "method": {"name": "sample", "temperature": 2.0, "top_k": 3},
    }


@_situation("beam search; hypotheses of several lengths compete", "BeamReorder", "LengthPenalty")
def _beams(case: Case, rng: Rng) -> Fields:
    search = {"beams": 3, "n_best": 3, "length_penalty": 0.7, "early_stopping": False}
    return {
        "eos_ids": (int(outputs_of(case)["tokens"][1, 2]),),
        "max_new_tokens": 5,
        "method": {"name": "beam_search", **search},
    }


@_situation("attention scores of around a thousand", "SoftmaxOverflow")
def _overflow(case: Case, rng: Rng) -> Fields:
    def enlarge(config: ModelConfig, name: str, x: Array) -> Array:
        place, _, kind = name.rpartition(".")
        has_norm = config.decoder.self_attention.qk_norm is not None
        great = place.endswith("q_norm") if has_norm else kind in ("w_q", "b_q")
        return x * 1024 if great else x

    return {"model": _with(case.model, enlarge)}


@_situation("embeddings so small that the norms' eps decides", "NormEps")
def _small(case: Case, rng: Rng) -> Fields:
    def shrink(config: ModelConfig, name: str, x: Array) -> Array:
        return x / 256 if name.endswith((".embedding", ".positions")) else x

    return {"model": _with(case.model, shrink)}


def _with(model: Model, change: Callable[[ModelConfig, str, Array], Array]) -> Model:
    """The model with each parameter replaced by ``change(config, name, array)``."""
    config, arrays = model.config, dict(named_arrays(model.params))
    params = build_params(config, lambda name, shape: change(config, name, arrays[name]))
    return replace(model, params=params)


def _twins(config: ModelConfig, name: str, x: Array) -> Array:
    """Give token 2i + 1 the logits of token 2i; the last of an odd number is a copy, too."""
    n = config.decoder.vocab_size
    twin = np.minimum(np.arange(n) // 2 * 2, (n - 2) // 2 * 2)
    if name == ("decoder.embedding" if config.tied_logits else "unembedding"):
        return np.take(x, twin, axis=0 if config.tied_logits else 1)
    return x[twin] if name == "logits_bias" else x


LONGEST = 64
"""The longest position table that a case fills."""

CHANGES_WEIGHTS = ("ties", "sampled_ties", "overflow", "small")


def situations_of(of: ModelConfig | Model) -> list[str]:
    """The names of the situations that apply to a config, or that leave a model as it is."""
    c = of.config if isinstance(of, Model) else of
    if isinstance(of, Model):
        apply = dict.fromkeys(CHANGES_WEIGHTS, False)
    else:  # in others the input of the first norm contains larger terms than the embeddings
        small = c.encoder.embedding_norm == "none" and "before" in c.encoder.norm_positions
        apply = {"small": small}
    if isinstance(c.encoder.input, FrameInput):  # real frames come first, and there are some
        apply |= dict.fromkeys(("left_padding", "scattered", "empty_source"), False)
    lengths = [length for s in (c.encoder, c.decoder) if (length := s.max_length) is not None]
    apply["table_end"] = c.decoder.max_length is not None and max(lengths) <= LONGEST
    return [name for name in SITUATIONS if apply.get(name, True)]
