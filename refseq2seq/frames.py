"""Frames: a source of vectors, such as features of speech or patches of an image.

A convolution over time is a product of windows and a matrix: `windows` puts the vectors of each
window side by side, and `refseq2seq.ops.linear` multiplies them.
"""

import numpy as np

from .backend import Array, array_namespace
from .checks import check_int, on_host
from .config import FrameInput, FrameLayerConfig
from .ops import ACTIVATIONS, linear, normalize
from .params import FrameLayerParams, StackParams
from .taps import Tap, no_tap


def patches(images: Array, size: int | tuple[int, int]) -> np.ndarray:
    """Images (batch, channels, height, width) -> frames (batch, n_patches, n_features).

    Patches are in rows from the top, and each row is from the left. The order of the numbers of a
    patch is channel, row, column. It is the same for all models: converters rearrange the weights.

    Parameters
    ----------
    images : array, shape (batch, channels, height, width)
        Resized and normalised as the model needs. The dtype is kept; models take floats.
    size : int, or pair of int
        The height and width of a patch, which must divide those of the images.

    Returns
    -------
    array, shape (batch, n_patches, n_features)
        n_features = channels * height of a patch * width of a patch.

    Raises
    ------
    TypeError, ValueError
        If ``images`` does not have four axes, or ``size`` does not divide the last two.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(8.0).reshape(1, 1, 2, 4)
    >>> patches(image, 2)
    array([[[0., 1., 4., 5.],
            [2., 3., 6., 7.]]])
    """
    images = on_host("images", images)
    sizes = size if isinstance(size, tuple) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"size must be a height and a width, or one int for both, got {size}")
    h, w = (check_int("size", n, 1) for n in sizes)
    if images.ndim != 4 or images.shape[2] % h or images.shape[3] % w or not images.size:
        raise ValueError(
            "images must have shape (batch, channels, height, width), none empty, the last two "
            f"multiples of size = {size}, got {images.shape}"
        )
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // h, h, width // w, w)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * h * w)


def embed_frames(
    p: StackParams, c: FrameInput, frames: Array, mask: Array | None, tap: Tap = no_tap
) -> tuple[Array, Array | None]:
    """Frames (batch, n_frames, n_features) -> embeddings (batch, n_source, d_model) and their mask.

    The masks are (batch, n_frames) and (batch, n_source), True = real; None = all are real. Real
    frames come first in a row.
    """
    x = tap("frames", frames)
    for i, layer in enumerate(c.layers):
        x, mask = frame_layer(p.frame_layers[i], layer, x, mask, tap.at(f"frame_layers.{i}"))
    return (x, mask) if p.class_tokens is None else prepend(p.class_tokens, x, mask)


def frame_layer(
    p: FrameLayerParams, c: FrameLayerConfig, x: Array, mask: Array | None, tap: Tap = no_tap
) -> tuple[Array, Array | None]:
    """norm_after(activation(windows(norm_before(x)) W_in + b_in)) and the mask of its windows.

    Shapes: (batch, n_frames, d_in) -> (batch, n_windows, d_out). Masked frames are replaced by
    zeros, like those around the row, so that windows do not depend on them.
    """
    x = normalize(p.norm_before, c.norm_before, x)
    if mask is not None:
        x = array_namespace(x).where(mask[:, :, None], x, 0.0)
        mask = mask_of_windows(mask, c)
    x = tap("projected", linear(windows(x, c), p.w_in, p.b_in))
    if c.activation != "none":
        x = ACTIVATIONS[c.activation](x)
    return tap("out", normalize(p.norm_after, c.norm_after, x)), mask


def mask_of_windows(mask: Array, c: FrameLayerConfig) -> Array:
    """The windows that a row has without its padding: (batch, n) -> (batch, n_windows)."""
    return mask[:, c.window - 1 - 2 * c.padding :: c.stride]


def windows(x: Array, c: FrameLayerConfig) -> Array:
    """The windows of each row: (batch, n, d) -> (batch, n_windows, window * d).

    Window i has the vectors i * stride to i * stride + window - 1, side by side, of the row with
    ``padding`` zeros at both ends; n_windows = (n + 2 padding - window) // stride + 1. A kernel
    (d_out, d, window) of ``torch.nn.Conv1d`` corresponds to the matrix
    ``kernel.transpose(2, 1, 0).reshape(window * d, d_out)``.

    Examples
    --------
    >>> import numpy as np
    >>> c = FrameLayerConfig(d_out=1, window=3, stride=2, padding=1, bias=False, activation="none",
    ...                      norm_before=None, norm_after=None)
    >>> windows(np.array([[[1], [2], [3], [4]]]), c)
    array([[[0, 1, 2],
            [2, 3, 4]]])
    """
    xp, (batch, n, d) = array_namespace(x), x.shape
    zeros = xp.zeros_like(x, shape=(batch, c.padding, d))
    padded = xp.concat([zeros, x, zeros], axis=1)
    end = n + 2 * c.padding - c.window + 1
    return xp.concat([padded[:, i : i + end : c.stride] for i in range(c.window)], axis=-1)


def prepend(learned: Array, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Learned vectors (n, d) before each row of x (batch, n_x, d), with a mask (..., n + n_x).

    The given mask is (..., n_x). Learned vectors are never masked.
    """
    xp, n = array_namespace(x), learned.shape[0]
    x = xp.concat([xp.broadcast_to(learned, (x.shape[0], *learned.shape)), x], axis=1)
    if mask is not None:
        mask = xp.concat([xp.ones((*mask.shape[:-1], n), dtype="bool"), mask], axis=-1)
    return x, mask
