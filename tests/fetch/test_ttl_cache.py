"""Answers are kept for their time and within their room."""

import threading

from namedmask.fetch import ttl_cache as remembered
from namedmask.fetch.ttl_cache import TtlCache


def test_remembered_value_is_gone_after_its_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(remembered.time, "monotonic", lambda: now[0])
    kept = TtlCache[str](10)
    kept.put("a", "x", seconds=5)
    now[0] = 104.9
    assert kept.get("a") == "x"
    now[0] = 105.0
    assert kept.get("a") is None
    assert kept.get("b") is None


def test_remembered_oldest_go_when_the_room_is_full():
    kept = TtlCache[int](3)
    for number, key in enumerate("abca"):
        kept.put(key, number, 60)
    kept.put("d", 4, 60)
    assert [kept.get(key) for key in "abcd"] == [3, None, 2, 4]
    kept.put("e", 5, 60, weight=3)
    assert [kept.get(key) for key in "acde"] == [None, None, None, 5]
    kept.put("f", 6, 60, weight=4)
    assert [kept.get(key) for key in "ef"] == [5, None]
    kept.clear()
    kept.put("g", 7, 60, weight=3)
    assert kept.get("g") == 7


def test_remembered_filled_by_many_threads_stays_within_its_room():
    kept = TtlCache[int](50)

    def fill(start):
        for number in range(2000):
            kept.put(str(start + number % 70), number, 60)

    threads = [threading.Thread(target=fill, args=(start,)) for start in range(0, 200, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept._entries) == kept._weight == 50
