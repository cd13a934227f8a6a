"""How well predicted label maps agree with true ones: a confusion matrix and what follows from it.

Method: one confusion matrix over a whole split, background counts as a label, ignored pixels count
nowhere. Differs: the original also skips true labels that it has no logit for; here they raise.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from namedmask.errors import InputError
from namedmask.schema.columns import IGNORE

Absent = Literal["skip", "zero"]
"""What a label counts that neither truth nor prediction has: nothing, or an IoU of 0."""


class ConfusionMatrix:
    """Pixels by true and predicted label.

    `counts` is (K, K) int64: `counts[t, p]` pixels have the true label t and were predicted p.
    """

    def __init__(self, num_labels: int, ignore_id: int = IGNORE) -> None:
        if num_labels < 1 or 0 <= ignore_id < num_labels:
            raise InputError(
                f"a confusion matrix needs at least one label, and an ignore id that is none of "
                f"them; got {num_labels} labels and ignore id {ignore_id}."
            )
        self.num_labels = num_labels
        self.ignore_id = ignore_id
        self.counts = np.zeros((num_labels, num_labels), np.int64)

    def update(self, target: np.ndarray, prediction: np.ndarray) -> None:
        """Count the pixels of one image or many: two integer arrays of one shape.

        Where `target` is the ignore id, `prediction` may be anything.

        Raises:
            InputError: the shapes differ, or a counted value is no label.
        """
        if target.shape != prediction.shape:
            raise InputError(
                f"truth is {target.shape} and prediction {prediction.shape}; expected one shape. "
                "Evaluate at the size of the truth."
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
        # not bincount: of 920 × 920 counts that one image touches a few of, it would write them all
        np.add.at(self.counts.reshape(-1), pairs, 1)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix over the same labels."""
        if other.num_labels != self.num_labels:
            raise InputError(
                f"cannot merge a confusion matrix of {other.num_labels} labels into one of "
                f"{self.num_labels}."
            )
        self.counts += other.counts

    def iou(self) -> np.ndarray:
        """Return intersection over union of each label, (K,) float64; nan where it is absent."""
        hits, true, predicted = np.diag(self.counts), self.counts.sum(1), self.counts.sum(0)
        return overlap_iou(np.stack((hits, true, predicted)))

    def miou(self, absent: Absent = "skip") -> float:
        """Return the mean IoU over all labels; see `mean_iou`."""
        return mean_iou(self.iou(), absent)

    def pixel_accuracy(self) -> float:
        """Return the share of counted pixels predicted right; nan when none was counted."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")


def overlap_iou(overlap: np.ndarray) -> np.ndarray:
    """Return intersection over union of each label, (K,) float64; nan where it is absent.

    `overlap` is (3, K) int64: pixels that truth and prediction share, in truth, in prediction.
    """
    hits, true, predicted = overlap
    union = true + predicted - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(iou: np.ndarray, absent: Absent = "skip") -> float:
    """Return the mean of IoUs, (K,) float64 with nan for absent labels; nan when none counts.

    Method: VOC, COCO, CoCA and Cityscapes skip absent labels, ImageNet-S counts them as 0.
    """
    if absent == "zero":
        return float(np.nan_to_num(iou).mean())
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")
