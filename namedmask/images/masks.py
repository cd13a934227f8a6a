"""Masks as COCO run-length codes: encoded, decoded, drawn from polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    pass


def encode_mask(mask: np.ndarray) -> bytes:
    """Return the COCO compressed RLE `counts` of an (H, W) bool mask."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def draw_regions(regions: Any, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of what COCO calls a segmentation.

    That is polygons [[x, y, …], …], or {size, counts} with counts as a list or compressed.

    Raises:
        ValueError: `regions` are none of these, or of another size.
    """
    if isinstance(regions, list):
        if not regions or not all(isinstance(one, list) and len(one) >= 6 for one in regions):
            raise ValueError("a polygon of fewer than three points.")
        encoded = coco_mask.merge(coco_mask.frPyObjects(regions, height, width))
    elif isinstance(regions, dict) and regions.get("size") == [height, width]:
        listed = isinstance(regions.get("counts"), list)
        encoded = coco_mask.frPyObjects(regions, height, width) if listed else regions
    else:
        raise ValueError(f"neither polygons nor RLE of {height} × {width}.")
    mask: np.ndarray = decode_mask(_bytes(encoded["counts"]), height, width)
    return mask


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts


def decode_mask(counts: bytes, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of COCO compressed RLE `counts`.

    Differs: pycocotools leaves pixels beyond short counts unset; here such counts are refused.

    Raises:
        ValueError: `counts` are not those of a mask of this size.
    """
    runs = _runs(counts)
    if runs.min(initial=0) < 0 or int(runs.sum()) != height * width:
        raise ValueError(f"RLE counts do not fill a mask of {height} × {width}.")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(counts: bytes) -> np.ndarray:
    # 5 bits a character from 48 on, low bits first, 32 where one follows, 16 in the last: negative
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate(([0], ends + 1))[: len(ends)]
    sizes = ends - starts + 1
    if not len(ends) or ends[-1] != len(digits) - 1 or sizes.max() > 7 or digits.min() < 0:
        raise ValueError("RLE counts are cut or no compressed RLE at all.")
    places = np.arange(len(digits)) - np.repeat(starts, sizes)
    runs = np.add.reduceat((digits & 31) << 5 * places, starts)
    runs -= np.where(digits[ends] & 16, 1 << 5 * sizes, 0)
    # from the fourth on a run is written as its difference from the one before the last
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
