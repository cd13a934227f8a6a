"""The faces stage drops images with a visible face and deletes their pixels at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import FacesConfig
from namedmask.config.registry import made
from namedmask.errors import ConfigError
from namedmask.faces.detectors import FACE_DETECTORS, FaceDetector
from namedmask.images.codec import BadImage, decode, resize
from namedmask.images.limits import Limits
from namedmask.schema.status import HAS_FACE


def find_faces(
    detector: FaceDetector, image: np.ndarray, scales: Sequence[float], nms_iou: float
) -> np.ndarray:
    """Return the faces of an image that are found at any of the scales, best score first.

    Args:
        detector: the face detector, run once per scale.
        image: (H, W, 3) uint8 RGB.
        scales: ratios, in (0, 1], of the image's longest side to the side of the detector's canvas.
        nms_iou: IoU above which the box with the lower score is suppressed.

    Returns:
        (N, 5) float32: XYXY pixels of `image`, x in [0, W] and y in [0, H], and score in [0, 1].
    """
    boxes_by_scale = [np.empty((0, 5), np.float32)]
    for scale in scales:
        canvas, factor = letterbox(image, detector.side, scale)
        boxes = np.array(detector.detect(canvas), np.float32).reshape(-1, 5)
        boxes[:, :4] /= factor
        boxes_by_scale.append(boxes)
    boxes = np.concatenate(boxes_by_scale)
    height, width = image.shape[:2]
    boxes[:, :4] = np.clip(boxes[:, :4], 0, [width, height, width, height])
    result: np.ndarray = boxes[non_maximum_suppression(boxes, nms_iou)]
    return result


def letterbox(image: np.ndarray, side: int, scale: float = 1.0) -> tuple[np.ndarray, float]:
    """Return a black canvas with the resized image at its top left, and the resize factor.

    The image is (H, W, 3) uint8 RGB and the canvas (side, side, 3) uint8 RGB. The longest side of
    the image becomes `side · scale` pixels.
    """
    height, width = image.shape[:2]
    factor = side * scale / max(height, width)
    new_height, new_width = (max(1, round(length * factor)) for length in (height, width))
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:new_height, :new_width] = resize(image, new_height, new_width)
    return canvas, factor


def non_maximum_suppression(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Return the indices, (K,) int64, of the boxes that remain, best score first.

    `boxes` are (N, 5), XYXY and score. A box is suppressed if its IoU with a remaining box of a
    better score is above `iou`.
    """
    corners = boxes[:, :4].astype(np.float64)
    kept: list[int] = []
    order = np.argsort(-boxes[:, 4], kind="stable")
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[_iou(corners[best], corners[rest]) <= iou]
    return np.array(kept, np.int64)


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU, (N,) in [0, 1], of a box (4,) with each of the others (N, 4), all XYXY."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    result: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


class Faces:
    """The stage that drops images with at least one face.

    Columns in: `image` (encoded bytes) and `status`.

    Columns out: `num_faces` (int32) and `status`: `has_face`, or `not_an_image`, `truncated`,
    `too_many_pixels` or `too_many_scans` if the image cannot be decoded. The pixels (`image`,
    `saliency`, `mask`) of a row whose status is not ok become null.

    A detector takes a square canvas of one size. By default, each image is placed on it twice, at
    full size and at half size. At half size, a face that fills the image still has the surroundings
    that detectors need.

    Cost per 1,000 images at both sizes on one CPU core: 200 s with SCRFD 2.5G at 640 pixels, about
    20 times as much with RetinaFace on a ResNet-50.

    Method: images with a face are dropped (method sections 1 and 8).
    Differs: the paper uses RetinaFace on a ResNet-50, with settings that it does not give. The
    LAION run files here use SCRFD, the detector that InsightFace ships today, with InsightFace's
    thresholds and at both sizes. To use RetinaFace, set `faces.detector`; see retinaface.py.
    """

    name = "faces"
    reads = ("image",)
    adds = ("num_faces", "status")
    limits = Limits()

    def __init__(self, config: FacesConfig) -> None:
        if not config.scales or not all(0 < scale <= 1 for scale in config.scales):
            raise ConfigError(
                f"faces.scales is {config.scales}; expected one or more numbers above 0 and at "
                "most 1. The default is 1.0 and 0.5."
            )
        self.detector = made(
            "face detector", config.detector, FACE_DETECTORS, config, ("side", "detect")
        )
        self._scales = config.scales
        self._nms_iou = config.nms_iou

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with `num_faces` and `status`; rows that are not ok have no pixels.

        Raises:
            SchemaError: `table` lacks `image` or `status`.
        """
        schema.require_columns(table, self.reads, self.name)
        rows = schema.alive(table)
        results = [self._check(table["image"][row].as_py()) for row in rows.tolist()]
        table = schema.update(
            table,
            rows,
            {
                "num_faces": [count for count, _ in results],
                "status": [status for _, status in results],
            },
        )
        return schema.bury(table, ("image", "saliency", "mask"))

    def _check(self, data: bytes) -> tuple[int | None, str]:
        """Return the number of faces, None if the image cannot be decoded, and the status."""
        try:
            image = decode(data, self.limits.max_pixels)
        except BadImage as error:
            return None, error.status
        count = len(find_faces(self.detector, image, self._scales, self._nms_iou))
        return count, HAS_FACE if count else schema.OK
