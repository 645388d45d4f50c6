"""What each converter takes besides a module: arrays of other libraries, and merged adapters."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("transformers", reason="needs transformers: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")

import hf_models
import test_pytorch
import torch
from comparisons import MERGE, assert_same_model, relative_error
from xt_networks import CONVENTIONS, random_network

import refseq2seq as rs
from refseq2seq.convert import UnsupportedFeature, from_huggingface, from_x_transformers

# Each subject is its arrays and how they are converted; `cast` makes them those of a library.


def of_hugging_face(cast):
    theirs = hf_models.random_model("BART", 0)
    return from_huggingface(cast(theirs.state_dict()), theirs.config)


def of_pytorch(cast):
    net = test_pytorch.random_network(1)
    names = ("source_embedding", "target_embedding", "unembedding")
    around = cast({name: getattr(net, name).weight.detach() for name in names})
    positions = cast({"source_positions": net.positions, "target_positions": net.positions})
    given = {
        "transformer": cast(net.transformer.state_dict()),
        "options": test_pytorch.plain(net)[1],
    }
    return test_pytorch.convert(net, 1, **given, **around, **positions)


def of_x_transformers(cast):
    network = random_network(np.random.default_rng(0), {})
    arrays = {name: torch.tensor(x) for name, x in network.arrays().items()}
    return from_x_transformers(cast(arrays), network.options, **CONVENTIONS)


def numpy_array(x):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes: pip install jax")
    if x.dtype == torch.bfloat16:
        return x.float().numpy().astype(ml_dtypes.bfloat16)
    return x.numpy()


def jax_array(x):
    jax = pytest.importorskip("jax", reason="needs jax: pip install '.[peers]'")
    return jax.numpy.asarray(numpy_array(x))


@pytest.mark.parametrize("array", [numpy_array, jax_array])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("subject", [of_hugging_face, of_pytorch, of_x_transformers])
def test_arrays_of_any_library(subject, dtype, array):
    """Also under the names that torch.compile gives them."""

    def tensors(arrays):
        return {name: x.to(getattr(torch, dtype)) for name, x in arrays.items()}

    def others(arrays):  # the names of a module's arrays have dots
        names = {name: f"_orig_mod.{name}" if "." in name else name for name in arrays}
        return {names[name]: array(x) for name, x in tensors(arrays).items()}

    model = subject(others)
    assert_same_model(model, subject(tensors))
    widened = dtype == "bfloat16" or subject is of_hugging_face
    assert model.dtype == ("float32" if widened else dtype)


# Adapters of the package peft


def adapted(module, *names):
    """With LoRA that changes what the module computes beside the projections of these names."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install '.[peers]'")
    options = {"target_modules": list(names), "r": 2, "init_lora_weights": False}
    return peft.get_peft_model(module, peft.LoraConfig(**options)).eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_adapters_of_transformers(tmp_path):
    theirs = hf_models.random_model("BART", 0)
    batch = hf_models.random_batch(theirs, 0)
    before, config = from_huggingface(theirs), theirs.config
    wrapped = adapted(theirs, "q_proj", "fc1")
    inner = wrapped.base_model.model
    wrapped.save_pretrained(tmp_path / "adapter")
    for given in (
        [wrapped],
        [inner],
        [wrapped.state_dict(), config],
        [inner.state_dict(), config],
        [tmp_path / "adapter"],
    ):
        with pytest.raises(UnsupportedFeature, match=MERGE):
            from_huggingface(*given)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UnsupportedFeature, match=MERGE):
        rs.load(tmp_path / "adapter")
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert hf_models.error_of_logits(from_huggingface(merged), merged, batch) < 1e-12
    assert_same_model(rs.load(tmp_path / "merged"), from_huggingface(merged))
    assert hf_models.error_of_logits(before, merged, batch) > 1e-3


def test_adapters_of_pytorch():
    net = test_pytorch.random_network(1)
    batch = test_pytorch.random_batch(net, 1)
    options = test_pytorch.plain(net)[1]
    wrapped = adapted(net.transformer, "linear1", "linear2")
    inner = wrapped.base_model.model
    for given in (wrapped, inner, (inner.encoder, inner.decoder)):
        with pytest.raises(UnsupportedFeature, match=MERGE):
            test_pytorch.convert(net, 1, transformer=given)
    with pytest.raises(UnsupportedFeature, match=MERGE):
        test_pytorch.convert(net, 1, transformer=wrapped.state_dict(), options=options)
    net.transformer = wrapped.merge_and_unload()
    ours = rs.forward(test_pytorch.convert(net, 1), *batch)
    assert relative_error(ours, net.logits(*batch)) < 1e-12


def test_adapters_of_x_transformers():
    network = random_network(np.random.default_rng(0), {})
    source, target = np.array([[3, 4, 5, 6, 7]]), np.array([[1, 8, 9]])
    before = network.logits(source, None, target)
    wrapped = adapted(network.module, "to_q", "to_v")
    for given in ([wrapped], [wrapped.base_model.model], [wrapped.state_dict(), network.options]):
        with pytest.raises(UnsupportedFeature, match=MERGE):
            from_x_transformers(*given, **CONVENTIONS)
    model = from_x_transformers(wrapped.merge_and_unload(), **CONVENTIONS)
    theirs = network.logits(source, None, target)
    assert relative_error(rs.forward(model, source, target), theirs) < 1e-5
    assert relative_error(before, theirs) > 1e-3
