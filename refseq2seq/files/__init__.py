"""Reading of untrusted files, and writing of files in one step.

`reading` opens files and limits their size, `npz` and `safetensors` are the two array formats,
and `writing` replaces a file only on success.
"""

from .reading import FileError

__all__ = ["FileError"]
