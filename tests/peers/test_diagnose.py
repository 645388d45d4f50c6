"""`refseq2seq.testing.diagnose` on correct modules, its hooks, its report, its errors."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import hf_models
import planted_huggingface
import planted_pytorch
import planted_x_transformers
import test_pytorch
import torch
from comparisons import compiled
from planted import MASK, SOURCE, TARGET
from test_x_transformers import CASES
from xt_networks import CONVENTIONS, both, random_batch, random_network

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature
from refseq2seq.testing import diagnose, rounded, spread
from refseq2seq.testing.diagnosis.steps import by_step


def assert_right(diagnosis, at_least=40):
    assert diagnosis.first is None, diagnosis.report()
    assert diagnosis.difference is diagnosis.unhooked is None
    assert diagnosis.compared[-1] == "unhooked.logits"
    assert len(diagnosis.compared) >= at_least


def random_case(seed, options):
    """A network of x-transformers and a batch for it."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, options)
    return network, random_batch(rng, network.options, "right")


def hugging_face_case(name, dtype="float32", left=False):
    """A model of transformers and a batch for it."""
    seed = list(hf_models.CASES).index(name)
    model = hf_models.random_model(name, seed, exact=False).to(getattr(torch, dtype))
    return model, hf_models.random_batch(model, seed, left)


def diagnosed(module, batch, **options):
    return diagnose(module, batch.source, batch.target, batch.mask, **options)


# Correct modules.


@pytest.mark.parametrize("name", CASES)
def test_x_transformers(name):
    network, batch = random_case([list(CASES).index(name), 1], CASES[name])
    model = network.convert_arrays()  # as from the module, and quicker
    found = diagnosed(network.module, batch, model=model)
    assert_right(found, 36)
    unseen = [name for name in found.not_compared if not name.endswith((".scores", ".weights"))]
    if name != "memory tokens, rotary":
        assert not unseen
    assert bool(found.not_compared) == ("flash" in name or bool(unseen))


@pytest.mark.parametrize("name", list(CASES)[::7])
def test_x_transformers_generating(name):
    network, batch = random_case([list(CASES).index(name), 2], CASES[name])
    batch.target = batch.target[:, :2]
    found = diagnosed(network.module, batch, max_new_tokens=4)
    assert_right(found)
    assert "step.3.logits" in found.compared
    assert "step.4.logits" not in found.compared


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize("name", hf_models.CASES)
def test_hugging_face(name, generates):
    model, batch = hugging_face_case(name, left=hf_models.CASES[name].left_padding)
    if generates:
        found = diagnose(model, batch.source, None, batch.mask, max_new_tokens=3)
        assert "step.2.logits" in found.compared
    else:
        found = diagnosed(model, batch)
    assert_right(found, 38)
    kinds = {name.rpartition(".")[2] for name in found.not_compared}
    assert kinds <= {"tokens", "scores", "weights"}  # attention is fused by default


def test_hugging_face_with_eager_attention():
    model, batch = hugging_face_case("BART")
    model.set_attn_implementation("eager")
    found = diagnosed(model, batch)
    assert_right(found)
    assert {name.rpartition(".")[2] for name in found.not_compared} <= {"tokens", "scores"}


@pytest.mark.parametrize("name", test_pytorch.VARIANTS)
def test_nn_transformer(name):
    seed = list(test_pytorch.VARIANTS).index(name)
    net = test_pytorch.random_network(seed, **test_pytorch.VARIANTS[name])
    cast(net, "float32")
    found = diagnosed_in_net(net, test_pytorch.convert(net, seed), seed)
    assert_right(found, 23)
    assert "logits" in found.compared
    kinds = {name.rpartition(".")[2] for name in found.not_compared}
    assert kinds == {"tokens", "q", "k", "v", "scores", "weights", "heads"} | (
        {"positions"} if net.positions is not None else set()
    )


def test_a_pair_of_pytorch_stacks():
    """Also without the final norm that the model has."""
    net = test_pytorch.random_network(1, **test_pytorch.VARIANTS["stacks that differ"])
    cast(net, "float32")
    model, pair = test_pytorch.convert(net, 1), (net.transformer.encoder, net.transformer.decoder)
    batch = test_pytorch.random_batch(net, 1)
    assert_right(diagnose(pair, *batch, model=model, run=net.run), 23)
    pair[0].norm = None
    found = diagnose(pair, *batch, model=model, run=net.run)
    assert (found.first, found.faults[0].cause.flag) == ("encoder.final", "NormMissing")
    with pytest.raises(TypeError, match="from_pytorch"):
        diagnose(pair, *batch, run=net.run)


