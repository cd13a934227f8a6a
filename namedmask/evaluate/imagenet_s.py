"""ImageNet-S's own: label maps in color PNGs, and the scores its protocol has beside mean IoU.

Method: the definitions are those of the benchmark's published evaluation (LUSSeg/ImageNet-S,
`evaluation/` and `data/data.py`). All but the boundary follow from the counts of one image,
(K, K) int64 as in `ConfusionMatrix.counts`: counts[t, p] pixels of the true label t were predicted
p, ignored pixels left out. An overlap is (3, K) int64: of each label the pixels that truth and
prediction share, those in truth, those in prediction; overlaps of images add up.
Differs: its evaluation splits the boundary mean by size as well; ours does not.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from namedmask import images
from namedmask.metrics import mean_iou, overlap_iou
from namedmask.schema.columns import BACKGROUND, IGNORE

PNG_IGNORE = 1000
"""What stands in the files where a pixel counts nowhere. Method: 1000."""

SIZES = {"s": 5, "ms": 25, "ml": 50, "l": 100}
"""Percent of the counted pixels that a category of each size covers at most. Method."""

BOUNDARY_SHARE = 0.03
"""Width of a boundary over the image's diagonal. Method: 3 %."""

BETA_SQUARED = 0.3
"""How much recall weighs in the F-measure beside precision. Method: 0.3."""


def encode_label_map(labels: np.ndarray) -> bytes:
    """Return the PNG of label ids (H, W) uint16: red = id mod 256, green = id // 256, blue = 0."""
    ids = np.where(labels == IGNORE, PNG_IGNORE, labels)
    return images.encode_png(np.stack((ids % 256, ids // 256, ids * 0), axis=2).astype(np.uint8))


def decode_ids(data: bytes) -> np.ndarray:
    """Return red + 256 · green of such a PNG, (H, W) uint16; 1000 stays what it is.

    Raises:
        ValueError: no PNG, one without colors, or with blue in it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            mode, colors = image.mode, np.array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    if mode != "RGB" or colors[..., 2].any():
        raise ValueError(f"expected red and green that give a label id, without blue; got {mode}")
    return colors[..., 0] + np.uint16(256) * colors[..., 1]


def sizes_of(counts: np.ndarray) -> np.ndarray:
    """Return the size of each label in one image, (K,) int: place in `SIZES`, else -1.

    A size is the share of counted pixels, in percent, rounded up. -1 is for background and for
    labels that the truth lacks.
    """
    true = counts.sum(axis=1)
    percent = -(-100 * true // max(1, int(true.sum())))
    sizes = np.searchsorted(list(SIZES.values()), percent)
    return np.where((true > 0) & (np.arange(len(true)) != BACKGROUND), sizes, -1)


def size_overlaps(counts: np.ndarray) -> np.ndarray:
    """Return the overlaps of one image by size, (4, 3, K) int64, in the order of `SIZES`.

    Where an image has categories of a size, their true pixels and those of its background count.
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
    """Return which pixels of a label map (H, W) uint16 lie near another label, (H, W) bool.

    Near is within 3 % of the diagonal, at least 1 pixel, in each direction; what lies beyond the
    image is another label.
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
    """Return the overlap of the boundaries in two label maps (H, W) uint16, (3, K) int64."""
    counted = target != ignore_id
    near_true, near_predicted = is_boundary(target) & counted, is_boundary(prediction) & counted
    both = near_true & near_predicted & (target == prediction)
    parts = (target[both], target[near_true], prediction[near_predicted])
    return np.stack([np.bincount(part, minlength=num_labels) for part in parts]).astype(np.int64)


def f_measure(counts: np.ndarray) -> float:
    """Return how well one image's objects are told from background, whichever they are, in [0, 1].

    It is the weighted mean of precision and recall; 0 where nothing is right, nan without pixels.
    """
    if not counts.any():
        return float("nan")
    right, true, predicted = counts[1:, 1:].sum(), counts[1:].sum(), counts[:, 1:].sum()
    if not right:
        return 0.0
    precision, recall = right / predicted, right / true
    return float((1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall))


def image_accuracy(counts: np.ndarray) -> float:
    """Return 1 if the category predicted on most pixels of one image is in its truth, else 0.

    nan without pixels.
    """
    if not counts.any():
        return float("nan")
    predicted = counts.sum(axis=0)
    main = 1 + int(predicted[1:].argmax()) if len(predicted) > 1 else BACKGROUND
    return float(main != BACKGROUND and predicted[main] > 0 and counts[main].any())


def sum_scores(overlaps: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
    """Return the means over a split: `miou_s` to `miou_l`, `boundary_miou`; nan where none counts.

    The mean of a size is over the labels that its truth has, background among them; that of the
    boundaries over all, an absent one as 0.

    Args:
        overlaps: (5, 3, K) int64, those by size, then that of the boundaries, of all images.
        labels: label ids that count, background among them.
    """
    chosen = overlaps[:, :, list(labels)]
    scores = {}
    for name, overlap in zip(SIZES, chosen, strict=False):
        scores[f"miou_{name}"] = mean_iou(overlap_iou(overlap)[overlap[1] > 0])
    empty = not chosen[-1].any()
    scores["boundary_miou"] = np.nan if empty else mean_iou(overlap_iou(chosen[-1]), "zero")
    return scores
