"""A corpus on many machines, with Dask: the lines are cut into pieces, workers answer them.

    python many_machines.py corpus.txt answers                    two processes on this machine
    python many_machines.py corpus.txt answers tcp://host:8786    the workers of a scheduler

Machines share a file system. Piece 17 of the input gives answers/00017.jsonl, whole or not at all,
so that the same command again, after whatever ended it, answers only the pieces that lack. Of a
worker that dies Dask gives the piece to another. In the end: cat answers/*.jsonl
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import dask.bag
from dask.distributed import Client, LocalCluster

import refseq2seq as rs

MODEL = "g2p"
LINES, BATCH = 256, 32  # of a piece; a piece should keep a worker busy for a minute or so
CHOOSE = rs.sample(rs.temperature(0.8), rs.top_k(5))
SEED = 1


def pieces(corpus: Path) -> list[tuple[int, int, int]]:
    """Number, first byte and length of every LINES lines."""
    places, end = [], 0
    with open(corpus, "rb") as file:
        for n, line in enumerate(file):
            if n % LINES == 0:
                places.append(end)
            end += len(line)
    return [(i, a, b - a) for i, (a, b) in enumerate(zip(places, [*places[1:], end], strict=True))]


def answer(piece: tuple[int, int, int], corpus: Path, answers: Path) -> None:
    """Write the answers of a piece, with a model that is loaded for it."""
    number, start, length = piece
    with open(corpus, "rb") as file:
        file.seek(start)
        texts = file.read(length).decode().splitlines()
    found = generated(rs.load(MODEL), texts, first=number * LINES)
    path = answers / f"{number:05}.jsonl"
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found))
    os.replace(part, path)


def generated(model: rs.Model, texts: list[str], first: int) -> list[dict]:
    """An answer for each text; a sample depends on the seed and the number of its line."""
    found, to_do = [], []
    for number, text in enumerate(texts, start=first):
        found.append({"input": text})
        try:
            to_do.append((model.source_vocabulary.encode(text), number, found[-1]))
        except rs.UnknownSymbolError as error:
            found[-1]["error"] = f"line {number + 1}: {error}"
    to_do = sorted((entry for entry in to_do if entry[0]), key=lambda entry: len(entry[0]))
    for i in range(0, len(to_do), BATCH):
        source, numbers, lines = zip(*to_do[i : i + BATCH], strict=True)
        out = rs.generate(model, source, row_ids=numbers, choose=CHOOSE, seed=SEED)
        for line, tokens, n in zip(lines, out.tokens, out.lengths, strict=True):
            line["tokens"] = tokens[:n].tolist()
            line["text"] = model.target_vocabulary.decode(tokens[:n])
    return found


def run(corpus: Path, answers: Path) -> int:
    """Have every piece answered that is not yet; how many those were."""
    answers.mkdir(exist_ok=True)
    to_do = [p for p in pieces(corpus) if not (answers / f"{p[0]:05}.jsonl").exists()]
    if to_do:
        work = partial(answer, corpus=corpus.resolve(), answers=answers.resolve())
        dask.bag.from_sequence(to_do, partition_size=1).map(work).compute()
    return len(to_do)


def main() -> None:
    corpus, answers, *scheduler = sys.argv[1:]
    cluster = scheduler[0] if scheduler else LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    )  # fmt: skip
    with Client(cluster):
        print(f"pieces answered: {run(Path(corpus), Path(answers))}")
    if not scheduler:
        cluster.close()


if __name__ == "__main__":
    main()
