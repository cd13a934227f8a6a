"""Scores of predicted against true label maps: confusion matrix, IoU, mean IoU, pixel accuracy.

Method: one confusion matrix covers a whole split; background counts as a label; ignored pixels are
left out. Differs: the original also skips true labels that the network has no logit for; here they
raise an error.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from namedmask.errors import InputError
from namedmask.schema.columns import IGNORE

Absent = Literal["skip", "zero"]
"""How a mean treats a label in neither truth nor prediction: skip it, or count an IoU of 0."""


class ConfusionMatrix:
    """Numbers of pixels by true and predicted label.

    `counts` is (K, K) int64; `counts[t, p]` is the number of pixels with the true label t and the
    predicted label p.

    Raises:
        InputError: there is no label, or the ignore id is a label id.
    """

    def __init__(self, num_labels: int, ignore_id: int = IGNORE) -> None:
        if num_labels < 1 or 0 <= ignore_id < num_labels:
            raise InputError(
                "a confusion matrix needs at least one label and an ignore id that is not a label "
                f"id; got {num_labels} labels and ignore id {ignore_id}."
            )
        self.num_labels = num_labels
        self.ignore_id = ignore_id
        self.counts = np.zeros((num_labels, num_labels), np.int64)

    def update(self, target: np.ndarray, prediction: np.ndarray) -> None:
        """Add the pixels of one or more images, given as two integer arrays of one shape.

        Where `target` is the ignore id, `prediction` may have any value.

        Raises:
            InputError: the shapes differ, or a counted value is not a label id.
        """
        if target.shape != prediction.shape:
            raise InputError(
                f"the truth is {target.shape} and the prediction {prediction.shape}; expected one "
                "shape. Resize the prediction to the size of the truth."
            )
        counted = np.asarray(target) != self.ignore_id
        true, predicted = np.asarray(target)[counted], np.asarray(prediction)[counted]
        for kind, values in (("truth", true), ("prediction", predicted)):
            if values.size and not 0 <= int(values.min()) <= int(values.max()) < self.num_labels:
                wrong = values[(values < 0) | (values >= self.num_labels)]
                raise InputError(
                    f"the {kind} holds label id {int(wrong[0])}; expected 0 to "
                    f"{self.num_labels - 1} or the ignore id {self.ignore_id}."
                )
        pairs = true.astype(np.int64) * self.num_labels + predicted
        # bincount would write all 920 × 920 counts, of which one image changes only a few
        np.add.at(self.counts.reshape(-1), pairs, 1)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same labels.

        Raises:
            InputError: the numbers of labels differ.
        """
        if other.num_labels != self.num_labels:
            raise InputError(
                f"cannot merge a confusion matrix of {other.num_labels} labels into one of "
                f"{self.num_labels}."
            )
        self.counts += other.counts

    def iou(self) -> np.ndarray:
        """Return the intersection over union of each label, (K,) float64; nan for absent labels."""
        hits, true, predicted = np.diag(self.counts), self.counts.sum(1), self.counts.sum(0)
        return overlap_iou(np.stack((hits, true, predicted)))

    def miou(self, absent: Absent = "skip") -> float:
        """Return the mean IoU over all labels, in [0, 1]; see `mean_iou`."""
        return mean_iou(self.iou(), absent)

    def pixel_accuracy(self) -> float:
        """Return the share of pixels with the right label, in [0, 1]; nan without pixels."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")


def overlap_iou(overlap: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each label, (K,) float64; nan for absent labels.

    `overlap` is (3, K) int64. Its rows are the numbers of pixels per label in both truth and
    prediction, in the truth, and in the prediction.
    """
    hits, true, predicted = overlap
    union = true + predicted - hits
    result: np.ndarray = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return result


def mean_iou(iou: np.ndarray, absent: Absent = "skip") -> float:
    """Return the mean of `iou`, (K,) float64 with nan for absent labels.

    The mean is nan if all labels are absent and skipped.
    Method: VOC, COCO, CoCA and Cityscapes skip absent labels; ImageNet-S counts them as 0.
    """
    if absent == "zero":
        return float(np.nan_to_num(iou).mean())
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")
