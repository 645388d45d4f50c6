"""Live against ``torch.nn.Transformer``: the same logits, the same greedy tokens."""

import inspect
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install '.[peers]'")

import torch
from comparisons import (
    MERGE,
    add_lora,
    assert_same_model,
    compiled,
    count_near_ties,
    peft_model,
    relative_error,
)
from torch import nn

import refseq2seq as rs
from refseq2seq.config import SinusoidalPositions
from refseq2seq.convert import UnsupportedFeature, from_pytorch
from refseq2seq.convert.pytorch import OPTIONS

N_MODELS, N_NEW, ROOM = 30, 7, 19
START, EOS, PAD = 1, (2, 5, 11, 17), 0
TOKENS = {"decoder_start_id": START, "eos_ids": EOS, "pad_id": PAD}
INTERLEAVED = SinusoidalPositions(layout="interleaved", offset=0, scale=1.0)


@dataclass
class Network:
    """nn.Transformer and what its users put around it, as its tutorials have it."""

    transformer: nn.Transformer
    source_embedding: nn.Embedding
    target_embedding: nn.Embedding
    unembedding: nn.Linear
    scale: float
    positions: torch.Tensor | None  # (ROOM, d_model)

    first: int = 0  # position

    def embed(self, table, ids):
        x = table(ids) * self.scale
        if self.positions is not None:
            x = x + self.positions[self.first :][: ids.shape[1]]
        return x if self.transformer.batch_first else x.transpose(0, 1)

    def padding(self, mask):
        """PyTorch's True is a place that is not seen."""
        return None if mask is None else ~mask

    def memory_padding(self, mask):
        """The same, for cross-attention."""
        return self.padding(mask)

    def causal(self, n):
        """True above the diagonal."""
        return torch.ones(n, n, dtype=torch.bool).triu(1)

    @torch.no_grad()
    def run(self, source, target, mask):
        """Logits, of tensors: what diagnose calls."""
        hidden = self.transformer(
            self.embed(self.source_embedding, source),
            self.embed(self.target_embedding, target),
            tgt_mask=self.causal(target.shape[1]),
            src_key_padding_mask=self.padding(mask),
            memory_key_padding_mask=self.memory_padding(mask),
        )
        return self.unembedding(hidden if self.transformer.batch_first else hidden.transpose(0, 1))

    def logits(self, source, target, mask):
        mask = None if mask is None else torch.tensor(mask)
        return self.run(torch.tensor(source), torch.tensor(target), mask).numpy()

    def generate(self, source, mask, n):
        """New tokens, all computed anew at each step; nothing ends a row."""
        target = np.full((len(source), 1), START)
        for _ in range(n):
            best = self.logits(source, target, mask)[:, -1].argmax(axis=-1)
            target = np.concatenate([target, best[:, None]], axis=1)
        return target[:, 1:]

    def greedy(self, source, mask):
        """New tokens of each row up to its end, then PAD."""
        tokens = self.generate(source, mask, N_NEW)
        ends = np.isin(tokens, EOS)
        return np.where(ends.cumsum(axis=1) - ends > 0, PAD, tokens)


