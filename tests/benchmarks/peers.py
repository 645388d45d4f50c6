"""Time and memory of greedy generation, beside x-transformers, Hugging Face and CTranslate2.

    python tests/benchmarks/peers.py --size d128 --batch 1 4 16 32 --our-threads 1
    python tests/benchmarks/peers.py --size d256 --new 64 128 256 512 1024

Each engine has a process of its own, because two thread pools in one process spin against each
other. All processes live at the same time and one works at a time: run 1 of every engine, then
run 2, and so on, so that a slow moment of the machine affects all. There are two models of a
size, and each engine runs the one that it can take the weights of: x-transformers the first,
Hugging Face and CTranslate2 the second (BART), refseq2seq both. A figure is the median time of
a whole call, encoding included, over the number of new tokens. EOS is switched off.

Figures are added to docs/performance.json, and the table of docs/performance.md is written again.
"""

import argparse
import contextlib
import copy
import importlib
import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

N_SOURCE, N_POSITIONS, START, EOS = 32, 1100, 3, 2
FIGURES = Path(__file__).parents[2] / "docs" / "performance.json"
PAGE = FIGURES.with_suffix(".md")
MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- until here -->)", re.DOTALL)
OURS = {  # each engine, and what runs the same weights with our code
    "ours, x-transformers": "ours, x-transformers",
    "x-transformers": "ours, x-transformers",
    "ours, BART": "ours, BART",
    "Hugging Face": "ours, BART",
    "CTranslate2": "ours, BART",
}
LIBRARIES = {
    "x-transformers": "x_transformers",
    "Hugging Face": "transformers.models.bart.modeling_bart",
    "CTranslate2": "ctranslate2",
}
PAUSE = 0.1  # seconds, in which an engine's threads stop spinning


class Size(NamedTuple):
    """d_model, layers of the encoder and of the decoder, heads, vocabulary."""

    d_model: int
    n_layers: int
    n_heads: int
    vocab_size: int


SIZES = {
    "d128": Size(128, 2, 4, 100),
    "d256": Size(256, 3, 8, 1_000),
    "d512": Size(512, 6, 8, 32_000),
}


# The models: made once in a process of their own, so that ours runs without PyTorch


def x_transformer(size: Size) -> Any:
    import torch
    from x_transformers import XTransformer

    torch.manual_seed(0)
    options = {
        f"{side}_{name}": value
        for side in ("enc", "dec")
        for name, value in {
            "num_tokens": size.vocab_size,
            "depth": size.n_layers,
            "heads": size.n_heads,
            "attn_dim_head": size.d_model // size.n_heads,
            "max_seq_len": N_POSITIONS,
        }.items()
    }
    return XTransformer(dim=size.d_model, **options).eval()


def bart(size: Size) -> Any:
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        d_model=size.d_model,
        vocab_size=size.vocab_size,
        encoder_layers=size.n_layers,
        decoder_layers=size.n_layers,
        encoder_attention_heads=size.n_heads,
        decoder_attention_heads=size.n_heads,
        encoder_ffn_dim=4 * size.d_model,
        decoder_ffn_dim=4 * size.d_model,
        max_position_embeddings=N_POSITIONS,
        decoder_start_token_id=START,
        eos_token_id=EOS,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config).eval()


def make_models(size: Size, directory: Path) -> None:
    """Save both models, in the format of every engine that runs them."""
    import torch

    import refseq2seq as rs

    one, other = x_transformer(size), bart(size)
    torch.save(one.state_dict(), directory / "x_transformer.pt")
    conventions = {"decoder_start_id": START, "eos_ids": (EOS,)}
    rs.save(rs.convert.from_x_transformers(one, **conventions), directory / "x_transformer.npz")
    other.save_pretrained(directory / "bart")
    rs.save(rs.convert.from_huggingface(other), directory / "bart.npz")
    save_for_ctranslate2(other, directory / "ctranslate2")


