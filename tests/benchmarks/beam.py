"""Time per step of beam search against the number of beams, and what reordering copies.

python tests/benchmarks/beam.py
"""

import statistics
import time

import numpy as np
from costs import network
from peers import SIZES

import refseq2seq as rs

N_STEPS, REPEATS = 32, 7
BEAMS = [1, 2, 4, 8, 16, 32]


def milliseconds(model: rs.Model, source: np.ndarray, beams: int) -> float:
    """Of one step: the difference of a long and a short search, so that encoding drops out."""

    def seconds(n: int) -> float:
        begun = time.perf_counter()
        rs.beam_search(model, source, beams=beams, eos_ids=(), max_new_tokens=n)
        return time.perf_counter() - begun

    times = [(seconds(N_STEPS) - seconds(2)) / (N_STEPS - 2) for _ in range(REPEATS)]
    return 1000 * statistics.median(times)


def moved(model: rs.Model, source: np.ndarray, beams: int) -> float:
    """The share of cache rows that a step copies."""
    shares = []
    for step in rs.beam_steps(model, source, beams=beams, eos_ids=(), max_new_tokens=N_STEPS):
        rows = np.arange(len(step.done))[:, None]
        parents = step.candidates.beams[rows, step.survivors]
        shares.append((parents != np.arange(beams)).mean())
    return float(np.mean(shares[1:]))


def main() -> None:
    model = network(SIZES["d256"], n_source=64, n_target=64)
    source = np.random.default_rng(0).integers(3, 1000, (1, 32))
    milliseconds(model, source, 2)  # warm up
    print("| beams | ms per step | ms per step and beam | cache rows copied |")
    print("|---|---|---|---|")
    for beams in BEAMS:
        ms = milliseconds(model, source, beams)
        print(f"| {beams} | {ms:.2f} | {ms / beams:.3f} | {moved(model, source, beams):.0%} |")


if __name__ == "__main__":
    main()
