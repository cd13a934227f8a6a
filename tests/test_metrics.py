"""Metrics against set arithmetic, torchmetrics and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from namedmask.errors import InputError
from namedmask.metrics import ConfusionMatrix, mean_iou
from namedmask.schema.columns import IGNORE


def random_maps(seed: int, labels: int = 6, absent: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction, (4, 20, 30) uint16; label `absent` is in neither."""
    rng = np.random.default_rng(seed)
    present = [label for label in range(labels) if label != absent]
    target = rng.choice([*present, IGNORE], (4, 20, 30)).astype(np.uint16)
    noise = rng.choice(present, target.shape)
    prediction = np.where((rng.random(target.shape) < 0.6) & (target != IGNORE), target, noise)
    return target, prediction.astype(np.uint16)


def pixels_with(array: np.ndarray, label: int, counted: np.ndarray) -> set[int]:
    return set(np.flatnonzero((array == label) & counted).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_iou_equals_set_arithmetic(seed) -> None:
    target, prediction = random_maps(seed)
    matrix = ConfusionMatrix(6)
    matrix.update(target, prediction)
    counted = target != IGNORE
    for label, iou in enumerate(matrix.iou()):
        true = pixels_with(target, label, counted)
        predicted = pixels_with(prediction, label, counted)
        if label == 3:
            assert not true | predicted and np.isnan(iou)
        else:
            assert iou == pytest.approx(len(true & predicted) / len(true | predicted))
    right = int(((target == prediction) & counted).sum())
    assert matrix.pixel_accuracy() == pytest.approx(right / int(counted.sum()))


@given(st.data())
def test_counts_of_any_maps_equal_set_arithmetic(data) -> None:
    labels = data.draw(st.integers(1, 5))
    size = data.draw(st.integers(0, 30))
    some = st.lists(st.integers(0, labels - 1), min_size=size, max_size=size)
    target, prediction = (np.array(data.draw(some), np.uint16) for _ in range(2))
    ignored = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    target[ignored], prediction[ignored] = IGNORE, 60_000
    matrix = ConfusionMatrix(labels)
    matrix.update(target, prediction)
    ious = []
    for label in range(labels):
        true = pixels_with(target, label, ~ignored)
        predicted = pixels_with(prediction, label, ~ignored)
        for other in range(labels):
            shared = true & pixels_with(prediction, other, ~ignored)
            assert matrix.counts[label, other] == len(shared)
        ious.append(len(true & predicted) / len(true | predicted) if true | predicted else None)
    present = [iou for iou in ious if iou is not None]
    assert matrix.counts.dtype == np.int64
    assert [None if np.isnan(iou) else iou for iou in matrix.iou()] == pytest.approx(ious)
    assert matrix.miou("zero") == pytest.approx(sum(present) / labels)
    if present:
        assert matrix.miou("skip") == pytest.approx(sum(present) / len(present))


@pytest.mark.parametrize("seed", range(3))
def test_miou_and_accuracy_equal_torchmetrics(seed) -> None:
    target, prediction = random_maps(seed)
    matrix = ConfusionMatrix(6)
    matrix.update(target, prediction)
    tensors = (torch.from_numpy(a.astype(np.int64)) for a in (prediction, target))
    prediction_t, target_t = tensors
    jaccard = MulticlassJaccardIndex(6, average="none", ignore_index=IGNORE)
    expected = jaccard(prediction_t, target_t).numpy()
    np.testing.assert_allclose(np.nan_to_num(matrix.iou()), expected, atol=1e-6)
    assert matrix.miou("zero") == pytest.approx(float(expected.mean()), abs=1e-6)
    accuracy = MulticlassAccuracy(6, average="micro", ignore_index=IGNORE)
    assert matrix.pixel_accuracy() == pytest.approx(
        float(accuracy(prediction_t, target_t)), abs=1e-6
    )


def test_hand_worked_image_gives_hand_worked_numbers() -> None:
    target = np.array([[0, 0, 1, 1], [2, 2, 9, 9]])
    prediction = np.array([[0, 1, 1, 1], [2, 0, 0, 77]])
    matrix = ConfusionMatrix(4, ignore_id=9)
    matrix.update(target, prediction)
    assert matrix.counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(matrix.iou(), [1 / 3, 2 / 3, 1 / 2, np.nan])
    assert matrix.miou() == pytest.approx(0.5)
    assert matrix.miou("zero") == pytest.approx(0.375)
    assert matrix.pixel_accuracy() == pytest.approx(4 / 6)


def test_many_updates_equal_one_and_equal_a_merge() -> None:
    target, prediction = random_maps(7)
    whole, merged, parts = ConfusionMatrix(6), ConfusionMatrix(6), ConfusionMatrix(6)
    whole.update(target, prediction)
    for one_target, one_prediction in zip(target, prediction, strict=True):
        parts.update(one_target, one_prediction)
        one = ConfusionMatrix(6)
        one.update(one_target, one_prediction)
        merged.merge(one)
    assert (whole.counts == parts.counts).all() and (whole.counts == merged.counts).all()


def test_many_labels_do_not_overflow_small_types() -> None:
    target = np.full((3, 3), 919, np.uint16)
    matrix = ConfusionMatrix(920)
    matrix.update(target, target)
    assert matrix.counts[919, 919] == 9 and matrix.miou() == 1.0


def test_all_pixels_ignored_give_nan_instead_of_a_number() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.full((2, 2), IGNORE), np.zeros((2, 2), int))
    assert np.isnan(matrix.iou()).all()
    assert np.isnan(matrix.miou()) and np.isnan(matrix.pixel_accuracy())
    assert mean_iou(matrix.iou(), "zero") == 0.0


@pytest.mark.parametrize(
    ("target", "prediction", "words"),
    [([[5]], [[0]], "truth holds label id 5"), ([[-1]], [[0]], "truth holds label id -1"),
     ([[0]], [[255]], "prediction holds label id 255"), ([[0, 1]], [[0]], "expected one shape")],
)  # fmt: skip
def test_impossible_pixels_are_refused(target, prediction, words) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(InputError, match=words):
        matrix.update(np.array(target), np.array(prediction))
    assert matrix.counts.sum() == 0


def test_ignore_id_among_the_labels_is_refused() -> None:
    with pytest.raises(InputError, match="300 labels and ignore id 255"):
        ConfusionMatrix(300, ignore_id=255)


def test_merge_of_other_labels_is_refused() -> None:
    with pytest.raises(InputError, match="4 labels into one of 3"):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))
