"""ImageNet-S's PNG form and scores: another reader, slow pixel sets, hand-worked cases."""

from __future__ import annotations

import math
from collections import defaultdict

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from namedmask import images
from namedmask.evaluate.imagenet_s import (
    SIZES,
    boundary_overlap,
    decode_ids,
    encode_label_map,
    f_measure,
    image_accuracy,
    is_boundary,
    size_overlaps,
    sizes_of,
    sum_scores,
)
from namedmask.metrics import ConfusionMatrix
from namedmask.schema.columns import IGNORE

LABELS = 7
seeds = st.integers(0, 10**6)


def maps_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction, (H, W) uint16 in patches; labels cover any share of it."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(6, 40, 2))
    share = rng.dirichlet(np.full(LABELS, 0.5))
    coarse = rng.choice(LABELS, (6, 6), p=share).astype(np.uint16)
    target = images.resize(coarse, height, width, nearest=True)
    prediction = np.roll(target, rng.integers(-3, 4, 2), (0, 1))
    prediction[rng.random(target.shape) < 0.1] = rng.integers(0, LABELS)
    target[rng.random(target.shape) < 0.1] = IGNORE
    return target, prediction


def counts_of(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    matrix = ConfusionMatrix(LABELS)
    matrix.update(target, prediction)
    return matrix.counts


def pixels(target: np.ndarray, prediction: np.ndarray) -> list[tuple[int, int]]:
    pairs = zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True)
    return [pair for pair in pairs if pair[0] != IGNORE]


@given(seeds)
def test_size_overlaps_equal_slow_sets(seed: int) -> None:
    target, prediction = maps_of(seed)
    counted = pixels(target, prediction)
    sets: dict[int, list[int]] = defaultdict(list)
    for label in {true for true, _ in counted} - {0}:
        percent = math.ceil(100 * sum(true == label for true, _ in counted) / len(counted))
        sets[0 if percent <= 5 else 1 if percent <= 25 else 2 if percent <= 50 else 3].append(label)
    overlaps = size_overlaps(counts_of(target, prediction))
    for size in range(4):
        chosen = [pair for pair in counted if pair[0] in [0, *sets[size]]] if sets[size] else []
        for label in range(LABELS):
            hits = sum(true == label == predicted for true, predicted in chosen)
            in_truth = sum(true == label for true, _ in chosen)
            in_prediction = sum(predicted == label for _, predicted in chosen)
            assert overlaps[size, :, label].tolist() == [hits, in_truth, in_prediction]


@pytest.mark.parametrize(
    ("pixels", "size"), [(5, "s"), (6, "ms"), (25, "ms"), (26, "ml"), (50, "ml"), (51, "l")]
)
def test_size_of_a_category_ends_where_the_protocol_says(pixels: int, size: str) -> None:
    counts = np.array([[100 - pixels, 0], [pixels, 0]])
    assert sizes_of(counts).tolist() == [-1, list(SIZES).index(size)]
    assert sizes_of(counts * 10 + np.array([[0, 0], [1, 0]]))[1] >= list(SIZES).index(size)


@given(seeds)
def test_boundary_equals_erosion_of_each_label(seed: int) -> None:
    labels, _ = maps_of(seed)
    reach = max(1, round(0.03 * math.hypot(*labels.shape)))
    slow = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        mask = labels == label
        inner = binary_erosion(mask, np.ones((3, 3)), iterations=reach, border_value=0)
        slow |= mask & ~inner
    assert np.array_equal(is_boundary(labels), slow)


def test_boundary_of_a_large_image_is_three_percent_of_its_diagonal_wide() -> None:
    labels = np.zeros((300, 400), np.uint16)
    labels[100:200, 100:300] = 600
    inner = np.zeros(labels.shape, bool)
    inner[115:185, 115:285] = True
    assert np.array_equal((labels == 600) & ~is_boundary(labels), inner)


@given(seeds)
def test_boundary_overlap_equals_slow_sets(seed: int) -> None:
    target, prediction = maps_of(seed)
    overlap = boundary_overlap(target, prediction, LABELS)
    counted = target != IGNORE
    for label in range(LABELS):
        true = set(np.flatnonzero((target == label) & is_boundary(target) & counted))
        near = (prediction == label) & is_boundary(prediction) & counted
        predicted = set(np.flatnonzero(near))
        assert overlap[:, label].tolist() == [len(true & predicted), len(true), len(predicted)]


