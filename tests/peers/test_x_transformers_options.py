"""Every option of x-transformers is matched, without effect, or raises with its name.

The options are read from the signatures of the installed package, so that an option of
another release, which is in none of the lists here, fails.
"""

import inspect

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import torch
from test_x_transformers import CASES
from torch import nn
from x_transformers import x_transformers as xt
from xt_networks import CONVENTIONS, both, close, random_batch, random_network

import refseq2seq as rs
from refseq2seq.convert.x_transformers.options import DEFAULTS, SHARED, WITHOUT_EFFECT

CONSTRUCTORS = {
    xt.TransformerWrapper: "",
    xt.AttentionLayers: "",
    xt.Attention: "attn_",
    xt.FeedForward: "ff_",
}
SIGNATURES = {
    f"{prefix}{name}": parameter.default
    for constructor, prefix in CONSTRUCTORS.items()
    for name, parameter in inspect.signature(constructor).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
}
# Given by one constructor to the next, never by the caller of the outermost.
INTERNAL = {
    "attn_layers", "causal", "cross_attend", "attn_dim", "attn_heads", "attn_causal",
    "attn_output_proj_depth", "attn_learned_value_residual_mix",
    "attn_qkv_receive_diff_residuals", "attn_rotate_num_heads", "ff_dim", "ff_output_proj_depth",
}  # fmt: skip

