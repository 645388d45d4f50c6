"""Time per step of beam search against the number of beams, and what reordering copies.

python tests/benchmarks/beam.py
"""

import statistics
import time

import numpy as np

import refseq2seq as rs

N_STEPS, REPEATS = 32, 7
BEAMS = [1, 2, 4, 8, 16, 32]


def model() -> rs.Model:
    config = rs.presets.x_transformers(
        d_model=256,
        source_vocab_size=1000,
        target_vocab_size=1000,
        n_source_positions=64,
        n_target_positions=64,
        encoder_layers=3,
        decoder_layers=3,
        n_heads=8,
        d_k=32,
        decoder_start_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    return rs.Model.random(config, 0)


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
    network = model()
    source = np.random.default_rng(0).integers(3, 1000, (1, 32))
    milliseconds(network, source, 2)  # warm up
    print("| beams | ms per step | ms per step and beam | cache rows copied |")
    print("|---|---|---|---|")
    for beams in BEAMS:
        ms = milliseconds(network, source, beams)
        print(f"| {beams} | {ms:.2f} | {ms / beams:.3f} | {moved(network, source, beams):.0%} |")


if __name__ == "__main__":
    main()
