"""The situations of cases: changes of an ordinary case that reveal a mistake."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...backend import Array
from ...config import ModelConfig
from ...model import Model
from ...params import build_params, named_arrays
from ..rounding import rounded
from .cases import Case, outputs_of
from .families import FAMILIES
from .flags import OF_FAMILY

N_SOURCE, N_TARGET, N_NEW = 5, 4, 4
Rng = np.random.Generator


def ordinary(family: str, rng: Rng) -> Case:
    """Three sources of different lengths, padded on the right; greedy decoding.

    The weights are exactly representable in float16, bfloat16 and float32, so that an
    implementation in any of them starts from the same values.
    """
    config = FAMILIES[family]
    model = Model.random(config, int(rng.integers(2**32)), "float64")
    mask = np.arange(N_SOURCE) < np.array([[N_SOURCE], [3], [2]])
    source = np.where(mask, rng.integers(3, config.encoder.vocab_size, mask.shape), config.pad_id)
    target = rng.integers(3, config.decoder.vocab_size, (3, N_TARGET))
    target[:, 0] = config.decoder_start_id
    absolute = config.decoder.positions is not None
    return Case(
        name="",
        flags=("PadLeak", "CausalMask", *(["CachePosition"] if absolute else []))
        + OF_FAMILY[family],
        comment="sources padded on the right; greedy",
        model=rounded(rounded(model, "bfloat16"), "float16"),
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


def left_padding(case: Case, rng: Rng) -> Case:
    """Padding on the left."""
    return replace(
        case,
        flags=("PositionAfterPadding",),
        comment="sources padded on the left; greedy",
        source=case.source[:, ::-1],
        source_mask=case.source_mask[:, ::-1],
    )


def scattered(case: Case, rng: Rng) -> Case:
    """Masked tokens at any position, with ordinary ids, and real tokens with the id ``pad_id``."""
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 1, 0, 1, 1]], dtype=bool)
    source = rng.integers(3, case.model.config.encoder.vocab_size, mask.shape)
    source[np.arange(3), [2, 2, 3]] = case.model.config.pad_id
    return replace(
        case,
        flags=("PadIdInferred", "ScatteredMask"),
        comment="masked places between real tokens; a real token is pad_id",
        source=source,
        source_mask=mask,
    )


def empty_source(case: Case, rng: Rng) -> Case:
    """A row without any real token."""
    mask = case.source_mask.copy()
    mask[1] = False
    return replace(
        case,
        flags=("AllMaskedRow",),
        comment="the second source has no real token: attention to it is zero",
        source_mask=mask,
    )


def prefixes(case: Case, rng: Rng) -> Case:
    """Prefixes of one, three and two tokens, one of which contains an EOS."""
    c, prefix = case.model.config, case.target[:, :3].copy()
    lengths = np.array([1, 3, 2])
    prefix[1, 1] = c.eos_ids[0]
    prefix[np.arange(3) >= lengths[:, None]] = c.pad_id
    return replace(
        case,
        flags=("RaggedPrefix", "EosInPrefix"),
        comment="prefixes of 1, 3 and 2 tokens; one holds an end token, which ends nothing",
        prefix=prefix,
        prefix_lengths=lengths,
        eos_ids=c.eos_ids,
    )


def ending(case: Case, rng: Rng) -> Case:
    """Rows that end at different steps."""
    first = outputs_of(case)["tokens"]
    return replace(
        case,
        flags=("FinishedRow",),
        comment="a row ends before the others, which go on",
        eos_ids=(int(first[0, 1]),),
    )


def table_end(case: Case, rng: Rng) -> Case:
    """A source and a target that fill their position tables."""
    c = case.model.config
    n_source, n_target = c.encoder.max_length or 0, c.decoder.max_length or 0
    shape = (2, n_source)
    mask = np.ones(shape, dtype=bool)
    mask[1, 0] = False
    target = rng.integers(3, c.decoder.vocab_size, (2, n_target))
    target[:, 0] = c.decoder_start_id
    return replace(
        case,
        flags=("LastPosition",),
        comment="source and target fill their position tables",
        source=rng.integers(3, c.encoder.vocab_size, shape),
        source_mask=mask,
        target=target,
        prefix=target[:, :1],
        prefix_lengths=np.ones(2, dtype=np.int64),
        max_new_tokens=n_target,  # the last one is never fed back
    )


def sampling(case: Case, rng: Rng) -> Case:
    """Sampling with given uniform numbers, including 0 and the largest float32 below 1."""
    uniforms = rng.random((3, N_NEW)).round(3)
    uniforms[0, 0], uniforms[1, 1] = 0.0, 1 - 2**-24
    return replace(
        case,
        flags=("FilterOrder", "TopPCrossing", "UniformEdge"),
        comment="sampled: temperature, then top-k, then top-p",
        uniforms=uniforms,
        method={"name": "sample", "temperature": 1.5, "top_k": 7, "top_p": 0.75},
    )


def ties(case: Case, rng: Rng) -> Case:
    """Every logit occurs twice."""
    return replace(
        _with(case, _twins),
        flags=("ArgmaxTie",),
        comment="tokens 2i and 2i + 1 have equal logits; greedy",
    )


def sampled_ties(case: Case, rng: Rng) -> Case:
    """Every logit occurs twice, and top-k cuts between two equal logits."""
    return replace(
        _with(case, _twins),
        flags=("TopKTie",),
        comment="tokens 2i and 2i + 1 have equal logits; sampled from the best 3",
        uniforms=np.array([[0.1, 0.95, 0.5, 0.99]] * 3)[:, rng.permutation(N_NEW)],
        method={"name": "sample", "temperature": 2.0, "top_k": 3},
    )


def beams(case: Case, rng: Rng) -> Case:
    """Beam search in which beams are reordered, and hypotheses have several lengths."""
    first = outputs_of(case)["tokens"]
    return replace(
        case,
        flags=("BeamReorder", "LengthPenalty"),
        comment="beam search; hypotheses of several lengths compete",
        eos_ids=(int(first[1, 2]),),
        max_new_tokens=5,
        method={
            "name": "beam_search",
            "beams": 3,
            "n_best": 3,
            "length_penalty": 0.7,
            "early_stopping": False,
        },
    )


def overflow(case: Case, rng: Rng) -> Case:
    """Scores of around a thousand, whose exponentials overflow."""

    def enlarge(config: ModelConfig, name: str, x: Array) -> Array:
        place, _, kind = name.rpartition(".")
        has_norm = config.decoder.self_attention.qk_norm is not None
        great = place.endswith("q_norm") if has_norm else kind in ("w_q", "b_q")
        return x * 1024 if great else x

    return replace(
        _with(case, enlarge),
        flags=("SoftmaxOverflow",),
        comment="attention scores of around a thousand",
    )


def small(case: Case, rng: Rng) -> Case:
    """Embeddings so small that the eps of the norms matters."""

    def shrink(config: ModelConfig, name: str, x: Array) -> Array:
        return x / 256 if name.endswith((".embedding", ".positions")) else x

    return replace(
        _with(case, shrink),
        flags=("NormEps",),
        comment="embeddings so small that the norms' eps decides",
    )


def _with(case: Case, change: Callable[[ModelConfig, str, Array], Array]) -> Case:
    """The case with each parameter replaced by ``change(config, name, array)``."""
    config, arrays = case.model.config, dict(named_arrays(case.model.params))
    params = build_params(config, lambda name, shape: change(config, name, arrays[name]))
    return replace(case, model=replace(case.model, params=params))


def _twins(config: ModelConfig, name: str, x: Array) -> Array:
    """Give token 2i + 1 the logits of token 2i; the last of an odd number is a copy, too."""
    n = config.decoder.vocab_size
    twin = np.minimum(np.arange(n) // 2 * 2, (n - 2) // 2 * 2)
    if name == ("decoder.embedding" if config.tied_logits else "unembedding"):
        return np.take(x, twin, axis=0 if config.tied_logits else 1)
    return x[twin] if name == "logits_bias" else x


SITUATIONS: dict[str, Callable[[Case, Rng], Case]] = {
    "ordinary": lambda case, rng: case,
    "left_padding": left_padding,
    "scattered": scattered,
    "empty_source": empty_source,
    "prefixes": prefixes,
    "ending": ending,
    "table_end": table_end,
    "sampling": sampling,
    "ties": ties,
    "sampled_ties": sampled_ties,
    "beams": beams,
    "overflow": overflow,
    "small": small,
}


def situations_of(config: ModelConfig) -> list[str]:
    """The names of the situations that apply to a model with this config."""
    missing = set()
    if config.decoder.max_length is None:
        missing.add("table_end")
    before = config.encoder.embedding_norm == "none" and "before" in config.encoder.norm_positions
    if not before:
        missing.add("small")  # the input of the first norm contains larger terms
    return [name for name in SITUATIONS if name not in missing]
