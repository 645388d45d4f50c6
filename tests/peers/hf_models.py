"""Random models of Hugging Face transformers, for the tests beside this file."""

import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from comparisons import Batch, relative_error
from torch import nn

import refseq2seq as rs

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

PAD, EOS = 1, (2, 5, 11, 17, 23, 29)
ROOM = 23  # positions that a learned table serves


@dataclass(frozen=True)
class Case:
    """A family, or a variant of one."""

    config: type
    model: type
    options: dict[str, Any] = field(default_factory=dict)
    own_unembedding: bool = False  # where the class ties it, and files of its time do not

    @property
    def is_t5(self) -> bool:
        return "T5" in self.config.__name__

    @property
    def left_padding(self) -> bool:
        """Whether transformers gets it right: the other families count padding as positions."""
        return self.is_t5 or "M2M100" in self.config.__name__


def _case(
    name: str, head: str = "ForConditionalGeneration", own_unembedding: bool = False, **options: Any
) -> Case:
    return Case(
        getattr(transformers, f"{name}Config"),
        getattr(transformers, f"{name}{head}"),
        options,
        own_unembedding,
    )


CASES = {
    "T5 1.0": _case("T5", feed_forward_proj="relu"),
    "T5 1.1": _case(
        "T5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, own_unembedding=True
    ),
    "T5, gated silu": _case("T5", feed_forward_proj="gated-silu"),
    "mT5": _case("MT5", own_unembedding=True),
    "UMT5": _case("UMT5", own_unembedding=True),
    "BART": _case("Bart"),
    "BART, untied": _case("Bart", tie_word_embeddings=False, scale_embedding=True),
    "mBART": _case("MBart", activation_function="relu", scale_embedding=True),
    "Marian": _case("Marian", "MTModel", activation_function="swish", scale_embedding=True),
    "Marian, two vocabularies": _case(
        "Marian", "MTModel", share_encoder_decoder_embeddings=False, decoder_vocab_size=47
    ),
    "Pegasus": _case("Pegasus", activation_function="relu", scale_embedding=True),
    "M2M100": _case("M2M100"),
    "Blenderbot": _case("Blenderbot"),
    "Blenderbot-small": _case("BlenderbotSmall", activation_function="gelu_new"),
    "MVP": _case("Mvp", scale_embedding=True),
    "PLBart": _case("PLBart"),
}


def random_config(case: Case, rng: np.random.Generator) -> Any:
    """Sizes that differ from each other wherever they may."""
    if case.is_t5:
        # generate gives a decoder that is deeper than the encoder too small a cache: IndexError
        n_layers = int(rng.integers(1, 4))
        sizes = {
            "d_model": int(rng.integers(10, 25)),
            "d_kv": int(rng.integers(3, 8)),
            "d_ff": int(rng.integers(9, 30)),
            "num_layers": n_layers,
            "num_decoder_layers": int(rng.integers(1, n_layers + 1)),
            "num_heads": int(rng.integers(1, 5)),
            "relative_attention_num_buckets": int(rng.choice([6, 8, 10])),
            "relative_attention_max_distance": int(rng.integers(7, 12)),
            "layer_norm_epsilon": float(rng.choice([1e-6, 1e-3])),
        }
    else:
        sizes = {
            "d_model": 12 * int(rng.integers(1, 3)),
            "encoder_layers": int(rng.integers(1, 4)),
            "decoder_layers": int(rng.integers(1, 4)),
            "encoder_ffn_dim": int(rng.integers(9, 30)),
            "decoder_ffn_dim": int(rng.integers(9, 30)),
            "encoder_attention_heads": int(rng.choice([1, 2, 3])),
            "decoder_attention_heads": int(rng.choice([2, 3, 4])),
            "max_position_embeddings": ROOM,
        }
    tokens = {
        "vocab_size": 41,
        "pad_token_id": PAD,
        "eos_token_id": list(EOS),
        "decoder_start_token_id": int(rng.choice([0, PAD, EOS[0], 7])),
    }
    if "M2M100" in case.config.__name__:  # see `randomize`
        tokens["decoder_start_token_id"] = 7
    return case.config(**sizes | tokens | case.options)


def random_model(name: str, seed: int, exact: bool = True) -> Any:
    """A float64 model in which every parameter matters, computed in float64 if ``exact``."""
    case = CASES[name]
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    torch.manual_seed(int(rng.integers(2**31)))
    model = case.model(random_config(case, rng))
    model.generation_config.encoder_no_repeat_ngram_size = None  # Blenderbot's classes have 3
    if case.own_unembedding:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model = model.double().eval()
    randomize(model)
    if exact:
        make_exact(model)
    return model