def cast(net, dtype):
    for module in (net.transformer, net.source_embedding, net.target_embedding, net.unembedding):
        module.to(getattr(torch, dtype))
    if net.positions is not None:
        net.positions = net.positions.to(getattr(torch, dtype))


def diagnosed_in_net(net, model, seed):
    """Of an nn.Transformer in what its user puts around it."""
    source, target, mask = test_pytorch.random_batch(net, seed)
    return diagnose(net.transformer, source, target, mask, model=model, run=net.run)


HALF = {
    "x-transformers": ["rmsnorm", "post-norm", "swiglu", "alibi", "kv_heads", "sinusoids"],
    "transformers": ["T5 1.1", "UMT5", "BART", "mBART", "Marian", "Pegasus", "Blenderbot-small"],
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HALF["x-transformers"])
def test_x_transformers_in_half_precision(name, dtype):
    """Without masks, which x-transformers 2.31 cannot be given in half precision."""
    network, batch = random_case([list(CASES).index(name), 3], CASES[name])
    for part in network.parts:
        part.to(getattr(torch, dtype))
    found = diagnose(network.module, batch.source, batch.target)
    assert_right(found)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HALF["transformers"])
def test_hugging_face_in_half_precision(name, dtype):
    found = diagnosed(*hugging_face_case(name, dtype))
    assert_right(found, 38)
    assert found.dtype == dtype


def test_nn_transformer_in_half_precision():
    net = test_pytorch.random_network(2)
    cast(net, "float16")
    found = diagnosed_in_net(net, test_pytorch.convert(net, 2), 2)
    assert_right(found, 23)
    assert found.dtype == "float16"


# A float64 module.


def test_float64_modules_have_the_tolerances_of_float32_by_default():
    model, batch = hugging_face_case("T5 1.0", "float64")
    found = diagnosed(model, batch)
    assert_right(found, 38)
    assert found.dtype == "float32"
    strict = diagnosed(model, batch, dtype="float64")
    assert strict.first == "encoder.layers.0.self_attention.input"  # its norms are float32
    hf_models.make_exact(model)
    strict = diagnosed(model, batch, dtype="float64")
    assert_right(strict, 38)
    assert strict.dtype == "float64"


# What is seen.


def test_layers_that_share_weights_have_a_name_for_each_call():
    options = {"enc_weight_tie_layers": True, "enc_depth": 3} | both(attn_dim_head=6)
    network, batch = random_case(41, options)
    model = network.convert()
    block = network.encoder.attn_layers.layers[1][1]
    calls = []

    def third_time(module, args, out):
        calls.append(1)
        return out * 1.01 if len(calls) % 3 == 0 else out

    block.register_forward_hook(third_time)
    found = diagnosed(network.module, batch, model=model)
    assert found.first == "encoder.layers.2.feed_forward.out"


def test_tied_embeddings_are_compared_on_both_sides():
    network, batch = random_case(43, {"tie_token_emb": True, **both(num_tokens=13)})
    found = diagnosed(network.module, batch)
    assert_right(found)
    assert {"encoder.tokens", "decoder.tokens"} <= set(found.compared)


def test_padding_on_the_left_of_absolute_positions_is_found():
    network, batch = random_case(47, {})
    batch.mask = np.arange(batch.source.shape[1]) >= np.array([[0], [1], [1]])
    found = diagnosed(network.module, batch)
    assert found.first == "encoder.positions"


def correct(library):
    return library.FAULTS.all[0].make()


def test_lists_of_different_lengths():
    subject = correct(planted_x_transformers)
    lists = [list(map(int, row[real])) for row, real in zip(SOURCE, MASK, strict=True)]
    found = diagnose(subject.module, lists, TARGET)
    padded = diagnose(subject.module, SOURCE, TARGET, MASK)
    assert_right(found)
    assert found.compared == padded.compared


def test_the_reference_is_fed_the_tokens_that_the_module_chooses():
    """A module that chooses another token than the best one computes all quantities correctly."""
    subject = correct(planted_huggingface)
    worst = lambda ids, scores: -scores  # noqa: E731
    generate = subject.module.generate
    subject.module.generate = lambda *args, **options: generate(
        *args, **options, logits_processor=[worst]
    )
    assert_right(subject.diagnose(max_new_tokens=4))


