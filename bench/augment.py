"""Samples a second: made whole where they are drawn, drawn only, and finished by whole batches.

    python bench/augment.py [photo side] [crop] [device]

Drawing is what remains for the loader's processes with `augment.on_device`; finishing is what the
training device then does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from namedmask.config import AugmentConfig
from namedmask.train.augment import draft_batch, finish, make_batch

BATCH, ROUNDS = 16, 6


class Photos:
    """Smooth noise with an object in it."""

    def __init__(self, side: int) -> None:
        rng = np.random.default_rng(0)
        small = torch.from_numpy(rng.uniform(0, 255, (16, 3, side // 16 + 1, side // 16 + 1)))
        large = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 255)
        self._photos = large.permute(0, 2, 3, 1).byte().numpy()
        self._label = np.zeros((side, side), np.uint16)
        self._label[side // 4 : side // 2, side // 4 : side // 2] = 1

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) uint8 RGB and its labels (H, W) uint16."""
        return self._photos[index], self._label


def rate(work: Callable[[int], Any]) -> float:
    """Return the samples a second of work on a batch, the fastest round of six."""
    work(0)
    seconds = []
    for step in range(1, ROUNDS + 1):
        begun = time.perf_counter()
        work(step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return round(BATCH / min(seconds), 1)


def main() -> None:
    """Measure, and write one JSON document."""
    side, crop = (int(value) for value in (*sys.argv[1:3], *("500", "384")[len(sys.argv) - 1 :]))
    device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    torch.set_num_threads(1)
    asked = Photos(side), range(BATCH), AugmentConfig(crop=crop), 0
    drafts = [draft_batch(*asked, step) for step in range(ROUNDS + 1)]
    found = {
        "made by sample": rate(lambda step: make_batch(*asked, step)),
        "drawn only": rate(lambda step: draft_batch(*asked, step)),
        f"finished by batch on {device}": rate(lambda step: finish(drafts[step], device)),
    }
    sys.stdout.write(json.dumps({"side": side, "crop": crop} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
