"""Draw the surfaces of the mini world: scalar texture fields, colored with random colors.

The texture families form two groups. The models are trained on `SEEN` only. The web and the test
scenes also use `UNSEEN`, so that the models have to generalize there.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Field = Callable[[np.random.Generator, int, int], np.ndarray]
"""Texture family: a function (generator, height, width) -> (H, W) float32 in [0, 1]."""


def plain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a gentle ramp with slight noise, (H, W) float32 in [0, 1]."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = (np.cos(angle) * x / width + np.sin(angle) * y / height) * 0.3 + 0.35
    return _unit(ramp + rng.normal(0, 0.04, (height, width)))


def clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return value noise of four octaves, (H, W) float32 in [0, 1]."""
    field = np.zeros((height, width), np.float32)
    cells = rng.integers(2, 5)
    for octave in range(4):
        side = int(cells * 2**octave)
        coarse = rng.random((side + 1, side + 1), np.float32)
        field += _stretch(coarse, height, width) * 0.55**octave
    return _full(field)


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return straight, soft stripes at a random angle, (H, W) float32 in [0, 1]."""
    phase = _plane(rng, height, width, rng.uniform(0.25, 0.9))
    return _unit(0.5 + 0.7 * np.sin(phase))


def dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a rotated grid of dots, (H, W) float32 in [0, 1]."""
    u, v = _grid(rng, height, width, rng.uniform(7, 18))
    radius = rng.uniform(0.22, 0.4)
    return _unit((radius - np.hypot(u % 1 - 0.5, v % 1 - 0.5)) * 8 + 0.5)


def checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a rotated checkerboard, (H, W) float32 in [0, 1]."""
    u, v = _grid(rng, height, width, rng.uniform(7, 16))
    result: np.ndarray = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    return result


def cells(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return Voronoi cells, each with one gray value, (H, W) float32 in [0, 1]."""
    count = int(rng.integers(8, 24))
    seeds = rng.random((count, 2)).astype(np.float32) * (height, width)
    y, x = np.mgrid[0:height:2, 0:width:2].astype(np.float32)
    nearest = np.argmin((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2, -1)
    tones = rng.random(count, np.float32)
    result: np.ndarray = cv2.resize(
        tones[nearest], (width, height), interpolation=cv2.INTER_NEAREST
    )
    return result


def scratches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return short strokes on a plain ground, (H, W) float32 in [0, 1]."""
    field = np.full((height, width), 0.3, np.float32)
    length = rng.uniform(4, 14)
    for _ in range(int(rng.integers(60, 160))):
        x, y = rng.random(2) * (width, height)
        angle = rng.uniform(0, np.pi)
        end = (int(x + length * np.cos(angle)), int(y + length * np.sin(angle)))
        cv2.line(field, (int(x), int(y)), end, float(rng.random()), int(rng.integers(1, 3)))
    return field


def rings(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return rings around a point, like sawn wood, (H, W) float32 in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    center = rng.uniform(-0.5, 1.5, 2) * (height, width)
    radius = np.hypot(y - center[0], x - center[1])
    return _unit(
        0.5 + 0.6 * np.sin(radius * rng.uniform(0.25, 0.6) + 2 * clouds(rng, height, width))
    )


def bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return courses of bricks with mortar, (H, W) float32 in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    tall, wide = rng.uniform(8, 14), rng.uniform(16, 28)
    row = np.floor(y / tall)
    shifted = x + (row % 2) * wide / 2
    mortar = ((y % tall) < 2) | ((shifted % wide) < 2)
    tone = (np.sin(row * 12.9 + np.floor(shifted / wide) * 78.2) * 43758.5) % 1
    return np.where(mortar, 1.0, 0.5 * tone).astype(np.float32)


def marble(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return marble veins: a sine wave distorted by clouds, (H, W) float32 in [0, 1]."""
    phase = _plane(rng, height, width, rng.uniform(0.1, 0.25))
    return _unit(0.5 + 0.5 * np.sin(phase + 9 * clouds(rng, height, width)))


def waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return wavy stripes, (H, W) float32 in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    swing = rng.uniform(4, 9) * np.sin(x * rng.uniform(0.1, 0.25))
    return _unit(0.5 + 0.7 * np.sin((y + swing) * rng.uniform(0.3, 0.8)))


def triangles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a tiling of triangles with three gray values, (H, W) float32 in [0, 1]."""
    u, v = _grid(rng, height, width, rng.uniform(10, 22))
    upper = (u % 1 + v % 1 > 1).astype(np.float32)
    result: np.ndarray = ((np.floor(u) * 2 + np.floor(v) * 3 + upper) % 3 / 2).astype(np.float32)
    return result


def plaid(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return crossing bands, (H, W) float32 in [0, 1]."""
    u, v = _grid(rng, height, width, rng.uniform(10, 20))
    return _unit(0.25 + 0.35 * ((u % 1) < 0.4) + 0.35 * ((v % 1) < 0.4))


SEEN: tuple[Field, ...] = (plain, clouds, stripes, dots, cells, scratches, rings, bricks)
UNSEEN: tuple[Field, ...] = (checks, marble, waves, triangles, plaid)


def pick_field(rng: np.random.Generator, unseen: float) -> Field:
    """Return a family from `UNSEEN` with probability `unseen`, and otherwise one from `SEEN`."""
    group = UNSEEN if rng.random() < unseen else SEEN
    return group[int(rng.integers(len(group)))]


def pick_color(rng: np.random.Generator) -> np.ndarray:
    """Return an RGB color, (3,) float32 in [0, 255].

    Objects and backgrounds have the same distribution of colors.
    """
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.1, 0.9), rng.uniform(0.15, 0.95)]]])
    rgb: np.ndarray = cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)[0, 0] * 255
    return rgb


def paint(
    rng: np.random.Generator, height: int, width: int, unseen: float, contrast: float = 1.0
) -> np.ndarray:
    """Return a surface in two random colors, (H, W, 3) float32 in [0, 255], RGB.

    `unseen` is the probability of an unseen family; `contrast` scales the colors' difference.
    """
    field = pick_field(rng, unseen)(rng, height, width)[..., None]
    first, second = pick_color(rng), pick_color(rng)
    second = first + (second - first) * contrast
    surface: np.ndarray = first * (1 - field) + second * field
    return surface


def _plane(rng: np.random.Generator, height: int, width: int, frequency: float) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    result: np.ndarray = (np.cos(angle) * x + np.sin(angle) * y) * frequency + rng.uniform(0, 6)
    return result


def _grid(
    rng: np.random.Generator, height: int, width: int, step: float
) -> tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, np.pi / 2)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u = (np.cos(angle) * x + np.sin(angle) * y) / step
    v = (np.cos(angle) * y - np.sin(angle) * x) / step
    return u, v


def _stretch(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _unit(field: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.clip(field, 0, 1).astype(np.float32)
    return result


def _full(field: np.ndarray) -> np.ndarray:
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)
