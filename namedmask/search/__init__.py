"""Text search over the images of a run's store."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.search.index import SearchIndex as SearchIndex
    from namedmask.search.make import open_index as open_index

__all__ = ["SearchIndex", "open_index"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"SearchIndex": "index", "open_index": "make"},
)
