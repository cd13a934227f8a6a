"""Compute saliency maps and pseudo-masks from images, without labels."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.saliency.detectors import DETECTORS as DETECTORS
    from namedmask.saliency.detectors import SaliencyDetector as SaliencyDetector
    from namedmask.saliency.selfmask import SelfMask as SelfMask
    from namedmask.saliency.stage import Saliency as Saliency
    from namedmask.saliency.stage import pseudo_mask as pseudo_mask

__all__ = ["DETECTORS", "Saliency", "SaliencyDetector", "SelfMask", "pseudo_mask"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DETECTORS": "detectors",
        "Saliency": "stage",
        "SaliencyDetector": "detectors",
        "SelfMask": "selfmask",
        "pseudo_mask": "stage",
    },
)
