"""The saliency stage computes a saliency map and a pseudo-mask for each image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from namedmask import images as imagelib
from namedmask.config import SaliencyConfig
from namedmask.config.registry import made
from namedmask.images.limits import Limits, within
from namedmask.saliency.detectors import DETECTORS
from namedmask.saliency.selfmask import SelfMask as SelfMask
from namedmask.schema.columns import alive, bury, require_columns, update
from namedmask.schema.status import NO_MASK, OK

THRESHOLD = 0.5
"""Saliency above which a pixel belongs to the pseudo-mask."""


def pseudo_mask(saliency: np.ndarray) -> np.ndarray:
    """Return the (H, W) bool mask of a saliency map (H, W) float32 in [0, 1]."""
    mask: np.ndarray = saliency > THRESHOLD
    return mask


BYTES_PER_PIXEL = 8
"""Bytes per pixel of an image in work: three of the image, four of its map, one of its mask."""


def _bytes_of(decoded: np.ndarray | str) -> int:
    """Return the bytes that an image takes with its map and its mask; a status takes none."""
    if isinstance(decoded, str):
        return 0
    height, width = decoded.shape[:2]
    return int(height) * int(width) * BYTES_PER_PIXEL


class Saliency:
    """The stage that adds the saliency map and the pseudo-mask.

    Columns in: `image` (encoded bytes) and `status`.

    Columns out: `saliency` (PNG of the map × 255), `mask` (COCO RLE of the pseudo-mask) and
    `status`: `no_mask` if the mask covers less than `saliency.min_share` or more than
    `saliency.max_share` of the image; `not_an_image`, `truncated`, `too_many_pixels` or
    `too_many_scans` if the image cannot be decoded. `image`, `saliency` and `mask` of such a row
    become null.

    Cost per 1,000 images on one thread of a Xeon at 2.8 GHz: 37 s with the detector `miniworld`;
    about 3.5 hours with `selfmask` at an aspect ratio of 4:3 and any size, because it resizes all
    images to 512 pixels (use a GPU); with `tokencut` at 375 × 500 pixels, 350 s with DINO's
    ViT-S/16 and 1,400 s with its ViT-S/8.

    Method: the map of SelfMask is thresholded at 0.5 at the image's own size (method section 2).
    Departures are described with each detector, in detectors.py and tokencut.py.
    """

    name = "saliency"
    reads = ("image",)
    adds = ("saliency", "mask", "status")
    limits = Limits()

    def __init__(self, config: SaliencyConfig) -> None:
        self.config = config
        self.detector = made("saliency detector", config.detector, DETECTORS, config, ("saliency",))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with `saliency`, `mask` and `status`; rows that are not ok have no pixels.

        Raises:
            SchemaError: `table` lacks `image` or `status`.
        """
        require_columns(table, self.reads, self.name)
        rows = alive(table)
        results: list[tuple[bytes | None, bytes | None, str]] = []
        decoded = (self._decode(table["image"][row].as_py()) for row in rows.tolist())
        for part in within(decoded, _bytes_of, self.limits.decoded_bytes):
            results += self._masked(part)
        maps, masks, statuses = zip(*results, strict=True) if results else ((), (), ())
        table = update(table, rows, {"saliency": maps, "mask": masks, "status": statuses})
        return bury(table, ("image", "saliency", "mask"))

    def _decode(self, data: bytes) -> np.ndarray | str:
        """Return the image, (H, W, 3) uint8 RGB, or the status of a row that cannot be decoded."""
        try:
            return imagelib.decode(data, self.limits.max_pixels)
        except imagelib.BadImage as error:
            return error.status

    def _masked(
        self, decoded: list[np.ndarray | str]
    ) -> Iterator[tuple[bytes | None, bytes | None, str]]:
        """Yield the encoded map, the encoded mask and the status of each image or status."""
        photos = [photo for photo in decoded if not isinstance(photo, str)]
        maps = iter(self.detector.saliency(photos) if photos else [])
        for photo in decoded:
            if isinstance(photo, str):
                yield None, None, photo
                continue
            saliency = next(maps)
            mask = pseudo_mask(saliency)
            png = imagelib.encode_png(np.rint(saliency * 255).astype(np.uint8))
            yield png, imagelib.encode_mask(mask), OK if self._plausible(mask) else NO_MASK

    def _plausible(self, mask: np.ndarray) -> bool:
        share = float(mask.mean())
        return self.config.min_share <= share <= self.config.max_share
