"""The saliency detectors (SelfMask, TokenCut, the mini world's tiny U-Net) and their registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from namedmask import images as imagelib
from namedmask.config import SaliencyConfig
from namedmask.config.registry import torch_device
from namedmask.errors import ConfigError
from namedmask.saliency.selfmask import SelfMask as SelfMask
from namedmask.saliency.selfmask import best_mask, load_selfmask, padded_size
from namedmask.saliency.tokencut import grid_of, key_features, load_dino, object_patches
from namedmask.weights.catalog import path_of
from namedmask.weights.tensors import load_strict, read_tensors


class SaliencyDetector(Protocol):
    """A saliency detector predicts how much each pixel of an image stands out."""

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return the map, (H, W) float32 in [0, 1], of each image (H, W, 3) uint8 RGB."""


class TinyUNet(nn.Module):
    """A U-Net of 0.4 M parameters for square images."""

    SIDE = 112
    """Side of the training images in pixels."""
    WIDTHS = (16, 32, 64, 96, 96)
    """Number of channels of each level, from fine to coarse."""

    def __init__(self) -> None:
        super().__init__()
        ins = (3, *self.WIDTHS)
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, 2), _conv(b, b, 1)) for a, b in itertools.pairwise(ins)
        )
        outs = self.WIDTHS[::-1]
        self.up = nn.ModuleList(_conv(a + b, b, 1) for a, b in itertools.pairwise(outs))
        self.head = nn.Conv2d(self.WIDTHS[0], 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, S, S) float32 for normalized images (B, 3, S, S) float32 RGB."""
        x, skips = images, []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        logits = self.head(x)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


class UNetSaliency:
    """A detector around a `TinyUNet`, which processes each image at several sizes.

    Each image is resized to squares of all `SIDES`, without regard to its aspect ratio, and the
    logits are resized back. The logits of all sides and of the mirrored images are averaged.
    """

    SIDES = (80, TinyUNet.SIDE, 144)
    """Sides, in pixels, of the squares; chosen on 210 drawn images."""
    SHIFT = 0.6
    """Offset of the logits, which are too low without it; chosen on the same 210 images."""

    def __init__(self, weights: Path, device: torch.device, batch_size: int) -> None:
        self.net = TinyUNet()
        load_strict(self.net, read_tensors(weights), weights, "the detector 'miniworld'")
        self.net.eval().to(device)
        self.device, self.batch_size = device, batch_size

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return the map, (H, W) float32 in [0, 1], of each image (H, W, 3) uint8 RGB."""
        maps = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            by_side = [self._logits(batch, side) for side in self.SIDES]
            for image, *squares in zip(batch, *by_side, strict=True):
                total = torch.zeros(1, 1, *image.shape[:2])
                for logits in squares:  # one after the other, for photos of many megapixels
                    total += F.interpolate(
                        logits[None], image.shape[:2], mode="bilinear", align_corners=False
                    )
                saliency = total.div_(len(squares)).add_(self.SHIFT).sigmoid_()
                maps.append(saliency[0, 0].numpy())
        return maps

    @torch.inference_mode()
    def _logits(self, images: list[np.ndarray], side: int) -> torch.Tensor:
        """Return (B, 1, side, side) float32 on the CPU; the network gets a padded, full batch."""
        small = [imagelib.resize(image, side, side) for image in images]
        batch = imagelib.to_tensor(small + [small[0]] * (self.batch_size - len(small)))
        batch = batch.to(self.device)
        logits = (self.net(batch) + self.net(batch.flip(-1)).flip(-1)) / 2
        return cast(torch.Tensor, logits[: len(images)].cpu())


