"""Draw label maps over their images, with regions tinted, outlined and named."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from namedmask.errors import InputError
from namedmask.schema.columns import BACKGROUND, IGNORE

FILL = 0.45
"""Opacity, in [0, 1], of a label's color over the image."""

NAMED_SHARE = 0.02
"""Share of the image from which on a region is named even if its label has a larger region."""

SMALLEST_NAMED_SHARE = 0.001
"""Share of the image below which even the largest region of a label is not named."""

GOLDEN_TURN = 0.618034
"""Step of the hue, in turns of the color wheel, between consecutive label ids."""

Box: TypeAlias = tuple[float, float, float, float]
"""x, y, width, height in pixels."""


def overlay(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the image with its regions tinted, outlined and named, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) label ids. Background (0) is not tinted; ignored pixels (65535) become white.
        names: the name of label id i + 1 is `names[i]`.

    Raises:
        InputError: the sizes differ, or a label id has no name.
    """
    _check(image, labels, names)
    out = image.copy()
    for label_id in _present(labels):
        region = labels == label_id
        out[region] = (1 - FILL) * out[region] + FILL * np.array(color_of(label_id))
    out[labels == IGNORE] = 255
    for label_id in _present(labels):
        draw_outline(out, labels == label_id, color_of(label_id))
    return _draw_names(out, labels, names)


def draw_outline(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Draw the outline of an (H, W) bool mask into `image`, (H, W, 3) uint8 RGB, in place.

    The line has dark edges. `color` is RGB in [0, 255].
    """
    width = max(1, round(min(mask.shape) / 120))
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, (20, 20, 20), width + 2)
    cv2.drawContours(image, contours, -1, color, width)


@cache
def color_of(label_id: int) -> tuple[int, int, int]:
    """Return the fixed color of a label id, RGB in [0, 255]; neighboring ids differ clearly."""
    hue = (0.02 + label_id * GOLDEN_TURN) % 1.0
    lightness, saturation = ((0.55, 0.9), (0.42, 0.75), (0.68, 0.85))[label_id % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _check(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    if image.shape != (*labels.shape, 3):
        raise InputError(
            f"an overlay needs an (H, W, 3) image and its (H, W) label map; got {image.shape} and "
            f"{labels.shape}. Resize one of them."
        )
    known = labels[labels != IGNORE]
    if known.size and known.max() > len(names):
        raise InputError(
            f"label id {known.max()} has no name; expected ids up to {len(names)}, the number of "
            "names. Use the categories that the label map was made with."
        )


def _present(labels: np.ndarray) -> list[int]:
    return [int(i) for i in np.unique(labels) if i not in (BACKGROUND, IGNORE)]


def _draw_names(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    size = min(40, max(11, min(labels.shape) // 16))
    taken: list[Box] = []
    for label_id in _present(labels):
        for center in _name_places(labels == label_id):
            _draw_name(draw, picture.size, size, center, names[label_id - 1], label_id, taken)
    return np.array(picture)


def _name_places(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the innermost pixel (x, y) of each region of an (H, W) bool mask that gets a name."""
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA] / mask.size
    largest = 1 + int(np.argmax(areas[1:]))
    for region in range(1, count):
        least = SMALLEST_NAMED_SHARE if region == largest else NAMED_SHARE
        if areas[region] >= least:
            inside = np.pad((regions == region).astype(np.uint8), 1)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(int(depth.argmax()), mask.shape)
            yield int(x), int(y)


def _draw_name(
    draw: ImageDraw.ImageDraw,
    picture_size: tuple[int, int],
    size: float,
    center: tuple[int, int],
    name: str,
    label_id: int,
    taken: list[Box],
) -> None:
    """Write a name into a box near `center` that is inside the image and off the `taken` boxes."""
    font: Any = ImageFont.load_default(size)
    size *= min(1.0, 0.96 * picture_size[0] / max(1.0, draw.textlength(name, font)))
    font = ImageFont.load_default(max(6, size))
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
    pad = max(2, (bottom - top) // 4)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(0, center[0] - width / 2), max(0, picture_size[0] - width))
    y = min(max(0, center[1] - height / 2), max(0, picture_size[1] - height))
    places = ((x, y + step * height, width, height) for step in (0, 1, -1, 2, -2, 3, -3))
    box = next((place for place in places if _is_free(place, picture_size, taken)),
               (x, y, width, height))  # fmt: skip
    taken.append(box)
    color = color_of(label_id)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    edges = (x, box[1], x + width, box[1] + height)
    draw.rounded_rectangle(edges, pad, fill=color, outline=(20, 20, 20))
    draw.text((x + pad - left, box[1] + pad - top), name, "white" if dark else "black", font=font)


def _is_free(box: Box, picture_size: tuple[int, int], taken: Sequence[Box]) -> bool:
    inside = 0 <= box[1] <= picture_size[1] - box[3]
    return inside and not any(_overlap(box, other) for other in taken)


def _overlap(box: Box, other: Box) -> bool:
    return all(box[a] < other[a] + other[a + 2] and other[a] < box[a] + box[a + 2] for a in (0, 1))
