"""``refseq2seq info``: what a checkpoint is."""

import argparse
from typing import Any

import numpy as np

from ..checkpoint import load
from ..config import AlibiPositions, BucketedPositions, RotaryPositions, StackConfig
from ..params import param_shapes


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("info", help="show what a checkpoint is")
    command.set_defaults(run=_info)
    command.add_argument("model", nargs="?", default="g2p", metavar="MODEL")


def _info(options: argparse.Namespace) -> None:
    model = load(options.model)
    c = model.config
    n_parameters = sum(int(np.prod(shape)) for shape in param_shapes(c).values())
    rows = [
        ("model", options.model),
        ("parameters", f"{n_parameters:,} in {model.dtype}"),
        ("encoder", _describe(c.encoder)),
        ("decoder", _describe(c.decoder)),
        ("logits", "tied to the decoder's embedding" if c.tied_logits else "own matrix"),
        ("tokens", f"start {c.decoder_start_id}, end {list(c.eos_ids)}, pad {c.pad_id}"),
    ]
    for name, vocabulary in (
        ("source", model.source_vocabulary),
        ("target", model.target_vocabulary),
    ):
        if vocabulary is not None:
            rows.append((name, " ".join(vocabulary.symbols[:60])))
    for name, text in rows:
        print(f"{name:11} {text}")


def _describe(c: StackConfig) -> str:
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