@pytest.mark.parametrize("library", [planted_x_transformers, planted_huggingface])
def test_expected_values_of_steps_are_those_of_decode_steps(library):
    """Names, order, shapes and values are those of the taps of `decode_steps`."""
    for fault in {fault.where: fault for fault in library.FAULTS.all}.values():
        model, trace = fault.make().model.astype("float64"), rs.Trace()
        options = {"source_mask": MASK, "prefix": TARGET[:, :2], "max_new_tokens": 3}
        steps = list(rs.decode_steps(model, SOURCE, **options, eos_ids=(), tap=trace))
        fed = np.column_stack([TARGET[:, :2], *(step.tokens for step in steps[:-1])])
        forced = spread(rounded(model, "float32"), SOURCE, fed, MASK, dtype="float32", runs=1)
        expected = by_step(forced, [2, 1, 1])
        chosen = (".chosen", ".log_probs", "step.0.scores", "step.1.scores", "step.2.scores")
        assert list(expected) == [name for name in trace if not name.endswith(chosen)]
        for name, e in expected.items():
            assert e.value.shape == trace[name].shape == e.where.shape, name
            scale = np.abs(e.value).max()
            np.testing.assert_allclose(
                trace[name], e.value, rtol=0, atol=1e-12 * scale, equal_nan=False, err_msg=name
            )


# Faults that hooks hide.


def assert_only_without_hooks(diagnosis, *lines):
    """All that hooks capture agrees; the report lists ``lines`` as changed by hooks."""
    report = diagnosis.report()
    assert diagnosis.first == diagnosis.unhooked.name == "unhooked.logits", report
    n = len(diagnosis.compared) - 1
    assert len(diagnosis.faults) == 1
    assert diagnosis.difference.agreed == n
    assert "The logits of a run without hooks are not those of the run with hooks." in report
    for line in (*lines, "any code that checks whether hooks are registered"):
        assert f"\n     {line}\n" in report
    told = json.loads(json.dumps(diagnosis.to_dict()))
    assert told["first"] == told["faults"][0]["name"] == "unhooked.logits"
    assert told["changed_by_hooks"] == list(diagnosis.changed_by_hooks)


def fast_network():
    """An nn.Transformer that takes its fast path in evaluation."""
    net = test_pytorch.random_network(1, d_model=12, nhead=2, batch_first=True)
    cast(net, "float32")
    return net


def activation_set_later(net, patch):
    """The fast path uses the activation that the layer was made with."""
    for layer in (*net.transformer.encoder.layers, *net.transformer.decoder.layers):
        layer.activation = torch.nn.functional.gelu
    return test_pytorch.convert(net, 1)


def adapter(net, patch):
    """The fast path reads the weights of a projection, whatever its forward does."""
    model = test_pytorch.convert(net, 1)
    linear = net.transformer.encoder.layers[0].linear1
    whole, linear.weight.data = linear.weight.data, linear.weight.data * 0.9
    linear.forward = lambda x: torch.nn.functional.linear(x, whole, linear.bias)
    return model


def faulty(kernel):
    def change(net, patch):
        right = getattr(torch, kernel)
        patch.setattr(torch, kernel, lambda *args, **options: wrong(right(*args, **options)))
        return test_pytorch.convert(net, 1)

    def wrong(out):
        return (1.01 * out[0], *out[1:]) if isinstance(out, tuple) else 1.01 * out

    return change


FAST = {
    "activation set later": activation_set_later,
    "adapter": adapter,
    "encoder layer": faulty("_transformer_encoder_layer_fwd"),
    "attention": faulty("_native_multi_head_attention"),
}


@pytest.mark.parametrize("change", FAST.values(), ids=FAST)
def test_a_fault_of_the_fast_path(change, monkeypatch):
    net = fast_network()
    model = change(net, monkeypatch)
    assert_only_without_hooks(
        diagnosed_in_net(net, model, 1),
        "the fast path of torch.nn.TransformerEncoderLayer, which is disabled",
        "the fast path of torch.nn.MultiheadAttention, which is disabled",
        "encoder.layers.*.self_attention: q, k, v, scores, weights, heads",
    )
    with fast_path_off():
        assert_right(diagnosed_in_net(net, model, 1), 23)
        assert not torch.backends.mha.get_fastpath_enabled()


