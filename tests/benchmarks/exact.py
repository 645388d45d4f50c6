"""What sums in order cost: `model.exact()` beside the same model with BLAS, on one thread.

python tests/benchmarks/exact.py

Processor time, the least of several runs: what other programs do meanwhile matters little.
"""

import os
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported

import numpy as np
from costs import network
from peers import Size

import refseq2seq as rs

BATCH, N_SOURCE, N_TARGET, N_NEW, REPEATS = 4, 32, 32, 16, 5
SIZES = [Size(32, 2, 4, 100), Size(128, 2, 4, 100), Size(256, 3, 4, 1000)]


def milliseconds(model: rs.Model) -> tuple[float, float]:
    """Of a forward pass over the whole target, and of a step of cached generation."""
    rng, vocabulary = np.random.default_rng(0), model.config.encoder.vocab_size
    source = rng.integers(3, vocabulary, (BATCH, N_SOURCE))
    target = rng.integers(3, vocabulary, (BATCH, N_TARGET))
    forward, step = [], []
    for _ in range(REPEATS):
        begun = time.process_time()
        rs.forward(model, source, target)
        forward.append(time.process_time() - begun)
        steps = rs.decode_steps(model, source, max_new_tokens=N_NEW + 1, eos_ids=())
        next(steps)  # the first one encodes the source too
        begun = time.process_time()
        for _ in steps:
            pass
        step.append((time.process_time() - begun) / N_NEW)
    return 1000 * min(forward), 1000 * min(step)


def main() -> None:
    print("| width, layers | dtype | forward, BLAS | exact | times | step, BLAS | exact | times |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        for dtype in ("float64", "float32"):
            model = network(size, dtype, N_SOURCE, max(N_TARGET, N_NEW))
            milliseconds(model)  # warm up
            (a, b), (c, d) = milliseconds(model), milliseconds(model.exact())
            stacks = f"{size.d_model}, {size.n_layers} + {size.n_layers}"
            cells = [f"{a:.1f} ms", f"{c:.1f} ms", f"{c / a:.1f}", f"{b:.2f} ms", f"{d:.2f} ms"]
            print(f"| {stacks} | {dtype} | {' | '.join(cells)} | {d / b:.1f} |")


if __name__ == "__main__":
    main()
