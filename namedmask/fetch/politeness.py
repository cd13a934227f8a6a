"""The rules that image owners set for downloads: opt-outs in headers, and pauses.

The rules in robots.txt are in robots.py.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from namedmask.schema.status import (
    CRAWL_DELAY,
    OPTED_OUT,
    OPTED_OUT_CONTENT_SIGNAL,
    OPTED_OUT_CONTENT_USAGE,
    OPTED_OUT_TDM,
)

VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
"""X-Robots-Tag directives that are followed by a colon and a value."""

SIGNALS = {
    "content-signal": ("ai-train", "no", OPTED_OUT_CONTENT_SIGNAL),
    "content-usage": ("train-ai", "n", OPTED_OUT_CONTENT_USAGE),
}
"""Fields of headers and of robots.txt that hold preferences: the key of machine learning, the value
that forbids it, and the status that follows. They are Cloudflare's content signals and the AI
preferences of the IETF (draft-ietf-aipref-attach and -vocab)."""

TDM_FIELD = "tdm-reservation"
"""Field of the TDM Reservation Protocol of the W3C group; the value 1 reserves all rights."""

_AGENT = re.compile(r"[a-z0-9_.*-]+")
_COMPATIBLE = re.compile(r"\(compatible; *([a-z0-9_.-]+)", re.IGNORECASE)


def agent_of(user_agent: str) -> str:
    """Return the lower-case name by which X-Robots-Tag and robots.txt address this program.

    The name is the first product token, or that behind `compatible;`, as crawlers write it.
    """
    token = _COMPATIBLE.search(user_agent)
    name = token[1] if token else user_agent
    found = _AGENT.match(name.strip().lower())
    return found[0] if found else ""


def opted_out(tags: Iterable[str], user_agent: str, directives: Collection[str]) -> bool:
    """Return whether X-Robots-Tag values have one of `directives` for this program or all agents.

    A value looks like `noai, noindex` or `agent: noai`. An agent's name applies to all directives
    after it in the same value. A directive of `VALUED`, as in `max-image-preview: large, noai`, is
    not the name of an agent. `none` stands for `noindex, nofollow`.
    """
    ours = agent_of(user_agent)
    wanted = {directive.lower() for directive in directives}
    wanted |= {"none"} if "noindex" in wanted else set()
    for tag in tags:
        agent = ""
        for part in tag.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and _AGENT.fullmatch(name.strip()) and name.strip() not in VALUED:
                agent, part = name.strip(), rest
            if part.strip() in wanted and agent in ("", "*", ours):
                return True
    return False


def preference_of(text: str, key: str) -> str:
    """Return the value of `key` in preferences such as `search=yes, ai-train=no`, or "".

    The last value counts, as in a dictionary of RFC 9651. Parameters, quotes and case are ignored.
    """
    pairs = (part.partition(";")[0].partition("=") for part in text.lower().split(","))
    values = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
    return values.get(key, "")


def header_opt_out(
    values_of: Callable[[str], Iterable[str]], user_agent: str, directives: Collection[str]
) -> str:
    """Return the status of an image whose headers forbid machine learning; "" if none does.

    `values_of` returns the values of all headers of one name; if one forbids, that one counts.
    """
    tags = tuple(values_of("X-Robots-Tag"))
    if tags and opted_out(tags, user_agent, directives):
        return OPTED_OUT
    for field, (key, forbidden, status) in SIGNALS.items():
        if any(preference_of(value, key) == forbidden for value in values_of(field)):
            return status
    return OPTED_OUT_TDM if any(value.strip() == "1" for value in values_of(TDM_FIELD)) else ""


def retry_after(value: str) -> float:
    """Return the seconds, in [0, inf], that a Retry-After header asks for; 0 if it is malformed."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


class Host:
    """The limits of one host in a batch: concurrency, its Crawl-delay, and the pauses it asked for.

    Args:
        max_requests: maximum number of concurrent requests.
        patience_s: maximum total length of the pauses, in seconds; then the host is given up.
    """

    def __init__(self, max_requests: int, patience_s: float) -> None:
        self.slots = asyncio.Semaphore(max_requests)
        self.patience_s = patience_s
        self.delay_s = 0.0
        self.paused_until = 0.0
        self.given_up = ""

    def record_pause(self, status: str, seconds: float) -> None:
        """Pause for `seconds` from now, or give up the host if its pauses exceed `patience_s`.

        `status` is the status of all further rows of a host that is given up.
        """
        until = time.monotonic() + seconds
        extension_s = until - max(self.paused_until, time.monotonic())
        if extension_s > self.patience_s:
            self.given_up = status
        elif extension_s > 0:
            self.patience_s -= extension_s
            self.paused_until = until

    async def wait_for_pause(self) -> str:
        """Wait until the pause is over; return "", or the rows' status if the host is given up.

        With a Crawl-delay, the next request is paused in turn.
        """
        while not self.given_up and (left := self.paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left)
        given_up = self.given_up
        if self.delay_s and not given_up:
            self.record_pause(CRAWL_DELAY, self.delay_s)
        return given_up
