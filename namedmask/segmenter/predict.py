"""Predict the label map of an image with a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from namedmask import images
from namedmask.schema.columns import LABEL_DTYPE

PRUNED_AT_ONCE = 16
"""Number of labels that `possible_labels` looks at together."""

ROUNDING = 1e-5
"""Share of the largest logit by which resizing may exceed the logits that it takes the mean of."""

LOGIT_BYTES = 256 << 20
"""Bytes of the logits at the size of the image that are in memory at once."""


def predict_labels(
    model: nn.Module, image: np.ndarray, max_side: int = 0, logit_bytes: int = LOGIT_BYTES
) -> np.ndarray:
    """Return the label map of an image, (H, W) uint16 label ids; 0 is background.

    `image` is (H, W, 3) uint8 RGB; `model` is put into eval mode. If `max_side` is positive, an
    image with a longer side is shrunk to `max_side` pixels for the network, and the logits are
    resized to the image's own size before the argmax.

    Memory: that of the network, and `logit_bytes` of resized logits, whatever the number of labels.
    A segmenter with a method `coarse` (segmenter.deeplab) returns its logits before they are
    resized; the logits of any other model are also in memory at the size of the network's input.
    """
    height, width = image.shape[:2]
    if 0 < max_side < max(height, width):
        scale = max_side / max(height, width)
        image = images.resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        logits = getattr(model, "coarse", model)(images.to_tensor([image]).to(device))
        labels = resized_argmax(logits, [image.shape[:2], (height, width)], logit_bytes)
    return labels[0].cpu().numpy().astype(LABEL_DTYPE)


def resized_argmax(
    logits: torch.Tensor, sizes: Sequence[tuple[int, int]], logit_bytes: int = LOGIT_BYTES
) -> torch.Tensor:
    """Return the label, (B, H, W) int64, with the largest logit per pixel of the last size.

    `logits` are (B, K, h, w) float32. They are resized to each of `sizes`, (height, width), one
    after the other and bilinearly. The labels are resized a few at a time, which gives the same
    logits as all at once; the first of equal logits wins.
    """
    kept = possible_labels(logits) if _only_grows(logits, sizes) else None
    if kept is not None:
        logits = logits[:, kept]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    per_label = logits.shape[0] * height * width * logits.element_size()
    count = max(2, logit_bytes // (3 * per_label))  # resized twice, and the best so far
    labels = best = None
    for start in range(0, logits.shape[1], count):
        # two labels at least: torch resizes a single one by another kernel, with another rounding
        first = min(start, max(0, logits.shape[1] - 2))
        part = logits[:, first : start + count]
        for size in sizes:
            if part.shape[-2:] != tuple(size):
                part = F.interpolate(part, size, mode="bilinear", align_corners=False)
        highest, label = part.max(dim=1)
        label += first
        if best is None or labels is None:
            best, labels = highest, label
        else:
            is_better = highest > best
            torch.where(is_better, highest, best, out=best)
            torch.where(is_better, label, labels, out=labels)
    assert labels is not None
    return labels if kept is None else kept[labels]


def possible_labels(logits: torch.Tensor) -> torch.Tensor:
    """Return the labels, (N,) int64 ascending, that can be the largest somewhere after resizing.

    `logits` are (B, K, h, w) float32. A resized logit is a mean of logits within 3 × 3 neighbors,
    so a label is ruled out if, in each such window, its highest logit is below the lowest of some
    other label. Of hundreds of labels, few remain, and only they need to be resized.
    """
    windows = [min(3, side) for side in logits.shape[-2:]]
    parts = range(0, logits.shape[1], PRUNED_AT_ONCE)
    highest_low = None
    for start in parts:
        low = -F.max_pool2d(-logits[:, start : start + PRUNED_AT_ONCE], windows, stride=1)
        low = low.amax(dim=1, keepdim=True)
        highest_low = low if highest_low is None else torch.maximum(highest_low, low)
    assert highest_low is not None
    margin = ROUNDING * logits.abs().amax()
    possible = [
        (F.max_pool2d(logits[:, start : start + PRUNED_AT_ONCE], windows, stride=1)
         >= highest_low - margin).amax(dim=(0, 2, 3))
        for start in parts
    ]  # fmt: skip
    return torch.cat(possible).nonzero()[:, 0]


def _only_grows(logits: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> bool:
    steps = [tuple(logits.shape[-2:]), *sizes]
    return all(a <= b for old, new in pairwise(steps) for a, b in zip(old, new, strict=True))