@contextmanager
def fast_path_off():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def test_the_fast_path_is_on_again_afterwards():
    net = fast_network()
    fast = []
    net.unembedding.register_forward_hook(
        lambda *args: fast.append(torch.backends.mha.get_fastpath_enabled())
    )
    assert_right(diagnosed_in_net(net, test_pytorch.convert(net, 1), 1), 23)
    assert fast == [True, False]
    net.transformer.decoder.layers[0].norm1.forward = None  # an error while hooks are set
    with pytest.raises(TypeError, match="not callable"):
        diagnosed_in_net(net, test_pytorch.convert(fast_network(), 1), 1)
    assert torch.backends.mha.get_fastpath_enabled()


def spoil(part, with_hooks):
    """Its output is 1 % off when it has hooks, or when it has none."""
    right = part.forward
    part.forward = lambda *args, **options: (
        right(*args, **options) * (1.01 if bool(part._forward_hooks) == with_hooks else 1)
    )


@pytest.mark.parametrize("max_new_tokens", [None, 4])
def test_a_fault_of_x_transformers_without_hooks(max_new_tokens):
    subject = correct(planted_x_transformers)
    spoil(subject.module.decoder.net.attn_layers.layers[2][1], with_hooks=False)
    found = subject.diagnose(max_new_tokens)
    assert_only_without_hooks(found)
    assert "Not captured by hooks:\n     nothing" in found.report()


@pytest.mark.parametrize("max_new_tokens", [None, 4])
def test_a_fault_of_hugging_face_without_hooks(max_new_tokens):
    model, batch = hugging_face_case("BART")
    spoil(model.get_decoder().layers[0].fc2, with_hooks=False)
    batch.target = batch.target if max_new_tokens is None else None
    assert_only_without_hooks(diagnosed(model, batch, max_new_tokens=max_new_tokens))


def test_a_fault_with_hooks_alone():
    """The report says that the logits of a run without hooks agree."""
    subject = correct(planted_x_transformers)
    spoil(subject.module.decoder.net.attn_layers.layers[2][1], with_hooks=True)
    found = subject.diagnose()
    assert found.first == "decoder.layers.0.feed_forward.out"
    assert found.unhooked is None
    assert "The logits of a run without hooks agree with those of the model." in found.report()


@pytest.mark.parametrize(("change", "is_found"), [(0.0, False), (0.02, True)])
def test_a_near_tie_without_hooks_is_no_fault(change, is_found):
    """Another token is chosen, and the rest of the row is not compared."""
    subject = correct(planted_x_transformers)
    decoder, read = subject.module.decoder.net, []
    unembedding = decoder.to_logits.weight.data
    unembedding[1::2] = unembedding[:-1:2].clone()  # pairs of tokens that are equally good,
    unembedding[-1] = 0  # and one without a pair
    subject.model = rs.convert.from_x_transformers(subject.module, **CONVENTIONS)
    decoder.token_emb.register_forward_pre_hook(lambda module, args: read.append(args[0]))

    def prefer_the_other(module, args, logits):
        less = torch.nextafter(logits, torch.tensor(-torch.inf)) - change * abs(logits)
        even = torch.arange(logits.shape[-1]) % 2 == 0
        return logits if decoder._forward_hooks else torch.where(even, less, logits)

    decoder.to_logits.register_forward_hook(prefer_the_other)
    found = subject.diagnose(6)
    assert not torch.equal(read[5], read[11])
    if is_found:
        assert_only_without_hooks(found)
    else:
        assert_right(found)


# State that it restores.


def test_the_module_and_the_random_state_are_restored():
    network, batch = random_case(53, both(ff_dropout=0.2, attn_dropout=0.2))
    network.encoder.train()
    network.decoder.net.attn_layers.train()
    before = snapshot(network)
    state = torch.get_rng_state()
    assert_right(diagnosed(network.module, batch))
    batch.target = batch.target[:, :1]
    assert_right(diagnosed(network.module, batch, max_new_tokens=3))
    assert snapshot(network) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_hooks_are_removed_after_an_error():
    network = random_network(np.random.default_rng(59), {})
    model, before = network.convert(), snapshot(network)

    def broken(*args):
        raise RuntimeError("broken")

    handle = network.decoder.net.to_logits.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        diagnose(network.module, SOURCE, TARGET, model=model)
    handle.remove()
    assert snapshot(network) == before


def snapshot(network):
    return [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for part in network.parts
        for module in part.modules()
    ]


