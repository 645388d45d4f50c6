"""The table from our parameters to the arrays of x-transformers 2.31."""

from collections.abc import Mapping

import numpy as np

from ...backend import Array
from ...config import ModelConfig, RotaryPositions, SinusoidalPositions
from ...ops import l2_norm
from ..table import Table, Transform, same, transposed
from .options import AFTER_ENCODER, Side, default


def stack_table(o: Side, arrays: Mapping[str, np.ndarray]) -> Table:
    """The table of an encoder or decoder: for each parameter, the array and its transform."""
    ours, theirs = o.ours, o.theirs
    table: dict[str, tuple[str, Transform]] = {
        f"{ours}embedding": (f"{theirs}token_emb.emb.weight", same),
        f"{ours}embedding_norm.gain": (f"{theirs}post_emb_norm.gamma", same),
        f"{ours}positions": (f"{theirs}pos_emb.emb.weight", same),
        f"{ours}register_tokens": (f"{theirs}memory_tokens", same),
        f"{ours}relative_bias.0": (
            f"{theirs}attn_layers.rel_pos.relative_attention_bias.weight",
            same,
        ),
        f"{ours}final_norm.gain": _gain(o, f"{theirs}attn_layers.final_norm."),
    }
    if o.reads != "tokens":
        table |= _frames_table(o)
    for place, index in enumerate(o.order):
        layer, sublayer = divmod(place, len(o.block))
        name, at = o.block[sublayer], f"{theirs}attn_layers.layers.{index}."
        inside = f"{ours}layers.{layer}.{name}"
        if name == "feed_forward":
            table |= _feed_forward_table(o, f"{inside}.", f"{at}1.")
        else:
            kind = "attn_" if name == "self" else "cross_attn_"
            table |= _attention_table(o, kind, f"{inside}_attention.", f"{at}1.", arrays)
        for i, position in enumerate(("before", "branch", "after")):
            table[f"{inside}_norms.{position}.gain"] = _gain(o, f"{at}0.{i}.")
    return table


def _frames_table(o: Side) -> dict[str, tuple[str, Transform]]:
    """The table of the frame layer; the norms of patches store the gain itself."""
    ours, theirs = f"{o.ours}frame_layers.0.", o.theirs
    if o.reads == "frames":
        return {f"{ours}w_in": (f"{theirs}project_in.weight", transposed)}
    p, channels = o["patch_size"], o["channels"]

    def rearranged(x: Array) -> Array:
        """The last axis from rows, columns, channels to channels, rows, columns."""
        axes = x.reshape(*x.shape[:-1], p, p, channels)
        return np.moveaxis(axes, -1, -3).reshape(x.shape)

    patch = f"{theirs}patch_to_embedding."
    return {
        f"{ours}norm_before.gain": (f"{patch}0.gamma", rearranged),
        f"{ours}w_in": (f"{patch}1.weight", lambda w: rearranged(w).T),
        f"{ours}b_in": (f"{patch}1.bias", same),
        f"{ours}norm_after.gain": (f"{patch}2.gamma", same),
        f"{o.ours}positions": (f"{theirs}pos_embedding", lambda x: x[0]),
        f"{o.ours}register_tokens": (f"{theirs}register_tokens", same),
    }


def _gain(o: Side, theirs: str) -> tuple[str, Transform]:
    """The row for a norm's gain; x-transformers stores gain - 1 if ``norm_add_unit_offset``."""
    offset = 1 if o["norm_add_unit_offset"] else 0
    if o["use_scalenorm"]:
        return f"{theirs}g", lambda g: g.reshape(()) + offset
    return f"{theirs}g" if o["use_rmsnorm"] else f"{theirs}gamma", lambda g: g + offset


