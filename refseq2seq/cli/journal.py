"""The journal of a bulk run: what was asked for, and every answer so far, in a database.

``OUTPUT.run`` is a directory with an SQLite database, which one process holds at a time, and
which a kill or a full disk leaves as it was after the last window. A finished run is exported
into the same directory and then linked to OUTPUT, which never replaces a file; then, still held,
the journal forgets what was asked for. A journal in which nothing is asked for is deleted.
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


class JournalError(ValueError):
    """A run cannot begin or go on; the message says what to do."""


class Journal:
    """The open journal of the run that writes ``output``."""

    def __init__(self, output: Path, database: sqlite3.Connection) -> None:
        self.output, self.directory = output, run_directory(output)
        self._database = database

    def begin(self, asked: dict[str, Any]) -> None:
        """Note what the run is asked for, or check that it is what was noted."""
        noted = self.noted()
        asked = {name: json.dumps(value) for name, value in asked.items()}
        if not noted:
            if self.output.exists():
                raise JournalError(f"{self.output} is there already: choose another output")
            with self._database:
                self._database.executemany("INSERT INTO request VALUES (?, ?)", asked.items())
            return
        for name in noted | asked:
            if noted.get(name) != asked.get(name):
                raise JournalError(
                    f"{name} is not what {self.directory} was begun with: it was "
                    f"{noted.get(name)}, now it is {asked.get(name)}. Ask for the same again, or "
                    f"remove {self.directory.name} to begin anew"
                )

    def noted(self) -> dict[str, str]:
        """What the run was asked for, as JSON."""
        return dict(self._database.execute("SELECT name, value FROM request"))

    def __len__(self) -> int:
        """How many lines have their answer; those are the first of the input."""
        return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def add(self, first: int, answers: Iterable[dict[str, Any]]) -> None:
        """Keep the answers to the lines from ``first`` on, all of them or none."""
        rows = [
            (line, json.dumps(answer, ensure_ascii=False), "error" in answer)
            for line, answer in enumerate(answers, start=first)
        ]
        with self._database:
            self._database.executemany("INSERT INTO answers VALUES (?, ?, ?)", rows)

    def failed(self) -> list[int]:
        """The lines without samples, counted from 1."""
        found = self._database.execute("SELECT line FROM answers WHERE failed ORDER BY line")
        return [line + 1 for (line,) in found]

    def publish(self) -> None:
        """Write all answers, as JSON lines, to the output, which must not be there already, but
        by a run that was killed after it had written it.
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
        except OSError:  # it is there, or the file system has no links
            if not self.output.exists():
                os.rename(export, self.output)
            elif not filecmp.cmp(export, self.output, shallow=False):
                raise JournalError(foreign(self.output)) from None
        export.unlink(missing_ok=True)
        with self._database:
            self._database.execute("DELETE FROM request")


def run_directory(output: Path) -> Path:
    """Where the journal lies."""
    return output.with_name(f"{output.name}.run")


def foreign(output: Path) -> str:
    """What to say of an output that another program wrote while the run was not finished."""
    return (
        f"{output} is there already, and not by this run: move it away, and give the same command "
        f"again; the answers so far are in {run_directory(output)}"
    )


@contextmanager
def opened(output: Path) -> Iterator[Journal]:
    """The journal of an output, new or of a run that was ended; deleted if all goes well.

    Raises
    ------
    JournalError
        If another process holds it, or if the database cannot be read or written.
    """
    directory = run_directory(output)
    path, to_delete = directory / "journal.sqlite", False
    try:
        directory.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise JournalError(f"{directory} is a file: choose another output") from error
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            _hold(database)
            if not path.exists():  # deleted between these two lines, by a run that is over
                raise JournalError(f"{path}: another process has just ended")
            run = Journal(output, database)
            try:
                yield run
            finally:
                if to_delete := not run.noted():
                    with suppress(PermissionError):  # Windows deletes no open file
                        _delete(path)
                        to_delete = False
    except sqlite3.Error as error:
        held = "locked" in str(error)
        why = "another process is writing this output" if held else f"{error}"
        raise JournalError(f"{path}: {why}") from error
    finally:
        with suppress(OSError):  # another process holds it, or the run goes on another time
            if to_delete:
                _delete(path)
            directory.rmdir()


def _delete(path: Path) -> None:
    """Delete the database, and what SQLite keeps beside it until it is closed or after a kill."""
    for name in (path.name, f"{path.name}-journal"):
        path.with_name(name).unlink(missing_ok=True)


def _hold(database: sqlite3.Connection) -> None:
    """Let no other process open the database until it is closed; make what an empty one lacks."""
    database.execute("BEGIN EXCLUSIVE")
    database.execute("PRAGMA locking_mode = EXCLUSIVE")  # not before: two would block each other
    with database:
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for table in SCHEMA:
                database.execute(f"CREATE TABLE {table}")