def sinusoids(d_model):
    """The paper's: sin and cos in turns."""
    table = np.zeros((ROOM, d_model))
    for p in range(ROOM):
        for i in range(d_model):
            angle = p / 10000 ** (2 * (i // 2) / d_model)
            table[p, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return table


def stack(side, d_model, n_layers, norm, **options):
    """A stack for nn.Transformer(custom_encoder=..., custom_decoder=...), or for itself."""
    layer = getattr(nn, f"Transformer{side.title()}Layer")(d_model, **options)
    both = {"eps": options.get("layer_norm_eps", 1e-5), "bias": options.get("bias", True)}
    norm = nn.LayerNorm(d_model, **both) if norm else None
    return getattr(nn, f"Transformer{side.title()}")(layer, n_layers, norm)


def random_network(seed, **options):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    n_heads = int(rng.integers(1, 4))
    d_model = n_heads * 2 * int(rng.integers(2, 5))
    for side in ("encoder", "decoder"):
        if side in options:
            options[f"custom_{side}"] = stack(side, d_model, **options.pop(side))
    transformer = nn.Transformer(
        **{
            "d_model": d_model,
            "nhead": n_heads,
            "num_encoder_layers": int(rng.integers(1, 4)),
            "num_decoder_layers": int(rng.integers(1, 4)),
            "dim_feedforward": int(rng.integers(5, 30)),
            "layer_norm_eps": float(rng.choice([1e-5, 1e-2])),
        }
        | options
    )
    source_embedding = nn.Embedding(31, d_model)
    target_embedding = source_embedding if seed % 3 == 0 else nn.Embedding(37, d_model)
    unembedding = nn.Linear(d_model, target_embedding.num_embeddings, bias=seed % 2 == 0)
    around = nn.ModuleList([source_embedding, target_embedding, unembedding])
    for module in (transformer, around):
        for path, x in module.named_parameters():
            normal = torch.randn_like(x)
            if x.ndim == 1:
                is_gain = "norm" in path and path.endswith("weight")
                x.data = normal / 4 + (1 if is_gain else 0)
            else:
                x.data = normal / x.shape[1] ** 0.5 * (3 if module is around else 1)
    if seed % 4 == 0:
        unembedding.weight = target_embedding.weight
    kinds = {
        0: lambda: None,
        1: lambda: torch.randn(ROOM, d_model),
        2: lambda: torch.tensor(sinusoids(d_model)),
    }
    positions = kinds[seed % 3]()
    transformer.double().eval()
    around.double()
    return Network(
        transformer,
        source_embedding,
        target_embedding,
        unembedding,
        math.sqrt(d_model) if seed % 2 else 1.0,
        None if positions is None else positions.double(),
    )


def convert(net: Network, seed: int, **changes: Any) -> rs.Model:
    positions = INTERLEAVED if seed % 3 == 2 else net.positions
    arguments = {
        "source_embedding": net.source_embedding,
        "target_embedding": net.target_embedding,
        "unembedding": net.unembedding,
        "embedding_scale": net.scale,
        "source_positions": positions,
        "target_positions": positions,
    }
    transformer = changes.pop("transformer", net.transformer)
    options = changes.pop("options", None)
    return from_pytorch(transformer, options, **arguments | TOKENS | changes)


def random_batch(net, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, ROOM))
    lengths = rng.integers(1, n + 1, size=3)
    lengths[0] = n
    mask = np.arange(n) < lengths[:, None]
    source = rng.integers(net.source_embedding.num_embeddings, size=mask.shape)
    target = rng.integers(net.target_embedding.num_embeddings, size=(3, int(rng.integers(1, ROOM))))
    return source, target, mask


VARIANTS = {
    "defaults": {},
    "norm_first": {"norm_first": True},
    "no biases": {"bias": False},
    "no biases, norm_first": {"bias": False, "norm_first": True},
    "gelu": {"activation": "gelu"},
    "batch_first": {"batch_first": True},
    "batch_first, norm_first, gelu": {
        "batch_first": True,
        "norm_first": True,
        "activation": "gelu",
    },
    "no final norms": {
        "encoder": {"n_layers": 2, "norm": False, "nhead": 2, "dim_feedforward": 13},
        "decoder": {"n_layers": 3, "norm": False, "nhead": 2, "dim_feedforward": 13},
    },
    "stacks that differ": {
        "encoder": {
            "n_layers": 3,
            "norm": True,
            "nhead": 2,
            "dim_feedforward": 23,
            "activation": "gelu",
            "layer_norm_eps": 1e-2,
            "norm_first": True,
            "bias": False,
        },
        "decoder": {"n_layers": 1, "norm": False, "nhead": 1, "dim_feedforward": 7},
    },
}


def is_tie(step, row, before):
    return step.margin[row] < 1e-12 * abs(step.logits[row]).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens(name, say):
    worst, near_ties, ended = 0.0, 0, 0
    for seed in range(N_MODELS):
        net = random_network(seed, **VARIANTS[name])
        model = convert(net, seed)
        source, target, mask = random_batch(net, seed)
        theirs = net.logits(source, target, mask)
        worst = max(worst, relative_error(rs.forward(model, source, target, mask), theirs))
        expected = net.greedy(source, mask)
        for use_cache in (True, False):
            options = {"source_mask": mask, "max_new_tokens": N_NEW, "use_cache": use_cache}
            steps = list(rs.decode_steps(model, source, **options))
            ended += int(steps[-1].finished.sum())
            near_ties += count_near_ties(steps, expected, PAD, is_tie)
    say(f"{name}: logits within {worst:.1e}, {near_ties} of 180 rows at near-ties")
    assert worst < 1e-12
    assert ended > 20, "the test must see ends"


def test_equal_tables_are_tied():
    assert convert(random_network(0), 0).config.tied_embeddings
    assert convert(random_network(0), 0).config.tied_logits
    assert not convert(random_network(1), 1).config.tied_embeddings
    assert not convert(random_network(1), 1).config.tied_logits


def plain(net):
    """Arrays and the arguments of nn.Transformer, or, where they do not suffice, by stack."""
    arrays = {name: x.numpy() for name, x in net.transformer.state_dict().items()}
    stacks = plain_stacks(net)
    numbers = {f"num_{side}_layers": options.pop("num_layers") for side, options in stacks.items()}
    if stacks["encoder"] == stacks["decoder"] and stacks["encoder"].pop("final_norm"):
        return arrays, stacks["encoder"] | numbers
    return arrays, plain_stacks(net)


def plain_stacks(net):
    return {side: plain_stack(getattr(net.transformer, side)) for side in ("encoder", "decoder")}


def plain_stack(stack):
    layer = stack.layers[0]
    return {
        "d_model": layer.linear1.in_features,
        "nhead": layer.self_attn.num_heads,
        "num_layers": len(stack.layers),
        "dim_feedforward": layer.linear1.out_features,
        "layer_norm_eps": layer.norm1.eps,
        "activation": "gelu" if layer.activation is nn.functional.gelu else "relu",
        "norm_first": layer.norm_first,
        "bias": layer.linear1.bias is not None,
        "final_norm": stack.norm is not None,
    }


def plain_around(net):
    bias = net.unembedding.bias
    weight = net.unembedding.weight.detach().numpy()
    return {
        "source_embedding": net.source_embedding.weight.detach().numpy(),
        "target_embedding": net.target_embedding.weight.detach().numpy(),
        "unembedding": weight if bias is None else (weight, bias.detach().numpy()),
    }


@pytest.mark.parametrize("seed", range(4))
def test_arrays_and_options_give_the_same_model(seed, tmp_path):
    net = random_network(seed, norm_first=seed % 2 == 1)
    arrays, options = plain(net)
    model = convert(net, seed)
    rs.save(model, tmp_path / "model.npz")
    same = [
        convert(net, seed, transformer=arrays, options=options, **plain_around(net)),
        rs.load(tmp_path / "model.npz"),
    ]
    if net.positions is not None and seed % 3 == 1:  # positions in a module
        table = nn.Embedding.from_pretrained(net.positions)
        same.append(convert(net, seed, source_positions=table, target_positions=table))
    for other in same:
        assert_same_model(other, model)


@pytest.mark.parametrize("name", ["defaults", "no final norms", "stacks that differ"])
def test_stacks_by_themselves(name):
    """A pair of modules, compiled or not, and their arrays, which get the names' prefixes."""
    net = random_network(1, **VARIANTS[name])
    model, pair = convert(net, 1), (net.transformer.encoder, net.transformer.decoder)
    arrays = {f"encoder.{name}": x for name, x in pair[0].state_dict().items()}
    arrays |= {f"decoder.{name}": x for name, x in pair[1].state_dict().items()}
    for given, options in (
        (pair, None),
        ((compiled(pair[0]), pair[1]), None),
        (arrays, plain_stacks(net)),
        ({f"_orig_mod.{name}": x for name, x in arrays.items()}, plain(net)[1]),
    ):
        assert_same_model(convert(net, 1, transformer=given, options=options), model)


def with_compiled_parts(transformer):
    transformer.encoder = compiled(transformer.encoder)
    layer = transformer.decoder.layers[0]
    layer.self_attn, layer.norm1 = compiled(layer.self_attn), compiled(layer.norm1)
    transformer.decoder.layers[-1] = compiled(transformer.decoder.layers[-1])
    return transformer


@pytest.mark.parametrize("change", [compiled, with_compiled_parts])
def test_compiled_modules_convert_alike(change):
    net = random_network(1)
    model, (_, options) = convert(net, 1), plain(net)
    transformer = change(net.transformer)
    arrays = transformer.state_dict(keep_vars=True)
    assert any("_orig_mod." in name and x.requires_grad for name, x in arrays.items())
    for given in ({"transformer": transformer}, {"transformer": arrays, "options": options}):
        assert_same_model(convert(net, 1, **given), model)


def test_key_biases():
    """They do not change the logits: softmax ignores what is added to all scores of a query."""
    net = random_network(1)
    model, d = convert(net, 1), net.transformer.d_model
    encoder, decoder = net.transformer.encoder.layers[0], net.transformer.decoder.layers[0]
    ours = model.params
    for attention, params in (
        (encoder.self_attn, ours.encoder.layers[0].self_attention),
        (decoder.self_attn, ours.decoder.layers[0].self_attention),
        (decoder.multihead_attn, ours.decoder.layers[0].cross_attention),
    ):
        expected = attention.in_proj_bias.detach().numpy()[d : 2 * d]
        assert np.array_equal(params.b_k, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype):
    net = random_network(1)
    for module in (net.transformer, net.source_embedding, net.target_embedding, net.unembedding):
        module.to(getattr(torch, dtype))
    net.positions = net.positions.to(getattr(torch, dtype))
    model = convert(net, 1)
    assert model.dtype.name == ("float32" if dtype == "bfloat16" else dtype)
    expected = net.source_embedding.weight.detach().double().numpy()
    assert np.array_equal(model.params.encoder.embedding.astype("float64"), expected)
    tensors, options = net.transformer.state_dict(keep_vars=True), plain(random_network(1))[1]
    assert_same_model(convert(net, 1, transformer=tensors, options=options), model)


def test_arrays_are_copies():
    net = random_network(1)
    model = convert(net, 1)
    with torch.no_grad():
        for x in net.transformer.parameters():
            x.add_(1)
    assert_same_model(model, convert(random_network(1), 1))


# Errors


def test_every_option_of_the_constructor_is_read_or_without_effect():
    read = {*OPTIONS, "custom_encoder", "custom_decoder"}  # the last two in modules, see below
    harmless = {"dropout", "batch_first", "device", "dtype"}
    assert set(inspect.signature(nn.Transformer).parameters) == read | harmless
    net = random_network(1)
    arrays, options = plain(net)
    for option in OPTIONS:
        others = {name: x for name, x in options.items() if name != option}
        with pytest.raises(ValueError, match=option):
            convert(net, 1, transformer=arrays, options=others)


class Changed(nn.TransformerEncoderLayer):
    """A layer with a forward of its own."""


LAYER = nn.TransformerEncoderLayer


def custom(layer, n_layers=1):
    return nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(8), enable_nested_tensor=False)


def unequal(**options):
    """An encoder whose second layer has other options."""
    sizes = {"d_model": 8, "nhead": 2, "dim_feedforward": 16}
    encoder = custom(LAYER(**sizes), 2)
    encoder.layers[1] = LAYER(**sizes | options)
    return encoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"custom_encoder": custom(Changed(8, 2, 16))}, r"encoder\.layers\.0 is a Changed"),
        ({"custom_encoder": nn.Identity()}, "encoder is a Identity"),
        ({"custom_encoder": nn.Linear(8, 8)}, "encoder is a Linear"),
        ({"custom_encoder": custom(LAYER(8, 2, 16), 0)}, "encoder.*at least one layer"),
        ({"custom_encoder": unequal(dim_feedforward=13)}, r"encoder.*\[16, 13\]"),
        ({"custom_encoder": unequal(nhead=4)}, r"encoder.*nhead: \[2, 4\]"),
        ({"custom_encoder": unequal(norm_first=True)}, "encoder.*norm_first"),
        ({"custom_encoder": unequal(bias=False)}, "encoder.*bias"),
        ({"custom_encoder": unequal(activation="gelu")}, "encoder.*activation"),
        ({"custom_encoder": custom(LAYER(8, 2, 16, bias=False))}, "norms of the encoder.*bias"),
        (
            {"custom_encoder": custom(LAYER(8, 2, 16, layer_norm_eps=0.5))},
            "norms of the encoder.*layer_norm_eps",
        ),
        ({"activation": nn.functional.silu}, "silu"),
        ({"activation": nn.ReLU()}, "ReLU"),
    ],
)
def test_custom_layers_and_activations_raise(options, message):
    sizes = {"d_model": 8, "nhead": 2, "dim_feedforward": 16}
    net = Network(
        nn.Transformer(**sizes, num_encoder_layers=1, num_decoder_layers=1, **options),
        nn.Embedding(5, 8),
        nn.Embedding(5, 8),
        nn.Linear(8, 5),
        1.0,
        None,
    )
    with pytest.raises(UnsupportedFeature, match=message):
        convert(net, 0)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("transformer.encoder.layers.0.norm1", "eps", 0.5, "layer_norm_eps"),
        ("transformer.decoder.layers.0.self_attn", "add_zero_attn", True, "add_zero_attn"),
        ("source_embedding", "max_norm", 1.0, r"source_embedding: max_norm = 1\.0"),
    ],
)
def test_attributes_set_after_construction_raise(part, name, value, message):
    net = random_network(1)
    first, *path = part.split(".")
    setattr(getattr(net, first).get_submodule(".".join(path)), name, value)
    with pytest.raises(UnsupportedFeature, match=message):
        convert(net, 1)


