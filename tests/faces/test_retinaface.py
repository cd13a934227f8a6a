"""RetinaFace against the original's numbers, its files, and the ONNX file made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import namedmask.faces
from namedmask.cli.app import main
from namedmask.config import FacesConfig
from namedmask.errors import CheckpointError, MissingExtraError, NamedMaskError
from namedmask.faces import stage as faces
from namedmask.faces.forms import priors_batch
from namedmask.faces.retinaface import RetinaFace, export_onnx, load_retinaface
from tests.golden import golden_arrays, golden_keys, golden_weights

pytestmark = pytest.mark.numerical

SIDE = 64


@pytest.fixture(scope="module")
def network() -> RetinaFace:
    with torch.device("meta"):
        model = RetinaFace()
    model.to_empty(device="cpu")
    golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def weights(network: RetinaFace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("retinaface") / "Resnet50_Final.pth"
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, path)
    return path


def outputs_of(model: RetinaFace, batch: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in model(torch.from_numpy(batch))]


def canvas(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def test_retinaface_state_dict_has_the_released_layout(network: RetinaFace) -> None:
    layout = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert layout == golden_keys("retinaface_resnet50")
    assert sum(p.numel() for p in network.parameters()) == 27_293_600
    assert namedmask.faces.RetinaFace is RetinaFace


def test_retinaface_golden_picture_gives_the_original_outputs(network: RetinaFace) -> None:
    golden = golden_arrays("retinaface_resnet50")
    found = outputs_of(network, priors_batch(golden["image"]))
    for name, output in zip(("boxes", "scores", "landmarks"), found, strict=True):
        expected = golden[name]
        assert output[0].shape == expected.shape
        assert np.linalg.norm(output[0] - expected) / np.linalg.norm(expected) < 1e-4, name


def test_retinaface_batch_gives_each_image_its_own(network: RetinaFace) -> None:
    images = [priors_batch(canvas(seed)[:40, :56]) for seed in (1, 2)]
    together = outputs_of(network, np.concatenate(images))
    for place, image in enumerate(images):
        for all_rows, own in zip(together, outputs_of(network, image), strict=True):
            difference = np.linalg.norm(all_rows[place] - own[0]) / np.linalg.norm(own)
            assert difference < 1e-4  # as the golden test's: another batch, another order of sums


@pytest.mark.parametrize("wrapped", [False, True])
def test_load_released_forms_give_the_same_network(
    network: RetinaFace, weights: Path, tmp_path: Path, wrapped: bool
) -> None:
    path = weights
    if wrapped:
        path = tmp_path / "wrapped.pth"
        torch.save({"state_dict": network.state_dict(), "epoch": 100}, path)
    before = torch.get_rng_state()
    loaded = load_retinaface(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ssh1.conv3X3.0.weight": None}, "1 entries missing .ssh1.conv3X3.0.weight"),
        ({"body.fc.bias": torch.zeros(1000)}, "1 unexpected .body.fc.bias"),
        ({"ClassHead.0.conv1x1.bias": torch.zeros(6)}, "conv1x1.bias .6,., expected .4,."),
    ],
)
def test_load_file_that_does_not_fit_is_refused(
    network: RetinaFace, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "weights.pth"
    state = {**network.state_dict(), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match=f"{path}: does not fit RetinaFace.*{message}"):
        load_retinaface(path)


@pytest.mark.parametrize("kind", ["missing", "cut", "code"])
def test_load_broken_or_hostile_file_is_refused(tmp_path: Path, weights: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    if kind == "cut":
        path.write_bytes(weights.read_bytes()[:100_000])
    elif kind == "code":
        torch.save({"state_dict": Path}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        load_retinaface(path)


def test_exported_file_is_the_network_and_a_detector(
    network: RetinaFace, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "face.onnx"
    assert main(["export-faces", str(weights), str(out), "--side", str(SIDE), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(out)
    assert told["relative_error"] < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["face.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, SIDE, SIDE]
    batch = priors_batch(canvas())
    exported = session.run(None, {"image": batch})
    for ours, theirs in zip(exported, outputs_of(network, batch), strict=True):
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-4

    config = FacesConfig(detector="retinaface_priors", weights=str(out), min_score=0)
    detector = faces.Faces(config).detector
    assert detector.side == SIDE
    boxes = detector.detect(canvas())
    assert boxes.shape == (168, 5)
    np.testing.assert_allclose(boxes[:, 4], exported[1][0, :, 1], atol=1e-6)


def test_exported_file_that_differs_from_the_network_is_not_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("namedmask.faces.retinaface.TOLERANCE", 0.0)
    with pytest.raises(NamedMaskError, match="is not written: its outputs differ"):
        export_onnx(weights, tmp_path / "face.onnx", SIDE)
    assert list(tmp_path.iterdir()) == []


def test_export_without_onnxruntime_names_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'namedmask\[cpu\]'"):
        export_onnx(weights, tmp_path / "face.onnx", SIDE)