@given(seeds)
def test_f_measure_and_accuracy_equal_slow_sets(seed: int) -> None:
    target, prediction = maps_of(seed)
    counted = pixels(target, prediction)
    right = sum(true > 0 and predicted > 0 for true, predicted in counted)
    true = sum(true > 0 for true, _ in counted)
    predicted = sum(predicted > 0 for _, predicted in counted)
    counts = counts_of(target, prediction)
    if right:
        precision, recall = right / predicted, right / true
        expected = 1.3 * precision * recall / (0.3 * precision + recall)
        assert f_measure(counts) == pytest.approx(expected)
    else:
        assert f_measure(counts) == 0.0
    sizes = [sum(p == label for _, p in counted) for label in range(1, LABELS)]
    main = 1 + sizes.index(max(sizes))
    assert image_accuracy(counts) == (max(sizes) > 0 and any(t == main for t, _ in counted))


def test_hand_worked_image_gives_hand_worked_scores() -> None:
    """20 pixels: 12 of background, 7 of label 1 (35 %: ml), 1 of label 2 (5 %: s)."""
    target = np.repeat([0, 1, 2], [12, 7, 1]).reshape(4, 5).astype(np.uint16)
    prediction = target.copy()
    prediction[0, 0], prediction[3, 4] = 1, 1
    matrix = ConfusionMatrix(3)
    matrix.update(target, prediction)
    overlaps = np.zeros((5, 3, 3), np.int64)
    overlaps[:4] = size_overlaps(matrix.counts)
    overlaps[4] = boundary_overlap(target, prediction, 3)
    scores = sum_scores(overlaps, [0, 1, 2])
    assert scores["miou_s"] == pytest.approx((11 / 12 + 0) / 2)
    assert scores["miou_ml"] == pytest.approx((11 / 12 + 7 / 8) / 2)
    assert math.isnan(scores["miou_ms"]) and math.isnan(scores["miou_l"])
    assert f_measure(matrix.counts) == pytest.approx(1.3 * (8 / 9) / (0.3 * 8 / 9 + 1))
    assert image_accuracy(matrix.counts) == 1.0


def test_boundary_mean_counts_an_absent_label_as_zero() -> None:
    overlaps = np.zeros((5, 3, 4), np.int64)
    overlaps[4, :, 0], overlaps[4, :, 1] = 8, (1, 2, 3)
    scores = sum_scores(overlaps, [0, 1, 3])
    assert scores["boundary_miou"] == pytest.approx((1 + 1 / 4 + 0) / 3)


def test_image_without_a_counted_pixel_has_no_score() -> None:
    nothing = np.zeros((3, 3), np.int64)
    assert math.isnan(f_measure(nothing)) and math.isnan(image_accuracy(nothing))
    assert not size_overlaps(nothing).any()
    scores = sum_scores(np.zeros((5, 3, 3), np.int64), [0, 1, 2])
    assert len(scores) == 5 and all(math.isnan(score) for score in scores.values())


def test_wrong_main_category_and_nothing_found_are_inaccurate() -> None:
    assert image_accuracy(np.array([[5, 0, 0], [0, 1, 3], [0, 0, 0]])) == 0.0
    assert image_accuracy(np.array([[5, 0], [4, 0]])) == 0.0
    assert image_accuracy(np.array([[5, 1], [4, 0]])) == 1.0  # elsewhere, yet in the picture


def test_png_is_read_back_by_another_reader(tmp_path) -> None:
    labels = np.array([[0, 1, 255, 256], [300, 511, 919, IGNORE]], np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(encode_label_map(labels))
    blue, green, red = cv2.split(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    ids = red.astype(int) + 256 * green.astype(int)
    assert ids.tolist() == [[0, 1, 255, 256], [300, 511, 919, 1000]]
    assert not blue.any()
    decoded = decode_ids(path.read_bytes())
    assert decoded.dtype == np.uint16 and np.array_equal(decoded, ids)


@settings(max_examples=20)
@given(seeds)
def test_png_round_trips_any_label_map(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 920, (5, 8)).astype(np.uint16)
    assert np.array_equal(decode_ids(encode_label_map(labels)), labels)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_png_of_another_form_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="without blue"):
        decode_ids(images.encode_png(np.full(shape, 7, np.uint8)))
    with pytest.raises(ValueError):
        decode_ids(b"no picture")
