"""Answers kept for a while and within bounds, for all batches of a process."""

from __future__ import annotations

import threading
import time
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class _Kept(NamedTuple, Generic[V]):
    value: V
    until: float
    weight: int


class TtlCache(Generic[V]):
    """Values by key; the oldest go when the weights are above `room`. Safe between threads."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: dict[str, _Kept[V]] = {}
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        """Return the value, or None when there is none or its time is over."""
        kept = self._kept.get(key)
        return kept.value if kept and time.monotonic() < kept.until else None

    def put(self, key: str, value: V, seconds: float, weight: int = 1) -> None:
        """Keep `value` for `seconds`; one heavier than all the room is not kept."""
        with self._lock:
            self._drop(key)
            if weight > self.room:
                return
            while self._weight + weight > self.room:
                self._drop(next(iter(self._kept)))
            self._kept[key] = _Kept(value, time.monotonic() + seconds, weight)
            self._weight += weight

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._weight = 0

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        self._weight -= kept.weight if kept else 0
