"""Rank the exact best images for each category, and pick the images of its archive."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.retrieve.pick import near_neighbors as near_neighbors
    from namedmask.retrieve.pick import next_to_try as next_to_try
    from namedmask.retrieve.pick import pick_archive as pick_archive
    from namedmask.retrieve.top_k import exact_top_k as exact_top_k
    from namedmask.retrieve.top_k import merge_top_k as merge_top_k

__all__ = ["exact_top_k", "merge_top_k", "near_neighbors", "next_to_try", "pick_archive"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "exact_top_k": "top_k",
        "merge_top_k": "top_k",
        "near_neighbors": "pick",
        "next_to_try": "pick",
        "pick_archive": "pick",
    },
)
