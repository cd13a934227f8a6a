"""The face detectors (InsightFace's SCRFD, RetinaFace, the mini world's) and their registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from namedmask.config import FacesConfig
from namedmask.errors import CheckpointError, ConfigError, InputError, MissingExtraError
from namedmask.faces.forms import MXNET, PRIORS, Form
from namedmask.weights.catalog import path_of

DYNAMIC_SIDE = 640
"""Canvas side, in pixels, for a detector that accepts any size; the training size of InsightFace's
detectors."""


class FaceDetector(Protocol):
    """A face detector finds faces on a square canvas of `side` pixels."""

    side: int

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return boxes (N, 5) float32, XYXY pixels and score, of (side, side, 3) uint8 RGB.

        The boxes may overlap and reach beyond the canvas; `find_faces` suppresses and clips them.
        """
        ...


class InsightFaceDetector:
    """A detector file in the SCRFD form, decoded by InsightFace.

    The outputs of this form are scores, boxes and, in some files, key points, each with one output
    per stride. The strides are 8, 16, 32 with two anchors per cell, or 8 to 128 with one anchor per
    cell. InsightFace's own loader guesses the form from the number of outputs; it would decode nine
    outputs of another form to nonsense. Therefore this class checks the outputs itself and calls
    InsightFace's SCRFD decoder directly.

    Raises:
        CheckpointError: the file does not exist or is not in the SCRFD form.
        InputError: onnxruntime lacks the execution provider for `faces.device`.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, config: FacesConfig) -> None:
        session = _open_session(path, config.device)
        widths = [output.shape[-1] for output in session.get_outputs()]
        if widths not in SCRFD_WIDTHS:
            raise CheckpointError(
                f"face detector file {path} is not in the SCRFD form: the last dimensions of its "
                f"outputs are {widths}; expected one of {SCRFD_WIDTHS}. Use a detector that "
                "InsightFace ships, such as det_10g.onnx of buffalo_l, or set faces.detector to "
                "the file's own form."
            )
        from insightface.model_zoo.scrfd import SCRFD

        self.side, coarsest = _side_of(session, path), 32 if len(widths) < 10 else 128
        if self.side % coarsest:
            raise CheckpointError(
                f"face detector file {path} takes {self.side} pixels per side; expected a multiple "
                f"of {coarsest}, the coarsest stride of its outputs. Export it at 640 pixels."
            )
        self._model = SCRFD(model_file=str(path), session=session)
        self._model.nms_thresh = config.nms_iou
        self._min_score = config.min_score

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return boxes (N, 5) float32, XYXY pixels and score, of (side, side, 3) uint8 RGB."""
        boxes, _ = self._model.detect(
            np.ascontiguousarray(image[:, :, ::-1]),  # InsightFace expects BGR
            input_size=(self.side, self.side),  # the default runs twice, at 128 and at 640
            det_thresh=self._min_score,
        )
        return np.asarray(boxes, np.float32)


SCRFD_WIDTHS = [
    [width for width in kinds for _ in range(strides)]
    for strides in (3, 5)
    for kinds in ((1, 4), (1, 4, 10))
]
"""Allowed last dimensions of the outputs of an SCRFD file (scores, boxes, key points if any)."""


class RetinaFaceDetector:
    """A detector file in one of the forms of RetinaFace, decoded by forms.py.

    No current library decodes these forms. The constructor runs the network on a blank canvas. A
    file of another form is therefore refused before the first image.

    Raises:
        CheckpointError: the file does not exist or is not in the given form.
        InputError: onnxruntime lacks the execution provider for `faces.device`.
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
        boxes, probabilities = self._form.decode(self._run(image), self.side)
        scores = probabilities[:, 1]
        return np.column_stack([boxes, scores])[scores >= self._min_score]

    def _run(self, image: np.ndarray) -> list[np.ndarray]:
        name = self._session.get_inputs()[0].name
        outputs: list[np.ndarray] = self._session.run(None, {name: self._form.batch_of(image)})
        return outputs


def _require_form(outputs: Sequence[np.ndarray], form: Form, side: int, problem: str) -> None:
    """Raise CheckpointError unless the outputs have the form's shapes and are probabilities."""
    way_out = "Set faces.detector to the file's own form (scrfd, retinaface_priors, "
    way_out += "retinaface_mxnet), or export the file again."
    shapes, expected = [output.shape for output in outputs], form.shapes(side)
    if shapes != expected:
        raise CheckpointError(
            f"face detector file {problem}: for {side} × {side} pixels it gives {len(shapes)} "
            f"outputs of shapes {shapes}; expected {len(expected)}, {expected}. {way_out}"
        )
    _, probabilities = form.decode(outputs, side)
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise CheckpointError(
            f"face detector file {problem}: its scores for face and no face do not add up to 1. "
            f"The softmax was left out of the export. {way_out}"
        )


