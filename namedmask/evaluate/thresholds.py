"""Threshold sweeps, which find the background threshold of a baseline in one pass over a split.

MaskCLIP and ReCo do not predict background. A pixel is background if the probability of its best
category is below a threshold. Pixels are counted once, by true label, best category and the number
of thresholds that the probability reaches. The confusion matrices of all twenty thresholds follow
from these counts.

Method: thresholds 0, 0.05, … 0.95; the paper chose on VOC2012 train and used the result throughout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from namedmask.errors import InputError
from namedmask.metrics import Absent, ConfusionMatrix
from namedmask.run import layout
from namedmask.schema.columns import BACKGROUND, LABEL_DTYPE
from namedmask.storage import Place
from namedmask.storage.files import read_json

THRESHOLDS = (np.arange(20) / 20).astype(np.float32)
"""Thresholds of a sweep, in single precision like the probabilities.

Method: from 0 to 0.95 in steps of 0.05.
"""


def with_background(best: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Return the label map, (H, W) uint16, with background where `best` is below `threshold`.

    `best` is the probability of the best category, (H, W) float32 in [0, 1]; `labels` is its label
    id, (H, W) integers from 1.
    """
    below = best < np.float32(threshold)
    return np.where(below, BACKGROUND, labels).astype(LABEL_DTYPE)


class Tally:
    """Numbers of pixels by true label, best category, and number of thresholds reached.

    `counts` is (K, K, 21) int64; the second axis is the label id of the best category, never 0.
    Memory: at 920 labels 142 MB.
    """

    def __init__(self, num_labels: int) -> None:
        self.counts = np.zeros((num_labels, num_labels, len(THRESHOLDS) + 1), np.int64)

    def add(self, pixels: tuple[np.ndarray, np.ndarray]) -> None:
        """Add the numbers of pixels that `tally` returned."""
        indices, counts = pixels
        np.add.at(self.counts.reshape(-1), indices, counts)

    def matrices(self) -> Iterator[ConfusionMatrix]:
        """Yield the confusion matrix of each threshold, in order."""
        for number in range(len(THRESHOLDS)):
            matrix = ConfusionMatrix(len(self.counts))
            matrix.counts += self.counts[:, :, number + 1 :].sum(axis=2)
            matrix.counts[:, BACKGROUND] += self.counts[:, :, : number + 1].sum(axis=(1, 2))
            yield matrix


def tally(
    truth: np.ndarray, best: np.ndarray, labels: np.ndarray, num_labels: int, ignore_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat indices of `Tally.counts` that an image changes, and the counts to add.

    Both results are (M,) int64. One image changes only a few of 920 × 920 × 21 counts. `truth` and
    `labels` are (H, W) label ids; `best` is (H, W) float32, as in `with_background`.
    """
    counted = truth != ignore_id
    reached = np.searchsorted(THRESHOLDS, best[counted], side="right")
    pairs = truth[counted].astype(np.int64) * num_labels + labels[counted]
    indices, counts = np.unique(pairs * (len(THRESHOLDS) + 1) + reached, return_counts=True)
    return indices, counts.astype(np.int64)


def curve_of(pixels: Tally, absent: Absent) -> list[dict[str, float | None]]:
    """Return {threshold, miou, pixel_accuracy} per threshold; without pixels, scores are None."""
    return [
        {
            "threshold": round(float(threshold), 2),
            "miou": _plain(matrix.miou(absent) if matrix.counts.any() else math.nan),
            "pixel_accuracy": _plain(matrix.pixel_accuracy()),
        }
        for threshold, matrix in zip(THRESHOLDS, pixels.matrices(), strict=True)
    ]


def best_of(curve: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the point with the best mean IoU; of equal points, that with the lowest threshold.

    Raises:
        InputError: no point has a mean IoU, because the benchmark has no truth.
    """
    known = [point for point in curve if point["miou"] is not None]
    if not known:
        raise InputError(
            "no threshold can be chosen, because no pixel of the split has a true label. Run "
            "'evaluate' with --sweep on a split with label maps, then use --threshold-from."
        )
    return max(known, key=lambda point: point["miou"])


def read_sweep(path: Place, baseline: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the threshold sweep of this baseline with these settings from the file `path`.

    Raises:
        InputError: the file cannot be read, is not a threshold sweep, or belongs to another
            baseline or to other settings.
    """
    try:
        sweep: dict[str, Any] = json.loads(path.read_bytes())
        kind, made_with = sweep["baseline"], dict(sweep["settings"])
        float(sweep["threshold"]), sweep["curve"], sweep["benchmark"], sweep["split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold a threshold sweep: {error!r}. Run 'evaluate' with --sweep first "
            "and name the file that it writes."
        ) from error
    changed = [key for key in settings if made_with.get(key) != settings[key]]
    if kind != baseline or changed:
        other = "; ".join(f"{key} {made_with.get(key)!r}, now {settings[key]!r}" for key in changed)
        raise InputError(
            f"{path} holds a threshold of '{kind}' ({other or 'equal settings'}); expected a "
            f"threshold of '{baseline}' with the present settings. Run 'evaluate' with --sweep "
            "again."
        )
    return sweep


def measured(folder: Place) -> list[dict[str, Any]]:
    """Return the results of the baselines in a run folder, threshold sweeps last."""
    if not (folder / layout.BASELINES).is_dir():
        return []
    paths: list[Place] = [*(folder / layout.BASELINES).glob("*.json")]
    results = [read_json(path) for path in sorted(paths, key=lambda path: path.name)]
    return sorted(results, key=lambda result: "curve" in result)


def standings(folder: Place, benchmark: str, split: str) -> list[dict[str, Any]]:
    """Return one row per method that was scored on a split.

    A row is {baseline, threshold, chosen_on, chosen_here, miou, pixel_accuracy}. The run's own
    segmenter comes first, as "namedmask"; it predicts background and so has no threshold.
    """
    rows, own = [], folder / layout.EVALUATION
    if own.exists():
        rows.append(read_json(own) | {"baseline": "namedmask"})
    rows += measured(folder)
    keys = ("baseline", "threshold", "chosen_on", "chosen_here", "miou", "pixel_accuracy")
    return [
        {key: row.get(key) for key in keys}
        for row in rows
        if (row.get("benchmark"), row.get("split")) == (benchmark, split)
    ]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
