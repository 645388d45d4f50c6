"""Random networks of x-transformers, for the tests beside this file."""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from comparisons import Batch, count_near_ties
from torch import nn
from x_transformers import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
    XTransformer,
)
from x_transformers import x_transformers as xt
from x_transformers.attend import Attend

import refseq2seq as rs

START, EOS = 1, 2
CONVENTIONS = {"decoder_start_id": START, "eos_ids": (EOS,)}

# Of what TransformerWrapper takes, what XTransformer passes on to it; and what it does not.
PASSED_ON = {
    "num_tokens", "max_seq_len", "emb_dropout", "scaled_sinu_pos_emb", "use_abs_pos_emb",
    "num_memory_tokens",
}  # fmt: skip
HELD_BACK = set(inspect.signature(TransformerWrapper).parameters) - {*PASSED_ON, "attn_layers"}


def both(**options: Any) -> dict[str, Any]:
    """The options for the encoder and for the decoder."""
    return {f"{side}{name}": value for side in ("enc_", "dec_") for name, value in options.items()}


@dataclass
class Network:
    """A module as the converter takes it, and the two parts of it that run."""

    module: Any
    options: dict[str, Any]  # of an XTransformer; empty where only the module is known
    encoder: TransformerWrapper
    decoder: AutoregressiveWrapper

    @property
    def parts(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]

    def arrays(self) -> dict[str, np.ndarray]:
        """The state dict that an XTransformer of these parts has, in NumPy."""
        return {
            f"{name}.{key}": x.numpy().copy()
            for name, part in (("encoder", self.encoder), ("decoder", self.decoder))
            for key, x in part.state_dict().items()
        }

    def convert(self) -> rs.Model:
        """Ours, from the live module."""
        return rs.convert.from_x_transformers(self.module, **CONVENTIONS)

    def convert_arrays(self) -> rs.Model:
        """Ours, from the arrays and options, which is quicker."""
        return rs.convert.from_x_transformers(self.arrays(), self.options, **CONVENTIONS)

    @torch.no_grad()
    def encode(self, source: np.ndarray, mask: np.ndarray | None) -> dict[str, torch.Tensor | None]:
        """The memory and its mask, as the decoder takes them."""
        mask = None if mask is None else torch.as_tensor(mask)
        memory = self.encoder(torch.as_tensor(source), mask=mask, return_embeddings=True)
        return {"context": memory, "context_mask": mask}

    @torch.no_grad()
    def tensor_of_logits(self, source: np.ndarray, mask: Any, target: np.ndarray) -> torch.Tensor:
        return self.decoder.net(torch.as_tensor(target), **self.encode(source, mask))

    def logits(self, source: np.ndarray, mask: np.ndarray | None, target: np.ndarray) -> np.ndarray:
        return self.tensor_of_logits(source, mask, target).numpy()

    @torch.no_grad()
    def generate(
        self, source: np.ndarray, mask: np.ndarray | None, prompts: Any, n: int, **options: Any
    ) -> np.ndarray:
        if isinstance(prompts, list):
            prompts = [torch.as_tensor(prompt) for prompt in prompts]
        else:
            prompts = torch.as_tensor(prompts)
        options = {"eos_token": EOS} | self.encode(source, mask) | options
        return self.decoder.generate(prompts, n, **options).numpy()

    def in_float64(self) -> rs.Model:
        """Ours in float64; this network too, even where it is float32 in any case."""
        for part in self.parts:
            part.double()
        model = self.convert_arrays() if self.options else self.convert()
        for part in self.parts:
            for inner in part.modules():
                if isinstance(inner, Attend) and inner.attn_fn.keywords.get("dtype") is not None:
                    inner.attn_fn = partial(nn.functional.softmax, dim=-1)
                if isinstance(inner, xt.RotaryEmbedding):
                    inner.inv_freq = _frequencies(inner.inv_freq, 10000.0)
                if isinstance(inner, xt.ScaledSinusoidalEmbedding):
                    inner.inv_freq = _frequencies(inner.inv_freq, 10000.0)
        return model


def _frequencies(rounded: torch.Tensor, base: float) -> torch.Tensor:
    """base^(-2j/d) in float64; d, even or odd, is known from the rounded ones."""
    n = len(rounded)
    j = torch.arange(n, dtype=torch.float64)
    candidates = [base ** (-2 * j / d) for d in (2 * n, 2 * n - 1)]
    return min(candidates, key=lambda exact: (exact - rounded).abs().max().item())


