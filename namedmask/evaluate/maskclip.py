"""MaskCLIP, a baseline that compares every position of an image with category names by CLIP.

The last attention layer of CLIP's image tower gathers one vector from all positions. MaskCLIP skips
this attention and applies the layer's value and output projections to each position, which gives
each position a vector to compare with text vectors. Position embeddings are interpolated to the
size of the image.

Method: `maskclip_head` and `vit` of MaskCLIP. The image has a shorter side of 512 pixels (a longer
one of up to 2048) and is normalized with ImageNet's mean and deviation, although CLIP was trained
with its own. Not known: the factor of the cosines before the softmax; the threshold of 0.25 applies
after it. CLIP's factor of 100 is assumed, because without a factor the best of 20 categories stays
at 0.07. Differs: sides are rounded to whole cells, whereas the original cuts off the rest; the
weights of the smoothing are not negative and sum to 1, so that the results remain probabilities.
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
from namedmask.config.registry import torch_device
from namedmask.embed.open_clip import OpenClip, open_embedder
from namedmask.embed.text import text_features
from namedmask.errors import ConfigError

THRESHOLD = 0.25
"""Probability below which a pixel is background. Method: 0.25, the best on VOC2012 train."""

SETTINGS = (
    "model", "weights", "shorter_side", "normalization", "temperature", "denoise", "smooth",
)  # fmt: skip
"""Keys of `[baselines]` that MaskCLIP uses."""

LONGER_SIDE = 2048
"""Largest longer side of an image in pixels. Method: 2048."""

RESNET_STRIDE = 32
"""Distance in pixels between neighboring positions of a ResNet tower."""


class DenseClip:
    """An open_clip model whose image tower returns a vector for every position.

    Raises:
        ConfigError: the model is not of open_clip, or its image tower is not supported.
        CheckpointError: the model's weights are missing or do not fit the model.
        InputError: the device is missing.
    """

    def __init__(self, config: BaselinesConfig, device: str) -> None:
        wanted = EmbedConfig.model_validate(
            {"model": config.model, "weights": config.weights, "device": device}
        )
        self._clip = open_embedder(wanted)
        if not isinstance(self._clip, OpenClip) or not is_open(self._clip.model.visual):
            raise ConfigError(
                f"baselines.model '{config.model}' has no image tower that MaskCLIP can read; "
                "expected a ResNet or plain ViT of CLIP. Set baselines.model to one of them, such "
                "as 'open_clip:RN50-quickgelu' or 'open_clip:ViT-B-16-quickgelu'."
            )
        self._tower: nn.Module = self._clip.model.visual
        self._device = torch_device(device, "evaluate")
        as_clip = config.normalization == "clip"
        self._mean = self._clip.mean.flatten().tolist() if as_clip else images.IMAGENET_MEAN
        self._std = self._clip.std.flatten().tolist() if as_clip else images.IMAGENET_STD
        self.stride = stride_of(self._tower)

    def texts(self, queries: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return one vector per query, (C, D) float32, unit L2 norm."""
        return torch.from_numpy(text_features(self._clip, queries, templates)).to(self._device)

    def features(self, pictures: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return a vector and a key per position, (B, D, h, w) and (B, E, h, w) float32.

        Vectors and keys have unit L2 norm. `pictures` are B images (H, W, 3) uint8 RGB of one size.
        """
        with torch.inference_mode():
            batch = images.to_tensor(pictures, self._mean, self._std).to(self._device)
            return dense_features(self._tower, batch)


def is_open(tower: nn.Module) -> bool:
    """Return whether `dense_features` supports this image tower."""
    if isinstance(tower, VisionTransformer):
        blocks = tower.transformer.resblocks
        return tower.attn_pool is None and all(type(b) is ResidualAttentionBlock for b in blocks)
    return isinstance(tower, ModifiedResNet)


def stride_of(tower: nn.Module) -> int:
    """Return the distance in pixels between neighboring positions of an image tower."""
    return tower.patch_size[0] if isinstance(tower, VisionTransformer) else RESNET_STRIDE


def dense_features(tower: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return a vector and a key per position, (B, D, h, w) and (B, E, h, w) float32.

    Vectors and keys have unit L2 norm. `batch` is (B, 3, H, W) float32, normalized; H and W are
    multiples of the stride.
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
    """Return the position embeddings for a grid of this size, (1 + h·w, D). Method: bicubic."""
    table: Tensor = tower.positional_embedding
    grid = table[1:].T.unflatten(1, tower.grid_size)[None]
    grid = F.interpolate(grid, size, mode="bicubic", align_corners=False)
    return torch.cat((table[:1], grid[0].flatten(1).T))


def fit(image: np.ndarray, shorter_side: int, stride: int) -> np.ndarray:
    """Return the image resized to a shorter side, with sides rounded to multiples of `stride`.

    Both images are (H, W, 3) uint8. The longer side is limited to about `LONGER_SIDE`. If
    `shorter_side` is 0, the sides are only rounded.
    """
    height, width = image.shape[:2]
    wanted = shorter_side / min(height, width) if shorter_side else 1.0
    scale = min(wanted, LONGER_SIDE / max(height, width)) if shorter_side else wanted
    sides = (max(1, round(side * scale / stride)) * stride for side in (height, width))
    return images.resize(image, *sides)


class MaskClip:
    """The MaskCLIP baseline, which maps an image to the probability of each category per pixel."""

    def __init__(
        self, clip: DenseClip, queries: Sequence[str], templates: Sequence[str],
        config: BaselinesConfig,
    ) -> None:  # fmt: skip
        self._clip, self._config = clip, config
        self._texts = clip.texts(queries, templates)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Return the probabilities of each category, (C, H, W) float32, without background.

        `image` is (H, W, 3) uint8 RGB. The probabilities sum to 1 at each pixel.
        """
        config = self._config
        small = fit(image, config.shorter_side, self._clip.stride)
        vectors, keys = self._clip.features([small])
        return probabilities(vectors[0], keys[0], self._texts, image.shape[:2], config)


def probabilities(
    vectors: Tensor, keys: Tensor, texts: Tensor, size: Sequence[int], config: BaselinesConfig
) -> Tensor:
    """Return the probabilities of each category, (C, H, W) float32.

    Args:
        vectors: (D, h, w) float32, one per position, unit L2 norm.
        keys: (E, h, w) float32, likewise; only the smoothing needs them.
        texts: (C, D) float32, unit L2 norm.
        size: H and W of the result. The logits are interpolated, or with smoothing the
            probabilities.
        config: the `baselines` section.
    """
    logits = config.temperature * torch.einsum("dhw,cd->chw", vectors, texts)
    if config.denoise:
        present = logits.softmax(dim=0).amax(dim=(1, 2)) >= config.denoise
        logits = torch.where(present[:, None, None], logits, -100 * config.temperature)
    if not config.smooth:
        return _interpolate(logits, size).softmax(dim=0)
    return _interpolate(smooth(logits.softmax(dim=0), keys, config.smooth), size)


def smooth(scores: Tensor, keys: Tensor, least: float) -> Tensor:
    """Return the probabilities `scores` (C, h, w) with a mean at each uncertain position.

    A position is uncertain if its best probability is below `least`. The mean is over all
    positions, weighted by the cosines of their keys (E, h, w); negative cosines count as 0.
    """
    flat, flat_keys = scores.flatten(1), keys.flatten(1)
    weights = (flat_keys.T @ flat_keys).clamp(min=0)
    means = flat @ (weights / weights.sum(dim=1, keepdim=True)).T
    return torch.where(flat.amax(dim=0) < least, means, flat).view_as(scores)


def _interpolate(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]
