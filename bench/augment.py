"""Measure how many augmented training samples are made per second, in three ways.

    python bench/augment.py [photo side] [crop] [device]

"made by sample" makes each sample completely in the loader. "drawn only" is the part that remains
for the loader's processes with `augment.on_device`, and "finished by batch" is the part that the
training device does then. The output is JSON.
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
"""Number of samples per batch, and of timed batches per way."""


class Photos:
    """A data set of 16 photos of smooth noise, each with one labeled square."""

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
        """Return an image (H, W, 3) uint8 RGB and its label map (H, W) uint16."""
        return self._photos[index], self._label


def rate(work: Callable[[int], Any]) -> float:
    """Return the samples per second that `work` makes of a batch, in the fastest of six rounds."""
    work(0)
    seconds = []
    for step in range(1, ROUNDS + 1):
        start = time.perf_counter()
        work(step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(BATCH / min(seconds), 1)


def main() -> None:
    """Measure the three ways and write one JSON document."""
    side, crop = (int(value) for value in (*sys.argv[1:3], *("500", "384")[len(sys.argv) - 1 :]))
    device = sys.argv[3] if len(sys.argv) > 3 else "cpu"
    torch.set_num_threads(1)
    request = Photos(side), range(BATCH), AugmentConfig(crop=crop), 0
    drafts = [draft_batch(*request, step) for step in range(ROUNDS + 1)]
    rates = {
        "made by sample": rate(lambda step: make_batch(*request, step)),
        "drawn only": rate(lambda step: draft_batch(*request, step)),
        f"finished by batch on {device}": rate(lambda step: finish(drafts[step], device)),
    }
    sys.stdout.write(json.dumps({"side": side, "crop": crop} | rates, indent=1) + "\n")


if __name__ == "__main__":
    main()
