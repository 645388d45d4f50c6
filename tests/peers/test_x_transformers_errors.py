"""Conversion from x-transformers: errors, compiled modules, dtypes. Options are elsewhere."""

import copy

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import torch
from comparisons import MERGE, add_lora, assert_same_model, compiled, peft_model
from x_transformers import TransformerWrapper
from xt_networks import CONVENTIONS, Network, both, random_network

from refseq2seq.convert import UnsupportedFeature, from_x_transformers

QUERY = "encoder.attn_layers.layers.0.1.to_q.weight"
FREQUENCIES = "decoder.net.attn_layers.rotary_pos_emb.inv_freq"


def network_with(**options: object) -> Network:
    return random_network(np.random.default_rng(0), options)


def attention(network: Network) -> torch.nn.Module:
    return network.encoder.attn_layers.layers[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(QUERY), f"no array {QUERY}"),
        (lambda a: a.update({QUERY: a[QUERY][1:]}), f"{QUERY} has shape"),
        (lambda a: a.update(extra=a[QUERY]), "extra"),
        (lambda a: a.update({QUERY: a[QUERY].astype("float64")}), "one dtype"),
        (lambda a: a.update({QUERY: a[QUERY].astype("int64")}), f"{QUERY} must be float16"),
        (lambda a: a.update({FREQUENCIES: a[FREQUENCIES] * np.float32(0.9)}), FREQUENCIES),
    ],
)
def test_arrays_that_do_not_fit_raise(change, message):
    network = network_with(**both(rotary_pos_emb=True))
    arrays = network.arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        from_x_transformers(arrays, network.options, **CONVENTIONS)


def test_tied_tables_that_differ_raise():
    network = network_with(**both(num_tokens=13))
    options = network.options | {"tie_token_emb": True}
    with pytest.raises(ValueError, match="tie_token_emb"):
        from_x_transformers(network.arrays(), options, **CONVENTIONS)


@pytest.mark.parametrize("name", ["dim", "enc_depth", "dec_num_tokens", "dec_max_seq_len"])
def test_missing_options_raise(name):
    network = network_with()
    options = {key: value for key, value in network.options.items() if key != name}
    with pytest.raises(ValueError, match=name):
        from_x_transformers(network.arrays(), options, **CONVENTIONS)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dec_attn_kv_heads": (1, 2)}, "dec_attn_kv_heads"),
        ({"dec_cross_attn_kv_heads": (1, 2)}, "dec_cross_attn_kv_heads"),
        ({"dec_cross_heads": 2}, "dec_cross_heads"),
        ({"heads": 2}, "heads"),
        ({"dec_layers_execute_order": (0, 2, 1)}, "dec_layers_execute_order"),
        ({"dec_num_memory_tokens": 2}, "dec_num_memory_tokens"),
        ({"dec_dim_in": 5}, "dec_dim_in"),
        ({"enc_num_register_tokens": 2}, "enc_num_register_tokens"),
        ({"enc_image_size": 6, "enc_patch_size": 2}, "enc_num_tokens"),
        (both(post_emb_norm=True, use_rmsnorm=True), "enc_post_emb_norm"),
        (both(rotary_pos_emb=True, alibi_pos_bias=True), "enc_alibi_pos_bias"),
        (both(attn_qk_norm=True, attn_qk_rmsnorm=True), "enc_attn_qk_rmsnorm"),
        (both(attn_gate_values=True, attn_gate_value_heads=True), "enc_attn_gate_value_heads"),
    ],
)
def test_combinations_that_are_not_implemented_raise(options, named):
    network = network_with()
    with pytest.raises(UnsupportedFeature, match=f" {named} "):
        from_x_transformers(network.arrays(), network.options | options, **CONVENTIONS)


ROTARY = both(rotary_pos_emb=True)


def hook(module):
    module.register_forward_hook(lambda *_: None)


def replace_block(layers, i):
    layers[i][1] = torch.nn.Identity()


def compile_and_scale(network):
    network.module = compiled(network.module)
    attention(network).scale = 0.3


def compile_layers_and_hook(network):
    network.encoder.attn_layers = compiled(network.encoder.attn_layers)
    hook(network.encoder.attn_layers)


def compile_encoder_and_hook(network):
    network.module = (compiled(network.encoder), network.decoder)
    hook(network.module[0])


def copy_module(network):
    network.module = copy.deepcopy(network.module)


class Mine(TransformerWrapper):
    """Another class."""


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, lambda n: hook(attention(n)), "_forward_hooks"),
        ({}, lambda n: setattr(attention(n).attend, "attn_fn", torch.softmax), "attn_fn"),
        ({}, lambda n: setattr(attention(n), "scale", 0.3), r"layers\.0\.1\.scale"),
        (ROTARY, lambda n: n.encoder.attn_layers.rotary_pos_emb.inv_freq.mul_(0.9), "inv_freq"),
        ({"enc_depth": 2}, lambda n: replace_block(n.encoder.attn_layers.layers, 3), "3.1.class"),
        ({}, lambda n: replace_block(n.encoder.attn_layers.layers, 0), "no Attention"),
        ({}, compile_and_scale, r"encoder\.attn_layers\.layers\.0\.1\.scale"),
        ({}, compile_layers_and_hook, r"encoder\.attn_layers\..*_forward_hooks"),
        ({}, compile_encoder_and_hook, r"encoder\..*_forward_hooks"),
        ({}, lambda n: setattr(n.encoder, "__class__", Mine), "encoder is a Mine"),
        ({"dec_tie_embedding": True}, copy_module, "embedding of its original"),
    ],
)
def test_altered_modules_raise(options, change, message):
    network = network_with(**options)
    change(network)
    with pytest.raises(UnsupportedFeature, match=message):
        network.convert()


