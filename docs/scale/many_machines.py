"""A corpus on many machines, with Dask: the lines are cut into pieces, workers answer them.

    python many_machines.py corpus.txt answers                    two processes on this machine
    python many_machines.py corpus.txt answers tcp://host:8786    the workers of a scheduler

Machines share a file system. Piece 17 of the input gives answers/00017.jsonl, whole or not at all,
so that the same command again, after whatever ended it, answers only the missing pieces. If a
worker dies, Dask gives its piece to another. At the end: cat answers/*.jsonl
"""

import io
import json
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import dask.bag
from dask.distributed import Client, LocalCluster

import refseq2seq as rs
from refseq2seq.cli.lines import answers, read_lines
from refseq2seq.files.writing import replacing

MODEL = "g2p"
LINES, BATCH = 256, 32  # of a piece; a piece should keep a worker busy for a minute or so
METHOD = {  # the arguments of rs.generate, or with "beams" those of rs.beam_search
    "choose": rs.sample(rs.temperature(0.8), rs.top_k(5)),
    "num_return_sequences": 1,
    "seed": 1,
}


def pieces(corpus: Path) -> list[tuple[int, int, int]]:
    """The number, first byte and length of each piece."""
    places, end = [], 0
    with open(corpus, "rb") as file:
        for n, line in enumerate(file):
            if n % LINES == 0:
                places.append(end)
            end += len(line)
    return [(i, a, b - a) for i, (a, b) in enumerate(pairwise([*places, end]))]


def answer(piece: tuple[int, int, int], corpus: Path, directory: Path) -> None:
    """Write the answers of a piece, with a model that is loaded for it."""
    number, start, length = piece
    with open(corpus, "rb") as file:
        file.seek(start)
        lines = read_lines(io.BytesIO(file.read(length)), first=number * LINES)
    found = answers(rs.load(MODEL), lines, METHOD, BATCH)
    with replacing(directory / f"{number:05}.jsonl") as file:
        for line in found:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def run(corpus: Path, directory: Path) -> int:
    """Answer the missing pieces; return their number."""
    directory.mkdir(exist_ok=True)
    to_do = [p for p in pieces(corpus) if not (directory / f"{p[0]:05}.jsonl").exists()]
    if to_do:
        work = partial(answer, corpus=corpus.resolve(), directory=directory.resolve())
        dask.bag.from_sequence(to_do, partition_size=1).map(work).compute()
    return len(to_do)


def main() -> None:
    corpus, directory, *scheduler = sys.argv[1:]
    cluster = scheduler[0] if scheduler else LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    )  # fmt: skip
    with Client(cluster):
        print(f"pieces answered: {run(Path(corpus), Path(directory))}")
    if not scheduler:
        cluster.close()


if __name__ == "__main__":
    main()