def save_for_ctranslate2(model: Any, directory: Path, quantization: str | None = None) -> None:
    """The same weights, or quantised; token i is called "t{i}"."""
    import ctranslate2

    model = copy.deepcopy(model)  # quantisation changes its arrays
    c = model.config
    n_tokens = c.vocab_size - (c.model_type == "marian")  # its last token, padding, is removed
    c.normalize_before = c.model_type in ("mbart", "pegasus")  # not in a fresh config any more
    c.normalize_embedding = c.model_type in ("bart", "mbart")
    loader = ctranslate2.converters.transformers._MODEL_LOADERS[type(c).__name__]
    spec = loader.get_model_spec(model)
    loader.set_vocabulary(spec, [f"t{i}" for i in range(n_tokens)])
    spec.config.bos_token = spec.config.unk_token = "t0"
    spec.config.eos_token = f"t{EOS}"
    spec.config.decoder_start_token = f"t{c.decoder_start_token_id}"
    spec.config.add_source_eos = spec.config.add_source_bos = False
    spec.validate()
    spec.optimize(quantization)
    directory.mkdir()
    spec.save(str(directory))


# The engines: functions (source, n) -> new tokens


def generate_x_transformers(model: Any, source: np.ndarray, n: int, device: str = "cpu") -> Any:
    import torch

    start = torch.full((len(source), 1), START, device=device)
    ids = torch.as_tensor(source, device=device)
    with torch.no_grad():
        return model.generate(ids, start, n, temperature=0.0).cpu().numpy()


def generate_huggingface(model: Any, source: np.ndarray, n: int, device: str = "cpu") -> Any:
    import torch

    ids = torch.as_tensor(source, device=device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "num_beams": 1}
    with torch.no_grad():
        return model.generate(ids, max_new_tokens=n, **options)[:, 1:].cpu().numpy()


def generate_ctranslate2(model: Any, source: np.ndarray, n: int) -> np.ndarray:
    words = [[f"t{i}" for i in row] for row in source]
    limits = {"min_decoding_length": n, "max_decoding_length": n}
    found = model.translate_batch(words, beam_size=1, **limits)
    return np.array([[int(word[1:]) for word in row.hypotheses[0]] for row in found])


def load(engine: str, directory: Path, size: Size, threads: int) -> Any:
    """The function of an engine, with its model."""
    if engine == "CTranslate2":
        import ctranslate2

        folder = str(directory / "ctranslate2")
        model = ctranslate2.Translator(folder, inter_threads=1, intra_threads=threads)
        return partial(generate_ctranslate2, model)
    if engine in LIBRARIES:
        import torch

        torch.set_num_threads(threads)
    if engine == "x-transformers":
        model = x_transformer(size)
        model.load_state_dict(torch.load(directory / "x_transformer.pt"))
        return partial(generate_x_transformers, model)
    if engine == "Hugging Face":
        from transformers import BartForConditionalGeneration

        model = BartForConditionalGeneration.from_pretrained(directory / "bart").eval()
        model.generation_config.eos_token_id = None
        return partial(generate_huggingface, model)
    import refseq2seq as rs

    model = rs.load(directory / ("bart.npz" if engine == "ours, BART" else "x_transformer.npz"))
    return lambda source, n: rs.generate(model, source, max_new_tokens=n, eos_ids=()).tokens


# The processes


def serve(engine: str, directory: Path, size: Size, threads: int, connection: Any) -> None:
    """Answer (source, n) with seconds, new tokens and the peak of memory, in MiB, in that run."""
    if engine in LIBRARIES:
        importlib.import_module(LIBRARIES[engine])
    empty = memory("VmRSS")
    generate = load(engine, directory, size, threads)
    while True:
        source, n = connection.recv()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        begun = time.perf_counter()
        tokens = generate(source, n)
        seconds = time.perf_counter() - begun
        connection.send((seconds, tokens, memory("VmHWM") - empty))


def memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


@contextlib.contextmanager
def started(engines: list[str], size: Size, threads: int, our_threads: int) -> Any:
    """A function for each engine, from (source, n) to (seconds, tokens, MiB)."""
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        maker = processes.Process(target=make_models, args=(size, Path(name)))
        maker.start()
        maker.join()
        runs = {}
        for engine in engines:
            ours, theirs = processes.Pipe()
            n_threads = our_threads if engine in OURS.values() else threads
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[variable] = str(n_threads)
            args = (engine, Path(name), size, n_threads, theirs)
            process = processes.Process(target=serve, args=args, daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)

            def run(source: np.ndarray, n: int, ours: Any = ours) -> Any:
                time.sleep(PAUSE)
                ours.send((source, n))
                return ours.recv()

            runs[engine] = run
        yield runs


