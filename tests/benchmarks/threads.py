"""Whole commands by their number of BLAS threads, idle and beside other work.

    python tests/benchmarks/threads.py            medians of 5 turns, in seconds
    python tests/benchmarks/threads.py --busy 1   beside a process that keeps one core busy

`refseq2seq generate` answers words by the shipped model, and by models of random numbers of
widths 128, 256 and 512: by default, with one thread, and with as many as there are cores.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from costs import network
from peers import Size

import refseq2seq as rs

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = rs.Vocabulary(
    symbols=("<pad>", "<s>", "</s>", *LETTERS),
    separator="",
    special=("<pad>", "<s>", "</s>"),
    replacements=(),
)
SIZES = {"d128": (128, 2, 1024), "d256": (256, 3, 512), "d512": (512, 6, 96)}
"""d_model, layers of each stack, words."""


def random_model(d_model: int, n_layers: int) -> rs.Model:
    """A model whose outputs end at 20 tokens: it has no end token."""
    size = Size(d_model, n_layers, d_model // 64, len(VOCABULARY))
    model = network(size, n_source=32, n_target=20)
    config = replace(model.config, eos_ids=())
    return replace(model, config=config, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)


def seconds(model: str, words: Path, threads: int | None) -> float:
    """Wall time of one command, start included."""
    arguments = ["--model", model, "--input", str(words)]
    arguments += ["--threads", str(threads)] if threads else []
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "refseq2seq", "generate", *arguments],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main() -> None:
    """Print a row of medians for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes beside it")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    rng, counts = random.Random(0), (None, 1, os.cpu_count())
    print(f"{'model':6} {'words':>5} {'default':>8} {'1 thread':>8} {counts[2]:>2} threads")
    with tempfile.TemporaryDirectory() as folder:
        endless = [sys.executable, "-c", "while True: pass"]
        busy = [subprocess.Popen(endless) for _ in range(options.busy)]
        try:
            for name, (width, layers, n) in {"g2p": (0, 0, 2048), **SIZES}.items():
                words = Path(folder, f"{name}.txt")
                drawn = ("".join(rng.choices(LETTERS, k=rng.randint(3, 14))) for _ in range(n))
                words.write_text("\n".join(drawn))
                if name != "g2p":
                    rs.save(random_model(width, layers), Path(folder, name))
                model = name if name == "g2p" else str(Path(folder, name))
                times: dict[int | None, list[float]] = {c: [] for c in counts}
                for _ in range(options.turns):
                    for c in counts:
                        times[c].append(seconds(model, words, c))
                medians = (statistics.median(times[c]) for c in counts)
                print(f"{name:6} {n:5} " + " ".join(f"{s:8.2f}" for s in medians), flush=True)
        finally:
            for process in busy:
                process.kill()


if __name__ == "__main__":
    main()
