"""Reading untrusted files, and writing files in one step.

`reading` opens files and limits their size, `npz` and `safetensors` are the two array formats,
and `writing` replaces a file on success only.
"""

from .reading import FileError

__all__ = ["FileError"]
