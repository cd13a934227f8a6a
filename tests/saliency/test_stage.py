"""The saliency stage: maps to masks, plausibility, bad images, wrong weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import images
from namedmask.config import SaliencyConfig
from namedmask.errors import CheckpointError, ConfigError
from namedmask.saliency.detectors import DETECTORS
from namedmask.saliency.stage import Saliency, pseudo_mask

pytestmark = pytest.mark.numerical


def test_pseudo_mask_threshold_is_strict() -> None:
    mask = pseudo_mask(np.array([[0.5, 0.500001], [0.0, 1.0]], np.float32))
    assert mask.tolist() == [[False, True], [False, True]]


def test_stage_mask_is_the_map_over_a_half() -> None:
    photo = np.full((40, 60, 3), 90, np.uint8)
    photo[10:30, 20:45] = (250, 250, 60)
    table = pa.table({"image": [images.encode_png(photo)], "status": ["ok"]})
    out = Saliency(SaliencyConfig(detector="tests.toys:saliency_detector"))(table)
    mask = images.decode_mask(out["mask"][0].as_py(), 40, 60)
    saliency = images.decode_gray(out["saliency"][0].as_py())
    assert out["status"].to_pylist() == ["ok"]
    assert (mask == (photo[..., 0] == 250)).all()
    assert ((saliency > 127) == mask).all()


@pytest.mark.parametrize("level", [0, 255])
def test_stage_nothing_or_everything_stands_out_is_no_mask(level: int) -> None:
    photo = np.full((20, 20, 3), level, np.uint8)
    table = pa.table({"image": [images.encode_png(photo)], "status": ["ok"]})
    out = Saliency(SaliencyConfig(detector="tests.toys:saliency_detector"))(table)
    assert out["status"].to_pylist() == ["no_mask"]


def test_stage_broken_image_keeps_its_row_with_a_reason() -> None:
    table = pa.table({"image": [b"<html>", None], "status": ["ok", "http_404"]})
    out = Saliency(SaliencyConfig(detector="tests.toys:saliency_detector"))(table)
    assert out["status"].to_pylist() == ["not_an_image", "http_404"]


def test_miniworld_map_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (70 + i, 90, 3), dtype=np.uint8) for i in range(5)]
    detector = DETECTORS["miniworld"](SaliencyConfig(batch_size=4))
    together = detector.saliency(photos)
    for photo, one in zip(photos, together, strict=True):
        assert one.shape == photo.shape[:2]
        np.testing.assert_array_equal(one, detector.saliency([photo])[0])


def test_unknown_detector_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'miniworld'"):
        Saliency(SaliencyConfig(detector="miniwrld"))


def test_weights_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be read as such"):
        DETECTORS["miniworld"](SaliencyConfig(weights=str(path)))