# The report.


def test_the_report():
    fault = next(
        fault
        for fault in planted_x_transformers.FAULTS.all
        if fault.name == "attention scale 1/sqrt(d_model)"
    )
    found = fault.planted().diagnose()
    report = found.report()
    first = "decoder.layers.0.cross_attention.scores"
    assert report.startswith("1 fault in 84 compared quantities, each computed from")
    for part in (
        "The logits of a run without hooks deviate from those of the model.",
        f"1. {first}\n   Cause: scale is 0.213201 (1 / sqrt(d_model)); the model has 0.408248",
        "the quantity agrees on 2 inputs",
        "decoder.layers.0.cross_attention.k (agrees)",
    ):
        assert part in report
    told = json.loads(json.dumps(found.to_dict()))
    assert told["first"] == told["faults"][0]["name"] == first
    assert told["faults"][0]["causes"][0]["flag"] == "AttentionScale"
    assert told["compared"] == list(found.compared)


def test_the_report_names_quantities_that_are_not_captured():
    subject = correct(planted_pytorch)
    subject.net.causal = lambda n: None
    report = subject.diagnose().report()
    hidden = "decoder.layers.*.self_attention: q, k, v, scores, weights, heads"
    assert f"intermediate, not compared: {hidden}" in report
    assert "Cause: no mask is applied (decoder.self_attention)" in report


def test_the_report_of_a_correct_module():
    report = correct(planted_pytorch).diagnose().report()
    assert report.startswith("No fault in 44 compared quantities, up to 8 spreads")


# Modules that were changed.


def test_a_module_that_the_converter_does_not_support_needs_model():
    network, batch = random_case(61, {})
    model = network.convert()
    network.decoder.net.attn_layers.layers[2][1].ff[0][-1] = torch.nn.Tanh()
    with pytest.raises(UnsupportedFeature, match=r"ff\.0\.1.*model="):
        diagnosed(network.module, batch)
    found = diagnosed(network.module, batch, model=model)
    assert found.first == "decoder.layers.0.feed_forward.hidden"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize(
    ("library", "first"),
    [
        (planted_x_transformers, "encoder.layers.0.self_attention.q"),
        (planted_huggingface, "encoder.layers.0.self_attention.q"),
        (planted_pytorch, "encoder.layers.0.feed_forward.projected"),
    ],
)
def test_dynamic_quantisation(library, first):
    """int8 weights deviate by many spreads; ``z`` can allow for them."""
    subject = correct(library)
    quantised = torch.ao.quantization.quantize_dynamic(subject.module, {torch.nn.Linear})
    if library is planted_pytorch:
        subject.net.transformer = quantised
    else:
        with pytest.raises(UnsupportedFeature, match=r"quantized.*Linear.*model="):
            diagnose(quantised, SOURCE, TARGET, MASK)
    options = {"model": subject.model, "run": subject.run}
    found = diagnose(quantised, SOURCE, TARGET, MASK, **options)
    assert found.first == first
    assert 100 < found.difference.spreads < 1e7
    assert_right(diagnose(quantised, SOURCE, TARGET, MASK, z=1e8, **options))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module():
    """It is compiled again with the hooks, here without generating code."""
    network, batch = random_case(67, both(depth=1))
    model = network.convert()
    pair = compiled(network.encoder), compiled(network.decoder.net)
    torch._dynamo.utils.counters.clear()
    assert_right(diagnosed(pair, batch, model=model))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not torch._dynamo.utils.counters["graph_break"]
    with pytest.raises(UnsupportedFeature, match="compiled"):
        diagnosed(pair, batch, model=model, max_new_tokens=2)
    assert_right(diagnosed(pair, batch))
    assert_right(diagnosed(network.module, batch))
    with pytest.raises(UnsupportedFeature, match="compiled XTransformer"):
        diagnose(compiled(network.module), batch.source, batch.target, model=model)
    wrapped = network.encoder, compiled(network.decoder)
    with pytest.raises(UnsupportedFeature, match="compiled AutoregressiveWrapper"):
        diagnose(wrapped, batch.source, batch.target, model=model)


def compile_part(module, name):
    setattr(module, name, compiled(getattr(module, name)))


