"""Faces found at two scales and dropped with their pixels; the detector is a real ONNX file.

The file is made here, in the form InsightFace ships. To it a face is a white cell of 32 pixels on
its 64 pixel canvas.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask.config import FacesConfig
from namedmask.errors import CheckpointError, ConfigError, InputError, MissingExtraError
from namedmask.faces.detectors import InsightFaceDetector
from namedmask.faces.stage import Faces, find_faces, letterbox, non_maximum_suppression
from namedmask.images.codec import encode_png
from tests.white_faces import CANVAS, write_detector


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("faces") / "cells.onnx")


def config_of(path: Path, scales: tuple[float, ...] = (1.0, 0.5)) -> FacesConfig:
    return FacesConfig(detector="scrfd", weights=str(path), scales=scales)


def picture(*cells: tuple[int, int], size: int = CANVAS) -> np.ndarray:
    """Return a black (size, size, 3) image, white from each of these corners for half a side."""
    image = np.zeros((size, size, 3), np.uint8)
    for row, column in cells:
        image[row : row + size // 2, column : column + size // 2] = 255
    return image


def table_of(images: list[bytes | None], statuses: list[str]) -> pa.Table:
    return pa.table({"image": pa.array(images, pa.binary()), "status": statuses})


def test_detector_file_is_decoded_to_canvas_pixels(detector_file: Path) -> None:
    detector = InsightFaceDetector(detector_file, config_of(detector_file))
    assert detector.side == CANVAS
    boxes = detector.detect(picture((0, 32)))
    np.testing.assert_allclose(boxes[:, :4], [[32, 0, 64, 32]])
    assert 0.9 < boxes[0, 4] <= 1
    assert detector.detect(picture()).shape == (0, 5)


def test_find_faces_maps_boxes_back_to_the_image(detector_file: Path) -> None:
    detector = InsightFaceDetector(detector_file, config_of(detector_file))
    found = find_faces(detector, picture((0, 0), (100, 100), size=200), (1.0,), 0.4)
    np.testing.assert_allclose(np.sort(found[:, 0]), [0, 100], atol=1e-4)
    np.testing.assert_allclose(np.sort(found[:, 3]), [100, 200], atol=1e-4)


def test_find_faces_at_half_scale_sees_the_face_that_fills_the_picture(
    detector_file: Path,
) -> None:
    class Framed(InsightFaceDetector):
        """Sees no face without something around it, as trained detectors do."""

        def detect(self, image: np.ndarray) -> np.ndarray:
            return super().detect(image * (not image[-1].any()))

    detector = Framed(detector_file, config_of(detector_file))
    close_up = np.full((80, 80, 3), 255, np.uint8)
    assert len(find_faces(detector, close_up, (1.0,), 0.4)) == 0
    found = find_faces(detector, close_up, (1.0, 0.5), 0.4)
    np.testing.assert_allclose(found[:, :4], [[0, 0, 80, 80]], atol=1e-4)


def test_find_faces_counts_a_face_seen_at_both_scales_once() -> None:
    class Bright:
        side = 96

        def detect(self, image: np.ndarray) -> np.ndarray:
            rows, columns = np.nonzero(image[:, :, 0] > 127)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9]
            return np.array([box], np.float32)

    image = np.zeros((60, 48, 3), np.uint8)
    image[10:40, 8:32] = 255
    found = find_faces(Bright(), image, (1.0, 0.5, 0.25), 0.4)
    assert len(found) == 1
    np.testing.assert_allclose(found[0, :4], [8, 10, 32, 40], atol=2)


@pytest.mark.parametrize("size", [(64, 48), (10, 400), (1, 3000), (500, 500)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_letterbox_keeps_the_aspect_and_leaves_black(size: tuple[int, int], scale: float) -> None:
    canvas, factor = letterbox(np.full((*size, 3), 200, np.uint8), 128, scale)
    assert canvas.shape == (128, 128, 3)
    assert factor == pytest.approx(128 * scale / max(size))
    height, width = (max(1, round(length * factor)) for length in size)
    assert (canvas[:height, :width] == 200).all()
    assert not canvas[height:].any()
    assert not canvas[:, width:].any()


def test_non_maximum_suppression_equals_the_slow_definition() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 30, (60, 2))
    boxes = np.hstack([corners, corners + rng.integers(1, 20, (60, 2)), rng.random((60, 1))])

    def cells(box: np.ndarray) -> set[tuple[int, int]]:
        x0, y0, x1, y1 = box[:4].astype(int)
        return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

    kept: list[int] = []
    for index in np.argsort(-boxes[:, 4]):
        areas = [(cells(boxes[index]), cells(boxes[other])) for other in kept]
        if all(len(a & b) / len(a | b) <= 0.3 for a, b in areas):
            kept.append(int(index))
    assert non_maximum_suppression(boxes, 0.3).tolist() == kept
    assert len(kept) < 60


def test_non_maximum_suppression_of_boxes_without_area_keeps_each() -> None:
    boxes = np.array([[1, 1, 1, 5, 0.9], [1, 1, 1, 5, 0.8]], np.float32)
    assert non_maximum_suppression(boxes, 0.4).tolist() == [0, 1]
    assert non_maximum_suppression(boxes[:0], 0.4).tolist() == []


def test_faces_stage_drops_the_pixels_of_faces(detector_file: Path) -> None:
    two, none = encode_png(picture((0, 0), (32, 32))), encode_png(picture())
    table = table_of([two, none, b"<html>", None], ["ok", "ok", "ok", "timeout"])
    before = table.to_pydict()
    done = Faces(config_of(detector_file, (1.0,)))(table)
    assert table.to_pydict() == before
    assert done["status"].to_pylist() == ["has_face", "ok", "not_an_image", "timeout"]
    assert done["num_faces"].to_pylist() == [2, 0, None, None]
    assert done["image"].to_pylist() == [None, none, None, None]


def test_faces_stage_looks_at_two_scales_by_default(
    detector_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    stage = Faces(FacesConfig(detector="scrfd", weights=str(detector_file)))
    monkeypatch.setattr(
        stage.detector,
        "detect",
        lambda canvas: seen.append(int(canvas.any(axis=(1, 2)).sum())) or [],
    )
    stage(table_of([encode_png(np.full((80, 40, 3), 255, np.uint8))], ["ok"]))
    assert seen == [CANVAS, CANVAS // 2]


def test_faces_stage_rows_do_not_depend_on_their_batch(detector_file: Path) -> None:
    stage = Faces(config_of(detector_file))
    images = [encode_png(picture(*cells)) for cells in ([(0, 0)], [], [(0, 32), (32, 0)])]
    together = stage(table_of(images, ["ok"] * 3)).to_pylist()
    apart = [stage(table_of([image], ["ok"])).to_pylist()[0] for image in images]
    assert together == apart
    assert stage(table_of([], []))["num_faces"].type == pa.int32()


def test_faces_stage_says_nothing_on_the_terminal(
    detector_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Faces(config_of(detector_file))(table_of([encode_png(picture((0, 0)))], ["ok"]))
    assert capfd.readouterr() == ("", "")


def test_detector_file_of_any_input_size_runs_at_640(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "any.onnx", side="side")
    assert InsightFaceDetector(path, config_of(path)).side == 640


@pytest.mark.parametrize("kind", ["missing", "garbage", "cut", "five outputs", "no onnx"])
def test_file_that_is_no_detector_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("model.bin" if kind == "no onnx" else "model.onnx")
    if kind == "five outputs":
        write_detector(path, outputs=5)
    elif kind == "cut":
        path.write_bytes(write_detector(path).read_bytes()[:700])
    elif kind != "missing":
        path.write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=f"face detector file {path}"):
        Faces(config_of(path))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, 1.5)])
def test_scales_off_the_canvas_are_refused(detector_file: Path, scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"faces\.scales"):
        Faces(config_of(detector_file, scales))


def test_unknown_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'scrfd'"):
        Faces(FacesConfig(detector="scrdf"))


@pytest.mark.parametrize("form", ["scrfd", "retinaface_priors", "retinaface_mxnet"])
def test_detector_without_weights_is_refused(form: str) -> None:
    with pytest.raises(ConfigError, match=rf"faces\.weights is empty; detector '{form}'"):
        Faces(FacesConfig(detector=form))


@pytest.mark.parametrize("form", ["scrfd", "retinaface_priors", "retinaface_mxnet"])
def test_provider_that_onnxruntime_lacks_is_refused(
    detector_file: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="needs CUDAExecutionProvider"):
        Faces(FacesConfig(detector=form, weights=str(detector_file), device="cuda"))


@pytest.mark.parametrize("form", ["scrfd", "retinaface_priors", "retinaface_mxnet"])
def test_provider_that_silently_falls_back_is_refused(
    detector_file: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    config = FacesConfig(detector=form, weights=str(detector_file), device="cuda")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(InputError, match="runs on CPUExecutionProvider instead of CUDA"),
    ):
        Faces(config)


def test_onnxruntime_that_is_not_installed_is_named(
    detector_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'namedmask\[cpu\]'"):
        Faces(config_of(detector_file))
