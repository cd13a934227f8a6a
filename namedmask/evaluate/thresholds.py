"""How a baseline's background threshold is found: twenty of them judged in one pass.

MaskCLIP and ReCo know no background; a pixel whose best category has a probability below the
threshold is taken for it. An image is counted once, by true label, best category and the number of
thresholds that the probability reaches; all twenty confusion matrices follow from the sum.

Method: thresholds 0, 0.05, … 0.95; the paper chose on VOC2012 train and kept what it found.
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
"""Method: from 0 to 0.95 in steps of 0.05. Single precision, as the probabilities are."""

"""Below a run folder: what was measured of the baselines."""


def with_background(best: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Return the label map, (H, W) uint16: background where the probability is below `threshold`.

    `best` is the probability of the best category, (H, W) float32; `labels` its label id, from 1.
    """
    below = best < np.float32(threshold)
    return np.where(below, BACKGROUND, labels).astype(LABEL_DTYPE)


class Tally:
    """Pixels by true label, best category, and how many thresholds its probability reaches.

    `counts` is (K, K, 21) int64; the second axis is the label id of the best category, never 0.
    Memory: at 920 labels 142 MB.
    """

    def __init__(self, num_labels: int) -> None:
        self.counts = np.zeros((num_labels, num_labels, len(THRESHOLDS) + 1), np.int64)

    def add(self, pixels: tuple[np.ndarray, np.ndarray]) -> None:
        """Add what `tally` returned."""
        places, counts = pixels
        np.add.at(self.counts.reshape(-1), places, counts)

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
    """Return the occupied places of `Tally.counts`, flat, and their pixels: two (M,) int64.

    Of an image that touches a few of 920 × 920 × 21, only those.
    """
    counted = truth != ignore_id
    reached = np.searchsorted(THRESHOLDS, best[counted], side="right")
    pairs = truth[counted].astype(np.int64) * num_labels + labels[counted]
    places, counts = np.unique(pairs * (len(THRESHOLDS) + 1) + reached, return_counts=True)
    return places, counts.astype(np.int64)


def curve_of(pixels: Tally, absent: Absent) -> list[dict[str, float | None]]:
    """Return {threshold, miou, pixel_accuracy} for each threshold; None without pixels."""
    return [
        {
            "threshold": round(float(threshold), 2),
            "miou": _plain(matrix.miou(absent) if matrix.counts.any() else math.nan),
            "pixel_accuracy": _plain(matrix.pixel_accuracy()),
        }
        for threshold, matrix in zip(THRESHOLDS, pixels.matrices(), strict=True)
    ]


def best_of(curve: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the point with the best mean IoU, of equal ones that of the lowest threshold.

    Raises:
        InputError: no point has one: the benchmark has no truth.
    """
    known = [point for point in curve if point["miou"] is not None]
    if not known:
        raise InputError(
            "no threshold can be chosen: the benchmark's split has no pixel with a truth. Sweep on "
            "a split that has one, then use --threshold-from."
        )
    return max(known, key=lambda point: point["miou"])


def read_sweep(path: Place, baseline: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sweep of this baseline with these settings wrote to `path`.

    Raises:
        InputError: it cannot be read, is no sweep, or one of another baseline or other settings.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        kind, made_with = found["baseline"], dict(found["settings"])
        float(found["threshold"]), found["curve"], found["benchmark"], found["split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not what a sweep writes: {error!r}. Run 'evaluate' with --sweep first and "
            "name its file."
        ) from error
    changed = [key for key in settings if made_with.get(key) != settings[key]]
    if kind != baseline or changed:
        other = "; ".join(f"{key} {made_with.get(key)!r}, now {settings[key]!r}" for key in changed)
        raise InputError(
            f"{path} holds a threshold of '{kind}' ({other or 'equal settings'}), asked for is one "
            f"of '{baseline}': it would mean nothing. Sweep again with these settings."
        )
    return found


def measured(folder: Place) -> list[dict[str, Any]]:
    """Return what was measured of the baselines in a run folder, sweeps last."""
    if not (folder / layout.BASELINES).is_dir():
        return []
    paths: list[Place] = [*(folder / layout.BASELINES).glob("*.json")]
    found = [read_json(path) for path in sorted(paths, key=lambda path: path.name)]
    return sorted(found, key=lambda one: "curve" in one)


def standings(folder: Place, benchmark: str, split: str) -> list[dict[str, Any]]:
    """Return {method, threshold, chosen_on, miou, pixel_accuracy} of all judged on one split.

    The run's own segmenter comes first; it knows background, so that it has no threshold.
    """
    rows, own = [], folder / layout.EVALUATION
    if own.exists():
        rows.append(read_json(own) | {"baseline": "namedmask"})
    rows += measured(folder)
    keys = ("baseline", "threshold", "chosen_on", "chosen_here", "miou", "pixel_accuracy")
    return [
        {key: row.get(key) for key in keys}
        for row in rows
        if (row["benchmark"], row["split"]) == (benchmark, split)
    ]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
