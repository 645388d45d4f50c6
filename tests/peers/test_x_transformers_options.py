"""Every option of x-transformers is matched, without effect, or refused by name.

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

# How to switch on each option that is refused, with what it needs to make a difference.
# None: in an encoder-decoder the peer itself raises, or the option makes none.
REFUSED = {
    "embed_num_tokens": {"embed_num_tokens": {"kind": 3}},
    "emb_dim": {"emb_dim": 9},
    "memory_tokens_interspersed_every": {
        "num_memory_tokens": 2,
        "memory_tokens_interspersed_every": 4,
    },
    "logits_dim": {"logits_dim": 9},
    "return_only_embed": {"return_only_embed": True},
    "num_output_heads": {"num_output_heads": 2},
    "l2norm_embed": {"l2norm_embed": True},
    "recycling": {"recycling": True},
    "train_max_recycle_steps": None,
    "looped": {"looped": True, "pre_and_post_norm": True},
    "max_looped_steps": {"looped": True, "pre_and_post_norm": True, "max_looped_steps": 2},
    "average_pool_embed": {"average_pool_embed": True},
    "use_cls_token": {"use_cls_token": True},
    "num_cls_tokens": {"use_cls_token": True, "num_cls_tokens": 2},
    "attn_pool": {"attn_pool": True},
    "num_pooled_tokens": {"attn_pool": True, "num_pooled_tokens": 2},
    "attn_pool_depth": {"attn_pool": True, "attn_pool_depth": 2},
    "dim_pooled_tokens": {"attn_pool": True, "dim_pooled_tokens": 6},
    "squeeze_out_last_dim": {"squeeze_out_last_dim": True},
    "token_emb": {"token_emb": nn.Embedding(20, 10), "dim": 10},
    "mixture_of_softmax": {"mixture_of_softmax": True},
    "mixture_of_softmax_k": {"mixture_of_softmax": True, "mixture_of_softmax_k": 2},
    "sigsoftmax_logits": {"sigsoftmax_logits": True},
    "ff_deep_embed": {"ff_deep_embed": True},
    "to_logits": {"to_logits": nn.Linear(10, 13), "dim": 10},
    "add_continuous_pred_head": {"add_continuous_pred_head": True},
    "input_not_include_cache": {"input_not_include_cache": True},
    "only_cross": {"only_cross": True},
    "only_attn": {"only_attn": True},
    "use_dynamic_tanh": {"use_dynamic_tanh": True},
    "dynamic_tanh_init_alpha": {"use_dynamic_tanh": True, "dynamic_tanh_init_alpha": 0.5},
    "use_derf": {"use_derf": True},
    "use_adaptive_layernorm": {"use_adaptive_layernorm": True},
    "use_adaptive_rmsnorm": {"use_adaptive_rmsnorm": True},
    "use_adaptive_layerscale": {"use_adaptive_layerscale": True},
    "dim_condition": {"use_adaptive_layernorm": True, "dim_condition": 6},
    "adaptive_condition_mlp": {"use_adaptive_layernorm": True, "adaptive_condition_mlp": True},
    "adaptive_condition_mlp_expansion": {
        "use_adaptive_layernorm": True,
        "adaptive_condition_mlp": True,
        "adaptive_condition_mlp_expansion": 2,
    },
    "dynamic_pos_bias": {"dynamic_pos_bias": True},
    "dynamic_pos_bias_log_distance": {
        "dynamic_pos_bias": True,
        "dynamic_pos_bias_log_distance": True,
    },
    "dynamic_pos_bias_mlp_depth": {"dynamic_pos_bias": True, "dynamic_pos_bias_mlp_depth": 3},
    "dynamic_pos_bias_norm": {"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True},
    "rotary_xpos": {"rotary_xpos": True},
    "rotary_interpolation_factor": {"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0},
    "rotary_xpos_scale_base": {"rotary_xpos": True, "rotary_xpos_scale_base": 256},
    "rotary_base_rescale_factor": {"rotary_pos_emb": True, "rotary_base_rescale_factor": 2.0},
    "rotate_num_heads": {"rotary_pos_emb": True, "rotate_num_heads": 1},
    "polar_pos_emb": {"polar_pos_emb": True},
    "polar_bias_uniform_init": None,
    "custom_layers": {"custom_layers": ("a", "f", "f"), "depth": None},
    "sandwich_coef": {"depth": 3, "sandwich_coef": 1},
    "par_ratio": {"depth": 4, "par_ratio": 3},
    "residual_attn": {"residual_attn": True},
    "cross_residual_attn": {"cross_residual_attn": True},
    "macaron": {"macaron": True},
    "attn_aggregated_residuals": {
        "attn_aggregated_residuals": True,
        "attn_aggregated_residual_kwargs": {"lora_rank": 3},
    },
    "attn_aggregated_residual_kwargs": {
        "attn_aggregated_residuals": True,
        "attn_aggregated_residual_kwargs": {"lora_rank": 2},
    },
    "gate_residual": {"gate_residual": True},
    "orthog_residual": {"orthog_residual": True},
    "mv_split_residual": {"mv_split_residual": True},
    "gated_multi_residual": {
        "gated_multi_residual": True,
        "num_residual_streams": 2,
        "residual_fn_kwargs": {"read_gate_rank": 3},
    },
    "scale_residual": {"scale_residual": True},
    "scale_residual_constant": {"scale_residual_constant": 1.5},
    "depth_scale_residual": {"depth_scale_residual": 0.5},
    "shift_tokens": {"shift_tokens": 1},
    "softclamp_output": {"softclamp_output": True},
    "softclamp_output_value": {"softclamp_output": True, "softclamp_output_value": 20.0},
    "use_layerscale": {"use_layerscale": True},
    "layerscale_init_value": {"use_layerscale": True, "layerscale_init_value": 0.5},
    "unet_skips": {"unet_skips": True, "depth": 3},
    "integrate_layers": {"integrate_layers": True},
    "layer_integrate_use_softmax": {
        "integrate_layers": True,
        "layer_integrate_use_softmax": False,
    },
    "num_residual_streams": {"num_residual_streams": 2},
    "qkv_receive_diff_residuals": {
        "qkv_receive_diff_residuals": True,
        "num_residual_streams": 2,
    },
    "reinject_input": {"reinject_input": True},
    "learned_reinject_input_gate": {"learned_reinject_input_gate": True},
    "add_value_residual": {"add_value_residual": True},
    "learned_value_residual_mix": {
        "add_value_residual": True,
        "learned_value_residual_mix": False,
    },
    "rel_pos_kwargs": {
        "alibi_pos_bias": True,
        "heads": 2,
        "rel_pos_kwargs": {"slopes": [0.1, 0.2]},
    },
    "residual_fn_kwargs": {
        "mv_split_residual": True,
        "residual_fn_kwargs": {"init_beta": 0.5},
    },
    "hyper_conn_sinkhorn_iters": {"num_residual_streams": 2, "hyper_conn_sinkhorn_iters": 3},
    "attn_pre_talking_heads": {"attn_pre_talking_heads": True},
    "attn_post_talking_heads": {"attn_post_talking_heads": True},
    "attn_pre_scale_post_talking_heads": {"attn_pre_scale_post_talking_heads": True},
    "attn_sparse_topk": {"attn_sparse_topk": 2},
    "attn_sparse_topk_straight_through": {
        "attn_sparse_topk": 2,
        "attn_sparse_topk_straight_through": True,
    },
    "attn_on_attn": {"attn_on_attn": True},
    "attn_swiglu_values": {"attn_gate_values": True, "attn_swiglu_values": True},
    "attn_gate_values_rank": {"attn_gate_values": True, "attn_gate_values_rank": 3},
    "attn_output_gate": {"attn_output_gate": True},
    "attn_output_gate_rank": {"attn_output_gate": True, "attn_output_gate_rank": 3},
    "attn_output_gate_headwise": {"attn_output_gate": True, "attn_output_gate_headwise": True},
    "attn_low_rank_silu_gates": {
        "attn_gate_values": True,
        "attn_gate_values_rank": 3,
        "attn_low_rank_silu_gates": False,
    },
    "attn_hard": {"attn_hard": True},
    "attn_max_attend_past": {"attn_max_attend_past": 3},
    "attn_qk_norm_groups": {"attn_qk_norm": True, "attn_qk_norm_groups": 2, "attn_dim_head": 8},
    "attn_k_rmsnorm": {"attn_k_rmsnorm": True},
    "attn_value_rmsnorm": {"attn_value_rmsnorm": True},
    "attn_l2_distance": {"attn_l2_distance": True},
    "attn_sigmoid": {"attn_sigmoid": True},
    "attn_gumbel_softmax": {"attn_gumbel_softmax": True},
    "attn_gumbel_softmax_temp": {"attn_gumbel_softmax": True, "attn_gumbel_softmax_temp": 0.5},
    "attn_gumbel_softmax_hard": {"attn_gumbel_softmax": True, "attn_gumbel_softmax_hard": False},
    "attn_selective": None,
    "attn_cog_signed": {"attn_cog_signed": True},
    "attn_custom_attn_fn": {"attn_custom_attn_fn": torch.nn.functional.softmax},
    "attn_hybrid_module": {
        "attn_hybrid_module": nn.Identity(),
        "attn_hybrid_fold_axial_dim": 1,
    },
    "attn_hybrid_mask_kwarg": {"attn_hybrid_mask_kwarg": "mask"},
    "attn_hybrid_fold_axial_dim": {
        "attn_hybrid_module": nn.Identity(),
        "attn_hybrid_fold_axial_dim": 2,
    },
    "attn_hybrid_learned_mix": {
        "attn_hybrid_module": nn.Identity(),
        "attn_hybrid_fold_axial_dim": 1,
        "attn_hybrid_learned_mix": True,
    },
    "attn_dim_out": None,
    "attn_add_zero_kv": {"attn_add_zero_kv": True},
    "attn_head_learned_sink": {"attn_head_learned_sink": True},
    "attn_data_dependent_alibi": {"attn_data_dependent_alibi": True},
    "attn_data_dependent_alibi_per_row": None,
    "attn_data_dependent_alibi_per_row_dim_head": None,
    "attn_data_dependent_alibi_kwargs": None,
    "attn_use_rel_proj_pos_bias": {"attn_use_rel_proj_pos_bias": True},
    "attn_rel_proj_num_distance_basis": {
        "attn_use_rel_proj_pos_bias": True,
        "attn_rel_proj_num_distance_basis": 4,
    },
    "attn_rel_proj_max_dist": {"attn_use_rel_proj_pos_bias": True, "attn_rel_proj_max_dist": 32},
    "attn_use_cope": None,
    "attn_cope_max_pos": None,
    "attn_cope_soft_onehot_pos": None,
    "attn_cope_talking_heads": None,
    "attn_softclamp_logits": {"attn_softclamp_logits": True},
    "attn_logit_softclamp_value": {
        "attn_softclamp_logits": True,
        "attn_logit_softclamp_value": 20.0,
    },
    "attn_orthog_projected_values": {"attn_orthog_projected_values": True},
    "attn_orthog_projected_values_per_head": {"attn_orthog_projected_values_per_head": True},
    "attn_laser": {"attn_laser": True},
    "attn_laser_softclamp_value": {"attn_laser": True, "attn_laser_softclamp_value": 9.0},
    "attn_use_latent_q": {"attn_use_latent_q": True, "attn_dim_latent_q": 5},
    "attn_dim_latent_q": {"attn_use_latent_q": True, "attn_dim_latent_q": 4},
    "attn_use_latent_kv": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 5},
    "attn_dim_latent_kv": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 4},
    "attn_latent_rope_subheads": None,
    "attn_inverted_attention": None,
    "attn_flash_pack_seq": None,
    "ff_dim_out": None,
    "ff_glu_mult_bias": {"ff_glu": True, "ff_glu_mult_bias": True},
    "ff_solu": {"ff_solu": True},
    "ff_custom_activation": {"ff_custom_activation": nn.Tanh()},
    "ff_softclamp_value": {"ff_softclamp_value": 3.0},
    "ff_glu_softclamp": {"ff_glu": True, "ff_glu_softclamp": True},
    "ff_glu_gate_softclamp_value": {
        "ff_glu": True,
        "ff_glu_softclamp": True,
        "ff_glu_gate_softclamp_value": 2.0,
    },
    "ff_glu_up_softclamp_value": {
        "ff_glu": True,
        "ff_glu_softclamp": True,
        "ff_glu_up_softclamp_value": 9.0,
    },
}
# Values of those that may be anything.
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
# What an encoder that only encodes has no use for.
HARMLESS_IN_AN_ENCODER = {"logits_dim", "return_only_embed", "to_logits", "only_cross"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_option_is_matched_without_effect_or_refused(name):
    if name in DEFAULTS:
        required = SIGNATURES[name] is inspect.Parameter.empty
        assert DEFAULTS[name] == (None if required else SIGNATURES[name])
        assert name in MATCHED | {"num_tokens", "attn_dim_head"}, "no test of the numbers has it"
    elif name in WITHOUT_EFFECT:
        assert name in HARMLESS
    else:
        assert name in REFUSED.keys() | INTERNAL, "release 2.31.10 did not have it"
        sizes = {"dim": 10, **both(num_tokens=13, max_seq_len=16, depth=1)}
        for side in ("enc_", "dec_"):
            with pytest.raises(rs.convert.UnsupportedFeature, match=f" {side}{name} "):
                rs.convert.from_x_transformers({}, sizes | {f"{side}{name}": True}, **CONVENTIONS)


def test_the_lists_name_no_option_that_does_not_exist():
    assert SIGNATURES.keys() == DEFAULTS.keys() | WITHOUT_EFFECT | REFUSED.keys() | INTERNAL
    signature = inspect.signature(xt.XTransformer).parameters
    named = {p.name: p.default for p in signature.values() if p.kind is p.KEYWORD_ONLY}
    assert named == {"dim": inspect.Parameter.empty} | SHARED


@pytest.mark.parametrize("side", ["enc_", "dec_"])
@pytest.mark.parametrize("name", [name for name, setting in REFUSED.items() if setting])
def test_a_live_module_with_an_option_that_is_not_implemented_is_refused(name, side):
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
def test_an_option_without_effect_has_none(name):
    rng = np.random.default_rng(0)
    network = random_network(rng, both(**{name: HARMLESS[name]}))
    network.convert()
    model = network.in_float64()
    batch = random_batch(rng, network.options, "right")
    got = rs.forward(model, batch.source, batch.target, batch.mask)
    close(got, network.logits(batch.source, batch.mask, batch.target))
