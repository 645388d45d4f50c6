"""Record what the pinned peers compute, so that the default suite needs none of them.

    python tests/vectors/record.py

needs the ``peers`` extra. A file holds a random model of a peer in float64 (parameters that
float16 holds exactly), its options, a batch, and the logits and greedy tokens that the peer
itself gave. What a peer computes in float32 whatever the model's dtype is computed in float64, as
in `tests/peers`: some norms and sinusoids, and T5Gemma's rotations and softmax.
`tests/test_vectors.py` reads the files.
"""

import json
import sys
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / name) for name in ("peers", "", "helpers")]

import hf_models
import test_pytorch as pt
import test_t5gemma as t5gemma
import test_vision as vision
import test_whisper as whisper
import test_x_transformers as xt
import torch
from comparisons import Batch
from xt_networks import START, Network, random_network
from xt_networks import random_batch as xt_batch

N_NEW = 7
T5GEMMA = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 3,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 3.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
WHISPER, TROCR = 11, 22  # seeds of the exact GELU, and of a projection of the memory
X_TRANSFORMERS = {
    "defaults": {},
    **{
        name: xt.CASES[name]
        for name in (
            "tie_token_emb", "rotary", "alibi", "relative bias", "sinusoids", "no positions",
            "rmsnorm", "scalenorm", "simple_rmsnorm", "no unit offset", "post-norm", "sandwich",
            "swiglu", "relu squared", "no biases", "post_act_ln", "qk_norm, learned", "kv_heads",
            "memory kv", "memory tokens", "gate_values", "head_scale", "tied layers",
            "tie_embedding", "softclamp",
        )
    },
}  # fmt: skip


def halved(modules: list[torch.nn.Module]) -> None:
    """Round parameters to float16, in place: the files then hold them exactly, and small."""
    for module in modules:
        for x in module.parameters():
            if x.requires_grad:  # sinusoids are a parameter too, in some families
                x.data = x.data.half().double()


def stored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As float16 where that loses nothing."""
    small = {}
    for name, x in arrays.items():
        with np.errstate(over="ignore"):
            half = x.astype(np.float16) if x.dtype == np.float64 else x
        small[f"array.{name}"] = half if np.array_equal(half, x) else x
    return small


def write(kind: str, name: str, about: dict[str, Any], **values: Any) -> None:
    """One file, without a pickle."""
    arrays = stored(values.pop("arrays"))
    words = "".join(c if c.isalnum() else "-" for c in f"{kind}-{name}".lower())
    about = {"peer": kind, "case": name, "version": version(kind).partition("+")[0], **about}
    np.savez_compressed(HERE / f"{words}.npz", about=json.dumps(about), **arrays, **values)


def record_x_transformers() -> None:
    for name, options in X_TRANSFORMERS.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        network = random_network(rng, options)
        halved(network.parts)
        batch = xt_batch(rng, network.options, "right")
        network.in_float64()
        write_network(name, network, batch)


def record_wrappers_of_x_transformers() -> None:
    for name in ("ViT", "frames"):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        network, batch = vision.random_wrappers(rng, *vision.XT_CASES[name])
        halved(network.parts)
        network.in_float64()
        write_network(name, network, batch)


def write_network(name: str, network: Network, batch: Batch) -> None:
    prompts = np.full((len(batch.source), 1), START)
    everywhere = np.ones(batch.source.shape[:2], bool)
    write(
        "x-transformers",
        name,
        {"options": network.options},
        arrays=network.arrays(),
        source=batch.source,
        mask=everywhere if batch.mask is None else batch.mask,
        target=batch.target,
        logits=network.logits(batch.source, batch.mask, batch.target),
        tokens=network.generate(batch.source, batch.mask, prompts, N_NEW, temperature=0.0),
    )


def record_huggingface() -> None:
    for name in hf_models.CASES:
        model = hf_models.random_model(name, 1)
        halved([model])
        batch = hf_models.random_batch(model, 1)
        tokens = hf_models.generated(model, batch, max_new_tokens=N_NEW)
        write_model(name, model, batch, hf_models.logits(model, batch), tokens)


def record_t5gemma() -> None:
    shipped = {where: getattr(*where) for where in [f[:2] for f in t5gemma.EXACT.values()]}
    for where, name, function in t5gemma.EXACT.values():
        setattr(where, name, function)
    model = t5gemma.random_model(6, **T5GEMMA)
    halved([model])
    batch = hf_models.random_batch(model, 6)
    tokens = hf_models.generated(model, batch, max_new_tokens=N_NEW)
    write_model("T5Gemma", model, batch, hf_models.logits(model, batch), tokens)
    for where, function in shipped.items():
        setattr(*where, function)


def record_whisper() -> None:
    model, batch = whisper.random_model(WHISPER)
    halved([model])
    tokens = whisper.generated(model, batch)[:, 1:].numpy()
    logits = whisper.their_logits(model, batch).numpy()
    write_model("Whisper", model, batch, logits, tokens, model.generation_config)


def record_images() -> None:
    model = vision.random_model("ViT + TrOCR", TROCR)
    halved([model])
    images, target = vision.random_batch(model, TROCR)
    tokens = vision.outcome(model, images, max_new_tokens=N_NEW).sequences[:, 1:].numpy()
    logits = vision.logits(model, images, target)
    batch = Batch(vision.frames(model, images), None, target)
    write_model("TrOCR", model, batch, logits, tokens, model.generation_config)


def write_model(
    name: str,
    model: Any,
    batch: Batch,
    logits: np.ndarray,
    tokens: np.ndarray,
    generation: Any = None,
) -> None:
    """``generation`` is the generation config, of a class whose config lacks its tokens."""
    about = {"options": json.loads(model.config.to_json_string(use_diff=False))}
    if generation is not None:
        about["generation"] = json.loads(generation.to_json_string())
    write(
        "transformers",
        name,
        about,
        arrays={key: x.numpy() for key, x in model.state_dict().items()},
        source=batch.source,
        mask=np.ones(batch.source.shape[:2], bool) if batch.mask is None else batch.mask,
        target=batch.target,
        logits=logits,
        tokens=tokens,
    )


def record_pytorch() -> None:
    for seed, (name, options) in enumerate(pt.VARIANTS.items(), start=1):
        net = pt.random_network(3 * seed + 1, **options)  # a table of positions
        around = [net.source_embedding, net.target_embedding, net.unembedding]
        halved([net.transformer, *around])
        net.positions = net.positions.half().double()
        source, target, mask = pt.random_batch(net, seed)
        bias = {} if net.unembedding.bias is None else {"around.bias": net.unembedding.bias}
        arrays = {
            **net.transformer.state_dict(),
            "around.source": net.source_embedding.weight,
            "around.target": net.target_embedding.weight,
            "around.unembedding": net.unembedding.weight,
            "around.positions": net.positions,
            **bias,
        }
        about = {"options": pt.plain(net)[1], "scale": net.scale}
        write(
            "torch",
            name,
            about,
            arrays={key: x.detach().numpy() for key, x in arrays.items()},
            source=source,
            mask=mask,
            target=target,
            logits=net.logits(source, target, mask),
            tokens=net.greedy(source, mask),
        )


if __name__ == "__main__":
    for old in HERE.glob("*.npz"):
        old.unlink()
    record_x_transformers()
    record_wrappers_of_x_transformers()
    record_huggingface()
    record_t5gemma()
    record_whisper()
    record_images()
    record_pytorch()
    files = list(HERE.glob("*.npz"))
    print(f"{len(files)} files, {sum(f.stat().st_size for f in files):,} bytes")
