"""Images in which a face can be seen are dropped, their pixels at once.

Reads `image`, adds `num_faces` and `status` (`has_face`; `not_an_image`, `truncated`,
`too_many_pixels`); `image` is null wherever the status is not ok.

A detector sees a square canvas of one size. Each image is laid on it twice: at full size, and at
half size, where a face that fills the picture still has the surroundings that a detector wants.
Differs: the seed's detector is a ResNet50 RetinaFace at settings it does not give; by default ours
is what InsightFace ships today (SCRFD) at InsightFace's thresholds, at both scales.

Cost per 1,000 images at both scales: 200 seconds of one CPU core with SCRFD 2.5G at 640 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import FacesConfig
from namedmask.errors import CheckpointError, ConfigError, InputError, MissingExtraError
from namedmask.images import BadImage, decode, resize
from namedmask.plugins import resolve

HAS_FACE = "has_face"

DYNAMIC_SIDE = 640
"""Canvas side of a detector that takes any: what InsightFace's detectors were trained at."""


class FaceDetector(Protocol):
    """What finds faces on a square canvas."""

    side: int

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return boxes (N, 5) float32, XYXY pixels and score, of (side, side, 3) uint8 RGB."""
        ...


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
    kept: list[int] = []
    for index in np.argsort(-boxes[:, 4], kind="stable"):
        if all(_iou(boxes[index], boxes[other]) <= iou for other in kept):
            kept.append(int(index))
    return np.array(kept, np.int64)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2])) - both
    return both / union if union > 0 else 0.0


class InsightFaceDetector:
    """A detector file in the SCRFD form, decoded by InsightFace.

    The form: scores, boxes and maybe key points, each over strides 8, 16, 32 (two anchors a cell)
    or 8 to 128 (one). InsightFace's own loader guesses the kind of a model from the number of its
    outputs and would decode other nine-output files to nonsense, so the outputs are checked here
    and its decoder is named.

    Raises:
        CheckpointError: no such file, or not in that form.
        InputError: the execution provider that was asked for is not to be had.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, config: FacesConfig) -> None:
        session = _open_session(path, config.device)
        widths = [output.shape[-1] for output in session.get_outputs()]
        if widths not in SCRFD_WIDTHS:
            raise CheckpointError(
                f"face detector file {path} is not in the SCRFD form: its outputs are {widths} "
                f"wide; expected one of {SCRFD_WIDTHS}. Use a detector that InsightFace ships, "
                "such as det_10g.onnx of buffalo_l."
            )
        from insightface.model_zoo.scrfd import SCRFD

        self.side = _side_of(session.get_inputs()[0].shape, path)
        self._model = SCRFD(model_file=str(path), session=session)
        self._model.nms_thresh = config.nms_iou
        self._min_score = config.min_score

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return boxes (N, 5) float32, XYXY pixels and score, of (side, side, 3) uint8 RGB."""
        boxes, _ = self._model.detect(
            np.ascontiguousarray(image[:, :, ::-1]),  # it takes BGR
            input_size=(self.side, self.side),  # unset, it would run twice, at 128 and 640
            det_thresh=self._min_score,
        )
        return np.asarray(boxes, np.float32)


SCRFD_WIDTHS = [
    [width for width in kinds for _ in range(strides)]
    for strides in (3, 5)
    for kinds in ((1, 4), (1, 4, 10))
]
"""Last dimension of each output: scores, then boxes, then key points."""


def _open_session(path: Path, device: str) -> Any:
    """Return the onnxruntime session of a file, on the device asked for and on no other."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as raised
    except ImportError as error:
        extra = "gpu" if device == "cuda" else "cpu"
        raise MissingExtraError(
            f"stage 'faces' needs onnxruntime, which is not installed: {error}. "
            f"Run: pip install 'namedmask[{extra}]'"
        ) from error
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise InputError(
            f"faces.device is '{device}', which needs {provider}; this onnxruntime has "
            f"{', '.join(available)}. Set faces.device to 'cpu', or pip install 'namedmask[gpu]'."
        )
    options = onnxruntime.SessionOptions()
    # idle threads would otherwise spin, on cores that the other stages need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except (
        raised.Fail,
        raised.InvalidArgument,
        raised.InvalidGraph,
        raised.InvalidProtobuf,
        raised.NoSuchFile,
        raised.NotImplemented,
        raised.RuntimeException,
    ) as error:
        raise CheckpointError(
            f"face detector file {path} cannot be loaded: {error}. Set faces.weights to an .onnx "
            "file of a detector."
        ) from error
    if session.get_providers()[0] != provider:
        raise InputError(
            f"face detector {path} runs on {session.get_providers()[0]} instead of {provider}: "
            "the onnxruntime build, the driver and cuDNN do not fit. `namedmask doctor` tells more."
        )
    return session


def _side_of(shape: Sequence[int | str], path: Path) -> int:
    """Return the canvas side for an input shape (1, 3, H, W), where names mean any size."""
    height, width = shape[2:4]
    if not (isinstance(height, int) and isinstance(width, int)):
        return DYNAMIC_SIDE
    if height != width:
        raise CheckpointError(
            f"face detector file {path} takes {height} × {width}; expected a square."
        )
    return height


def _scrfd(config: FacesConfig) -> FaceDetector:
    if not config.weights:
        raise ConfigError("faces.weights is empty; detector 'scrfd' needs an .onnx file there.")
    return InsightFaceDetector(Path(config.weights), config)


def _miniworld(config: FacesConfig) -> FaceDetector:
    own = resources.files("namedmask.miniworld").joinpath("weights", "faces.onnx")
    return InsightFaceDetector(Path(config.weights or str(own)), config)


FACE_DETECTORS: dict[str, Callable[[FacesConfig], FaceDetector]] = {
    "miniworld": _miniworld,
    "scrfd": _scrfd,
}


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
