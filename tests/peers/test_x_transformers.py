"""Live against x-transformers: the same logits, the same greedy tokens, the same samples.

x-transformers 2.31 computes the attention's softmax in float32 whatever the model's dtype,
and stores rotary and sinusoidal frequencies rounded to float32. For comparisons to 1e-12, the
peer computes both in float64 instead, after conversion; one test measures the difference that
this makes.
"""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import torch
from comparisons import assert_same_model, relative_error
from x_transformers import x_transformers as xt
from xt_networks import both, check_greedy, close, random_batch, random_network

import refseq2seq as rs
from refseq2seq.positions import alibi_slopes

N_NEW = 4

# One entry per option or combination.
CASES = {
    "tie_token_emb": {"tie_token_emb": True, **both(num_tokens=13)},
    "rotary": both(rotary_pos_emb=True),
    "rotary of all entries": both(rotary_pos_emb=True, attn_dim_head=6, rotary_emb_dim=6),
    "rotary, odd": both(rotary_pos_emb=True, attn_dim_head=6, rotary_emb_dim=5),
    "rotary and absolute": both(rotary_pos_emb=True, disable_abs_pos_emb=False),
    "alibi": both(alibi_pos_bias=True),
    "alibi alone": both(alibi_pos_bias=True, disable_abs_pos_emb=True),
    "alibi on some heads": both(alibi_pos_bias=True, heads=5, alibi_num_heads=3),
    "alibi, slopes that float32 rounds": both(alibi_pos_bias=True, heads=17, attn_dim_head=3),
    "relative bias": both(rel_pos_bias=True),
    "relative bias, few buckets": both(
        rel_pos_bias=True, rel_pos_num_buckets=6, rel_pos_max_distance=9
    ),
    "sinusoids": both(scaled_sinu_pos_emb=True),
    "no positions": both(use_abs_pos_emb=False),
    "max_seq_len=0": {"enc_max_seq_len": 0},
    "rmsnorm": both(use_rmsnorm=True),
    "scalenorm": both(use_scalenorm=True),
    "simple_rmsnorm": both(use_simple_rmsnorm=True),
    "no unit offset": both(norm_add_unit_offset=False),
    "rmsnorm, no unit offset": both(norm_add_unit_offset=False, use_rmsnorm=True),
    "scalenorm, no unit offset": both(norm_add_unit_offset=False, use_scalenorm=True),
    "post-norm": both(pre_norm=False),
    "post-norm scalenorm": both(pre_norm=False, use_scalenorm=True),
    "sandwich": both(sandwich_norm=True),
    "sandwich rmsnorm": both(sandwich_norm=True, use_rmsnorm=True),
    "pre and post norm": both(pre_and_post_norm=True),
    "no final norm": both(pre_norm_has_final_norm=False),
    "post_emb_norm": both(post_emb_norm=True),
    "glu": both(ff_glu=True),
    "swiglu": both(ff_glu=True, ff_swish=True),
    "glu without biases": both(ff_glu=True, ff_no_bias=True),
    "swish": both(ff_swish=True),
    "relu squared": both(ff_relu_squared=True),
    "relu squared glu": both(ff_relu_squared=True, ff_glu=True, ff_swish=True),
    "no biases": both(ff_no_bias=True),
    "ff_mult": both(ff_mult=1.7),
    "post_act_ln": both(ff_post_act_ln=True),
    "post_act_ln glu": both(ff_post_act_ln=True, ff_glu=True),
    "qk_norm": both(attn_qk_norm=True),
    "qk_norm_scale": both(attn_qk_norm=True, attn_qk_norm_scale=7),
    "qk_norm, learned": both(attn_qk_norm=True, attn_qk_norm_dim_scale=True),
    "qk_norm, learned, grouped": both(
        attn_qk_norm=True, attn_qk_norm_dim_scale=True, heads=4, attn_kv_heads=2
    ),
    "qk_rmsnorm": both(attn_qk_rmsnorm=True),
    "kv_heads": both(heads=6, attn_kv_heads=2),
    "one_kv_head": both(attn_one_kv_head=True),
    "value_dim_head": both(attn_value_dim_head=4),
    "one head": both(dim=7, heads=1, attn_dim_head=7),
    "one head, projected": both(heads=1, attn_project_out=True),
    "memory kv": both(attn_num_mem_kv=3),
    "memory kv, qk_norm, grouped": both(
        attn_num_mem_kv=3, attn_qk_norm=True, attn_qk_norm_dim_scale=True, heads=4, attn_kv_heads=2
    ),
    "memory kv, qk_rmsnorm": both(attn_num_mem_kv=2, attn_qk_rmsnorm=True),
    "memory kv, relative bias": both(attn_num_mem_kv=2, rel_pos_bias=True),
    "memory tokens": {"enc_num_memory_tokens": 3},
    "memory tokens, rotary": {"enc_num_memory_tokens": 3, **both(rotary_pos_emb=True)},
    "memory tokens, alibi": {"enc_num_memory_tokens": 2, **both(alibi_pos_bias=True)},
    "gate_values": both(attn_gate_values=True),
    "gate_values_headwise": both(attn_gate_values=True, attn_gate_values_headwise=True),
    "gate_value_heads": both(attn_gate_value_heads=True),
    "head_scale": both(attn_head_scale=True),
    "softclamp": both(attn_softclamp_logits=True, attn_logit_softclamp_value=0.7),
    "softclamp, relative bias, memory kv": both(
        attn_softclamp_logits=True, rel_pos_bias=True, attn_num_mem_kv=2
    ),
    "cross sizes": {"dec_cross_attn_dim_head": 4, "dec_cross_attn_num_mem_kv": 2},
    "cross conventions": {
        "dec_attn_qk_norm": True,
        "dec_cross_attn_qk_norm": False,
        "dec_heads": 4,
        "dec_cross_attn_kv_heads": 2,
        "dec_cross_attn_gate_values": True,
        "dec_attn_head_scale": True,
    },
    "tied layers": both(weight_tie_layers=True, depth=3),
    "layers in another order": {
        "dec_depth": 2,
        "dec_layers_execute_order": (3, 4, 5, 0, 1, 2, 3, 4, 5),
    },
    "flash": both(attn_flash=True),
    "flash, alibi": both(attn_flash=True, alibi_pos_bias=True),
    "tie_embedding": {"dec_tie_embedding": True},
    "tie_embedding_scale": {"dec_tie_embedding": True, "dec_tie_embedding_scale": 0.3},
    "two widths": {"enc_dim": 7, "dec_dim": 11, "dec_cross_attn_dim_context": 7},
    "modern": both(
        use_rmsnorm=True,
        rotary_pos_emb=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        heads=4,
        attn_kv_heads=2,
        attn_qk_rmsnorm=True,
        attn_gate_values=True,
    ),
}
# x-transformers counts absolute positions from the padding on, relative ones correctly.
LEFT_PADDED = {"rotary", "alibi alone", "relative bias", "no positions", "modern"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_hundred_networks_with_default_options(dtype, say):
    near_ties = rows = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        network = random_network(rng, {})
        model = network.in_float64() if dtype == "float64" else network.convert_arrays()
        batch = random_batch(rng, network.options, "right")
        assert model.dtype == dtype
        got = rs.forward(model, batch.source, batch.target, batch.mask)
        close(got, network.logits(batch.source, batch.mask, batch.target))
        near_ties += check_greedy(network, model, batch, batch.target[:, : 1 + seed % 3], N_NEW)
        rows += len(batch.source)
    say(f"{dtype}: {near_ties} of {rows} rows differ, all at near-ties")
    assert near_ties <= (0 if dtype == "float64" else rows // 100)


@pytest.mark.parametrize("case", CASES)
def test_module_arrays_and_saved_file_give_the_same_model(case, tmp_path):
    network = random_network(np.random.default_rng(0), CASES[case])
    state = torch.random.get_rng_state()
    model = network.convert()
    assert torch.equal(torch.random.get_rng_state(), state)
    rs.save(model, tmp_path / "model.npz")
    assert model.dtype == "float32"
    for other in (network.convert_arrays(), rs.load(tmp_path / "model.npz")):
        assert_same_model(other, model)


@pytest.mark.parametrize("case", CASES)
def test_thirty_networks_with_an_option(case):
    for seed in range(30):
        rng = np.random.default_rng([seed, sum(map(ord, case))])
        network = random_network(rng, CASES[case])
        model = network.in_float64()
        padding = "left" if case in LEFT_PADDED and seed % 3 == 0 else "right"
        batch = random_batch(rng, network.options, padding)
        got = rs.forward(model, batch.source, batch.target, batch.mask)
        close(got, network.logits(batch.source, batch.mask, batch.target))
        prefix = batch.target[:, : 1 + seed % 2]
        if seed % 3 == 2 and case != "sinusoids":  # where the peer raises
            prefix = ragged(batch.target)
        assert check_greedy(network, model, batch, prefix, N_NEW) == 0


def ragged(target: np.ndarray) -> list[list[int]]:
    """Prefixes of 1, 2 and all tokens."""
    return [row[:n].tolist() for row, n in zip(target, (1, 2, None), strict=True)]


def test_alibi_slopes_for_any_number_of_heads():
    for n in range(1, 130):
        slopes = xt.AlibiPositionalBias(heads=n).slopes.flatten().numpy()
        np.testing.assert_array_equal(np.float32(alibi_slopes(n)), slopes)


FILTERS = {
    "top_k": [{}, {"frac_num_tokens": 0.4}, {"k": 3}],
    "top_p": [{}, {"thres": 0.5}],
    "top_a": [{}, {"min_p_pow": 1.5, "min_p_ratio": 0.1}],
    "min_p": [{}, {"min_p": 0.3}],
}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("name", "arguments"), [(name, a) for name, all_of in FILTERS.items() for a in all_of]
)
def test_samples_under_the_same_noise(name, arguments, temperature, monkeypatch):
    for seed in range(3):
        rng = np.random.default_rng([seed, len(name)])
        network = random_network(rng, {})
        model = network.in_float64()
        batch = random_batch(rng, network.options, "right")
        batch.target = batch.target[:, :1]
        how = {"temperature": temperature, "filter_logits_fn": name, "filter_kwargs": arguments}

        def sampled(seed=seed, network=network, batch=batch, how=how):
            torch.manual_seed(seed)
            return network.generate(batch.source, batch.mask, batch.target, 8, **how)

        theirs, noise = sampled(), []

        def race(probs, n, noise=noise):
            noise.append(torch.empty_like(probs).exponential_())
            return (probs / noise[-1]).argmax(dim=-1, keepdim=True)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "multinomial", race)
            np.testing.assert_array_equal(sampled(), theirs)
        pick = partial(rs.exponential_race, torch.stack(noise).numpy())
        ours = rs.generate(
            model,
            batch.source,
            source_mask=batch.mask,
            max_new_tokens=8,
            choose=rs.like.x_transformers(**how, pick=pick),
        )
        np.testing.assert_array_equal(ours.tokens, theirs[:, : ours.tokens.shape[1]])
        assert (theirs[:, ours.tokens.shape[1] :] == 0).all()


def test_float32_parts_of_float64_networks(say):
    """Its softmax, rotary angles and sinusoids carry float32's rounding, 2^-24 = 6e-8."""
    errors = {"defaults": [], "rotary": [], "sinusoids": []}
    for case, found in errors.items():
        for seed in range(10):
            rng = np.random.default_rng(seed)
            network = random_network(rng, CASES.get(case, {}))
            for part in network.parts:
                part.double()
            batch = random_batch(rng, network.options, "right")
            theirs = network.logits(batch.source, batch.mask, batch.target)
            ours = rs.forward(network.convert(), batch.source, batch.target, batch.mask)
            found.append(relative_error(ours, theirs))
        assert 1e-9 < max(found) < 1e-5
    say(f"float64 as shipped: { {case: f'{max(x):.1e}' for case, x in errors.items()} }")