def random_network(rng: np.random.Generator, options: dict[str, Any]) -> Network:
    """A small network with these options, the other sizes and all parameters random."""
    sizes: dict[str, Any] = {"dim": int(rng.choice([10, 14, 22]))}
    for side in ("enc_", "dec_"):
        sizes |= {
            f"{side}num_tokens": int(rng.choice([11, 13, 17])),
            f"{side}max_seq_len": 16,
            f"{side}depth": 1 + int(rng.random() < 0.3),
            f"{side}heads": int(rng.choice([2, 3])),
            f"{side}attn_dim_head": int(rng.choice([6, 7, 8])),
            f"{side}verbose": False,
        }
    options = sizes | options
    if "enc_dim" in options:
        del options["dim"]
    torch.manual_seed(int(rng.integers(2**31)))
    network = _build(options)
    with torch.no_grad():  # nothing may stay at 0 or 1, where a mistake would not show
        for part in network.parts:
            part.eval()
            for parameter in part.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def _build(options: dict[str, Any]) -> Network:
    sides = {
        prefix: {n.removeprefix(prefix): v for n, v in options.items() if n.startswith(prefix)}
        for prefix in ("enc_", "dec_")
    }
    if not any(side.keys() & (HELD_BACK | {"dim"}) for side in sides.values()):
        module = XTransformer(**options)
        return Network(module, options, module.encoder, module.decoder)
    wrappers = []
    for prefix, kind in (("enc_", Encoder), ("dec_", Decoder)):
        side = {"dim": options["dim"]} | sides[prefix] if "dim" in options else sides[prefix]
        of_wrapper = {name: side.pop(name) for name in side.keys() & (PASSED_ON | HELD_BACK)}
        layers = kind(**side) if prefix == "enc_" else kind(cross_attend=True, **side)
        wrappers.append(TransformerWrapper(attn_layers=layers, **of_wrapper))
    encoder, decoder = wrappers
    decoder = AutoregressiveWrapper(decoder)
    return Network((encoder, decoder), options, encoder, decoder)


def random_batch(rng: np.random.Generator, options: dict[str, Any], padding: str) -> Batch:
    """Three rows of different lengths, padded ``"right"`` or ``"left"``, or sometimes not at all.

    Targets begin with `START` and have no end.
    """
    n = int(rng.integers(2, 10))
    source = rng.integers(0, options["enc_num_tokens"], (3, n))
    lengths = np.array([n, *rng.integers(1, n + 1, 2)])
    mask = np.arange(n) < lengths[:, None]
    if padding == "left":
        mask = mask[:, ::-1].copy()
    target = rng.integers(EOS + 1, options["dec_num_tokens"], (3, int(rng.integers(2, 8))))
    target[:, 0] = START
    return Batch(source, mask if rng.random() < 0.8 else None, target)


# Relative to the largest logit, since a norm or a product rounds a vector as a whole. The worst
# difference met in all tests is 2e-6 in float32 (32 of its roundings) and 7e-15 in float64.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Finite, of one dtype, and equal up to its tolerance."""
    assert ours.dtype == theirs.dtype
    assert np.isfinite(theirs).all()
    atol = TOLERANCE[ours.dtype.name] * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, equal_nan=False)


def check_greedy(network: Network, model: rs.Model, batch: Batch, prefix: Any, n_new: int) -> int:
    """The same greedy tokens. Returns how many rows differ from a near-tie on.

    Where tokens first differ, both have decoded the same so far, and two logits have changed
    their order: our margin is at most twice the difference of our logits and theirs. That is
    measured without caches, hence another factor 2, and must itself be as small as `close` asks.
    """
    theirs = network.generate(batch.source, batch.mask, prefix, n_new, temperature=0.0)
    options = {"source_mask": batch.mask, "prefix": prefix, "max_new_tokens": n_new}

    def is_tie(step: rs.Step, row: int, before: np.ndarray) -> bool:
        target, here = np.concatenate([prefix[row], before])[None], slice(row, row + 1)
        mask = None if batch.mask is None else batch.mask[here]
        want = network.logits(batch.source[here], mask, target)
        got = rs.forward(model, batch.source[here], target, mask)
        close(got, want)
        return step.margin[row] <= 4 * np.abs(got - want).max()

    return count_near_ties(list(rs.decode_steps(model, batch.source, **options)), theirs, 0, is_tie)
