"""Label maps in the color PNGs of ImageNet-S, and the scores of its protocol besides mean IoU.

Method: the definitions are those of the benchmark's published evaluation (LUSSeg/ImageNet-S,
`evaluation/` and `data/data.py`). All scores except the boundary score are computed from counts per
image, (K, K) int64 as in `ConfusionMatrix.counts`: counts[t, p] is the number of pixels with the
true label t and the predicted label p, without ignored pixels. An overlap is (3, K) int64. Its
rows are the numbers of pixels per label in both truth and prediction, in the truth, and in the
prediction. Overlaps of several images are added up.
Differs: the published evaluation also splits the boundary mean by size; this one does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from namedmask import images
from namedmask.metrics import mean_iou, overlap_iou
from namedmask.schema.columns import BACKGROUND, IGNORE

PNG_IGNORE = 1000
"""Id of ignored pixels in the files. Method: 1000."""

SIZES = {"s": 5, "ms": 25, "ml": 50, "l": 100}
"""Size classes of a category in an image, each with its largest percentage of the counted pixels.

Method: these four classes.
"""

BOUNDARY_SHARE = 0.03
"""Width of a boundary as a share of the image's diagonal. Method: 3 %."""

BETA_SQUARED = 0.3
"""Weight of recall relative to precision, β², in the F-measure. Method: 0.3."""


def encode_label_map(labels: np.ndarray) -> bytes:
    """Return the PNG of label ids (H, W) uint16: red = id mod 256, green = id // 256, blue = 0.

    Ignored pixels get the id 1000.
    """
    ids = np.where(labels == IGNORE, PNG_IGNORE, labels)
    return images.encode_png(np.stack((ids % 256, ids // 256, ids * 0), axis=2).astype(np.uint8))


def decode_ids(data: bytes) -> np.ndarray:
    """Return red + 256 · green of a PNG, (H, W) uint16; ignored pixels keep the id 1000.

    Raises:
        ValueError: the data is not a PNG, or the PNG has no colors or a blue that is not 0.
    """
    mode, colors = images.decode_stored(data)
    if mode != "RGB" or colors[..., 2].any():
        raise ValueError(f"expected red and green that give a label id, without blue; got {mode}")
    return colors[..., 0] + np.uint16(256) * colors[..., 1]


def sizes_of(counts: np.ndarray) -> np.ndarray:
    """Return the size of each label in one image, (K,) int: its index in `SIZES`, or -1.

    The size follows from the label's percentage of the counted pixels, rounded up. Background and
    labels that the truth lacks have size -1.
    """
    true = counts.sum(axis=1)
    percent = -(-100 * true // max(1, int(true.sum())))
    sizes = np.searchsorted(list(SIZES.values()), percent)
    return np.where((true > 0) & (np.arange(len(true)) != BACKGROUND), sizes, -1)


def size_overlaps(counts: np.ndarray) -> np.ndarray:
    """Return the overlaps of one image by size, (4, 3, K) int64, in the order of `SIZES`.

    The overlap of a size covers the true pixels of its categories and of background. It is 0 if the
    image has no category of this size.
    """
    sizes, overlaps = sizes_of(counts), np.zeros((len(SIZES), 3, len(counts)), np.int64)
    for size in range(len(SIZES)):
        rows = np.flatnonzero(sizes == size)
        if rows.size:
            rows = np.concatenate(([BACKGROUND], rows))
            overlaps[size, 0, rows] = counts[rows, rows]
            overlaps[size, 1, rows] = counts[rows].sum(axis=1)
            overlaps[size, 2] = counts[rows].sum(axis=0)
    return overlaps


def is_boundary(labels: np.ndarray) -> np.ndarray:
    """Return whether each pixel of a label map (H, W) uint16 is near another label, (H, W) bool.

    Near means within 3 % of the diagonal (at least 1 pixel) in each direction. Pixels beyond the
    image count as another label.
    """
    height, width = labels.shape
    reach = max(1, round(BOUNDARY_SHARE * float(np.hypot(height, width))))
    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    labels = np.ascontiguousarray(labels, np.uint16)
    boundary: np.ndarray = cv2.erode(labels, window) != cv2.dilate(labels, window)
    boundary[:reach], boundary[-reach:] = True, True
    boundary[:, :reach], boundary[:, -reach:] = True, True
    return boundary


def boundary_overlap(
    target: np.ndarray, prediction: np.ndarray, num_labels: int, ignore_id: int = IGNORE
) -> np.ndarray:
    """Return the overlap of the boundaries of two label maps (H, W) uint16, (3, K) int64."""
    counted = target != ignore_id
    near_true, near_predicted = is_boundary(target) & counted, is_boundary(prediction) & counted
    both = near_true & near_predicted & (target == prediction)
    parts = (target[both], target[near_true], prediction[near_predicted])
    return np.stack([np.bincount(part, minlength=num_labels) for part in parts]).astype(np.int64)


def f_measure(counts: np.ndarray) -> float:
    """Return the F-measure of one image for objects of any category against background, in [0, 1].

    It is the weighted harmonic mean of precision and recall; 0 if no object pixel is predicted as
    an object, nan without pixels.
    """
    if not counts.any():
        return float("nan")
    right, true, predicted = counts[1:, 1:].sum(), counts[1:].sum(), counts[:, 1:].sum()
    if not right:
        return 0.0
    precision, recall = right / predicted, right / true
    return float((1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall))


def image_accuracy(counts: np.ndarray) -> float:
    """Return 1 if the most frequent predicted category of one image is in its truth, else 0.

    The result is nan without pixels.
    """
    if not counts.any():
        return float("nan")
    predicted = counts.sum(axis=0)
    main = 1 + int(predicted[1:].argmax()) if len(predicted) > 1 else BACKGROUND
    return float(main != BACKGROUND and predicted[main] > 0 and counts[main].any())


def sum_scores(overlaps: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
    """Return `miou_s`, `miou_ms`, `miou_ml`, `miou_l` and `boundary_miou` of a split, in [0, 1].

    The mean of a size covers the labels in its truth, including background. The mean of the
    boundaries covers all labels; an absent label counts as 0. A mean over nothing is nan.

    Args:
        overlaps: (5, 3, K) int64, the sums over all images: four by size, then the boundaries.
        labels: label ids to include, background among them.
    """
    chosen = overlaps[:, :, list(labels)]
    scores = {}
    for name, overlap in zip(SIZES, chosen, strict=False):
        scores[f"miou_{name}"] = mean_iou(overlap_iou(overlap)[overlap[1] > 0])
    empty = not chosen[-1].any()
    scores["boundary_miou"] = np.nan if empty else mean_iou(overlap_iou(chosen[-1]), "zero")
    return scores
