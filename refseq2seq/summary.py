"""What a model is, in a few lines: for ``refseq2seq info`` and for notebooks."""

import math
from typing import Any

from .config import AlibiPositions, BucketedPositions, ModelConfig, RotaryPositions, StackConfig
from .params import param_shapes


def rows(model: Any) -> list[tuple[str, str]]:
    """Labels and texts: sizes, conventions, special tokens, symbols."""
    c = model.config
    of_model = [
        ("parameters", f"{count_parameters(c):,} in {model.dtype}"),
        ("encoder", _stack(c.encoder)),
        ("decoder", _stack(c.decoder)),
        ("logits", "tied to the decoder's embedding" if c.tied_logits else "own matrix"),
        ("tokens", f"start {c.decoder_start_id}, end {list(c.eos_ids)}, pad {c.pad_id}"),
    ]
    vocabularies = {"source": model.source_vocabulary, "target": model.target_vocabulary}
    return of_model + [
        (name, " ".join(vocabulary.symbols[:60]))
        for name, vocabulary in vocabularies.items()
        if vocabulary is not None
    ]


def count_parameters(c: ModelConfig) -> int:
    """How many numbers a model of these conventions has; a tied table counts once."""
    return sum(math.prod(shape) for shape in param_shapes(c).values())


def _stack(c: StackConfig) -> str:
    a = c.self_attention
    positions = type(c.positions).__name__.removesuffix("Positions").lower() if c.positions else ""
    relative = {RotaryPositions: "rotary", AlibiPositions: "alibi", BucketedPositions: "bucketed"}
    kinds = [positions, relative.get(type(c.relative_positions), "")]
    return (
        f"{c.n_layers} layers, width {c.d_model}, {a.n_heads} heads of {a.d_k}, "
        f"feed-forward {c.feed_forward.d_ff} ({c.feed_forward.activation}), "
        f"{c.norm.kind} {'+'.join(c.norm_positions)}, vocabulary {c.vocab_size}, "
        f"positions: {' and '.join(filter(None, kinds)) or 'none'}"
    )
