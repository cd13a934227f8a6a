"""Train the saliency detector without labels; images.npy is its only input.

    python -m namedmask.miniworld.training.saliency FOLDER [--steps 900]

The detector is first trained on collages. The background of a collage is the corner of an image,
mirrored over the frame. The figure on it, which is the target, consists of a few random
superellipses, each cut from another image. In the rounds of self-training that follow, two of three
batches are the images themselves and the third is still collages. The targets of the images are
masks from the detector's own maps at the start of the round, averaged over mirror images, without
the parts that touch two sides of the frame.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from namedmask.images.codec import IMAGENET_MEAN, IMAGENET_STD
from namedmask.miniworld.training import views
from namedmask.miniworld.training.weights import save_half
from namedmask.saliency.detectors import TinyUNet

log = logging.getLogger(__name__)
SIDE = TinyUNet.SIDE
BATCH = 28
PARTS = 6
"""Largest number of superellipses per figure."""

MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]


def collage(images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return collages of the images, and the masks of their figures.

    Images and collages are (B, 3, S, S) float32 in [0, 1], RGB; masks are (B, 1, S, S) float32 in
    {0, 1}.
    """
    count = len(images)
    canvas = _grounds(images, generator)
    split = _half_planes(count, generator)
    canvas = torch.where(split, _grounds(images.roll(1, 0), generator), canvas)
    for part in range(int(torch.randint(0, 4, (1,), generator=generator))):
        speck = _superellipse(count, generator, _random_centers(count, generator), (0.03, 0.1))
        canvas = torch.where(speck, _shifted(images.roll(2 + part, 0), generator), canvas)
    figure = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    at = _random_centers(count, generator) * 0.5
    size = _uniform((count, 1), 0.6, 1.4, generator)
    for part in range(PARTS):
        present = _uniform((count, 1, 1, 1), 0, 1, generator) < (1.0 if part == 0 else 0.65)
        spread = torch.randn(count, 2, generator=generator) * 0.3 * size
        reach = (0.16, 0.5) if part == 0 else (0.05, 0.4)
        shape = (
            _superellipse(count, generator, at + spread * float(part > 0), reach, size) & present
        )
        canvas = torch.where(shape, _shifted(images.roll(7 + part, 0), generator), canvas)
        figure = figure | shape
    for _ in range(int(torch.randint(0, 2, (1,), generator=generator))):
        pole = _superellipse(count, generator, at, (0.02, 0.05)) & ~_half_planes(count, generator)
        canvas = torch.where(pole, _shifted(images.roll(19, 0), generator), canvas)
        figure = figure & ~pole
    return canvas, figure.float()


