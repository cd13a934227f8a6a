"""The sweep: twenty thresholds in one pass are twenty passes, and what was chosen is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from namedmask.errors import InputError
from namedmask.evaluate import thresholds as sweep
from namedmask.metrics import ConfusionMatrix
from namedmask.run import layout
from namedmask.schema.columns import IGNORE

LABELS = 5


def maps(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, best probabilities and labels; many lie on a threshold or next to it."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, LABELS, (40, 30)).astype(np.uint16)
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    best = rng.random(truth.shape).astype(np.float32)
    on = rng.choice(sweep.THRESHOLDS, truth.shape)
    step = rng.integers(-1, 2, truth.shape)
    near = np.where(step == 0, on, np.nextafter(on, np.where(step < 0, -1, 2).astype(np.float32)))
    best = np.where(rng.random(truth.shape) < 0.7, near, best).clip(0, 1).astype(np.float32)
    return truth, best, rng.integers(1, LABELS, truth.shape).astype(np.uint16)


def test_twenty_matrices_of_one_pass_equal_twenty_passes() -> None:
    pixels = sweep.Tally(LABELS)
    for seed in range(4):
        truth, best, labels = maps(seed)
        pixels.add(sweep.tally(truth, best, labels, LABELS, IGNORE))
    found = list(pixels.matrices())
    assert len(found) == 20
    for number, matrix in enumerate(found):
        alone = ConfusionMatrix(LABELS)
        for seed in range(4):
            truth, best, labels = maps(seed)
            alone.update(truth, sweep.with_background(best, labels, number / 20))
        np.testing.assert_array_equal(matrix.counts, alone.counts)
    curve = sweep.curve_of(pixels, "skip")
    assert [point["threshold"] for point in curve] == [round(n / 20, 2) for n in range(20)]
    assert curve[7]["miou"] == pytest.approx(found[7].miou(), abs=1e-6)
    assert curve[7]["pixel_accuracy"] == pytest.approx(found[7].pixel_accuracy(), abs=1e-6)


def test_pixel_at_the_threshold_is_no_background() -> None:
    best = np.array([[0.3, np.nextafter(np.float32(0.3), np.float32(0))]], np.float32)
    labels = np.array([[2, 2]], np.uint16)
    np.testing.assert_array_equal(sweep.with_background(best, labels, 0.3), [[2, 0]])
    np.testing.assert_array_equal(sweep.with_background(best, labels, 0.0), [[2, 2]])


def test_best_point_is_the_first_of_the_highest() -> None:
    curve = [{"threshold": t, "miou": m} for t, m in ((0.0, None), (0.1, 0.4), (0.2, 0.4))]
    assert sweep.best_of(curve)["threshold"] == 0.1
    with pytest.raises(InputError, match="no threshold can be chosen"):
        sweep.best_of(curve[:1])


FOUND = {
    "baseline": "maskclip", "settings": {"model": "a", "temperature": 100.0}, "threshold": 0.25,
    "benchmark": "scenes", "split": "select", "curve": [], "miou": 0.2, "pixel_accuracy": 0.5,
    "chosen_on": {"benchmark": "scenes", "split": "select"}, "chosen_here": True,
}  # fmt: skip


def test_threshold_is_taken_over_by_equal_settings_alone(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(FOUND))
    settings = {"model": "a", "temperature": 100.0}
    assert sweep.read_sweep(path, "maskclip", settings)["threshold"] == 0.25
    with pytest.raises(InputError, match=r"temperature 100\.0, now 16\.0"):
        sweep.read_sweep(path, "maskclip", settings | {"temperature": 16.0})
    with pytest.raises(InputError, match=r"threshold of 'maskclip' .* threshold of 'reco'"):
        sweep.read_sweep(path, "reco", settings)
    for text in ("{", "[]", json.dumps({"threshold": 0.2}), json.dumps(FOUND | {"settings": 3})):
        path.write_text(text)
        with pytest.raises(InputError, match="does not hold a threshold sweep"):
            sweep.read_sweep(path, "maskclip", settings)
    with pytest.raises(InputError, match="does not hold a threshold sweep"):
        sweep.read_sweep(tmp_path / "none.json", "maskclip", settings)


def test_standings_have_the_segmenter_first_and_one_split_alone(tmp_path: Path) -> None:
    assert sweep.standings(tmp_path, "scenes", "select") == []
    own = {"benchmark": "scenes", "split": "select", "miou": 0.5, "pixel_accuracy": 0.8}
    (tmp_path / "evaluation.json").write_text(json.dumps(own))
    folder = tmp_path / layout.BASELINES
    folder.mkdir()
    (folder / "maskclip-scenes-select-sweep.json").write_text(json.dumps(FOUND))
    other = {**FOUND, "split": "test", "chosen_here": False}
    (folder / "maskclip-scenes-test.json").write_text(json.dumps(other))
    rows = sweep.standings(tmp_path, "scenes", "select")
    assert [row["baseline"] for row in rows] == ["namedmask", "maskclip"]
    assert rows[0]["threshold"] is None and rows[1]["threshold"] == 0.25
    assert len(sweep.standings(tmp_path, "scenes", "test")) == 1
