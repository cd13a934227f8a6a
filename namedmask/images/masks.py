"""Encode masks as COCO run-length codes (RLE), decode them, and draw masks from polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

MAX_MASK_PIXELS = 1 << 28
"""Largest number of pixels of a mask, which has a byte per pixel."""

MAX_COORDINATE = 1_000_000
"""Largest distance of a polygon's point from the image's corner along an axis, in pixels."""

MAX_OUTLINE = 4_000_000
"""Largest length of a polygon's outline in pixels; a pixel of it takes 40 bytes to draw."""


def encode_mask(mask: np.ndarray) -> bytes:
    """Return the COCO compressed RLE `counts` of an (H, W) bool mask."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def draw_regions(regions: Any, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of a COCO segmentation.

    `regions` is a list of polygons [[x, y, …], …] in pixels, or an RLE dict {size, counts}, in
    which counts are a list of run lengths or compressed. A polygon of fewer than three points has
    no area and is left out, if there is another one.

    Raises:
        ValueError: as `refuse_regions`.
    """
    if isinstance(regions, list):
        polygons = [polygon.tolist() for polygon in _polygons(regions, height, width)]
        encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        return decode_mask(encoded["counts"], height, width)
    return _filled(_runs_of(regions, height, width), height, width)


def refuse_regions(regions: Any, height: int, width: int) -> None:
    """Raise ValueError unless `draw_regions` can draw a COCO segmentation.

    Raises:
        ValueError: `regions` has neither form, no polygon has three points, a number is not finite
            or lies far outside of the image, the RLE does not fill a mask of this size, or the mask
            has more than `MAX_MASK_PIXELS` pixels.
    """
    if isinstance(regions, list):
        _polygons(regions, height, width)
    else:
        _refuse_to_fill(_runs_of(regions, height, width), height, width)


def _polygons(regions: list[Any], height: int, width: int) -> list[np.ndarray]:
    """Return the polygons with at least three points, (2 N,) float64 x, y, … each.

    pycocotools would allocate memory by the length of their outlines, or write behind it.
    """
    _refuse_size(height, width)
    polygons = [_numbers(line) for line in regions if not isinstance(line, list) or len(line) >= 6]
    if not polygons:
        raise ValueError("there is no polygon, or a polygon has fewer than three points.")
    for polygon in polygons:
        if len(polygon) % 2 or not np.abs(polygon).max() <= MAX_COORDINATE:  # also if it is NaN
            raise ValueError(
                "a polygon is not a list of x and y, or a coordinate is not within "
                f"{MAX_COORDINATE} pixels."
            )
        points = polygon.reshape(-1, 2)
        steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
        if steps.sum() > MAX_OUTLINE:
            raise ValueError(f"the outline of a polygon is longer than {MAX_OUTLINE} pixels.")
    return polygons


def _runs_of(regions: Any, height: int, width: int) -> np.ndarray:
    """Return the run lengths, (N,) int64, of an RLE dict."""
    size, counts = (regions.get(key) if isinstance(regions, dict) else None
                    for key in ("size", "counts"))  # fmt: skip
    if size != [height, width] or not isinstance(counts, list | str | bytes):
        raise ValueError(f"the regions are neither polygons nor RLE of {height} × {width}.")
    if isinstance(counts, list):
        numbers = _numbers(counts)
        if not (np.abs(numbers) <= MAX_MASK_PIXELS).all() or (numbers % 1).any():
            raise ValueError("RLE counts are not whole numbers of pixels.")
        return numbers.astype(np.int64)
    return _runs(counts.encode() if isinstance(counts, str) else counts)


def _numbers(values: Any) -> np.ndarray:
    """Return a list of numbers as (N,) float64."""
    try:
        numbers = np.asarray(values, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"a polygon or RLE holds something else than numbers: {error}") from None
    if numbers.ndim != 1 or not isinstance(values, list):
        raise ValueError("a polygon or RLE is not a list of numbers.")
    return numbers


def decode_mask(counts: bytes, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of COCO compressed RLE `counts`.

    Differs: if the counts are too short for the size, this function refuses them. pycocotools
    leaves the remaining pixels unset.

    Raises:
        ValueError: `counts` are not compressed RLE of a mask of this size.
    """
    return _filled(_runs(counts), height, width)


def _filled(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    _refuse_to_fill(runs, height, width)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _refuse_to_fill(runs: np.ndarray, height: int, width: int) -> None:
    _refuse_size(height, width)
    pixels = height * width
    # the largest run is compared too, since a sum of int64 can overflow
    if runs.min(initial=0) < 0 or runs.max(initial=0) > pixels or int(runs.sum()) != pixels:
        raise ValueError(f"RLE counts do not fill a mask of {height} × {width}.")


def _refuse_size(height: int, width: int) -> None:
    if min(height, width) < 0 or height * width > MAX_MASK_PIXELS:
        raise ValueError(
            f"a mask of {height} × {width}; expected at most {MAX_MASK_PIXELS} pixels."
        )


def _runs(counts: bytes) -> np.ndarray:
    """Return the lengths, (N,) int64, of the runs, which alternate between 0 and 1.

    Each character minus 48 has five bits of a number, low bits first. Bit 32 says that another
    character of the same number follows; bit 16 of a number's last character is the sign.

    Raises:
        ValueError: `counts` are not compressed RLE.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate(([0], ends + 1))[: len(ends)]
    sizes = ends - starts + 1
    if not len(ends) or ends[-1] != len(digits) - 1 or sizes.max() > 7 or digits.min() < 0:
        raise ValueError("RLE counts are truncated or not compressed RLE.")
    places = np.arange(len(digits)) - np.repeat(starts, sizes)
    runs = np.add.reduceat((digits & 31) << 5 * places, starts)
    runs -= np.where(digits[ends] & 16, 1 << 5 * sizes, 0)
    # from the fourth run on, a number is the difference from the run two places earlier
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
