"""Train the tiny face detector and export it in InsightFace's ONNX form (SCRFD).

    python -m namedmask.miniworld.training.faces FOLDER [--steps 2500]

The input is (1, 3, 128, 128), RGB, (x - 127.5) / 128. There are six outputs: scores (N, 1) in
[0, 1] for the strides 8, 16 and 32, then boxes (N, 4) for the same strides. A box is given by its
distances left, top, right and bottom from the corner of its cell, in strides. The form requires two
anchors per cell; the second repeats the first.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from namedmask.miniworld.training import views
from namedmask.miniworld.training.weights import WEIGHTS

log = logging.getLogger(__name__)
SIDE = 128
"""Side of the input image in pixels."""

STRIDES = (8, 16, 32)
REACH = ((0, 26), (26, 60), (60, 400))
"""Range of the face heights, in pixels, that each stride detects."""
BATCH = 48


class FaceNet(nn.Module):
    """A small face detector with three strides."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 24, 40, 56, 72)
        stages, before = [], 3
        for width in widths:
            stages.append(nn.Sequential(_conv(before, width, 2), _conv(width, width, 1)))
            before = width
        self.stages = nn.ModuleList(stages)
        self.laterals = nn.ModuleList(nn.Conv2d(width, 40, 1) for width in widths[2:])
        self.towers = nn.ModuleList(_conv(40, 40, 1) for _ in STRIDES)
        self.score = nn.Conv2d(40, 1, 3, padding=1)
        self.reach = nn.Conv2d(40, 4, 3, padding=1)
        for head, value in ((self.score, -4.0), (self.reach, 1.0)):  # faces are rare
            head.bias = nn.Parameter(torch.full((head.out_channels,), value))

    def forward(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return one pair per stride: logits (B, 1, h, w), and distances (B, 4, h, w) in strides.

        `images` are (B, 3, S, S) float32 RGB, normalized as the module docstring says.
        """
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        levels = [lateral(f) for lateral, f in zip(self.laterals, features[2:], strict=True)]
        levels[1] = levels[1] + F.interpolate(levels[2], scale_factor=2.0)
        levels[0] = levels[0] + F.interpolate(levels[1], scale_factor=2.0)
        rows = [tower(level) for tower, level in zip(self.towers, levels, strict=True)]
        return [(self.score(row), F.softplus(self.reach(row))) for row in rows]


class Exported(nn.Module):
    """The detector with its outputs in the order and the shapes of the SCRFD form."""

    def __init__(self, net: FaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the scores (N, 1) of the three strides, then their boxes (N, 4)."""
        scores, boxes = [], []
        for logits, distances in self.net(images):
            scores.append(
                logits.sigmoid().permute(0, 2, 3, 1).reshape(-1, 1).repeat(1, 2).reshape(-1, 1)
            )
            flat = distances.permute(0, 2, 3, 1).reshape(-1, 4)
            boxes.append(flat.repeat(1, 2).reshape(-1, 4))
        return (*scores, *boxes)


def targets(boxes: list[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return one pair of targets per stride: scores (B, 1, h, w) and distances (B, 4, h, w).

    `boxes` holds the (N, 4) XYXY pixel boxes of each image.
    """
    made = []
    for stride, (low, high) in zip(STRIDES, REACH, strict=True):
        cells = SIDE // stride
        score = np.zeros((len(boxes), 1, cells, cells), np.float32)
        reach = np.zeros((len(boxes), 4, cells, cells), np.float32)
        at = np.arange(cells) * stride
        for row, faces in enumerate(boxes):
            for x0, y0, x1, y1 in faces:
                if not low <= y1 - y0 < high:
                    continue
                cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
                near_x = np.abs(at - cx) <= max((x1 - x0) * 0.25, stride * 0.6)
                near_y = np.abs(at - cy) <= max((y1 - y0) * 0.25, stride * 0.6)
                inside = near_y[:, None] & near_x[None]
                score[row, 0, inside] = 1
                gy, gx = np.meshgrid(at, at, indexing="ij")
                sides = np.stack([gx - x0, gy - y0, x1 - gx, y1 - gy]) / stride
                reach[row][:, inside] = np.maximum(sides[:, inside], 0.05)
        made.append((torch.from_numpy(score), torch.from_numpy(reach)))
    return made


def loss_of(
    outputs: list[tuple[torch.Tensor, torch.Tensor]],
    wanted: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Return a scalar: the focal loss of the scores plus the IoU loss of the boxes at positives."""
    total = torch.zeros(())
    positives = sum(float(score.sum()) for score, _ in wanted)
    for (logits, reach), (score, sides) in zip(outputs, wanted, strict=True):
        probability = logits.sigmoid()
        weight = torch.where(score > 0, 0.6 * (1 - probability) ** 2, 0.4 * probability**2)
        total = (
            total
            + (weight * F.binary_cross_entropy_with_logits(logits, score, reduction="none")).sum()
        )
        inside = score[:, 0] > 0
        got, want = reach.permute(0, 2, 3, 1)[inside], sides.permute(0, 2, 3, 1)[inside]
        overlap = torch.minimum(got, want)
        both = (overlap[:, 0] + overlap[:, 2]) * (overlap[:, 1] + overlap[:, 3])
        areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (got, want)]
        total = total - ((both + 1e-3) / (areas[0] + areas[1] - both + 1e-3)).log().sum() * 0.5
    return total / max(positives, 1.0)


def sample(
    images: np.ndarray,
    faces: list[list[list[float]]],
    with_face: np.ndarray,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Return a random batch of letterboxed images, and the face boxes of each.

    Images are (B, 3, S, S) float32 in [0, 1], RGB; every second image is drawn from `with_face`,
    the indices of the images with a face. Boxes are (N, 4) float32 XYXY pixels per image.
    """
    canvas = np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)
    boxes = []
    for row in range(BATCH):
        index = int(rng.choice(with_face)) if row % 2 else int(rng.integers(len(images)))
        image, moved = images[index], np.array(faces[index], np.float32).reshape(-1, 4)
        image, moved = _zoom(image, moved, rng)
        height, width = image.shape[:2]
        y, x = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
        canvas[row, y : y + height, x : x + width] = image
        boxes.append(moved + np.array([x, y, x, y], np.float32))
    return torch.from_numpy(canvas).permute(0, 3, 1, 2) / 255, boxes


def train(folder: Path, steps: int, seed: int = 0) -> FaceNet:
    """Return the detector, trained for `steps` batches on the collection in `folder`."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    images = np.load(folder / "images.npy", mmap_mode="r")
    faces = json.loads((folder / "truth" / "faces.json").read_text())
    with_face = np.flatnonzero([bool(boxes) for boxes in faces])
    net = FaceNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    for step in range(steps):
        rate = min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 2e-3 * rate
        batch, boxes = sample(images, faces, with_face, rng)
        batch = views.recolor(batch, generator, 0.25)
        loss = loss_of(net((batch * 255 - 127.5) / 128), targets(boxes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            log.info("step %d loss %.3f", step, loss.item())
    return net.eval()


def export(net: FaceNet, path: Path) -> None:
    """Write the detector as an ONNX file."""
    names = [f"score_{s}" for s in STRIDES] + [f"bbox_{s}" for s in STRIDES]
    torch.onnx.export(
        Exported(net).eval(), (torch.zeros(1, 3, SIDE, SIDE),), str(path),
        input_names=["input"], output_names=names, opset_version=17, dynamo=False,
    )  # fmt: skip


def _zoom(
    image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if len(boxes) and rng.random() < 0.35:
        image, boxes = _close_up(image, boxes, rng)
    height, width = image.shape[:2]
    longest = int(rng.integers(52, SIDE + 1))
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    small = F.interpolate(tensor, size[::-1], mode="bilinear", antialias=True, align_corners=False)
    flipped = rng.random() < 0.5
    boxes = boxes * np.array([size[0] / width, size[1] / height] * 2, np.float32)
    pixels = small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    if flipped:
        pixels = pixels[:, ::-1]
        boxes = np.stack(
            [size[0] - boxes[:, 2], boxes[:, 1], size[0] - boxes[:, 0], boxes[:, 3]], 1
        )
    return pixels, boxes


def _close_up(
    image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
    grow = rng.uniform(-0.08, 0.8, 4) * (x1 - x0)
    height, width = image.shape[:2]
    left, top = int(max(0, x0 - grow[0])), int(max(0, y0 - grow[1]))
    right, bottom = int(min(width, x1 + grow[2])), int(min(height, y1 + grow[3]))
    if right - left < 10 or bottom - top < 10:
        return image, boxes
    moved = boxes - np.array([left, top, left, top], np.float32)
    limit = np.array([right - left, bottom - top] * 2, np.float32)
    clipped = np.clip(moved, 0, limit)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1]) > 0.4 * area
    return image[top:bottom, left:right], clipped[kept]


def _conv(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def main() -> None:
    """Read the command line and train."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    export(train(arguments.folder, arguments.steps), WEIGHTS / "faces.onnx")


if __name__ == "__main__":
    main()
