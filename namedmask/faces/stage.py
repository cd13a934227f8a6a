"""Images in which a face can be seen are dropped, their pixels at once.

Reads `image`, adds `num_faces` and `status` (`has_face`; `not_an_image`, `truncated`,
`too_many_pixels`); `image` is null wherever the status is not ok.

A detector sees a square canvas of one size. Each image is laid on it twice: at full size, and at
half size, where a face that fills the picture still has the surroundings that a detector wants.
Differs: the seed's detector is a ResNet50 RetinaFace at settings it does not give; by default ours
is what InsightFace ships today (SCRFD) at InsightFace's thresholds, at both scales. RetinaFace is
one setting away, see `retinaface.py`.

Cost per 1,000 images at both scales: 200 seconds of one CPU core with SCRFD 2.5G at 640 pixels,
about 20 times that with a ResNet50 RetinaFace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import FacesConfig
from namedmask.config.registry import resolve
from namedmask.errors import ConfigError
from namedmask.faces.detectors import FACE_DETECTORS, FaceDetector
from namedmask.images.codec import BadImage, decode, resize
from namedmask.schema.status import HAS_FACE


def find_faces(
    detector: FaceDetector, image: np.ndarray, scales: Sequence[float], nms_iou: float
) -> np.ndarray:
    """Return the faces of an image at all scales, (N, 5) float32, best score first.

    Args:
        image: (H, W, 3) uint8 RGB.
        scales: the image's longest side over the canvas side.
        nms_iou: of two boxes that overlap more than this, the weaker one goes.

    Returns:
        XYXY pixels of `image`, x in [0, W] and y in [0, H], then the score in [0, 1].
    """
    found = [np.empty((0, 5), np.float32)]
    for scale in scales:
        canvas, factor = letterbox(image, detector.side, scale)
        boxes = np.array(detector.detect(canvas), np.float32).reshape(-1, 5)
        boxes[:, :4] /= factor
        found.append(boxes)
    boxes = np.concatenate(found)
    height, width = image.shape[:2]
    boxes[:, :4] = np.clip(boxes[:, :4], 0, [width, height, width, height])
    return boxes[non_maximum_suppression(boxes, nms_iou)]


def letterbox(image: np.ndarray, side: int, scale: float = 1.0) -> tuple[np.ndarray, float]:
    """Return a black canvas with the image at its top left, and the factor it was resized by.

    The canvas is (side, side, 3) uint8; the image's longest side becomes `side · scale` on it.
    """
    height, width = image.shape[:2]
    factor = side * scale / max(height, width)
    new_height, new_width = (max(1, round(length * factor)) for length in (height, width))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:new_height, :new_width] = resize(image, new_height, new_width)
    return canvas, factor


def non_maximum_suppression(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Return the indices, best score first, of the boxes (N, 5) that no better one overlaps."""
    corners = boxes[:, :4].astype(np.float64)
    kept: list[int] = []
    order = np.argsort(-boxes[:, 4], kind="stable")
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[_iou(corners[best], corners[rest]) <= iou]
    return np.array(kept, np.int64)


def _iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the overlap (N,) of one box (4,) with each of the others (N, 4), in [0, 1]."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    both = np.maximum(sides, 0).prod(axis=1)
    union = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


class Faces:
    """Images with at least one face become tombstones without pixels."""

    name = "faces"
    reads = ("image",)
    adds = ("num_faces", "status")

    def __init__(self, config: FacesConfig) -> None:
        if not config.scales or not all(0 < scale <= 1 for scale in config.scales):
            raise ConfigError(
                f"faces.scales are {config.scales}; expected one or more, above 0 and at most 1."
            )
        self.detector = resolve("face detector", config.detector, FACE_DETECTORS)(config)
        self._scales = config.scales
        self._nms_iou = config.nms_iou

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with `num_faces`, and `has_face` instead of pixels where it is above 0."""
        schema.require_columns(table, self.reads, self.name)
        rows = schema.alive(table)
        judged = [self._judge(data) for data in table["image"].take(rows).to_pylist()]
        table = schema.update(
            table,
            rows,
            {
                "num_faces": [count for count, _ in judged],
                "status": [status for _, status in judged],
            },
        )
        return schema.bury(table, ("image", "saliency", "mask"))

    def _judge(self, data: bytes) -> tuple[int | None, str]:
        try:
            image = decode(data)
        except BadImage as error:
            return None, error.status
        count = len(find_faces(self.detector, image, self._scales, self._nms_iou))
        return count, HAS_FACE if count else schema.OK