COMPILED = {
    "in place": lambda module: module.compile(backend="eager"),
    "attention": lambda module: compile_part(module.attn_layers.layers[0], "1"),
    "layers": lambda module: compile_part(module, "attn_layers"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", COMPILED.values(), ids=COMPILED)
def test_a_module_with_compiled_parts(change):
    network, batch = random_case(71, both(depth=1))
    model = network.convert()
    for part in (network.encoder, network.decoder.net):
        change(part)
    assert_right(diagnosed(network.module, batch))
    wrong = network.decoder.net.attn_layers.layers[0][1].to_out
    wrong.register_forward_hook(lambda module, args, out: 1.01 * out)
    found = diagnosed(network.module, batch, model=model)
    assert found.first == "decoder.layers.0.self_attention.out"


def fuse_wrongly(graph, inputs):
    """A backend that makes a GELU the tanh GELU where nothing else uses its input."""
    for node in graph.graph.nodes:
        if node.target is torch.nn.functional.gelu and len(node.args[0].users) == 1:
            node.kwargs = {"approximate": "tanh"}
    graph.recompile()
    return graph.forward


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fault_of_compiled_code():
    """Hooks use what they capture, so that nothing is fused there."""
    network, batch = random_case(79, both(depth=1))
    pair = network.encoder, torch.compile(network.decoder.net, backend=fuse_wrongly)
    found = diagnosed(pair, batch)
    assert_only_without_hooks(found, "code from torch.compile, which is recompiled with the hooks")


# Arguments.


def test_targets_begin_with_the_start_token_of_the_model():
    network = random_network(np.random.default_rng(73), {})
    begun = []
    network.decoder.net.token_emb.register_forward_pre_hook(
        lambda module, args: begun.append(set(args[0][:, 0].tolist()))
    )
    options = {"decoder_start_id": 7, "eos_ids": ()}
    model = rs.convert.from_x_transformers(network.arrays(), network.options, **options)
    assert_right(diagnose(network.module, SOURCE, None, MASK, model=model, max_new_tokens=2))
    assert begun[0] == {7}


def test_arguments_of_an_nn_transformer_that_raise():
    subject = correct(planted_pytorch)
    for options, message in (
        ({"model": subject.model}, "run"),
        ({"run": subject.run}, "from_pytorch"),
        ({"model": subject.model, "run": subject.run, "max_new_tokens": 2}, "does not generate"),
    ):
        with pytest.raises(TypeError, match=message):
            diagnose(subject.module, SOURCE, TARGET, MASK, **options)


@pytest.mark.parametrize(
    ("source", "target", "options", "error", "message"),
    [
        (SOURCE, TARGET, {"run": print}, TypeError, r"run is only for an nn\.Transformer"),
        (SOURCE, None, {}, TypeError, "target is missing"),
        (SOURCE + 99, TARGET, {}, ValueError, "source"),
    ],
)
def test_arguments_of_hugging_face_models_that_raise(source, target, options, error, message):
    with pytest.raises(error, match=message):
        diagnose(correct(planted_huggingface).module, source, target, MASK, **options)


@pytest.mark.parametrize(
    ("arrange", "got"),
    [
        (lambda encoder, decoder: encoder, "got TransformerWrapper"),
        (lambda encoder, decoder: compiled(encoder), "got TransformerWrapper"),
        (lambda encoder, decoder: decoder, "got AutoregressiveWrapper"),
        (lambda encoder, decoder: (decoder, encoder), "got a pair with AutoregressiveWrapper"),
        (lambda encoder, decoder: (torch.nn.Linear(2, 3), encoder), "got a pair with Linear"),
        (lambda encoder, decoder: (encoder, decoder, encoder), "got tuple"),
    ],
)
def test_parts_of_an_x_transformer_in_another_arrangement_raise(arrange, got):
    subject = correct(planted_x_transformers)
    wrong = arrange(subject.module.encoder, subject.module.decoder)
    for options in ({}, {"model": subject.model}):
        with pytest.raises(TypeError, match=rf"pair \(encoder, decoder\).*{got}"):
            diagnose(wrong, SOURCE, TARGET, **options)


def test_other_modules_and_models_raise():
    with pytest.raises(TypeError, match="got Linear"):
        diagnose(torch.nn.Linear(2, 3), SOURCE, TARGET)
    smaller = random_network(np.random.default_rng(1), both(num_tokens=11, depth=1)).convert()
    with pytest.raises(ValueError, match=r"^model must .*layers\.1"):
        diagnose(correct(planted_x_transformers).module, SOURCE, TARGET, MASK, model=smaller)
