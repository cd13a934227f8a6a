"""What the outputs of a RetinaFace mean: its two published forms, decoded to boxes.

Nothing in a file says which form it has, and each decodes to nonsense as another, so the run file
names it: `faces.detector` is `retinaface_priors` or `retinaface_mxnet`. (`scrfd`, the third form,
is decoded by InsightFace.) Both look at an image through squares of fixed places and sizes, and say
of each square how likely a face is there and how to move and stretch the square onto it.

Method: anchors, scaling, order and pixels are those of the public networks (method section 8).
Differs: every box above the score goes into the suppression and all that it leaves are kept; the
originals stop at 5,000 and 750. What is looked for is any face at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BGR_MEAN = np.array([104, 117, 123], np.float32)

PRIOR_SIZES = {8: (16, 32), 16: (64, 128), 32: (256, 512)}
"""Stride to the sides of the two squares of a cell, in the order of the outputs."""
PRIOR_VARIANCES = np.array([0.1, 0.1, 0.2, 0.2], np.float32)

MXNET_SIZES = {32: (512, 256), 16: (128, 64), 8: (32, 16)}
"""The same squares for the MXNet form, whose outputs run from the coarsest to the finest."""
MXNET_CENTER = 8.0
"""Where the first square has its center, at every stride: that of the pixels 0 to 15."""


@dataclass(frozen=True)
class Form:
    """One form: the pixels it takes, the outputs it gives, and what they mean.

    `batch_of` turns a canvas, (S, S, 3) uint8 RGB, into the network's input; `shapes` tells the
    shapes of the outputs for S; `decode` turns outputs and S into boxes (N, 4) float32 XYXY pixels
    of the canvas, not clipped to it, and (N, 2) float32: how likely each is no face, and a face.
    """

    batch_of: Callable[[np.ndarray], np.ndarray]
    shapes: Callable[[int], list[tuple[int, ...]]]
    decode: Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]


def priors_batch(image: np.ndarray) -> np.ndarray:
    """Return (1, 3, H, W) float32 BGR minus its mean, not scaled, of (H, W, 3) uint8 RGB."""
    return _batch(image[:, :, ::-1].astype(np.float32) - BGR_MEAN)


def priors_shapes(side: int) -> list[tuple[int, ...]]:
    """Return the shapes of boxes, class softmax and landmarks for a square canvas."""
    count = sum(2 * _cells(side, stride) ** 2 for stride in PRIOR_SIZES)
    return [(1, count, width) for width in (4, 2, 10)]


def decode_priors(outputs: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) and chances (N, 2) of the three-output form, the one PyTorch has.

    Args:
        outputs: box deltas (1, N, 4), class softmax (1, N, 2) and landmarks (1, N, 10), float32;
            N runs over strides 8, 16, 32, then rows, columns and the two sizes of a cell.
        side: of the square canvas, pixels.
    """
    deltas, chances, _ = outputs
    squares = [squares_of(side, stride, sizes, stride / 2) for stride, sizes in PRIOR_SIZES.items()]
    return _moved(np.concatenate(squares), deltas[0] * PRIOR_VARIANCES), chances[0]


def mxnet_batch(image: np.ndarray) -> np.ndarray:
    """Return (1, 3, H, W) float32 RGB in [0, 255], no mean taken out, of (H, W, 3) uint8 RGB."""
    return _batch(image.astype(np.float32))


def mxnet_shapes(side: int) -> list[tuple[int, ...]]:
    """Return the nine shapes for a square canvas: chances, boxes and landmarks a stride."""
    cells = [_cells(side, stride) for stride in MXNET_SIZES]
    return [(1, channels, count, count) for count in cells for channels in (4, 8, 20)]


def decode_mxnet(outputs: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) and chances (N, 2) of the nine-output form of `retinaface_r50_v1`.

    Args:
        outputs: for each of the strides 32, 16, 8: chances (1, 4, h, w), the two of no face before
            the two of a face; box deltas (1, 8, h, w), four for each of the two squares of a cell;
            landmarks (1, 20, h, w); float32.
        side: of the square canvas, pixels.

    The original counts a box from its first to its last pixel; here, as everywhere, the right and
    lower edge lie behind the last pixel.
    """
    boxes, chances = [], []
    for place, (stride, sizes) in enumerate(MXNET_SIZES.items()):
        both, deltas = outputs[3 * place], outputs[3 * place + 1]
        squares = squares_of(side, stride, sizes, MXNET_CENTER)
        boxes.append(_moved(squares, deltas.transpose(0, 2, 3, 1).reshape(-1, 4)))
        paired = both.reshape(2, 2, *both.shape[2:])  # no face or face, square, row, column
        chances.append(paired.transpose(2, 3, 1, 0).reshape(-1, 2))
    return np.concatenate(boxes), np.concatenate(chances)


PRIORS = Form(priors_batch, priors_shapes, decode_priors)
MXNET = Form(mxnet_batch, mxnet_shapes, decode_mxnet)


def squares_of(side: int, stride: int, sizes: Sequence[int], center: float) -> np.ndarray:
    """Return the squares of one stride, (N, 4) float32: center x and y, width and height.

    By rows, then columns, then `sizes`; `center` is where the first has its x and y.
    """
    places = np.arange(_cells(side, stride), dtype=np.float32) * stride + np.float32(center)
    y, x, size = np.meshgrid(places, places, np.array(sizes, np.float32), indexing="ij")
    return np.stack([x, y, size, size], axis=-1).reshape(-1, 4)


def _moved(squares: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Return XYXY: centers moved by shares of the side, sides stretched by exponents."""
    centers = squares[:, :2] + deltas[:, :2] * squares[:, 2:]
    halves = squares[:, 2:] * np.exp(deltas[:, 2:]) / 2
    return np.hstack([centers - halves, centers + halves])


def _cells(side: int, stride: int) -> int:
    return -(-side // stride)


def _batch(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
