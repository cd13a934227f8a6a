"""Encode masks as COCO run-length codes (RLE), decode them, and draw masks from polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_mask(mask: np.ndarray) -> bytes:
    """Return the COCO compressed RLE `counts` of an (H, W) bool mask."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def draw_regions(regions: Any, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of a COCO segmentation.

    `regions` is a list of polygons [[x, y, …], …] in pixels, or an RLE dict {size, counts}, in
    which counts are a list of run lengths or compressed.

    Raises:
        ValueError: `regions` has neither form, a polygon has fewer than three points, or the RLE
            does not fit a mask of this size.
    """
    if isinstance(regions, list):
        if not regions or not all(isinstance(line, list) and len(line) >= 6 for line in regions):
            raise ValueError("there is no polygon, or a polygon has fewer than three points.")
        encoded = coco_mask.merge(coco_mask.frPyObjects(regions, height, width))
    elif isinstance(regions, dict) and regions.get("size") == [height, width]:
        listed = isinstance(regions.get("counts"), list)
        encoded = coco_mask.frPyObjects(regions, height, width) if listed else regions
    else:
        raise ValueError(f"the regions are neither polygons nor RLE of {height} × {width}.")
    mask: np.ndarray = decode_mask(_bytes(encoded["counts"]), height, width)
    return mask


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts


def decode_mask(counts: bytes, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of COCO compressed RLE `counts`.

    Differs: if the counts are too short for the size, this function refuses them. pycocotools
    leaves the remaining pixels unset.

    Raises:
        ValueError: `counts` are not compressed RLE of a mask of this size.
    """
    runs = _runs(counts)
    if runs.min(initial=0) < 0 or int(runs.sum()) != height * width:
        raise ValueError(f"RLE counts do not fill a mask of {height} × {width}.")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


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
