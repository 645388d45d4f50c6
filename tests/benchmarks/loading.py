"""How long a Hugging Face directory takes to load, and how much memory, next to the bare bytes.

PYTHONPATH=tests/helpers python tests/benchmarks/loading.py --size 150M 406M

The directory is a BART of random numbers in float32. Each run has its own process; the ways take
turns, the files stay in the page cache, and a figure is the median. `np.fromfile` reads the same
bytes into one array, and tensor by tensor, each then checked for finite numbers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import hostile
import numpy as np

from refseq2seq.files import safetensors

SIZES = {
    "10M": (256, 3, 1024, 5003),
    "150M": (768, 6, 3072, 65003),
    "406M": (1024, 12, 4096, 50265),
}

BEGIN = r"""
import re, sys, time
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6
"""
MEASURED = """
before, begun = peak(), time.perf_counter()
{}
print(time.perf_counter() - begun, peak() - before)
"""
BARE = "import numpy as np\nfile = sys.argv[1] + '/model.safetensors'"
TENSORS = """
import math
from refseq2seq.files import safetensors
with open(file, 'rb') as f:
    places = [(x.begin, math.prod(x.shape)) for x in safetensors.stored(f).values()]
"""
WAYS = {
    "refseq2seq": ("import refseq2seq as rs, refseq2seq.convert", "model = rs.load(sys.argv[1])"),
    "np.fromfile": (BARE, "x = np.fromfile(file, 'f4')"),
    "np.fromfile, by tensor, finite": (
        BARE + TENSORS,
        "xs = [np.fromfile(file, 'f4', n, offset=at) for at, n in places]\n"
        "assert all(np.isfinite(x).all() for x in xs)",
    ),
    "transformers": (
        "import transformers\nfrom transformers import BartForConditionalGeneration as Bart",
        "model = Bart.from_pretrained(sys.argv[1])",
    ),
    "outline": (
        "from refseq2seq.files.checkpoint import load_outline",
        "model = load_outline(sys.argv[1])",
    ),
}


def make(directory: Path, d_model: int, n_layers: int, d_ff: int, vocab_size: int) -> None:
    """Write a BART of random weights, as `save_pretrained` names them."""
    config = hostile.BART | {
        "model_type": "bart", "architectures": ["BartForConditionalGeneration"],
        "vocab_size": vocab_size, "d_model": d_model, "max_position_embeddings": 1024,
        "encoder_layers": n_layers, "decoder_layers": n_layers,
        "encoder_ffn_dim": d_ff, "decoder_ffn_dim": d_ff,
        "encoder_attention_heads": max(1, d_model // 64),
        "decoder_attention_heads": max(1, d_model // 64),
    }  # fmt: skip
    arrays = {name: x * np.float32(0.02) for name, x in hostile.arrays_of(config).items()}
    arrays["final_logits_bias"] = arrays["final_logits_bias"][None]
    safetensors.write(directory / "model.safetensors", arrays)
    (directory / "config.json").write_text(json.dumps(config))


def measured(way: str, directory: Path) -> tuple[float, float]:
    """Seconds, and megabytes of memory at the highest point beyond those of the imports."""
    before, what = WAYS[way]
    code = BEGIN + before + MEASURED.format(what)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    seconds, megabytes = map(float, run.stdout.split()[-2:])
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["10M"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    options = parser.parse_args()
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), *SIZES[size])
            file_mb = (Path(folder) / "model.safetensors").stat().st_size / 1e6
            runs = [
                [measured(way, Path(folder)) for way in options.ways] for _ in range(options.rounds)
            ]
        for way, of_way in zip(options.ways, zip(*runs, strict=True), strict=True):
            seconds, megabytes = (statistics.median(column) for column in zip(*of_way, strict=True))
            print(
                f"{size}, {file_mb:,.0f} MB: {way}: {seconds:.3f} s, "
                f"{megabytes / file_mb:.2f} times the file"
            )


if __name__ == "__main__":
    main()
