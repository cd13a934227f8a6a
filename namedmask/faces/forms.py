"""The two published output forms of RetinaFace, and their decoders to boxes.

A file does not say which form it has, and the decoder of another form returns nonsense. Therefore
the run file names the form: `faces.detector` is `retinaface_priors` or `retinaface_mxnet`.
(InsightFace decodes the third form, `scrfd`.) In both forms the network predicts, for each square
of a fixed set of anchors, the probability of a face, and the shift and scale from the anchor to the
face.

Method: anchors, scaling, order and pixels are those of the public networks (method section 8).
Differs: the number of boxes is not limited, neither before nor after the non-maximum suppression,
because the stage only needs to know whether there is any face. The originals keep at most 5,000
boxes before and 750 after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BGR_MEAN = np.array([104, 117, 123], np.float32)
"""Mean color in [0, 255], BGR, that is subtracted from the input of the PyTorch form."""

PRIOR_SIZES = {8: (16, 32), 16: (64, 128), 32: (256, 512)}
"""Sides, in pixels, of the two anchors per cell for each stride, in the order of the outputs."""
PRIOR_VARIANCES = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
"""Factors of the four box deltas: center x and y, width and height."""

MXNET_SIZES = {32: (512, 256), 16: (128, 64), 8: (32, 16)}
"""The same sides for the MXNet form, whose outputs are ordered from coarse to fine strides."""
MXNET_CENTER = 8.0
"""Center, x and y in pixels, of the first anchor at every stride: the middle of pixels 0 to 15."""


@dataclass(frozen=True)
class Form:
    """A form: the input of the network, the shapes of its outputs, and their decoder.

    `batch_of` turns a canvas, (S, S, 3) uint8 RGB, into the network's input. `shapes` returns the
    shapes of the outputs for S. `decode` turns the outputs and S into boxes, (N, 4) float32 XYXY
    pixels of the canvas and not clipped to it, and probabilities, (N, 2) float32, of no face and of
    a face.
    """

    batch_of: Callable[[np.ndarray], np.ndarray]
    shapes: Callable[[int], list[tuple[int, ...]]]
    decode: Callable[[Sequence[np.ndarray], int], tuple[np.ndarray, np.ndarray]]


def priors_batch(image: np.ndarray) -> np.ndarray:
    """Return (1, 3, H, W) float32 BGR minus `BGR_MEAN`, not scaled, of (H, W, 3) uint8 RGB."""
    return _batch(image[:, :, ::-1].astype(np.float32) - BGR_MEAN)


def priors_shapes(side: int) -> list[tuple[int, ...]]:
    """Return the shapes of boxes, class softmax and landmarks for a square canvas."""
    count = sum(2 * _cells(side, stride) ** 2 for stride in PRIOR_SIZES)
    return [(1, count, width) for width in (4, 2, 10)]


def decode_priors(outputs: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) and probabilities (N, 2) of the three-output form; see `Form.decode`.

    This form is that of the public PyTorch network.

    Args:
        outputs: box deltas (1, N, 4), class softmax (1, N, 2) and landmarks (1, N, 10), float32.
            N runs over strides 8, 16, 32, then rows, columns and the two anchors of a cell.
        side: side of the square canvas in pixels.
    """
    deltas, probabilities, _ = outputs
    anchors = [anchors_of(side, stride, sizes, stride / 2) for stride, sizes in PRIOR_SIZES.items()]
    return _boxes_of(np.concatenate(anchors), deltas[0] * PRIOR_VARIANCES), probabilities[0]


def mxnet_batch(image: np.ndarray) -> np.ndarray:
    """Return (1, 3, H, W) float32 RGB in [0, 255], without mean subtraction, of (H, W, 3) uint8."""
    return _batch(image.astype(np.float32))


def mxnet_shapes(side: int) -> list[tuple[int, ...]]:
    """Return the nine shapes for a square canvas: probabilities, boxes, landmarks per stride."""
    cells = [_cells(side, stride) for stride in MXNET_SIZES]
    return [(1, channels, count, count) for count in cells for channels in (4, 8, 20)]


def decode_mxnet(outputs: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) and probabilities (N, 2) of the nine-output form; see `Form.decode`.

    This form is that of InsightFace's MXNet network `retinaface_r50_v1`. The original decoder gives
    the index of a box's last pixel. Here, as in all of namedmask, the right and lower edges are one
    pixel further.

    Args:
        outputs: three float32 arrays for each of the strides 32, 16, 8. The probabilities
            (1, 4, h, w) are of no face for both anchors of a cell, then of a face for both anchors.
            The box deltas (1, 8, h, w) are four for each anchor. Landmarks are (1, 20, h, w).
        side: side of the square canvas in pixels.
    """
    boxes, probabilities = [], []
    for level, (stride, sizes) in enumerate(MXNET_SIZES.items()):
        scores, deltas = outputs[3 * level], outputs[3 * level + 1]
        anchors = anchors_of(side, stride, sizes, MXNET_CENTER)
        boxes.append(_boxes_of(anchors, deltas.transpose(0, 2, 3, 1).reshape(-1, 4)))
        paired = scores.reshape(2, 2, *scores.shape[2:])  # no face or face, anchor, row, column
        probabilities.append(paired.transpose(2, 3, 1, 0).reshape(-1, 2))
    return np.concatenate(boxes), np.concatenate(probabilities)


PRIORS = Form(priors_batch, priors_shapes, decode_priors)
"""The form of the public PyTorch network."""
MXNET = Form(mxnet_batch, mxnet_shapes, decode_mxnet)
"""The form of InsightFace's MXNet network."""


def anchors_of(side: int, stride: int, sizes: Sequence[int], center: float) -> np.ndarray:
    """Return the anchors of one stride, (N, 4) float32: center x and y, width and height, pixels.

    The order is by rows, then columns, then `sizes`. `center` is x and y of the first anchor.
    """
    centers = np.arange(_cells(side, stride), dtype=np.float32) * stride + np.float32(center)
    y, x, size = np.meshgrid(centers, centers, np.array(sizes, np.float32), indexing="ij")
    return np.stack([x, y, size, size], axis=-1).reshape(-1, 4)


def _boxes_of(anchors: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Return boxes (N, 4) XYXY; deltas shift by shares of an anchor's sides, or are log scales."""
    centers = anchors[:, :2] + deltas[:, :2] * anchors[:, 2:]
    halves = anchors[:, 2:] * np.exp(deltas[:, 2:]) / 2
    return np.hstack([centers - halves, centers + halves])


def _cells(side: int, stride: int) -> int:
    return -(-side // stride)


def _batch(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