# Options that are refused, with what makes a difference.
FLAGS = {
    "return_only_embed", "l2norm_embed", "recycling", "average_pool_embed", "use_cls_token",
    "attn_pool", "squeeze_out_last_dim", "mixture_of_softmax", "sigsoftmax_logits",
    "ff_deep_embed", "add_continuous_pred_head", "input_not_include_cache", "only_cross",
    "only_attn", "use_dynamic_tanh", "use_derf", "use_adaptive_layernorm", "use_adaptive_rmsnorm",
    "use_adaptive_layerscale", "dynamic_pos_bias", "rotary_xpos", "polar_pos_emb",
    "residual_attn", "cross_residual_attn", "macaron", "gate_residual", "orthog_residual",
    "mv_split_residual", "scale_residual", "softclamp_output", "use_layerscale",
    "integrate_layers", "reinject_input", "learned_reinject_input_gate", "add_value_residual",
    "attn_pre_talking_heads", "attn_post_talking_heads", "attn_pre_scale_post_talking_heads",
    "attn_on_attn", "attn_output_gate", "attn_hard", "attn_k_rmsnorm", "attn_value_rmsnorm",
    "attn_l2_distance", "attn_sigmoid", "attn_gumbel_softmax", "attn_cog_signed",
    "attn_add_zero_kv", "attn_head_learned_sink", "attn_data_dependent_alibi",
    "attn_use_rel_proj_pos_bias", "attn_orthog_projected_values",
    "attn_orthog_projected_values_per_head", "attn_laser", "ff_solu",
}  # fmt: skip
VALUES = {
    "embed_num_tokens": {"kind": 3}, "emb_dim": 9, "logits_dim": 9, "num_output_heads": 2,
    "scale_residual_constant": 1.5, "depth_scale_residual": 0.5, "shift_tokens": 1,
    "num_residual_streams": 2, "attn_sparse_topk": 2, "attn_max_attend_past": 3,
    "attn_custom_attn_fn": torch.nn.functional.softmax, "attn_hybrid_mask_kwarg": "mask",
    "ff_custom_activation": nn.Tanh(), "ff_softclamp_value": 3.0,
}  # fmt: skip
# Options of a flag, which is refused itself.
OF_FLAGS = {
    "use_cls_token": {"num_cls_tokens": 2},
    "attn_pool": {"num_pooled_tokens": 2, "attn_pool_depth": 2, "dim_pooled_tokens": 6},
    "mixture_of_softmax": {"mixture_of_softmax_k": 2},
    "use_dynamic_tanh": {"dynamic_tanh_init_alpha": 0.5},
    "use_adaptive_layernorm": {"dim_condition": 6, "adaptive_condition_mlp": True},
    "dynamic_pos_bias": {
        "dynamic_pos_bias_log_distance": True, "dynamic_pos_bias_mlp_depth": 3,
        "dynamic_pos_bias_norm": True,
    },
    "rotary_xpos": {"rotary_xpos_scale_base": 256},
    "softclamp_output": {"softclamp_output_value": 20.0},
    "use_layerscale": {"layerscale_init_value": 0.5},
    "integrate_layers": {"layer_integrate_use_softmax": False},
    "add_value_residual": {"learned_value_residual_mix": False},
    "mv_split_residual": {"residual_fn_kwargs": {"init_beta": 0.5}},
    "attn_output_gate": {"attn_output_gate_rank": 3, "attn_output_gate_headwise": True},
    "attn_gumbel_softmax": {"attn_gumbel_softmax_temp": 0.5, "attn_gumbel_softmax_hard": False},
    "attn_use_rel_proj_pos_bias": {
        "attn_rel_proj_num_distance_basis": 4, "attn_rel_proj_max_dist": 32,
    },
    "attn_laser": {"attn_laser_softclamp_value": 9.0},
}  # fmt: skip
# Each value of the second mappings, beside the options that it needs.
WITH_OTHERS = [
    *(({flag: True}, options) for flag, options in OF_FLAGS.items()),
    ({"num_memory_tokens": 2}, {"memory_tokens_interspersed_every": 4}),
    ({"pre_and_post_norm": True}, {"looped": True}),
    ({"pre_and_post_norm": True, "looped": True}, {"max_looped_steps": 2}),
    ({"dim": 10}, {"token_emb": nn.Embedding(20, 10), "to_logits": nn.Linear(10, 13)}),
    ({"use_adaptive_layernorm": True, "adaptive_condition_mlp": True},
     {"adaptive_condition_mlp_expansion": 2}),
    ({"rotary_pos_emb": True},
     {"rotary_interpolation_factor": 2.0, "rotary_base_rescale_factor": 2.0,
      "rotate_num_heads": 1}),
    ({"depth": None}, {"custom_layers": ("a", "f", "f")}),
    ({"depth": 3}, {"sandwich_coef": 1, "unet_skips": True}),
    ({"depth": 4}, {"par_ratio": 3}),
    ({"attn_aggregated_residual_kwargs": {"lora_rank": 3}}, {"attn_aggregated_residuals": True}),
    ({"attn_aggregated_residuals": True}, {"attn_aggregated_residual_kwargs": {"lora_rank": 2}}),
    ({"num_residual_streams": 2, "residual_fn_kwargs": {"read_gate_rank": 3}},
     {"gated_multi_residual": True}),
    ({"num_residual_streams": 2},
     {"qkv_receive_diff_residuals": True, "hyper_conn_sinkhorn_iters": 3}),
    ({"alibi_pos_bias": True, "heads": 2}, {"rel_pos_kwargs": {"slopes": [0.1, 0.2]}}),
    ({"attn_sparse_topk": 2}, {"attn_sparse_topk_straight_through": True}),
    ({"attn_gate_values": True}, {"attn_swiglu_values": True, "attn_gate_values_rank": 3}),
    ({"attn_gate_values": True, "attn_gate_values_rank": 3}, {"attn_low_rank_silu_gates": False}),
    ({"attn_qk_norm": True, "attn_dim_head": 8}, {"attn_qk_norm_groups": 2}),
    ({"attn_hybrid_fold_axial_dim": 1}, {"attn_hybrid_module": nn.Identity()}),
    ({"attn_hybrid_module": nn.Identity()}, {"attn_hybrid_fold_axial_dim": 2}),
    ({"attn_hybrid_module": nn.Identity(), "attn_hybrid_fold_axial_dim": 1},
     {"attn_hybrid_learned_mix": True}),
    ({"attn_dim_latent_q": 5}, {"attn_use_latent_q": True}),
    ({"attn_use_latent_q": True}, {"attn_dim_latent_q": 4}),
    ({"attn_dim_latent_kv": 5}, {"attn_use_latent_kv": True}),
    ({"attn_use_latent_kv": True}, {"attn_dim_latent_kv": 4}),
    ({"ff_glu": True}, {"ff_glu_mult_bias": True, "ff_glu_softclamp": True}),
    ({"ff_glu": True, "ff_glu_softclamp": True},
     {"ff_glu_gate_softclamp_value": 2.0, "ff_glu_up_softclamp_value": 9.0}),
]  # fmt: skip
# In an encoder-decoder the peer itself raises, or the option makes no difference.
NOT_TRIED = {
    "train_max_recycle_steps", "polar_bias_uniform_init", "attn_selective", "attn_dim_out",
    "attn_data_dependent_alibi_per_row", "attn_data_dependent_alibi_per_row_dim_head",
    "attn_data_dependent_alibi_kwargs", "attn_use_cope", "attn_cope_max_pos",
    "attn_cope_soft_onehot_pos", "attn_cope_talking_heads", "attn_latent_rope_subheads",
    "attn_inverted_attention", "attn_flash_pack_seq", "ff_dim_out",
}  # fmt: skip
REFUSED = {
    **{name: {name: True} for name in FLAGS},
    **{name: {name: value} for name, value in VALUES.items()},
    **{
        name: others | {name: value}
        for others, values in WITH_OTHERS
        for name, value in values.items()
    },
}
# Options without effect, with a value that is not the default.
HARMLESS = {
    "emb_dropout": 0.3,
    "emb_frac_gradient": 0.5,
    "attn_z_loss_weight": 0.5,
    "max_mem_len": 3,
    "shift_mem_down": 1,
    "layer_dropout": 0.3,
    "cross_attn_tokens_dropout": 0.3,
    "zero_init_branch_output": True,
    "verbose": False,
    "attn_dropout": 0.3,
    "attn_sublayer_dropout": 0.3,
    "attn_zero_init_output": True,
    "attn_flash": True,
    "attn_attend_sdp_kwargs": {"enable_flash": False, "enable_math": True},
    "attn_onnxable": True,
    "ff_dropout": 0.3,
    "ff_sublayer_dropout": 0.3,
    "ff_zero_init_output": True,
}
MATCHED = {
    name.removeprefix("enc_").removeprefix("dec_").removeprefix("cross_")
    for case in CASES.values()
    for name in case
}
# Without effect in an encoder.
HARMLESS_IN_AN_ENCODER = {"logits_dim", "return_only_embed", "to_logits", "only_cross"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_option_is_matched_without_effect_or_unsupported(name):
    if name in DEFAULTS:
        required = SIGNATURES[name] is inspect.Parameter.empty
        assert DEFAULTS[name] == (None if required else SIGNATURES[name])
        assert name in MATCHED | {"num_tokens", "attn_dim_head"}, "no test of the numbers has it"
    elif name in WITHOUT_EFFECT:
        assert name in HARMLESS
    else:
        assert name in REFUSED.keys() | NOT_TRIED | INTERNAL, "release 2.31.10 did not have it"
        sizes = {"dim": 10, **both(num_tokens=13, max_seq_len=16, depth=1)}
        for side in ("enc_", "dec_"):
            with pytest.raises(rs.convert.UnsupportedFeature, match=f" {side}{name} "):
                rs.convert.from_x_transformers({}, sizes | {f"{side}{name}": True}, **CONVENTIONS)


def test_the_lists_name_existing_options_only():
    assert (
        SIGNATURES.keys()
        == DEFAULTS.keys() | WITHOUT_EFFECT | REFUSED.keys() | NOT_TRIED | INTERNAL
    )
    signature = inspect.signature(xt.XTransformer).parameters
    named = {p.name: p.default for p in signature.values() if p.kind is p.KEYWORD_ONLY}
    assert named == {"dim": inspect.Parameter.empty} | SHARED


@pytest.mark.parametrize("side", ["enc_", "dec_"])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_live_modules_with_unsupported_options_raise(name, side):
    options = {
        option if option == "dim" else side + option: value
        for option, value in REFUSED[name].items()
    }
    if side == "enc_" and name in {"rotary_xpos", "rotary_xpos_scale_base"}:
        with pytest.raises(AssertionError, match="not compatible with bidirectional"):
            random_network(np.random.default_rng(0), options)
        return
    network = random_network(np.random.default_rng(0), options)
    if side == "enc_" and name in HARMLESS_IN_AN_ENCODER:
        network.convert()
        return
    with pytest.raises(rs.convert.UnsupportedFeature, match="implemented"):
        network.convert()


@pytest.mark.parametrize("name", HARMLESS)
def test_options_without_effect_have_none(name):
    rng = np.random.default_rng(0)
    network = random_network(rng, both(**{name: HARMLESS[name]}))
    network.convert()
    model = network.in_float64()
    batch = random_batch(rng, network.options, "right")
    got = rs.forward(model, batch.source, batch.target, batch.mask)
    close(got, network.logits(batch.source, batch.mask, batch.target))
