"""Greedy generation on a CUDA device with CuPy, beside x-transformers and Hugging Face in PyTorch.

    python tests/benchmarks/gpu.py --size d256 --batch 1 16 --new 64

There are two models of a size: each peer runs the one that refseq2seq can take the weights of,
and refseq2seq both, once with formulas fused into kernels and once operation by operation.
Everything is float32 without TensorFloat, EOS is switched off, the source has 32 tokens. A figure
is the median of a whole call, encoding included; the engines take turns. Launches (kernels, copies,
fills) and reads (copies to the host) are those of a longer call less a shorter one, per token,
in the trace of PyTorch's profiler.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import (
    EOS,
    N_SOURCE,
    SIZES,
    START,
    Size,
    bart,
    generate_huggingface,
    generate_x_transformers,
    x_transformer,
)

import refseq2seq as rs

Generate = Callable[[np.ndarray, int], np.ndarray]
"""Source (batch, n_source) and n to new tokens (batch, n)."""


class Row(NamedTuple):
    """What was measured of one engine."""

    engine: str
    size: str
    batch: int
    ms_per_token: float
    tokens_per_second: float  # of the whole batch
    launches: float
    reads: float
    tokens_equal: float  # the share that refseq2seq gives too, with the same weights


class Fusing:
    """In the place of `cupy.fuse`: kernels of fused formulas, or while it is off, of operations."""

    def __init__(self) -> None:
        import cupy

        self.on, self._fuse, cupy.fuse = True, cupy.fuse, self

    def __call__(self, kernel_name: str) -> Any:
        def fused(function: Any) -> Any:
            kernel = self._fuse(kernel_name=kernel_name)(function)

            def either(*args: Any) -> Any:
                return kernel(*args) if self.on else function(*args)

            return either

        return fused


def ours(model: rs.Model, peer: str, fusing: Fusing) -> dict[str, Generate]:
    model = model.to("cupy")

    def generate(fused: bool, source: np.ndarray, n: int) -> np.ndarray:
        fusing.on = fused
        return rs.generate(model, source, max_new_tokens=n, eos_ids=()).tokens

    return {
        f"refseq2seq, {peer}'s model": partial(generate, True),
        f"refseq2seq, {peer}'s model, not fused": partial(generate, False),
    }


def x_transformers_engines(size: Size, fusing: Fusing) -> dict[str, Generate]:
    theirs = x_transformer(size)
    model = rs.convert.from_x_transformers(theirs, decoder_start_id=START, eos_ids=(EOS,))
    generate = partial(generate_x_transformers, theirs.cuda(), device="cuda")
    return ours(model, "x-transformers", fusing) | {"x-transformers": generate}


def huggingface_engines(size: Size, fusing: Fusing) -> dict[str, Generate]:
    theirs = bart(size)
    model = rs.convert.from_huggingface(theirs)
    theirs.generation_config.eos_token_id = None
    generate = partial(generate_huggingface, theirs.cuda(), device="cuda")
    return ours(model, "Hugging Face", fusing) | {"Hugging Face": generate}


def traced(generate: Generate, source: np.ndarray, n: int) -> tuple[int, int]:
    """Launches and reads of a call."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        generate(source, n)
        torch.cuda.synchronize()
    launched = [event for event in profile.key_averages() if event.device_time_total]
    reads = sum(event.count for event in launched if "DtoH" in event.key)
    return sum(event.count for event in launched), reads


def measure(engines: dict[str, Generate], size: str, batch: int, n: int, repeats: int) -> list[Row]:
    source = np.random.default_rng(0).integers(3, SIZES[size].vocab_size, (batch, N_SOURCE))
    tokens = {engine: generate(source, n) for engine, generate in engines.items()}  # compiles too
    expected = next(iter(tokens.values()))
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(repeats):
        for engine, generate in engines.items():
            begun = time.perf_counter()
            generate(source, n)  # ends with its tokens on the host, so that it is over
            seconds[engine].append(time.perf_counter() - begun)
    rows = []
    for engine, generate in engines.items():
        took = statistics.median(seconds[engine])
        traced(generate, source, 2)  # the first trace is not like the others
        (few, some), (more, many) = (traced(generate, source, m) for m in (4, 12))
        row = Row(
            engine=engine,
            size=size,
            batch=batch,
            ms_per_token=1000 * took / n,
            tokens_per_second=batch * n / took,
            launches=(more - few) / 8,
            reads=(many - some) / 8,
            tokens_equal=float((tokens[engine] == expected).mean()),
        )
        print(table([row]).splitlines()[-1], flush=True)
        rows.append(row)
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| engine | size | batch | ms per token | tokens/s | launches | reads | tokens equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.engine} | {r.size} | {r.batch} | {r.ms_per_token:.2f} | {r.tokens_per_second:.0f} "
        f"| {r.launches:.0f} | {r.reads:.0f} | {r.tokens_equal:.0%} |"
        for r in rows
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    import cupy
    import torch

    names = ("numpy", "torch", "x-transformers", "transformers")
    return {
        "device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        "cuda": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "torch_tf32": torch.backends.cuda.matmul.allow_tf32,
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["d128"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    try:
        rs.to_cupy(np.zeros(1))
    except rs.BackendError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    rows, fusing = [], Fusing()
    for size in options.size:
        for make in (x_transformers_engines, huggingface_engines):
            engines = make(SIZES[size], fusing)
            for batch in options.batch:
                rows += measure(engines, size, batch, options.new, options.repeats)
    print(json.dumps(machine()), table(rows), sep="\n\n")
    if options.json:
        figures = {"machine": machine(), "rows": [row._asdict() for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
