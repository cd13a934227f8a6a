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

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import FacesConfig
from namedmask.errors import CheckpointError, ConfigError, InputError, MissingExtraError
from namedmask.face_boxes import MXNET, PRIORS, Form
from namedmask.images import BadImage, decode, resize
from namedmask.plugins import resolve
from namedmask.weights import path_of

HAS_FACE = "has_face"

DYNAMIC_SIDE = 640
"""Canvas side of a detector that takes any: what InsightFace's detectors were trained at."""


class FaceDetector(Protocol):
    """What finds faces on a square canvas."""

    side: int

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return boxes (N, 5) float32, XYXY pixels and score, of (side, side, 3) uint8 RGB.

        They may overlap and reach over the edge: `find_faces` sees to both.
        """
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
                "such as det_10g.onnx of buffalo_l, or name the file's own form in faces.detector."
            )
        from insightface.model_zoo.scrfd import SCRFD

        self.side, coarsest = _side_of(session, path), 32 if len(widths) < 10 else 128
        if self.side % coarsest:
            raise CheckpointError(
                f"face detector file {path} takes {self.side} pixels; expected a multiple of "
                f"{coarsest}, of which InsightFace's decoder counts the cells. Export it at 640."
            )
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


class RetinaFaceDetector:
    """A detector file in one of the forms of RetinaFace, which no library of today decodes.

    A blank canvas goes through it at once: a file of another form is refused before any image.

    Raises:
        CheckpointError: no such file, or not in that form.
        InputError: the execution provider that was asked for is not to be had.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, config: FacesConfig, form: Form) -> None:
        self._session = _open_session(path, config.device)
        self.side = _side_of(self._session, path)
        self._form = form
        self._min_score = config.min_score
        outputs = self._run(np.zeros((self.side, self.side, 3), np.uint8))
        _require_form(outputs, form, self.side, f"{path} is not in the form '{config.detector}'")

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return boxes (N, 5) float32, XYXY pixels and score, of (side, side, 3) uint8 RGB."""
        boxes, chances = self._form.decode(self._run(image), self.side)
        scores = chances[:, 1]
        return np.column_stack([boxes, scores])[scores >= self._min_score]

    def _run(self, image: np.ndarray) -> list[np.ndarray]:
        name = self._session.get_inputs()[0].name
        outputs: list[np.ndarray] = self._session.run(None, {name: self._form.batch_of(image)})
        return outputs


def _require_form(outputs: Sequence[np.ndarray], form: Form, side: int, problem: str) -> None:
    """Raise a CheckpointError unless shapes are the form's and each two chances add up to 1."""
    way_out = "Name the file's own form in faces.detector (scrfd, retinaface_priors, "
    way_out += "retinaface_mxnet), or export it again."
    shapes, expected = [output.shape for output in outputs], form.shapes(side)
    if shapes != expected:
        raise CheckpointError(
            f"face detector file {problem}: for {side} × {side} pixels it gives {len(shapes)} "
            f"outputs {shapes}; expected {len(expected)}, {expected}. {way_out}"
        )
    _, chances = form.decode(outputs, side)
    if not np.allclose(chances.sum(axis=1), 1, atol=1e-3):
        raise CheckpointError(
            f"face detector file {problem}: its scores are no probabilities, for face and no face "
            f"do not add up to 1. The softmax was left out of it. {way_out}"
        )


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
            "file of a detector; `namedmask export-faces` makes one of a checkpoint."
        ) from error
    if session.get_providers()[0] != provider:
        raise InputError(
            f"face detector {path} runs on {session.get_providers()[0]} instead of {provider}: "
            "the onnxruntime build, the driver and cuDNN do not fit. `namedmask doctor` tells more."
        )
    return session


def _side_of(session: Any, path: Path) -> int:
    """Return the canvas side of a network for images (1, 3, H, W), where names mean any size."""
    inputs = [(value.type, value.shape) for value in session.get_inputs()]
    kind, shape = inputs[0]
    fixed = [size if isinstance(size, int) else None for size in shape]
    image = len(inputs) == 1 and kind == "tensor(float)" and len(fixed) == 4
    if not (image and fixed[0] in (1, None) and fixed[1] in (3, None) and fixed[2] == fixed[3]):
        raise CheckpointError(
            f"face detector file {path} takes {inputs}; expected one batch (1, 3, H, W) of float32 "
            "for a square image."
        )
    return fixed[2] or DYNAMIC_SIDE


def _scrfd(config: FacesConfig) -> FaceDetector:
    return InsightFaceDetector(_weights_of(config), config)


def _retinaface_priors(config: FacesConfig) -> FaceDetector:
    return RetinaFaceDetector(_weights_of(config), config, PRIORS)


def _retinaface_mxnet(config: FacesConfig) -> FaceDetector:
    return RetinaFaceDetector(_weights_of(config), config, MXNET)


def _miniworld(config: FacesConfig) -> FaceDetector:
    own = resources.files("namedmask.miniworld").joinpath("weights", "faces.onnx")
    return InsightFaceDetector(path_of(config.weights or str(own)), config)


def _weights_of(config: FacesConfig) -> Path:
    if not config.weights:
        raise ConfigError(
            f"faces.weights is empty; detector '{config.detector}' needs an .onnx file there. "
            "'namedmask weights' lists some."
        )
    return path_of(config.weights)


FACE_DETECTORS: dict[str, Callable[[FacesConfig], FaceDetector]] = {
    "miniworld": _miniworld,
    "retinaface_mxnet": _retinaface_mxnet,
    "retinaface_priors": _retinaface_priors,
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


def __getattr__(name: str) -> Any:
    """Return `RetinaFace`, the network, whose import brings torch, which the stage does without."""
    if name != "RetinaFace":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from namedmask.retinaface import RetinaFace

    return RetinaFace