def _attention_table(
    o: Side, kind: str, ours: str, theirs: str, arrays: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, Transform]]:
    qk_norm = o[f"{kind}qk_norm"]

    def as_keys(learned_k: Array) -> Array:
        """The learned keys, normalised if qk_norm is set: x-transformers normalises all keys."""
        if not qk_norm:
            return learned_k
        gain = arrays[f"{theirs}qk_norm_k_scale"] if o[f"{kind}qk_norm_dim_scale"] else None
        return l2_norm(learned_k, gain, None, 1e-12)

    table: dict[str, tuple[str, Transform]] = {
        "w_q": ("to_q.weight", transposed),
        "w_k": ("to_k.weight", transposed),
        "w_v": ("to_v.weight", transposed),
        "w_o": ("to_out.weight", transposed),
        "learned_k": ("mem_k", as_keys),
        "learned_v": ("mem_v", same),
        "w_gate": ("to_v_gate.weight", transposed),
        "b_gate": ("to_v_gate.weight", lambda w: np.zeros(len(w), w.dtype)),  # no bias there
        "head_scale": ("head_scale_params", lambda scale: scale[0]),
        "q_norm.gain": ("q_rmsnorm.gamma", lambda gamma: gamma + 1),
        "k_norm.gain": ("k_rmsnorm.gamma", lambda gamma: gamma + 1),
    }
    if not default(o[f"{kind}project_out"], o["heads"] > 1):
        table["w_o"] = ("to_v.weight", lambda w: np.eye(len(w), dtype=w.dtype))  # no projection
    if o[f"{kind}gate_value_heads"]:
        table["w_gate"] = ("to_v_head_gate.weight", transposed)
        table["b_gate"] = ("to_v_head_gate.bias", same)
    if qk_norm:
        table["q_norm.gain"] = ("qk_norm_q_scale", same)
        table["k_norm.gain"] = ("qk_norm_k_scale", same)
    return {ours + name: (theirs + source, how) for name, (source, how) in table.items()}


def _feed_forward_table(o: Side, ours: str, theirs: str) -> dict[str, tuple[str, Transform]]:
    """The table of a feed-forward. A GLU's matrix has the rows of "in", then those of "gate", to
    which the activation is applied.
    """
    table: dict[str, tuple[str, Transform]] = {
        "w_in": ("ff.0.0.weight", transposed),
        "b_in": ("ff.0.0.bias", same),
        "hidden_norm.gain": ("ff.1.gamma", same),
    }
    if o["ff_glu"]:
        table["w_in"] = ("ff.0.proj.weight", lambda w: w[: len(w) // 2].T)
        table["b_in"] = ("ff.0.proj.bias", lambda b: b[: len(b) // 2])
        table["w_gate"] = ("ff.0.proj.weight", lambda w: w[len(w) // 2 :].T)
        table["b_gate"] = ("ff.0.proj.bias", lambda b: b[len(b) // 2 :])
    out = 3 if o["ff_post_act_ln"] else 2  # index in a Sequential
    table["w_out"] = (f"ff.{out}.weight", transposed)
    table["b_out"] = (f"ff.{out}.bias", same)
    return {ours + name: (theirs + source, how) for name, (source, how) in table.items()}


def read_otherwise(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> set[str]:
    """Names of arrays that do not become parameters: checked, in the config, or not needed."""
    unused = tuple(f"encoder.{module}." for module in AFTER_ENCODER)
    names = {name for name in arrays if name.startswith(unused)}
    for theirs, stack in (("encoder.", config.encoder), ("decoder.net.", config.decoder)):
        if isinstance(stack.positions, SinusoidalPositions):
            names.add(f"{theirs}pos_emb.scale")
        if isinstance(stack.relative_positions, RotaryPositions):
            names.add(name := f"{theirs}attn_layers.rotary_pos_emb.inv_freq")
            _check_frequencies(name, stack.relative_positions, arrays)
    if config.tied_embeddings:
        names.add(name := "encoder.token_emb.emb.weight")
        decoders = "decoder.net.token_emb.emb.weight"
        if {name, decoders} <= arrays.keys() and (arrays[name] != arrays[decoders]).any():
            raise ValueError(f"tie_token_emb is True, but {name} is not {decoders}")
    return names


def _check_frequencies(name: str, c: RotaryPositions, arrays: Mapping[str, np.ndarray]) -> None:
    expected = c.base ** (-np.arange(0, c.d_rotary, 2) / c.d_rotary)
    stored = arrays.get(name, expected)
    # bfloat16, the narrowest format, has a relative error of at most 2^-9.
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=2**-8, atol=0):
        raise ValueError(f"{name} has other frequencies than the options give: {stored}")
