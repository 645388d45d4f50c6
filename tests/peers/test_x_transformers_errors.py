"""What a conversion from x-transformers refuses, beside options."""

import copy

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import torch
from x_transformers import TransformerWrapper
from xt_networks import CONVENTIONS, Network, both, random_network

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_x_transformers

QUERY = "encoder.attn_layers.layers.0.1.to_q.weight"


def network_with(**options: object) -> Network:
    return random_network(np.random.default_rng(0), options)


def refused(network: Network, part: str) -> None:
    with pytest.raises(UnsupportedFeature, match=part):
        network.convert()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.pop(QUERY),
            f"no array {QUERY}, from which encoder.layers.0.self_attention.w_q",
        ),
        (lambda a: a.update({QUERY: a[QUERY][1:]}), f"{QUERY} has shape"),
        (lambda a: a.update(extra=a[QUERY]), "do not account for: extra"),
        (lambda a: a.update({QUERY: a[QUERY].astype("float64")}), "one dtype"),
        (lambda a: a.update({QUERY: a[QUERY].astype("int64")}), f"{QUERY} must be float16"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
    network = network_with()
    arrays = network.arrays()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        from_x_transformers(arrays, network.options, **CONVENTIONS)


def test_arrays_that_contradict_the_options_are_named():
    network = network_with(**both(rotary_pos_emb=True, num_tokens=13))
    arrays = network.arrays()
    with pytest.raises(ValueError, match="tie_token_emb is True, but encoder"):
        from_x_transformers(arrays, network.options | {"tie_token_emb": True}, **CONVENTIONS)
    name = "decoder.net.attn_layers.rotary_pos_emb.inv_freq"
    arrays[name] = arrays[name] * np.float32(0.9)
    with pytest.raises(ValueError, match=f"{name} has other frequencies"):
        from_x_transformers(arrays, network.options, **CONVENTIONS)


@pytest.mark.parametrize("name", ["dim", "enc_depth", "dec_num_tokens", "dec_max_seq_len"])
def test_an_option_that_is_needed_is_named(name):
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
        (both(post_emb_norm=True, use_rmsnorm=True), "enc_post_emb_norm"),
        (both(rotary_pos_emb=True, alibi_pos_bias=True), "enc_alibi_pos_bias"),
        (both(attn_qk_norm=True, attn_qk_rmsnorm=True), "enc_attn_qk_rmsnorm"),
        (both(attn_gate_values=True, attn_gate_value_heads=True), "enc_attn_gate_value_heads"),
    ],
)
def test_combinations_that_are_not_implemented_are_named(options, named):
    network = network_with()
    with pytest.raises(UnsupportedFeature, match=f" {named} "):
        from_x_transformers(network.arrays(), network.options | options, **CONVENTIONS)


def test_a_module_that_was_altered_is_refused():
    network = network_with()
    network.encoder.attn_layers.layers[0][1].register_forward_hook(lambda *_: None)
    refused(network, "_forward_hooks")
    network = network_with()
    network.decoder.net.attn_layers.layers[0][1].attend.attn_fn = torch.nn.functional.softmax
    refused(network, "attn_fn")
    network = network_with()
    network.decoder.net.attn_layers.layers[0][1].scale = 0.3
    refused(network, "layers.0.1.scale")
    network = network_with(**both(rotary_pos_emb=True))
    network.decoder.net.attn_layers.rotary_pos_emb.inv_freq.mul_(0.9)
    refused(network, "rotary_pos_emb.inv_freq")
    network = network_with(dec_depth=2)
    layers = network.decoder.net.attn_layers.layers
    layers[5][1] = torch.nn.Identity()
    refused(network, "layers.5.1.class")
    network = network_with()
    network.encoder.attn_layers.layers[0][1] = torch.nn.Identity()
    refused(network, "a layer has no Attention")


@pytest.mark.parametrize("option", ["alibi_pos_bias", "rel_pos_bias", "rotary_pos_emb"])
def test_a_module_that_was_used_copied_and_set_to_training_is_the_same(option):
    network = network_with(**both(**{option: True}))
    model = network.convert()
    ids = np.array([[3, 4, 5]])
    network.generate(ids, None, ids, 3, temperature=0.0)
    network.module = copy.deepcopy(network.module).train()
    again = network.convert()
    assert again.config == model.config
    np.testing.assert_array_equal(rs.forward(again, ids, ids), rs.forward(model, ids, ids))


def compiled(module):
    return torch.compile(module, backend="eager")


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


