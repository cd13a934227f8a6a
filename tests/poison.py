"""Parts that die of certain pictures: a native crash, and more memory than there is."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tests import toys

SEGFAULT = (255, 255, 0)
HUNGER = (0, 255, 255)
HUNGRY_BYTES = 30 << 30


def poisoned(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Return the picture with a corner of a color that kills."""
    picture = picture.copy()
    picture[-13:-1, -13:-1] = color
    return picture


def _has(image: np.ndarray, color: tuple[int, int, int]) -> bool:
    corner = image[-11:-3, -11:-3].reshape(-1, 3).mean(0)
    return bool(np.abs(corner - np.array(color)).max() < 40)


def maybe_die(image: np.ndarray) -> None:
    if _has(image, SEGFAULT):
        ctypes.string_at(0)
    if _has(image, HUNGER):
        np.ones(HUNGRY_BYTES, np.uint8)


class PoisonedEmbedder(toys.ThumbnailEmbedder):
    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        for image in images:
            maybe_die(image)
        return super().embed_images(images)


class PoisonedSaliency(toys.BrightSaliency):
    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        for image in images:
            maybe_die(image)
        return super().saliency(images)


def embedder(config: Any) -> PoisonedEmbedder:
    return PoisonedEmbedder()


def saliency_detector(config: Any) -> PoisonedSaliency:
    return PoisonedSaliency()