def _open_session(path: Path, device: str) -> Any:
    """Return the onnxruntime session of a file on `device`; there is no fallback to the CPU."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
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
            f"{', '.join(available)}. Set faces.device to 'cpu', or run: pip install "
            "'namedmask[gpu]'"
        )
    options = onnxruntime.SessionOptions()
    # idle threads would otherwise spin on cores that the other stages need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except (
        ort_errors.Fail,
        ort_errors.InvalidArgument,
        ort_errors.InvalidGraph,
        ort_errors.InvalidProtobuf,
        ort_errors.NoSuchFile,
        ort_errors.NotImplemented,
        ort_errors.RuntimeException,
    ) as error:
        raise CheckpointError(
            f"face detector file {path} cannot be loaded: {error}. Set faces.weights to the .onnx "
            "file of a detector; `namedmask export-faces` converts a RetinaFace checkpoint to one."
        ) from error
    if session.get_providers()[0] != provider:
        raise InputError(
            f"face detector {path} runs on {session.get_providers()[0]} instead of {provider}: "
            "the versions of onnxruntime, the driver and cuDNN do not fit together. Run "
            "`namedmask doctor` for details."
        )
    return session


def _side_of(session: Any, path: Path) -> int:
    """Return the side of the input (1, 3, H, W) of a network; `DYNAMIC_SIDE` if it is not fixed."""
    inputs = [(value.type, value.shape) for value in session.get_inputs()]
    kind, shape = inputs[0]
    fixed = [size if isinstance(size, int) else None for size in shape]
    image = len(inputs) == 1 and kind == "tensor(float)" and len(fixed) == 4
    if not (image and fixed[0] in (1, None) and fixed[1] in (3, None) and fixed[2] == fixed[3]):
        raise CheckpointError(
            f"face detector file {path} takes {inputs}; expected one batch (1, 3, H, W) of float32 "
            "with H equal to W. Export the detector again for a square image."
        )
    return fixed[2] or DYNAMIC_SIDE


def _scrfd(config: FacesConfig) -> FaceDetector:
    return InsightFaceDetector(_weights_of(config), config)


def _retinaface_priors(config: FacesConfig) -> FaceDetector:
    return RetinaFaceDetector(_weights_of(config), config, PRIORS)


def _retinaface_mxnet(config: FacesConfig) -> FaceDetector:
    return RetinaFaceDetector(_weights_of(config), config, MXNET)


def _miniworld(config: FacesConfig) -> FaceDetector:
    default = resources.files("namedmask.miniworld").joinpath("weights", "faces.onnx")
    return InsightFaceDetector(path_of(config.weights or str(default)), config)


def _weights_of(config: FacesConfig) -> Path:
    if not config.weights:
        raise ConfigError(
            f"faces.weights is empty; detector '{config.detector}' needs an .onnx file. Set "
            "faces.weights to a file or to a name that 'namedmask weights' lists."
        )
    return path_of(config.weights)


FACE_DETECTORS: dict[str, Callable[[FacesConfig], FaceDetector]] = {
    "miniworld": _miniworld,
    "retinaface_mxnet": _retinaface_mxnet,
    "retinaface_priors": _retinaface_priors,
    "scrfd": _scrfd,
}
"""Factory of each face detector, by its name in `faces.detector`."""
