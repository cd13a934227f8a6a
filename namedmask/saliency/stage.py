"""Image bytes → saliency map → pseudo-mask.

Columns in: image, status. Columns out: saliency (PNG of the map × 255), mask (COCO RLE), status
(`no_mask` where too little or nearly everything stands out, or the image does not decode).
Cost per 1,000 images on one thread of a Xeon at 2.8 GHz: 37 s in the `miniworld` detector;
about 3.5 hours with `selfmask` at 4 : 3, of any size, for it works at 512 px: give it a GPU;
350 s with `tokencut` on DINO's ViT-S/16 at 375 × 500, 1,400 s on its ViT-S/8.
Method: the map is thresholded at 0.5 at the image's own size (SelfMask, method of the paper).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from namedmask import images as imagelib
from namedmask.config import SaliencyConfig
from namedmask.config.registry import resolve
from namedmask.saliency.detectors import DETECTORS
from namedmask.saliency.selfmask import SelfMask as SelfMask
from namedmask.schema.columns import alive, bury, require_columns, update
from namedmask.schema.status import NO_MASK, OK

THRESHOLD = 0.5


def pseudo_mask(saliency: np.ndarray) -> np.ndarray:
    """Return the (H, W) bool mask of a saliency map (H, W) in [0, 1]."""
    mask: np.ndarray = saliency > THRESHOLD
    return mask


class Saliency:
    """Stage: adds the saliency map and the pseudo-mask; see the module."""

    name = "saliency"
    reads = ("image",)
    adds = ("saliency", "mask", "status")

    def __init__(self, config: SaliencyConfig) -> None:
        self.config = config
        self.detector = resolve("saliency detector", config.detector, DETECTORS)(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with saliency, mask and status; rows not ok pass untouched."""
        require_columns(table, self.reads, self.name)
        rows, photos, bad = [], [], {}
        for row in alive(table).tolist():
            try:
                photos.append(imagelib.decode(table["image"][row].as_py()))
                rows.append(row)
            except imagelib.BadImage as error:
                bad[row] = error.status
        maps = self.detector.saliency(photos) if photos else []
        masks = [pseudo_mask(one) for one in maps]
        values: dict[str, list[object]] = {
            "saliency": [imagelib.encode_png(np.round(one * 255).astype(np.uint8)) for one in maps],
            "mask": [imagelib.encode_mask(mask) for mask in masks],
            "status": [OK if self._plausible(mask) else NO_MASK for mask in masks],
        }
        table = update(table, np.array(rows, np.int64), values)
        table = update(table, np.array(list(bad), np.int64), {"status": list(bad.values())})
        return bury(table, ("image", "saliency", "mask"))

    def _plausible(self, mask: np.ndarray) -> bool:
        share = float(mask.mean())
        return self.config.min_share <= share <= self.config.max_share
