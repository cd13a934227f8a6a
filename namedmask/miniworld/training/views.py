"""Draw the random views of an image batch that the label-free losses compare."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def crops(
    images: torch.Tensor,
    side: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.6, 1.0),
    turn: float = 0.15,
    flip: bool = True,
) -> torch.Tensor:
    """Return one random rotated crop per image, (B, C, side, side).

    `images` are (B, C, H, W). `scale` is the range of a crop's area over that of its image, and
    `turn` the largest angle in radians. With `flip`, half of the crops are mirrored.
    """
    count = len(images)
    zoom = _uniform(count, *scale, generator).sqrt()
    angle = _uniform(count, -turn, turn, generator)
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if flip else 1.0
    reach = 1 - zoom
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = zoom * angle.cos() * sign, -zoom * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = zoom * angle.sin() * sign, zoom * angle.cos()
    theta[:, 0, 2] = reach * _uniform(count, -1, 1, generator)
    theta[:, 1, 2] = reach * _uniform(count, -1, 1, generator)
    grid = F.affine_grid(theta, [count, images.shape[1], side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def recolor(
    images: torch.Tensor, generator: torch.Generator, strength: float = 1.0
) -> torch.Tensor:
    """Return recolored images, (B, 3, H, W) float32 in [0, 1], as the input.

    The channels are mixed, contrast and brightness change, and some images turn gray.
    """
    count = len(images)
    mix = torch.eye(3) + strength * 0.5 * torch.randn(count, 3, 3, generator=generator)
    mix = mix / mix.sum(-1, keepdim=True).clamp(min=0.5)
    mixed = torch.einsum("bij,bjhw->bihw", mix, images - 0.5)
    gray = mixed.mean(1, keepdim=True).expand_as(mixed)
    is_gray = (torch.rand(count, generator=generator) < 0.15 * strength)[:, None, None, None]
    mixed = torch.where(is_gray, gray, mixed)
    gain = _uniform(count, 1 - 0.4 * strength, 1 + 0.4 * strength, generator)[:, None, None, None]
    lift = strength * 0.15 * torch.randn(count, 1, 1, 1, generator=generator)
    return (mixed * gain + 0.5 + lift).clamp(0, 1)


def contrast_loss(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the symmetric InfoNCE loss of two sets of unit vectors (B, D), matched by row."""
    logits = first @ second.T / temperature
    target = torch.arange(len(first))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
