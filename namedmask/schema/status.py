"""Every status by its word: what it says of a row, and the failure class that decides what follows.

A row has one status. `ok` rows go on; every other row keeps its place as a tombstone. A new status
is one line here. Of an answer with an HTTP code, the class follows from the code.

Failure classes:

* dead: nothing is there; asking again would be in vain.
* transient: may go well another time; the only class that is tried again by itself.
* forbidden: somebody refuses, the server (http_403) or the rule about addresses.
* opted_out: the owner does not want the image used.
* too_big, not_an_image: something is there that cannot be used.
* changed: an image is there, and not the one that the metadata speaks of.
* crashed: a fault of this program, or a process lost.
"""

from __future__ import annotations

from dataclasses import dataclass

DEAD = "dead"
TRANSIENT = "transient"
FORBIDDEN = "forbidden"

FAILURE_CLASSES = (
    DEAD, TRANSIENT, FORBIDDEN, "opted_out", "too_big", "not_an_image", "changed", "crashed"
)  # fmt: skip
"""The classes that `--retry` takes, as listed above."""


@dataclass(frozen=True)
class Status:
    """One row of the table of statuses."""

    word: str
    meaning: str
    failure_class: str  # empty where it is no failure of a fetch
    is_finding: bool  # found by looking at an image that did come: counts as no failed row


STATUSES: dict[str, Status] = {}
"""The table of statuses, by word; `http_<code>` is not listed."""


def _status(word: str, meaning: str, failure_class: str = "", *, finding: bool = False) -> str:
    STATUSES[word] = Status(word, meaning, failure_class, finding)
    return word


OK = _status("ok", "good so far")

# what the metadata says
BAD_URL = _status("bad_url", "the url is none, or of a scheme that is not fetched", DEAD)
DUPLICATE_URL = _status("duplicate_url", "the same url came in an earlier row or rank")
UNSAFE = _status("unsafe", "not safe for work, by the metadata or by the safety head")
BAD_SIMILARITY = _status("bad_similarity", "image and caption are too far apart, or too close")
WATERMARK = _status("watermark", "probably has a watermark")
TOO_SMALL = _status("too_small", "a side is shorter than metadata.min_side")
BAD_ASPECT = _status("bad_aspect", "the long side is too many times the short one")

# what a fetch ends with, beside http_<code>
DNS = _status("dns", "the host has no address", DEAD)
DNS_FAILED = _status("dns_failed", "the name server did not answer", TRANSIENT)
REFUSED = _status("refused", "the host takes no connection", DEAD)
UNREACHABLE = _status("unreachable", "there is no route to the host", TRANSIENT)
RESET = _status("reset", "the connection broke", TRANSIENT)
TIMEOUT = _status("timeout", "fetch.timeout_s passed", TRANSIENT)
BAD_TLS = _status("bad_tls", "the certificate cannot be trusted", DEAD)
BAD_RESPONSE = _status("bad_response", "the answer is not HTTP", DEAD)
TOO_MANY_REDIRECTS = _status("too_many_redirects", "more than fetch.max_redirects", DEAD)
NO_FILE = _status("no_file", "there is no such file below fetch.file_root", DEAD)
BLOCKED_ADDRESS = _status(
    "blocked_address", "the address is of this machine or its network, or not allowed", FORBIDDEN
)
OPTED_OUT = _status("opted_out", "the server's headers refuse machine learning", "opted_out")
ROBOTS_TXT = _status("robots_txt", "the site's robots.txt forbids it", "opted_out")
TOO_BIG = _status("too_big", "more than fetch.max_bytes", "too_big")
TOO_MANY_PIXELS = _status("too_many_pixels", "more than fetch.max_pixels", "too_big")
TOO_MANY_SCANS = _status("too_many_scans", "a JPEG made to take long to decode", "too_big")
NOT_AN_IMAGE = _status("not_an_image", "of no format that the decoder reads", "not_an_image")
TRUNCATED = _status("truncated", "an image that ends too early", "not_an_image")
EMPTY = _status("empty", "no byte came", "not_an_image")
CONTENT_CHANGED = _status(
    "content_changed", "not the image that its metadata or its published vector was made of",
    "changed", finding=True,
)  # fmt: skip
CRASHED = _status("crashed", "took the process of a stage with it, or hit a fault", "crashed")

# what vectors and pixels say
NOT_FINITE = _status("not_finite", "its vector has a number that is not finite")
VIOLENT = _status("violent", "its vector is near that of violence")
HAS_FACE = _status("has_face", "a face can be seen", finding=True)
NO_MASK = _status("no_mask", "too little or nearly everything stands out", finding=True)

# what becomes of a candidate
PENDING = _status("pending", "nobody has fetched and checked it yet")
NEAR_DUPLICATE = _status("near_duplicate", "too close to a better-ranked accepted candidate")
SURPLUS = _status("surplus", "good, and the archive was full")
UNTRIED = _status("untried", "no round came to it: the archive was full or the rounds were over")
NEGATIVE = _status("negative", "closer to a negative query than to the category's queries")
VETOED = _status("vetoed", "named in the category's `vetoed`")
BLOCKED = _status("blocked", "of a url, a host or a picture that the config blocks")

KEPT = _status("kept", "a good row of the store, passed by while others are tried again")

FINDINGS = tuple(word for word, status in STATUSES.items() if status.is_finding)
"""Statuses that a look at the pixels gives to an image that did come."""

_FORBIDDEN_CODES = (401, 402, 403, 407, 451)
_TRANSIENT_CODES = (408, 425, 429)


def of_http(code: int) -> str:
    """Return the status of a row whose server answered with this HTTP code."""
    return f"http_{code}"


def http_code_of(status: str) -> int:
    """Return the HTTP code in a status `http_<code>`; 0 where it is another."""
    digits = status.removeprefix("http_")
    return int(digits) if digits != status and digits.isdecimal() else 0


def failure_class_of(status: str) -> str:
    """Return the failure class of a status; "" for `ok` and for what only other stages say."""
    if status in STATUSES:
        return STATUSES[status].failure_class
    code = http_code_of(status)
    if code in _FORBIDDEN_CODES:
        return FORBIDDEN
    if code in _TRANSIENT_CODES or code // 100 == 5:
        return TRANSIENT
    return DEAD if code else ""
