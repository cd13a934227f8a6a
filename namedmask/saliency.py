"""Image bytes → saliency map → pseudo-mask.

Columns in: image, status. Columns out: saliency (PNG of the map × 255), mask (COCO RLE), status
(`no_mask` where too little or nearly everything stands out, or the image does not decode).
Cost per 1,000 images of 150 px on one core: about 12 s with the `miniworld` detector.
Method: the map is thresholded at 0.5 at the image's own size (SelfMask, method of the paper).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from namedmask import images as imagelib
from namedmask.config import SaliencyConfig
from namedmask.errors import CheckpointError
from namedmask.plugins import resolve, torch_device
from namedmask.schema import OK, alive, require_columns, update

THRESHOLD = 0.5


class SaliencyDetector(Protocol):
    """Anything that tells how much each pixel stands out."""

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return for each image (H, W, 3) uint8 RGB its map (H, W) float32 in [0, 1]."""


def pseudo_mask(saliency: np.ndarray) -> np.ndarray:
    """Return the (H, W) bool mask of a saliency map (H, W) in [0, 1]."""
    mask: np.ndarray = saliency > THRESHOLD
    return mask


class TinyUNet(nn.Module):
    """A U-Net of 0.4 M parameters; forward (B, 3, S, S) normalised → logits (B, 1, S, S)."""

    SIDE = 112
    WIDTHS = (16, 32, 64, 96, 96)

    def __init__(self) -> None:
        super().__init__()
        ins = (3, *self.WIDTHS)
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, 2), _conv(b, b, 1)) for a, b in zip(ins, ins[1:], strict=False)
        )
        outs = self.WIDTHS[::-1]
        self.up = nn.ModuleList(_conv(a + b, b, 1) for a, b in zip(outs, outs[1:], strict=False))
        self.head = nn.Conv2d(self.WIDTHS[0], 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, S, S) float32."""
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
    """A `TinyUNet` as a detector: images are squeezed to its side, maps stretched back."""

    def __init__(self, weights: Path, device: torch.device, batch_size: int) -> None:
        self.net = TinyUNet()
        _load(self.net, weights)
        self.net.eval().to(device)
        self.device, self.batch_size = device, batch_size

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return for each image (H, W, 3) uint8 RGB its map (H, W) float32 in [0, 1]."""
        side, maps = TinyUNet.SIDE, []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            small = [imagelib.resize(image, side, side) for image in batch]
            tensor = imagelib.to_tensor(small + [small[0]] * (self.batch_size - len(small)))
            with torch.inference_mode():
                found = self.net(tensor.to(self.device)).sigmoid().cpu()
            for image, one in zip(batch, found, strict=False):
                size = image.shape[:2]
                maps.append(
                    F.interpolate(one[None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
                )
        return maps


def miniworld(config: SaliencyConfig) -> SaliencyDetector:
    """Return the mini world's own detector, trained without labels (miniworld/training)."""
    default = resources.files("namedmask.miniworld") / "weights" / "saliency.safetensors"
    path = Path(config.weights) if config.weights else Path(str(default))
    return UNetSaliency(path, torch_device(config.device, "saliency"), config.batch_size)


DETECTORS: dict[str, Callable[[SaliencyConfig], SaliencyDetector]] = {"miniworld": miniworld}


class Saliency:
    """Stage: adds the saliency map and the pseudo-mask; see the module."""

    name = "saliency"
    reads = ("image",)
    adds = ("saliency", "mask", "status")

    def __init__(self, config: SaliencyConfig) -> None:
        self.config = config
        self.detector = resolve("saliency detector", config.detector, DETECTORS)(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with saliency, mask and status; rows not ok pass untouched."""
        require_columns(table, self.reads, self.name)
        rows, photos, bad = [], [], {}
        for row in alive(table).tolist():
            try:
                photos.append(imagelib.decode(table["image"][row].as_py()))
                rows.append(row)
            except imagelib.BadImage as error:
                bad[row] = error.status
        maps = self.detector.saliency(photos) if photos else []
        masks = [pseudo_mask(one) for one in maps]
        values = {
            "saliency": [imagelib.encode_png(np.round(one * 255).astype(np.uint8)) for one in maps],
            "mask": [imagelib.encode_mask(mask) for mask in masks],
            "status": [OK if self._plausible(mask) else "no_mask" for mask in masks],
        }
        table = update(table, np.array(rows, np.int64), values)
        return update(table, np.array(list(bad), np.int64), {"status": list(bad.values())})

    def _plausible(self, mask: np.ndarray) -> bool:
        share = float(mask.mean())
        return self.config.min_share <= share <= self.config.max_share


def _conv(before: int, after: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def _load(net: nn.Module, weights: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        net.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"saliency.weights {weights} is not a checkpoint of {type(net).__name__}: {error}. "
            f"Leave it empty for the detector's own."
        ) from error
