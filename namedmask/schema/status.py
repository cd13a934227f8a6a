"""The class of every status that a fetch can give: what to do with the row is decided by it alone.

* dead: nothing is there; asking again would be in vain.
* transient: may go well another time; the only one that is tried again.
* blocked: somebody says no, the server (http_403) or the rule about addresses.
* opted_out: the owner does not want it used.
* too_big, not_an_image: something is there that cannot be used.
* changed: an image is there, and not the one that the metadata speaks of.
* crashed: a fault of this program, or a process lost.
"""

from __future__ import annotations

CONTENT_CHANGED = "content_changed"
"""Status of an image that is not the one its metadata or its published vector was made of."""

REASONS: dict[str, tuple[str, ...]] = {
    "dead": ("dns", "refused", "bad_tls", "bad_response", "too_many_redirects", "no_file",
             "bad_url"),
    "transient": ("timeout", "reset", "dns_failed", "unreachable", "http_408", "http_425",
                  "http_429"),
    "blocked": ("blocked_address", "http_401", "http_402", "http_403", "http_407", "http_451"),
    "opted_out": ("opted_out", "robots_txt"),
    "too_big": ("too_big", "too_many_pixels", "too_many_scans"),
    "not_an_image": ("not_an_image", "truncated", "empty"),
    "changed": (CONTENT_CHANGED,),
    "crashed": ("crashed",),
}  # fmt: skip
"""The statuses of each class by name; http_5xx are transient, all other http_<code> dead."""

_OF_STATUS = {status: reason for reason, statuses in REASONS.items() for status in statuses}


def reason_of(status: str) -> str:
    """Return the class of a status, a key of REASONS; "" for ok and what only other stages say."""
    if status.startswith("http_") and status not in _OF_STATUS:
        return "transient" if status.startswith("http_5") else "dead"
    return _OF_STATUS.get(status, "")


VERDICTS = ("has_face", "no_mask", "content_changed")
"""What a look at its pixels says of an image that did come: no failure."""

BAD_URL = "bad_url"

NEGATIVE = "negative"
"""Status of a candidate closer to one of its category's negative queries than to its queries."""

VETOED = "vetoed"
"""Status of a candidate that the config names as unwanted for its category."""

BLOCKED = "blocked"
"""Status of a candidate from a url or a host that the config blocks for its category."""

CRASHED = "crashed"
"""Status of a row that takes the process of a stage with it."""

PENDING = "pending"
"""Status of a candidate that nobody has fetched and judged yet."""

NEAR_DUPLICATE = "near_duplicate"

HAS_FACE = "has_face"

SURPLUS = "surplus"
"""Status of a good candidate that came after the archive was full."""

UNTRIED = "untried"
"""Status of a candidate that no round came to: its archive was full, or the rounds were over."""

OK = "ok"

DUPLICATE_URL = "duplicate_url"
"""Status of a row or candidate whose url came before."""
