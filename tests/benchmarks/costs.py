"""What single things cost: length, batch, taps, ended rows, float64, products, GELU, the import.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/costs.py length batch
    python tests/benchmarks/costs.py taps ended forward import

Medians of repeated runs; two things that are compared take turns.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from peers import N_POSITIONS, PAUSE, SIZES, Size, x_transformer

import refseq2seq as rs


def network(
    size: Size, dtype: str = "float32", n_source: int = N_POSITIONS, n_target: int = N_POSITIONS
) -> rs.Model:
    """x-transformers' conventions and random numbers, for sources and targets of these lengths."""
    config = rs.presets.x_transformers(
        d_model=size.d_model,
        source_vocab_size=size.vocab_size,
        target_vocab_size=size.vocab_size,
        n_source_positions=n_source,
        n_target_positions=n_target,
        encoder_layers=size.n_layers,
        decoder_layers=size.n_layers,
        n_heads=size.n_heads,
        d_k=size.d_model // size.n_heads,
        decoder_start_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    return rs.Model.random(config, 0, dtype)


def rows(size: Size, batch: int, n: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(3, size.vocab_size, (batch, n))


def in_turns(repeats: int, *runs: Callable[[], Any]) -> list[float]:
    """The median seconds of each."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, of_run in zip(runs, seconds, strict=True):
            begun = time.perf_counter()
            run()
            of_run.append(time.perf_counter() - begun)
    return [statistics.median(of_run[1:]) for of_run in seconds]


def steps_of(model: rs.Model, source: np.ndarray, n: int) -> np.ndarray:
    """Milliseconds of each step."""
    times = [time.perf_counter()]
    for _ in rs.decode_steps(model, source, eos_ids=(), max_new_tokens=n):
        times.append(time.perf_counter())
    return 1000 * np.diff(times)


def length() -> None:
    """Milliseconds of a step, by the tokens before it."""
    for name in ("d128", "d256", "d512"):
        model, source = network(SIZES[name]), rows(SIZES[name], 1)
        of_steps = np.median([steps_of(model, source, 1024) for _ in range(3)], axis=0)
        near = {n: np.median(of_steps[n - 32 : n]) for n in (64, 128, 256, 512, 1024)}
        print(name, "ms per token:", {n: round(float(ms), 3) for n, ms in near.items()})


def batch() -> None:
    """Milliseconds of a step, by the number of rows."""
    for name in ("d128", "d256"):
        model, found = network(SIZES[name]), {}
        for n in (1, 2, 4, 8, 16, 32, 64):
            found[n] = round(float(np.median(steps_of(model, rows(SIZES[name], n), 64)[1:])), 3)
        print(name, "ms per step:", found)


def taps() -> None:
    """Generation with no tap, with one that lets all pass, and with one that keeps all."""
    model, source = network(SIZES["d128"]), rows(SIZES["d128"], 1)
    through = rs.FunctionTap(lambda name, x: x)
    found = in_turns(
        15,
        lambda: rs.generate(model, source, eos_ids=(), max_new_tokens=64),
        lambda: rs.generate(model, source, eos_ids=(), max_new_tokens=64, tap=through),
        lambda: rs.generate(model, source, eos_ids=(), max_new_tokens=64, tap=rs.Trace()),
    )
    print("ms per token: no tap, passing, keeping:", [round(1000 * s / 64, 3) for s in found])
    calls = 64 * (2 * 22 + 9)
    (each,) = in_turns(5, lambda: [rs.no_tap("name", source) for _ in range(calls)])
    print(f"the calls of no_tap themselves: {1000 * each / 64:.4f} ms per token")


def ended() -> None:
    """32 rows that end after 1, 2, ..., 32 tokens, and the same rows, kept until the end."""
    model, source = network(SIZES["d256"]), rows(SIZES["d256"], 32)
    stop_at = np.arange(1, 33)

    def run(tap: Any) -> None:
        options = {"eos_ids": (), "max_new_tokens": 64, "tap": tap}
        for _ in rs.decode_steps(model, source, stop=lambda s: s.index + 1 >= stop_at, **options):
            pass

    leaving, staying = in_turns(5, lambda: run(rs.no_tap), lambda: run(rs.trace.NoTap()))
    print(f"seconds: leaving {leaving:.3f}, staying {staying:.3f}, {leaving / staying:.0%}")


def forward() -> None:
    """Teacher forcing in float64 beside PyTorch, each in a process of its own, taking turns."""
    processes = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in FORWARD}
    with contextlib.ExitStack() as stack:
        connections = {}
        for name in FORWARD:
            connections[name], theirs = processes.Pipe()
            process = processes.Process(target=serve_forward, args=(name, theirs), daemon=True)
            process.start()
            stack.callback(process.terminate)
        for _ in range(6):
            for name, connection in connections.items():
                time.sleep(PAUSE)
                connection.send(None)
                seconds[name].append(connection.recv())
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found[1:]):.2f} s, at best {min(found):.2f}")


def serve_forward(name: str, connection: Any) -> None:
    run = FORWARD[name](SIZES["d512"], rows(SIZES["d512"], 8, 128), rows(SIZES["d512"], 8, 128))
    while True:
        connection.recv()
        begun = time.perf_counter()
        run()
        connection.send(time.perf_counter() - begun)


def our_gelu(size: Size, source: np.ndarray, target: np.ndarray) -> Callable[[], Any]:
    return partial(rs.forward, network(size, "float64"), source, target)


def our_relu(size: Size, source: np.ndarray, target: np.ndarray) -> Callable[[], Any]:
    config = rs.presets.vaswani(
        d_model=size.d_model,
        vocab_size=size.vocab_size,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        d_ff=4 * size.d_model,
        decoder_start_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    return partial(rs.forward, rs.Model.random(config, 0, "float64"), source, target)


def their_gelu(size: Size, source: np.ndarray, target: np.ndarray) -> Callable[[], Any]:
    import torch

    network = x_transformer(size).double()

    @torch.no_grad()
    def run() -> np.ndarray:
        memory = network.encoder(torch.as_tensor(source), return_embeddings=True)
        return network.decoder.net(torch.as_tensor(target), context=memory).numpy()

    return run


def their_relu(size: Size, source: np.ndarray, target: np.ndarray) -> Callable[[], Any]:
    import torch

    network = torch.nn.Transformer(
        size.d_model, size.n_heads, size.n_layers, size.n_layers, 4 * size.d_model, 0.0,
        batch_first=True, dtype=torch.float64,
    ).eval()  # fmt: skip
    table = torch.randn(size.vocab_size, size.d_model, dtype=torch.float64)
    mask = network.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64)

    @torch.no_grad()
    def run() -> np.ndarray:
        a, b = table[torch.as_tensor(source)], table[torch.as_tensor(target)]
        return (network(a, b, tgt_mask=mask, tgt_is_causal=True) @ table.T).numpy()

    return run


FORWARD = {
    "ours, GELU": our_gelu,
    "x-transformers, GELU": their_gelu,
    "ours, ReLU": our_relu,
    "torch.nn.Transformer, ReLU": their_relu,
}


def products() -> None:
    """The products of one step alone, 20 us apart as in a step, beside PyTorch's."""
    import torch

    for name in ("d256", "d512"):
        d, n_layers, _, vocab_size = SIZES[name]
        shapes = [(d, d)] * 6 * n_layers + [(d, 4 * d), (4 * d, d)] * n_layers + [(d, vocab_size)]
        ours = [np.ones(shape, "float32") for shape in shapes]
        theirs = [torch.ones(shape[::-1]) for shape in shapes]
        for n in (1, 4, 16, 32):
            x = {k: np.ones((n, k), "float32") for k in (d, 4 * d)}
            y = {k: torch.ones((n, k)) for k in x}
            with torch.no_grad():
                found = [
                    min(apart(np.matmul, [(x[len(w)], w) for w in ours]) for _ in range(7)),
                    min(
                        apart(torch.nn.functional.linear, [(y[w.shape[1]], w) for w in theirs])
                        for _ in range(7)
                    ),
                ]
            print(name, n, "rows, ms: NumPy, PyTorch", [round(1000 * s, 2) for s in found])


def apart(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> float:
    """Seconds in the calls, with 20 us between any two."""
    total = 0.0
    for arguments in calls:
        begun = time.perf_counter()
        function(*arguments)
        ended = time.perf_counter()
        total += ended - begun
        while time.perf_counter() < ended + 2e-5:
            pass
    return total


def gelu() -> None:
    """Nanoseconds per number of GELU, of a whole array and a piece at a time."""
    piece = rs.backend.PIECE
    for shape, dtype in (((1024, 1024), "float32"), ((1024, 2048), "float64")):
        x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        found = []
        for rs.backend.PIECE in (x.size, piece):
            found += in_turns(7, lambda x=x: rs.special.gelu_erf(x))
        print("GELU", dtype, "ns: whole, pieces", [round(1e9 * s / x.size, 1) for s in found])


def importing() -> None:
    """What ``import refseq2seq`` adds to ``import numpy``."""

    def milliseconds(modules: str) -> float:
        program = f"import time; t = time.perf_counter(); import {modules}; "
        program += "print(1000 * (time.perf_counter() - t))"
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        return float(out.stdout)

    plain, both = zip(
        *((milliseconds("numpy"), milliseconds("numpy, refseq2seq")) for _ in range(15)),
        strict=True,
    )
    added = statistics.median(both) - statistics.median(plain)
    print(f"import: NumPy {statistics.median(plain):.0f} ms, refseq2seq adds {added:.0f} ms")


COSTS = {
    "length": length,
    "batch": batch,
    "taps": taps,
    "ended": ended,
    "forward": forward,
    "products": products,
    "gelu": gelu,
    "import": importing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("costs", nargs="+", choices=COSTS)
    for name in parser.parse_args().costs:
        COSTS[name]()


if __name__ == "__main__":
    main()
