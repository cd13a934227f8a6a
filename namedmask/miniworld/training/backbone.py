"""Pre-train the tiny backbone without labels: from images.npy and the saliency detector.

    python -m namedmask.miniworld.training.backbone FOLDER [--steps 800]

Two views of a picture keep the detector's object and change the rest: another ground, other colors,
another size, and often another surface, cut from other pictures. Features pooled over the object
must find each other in the batch (SimCLR's loss); a linear head also predicts the object's
mask, so that the features tell thing from ground.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from namedmask.backbone import TinyResNet
from namedmask.images import IMAGENET_MEAN, IMAGENET_STD
from namedmask.miniworld.training import views
from namedmask.miniworld.training.saliency import own_masks
from namedmask.miniworld.training.weights import WEIGHTS, save_half
from namedmask.saliency import TinyUNet

log = logging.getLogger(__name__)
SIDE = 96
BATCH = 64
POOL = 6000
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]


def view(
    images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views (B, 3, S, S) normalized and their masks (B, 1, S, S), of images in [0, 1]."""
    count = len(images)
    swap = torch.randint(1, count, (2,), generator=generator)
    grounds = views.crops(
        images.roll(int(swap[0]), 0), images.shape[-1], generator, (0.1, 0.3), 1.5
    )
    surfaces = views.crops(
        images.roll(int(swap[1]), 0), images.shape[-1], generator, (0.1, 0.8), 1.5
    )
    new_ground = torch.rand(count, 1, 1, 1, generator=generator) < 0.7
    new_surface = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    thing = torch.where(new_surface, 0.75 * surfaces + 0.25 * images, images)
    base = torch.where(new_ground, grounds, images)
    both = torch.cat([masks * thing + (1 - masks) * base, masks], 1)
    zoomed_out = views.crops(both, SIDE, generator, (0.7, 1.8), turn=0.25)
    colored = views.recolor(zoomed_out[:, :3], generator, 1.0)
    return (colored - MEAN) / STD, zoomed_out[:, 3:]


def train(folder: Path, steps: int, seed: int = 0) -> TinyResNet:
    """Return the pre-trained backbone."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, masks = _collection(folder)
    net = TinyResNet().to(memory_format=torch.channels_last)
    width = net.out_channels
    projector = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 96))
    thingness = nn.Conv2d(width, 1, 1)
    everything = [*net.parameters(), *projector.parameters(), *thingness.parameters()]
    optimizer = torch.optim.AdamW(everything, lr=2e-3, weight_decay=0.02)
    for step in range(steps):
        rate = min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = 2e-3 * rate
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        batch = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        mask = torch.from_numpy(masks[rows.numpy()])[:, None].float()
        pairs = [view(batch, mask, generator) for _ in range(2)]
        inputs = torch.cat([pair[0] for pair in pairs]).to(memory_format=torch.channels_last)
        features = net(inputs)["out"]
        inside = F.adaptive_avg_pool2d(torch.cat([pair[1] for pair in pairs]), features.shape[-2:])
        pooled = (features * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1e-3)
        first, second = F.normalize(projector(pooled), dim=1).chunk(2)
        loss = views.contrast_loss(first, second, 0.15)
        loss = loss + F.binary_cross_entropy_with_logits(thingness(features), inside)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            log.info("step %d loss %.3f", step, loss.item())
    return net.eval()


def _collection(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (N, H, W, 3) uint8 that have an object by the detector, and its masks."""
    images = np.load(folder / "images.npy", mmap_mode="r")[:POOL].copy()
    detector = TinyUNet()
    detector.load_state_dict(load_file(WEIGHTS / "saliency.safetensors"))
    masks, sure = own_masks(detector, images)
    share = masks.mean((1, 2))
    usable = (share > 0.03) & (share < 0.5) & (sure > np.quantile(sure, 0.3))
    log.info("%d of %d pictures have an object", usable.sum(), len(images))
    return images[usable], masks[usable]


def main() -> None:
    """Read the command line and train."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    save_half(train(arguments.folder, arguments.steps), "backbone.safetensors")


if __name__ == "__main__":
    main()
