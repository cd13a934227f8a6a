"""A cache with expiring entries and a limited total weight, shared by all batches of a process."""

from __future__ import annotations

import threading
import time
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class _Entry(NamedTuple, Generic[V]):
    value: V
    expires_at: float
    weight: int


class TtlCache(Generic[V]):
    """Thread-safe cache of values by string key.

    Every entry has its own time to live. If a new entry would raise the total weight above
    `capacity`, the oldest entries are dropped.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: dict[str, _Entry[V]] = {}
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        """Return the value of `key`, or None if there is no entry or the entry has expired."""
        entry = self._entries.get(key)
        return entry.value if entry and time.monotonic() < entry.expires_at else None

    def put(self, key: str, value: V, seconds: float, weight: int = 1) -> None:
        """Cache `value` for `seconds`; a value heavier than `capacity` is not cached."""
        with self._lock:
            self._drop(key)
            if weight > self.capacity:
                return
            while self._weight + weight > self.capacity:
                self._drop(next(iter(self._entries)))
            self._entries[key] = _Entry(value, time.monotonic() + seconds, weight)
            self._weight += weight

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()
            self._weight = 0

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        self._weight -= entry.weight if entry else 0
