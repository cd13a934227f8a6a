"""Category experts: small segmenters that refine the masks of the archives."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.experts.expert import train_expert as train_expert
    from namedmask.experts.refine import refine_archive as refine_archive

__all__ = ["refine_archive", "train_expert"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"refine_archive": "refine", "train_expert": "expert"},
)