def compiled_and_put_aside(network):
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
        compiled_and_put_aside,
    ],
    ids=["whole", "pair", "pair without loop", "parts", "in place", "put aside"],
)
def test_a_compiled_module_is_the_same(change):
    """Tied tables too, which are found by their identity."""
    network = network_with(tie_token_emb=True, **both(num_tokens=13, rotary_pos_emb=True))
    model = network.convert()
    network.module = change(network)
    again = network.convert()
    assert again.config == model.config
    ids = np.array([[3, 4, 5]])
    np.testing.assert_array_equal(rs.forward(again, ids, ids), rs.forward(model, ids, ids))


def test_the_arrays_of_a_compiled_module_are_the_same():
    """As tensors of bfloat16 that require gradients."""
    network = network_with(tie_token_emb=True, **both(num_tokens=13, rotary_pos_emb=True))
    network.module.to(torch.bfloat16)
    model = network.convert()
    arrays = with_compiled_parts(network).state_dict(keep_vars=True)
    assert any("_orig_mod." in name and x.requires_grad for name, x in arrays.items())
    again = from_x_transformers(arrays, network.options, **CONVENTIONS)
    assert again.config == model.config
    assert again.dtype == np.float32
    ids = np.array([[3, 4, 5]])
    np.testing.assert_array_equal(rs.forward(again, ids, ids), rs.forward(model, ids, ids))


def test_adapters_are_refused():
    """As the package peft places them: around the module, or beside its projections."""
    cure = r"adapters.*not merged.*merge_and_unload\(\)"
    network = network_with()
    wrapper = type("PeftModel", (torch.nn.Module,), {"__module__": "peft.peft_model"})()
    for module in (wrapper, (network.encoder, wrapper)):
        with pytest.raises(UnsupportedFeature, match=cure):
            from_x_transformers(module, **CONVENTIONS)
    attention = network.encoder.attn_layers.layers[0][1]
    adapted = torch.nn.Module()
    adapted.base_layer = attention.to_q
    adapted.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(3, 2, bias=False)})
    attention.to_q = adapted
    refused(network, cure)
    with pytest.raises(UnsupportedFeature, match=cure):
        network.convert_arrays()


def test_values_that_are_no_arrays_are_refused():
    network = network_with(**both(rotary_pos_emb=True))
    lists = {name: x.tolist() for name, x in network.arrays().items()}
    with pytest.raises(TypeError, match=r"encoder\..* must be an array.*list: .*numpy\.asarray"):
        from_x_transformers(lists, network.options, **CONVENTIONS)
    network.module.to("meta")
    with pytest.raises(ValueError, match=r"on the meta device.*load the weights"):
        network.convert()


def test_what_is_changed_in_a_compiled_module_is_seen():
    network = network_with()
    network.module = compiled(network.module)
    network.encoder.attn_layers.layers[0][1].scale = 0.3
    refused(network, r"encoder\.attn_layers\.layers\.0\.1\.scale")
    network = network_with()
    network.encoder.attn_layers = compiled(network.encoder.attn_layers)
    network.encoder.attn_layers.register_forward_hook(lambda *_: None)
    refused(network, r"encoder\.attn_layers\..*_forward_hooks")
    network = network_with()
    encoder = compiled(network.encoder)
    encoder.register_forward_hook(lambda *_: None)
    network.module = (encoder, network.decoder)
    refused(network, r"encoder\..*_forward_hooks")


def test_a_subclass_is_refused():
    network = network_with()
    network.encoder.__class__ = type("Mine", (TransformerWrapper,), {})
    refused(network, "encoder is a Mine")


def test_a_copy_whose_logits_use_the_original_is_refused():
    network = network_with(dec_tie_embedding=True)
    network.module = copy.deepcopy(network.module)
    refused(network, "embedding of its original")


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (None, "NoneType"),
        ("model.pt", "the path 'model.pt': load the file first"),
        (torch.nn.Linear(2, 3), "Linear"),
        ((1, 2, 3), "tuple"),
    ],
)
def test_something_else_than_a_module_is_a_type_error(module, found):
    with pytest.raises(TypeError, match=f"must be an XTransformer, a pair.* got {found}"):
        from_x_transformers(module, **CONVENTIONS)


def test_options_go_with_arrays_only():
    network = network_with()
    for options in (None, ["dim"]):
        with pytest.raises(TypeError, match="arrays need options: a mapping"):
            from_x_transformers(network.arrays(), options, **CONVENTIONS)
    with pytest.raises(TypeError, match=r"options .* a module has its own"):
        from_x_transformers(network.module, network.options, **CONVENTIONS)


def test_pad_id_is_the_modules_pad_value():
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


def test_training_on_does_not_change_the_converted_model():
    network = network_with()
    model = network.convert()
    before = rs.forward(model, [[3, 4]], [[1, 5]])
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(rs.forward(model, [[3, 4]], [[1, 5]]), before)
