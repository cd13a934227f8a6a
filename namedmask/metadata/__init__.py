"""Read tables of image urls, and clean their rows."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.metadata.clean import read_metadata as read_metadata

__all__ = ["read_metadata"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"read_metadata": "clean"},
)