def randomize(model: Any) -> None:
    """Activations of unit size, logits that prefer a few tokens; no gain is 1, no bias 0.

    M2M100 gives the pad token's row no position when it meets it, in the decoder too, so that
    it must not be generated: its logit stays 0 there, below the best.
    """
    drawn = {path: x for path, x in model.named_parameters() if x.requires_grad}
    drawn |= {path: x for path, x in model.named_buffers() if path == "final_logits_bias"}
    for path, x in drawn.items():
        normal = torch.randn_like(x)
        if x.ndim == 1:
            x.data = normal / 4 + (1 if path.endswith("weight") else 0)
        elif path == "final_logits_bias":
            x.data = normal / 4
        elif any(word in path for word in ("embed", "shared", "lm_head", "relative")):
            x.data = normal
        else:
            x.data = normal / x.shape[1] ** 0.5
    if model.config.model_type == "m2m_100":
        model.lm_head.weight.data[PAD] = 0


def make_exact(model: Any) -> None:
    """Compute in float64 what transformers computes in float32 whatever the model's dtype."""
    for module in model.modules():
        kind = type(module).__name__
        if kind in ("T5LayerNorm", "MT5LayerNorm", "UMT5LayerNorm"):
            module.forward = partial(_rms_norm, module)
        elif kind == "M2M100SinusoidalPositionalEmbedding":
            n, d = module.weights.shape
            module.weights = sinusoids_in_float64(n, d, steps=d // 2 - 1)
        elif kind.endswith("SinusoidalPositionalEmbedding"):
            n, d = module.weight.shape
            module.weight.data = sinusoids_in_float64(n, d, steps=d // 2)


def _rms_norm(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    variance = x.square().mean(-1, keepdim=True)
    return module.weight * (x / torch.sqrt(variance + module.variance_epsilon))


def sinusoids_in_float64(n: int, d: int, steps: int) -> torch.Tensor:
    """All sines, then all cosines, of the position over 10000^(j / steps)."""
    angles = [[p / 10000 ** (j / steps) for j in range(d // 2)] for p in range(n)]
    angles = torch.tensor(angles, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def random_batch(model: Any, seed: int, left: bool = False) -> Batch:
    """Three sources, the padding on the right or on the left; all positions fit the tables."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, ROOM - 2))
    lengths = rng.integers(1, n + 1, size=3)
    lengths[rng.integers(3)] = n
    mask = np.arange(n) < lengths[:, None]
    mask = mask[:, ::-1].copy() if left else mask
    source = rng.integers(PAD + 1, model.config.vocab_size, size=mask.shape)
    target = rng.integers(PAD + 1, model.config.vocab_size, size=(3, int(rng.integers(2, 12))))
    return Batch(np.where(mask, source, PAD), mask, target)


def tensor_of_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Teacher forced, of transformers, in any dtype."""
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(batch.source),
            attention_mask=torch.tensor(batch.mask, dtype=torch.long),
            decoder_input_ids=torch.tensor(batch.target),
        ).logits


def logits(model: Any, batch: Batch) -> np.ndarray:
    """Teacher forced, of transformers."""
    return tensor_of_logits(model, batch).numpy()


def error_of_logits(ours: rs.Model, theirs: Any, batch: Batch) -> float:
    """Teacher forced, relative to the largest logit."""
    computed = rs.forward(ours, batch.source, batch.target, batch.mask)
    assert computed.dtype == ours.dtype
    return relative_error(computed, logits(theirs, batch))


def generated(model: Any, batch: Batch, prefix: Any = None, **options: Any) -> np.ndarray:
    """New tokens, of transformers."""
    n = 1 if prefix is None else len(prefix[0])
    return outcome(model, batch, prefix, **options).sequences[:, n:].numpy()


def outcome(model: Any, batch: Batch, prefix: Any = None, **options: Any) -> Any:
    """What ``generate`` returns, without the settings that some families bring along."""
    neutral = {"encoder_no_repeat_ngram_size": None, "do_sample": False}
    if prefix is not None:
        options["decoder_input_ids"] = torch.tensor(prefix)
    return model.generate(
        torch.tensor(batch.source),
        attention_mask=torch.tensor(batch.mask, dtype=torch.long),
        return_dict_in_generate=True,
        output_scores=True,
        **neutral | options,
    )
