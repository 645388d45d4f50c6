"""What sums in order cost: `model.exact()` beside the same model with BLAS, on one thread.

python tests/benchmarks/exact.py

Processor time, the least of several runs: what other programs do meanwhile matters little.
"""

import os
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported

import numpy as np

import refseq2seq as rs

BATCH, N_SOURCE, N_TARGET, N_NEW, REPEATS = 4, 32, 32, 16, 5
SIZES = [(32, 2, 100), (128, 2, 100), (256, 3, 1000)]  # width, layers in each stack, vocabulary


def model(width: int, layers: int, vocabulary: int, dtype: str) -> rs.Model:
    config = rs.presets.x_transformers(
        d_model=width,
        source_vocab_size=vocabulary,
        target_vocab_size=vocabulary,
        n_source_positions=N_SOURCE,
        n_target_positions=max(N_TARGET, N_NEW),
        encoder_layers=layers,
        decoder_layers=layers,
        n_heads=4,
        d_k=width // 4,
        decoder_start_id=1,
        eos_ids=(2,),
        pad_id=0,
    )
    return rs.Model.random(config, 0, dtype)


def milliseconds(network: rs.Model) -> tuple[float, float]:
    """Of a forward pass over the whole target, and of a step of cached generation."""
    rng, vocabulary = np.random.default_rng(0), network.config.encoder.vocab_size
    source = rng.integers(3, vocabulary, (BATCH, N_SOURCE))
    target = rng.integers(3, vocabulary, (BATCH, N_TARGET))
    forward, step = [], []
    for _ in range(REPEATS):
        begun = time.process_time()
        rs.forward(network, source, target)
        forward.append(time.process_time() - begun)
        steps = rs.decode_steps(network, source, max_new_tokens=N_NEW + 1, eos_ids=())
        next(steps)  # the first one encodes the source too
        begun = time.process_time()
        for _ in steps:
            pass
        step.append((time.process_time() - begun) / N_NEW)
    return 1000 * min(forward), 1000 * min(step)


def main() -> None:
    print("| width, layers | dtype | forward, BLAS | exact | times | step, BLAS | exact | times |")
    print("|---|---|---|---|---|---|---|---|")
    for width, layers, vocabulary in SIZES:
        for dtype in ("float64", "float32"):
            network = model(width, layers, vocabulary, dtype)
            milliseconds(network)  # warm up
            (a, b), (c, d) = milliseconds(network), milliseconds(network.exact())
            cells = [f"{a:.1f} ms", f"{c:.1f} ms", f"{c / a:.1f}", f"{b:.2f} ms", f"{d:.2f} ms"]
            print(f"| {width}, {layers} + {layers} | {dtype} | {' | '.join(cells)} | {d / b:.1f} |")


if __name__ == "__main__":
    main()
