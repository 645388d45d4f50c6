"""A bulk run that is killed just before each thing that it does to the disk, and started again.

    python tests/helpers/killing.py MODEL DIRECTORY [SECOND ...]

Every file that is made, linked or deleted, and every change of the database (once for many rows
of a table), is a step. A copy of this process runs up to the step and is killed with SIGKILL;
another is started with the same command, and killed at its step number SECOND, if it gets there;
a last one may end. A row of JSON per try says what was found beside the input.
"""

import json
import os
import signal
import sqlite3
import sys
from functools import cache
from pathlib import Path

from refseq2seq import cli
from refseq2seq.cli import options

EVENTS = ("os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "sqlite3.connect")
SAMPLING = [
    "--temperature", "1.2", "--top-k", "5", "--seed", "7", "--window", "3", "--max-new-tokens", "2",
]  # fmt: skip
CHANGES = ("BEGIN", "CREATE", "INSERT", "DELETE", "COMMIT")


def steps_of(told, last):
    """Call ``told`` before each step, and be killed before step number ``last``."""
    count, before = 0, ""

    def step(name):
        nonlocal count
        count += 1
        told(name)
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        path = str(arguments[0]) if arguments else ""
        if ".run" in path and (event in EVENTS or (event == "open" and arguments[1] == "w")):
            step(f"{event} {Path(path).name}")

    def trace(statement):
        nonlocal before
        kind = statement.partition(" VALUES")[0]
        if kind.startswith(CHANGES) and kind != before:
            step(statement)
        before = kind

    def connect(*arguments, **keywords):
        database = plain(*arguments, **keywords)
        database.set_trace_callback(trace)
        return database

    plain, sqlite3.connect = sqlite3.connect, connect
    sys.addaudithook(hook)


def command(model, directory):
    """The arguments of the run in a directory."""
    files = ["--input", directory.parent / "in.txt", "--output", directory / "out.jsonl"]
    return ["generate", "--model", model, *map(str, files), *SAMPLING]


def run(model, directory, last=None, log=os.devnull):
    """A copy of this process runs the command; its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(directory / "errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        with open(log, "w") as file:
            steps_of(lambda name: print(name, file=file, flush=True), last)
            os._exit(cli.main(command(model, directory)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(model, directory, *seconds):
    directory, options.load = Path(directory), cache(options.load)
    for name in ("whole", "log"):
        (directory / name).mkdir()
    assert cli.main(command(model, directory / "whole")) == 0  # imports what copies then have
    whole = (directory / "whole" / "out.jsonl").read_bytes()
    assert run(model, directory / "log", log=directory / "names") == 0
    steps = (directory / "names").read_text().splitlines()
    for second in map(int, seconds or ["0"]):
        for number, name in enumerate(steps, start=1):
            place = directory / f"{number}-{second}"
            place.mkdir()
            killed = [run(model, place, number)]
            if second:
                killed.append(run(model, place, second))
            output = place / "out.jsonl"
            complete = output.exists() and output.read_bytes() == whole
            status = run(model, place)
            found = {
                "step": name,
                "killed": killed,
                "complete": complete,
                "status": status,
                "errors": (place / "errors").read_text(),
                "same": output.read_bytes() == whole,
                "files": sorted(path.name for path in place.iterdir()),
            }
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
