"""The table of row statuses: the meaning of each status, and its failure class.

Each row has one status. A row with status `ok` goes on to the next stage; every other row stays in
its table as a tombstone. A new status needs one line in this module. The failure class of a status
`http_<code>` follows from the code.

Failure classes:

* dead: the image cannot be downloaded from its url, and a retry would not change that.
* transient: a later attempt may succeed. The fetch stage retries only this class.
* forbidden: the server (for example with http_403) or the address check refuses the download.
* opted_out: the owner does not want the image to be used.
* too_big, not_an_image: the url has content, but not of a kind that can be used.
* changed: the url has content, but not the image that the metadata or the published vector
  describes.
* crashed: this program has a fault, or a process was lost.
"""

from __future__ import annotations

from dataclasses import dataclass

DEAD = "dead"
TRANSIENT = "transient"
FORBIDDEN = "forbidden"

FAILURE_CLASSES = (
    DEAD, TRANSIENT, FORBIDDEN, "opted_out", "too_big", "not_an_image", "changed", "crashed"
)  # fmt: skip
"""Failure classes that `--retry` accepts, described at the top of this module."""


@dataclass(frozen=True)
class Status:
    """One entry of the table of statuses."""

    word: str
    meaning: str
    failure_class: str  # empty if the status is not a fetch failure
    is_finding: bool  # true if the status was derived from a downloaded image; it is no failure


STATUSES: dict[str, Status] = {}
"""The table of statuses, by word, without the statuses `http_<code>`."""


def _status(word: str, meaning: str, failure_class: str = "", *, finding: bool = False) -> str:
    STATUSES[word] = Status(word, meaning, failure_class, finding)
    return word


OK = _status("ok", "the row has passed every stage so far")

# statuses from the metadata
BAD_ROW = _status("bad_row", "the line of the table cannot be split into the columns of its header")
BAD_URL = _status("bad_url", "the url is malformed, or its scheme is not supported", DEAD)
DUPLICATE_URL = _status("duplicate_url", "the same url occurs in an earlier row or rank")
UNSAFE = _status("unsafe", "not safe for work, according to the metadata or the safety filter")
BAD_SIMILARITY = _status("bad_similarity", "image and caption are too different or too similar")
WATERMARK = _status("watermark", "the image probably has a watermark")
TOO_SMALL = _status("too_small", "a side is shorter than metadata.min_side")
BAD_ASPECT = _status("bad_aspect", "the ratio of the sides is above metadata.max_aspect")

