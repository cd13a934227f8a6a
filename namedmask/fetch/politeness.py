"""The rules that image owners set for downloads: opt-outs, robots.txt and pauses."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.robotparser import RobotFileParser

OPT_OUTS = frozenset(("noai", "noimageai", "noml"))
"""X-Robots-Tag directives that opt an image out of machine learning."""

VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
"""X-Robots-Tag directives that are followed by a colon and a value."""

_AGENT = re.compile(r"[a-z0-9_.*-]+")

ROBOTS_BYTES = 500 * 1024
"""Number of bytes of a robots.txt that are read, the minimum that RFC 9309 requires."""


def agent_of(user_agent: str) -> str:
    """Return the lower-case name by which X-Robots-Tag and robots.txt address this program."""
    return user_agent.split("/")[0].strip().lower()


def opted_out(tags: Iterable[str], user_agent: str) -> bool:
    """Return whether X-Robots-Tag values forbid this program, or all agents, to use the image.

    A value looks like `noai, noindex` or `agent: noai`. An agent's name applies to all directives
    after it in the same value. A directive of `VALUED`, as in `max-image-preview: large, noai`, is
    not the name of an agent.
    """
    ours = agent_of(user_agent)
    for tag in tags:
        agent = ""
        for part in tag.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and _AGENT.fullmatch(name.strip()) and name.strip() not in VALUED:
                agent, part = name.strip(), rest
            if part.strip() in OPT_OUTS and agent in ("", "*", ours):
                return True
    return False


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


def may_fetch(robots_txt: bytes, user_agent: str, url: str) -> bool:
    """Return whether a robots.txt allows this program to fetch `url`.

    Differs: the first rule that matches applies, and wildcards are not supported, as in Python's
    standard library. In RFC 9309, the longest match applies and wildcards are supported.
    """
    return _rules_of(robots_txt).can_fetch(agent_of(user_agent), url)


@lru_cache(64)
def _rules_of(robots_txt: bytes) -> RobotFileParser:
    rules = RobotFileParser()
    rules.parse(robots_txt.decode("utf-8-sig", "replace").splitlines())
    return rules


class Host:
    """The concurrency limit of one host in a batch, and the pauses that the host asked for.

    Args:
        max_requests: maximum number of concurrent requests.
        patience_s: maximum total length of the pauses, in seconds; then the host is given up.
    """

    def __init__(self, max_requests: int, patience_s: float) -> None:
        self.slots = asyncio.Semaphore(max_requests)
        self.patience_s = patience_s
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
        """Wait until the pause is over; return "", or the rows' status if the host is given up."""
        while not self.given_up and (left := self.paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left)
        return self.given_up
