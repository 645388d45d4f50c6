"""Files: what a stranger wrote is read with care, what we write replaces a file whole.

`reading` opens and bounds, `npz` and `safetensors` are the two formats of arrays, `writing`
never costs an old file.
"""

from .reading import FileError

__all__ = ["FileError"]
