"""What each case is about: changes of an ordinary one that bring a mistake to light."""

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
    """Three sources of different lengths, padded on the right; greedy.

    Weights are values that float16, bfloat16 and float32 hold exactly, so that an
    implementation in one of them begins with the same numbers.
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
    """Masked tokens anywhere, which look real, and real ones that look like padding."""
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
    """A row that has no real token at all."""
    mask = case.source_mask.copy()
    mask[1] = False
    return replace(
        case,
        flags=("AllMaskedRow",),
        comment="the second source has no real token: attention to it is zero",
        source_mask=mask,
    )


def prefixes(case: Case, rng: Rng) -> Case:
    """Targets that begin with one, three and two tokens, the end token among them."""
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
    """As many tokens as the position tables have room for."""
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
    """Draws with numbers that are given; among them 0 and the last one below 1 in float32."""
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
    """Every logit comes twice."""
    return replace(
        _with(case, _twins),
        flags=("ArgmaxTie",),
        comment="tokens 2i and 2i + 1 have equal logits; greedy",
    )


def sampled_ties(case: Case, rng: Rng) -> Case:
    """Every logit comes twice, and top-k cuts between two equal ones."""
    return replace(
        _with(case, _twins),
        flags=("TopKTie",),
        comment="tokens 2i and 2i + 1 have equal logits; sampled from the best 3",
        uniforms=np.array([[0.1, 0.95, 0.5, 0.99]] * 3)[:, rng.permutation(N_NEW)],
        method={"name": "sample", "temperature": 2.0, "top_k": 3},
    )


def beams(case: Case, rng: Rng) -> Case:
    """Beam search in which beams change places, and hypotheses have several lengths."""
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
    """Scores of around a thousand, whose exponential is infinite."""

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
    """Embeddings so small that eps shows."""

    def shrink(config: ModelConfig, name: str, x: Array) -> Array:
        return x / 256 if name.endswith((".embedding", ".positions")) else x

    return replace(
        _with(case, shrink),
        flags=("NormEps",),
        comment="embeddings so small that the norms' eps decides",
    )


def _with(case: Case, change: Callable[[ModelConfig, str, Array], Array]) -> Case:
    """The case with parameters changed by their names."""
    config, arrays = case.model.config, dict(named_arrays(case.model.params))
    params = build_params(config, lambda name, shape: change(config, name, arrays[name]))
    return replace(case, model=replace(case.model, params=params))


def _twins(config: ModelConfig, name: str, x: Array) -> Array:
    """Token 2i + 1 has the logits of token 2i, as has the last of an odd number of tokens."""
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
    """The names of the situations that a model can be in."""
    missing = set()
    if config.decoder.max_length is None:
        missing.add("table_end")
    before = config.encoder.embedding_norm == "none" and "before" in config.encoder.norm_positions
    if not before:
        missing.add("small")  # embeddings meet the first norm together with something greater
    return [name for name in SITUATIONS if name not in missing]