# statuses of a fetch, in addition to http_<code>
DNS = _status("dns", "the host has no address", DEAD)
DNS_FAILED = _status("dns_failed", "the name server did not answer", TRANSIENT)
REFUSED = _status("refused", "the host refuses connections", DEAD)
UNREACHABLE = _status("unreachable", "there is no route to the host", TRANSIENT)
RESET = _status("reset", "the connection broke", TRANSIENT)
TIMEOUT = _status("timeout", "the download took longer than fetch.timeout_s", TRANSIENT)
BAD_TLS = _status("bad_tls", "the TLS certificate cannot be trusted", DEAD)
PROXY_FAILED = _status("proxy_failed", "the proxy of fetch.proxy gave no connection", TRANSIENT)
BAD_RESPONSE = _status("bad_response", "the answer is not valid HTTP", DEAD)
TOO_MANY_REDIRECTS = _status("too_many_redirects", "more hops than fetch.max_redirects", DEAD)
NO_FILE = _status("no_file", "there is no such file below fetch.file_root", DEAD)
NO_PERMISSION = _status("no_permission", "the file or folder may not be read", FORBIDDEN)
UNREADABLE = _status("unreadable", "the disk fails to read the file or folder", TRANSIENT)
OUTSIDE_ROOT = _status(
    "outside_root", "the file, or the file that a link leads to, is not below fetch.file_root",
    FORBIDDEN,
)  # fmt: skip
BLOCKED_ADDRESS = _status("blocked_address", "the address is not on the public web", FORBIDDEN)
OPTED_OUT = _status("opted_out", "an X-Robots-Tag of fetch.opt_out_tags is set", "opted_out")
OPTED_OUT_CONTENT_SIGNAL = _status(
    "opted_out_content_signal", "a Content-Signal says ai-train=no", "opted_out"
)
OPTED_OUT_CONTENT_USAGE = _status(
    "opted_out_content_usage", "a Content-Usage says train-ai=n", "opted_out"
)
OPTED_OUT_TDM = _status(
    "opted_out_tdm", "the rights of text and data mining are reserved", "opted_out"
)
ROBOTS_TXT = _status("robots_txt", "the site's robots.txt forbids the download", "opted_out")
CRAWL_DELAY = _status(
    "crawl_delay", "the Crawl-delay of robots.txt adds up to more than fetch.max_pause_s", TRANSIENT
)
TOO_BIG = _status("too_big", "the file has more bytes than fetch.max_bytes", "too_big")
TOO_MANY_PIXELS = _status("too_many_pixels", "the image is larger than fetch.max_pixels", "too_big")
TOO_MANY_SCANS = _status(
    "too_many_scans", "the JPEG has so many scans that decoding would take too long", "too_big"
)
NOT_AN_IMAGE = _status("not_an_image", "the decoder does not support the format", "not_an_image")
TRUNCATED = _status("truncated", "the image file is truncated or damaged", "not_an_image")
EMPTY = _status("empty", "the body has no bytes", "not_an_image")
CONTENT_CHANGED = _status(
    "content_changed", "not the image that the metadata or the published vector describes",
    "changed", finding=True,
)  # fmt: skip
CRASHED = _status("crashed", "the row crashed a stage or its process", "crashed")

# statuses from vectors and pixels
NOT_FINITE = _status("not_finite", "the vector has a number that is not finite")
VIOLENT = _status("violent", "the vector is close to a description of violence")
HAS_FACE = _status("has_face", "the image shows a face", finding=True)
BAD_MASK = _status("bad_mask", "the stored mask does not fit the image")
NO_MASK = _status("no_mask", "the mask is too small or nearly fills the image", finding=True)

# statuses of a candidate
PENDING = _status("pending", "the candidate has not been fetched and checked yet")
NEAR_DUPLICATE = _status("near_duplicate", "nearly equals a better-ranked accepted candidate")
SURPLUS = _status("surplus", "the candidate passed all checks, but the archive was full")
UNTRIED = _status("untried", "not checked, because the archive was full or the last round was over")
NEGATIVE = _status("negative", "closer to a negative query than to the category's own queries")
VETOED = _status("vetoed", "the category's `vetoed` lists the candidate")
BLOCKED = _status("blocked", "the config blocks the url, the host or the picture")

KEPT = _status("kept", "an ok row of the store, skipped while other rows are retried")

FINDINGS = tuple(word for word, status in STATUSES.items() if status.is_finding)
"""Statuses derived from a downloaded image; their rows do not count as failed."""

_FORBIDDEN_CODES = (401, 402, 403, 407, 451)
_TRANSIENT_CODES = (408, 425, 429)


def of_http(code: int) -> str:
    """Return the status of a row whose server answered with this HTTP code."""
    return f"http_{code}"


def http_code_of(status: str) -> int:
    """Return the HTTP code in a status `http_<code>`, or 0 for any other status."""
    digits = status.removeprefix("http_")
    return int(digits) if digits != status and digits.isdecimal() else 0


def failure_class_of(status: str) -> str:
    """Return the failure class of a status; "" if the status is not a fetch failure."""
    if status in STATUSES:
        return STATUSES[status].failure_class
    code = http_code_of(status)
    if code in _FORBIDDEN_CODES:
        return FORBIDDEN
    if code in _TRANSIENT_CODES or code // 100 == 5:
        return TRANSIENT
    return DEAD if code else ""