class SelfMaskSaliency:
    """A detector around the method's network, SelfMask.

    The network pads images to whole patches, and the padding changes the map. Therefore a batch
    contains only images of the same padded size, and the map of an image does not depend on its
    batch.

    Method: the shorter side becomes 512 pixels; the map is that of the query with the highest
    objectness (method section 2).
    Differs: the longer side is at most `LONGEST` times 512 pixels (the method has no limit), which
    gives at most 12,288 patches; a longer image is shrunk further with its aspect ratio kept. The
    map is interpolated to the image's size before the threshold, where the method resizes the mask
    after the threshold.
    """

    SIDE = 512
    """Pixels of the shorter side of an image in the network."""
    LONGEST = 3
    """Largest ratio of the longer side to `SIDE`."""

    def __init__(self, weights: Path, device: torch.device, batch_size: int = 1) -> None:
        self.net = load_selfmask(weights).to(device)
        self.device, self.batch_size = device, batch_size

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return the map, (H, W) float32 in [0, 1], of each image (H, W, 3) uint8 RGB."""
        longest = self.SIDE * self.LONGEST
        sizes = [_working_size(image.shape[:2], self.SIDE, longest) for image in images]
        buckets: dict[tuple[int, int], list[int]] = {}
        for number, size in enumerate(sizes):
            buckets.setdefault(padded_size(size), []).append(number)
        maps: dict[int, np.ndarray] = {}
        for padded, numbers in buckets.items():
            for start in range(0, len(numbers), self.batch_size):
                chosen = numbers[start : start + self.batch_size]
                batch = [_at_size(images[number], sizes[number], padded) for number in chosen]
                padded_maps = self._padded_maps(torch.stack(batch))
                for number, padded_map in zip(chosen, padded_maps, strict=True):
                    height, width = sizes[number]
                    full = padded_map[None, None, :height, :width]
                    full = F.interpolate(full, images[number].shape[:2], mode="bilinear")
                    maps[number] = full[0, 0].clamp(0, 1).numpy()
        return [maps[number] for number in range(len(images))]

    @torch.inference_mode()
    def _padded_maps(self, batch: torch.Tensor) -> torch.Tensor:
        """Return maps, (B, H, W) float32 in [0, 1], of (B, 3, H, W); H and W are whole patches."""
        masks, objectness = self.net(batch.to(self.device))
        return best_mask(masks, objectness, *batch.shape[-2:]).cpu()


def _working_size(size: tuple[int, int], side: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with a shorter side of `side`, or smaller to fit into `longest`."""
    height, width = size
    scale = min(side / min(size), longest / max(size))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _at_size(image: np.ndarray, size: tuple[int, int], padded: tuple[int, int]) -> torch.Tensor:
    """Return an (H, W, 3) uint8 image as (3, *padded) float32: resized, normalized, zero-padded."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    tensor = imagelib.to_tensor([pixels[0].permute(1, 2, 0).numpy()])[0]
    return F.pad(tensor, (0, padded[1] - size[1], 0, padded[0] - size[0]))


def miniworld(config: SaliencyConfig) -> SaliencyDetector:
    """Return the mini world's own detector, trained without labels by miniworld/training."""
    default = resources.files("namedmask.miniworld") / "weights" / "saliency.safetensors"
    path = path_of(config.weights) if config.weights else Path(str(default))
    return UNetSaliency(path, torch_device(config.device, "saliency"), config.batch_size)


def selfmask(config: SaliencyConfig) -> SaliencyDetector:
    """Return the method's detector, SelfMask, with the checkpoint of `saliency.weights`.

    Raises:
        ConfigError: `saliency.weights` is empty.
        CheckpointError: the checkpoint is not valid; see `load_selfmask`.
    """
    if not config.weights:
        raise ConfigError(
            "saliency.weights is empty; detector 'selfmask' needs its checkpoint, which is not "
            "shipped. Run 'namedmask weights fetch selfmask' and set saliency.weights to "
            "'selfmask'."
        )
    device = torch_device(config.device, "saliency")
    # on a CPU, batches are not faster, and the rounding would depend on the other images
    batch_size = config.batch_size if device.type == "cuda" else 1
    return SelfMaskSaliency(path_of(config.weights), device, batch_size)


class TokenCutSaliency:
    """A detector around TokenCut; its map is 1 in the patches of the object and 0 elsewhere.

    Each image is processed alone, at the size that `grid_of` gives. See tokencut.py for the method.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.dino = load_dino(weights).to(device)
        self.patch = int(self.dino.patch_embed.patch_size[0])  # type: ignore[union-attr, index]
        self.device = device

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return the map, (H, W) float32 of 0 and 1, of each image (H, W, 3) uint8 RGB."""
        return [self._map(image) for image in images]

    def _map(self, image: np.ndarray) -> np.ndarray:
        size: tuple[int, int] = image.shape[:2]
        rows, columns = grid = grid_of(size, self.patch)
        resized = imagelib.resize(image, rows * self.patch, columns * self.patch)
        with torch.inference_mode():
            batch = imagelib.to_tensor([resized]).to(self.device)
            features = key_features(self.dino, batch)[0].cpu().numpy()
        patches = object_patches(features, grid)
        return imagelib.resize(patches, *size, nearest=True).astype(np.float32)


def tokencut(config: SaliencyConfig) -> SaliencyDetector:
    """Return TokenCut with the DINO ViT-S of `saliency.weights`.

    Raises:
        ConfigError: `saliency.weights` is empty.
        CheckpointError: the checkpoint is not valid; see `load_dino`.
    """
    if not config.weights:
        raise ConfigError(
            "saliency.weights is empty; detector 'tokencut' needs a ViT-S of DINO. Run 'namedmask "
            "weights fetch dino-vits16' and set saliency.weights to 'dino-vits16'."
        )
    return TokenCutSaliency(path_of(config.weights), torch_device(config.device, "saliency"))


DETECTORS: dict[str, Callable[[SaliencyConfig], SaliencyDetector]] = {
    "miniworld": miniworld,
    "selfmask": selfmask,
    "tokencut": tokencut,
}
"""Factory of each saliency detector, by its name in `saliency.detector`."""


def _conv(before: int, after: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
