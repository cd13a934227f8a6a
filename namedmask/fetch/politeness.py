"""What the owner of an image asks of those who fetch it: no use at all, fewer requests, a pause."""

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

VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
"""Words of X-Robots-Tag that have a colon and a value after them."""

_AGENT = re.compile(r"[a-z0-9_.*-]+")

ROBOTS_BYTES = 500 * 1024
"""Of a robots.txt are read; RFC 9309 asks for no less."""


def agent_of(user_agent: str) -> str:
    """Return the name that tags and robots.txt call this program by, in lower case."""
    return user_agent.split("/")[0].strip().lower()


def opted_out(tags: Iterable[str], user_agent: str) -> bool:
    """Return whether X-Robots-Tag values ask all agents, or this one, to leave the image alone.

    A value is `noai, noindex` or `agent: noai`; a named agent holds for what follows it. A date or
    a size with a colon, as in `max-image-preview: large, noai`, names no agent.
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
    """Return the seconds, from 0 to inf, that a Retry-After asks for; 0 when it makes no sense."""
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
    """Return whether a robots.txt lets this program have `url`.

    Differs: the first rule that fits counts and wildcards are not known, as in the standard
    library; RFC 9309 takes the longest, and knows them.
    """
    return _rules_of(robots_txt).can_fetch(agent_of(user_agent), url)


@lru_cache(64)
def _rules_of(robots_txt: bytes) -> RobotFileParser:
    rules = RobotFileParser()
    rules.parse(robots_txt.decode("utf-8-sig", "replace").splitlines())
    return rules


class Host:
    """The turns of one host in a batch, and the pauses that it asked for."""

    def __init__(self, turns: int, patience_s: float) -> None:
        self.turns = asyncio.Semaphore(turns)
        self.patience_s = patience_s
        self.quiet_until = 0.0
        self.given_up = ""

    def hear(self, status: str, seconds: float) -> None:
        """Pause for `seconds`; give the host up when its pauses together are too long to wait."""
        until = time.monotonic() + seconds
        longer = until - max(self.quiet_until, time.monotonic())
        if longer > self.patience_s:
            self.given_up = status
        elif longer > 0:
            self.patience_s -= longer
            self.quiet_until = until

    async def quiet(self) -> str:
        """Return "" when the pause is over, or the status of all rows of a host given up."""
        while not self.given_up and (left := self.quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(left)
        return self.given_up
