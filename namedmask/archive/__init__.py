"""The archives: per category, the images selected for it, with their masks."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.archive.fill import fill_archives as fill_archives
    from namedmask.archive.samples import ArchiveSamples as ArchiveSamples
    from namedmask.archive.store import Archive as Archive

__all__ = ["Archive", "ArchiveSamples", "fill_archives"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"Archive": "store", "ArchiveSamples": "samples", "fill_archives": "fill"},
)
