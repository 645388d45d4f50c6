"""Writing of files in one step: after a full disk or a kill, the old file is unchanged."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A temporary file that replaces ``path`` on success and is deleted on an error.

    A path that is not a regular file, such as ``/dev/stdout`` or a named pipe, is opened directly.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))  # the target of a link; for a loop, the link itself
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:  # unlike tempfile, with permissions of the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


@contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory that becomes ``path`` on success and is deleted on an error."""
    path = Path(os.path.realpath(path))
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty: give a directory that is new or empty")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except BaseException:
        from shutil import rmtree  # here, because it imports every compression module

        rmtree(temporary, ignore_errors=True)
        raise


def _beside(path: Path) -> Path:
    return path.parent / f".{os.urandom(8).hex()}.part"
