"""Decode, check and shrink JPEGs with libjpeg-turbo directly, mainly for the fetch stage.

Decoding takes most of the CPU time of a crawl, and with Pillow it would take 1.5 times as long.
libjpeg-turbo is also stricter than Pillow and reports any fault in the data. A file with a fault,
and any file that is not a plain JPEG, is decoded by Pillow. Therefore every file gets the status
that images.decode gives it.

Cost per 1,000 JPEGs of 32 kB and 250 to 640 pixels on one cloud core: 0.3 s to check them, 1.3 s to
shrink those above 384 pixels (two in three) to 384; see docs/results.md.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from namedmask import images

REDUCTIONS = (8, 4, 2, 1)
"""Numbers by which libjpeg divides the sides while decoding. It is slower with other ratios."""


def to_store(
    data: bytes, longest_side: int = 0, max_pixels: int = 50_000_000, quality: int = 95
) -> tuple[bytes, int, int]:
    """Return (bytes, height, width) of an image to store, after all its bytes have been decoded.

    If a side is longer than `longest_side` pixels, the bytes are an upright JPEG that is shrunk to
    this limit. Otherwise, or if `longest_side` is 0, they are `data` itself. Height and width are
    those of the upright image to store, in pixels.

    Raises:
        BadImage: the image cannot be decoded; see images.decode.
    """
    image = images.opened(data, max_pixels)
    width, height = image.size
    small = images.fitted(width, height, longest_side)
    if small == image.size:
        # a decode at any size reads every byte, and the smallest size computes the fewest pixels
        if _decoded(data, image, REDUCTIONS[0]) is None:
            images.decode(data, max_pixels, max(1, max(width, height) // 16))
        sideways = images.orientation_of(image) in images.SIDEWAYS
        return (data, width, height) if sideways else (data, height, width)
    pixels = _decoded(data, image, max(width, height) // longest_side)
    if pixels is None:
        pixels = images.decode(data, max_pixels, longest_side)
    else:
        stored = Image.fromarray(_shrunk(pixels, *small))
        pixels = np.asarray(images.turned(stored, images.orientation_of(image)))
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return jpeg, *pixels.shape[:2]


def decode_coarse(data: bytes, least_side: int, max_pixels: int = 50_000_000) -> np.ndarray:
    """Return the same image as images.decode_coarse, (H, W, 3) uint8 RGB, but faster for a JPEG.

    Raises:
        BadImage: the image cannot be decoded; see images.decode.
    """
    image = images.opened(data, max_pixels)
    pixels = _decoded(data, image, images.coarse_part(image, least_side))
    if pixels is None:
        return images.decode_coarse(data, least_side, max_pixels)
    orientation = images.orientation_of(image)
    if orientation == 1:
        return pixels
    return np.array(images.turned(Image.fromarray(pixels), orientation))


def pixels_of(data: bytes) -> float:
    """Return the number of pixels that the header of a JPEG gives; infinity for other files."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return math.inf
    return float(height * width)


def _decoded(data: bytes, image: Image.Image, reduction: int) -> np.ndarray | None:
    """Return the pixels of a JPEG as stored, (H, W, 3) uint8 RGB, or None.

    The sides are divided by the largest of `REDUCTIONS` that is at most `reduction`. None means
    that the file is not a plain JPEG or has any fault.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    factor = next(number for number in REDUCTIONS if number <= reduction)
    width, height = (-(-side // factor) for side in image.size)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, min_factor=factor, min_width=width, min_height=height
        )
    except ValueError:
        return None
    return pixels


def _shrunk(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return `pixels`, (H, W, 3) uint8, at a smaller size.

    Up to a ratio of 2, the method is cubic interpolation after a slight blur against aliasing. Its
    result is closer to Lanczos than that of averaging over areas of odd sizes (39.3 against 38.8 dB
    on photos of 640 pixels), and it takes half the time.
    """
    scale = max(pixels.shape[1] / width, pixels.shape[0] / height)
    if scale > 2:
        return images.resize(pixels, height, width)
    side_weight = 0.2 * (scale - 1)
    if side_weight > 0.01:
        weights = np.array([side_weight, 1 - 2 * side_weight, side_weight], np.float32)
        pixels = cv2.sepFilter2D(pixels, -1, weights, weights)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
