"""One url to its bytes, within bounds of time, size and hops.

The deadline of a url holds for one attempt with all its redirects; waiting for a turn does not
count. Redirects are followed by hand, so that each hop is judged as the first.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import aiohttp
from yarl import URL

from namedmask import addresses
from namedmask.addresses import BlockedAddressError
from namedmask.politeness import opted_out
from namedmask.sections import FetchConfig

REDIRECTS = frozenset((301, 302, 303, 307, 308))
T = TypeVar("T")
Use = Callable[[bytes], Awaitable[T]]

KEEPALIVE_S = 2.0  # hosts rarely repeat within seconds: idle connections would use up descriptors


class FailedError(Exception):
    """A url that gave no body; `status` is the word for its row."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Downloader:
    """One batch in flight: its session and its slots."""

    def __init__(self, session: aiohttp.ClientSession, config: FetchConfig) -> None:
        self.session = session
        self.config = config
        self.slots = asyncio.Semaphore(config.in_flight)
        self.host_slots: dict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.per_host)
        )

    async def get(self, url: str, use: Use[T]) -> T:
        """Return what `use` makes of the body that `url` leads to.

        `use` is run while the url still holds its turn: bodies in hand are at most `in_flight`.

        Raises:
            FailedError: with the status of its row.
        """
        left = self.config.timeout_s
        target = parsed(url)
        for _ in range(self.config.max_redirects + 1):
            if target.scheme not in ("http", "https") or not target.host:
                raise FailedError("bad_url")
            # the host's slot first: rows of a slow host must not hold the slots of all others
            async with self.host_slots[target.host], self.slots:
                started = time.monotonic()
                answer = await self._bounded(target, left)
                if isinstance(answer, bytes):
                    return await use(answer)
            left -= time.monotonic() - started
            target = target.join(parsed(answer))
        raise FailedError("too_many_redirects")

    async def _bounded(self, target: URL, seconds: float) -> bytes | str:
        try:
            async with asyncio.timeout(seconds):
                return await self._hop(target)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FailedError(status_of(error)) from error

    async def _hop(self, target: URL) -> bytes | str:
        """Return the body, or where it is said to be."""
        async with self.session.get(target, allow_redirects=False) as response:
            if response.status in REDIRECTS and "Location" in response.headers:
                return response.headers["Location"]
            if not 200 <= response.status < 300:
                raise FailedError(f"http_{response.status}")
            tags = response.headers.getall("X-Robots-Tag", ())
            if self.config.honor_opt_out and opted_out(tags, self.config.user_agent):
                raise FailedError("opted_out")
            if (response.content_length or 0) > self.config.max_bytes:
                raise FailedError("too_big")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self.config.max_bytes:
                    raise FailedError("too_big")
            return bytes(body)


def parsed(url: str) -> URL:
    """Return the parts of `url`; FailedError when it is none."""
    try:
        return URL(url.strip())
    except ValueError as error:
        raise FailedError("bad_url") from error


def status_of(error: Exception) -> str:
    """Return the status word of what a request raised."""
    if isinstance(getattr(error, "os_error", None), BlockedAddressError):
        return "blocked_address"
    words: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
        ("timeout", (TimeoutError,)),
        ("bad_tls", (aiohttp.ClientSSLError,)),
        ("dns", (aiohttp.ClientConnectorDNSError,)),
        ("refused", (aiohttp.ClientConnectorError,)),
        ("bad_url", (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)),
        ("bad_response", (aiohttp.ClientResponseError,)),
        ("reset", (aiohttp.ClientError, OSError)),
    )
    return next((word for word, kinds in words if isinstance(error, kinds)), "bad_url")


@asynccontextmanager
async def session_of(config: FetchConfig) -> AsyncIterator[aiohttp.ClientSession]:
    """Return the session of one batch, whose sockets go to allowed addresses alone."""
    resolver = addresses.Resolver()
    connector = aiohttp.TCPConnector(
        limit=0,  # `Downloader` counts
        resolver=resolver,
        use_dns_cache=False,
        keepalive_timeout=KEEPALIVE_S,
        socket_factory=partial(addresses.open_socket, config.allow_loopback),
    )
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "User-Agent": config.user_agent,
                "Accept": "image/*",
                "Accept-Encoding": "identity",
            },
        ) as session:
            yield session
    finally:
        await resolver.close()