@pytest.mark.parametrize("option", ["alibi_pos_bias", "rel_pos_bias", "rotary_pos_emb"])
def test_used_and_copied_modules_in_training_convert_alike(option):
    network = network_with(**both(**{option: True}))
    model = network.convert()
    ids = np.array([[3, 4, 5]])
    network.generate(ids, None, ids, 3, temperature=0.0)
    network.module = copy.deepcopy(network.module).train()
    assert_same_model(network.convert(), model)


def with_compiled_parts(network):
    """An XTransformer with all compiled that may be: its sides, their layers, an attention."""
    layers = network.encoder.attn_layers.layers
    layers[0][1] = compiled(layers[0][1])
    for part in (network.encoder, network.decoder.net):
        part.attn_layers = compiled(part.attn_layers)
    network.module.encoder = compiled(network.encoder)
    network.decoder.net = compiled(network.decoder.net)
    return network.module


def compiled_in_place(network):
    network.module.encoder.compile(backend="eager")
    return network.module


def compiled_unused(network):
    compiled(network.encoder)
    return network.module


@pytest.mark.parametrize(
    "change",
    [
        lambda network: compiled(network.module),
        lambda network: (compiled(network.encoder), compiled(network.decoder)),
        lambda network: (compiled(network.encoder), compiled(network.decoder.net)),
        with_compiled_parts,
        compiled_in_place,
        compiled_unused,
    ],
    ids=["whole", "pair", "pair without loop", "parts", "in place", "unused"],
)
def test_compiled_modules_convert_alike(change):
    """With tied tables too, which are found by their identity."""
    network = network_with(tie_token_emb=True, **both(num_tokens=13, rotary_pos_emb=True))
    model = network.convert()
    network.module = change(network)
    assert_same_model(network.convert(), model)


def test_arrays_of_compiled_modules_convert_alike():
    """Tensors of bfloat16 that require gradients."""
    network = network_with(tie_token_emb=True, **both(num_tokens=13, rotary_pos_emb=True))
    network.module.to(torch.bfloat16)
    model = network.convert()
    arrays = with_compiled_parts(network).state_dict(keep_vars=True)
    assert any("_orig_mod." in name and x.requires_grad for name, x in arrays.items())
    again = from_x_transformers(arrays, network.options, **CONVENTIONS)
    assert again.dtype == np.float32
    assert_same_model(again, model)


def test_adapters_raise():
    network = network_with()
    for module in (peft_model(), (network.encoder, peft_model())):
        with pytest.raises(UnsupportedFeature, match=MERGE):
            from_x_transformers(module, **CONVENTIONS)
    add_lora(attention(network), "to_q")
    for convert in (network.convert, network.convert_arrays):
        with pytest.raises(UnsupportedFeature, match=MERGE):
            convert()


ARGUMENTS = [
    (lambda n: [None], TypeError, "must be an XTransformer, a pair.* got NoneType"),
    (lambda n: ["model.pt"], TypeError, "must be an XTransformer.* the path 'model.pt'"),
    (lambda n: [torch.nn.Linear(2, 3)], TypeError, "must be an XTransformer.* got Linear"),
    (lambda n: [(1, 2, 3)], TypeError, "must be an XTransformer, a pair.* got tuple"),
    (lambda n: [n.arrays(), None], TypeError, "arrays need options: a mapping"),
    (lambda n: [n.arrays(), ["dim"]], TypeError, "arrays need options: a mapping"),
    (lambda n: [n.module, n.options], TypeError, "options"),
    (
        lambda n: [{name: x.tolist() for name, x in n.arrays().items()}, n.options],
        TypeError,
        r"encoder\..* must be an array.*list",
    ),
    (lambda n: [n.module.to("meta")], ValueError, "on the meta device"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_of_another_type_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        from_x_transformers(*arguments(network_with(**ROTARY)), **CONVENTIONS)


def test_pad_id_is_pad_value_by_default():
    network = network_with(pad_value=3)
    assert network.convert().config.pad_id == network.convert_arrays().config.pad_id == 3
    model = from_x_transformers(network.module, pad_id=4, **CONVENTIONS)
    assert model.config.pad_id == 4


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_the_dtype_is_kept_and_bfloat16_widened(dtype):
    network = network_with(**both(rotary_pos_emb=True))
    network.module.to(getattr(torch, dtype))
    model = network.convert()
    assert model.dtype == ("float32" if dtype == "bfloat16" else dtype)
    stored = network.decoder.net.to_logits.weight.detach().double().numpy()
    np.testing.assert_array_equal(model.params.unembedding, stored.T)


def test_converted_arrays_are_copies():
    network = network_with()
    model = network.convert()
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.zero_()
    assert_same_model(model, network_with().convert())
