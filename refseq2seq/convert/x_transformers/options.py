"""The options of an encoder or decoder of x-transformers 2.31 that are implemented.

Any other option, such as one of a later release, raises an error that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from ...checks import UnsupportedFeature

# The options of each kind of wrapper that are implemented, with their defaults.
EMBEDDINGS = {
    "max_seq_len": None, "num_memory_tokens": None, "use_abs_pos_emb": True,
    "scaled_sinu_pos_emb": False, "post_emb_norm": False,
}  # fmt: skip
TOKENS = EMBEDDINGS | {  # TransformerWrapper
    "num_tokens": None,
    "tie_embedding": False,
    "tie_embedding_scale": None,
}
FRAMES = EMBEDDINGS | {  # ContinuousTransformerWrapper
    "dim_in": None,
    "use_identity_if_same_dim": False,
}
IMAGES = {  # ViTransformerWrapper
    "image_size": None, "patch_size": None, "channels": 3, "num_register_tokens": 0,
    "post_emb_norm": False,
}  # fmt: skip
# Those of its layers. Each attn_ option also exists as a cross_attn_ one, which defaults to it.
LAYERS = {
    # AttentionLayers
    "dim": None, "depth": None, "heads": 8, "use_scalenorm": False, "use_rmsnorm": False,
    "use_simple_rmsnorm": False, "norm_add_unit_offset": True, "pre_norm": True,
    "pre_norm_has_final_norm": True, "pre_and_post_norm": False, "sandwich_norm": False,
    "rotary_pos_emb": False, "rotary_emb_dim": None, "alibi_pos_bias": False,
    "alibi_num_heads": None, "rel_pos_bias": False, "rel_pos_num_buckets": 32,
    "rel_pos_max_distance": 128, "disable_abs_pos_emb": None, "weight_tie_layers": False,
    "layers_execute_order": None,
    # Attention
    "attn_dim_head": 64, "attn_dim_context": None, "attn_kv_heads": None, "attn_one_kv_head": False,
    "attn_value_dim_head": None, "attn_project_out": None, "attn_num_mem_kv": 0,
    "attn_qk_norm": False, "attn_qk_norm_scale": 10, "attn_qk_norm_dim_scale": False,
    "attn_qk_rmsnorm": False, "attn_gate_values": False, "attn_gate_values_headwise": False,
    "attn_gate_value_heads": False, "attn_head_scale": False, "attn_softclamp_logits": False,
    "attn_logit_softclamp_value": 50.0,
    # FeedForward
    "ff_mult": 4, "ff_glu": False, "ff_swish": False, "ff_relu_squared": False,
    "ff_post_act_ln": False, "ff_no_bias": False,
}  # fmt: skip
DEFAULTS = TOKENS | LAYERS
WRAPPERS: dict[str, dict[str, Any]] = {"tokens": TOKENS, "frames": FRAMES, "images": IMAGES}
REQUIRED = {
    "tokens": ("num_tokens", "max_seq_len"),
    "frames": ("dim_in",),
    "images": ("image_size", "patch_size"),
}

# Modules after an encoder of these wrappers, whose results are not used.
AFTER_ENCODER = ("to_logits", "mlp_head", "project_out", "probabilistic")

# Options that change training, initialisation or speed, but not what the model computes.
WITHOUT_EFFECT = {
    "emb_dropout", "emb_frac_gradient", "attn_z_loss_weight", "max_mem_len", "shift_mem_down",
    "layer_dropout", "cross_attn_tokens_dropout", "zero_init_branch_output", "verbose",
    "attn_dropout", "attn_sublayer_dropout", "attn_zero_init_output", "attn_flash",
    "attn_attend_sdp_kwargs", "attn_onnxable", "ff_dropout", "ff_sublayer_dropout",
    "ff_zero_init_output",
}  # fmt: skip

# The options of XTransformer itself, other than dim.
SHARED = {
    "tie_token_emb": False,
    "pad_value": 0,
    "ignore_index": -100,
    "cross_attn_tokens_dropout": 0.0,
}


# The prefix of the options -> our prefix of the names of arrays, theirs, and the sublayers of a
# layer in the order in which both libraries run them.
SIDES = {
    "enc_": ("encoder.", "encoder.", ("self", "feed_forward")),
    "dec_": ("decoder.", "decoder.net.", ("self", "cross", "feed_forward")),
}


@dataclass(frozen=True)
class Side:
    """The options of the encoder or of the decoder, and a row of `SIDES`."""

    given: Mapping[str, Any]
    prefix: str
    ours: str
    theirs: str
    block: tuple[str, ...]

    @classmethod
    def of(cls, prefix: str, options: Mapping[str, Any]) -> Self:
        """The options with ``prefix`` of an XTransformer; raise if one is not implemented."""
        given = {"dim": options["dim"]} if "dim" in options else {}
        for name, value in options.items():
            if name.startswith(prefix):
                given[name.removeprefix(prefix)] = value
            elif not name.startswith(tuple(SIDES)) and name not in {"dim", *SHARED}:
                raise UnsupportedFeature(f"x-transformers' {name} = {value!r} is not implemented")
        side = cls(given, prefix, *SIDES[prefix])
        for name, value in given.items():
            if name in WITHOUT_EFFECT or _without_cross(name) in WITHOUT_EFFECT:
                continue
            if _without_cross(name) not in WRAPPERS[side.reads] | LAYERS:
                raise side.refusal(name, "is not implemented (leave out options at their default)")
            if isinstance(value, tuple) and name != "layers_execute_order":
                raise side.refusal(name, "differs between layers, which is not implemented")
        for name in ("dim", "depth", *REQUIRED[side.reads]):
            if side[name] is None:
                raise ValueError(f"the options lack {prefix}{name}")
        return side

    def __getitem__(self, name: str) -> Any:
        """An option's value, or its default."""
        if name in self.given:
            return self.given[name]
        defaults = FRAMES | IMAGES | DEFAULTS
        return defaults[name] if name in defaults else self[_without_cross(name)]

    def refusal(self, name: str, why: str) -> UnsupportedFeature:
        """The error for an option; it names the option and its value."""
        return UnsupportedFeature(f"x-transformers' {self.prefix}{name} = {self[name]!r} {why}")

    @property
    def is_decoder(self) -> bool:
        """Whether these are the decoder's options."""
        return self.prefix == "dec_"

    @property
    def reads(self) -> Literal["tokens", "frames", "images"]:
        """What the wrapper reads; a decoder reads tokens."""
        if self.is_decoder:
            return "tokens"
        if "image_size" in self.given:
            return "images"
        return "frames" if "dim_in" in self.given else "tokens"

    @property
    def order(self) -> tuple[int, ...]:
        """The indices of the module's sublayers in the order of execution; some may repeat."""
        n, order = len(self.block), self["layers_execute_order"]
        if self["weight_tie_layers"]:
            return tuple(range(n)) * self["depth"]
        if order is None:
            return tuple(range(n * self["depth"]))
        if len(order) % n or any(index % n != place % n for place, index in enumerate(order)):
            raise self.refusal("layers_execute_order", "splits layers, which is not implemented")
        return tuple(order)


def _without_cross(name: str) -> str:
    return name.removeprefix("cross_") if name.startswith("cross_attn_") else name


def default(value: Any, otherwise: Any) -> Any:
    """``value``, or ``otherwise`` if ``value`` is None."""
    return otherwise if value is None else value
