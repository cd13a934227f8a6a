"""Prefetch the next item of an iterator in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch_one(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items; a thread prefetches the next item while the current one is in use.

    The iteration ends at the first item that is None. A generator is closed at the end, in that
    thread.
    """
    with ThreadPoolExecutor(1, "namedmask-prefetch") as thread:
        try:
            upcoming = thread.submit(next, items, None)
            while (item := upcoming.result()) is not None:
                upcoming = thread.submit(next, items, None)
                yield item
        finally:
            if isinstance(items, Generator):
                thread.submit(items.close)
