"""Attention in PyTorch, and a whole network of x-transformers, tested against refseq2seq.

Replace `CrossAttention` with your own module, and run this file with pytest.
"""

import numpy as np
import pytest

import refseq2seq as rs
from refseq2seq.testing import assert_agrees, diagnose, first_difference, rounded, spread

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")


# --- your module: one sublayer of a decoder ------------------------------------------------


class CrossAttention(torch.nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q, self.k, self.v, self.out = (
            torch.nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def forward(self, x, memory, mask):
        def heads(y):
            return y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

        y = torch.nn.functional.scaled_dot_product_attention(
            heads(self.q(x)), heads(self.k(memory)), heads(self.v(memory)), mask[:, None, None, :]
        )
        return self.out(y.transpose(1, 2).flatten(-2))


# --- a sublayer against the same sublayer of a real model ----------------------------------

G2P = rs.load("g2p")
AT = "decoder.layers.1.cross_attention"
WORDS = ["oracle", "seq"]
SOURCE = [G2P.source_vocabulary.encode(word) for word in WORDS]
TARGET = [[G2P.config.decoder_start_id, 4, 5, 6]] * 2
MASK = np.array([[True] * 6, [True] * 3 + [False] * 3])


def with_weights_of(model, dtype):
    c, p = model.config.decoder, model.params.decoder.layers[1].cross_attention
    module = CrossAttention(c.d_model, c.cross_attention.n_heads)
    with torch.no_grad():
        for linear, w in (
            (module.q, p.w_q),
            (module.k, p.w_k),
            (module.v, p.w_v),
            (module.out, p.w_o),
        ):
            linear.weight.copy_(torch.tensor(w.T))  # ours is (d_in, d_out)
    return module.to(dtype)


def test_the_sublayer_in_float64():
    model, reference = G2P.astype("float64"), rs.Trace()
    rs.forward(model, SOURCE, TARGET, tap=reference)
    x, memory = (torch.tensor(reference[name]) for name in (f"{AT}.input", "encoder.final"))
    y = with_weights_of(model, torch.float64).double()(x, memory, torch.tensor(MASK))
    difference = first_difference(reference, {f"{AT}.out": y.detach().numpy()}, rtol=1e-6)
    assert difference is None, str(difference)


# --- a whole network, in the format that it will run in ------------------------------------


def x_transformer(dtype):
    xt = pytest.importorskip("x_transformers", reason="needs it: pip install x-transformers")
    torch.manual_seed(0)
    sizes = {"num_tokens": 11, "max_seq_len": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
    both = {f"{side}_{name}": x for side in ("enc", "dec") for name, x in sizes.items()}
    network = xt.XTransformer(dim=16, enc_verbose=False, dec_verbose=False, **both)
    return network.eval().to(dtype)


def test_the_network_has_no_fault():
    diagnosis = diagnose(x_transformer(torch.float32), [[3, 4, 5, 6]], [[1, 7, 8]])
    assert diagnosis.first is None, diagnosis.report()


def test_a_fault_is_found_where_it_is():
    network = x_transformer(torch.float32)
    model = rs.convert.from_x_transformers(network, decoder_start_id=1, eos_ids=())
    with torch.no_grad():  # the fault: rescaled keys in the decoder's first cross-attention
        network.decoder.net.attn_layers.layers[1][1].to_k.weight.mul_(1.05)
    diagnosis = diagnose(network, [[3, 4, 5, 6]], [[1, 7, 8]], model=model)
    assert diagnosis.first.startswith("decoder.layers.0.cross_attention"), diagnosis.report()


def test_logits_are_as_near_as_bfloat16_allows():
    network = x_transformer(torch.bfloat16)
    model = rs.convert.from_x_transformers(network.float(), decoder_start_id=1, eos_ids=())
    network, model = network.bfloat16(), rounded(model, "bfloat16")
    source, target = np.array([[3, 4, 5, 6]]), np.array([[1, 7, 8]])
    with torch.no_grad():
        memory = network.encoder(torch.tensor(source), return_embeddings=True)
        logits = network.decoder.net(torch.tensor(target), context=memory)
    assert_agrees(logits.double().numpy(), spread(model, source, target, dtype="bfloat16"))
