"""The two forms of RetinaFace, decoded against slow inverses, as arrays and as real files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from namedmask.config import FacesConfig
from namedmask.errors import CheckpointError
from namedmask.faces.forms import (
    MXNET,
    PRIORS,
    decode_mxnet,
    decode_priors,
    mxnet_batch,
    priors_batch,
)
from namedmask.faces.stage import Faces, find_faces
from tests.face_files import (
    FACES,
    SCRFD_INPUT,
    SCRFD_SIDE,
    SIDE,
    mxnet_outputs,
    ordered,
    priors_outputs,
    scrfd_outputs,
    write_file,
)

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    ("decode", "outputs"), [(decode_priors, priors_outputs()), (decode_mxnet, mxnet_outputs())]
)
def test_decode_known_boxes_come_back(decode, outputs: list[np.ndarray]) -> None:
    boxes, chances = decode(outputs, SIDE)
    assert boxes.shape == (1050, 4)
    assert boxes.dtype == np.float32
    assert chances.shape == (1050, 2)
    np.testing.assert_allclose(ordered(boxes[chances[:, 1] > 0.5]), FACES, atol=1e-3)


@pytest.mark.parametrize(("form", "outputs"), [(PRIORS, priors_outputs), (MXNET, mxnet_outputs)])
def test_form_shapes_are_those_of_its_outputs(form, outputs) -> None:
    assert form.shapes(SIDE) == [output.shape for output in outputs()]
    assert form.shapes(650)[0][1:] in [(2 * (82**2 + 41**2 + 21**2), 4), (4, 21, 21)]


def test_form_pixels_are_bgr_without_mean_or_rgb_as_they_are() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = [10, 20, 30]
    priors, mxnet = priors_batch(image), mxnet_batch(image)
    assert priors.shape == mxnet.shape == (1, 3, 4, 6)
    assert priors.dtype == mxnet.dtype == np.float32
    assert priors[0, :, 1, 2].tolist() == [30 - 104, 20 - 117, 10 - 123]
    assert mxnet[0, :, 1, 2].tolist() == [10, 20, 30]


def faces_of(form: str, path: Path) -> Faces:
    return Faces(FacesConfig(detector=form, weights=str(path)))


@pytest.mark.parametrize(
    ("form", "outputs"),
    [("retinaface_priors", priors_outputs()), ("retinaface_mxnet", mxnet_outputs())],
)
def test_detector_file_gives_known_boxes_in_pixels_of_the_image(
    tmp_path: Path, form: str, outputs: list[np.ndarray]
) -> None:
    detector = faces_of(form, write_file(tmp_path / "face.onnx", outputs)).detector
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    found = detector.detect(canvas)
    assert found.dtype == np.float32
    np.testing.assert_allclose(ordered(found[:, :4]), FACES, atol=1e-3)
    np.testing.assert_allclose(found[:, 4], 0.9)
    twice = find_faces(detector, np.zeros((320, 240, 3), np.uint8), (1.0,), 1.0)
    expected = np.clip(2 * FACES, 0, [240, 320, 240, 320])
    np.testing.assert_allclose(ordered(twice[:, :4]), ordered(expected), atol=1e-3)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("key_points", [False, True])
@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 16, 32, 64, 128)])
def test_scrfd_file_of_every_form_gives_known_boxes(
    tmp_path: Path, strides: Sequence[int], key_points: bool, batched: bool
) -> None:
    """The 6, 9, 10 and 15 outputs that InsightFace ships."""
    outputs = scrfd_outputs(strides, key_points, batched)
    path = write_file(tmp_path / "face.onnx", outputs, SCRFD_INPUT)
    config = FacesConfig(detector="scrfd", weights=str(path), nms_iou=1.0)
    found = Faces(config).detector.detect(np.zeros((SCRFD_SIDE, SCRFD_SIDE, 3), np.uint8))
    np.testing.assert_allclose(ordered(found[:, :4]), FACES, atol=1e-3)
    np.testing.assert_allclose(found[:, 4], 0.9)


def test_scrfd_file_with_boxes_before_scores_is_refused(tmp_path: Path) -> None:
    outputs = scrfd_outputs((8, 16, 32), key_points=False, batched=True)
    path = write_file(tmp_path / "face.onnx", outputs[3:] + outputs[:3], SCRFD_INPUT)
    with pytest.raises(CheckpointError, match="is not in the SCRFD form"):
        faces_of("scrfd", path)


def test_scrfd_file_whose_side_is_no_whole_number_of_cells_is_refused(tmp_path: Path) -> None:
    outputs = scrfd_outputs((8, 16, 32, 64, 128), key_points=False, batched=True)
    path = write_file(tmp_path / "face.onnx", outputs, (1, 3, 320, 320))
    with pytest.raises(CheckpointError, match=r"takes 320 pixels.*multiple of 128"):
        faces_of("scrfd", path)


def test_detector_file_of_another_form_is_refused(tmp_path: Path) -> None:
    priors, mxnet = priors_outputs(), mxnet_outputs()
    finest_first = mxnet[6:] + mxnet[3:6] + mxnet[:3]
    by_kind = [output for kind in range(3) for output in mxnet[kind::3]]
    for form, outputs in (
        ("retinaface_priors", priors[:2]),
        ("retinaface_priors", [priors[1], priors[0], priors[2]]),
        ("retinaface_priors", [output[0] for output in priors]),
        ("retinaface_priors", mxnet),
        ("retinaface_mxnet", priors),
        ("retinaface_mxnet", mxnet[:6]),
        ("retinaface_mxnet", finest_first),
        ("retinaface_mxnet", by_kind),
    ):
        path = write_file(tmp_path / "face.onnx", outputs)
        expected = 3 if form == "retinaface_priors" else 9
        message = (
            f"{path} is not in the form '{form}': .* gives {len(outputs)} .*expected {expected},"
        )
        with pytest.raises(CheckpointError, match=message):
            faces_of(form, path)


def test_detector_file_without_softmax_is_refused(tmp_path: Path) -> None:
    boxes, scores, landmarks = priors_outputs()
    path = write_file(tmp_path / "face.onnx", [boxes, np.log(scores), landmarks])
    with pytest.raises(CheckpointError, match="softmax was left out"):
        faces_of("retinaface_priors", path)


@pytest.mark.parametrize(
    ("shape", "inputs"),
    [((1, SIDE, SIDE, 3), 1), ((4, 3, SIDE, SIDE), 1), ((1, 3, 160, 128), 1), ((1, 5), 1),
     ((1, 3, SIDE, SIDE), 2)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["retinaface_priors", "retinaface_mxnet"])
def test_detector_file_that_takes_no_square_image_is_refused(
    tmp_path: Path, form: str, shape: tuple[int, ...], inputs: int
) -> None:
    path = write_file(tmp_path / "face.onnx", priors_outputs(), shape, inputs)
    with pytest.raises(CheckpointError, match=f"{path} takes .*; expected one batch"):
        faces_of(form, path)
