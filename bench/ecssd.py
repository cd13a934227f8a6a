"""Measure how well saliency detectors find the objects in 100 ECSSD photos.

    NAMEDMASK_REAL_DATA=… python bench/ecssd.py [NUMBER OF PHOTOS]

The detectors are CSNet, which was trained with masks, and the mini world's label-free detector,
which has never seen a photo. The score is the mean IoU at the size of each photo with the threshold
0.5, before and after the bilateral solver. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from namedmask import images  # noqa: E402
from namedmask.bilateral import snap  # noqa: E402
from namedmask.config import BilateralConfig, SaliencyConfig  # noqa: E402
from namedmask.saliency.detectors import DETECTORS  # noqa: E402
from namedmask.saliency.stage import pseudo_mask  # noqa: E402
from tests.real.csnet import csnet  # noqa: E402


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the IoU of two (H, W) bool masks."""
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def main() -> None:
    """Measure and print the scores."""
    data = Path(os.environ["NAMEDMASK_REAL_DATA"])
    weights = str(data / "weights" / "csnet_saliency_224.onnx")
    detectors = {
        "csnet": csnet(SaliencyConfig(weights=weights)),
        "own": DETECTORS["miniworld"](SaliencyConfig(batch_size=1)),
    }
    scores: dict[str, list[float]] = {}
    for path in sorted((data / "ecssd" / "photos").iterdir())[: int((*sys.argv, "100")[1])]:
        image = images.decode(path.read_bytes())
        (mask_path,) = (data / "ecssd" / "masks").glob(f"{path.stem}.*")
        truth = images.decode_gray(mask_path.read_bytes()) > 127
        for name, detector in detectors.items():
            mask = pseudo_mask(detector.saliency([image])[0])
            scores.setdefault(f"{name}_iou", []).append(overlap(mask, truth))
            solved = snap(image, mask, BilateralConfig())
            scores.setdefault(f"{name}_solved_iou", []).append(overlap(solved, truth))
    means = {name: round(float(np.mean(values)), 4) for name, values in scores.items()}
    print(json.dumps({"photos": len(next(iter(scores.values()))), **means}))


if __name__ == "__main__":
    main()
