"""CLIP asked at every place of an image, and the baseline that this is: MaskCLIP.

The last attention of the image tower, which gathers one vector from all places, is left out; its
value and output projections are applied to each place, so that each has a vector that compares with
texts. Position tables are interpolated to the image's size.

Method: `maskclip_head` and `vit` of MaskCLIP; image with its shorter side 512 (longer up to 2048)
in the mean and deviation of ImageNet, though CLIP was trained with its own. Not known: by what the
paper multiplied cosines before the softmax whose threshold is 0.25; CLIP's own 100 is assumed, for
without a factor the best of 20 categories stays at 0.07. Differs: sides are rounded to whole cells,
where the original cuts the rest off; weights of the smoothing are not negative and sum to 1, so
that probabilities stay some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from namedmask import images
from namedmask.config import BaselinesConfig, EmbedConfig
from namedmask.config.registry import resolve, torch_device
from namedmask.embed.open_clip import EMBEDDERS, OpenClip
from namedmask.embed.text import text_features
from namedmask.errors import ConfigError

THRESHOLD = 0.25
"""Background below it. Method: 0.25, the best on VOC2012 train."""

SETTINGS = (
    "model", "weights", "shorter_side", "normalization", "temperature", "denoise", "smooth",
)  # fmt: skip
"""Keys of `[baselines]` that MaskCLIP follows."""

LONGER_SIDE = 2048
"""Pixels at most for the longer side. Method: 2048."""

RESNET_STRIDE = 32


class DenseClip:
    """An open_clip model whose image tower answers for every place.

    Raises:
        ConfigError: no model of open_clip, or one whose image tower cannot be opened so.
        CheckpointError: as `embed.Embed`.
        InputError: the device is not there.
    """

    def __init__(self, config: BaselinesConfig, device: str) -> None:
        wanted = EmbedConfig.model_validate(
            {"model": config.model, "weights": config.weights, "device": device}
        )
        self._clip = resolve("embedder", config.model, EMBEDDERS)(wanted)
        if not isinstance(self._clip, OpenClip) or not is_open(self._clip.model.visual):
            raise ConfigError(
                f"baselines.model '{config.model}' has no image tower that MaskCLIP can read; "
                "expected a ResNet or plain ViT of CLIP. Name one: 'open_clip:RN50-quickgelu', "
                "'open_clip:ViT-B-16-quickgelu'."
            )
        self._tower: nn.Module = self._clip.model.visual
        self._device = torch_device(device, "evaluate")
        own = config.normalization == "clip"
        self._mean = self._clip.mean.flatten().tolist() if own else images.IMAGENET_MEAN
        self._std = self._clip.std.flatten().tolist() if own else images.IMAGENET_STD
        self.stride = stride_of(self._tower)

    def texts(self, queries: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return one vector a query, (C, D) float32, unit L2 norm."""
        return torch.from_numpy(text_features(self._clip, queries, templates)).to(self._device)

    def features(self, pictures: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return vectors (B, D, h, w) and keys (B, E, h, w) of every place, unit L2 norm.

        `pictures` are (H, W, 3) uint8 RGB of one size.
        """
        with torch.inference_mode():
            batch = images.to_tensor(pictures, self._mean, self._std).to(self._device)
            return dense_features(self._tower, batch)


def is_open(tower: nn.Module) -> bool:
    """Return whether `dense_features` can read this image tower."""
    if isinstance(tower, VisionTransformer):
        blocks = tower.transformer.resblocks
        return tower.attn_pool is None and all(type(b) is ResidualAttentionBlock for b in blocks)
    return isinstance(tower, ModifiedResNet)


def stride_of(tower: nn.Module) -> int:
    """Return the pixels between two places of an image tower."""
    return tower.patch_size[0] if isinstance(tower, VisionTransformer) else RESNET_STRIDE


def dense_features(tower: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors (B, D, h, w) and keys (B, E, h, w) of every place, unit L2 norm.

    `batch` is (B, 3, H, W) float32, normalized, its sides multiples of the stride.
    """
    read = _read_transformer if isinstance(tower, VisionTransformer) else _read_resnet
    size = [side // stride_of(tower) for side in batch.shape[2:]]
    vectors, keys = (
        F.normalize(tokens.float(), dim=2).transpose(1, 2).unflatten(2, size)
        for tokens in read(tower, batch)
    )
    return vectors, keys


def _read_resnet(tower: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    for part in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        batch = part(batch)
    tokens, pool = batch.flatten(2).transpose(1, 2), tower.attnpool
    return pool.c_proj(pool.v_proj(tokens)), pool.k_proj(tokens)


def _read_transformer(tower: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    patches = tower.conv1(batch)
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat((tower.class_embedding.expand(len(tokens), 1, -1), tokens), dim=1)
    tokens = tower.ln_pre(tokens + _positions(tower, patches.shape[2:]))
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    attention = last.attn
    projected = F.linear(last.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    _, keys, values = projected.chunk(3, dim=-1)
    tokens = tokens + last.ls_1(attention.out_proj(values))
    tokens = tokens + last.ls_2(last.mlp(last.ln_2(tokens)))
    vectors = tower.ln_post(tokens) @ tower.proj
    return vectors[:, 1:], keys[:, 1:]


def _positions(tower: Any, size: torch.Size) -> Tensor:
    """Return the position table for a grid of this size, (1 + h·w, D). Method: bicubic."""
    table: Tensor = tower.positional_embedding
    grid = table[1:].T.unflatten(1, tower.grid_size)[None]
    grid = F.interpolate(grid, size, mode="bicubic", align_corners=False)
    return torch.cat((table[:1], grid[0].flatten(1).T))


def fit(image: np.ndarray, shorter_side: int, stride: int) -> np.ndarray:
    """Return the image brought to a shorter side, its sides rounded to multiples of `stride`.

    (H, W, 3) uint8 both; 0 leaves the size but for the rounding.
    """
    height, width = image.shape[:2]
    wanted = shorter_side / min(height, width) if shorter_side else 1.0
    scale = min(wanted, LONGER_SIDE / max(height, width)) if shorter_side else wanted
    sides = (max(1, round(side * scale / stride)) * stride for side in (height, width))
    return images.resize(image, *sides)


class MaskClip:
    """The baseline: image in, probability of every category at every pixel out."""

    def __init__(
        self, clip: DenseClip, queries: Sequence[str], templates: Sequence[str],
        config: BaselinesConfig,
    ) -> None:  # fmt: skip
        self._clip, self._config = clip, config
        self._texts = clip.texts(queries, templates)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Return the probabilities of each category, (C, H, W) float32, without background."""
        config = self._config
        small = fit(image, config.shorter_side, self._clip.stride)
        vectors, keys = self._clip.features([small])
        return probabilities(vectors[0], keys[0], self._texts, image.shape[:2], config)


def probabilities(
    vectors: Tensor, keys: Tensor, texts: Tensor, size: Sequence[int], config: BaselinesConfig
) -> Tensor:
    """Return the probabilities of each category, (C, H, W) float32.

    Args:
        vectors: (D, h, w) of every place, unit L2 norm.
        keys: (E, h, w), the same; only smoothing asks for them.
        texts: (C, D), unit L2 norm.
        size: H and W to interpolate to; logits are, or smoothed probabilities.
    """
    logits = config.temperature * torch.einsum("dhw,cd->chw", vectors, texts)
    if config.denoise:
        seen = logits.softmax(dim=0).amax(dim=(1, 2)) >= config.denoise
        logits = torch.where(seen[:, None, None], logits, -100 * config.temperature)
    if not config.smooth:
        return _grow(logits, size).softmax(dim=0)
    return _grow(smoothed(logits.softmax(dim=0), keys, config.smooth), size)


def smoothed(found: Tensor, keys: Tensor, least: float) -> Tensor:
    """Return probabilities (C, h, w); those of unsure places are a mean over places alike.

    A place is unsure whose best probability is below `least`; alike is a positive cosine of keys
    (E, h, w), which is also the weight.
    """
    flat, alike = found.flatten(1), keys.flatten(1)
    alike = (alike.T @ alike).clamp(min=0)
    means = flat @ (alike / alike.sum(dim=1, keepdim=True)).T
    return torch.where(flat.amax(dim=0) < least, means, flat).view_as(found)


def _grow(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]