NAME = "decoder.layers.0.multihead_attn.in_proj_weight"
EXTRA = "encoder.layers.9.norm1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {key: x for key, x in a.items() if key != NAME}, NAME),
        (lambda a: a | {NAME: a[NAME][:, 1:]}, NAME),
        (lambda a: a | {EXTRA: np.ones(3)}, EXTRA),
    ],
)
def test_missing_unexpected_and_misshapen_arrays_raise(change, message):
    net = random_network(1)
    arrays, options = plain(net)
    with pytest.raises(ValueError, match=message):
        convert(net, 1, transformer=change(arrays), options=options)


ARGUMENTS = [
    (lambda a, o: {"source_positions": np.ones((ROOM, 3))}, ValueError, "source_positions"),
    (lambda a, o: {"target_embedding": np.ones(7)}, ValueError, "target_embedding"),
    (lambda a, o: {"unembedding": np.ones((5, 3))}, ValueError, "unembedding"),
    (lambda a, o: {"source_embedding": None}, TypeError, "source_embedding must.* got NoneType"),
    (lambda a, o: {"target_embedding": None}, TypeError, "target_embedding must.* got NoneType"),
    (lambda a, o: {"unembedding": None}, TypeError, "unembedding must.* got NoneType"),
    (lambda a, o: {"transformer": None}, TypeError, "must be an nn.Transformer.* NoneType"),
    (lambda a, o: {"transformer": nn.Linear(2, 3)}, TypeError, "nn.Transformer.* Linear"),
    (lambda a, o: {"transformer": (a, a)}, TypeError, "nn.Transformer.* tuple"),
    (
        lambda a, o: {"transformer": (nn.Linear(2, 3),) * 2},
        UnsupportedFeature,
        "encoder is a Linear",
    ),
    (
        lambda a, o: {"transformer": a, "options": {"encoder": {"nhead": 2}, "decoder": o}},
        ValueError,
        r"options\['encoder'\].*lacks.*final_norm",
    ),
    (
        lambda a, o: {"transformer": a, "options": o | {"custom_decoder": nn.Identity()}},
        UnsupportedFeature,
        "custom_decoder.*by stack",
    ),
    (
        lambda a, o: {"transformer": a, "options": {"encoder": None, "decoder": o}},
        TypeError,
        r"options\['encoder'\].*NoneType",
    ),
    (lambda a, o: {"transformer": "model.pt"}, TypeError, "nn.Transformer.* 'model.pt'"),
    (lambda a, o: {"transformer": a}, TypeError, "arrays need options: a mapping"),
    (lambda a, o: {"transformer": a, "options": ["d_model"]}, TypeError, "options: a mapping"),
    (lambda a, o: {"options": o}, TypeError, "options"),
    (
        lambda a, o: {"transformer": a, "options": o | {"activation": "silu"}},
        UnsupportedFeature,
        "activation = 'silu'",
    ),
    (
        lambda a, o: {"transformer": {name: x.tolist() for name, x in a.items()}, "options": o},
        TypeError,
        r"encoder\..* must be an array.*list",
    ),
    (
        lambda a, o: {"source_embedding": nn.Embedding(31, o["d_model"], device="meta")},
        ValueError,
        "source_embedding is on the meta device",
    ),
    (
        lambda a, o: {"transformer": random_network(1).transformer.to("meta")},
        ValueError,
        r"encoder\.layers.* on the meta device",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_that_raise(arguments, error, message):
    net = random_network(1)
    with pytest.raises(error, match=message):
        convert(net, 1, **arguments(*plain(net)))


def test_adapters_raise():
    net = random_network(1)
    options = plain(net)[1]
    with pytest.raises(UnsupportedFeature, match=MERGE):
        convert(net, 1, transformer=peft_model())
    add_lora(net.transformer.encoder.layers[0], "linear1")
    with pytest.raises(UnsupportedFeature, match=MERGE):
        convert(net, 1)
    with pytest.raises(UnsupportedFeature, match=MERGE):
        convert(net, 1, transformer=net.transformer.state_dict(), options=options)


def test_a_live_module_without_torch_raises(monkeypatch):
    net = random_network(1)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"is not a mapping.*torch.*refseq2seq\[peers\]"):
        convert(net, 1)


def test_positions_end_with_their_table():
    net = random_network(1)
    model = convert(net, 1)
    assert model.config.encoder.max_length == ROOM
    with pytest.raises(ValueError, match=str(ROOM)):
        rs.encode(model, np.zeros((1, ROOM + 1), dtype=int))