def measure(runs: dict[str, Any], size: Size, batch: int, n: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per token of each engine, peak MiB, and the share of tokens that agree."""
    source = np.random.default_rng(0).integers(3, size.vocab_size, (batch, N_SOURCE))
    for run in runs.values():  # warm up
        run(source, min(n, 8))
    seconds, tokens, peak = {engine: [] for engine in runs}, {}, {}
    for _ in range(repeats):
        for engine, run in runs.items():
            took, tokens[engine], peak[engine] = run(source, n)
            seconds[engine].append(took)
    return {
        engine: {
            "ms_per_token": 1000 * statistics.median(seconds[engine]) / n,
            "fastest": 1000 * min(seconds[engine]) / n,
            "MiB": peak[engine],
            "tokens_equal": float((tokens[engine] == tokens[OURS[engine]]).mean()),
        }
        for engine in runs
        if OURS[engine] in runs
    }


# What is written


def machine(threads: int) -> dict[str, Any]:
    names = ("numpy", "torch", "x-transformers", "transformers", "ctranslate2")
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": cpu[0].partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "blas": f"{blas['name']} {blas['version']}",
        "environment": {k: v for k, v in os.environ.items() if k.startswith("OPENBLAS_CORE")},
        "versions": {name: version(name) for name in names},
    }


def measured(known: dict[str, Any]) -> str:
    """The part of the page that is made from the figures."""
    about = known["machine"]
    versions = [f"Python {about['python']}", about["blas"]]
    versions += [f"{name} {number}" for name, number in about["versions"].items()]
    versions += [f"{name}={value}" for name, value in about["environment"].items()]
    return (
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads for each "
        f"peer; {', '.join(versions)}.\n\n"
        f"{table(known['figures'])}\n"
    )


def table(figures: dict[str, Any]) -> str:
    """Milliseconds per token, and in brackets how many times faster ours is on those weights."""
    lines = [
        "| size | rows, new tokens | our threads | ours, x-transformers | x-transformers "
        "| ours, BART | Hugging Face | CTranslate2 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, row in sorted(figures.items(), key=_by_size):
        cells = [_cell(row, engine, ours) for engine, ours in OURS.items()]
        threads = {str(row[engine]["threads"]) for engine in set(OURS.values()) & set(row)}
        size, batch, n = key.split()
        lines.append(f"| {' | '.join([size, f'{batch}, {n}', *threads, *cells])} |")
    return "\n".join(lines)


def _by_size(of_key: tuple[str, Any]) -> tuple[int, ...]:
    size, batch, n = of_key[0].split()
    return int(size[1:]), int(n), int(batch)


def _cell(row: dict[str, Any], engine: str, ours: str) -> str:
    if engine not in row:
        return ""
    ms = row[engine]["ms_per_token"]
    ratio = "" if engine == ours else f" ({ms / row[ours]['ms_per_token']:.2f})"
    return f"{ms:.2f}{ratio}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="d128")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--new", type=int, nargs="+", default=[64])
    parser.add_argument("--engines", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--our-threads", type=int, help="default: as the others")
    parser.add_argument("--json", type=Path, default=FIGURES)
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json.exists() else {"figures": {}}
    size, found = SIZES[options.size], {}
    ours = options.our_threads or options.threads
    with started(options.engines, size, options.threads, ours) as runs:
        for batch in options.batch:
            for n in options.new:
                key = f"{options.size} {batch} {n}"
                found[key] = measure(runs, size, batch, n, options.repeats)
                for engine, figures in found[key].items():
                    figures["threads"] = ours if engine in OURS.values() else options.threads
                print(table({key: found[key]}).splitlines()[-1], flush=True)
    known["machine"] = machine(options.threads)
    for key, row in found.items():
        known["figures"].setdefault(key, {}).update(row)
    options.json.write_text(json.dumps(known, indent=1) + "\n")
    if options.json == FIGURES:
        page = PAGE.read_text()
        PAGE.write_text(MEASURED.sub(lambda _: measured(known), page))


if __name__ == "__main__":
    main()
