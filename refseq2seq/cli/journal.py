"""The journal of a bulk run: a database with the request and every answer so far.

``OUTPUT.run`` is a directory with an SQLite database. One process at a time locks it. A kill or a
full disk leaves it as it was after the last window. A finished run is exported into the same
directory and then linked to OUTPUT, which never replaces a file. Then the request is deleted,
before the lock is released. A journal without a request is deleted.
"""

import filecmp
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

SCHEMA = (
    "request (name TEXT PRIMARY KEY, value TEXT)",
    "answers (line INTEGER PRIMARY KEY, answer TEXT, failed INTEGER)",
)


class Journal:
    """The open journal of the run that writes ``output``."""

    def __init__(self, output: Path, directory: Path, database: sqlite3.Connection) -> None:
        self.output, self.directory, self._database = output, directory, database
        self._taken = f"{output} already exists: move it away, or choose another output"

    def begin(self, asked: dict[str, Any], total: int) -> int:
        """Store the request of a new run, or compare it with the stored one.

        The result is the number of lines that have an answer; they are the first of ``total``.
        """
        request, asked = self.request(), {name: json.dumps(x) for name, x in asked.items()}
        (done,) = self._database.execute("SELECT count(*) FROM answers").fetchone()
        for name in request | asked if request else ():
            if request.get(name) != asked.get(name):
                raise ValueError(
                    f"{name} differs from that of the run in {self.directory}: it was "
                    f"{request.get(name)}, now it is {asked.get(name)}. Repeat the request of that "
                    f"run, or remove {self.directory.name} to start over"
                )
        if self.output.exists() and not (request and done == total):
            raise ValueError(self._taken)  # before the work; `publish` would raise after it
        with self._database:
            self._database.executemany("INSERT OR IGNORE INTO request VALUES (?, ?)", asked.items())
        return int(done)

    def request(self) -> dict[str, str]:
        """The stored request, name -> JSON; empty in a journal that is new or finished."""
        return dict(self._database.execute("SELECT name, value FROM request"))

    def add(self, first: int, answers: Iterable[dict[str, Any]]) -> None:
        """Store the answers to the lines from ``first`` on, all of them or none."""
        rows = [
            (line, json.dumps(answer, ensure_ascii=False), "error" in answer)
            for line, answer in enumerate(answers, start=first)
        ]
        with self._database:
            self._database.executemany("INSERT INTO answers VALUES (?, ?, ?)", rows)

    def failed(self) -> tuple[int, int]:
        """The number of lines with an error, and the first of them, counted from 0."""
        query = "SELECT count(*), min(line) FROM answers WHERE failed"
        return self._database.execute(query).fetchone()

    def publish(self) -> None:
        """Write all answers to the output, as JSON lines.

        The output must not exist, unless this run wrote it and was then killed.
        """
        export = self.directory / "answers.jsonl"
        export.unlink(missing_ok=True)  # after a kill it may be linked to the output
        with open(export, "wb") as file:
            for (answer,) in self._database.execute("SELECT answer FROM answers ORDER BY line"):
                file.write(answer.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(export, self.output)
        except OSError:  # the output exists, or the file system has no links
            if not self.output.exists():
                os.rename(export, self.output)
            elif not filecmp.cmp(export, self.output, shallow=False):
                raise ValueError(self._taken) from None
        export.unlink(missing_ok=True)
        with self._database:
            self._database.execute("DELETE FROM request")


@contextmanager
def opened(output: Path) -> Iterator[Journal]:
    """The journal of an output, new or of an interrupted run; deleted after a complete run."""
    directory = output.with_name(f"{output.name}.run")
    path, to_delete = directory / "journal.sqlite", False
    try:
        directory.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{directory} is a file: choose another output") from error
    if any(directory.iterdir()) and not path.exists():
        raise ValueError(f"{directory} is not the directory of a run: choose another output")
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            _lock(database)
            if not path.exists():  # a run that ended deleted it between these two lines
                raise ValueError(f"{path}: another process has just ended: run the command again")
            run = Journal(output, directory, database)
            try:
                yield run
            finally:
                if to_delete := not run.request():
                    with suppress(PermissionError):  # Windows cannot delete an open file
                        _delete(path)
                        to_delete = False
    except sqlite3.Error as error:
        locked = "locked" in str(error)
        why = "another process is writing this output" if locked else f"{error}"
        raise ValueError(f"{path}: {why}") from error
    finally:
        with suppress(OSError):  # another process has locked it, or the run is not complete
            if to_delete:
                _delete(path)
            directory.rmdir()


def _delete(path: Path) -> None:
    """Delete the database, and SQLite's own journal, kept until it is closed or after a kill."""
    for name in (f"{path.name}-journal", path.name):
        path.with_name(name).unlink(missing_ok=True)


def _lock(database: sqlite3.Connection) -> None:
    """Lock the database until it is closed, and create the tables if it is empty."""
    database.execute("BEGIN EXCLUSIVE")
    # After the lock is taken: before it, two processes would block each other.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    with database:
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for table in SCHEMA:
                database.execute(f"CREATE TABLE {table}")
