"""Embed images and category names in one vector space."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.embed.open_clip import EMBEDDERS as EMBEDDERS
    from namedmask.embed.open_clip import Embedder as Embedder
    from namedmask.embed.stage import Embed as Embed
    from namedmask.embed.text import text_features as text_features

__all__ = ["EMBEDDERS", "Embed", "Embedder", "text_features"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"EMBEDDERS": "open_clip", "Embed": "stage", "Embedder": "open_clip", "text_features": "text"},
)
