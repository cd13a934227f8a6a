"""Pre-train the tiny backbone without labels, from images.npy, the tiny CLIP and saliency detector.

    python -m namedmask.miniworld.training.backbone FOLDER [--steps 1200]

The backbone starts as the CLIP's image tower. A view of an image keeps the object that the saliency
detector finds and changes the rest: it may have another background, cut from another image, other
colors, another size and, in some views, another surface on the object. There are two losses. The
features pooled over the object must match the CLIP vector of their own image among those of the
batch. A segmentation head on the features, discarded after the training, must predict the object's
mask.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from namedmask.bilateral import bilateral_solver
from namedmask.config import BilateralConfig, EmbedConfig
from namedmask.embed.open_clip import EMBEDDERS
from namedmask.images.codec import IMAGENET_MEAN, IMAGENET_STD
from namedmask.miniworld.training import views
from namedmask.miniworld.training.saliency import clean, own_masks
from namedmask.miniworld.training.weights import WEIGHTS, save_half
from namedmask.saliency.detectors import TinyUNet
from namedmask.segmenter.backbone import TinyResNet
from namedmask.segmenter.deeplab import DeepLabV3Plus, deeplabv3plus_tiny

log = logging.getLogger(__name__)
SIDE = 96
"""Side of a view in pixels."""

BATCH = 32
POOL = 8000
"""Number of images of the collection that are used."""

RATE = 1e-3
"""Peak learning rate."""

SOLVER = BilateralConfig(sigma_spatial=28, sigma_luma=6, sigma_chroma=4, smoothness=128)
"""The demo's bilateral solver, adapted to the size of the collection's images."""
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]


def view(
    images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one random view per image, and its mask.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], RGB.
        masks: (B, 1, H, W) float32, 1 on the object.
        generator: source of all randomness.

    Returns:
        (B, 3, S, S) float32, normalized with ImageNet's mean and deviation, and (B, 1, S, S)
        float32 in [0, 1].
    """
    count = len(images)
    swap = torch.randint(1, count, (2,), generator=generator)
    grounds = views.crops(
        images.roll(int(swap[0]), 0), images.shape[-1], generator, (0.1, 0.3), 1.5
    )
    surfaces = views.crops(
        images.roll(int(swap[1]), 0), images.shape[-1], generator, (0.1, 0.8), 1.5
    )
    new_ground = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    new_surface = torch.rand(count, 1, 1, 1, generator=generator) < 0.3
    thing = torch.where(new_surface, 0.75 * surfaces + 0.25 * images, images)
    base = torch.where(new_ground, grounds, images)
    both = torch.cat([masks * thing + (1 - masks) * base, masks], 1)
    zoomed_out = views.crops(both, SIDE, generator, (0.7, 1.8), turn=0.25)
    colored = views.recolor(zoomed_out[:, :3], generator, 0.7)
    return (colored - MEAN) / STD, zoomed_out[:, 3:]


def train(folder: Path, steps: int, seed: int = 0) -> TinyResNet:
    """Return the backbone, pre-trained for `steps` batches on the collection in `folder`.

    It is also saved to the weights folder every 300 steps.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, masks = _collection(folder)
    vectors = _vectors(images)
    net = cast(DeepLabV3Plus, deeplabv3plus_tiny(1)).to(memory_format=torch.channels_last)
    backbone = cast(TinyResNet, net.backbone)
    backbone.trunk.load_state_dict(_tower())
    projector = nn.Linear(backbone.out_channels, vectors.shape[1])
    optimizer = torch.optim.AdamW([*net.parameters(), *projector.parameters()], weight_decay=0.02)
    for step in range(steps):
        rate = min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = RATE * rate
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        batch = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        mask = torch.from_numpy(masks[rows.numpy()])[:, None].float()
        inputs, target = view(batch, mask, generator)
        features = backbone(inputs.to(memory_format=torch.channels_last))
        logits = F.interpolate(
            net.classifier(features), target.shape[-2:], mode="bilinear", align_corners=False
        )
        out = features["out"]
        inside = F.adaptive_avg_pool2d(target, out.shape[-2:])
        pooled = (out * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1e-3)
        likeness = F.normalize(projector(pooled), dim=1) @ vectors[rows].T / 0.07
        naming = F.cross_entropy(likeness, torch.arange(BATCH))
        masking = F.binary_cross_entropy_with_logits(logits, target)
        loss = naming + 3 * masking
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            log.info("step %d naming %.3f masking %.3f", step, naming.item(), masking.item())
        if step % 300 == 299:
            save_half(backbone, "backbone.safetensors")
    return backbone.eval()


def _tower() -> dict[str, torch.Tensor]:
    """Return the state dict of the tiny CLIP's image tower without its pooling head, float32."""
    state = load_file(WEIGHTS / "clip.safetensors")
    tower = {key.removeprefix("visual."): value.float() for key, value in state.items()
             if key.startswith("visual.")}  # fmt: skip
    return {key: value for key, value in tower.items() if not key.startswith("attnpool.")}


def _vectors(images: np.ndarray) -> torch.Tensor:
    """Return the CLIP vector of each image, (N, D) float32, unit L2 norm, with the mean removed.

    The mean is common to all images, so it says nothing about a single one.
    """
    embedder = EMBEDDERS["miniworld"](EmbedConfig())
    parts = [embedder.embed_images(list(images[i : i + 100])) for i in range(0, len(images), 100)]
    vectors = torch.from_numpy(np.concatenate(parts)).float()
    return F.normalize(vectors - vectors.mean(0), dim=1)


def _collection(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images in which the detector finds an object, and the objects' masks.

    Images are (N, H, W, 3) uint8 RGB, masks (N, H, W) uint8 in {0, 1}.
    """
    images = np.load(folder / "images.npy", mmap_mode="r")[:POOL].copy()
    detector = TinyUNet()
    detector.load_state_dict(load_file(WEIGHTS / "saliency.safetensors"))
    masks, confidence = own_masks(detector, images)
    pairs = zip(images, masks, strict=True)
    masks = np.stack([clean(bilateral_solver(*pair, SOLVER) > 0.5) for pair in pairs])
    share = masks.mean((1, 2))
    usable = (share > 0.03) & (share < 0.5) & (confidence > np.quantile(confidence, 0.3))
    log.info("%d of %d images have an object", usable.sum(), len(images))
    return images[usable], masks[usable]


def main() -> None:
    """Read the command line and train."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    save_half(train(arguments.folder, arguments.steps), "backbone.safetensors")


if __name__ == "__main__":
    main()