def train(folder: Path, steps: int, rounds: int = 2, seed: int = 0) -> TinyUNet:
    """Return the detector, trained on the collection in `folder`.

    It is trained for `steps` batches on collages, then for `steps // 3` batches in each of the
    `rounds` of self-training.
    """
    torch.manual_seed(seed)
    images = np.load(folder / "images.npy")
    net = TinyUNet().to(memory_format=torch.channels_last)
    _fit(net, images, None, steps, seed)
    for turn in range(rounds):
        chosen = np.random.default_rng(seed + turn).permutation(len(images))[:5000]
        masks, confidence = own_masks(net, images[chosen])
        share = masks.mean((1, 2))
        usable = (share > 0.03) & (share < 0.5) & (confidence > np.quantile(confidence, 0.4))
        log.info("round %d: %d of %d own masks kept", turn, usable.sum(), len(usable))
        _fit(net, images, (chosen[usable], masks[usable]), steps // 3, seed + 1 + turn)
    return net.eval()


def own_masks(net: TinyUNet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the detector's cleaned masks of (N, S, S, 3) uint8 images, and its confidences.

    Masks are (N, S, S) uint8 in {0, 1}, from maps that are averaged over mirror images.
    Confidences are (N,) float32: the soft IoU of the cleaned mask with its map.
    """
    net.eval()
    masks = np.zeros(images.shape[:3], np.uint8)
    confidence = np.zeros(len(images), np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), 64):
            batch = _tensor(images[start : start + 64])
            both = net(_normalized(batch)).sigmoid() + net(
                _normalized(batch.flip(-1))
            ).sigmoid().flip(-1)
            for row, saliency in enumerate((both[:, 0] / 2).numpy()):
                mask = clean(saliency > 0.5)
                union = np.maximum(saliency, mask).sum()
                masks[start + row] = mask
                confidence[start + row] = (saliency * mask).sum() / max(union, 1.0)
    net.train()
    return masks, confidence


def clean(mask: np.ndarray) -> np.ndarray:
    """Return the larger parts of an (H, W) bool mask that touch at most one side of the frame.

    A part is kept if its area is at least 15 % of the largest part. The result is uint8 in {0, 1}.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    kept = np.zeros(mask.shape, np.uint8)
    largest = max((stats[i, cv2.CC_STAT_AREA] for i in range(1, count)), default=0)
    for i in range(1, count):
        x, y, w, h, area = stats[i]
        touches = (x == 0) + (y == 0) + (x + w == mask.shape[1]) + (y + h == mask.shape[0])
        if area >= 0.15 * largest and touches < 2:
            kept[labels == i] = 1
    return kept


def _fit(
    net: TinyUNet,
    images: np.ndarray,
    own: tuple[np.ndarray, np.ndarray] | None,
    steps: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    peak = 2e-3 if own is None else 1e-3
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.02)
    for step in range(steps):
        rate = min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = peak * rate
        if own is None or step % 3 == 0:
            batch, target = collage(
                _tensor(images[rng.integers(len(images), size=BATCH)]), generator
            )
        else:
            rows = rng.integers(len(own[0]), size=BATCH)
            batch = _tensor(images[own[0][rows]])
            target = torch.from_numpy(own[1][rows])[:, None].float()
        both = torch.cat([views.recolor(batch, generator, 0.5), target], 1)
        both = views.crops(both, SIDE, generator, (0.7, 1.0), turn=0.2)
        logits = net(_normalized(both[:, :3]).to(memory_format=torch.channels_last))
        loss = _loss(logits, both[:, 3:].round())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            log.info("step %d loss %.3f", step, loss.item())


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    inside = logits.sigmoid()
    overlap = (inside * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (inside.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def _grounds(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one background per image: a corner of the image, mirrored repeatedly over the frame.

    The corner is not resampled, because a background must be as sharp as the parts pasted on it.
    """
    count = len(images)
    side = torch.randint(32, 60, (count, 2), generator=generator)
    first = (SIDE - side) * torch.randint(0, 2, (count, 2), generator=generator)
    rows, columns = (first[:, i, None] + _zigzag(side[:, i, None]) for i in (0, 1))
    return _take(images, rows, columns)


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return each image shifted by a random amount and mirrored at the frame."""
    shift = torch.randint(0, 2 * SIDE, (2, len(images), 1), generator=generator)
    whole = torch.full((len(images), 1), SIDE)
    return _take(images, _zigzag(whole, shift[0]), _zigzag(whole, shift[1]))


def _zigzag(period: torch.Tensor, shift: torch.Tensor | int = 0) -> torch.Tensor:
    """Return (B, S) int64 positions that run from 0 to period - 1 and back; `period` is (B, 1)."""
    along = (torch.arange(SIDE)[None] + shift) % (2 * period)
    return torch.where(along < period, along, 2 * period - 1 - along)


def _take(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    taken = [
        image.index_select(1, row).index_select(2, column)
        for image, row, column in zip(images, rows, columns, strict=True)
    ]
    return torch.stack(taken)


def _superellipse(
    count: int,
    generator: torch.Generator,
    center: torch.Tensor,
    reach: tuple[float, float],
    size: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Return random shapes between a bar, an ellipse and a box, (count, 1, S, S) bool."""
    angle = _uniform((count, 1, 1), 0, math.pi, generator)
    radii = _uniform((count, 2), *reach, generator) * size
    power = 2.0 ** _uniform((count, 1, 1), 0.3, 3.0, generator)
    line = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x[None] - center[:, 0, None, None], y[None] - center[:, 1, None, None]
    u = (x * angle.cos() + y * angle.sin()) / radii[:, 0, None, None]
    v = (y * angle.cos() - x * angle.sin()) / radii[:, 1, None, None]
    return (u.abs() ** power + v.abs() ** power < 1)[:, None]


def _half_planes(count: int, generator: torch.Generator) -> torch.Tensor:
    line = torch.linspace(-1, 1, SIDE)[None, None, :, None]
    cut = _uniform((count, 1, 1, 1), -0.6, 1.4, generator)
    return (line > cut).expand(count, 1, SIDE, SIDE)


def _random_centers(count: int, generator: torch.Generator) -> torch.Tensor:
    return _uniform((count, 2), -1, 1, generator)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _normalized(images: torch.Tensor) -> torch.Tensor:
    return (images - MEAN) / STD


def main() -> None:
    """Read the command line and train."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=900)
    arguments = parser.parse_args()
    save_half(train(arguments.folder, arguments.steps), "saliency.safetensors")


if __name__ == "__main__":
    main()
