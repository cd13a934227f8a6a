"""Download images by url, and verify that the bytes are images."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.fetch.stage import Fetch as Fetch

__all__ = ["Fetch"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"Fetch": "stage"},
)
