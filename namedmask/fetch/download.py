"""One url to its bytes, within bounds of time, size and hops, and as polite as it is asked to be.

The deadline of a url holds for one attempt with all its redirects; waiting for a turn, for a pause
that the host asked for, and for its robots.txt do not count. Redirects are followed by hand, so
that each hop is judged as the first.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import aiohttp
from aiohttp import http_exceptions
from yarl import URL

from namedmask.config import FetchConfig
from namedmask.errors import ConfigError
from namedmask.fetch import addresses
from namedmask.fetch.addresses import BlockedAddressError
from namedmask.fetch.politeness import ROBOTS_BYTES, Host, may_fetch, opted_out, retry_after
from namedmask.fetch.ttl_cache import TtlCache
from namedmask.schema.status import (
    BAD_RESPONSE,
    BAD_TLS,
    BAD_URL,
    BLOCKED_ADDRESS,
    DNS,
    DNS_FAILED,
    OPTED_OUT,
    REFUSED,
    RESET,
    ROBOTS_TXT,
    TIMEOUT,
    TOO_BIG,
    TOO_MANY_REDIRECTS,
    TRANSIENT,
    UNREACHABLE,
    failure_class_of,
    http_code_of,
    of_http,
)

REDIRECTS = frozenset((301, 302, 303, 307, 308))
PAUSES = frozenset((429, 503))
KEEPALIVE_S = 2.0  # hosts rarely repeat within seconds: idle connections would use up descriptors
OTHER_FILES = 256  # that a process has open beside its connections
ROBOTS_S = 3600.0

T = TypeVar("T")
Use = Callable[[bytes], Awaitable[T]]
Read = Callable[[aiohttp.ClientResponse], Awaitable[bytes]]

robots_texts: TtlCache[bytes] = TtlCache(8 * 2**20)
"""robots.txt by site, for all batches of this process."""


class FailedError(Exception):
    """A url that gave no body; `status` is the word for its row."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Downloader:
    """One batch in flight: its session, its turns, what its hosts ask for."""

    def __init__(self, session: aiohttp.ClientSession, config: FetchConfig) -> None:
        self.session = session
        self.config = config
        self.slots = asyncio.Semaphore(config.in_flight)
        self.hosts: dict[str, Host] = {}
        self.robots: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, url: str, use: Use[T]) -> T:
        """Return what `use` makes of the body that `url` leads to.

        `use` is run while the url still holds its turn: bodies in hand are at most `in_flight`.

        Raises:
            FailedError: with the status of its row.
        """
        return await self._follow(parsed(url), self._body, use, self.config.robots_txt)

    async def _follow(self, target: URL, read: Read, use: Use[T], ask_robots: bool) -> T:
        left = self.config.timeout_s
        for _ in range(self.config.max_redirects + 1):
            if target.scheme not in ("http", "https") or not target.raw_host:
                raise FailedError(BAD_URL)
            if ask_robots and not await self._may_fetch(target):
                raise FailedError(ROBOTS_TXT)
            host = self._host(target.raw_host)
            # the host's turn first: rows of a slow host must not hold the slots of all others
            async with host.turns:
                if given_up := await host.quiet():
                    raise FailedError(given_up)
                async with self.slots:
                    started = time.monotonic()
                    answer = await self._bounded(target, read, left)
                    if isinstance(answer, bytes):
                        return await use(answer)
            left -= time.monotonic() - started
            target = target.join(parsed(answer))
        raise FailedError(TOO_MANY_REDIRECTS)

    def _host(self, name: str) -> Host:
        if name not in self.hosts:
            self.hosts[name] = Host(self.config.per_host, self.config.max_pause_s)
        return self.hosts[name]

    async def _bounded(self, target: URL, read: Read, seconds: float) -> bytes | str:
        try:
            async with asyncio.timeout(seconds):
                return await self._hop(target, read)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FailedError(status_of(error)) from error

    async def _hop(self, target: URL, read: Read) -> bytes | str:
        """Return the body, or where it is said to be."""
        async with self.session.get(target, allow_redirects=False) as response:
            if response.status in REDIRECTS and "Location" in response.headers:
                return response.headers["Location"]
            if 200 <= response.status < 300:
                return await read(response)
            status = of_http(response.status)
            if response.status in PAUSES and "Retry-After" in response.headers:
                pause = retry_after(response.headers["Retry-After"])
                self._host(target.raw_host or "").hear(status, pause)
            raise FailedError(status)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        tags = response.headers.getall("X-Robots-Tag", ())
        if self.config.honor_opt_out and opted_out(tags, self.config.user_agent):
            raise FailedError(OPTED_OUT)
        if (response.content_length or 0) > self.config.max_bytes:
            raise FailedError(TOO_BIG)
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self.config.max_bytes:
                raise FailedError(TOO_BIG)
        return bytes(body)

    async def _may_fetch(self, target: URL) -> bool:
        site = f"{target.scheme}://{target.host_port_subcomponent}"
        text = robots_texts.get(site)
        if text is None:
            if site not in self.robots:
                self.robots[site] = asyncio.create_task(self._robots_of(site))
                self.robots[site].add_done_callback(lambda _: self.robots.pop(site))
            text = await self.robots[site]
        return may_fetch(text, self.config.user_agent, str(target))

    async def _robots_of(self, site: str) -> bytes:
        try:
            text = await self._follow(parsed(f"{site}/robots.txt"), first_bytes, as_is, False)
        except FailedError as error:
            if not http_code_of(error.status) or failure_class_of(error.status) == TRANSIENT:
                raise
            text = b""  # RFC 9309: a site that answers and has none lets everything be fetched
        robots_texts.put(site, text, ROBOTS_S, len(text) + 100)
        return text


async def first_bytes(response: aiohttp.ClientResponse) -> bytes:
    """Return as much of a robots.txt as is read."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= ROBOTS_BYTES:
            break
    return bytes(body[:ROBOTS_BYTES])


async def as_is(body: bytes) -> bytes:
    """Return the body."""
    return body


def parsed(url: str) -> URL:
    """Return the parts of `url`; FailedError when it is none."""
    try:
        return URL(url.strip())
    except (ValueError, IndexError) as error:  # the second for a host that is an empty bracket
        raise FailedError(BAD_URL) from error


def status_of(error: Exception) -> str:
    """Return the status word of what a request raised."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientSSLError
    ):
        return _status_of_connecting(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError) and _is_nonsense(error.__cause__):
        return BAD_RESPONSE  # as it is where the same bytes come together with the headers
    words: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
        (TIMEOUT, (TimeoutError,)),
        (BAD_TLS, (aiohttp.ClientSSLError,)),
        (BAD_URL, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)),
        (BAD_RESPONSE, (aiohttp.ClientResponseError,)),
        (RESET, (aiohttp.ClientError, OSError)),
    )
    return next((word for word, kinds in words if isinstance(error, kinds)), BAD_URL)


def _is_nonsense(cause: BaseException | None) -> bool:
    """Return whether a body broke a rule of HTTP, and not merely off."""
    broken_off = (http_exceptions.ContentLengthError, http_exceptions.TransferEncodingError)
    is_broken = isinstance(cause, http_exceptions.HttpProcessingError)
    return is_broken and not isinstance(cause, broken_off)


def _status_of_connecting(error: OSError) -> str:
    if isinstance(error, BlockedAddressError):
        return BLOCKED_ADDRESS
    if isinstance(error, socket.gaierror):
        return DNS_FAILED if addresses.is_failure(error) else DNS
    words = {errno.ECONNREFUSED: REFUSED, errno.ECONNRESET: RESET, errno.EPIPE: RESET}
    return words.get(error.errno or 0, UNREACHABLE)


def make_room(in_flight: int) -> None:
    """Let this process have as many connections open as it will make.

    Raises:
        ConfigError: the machine does not let it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * in_flight + OTHER_FILES  # those kept alive for the next row are open too
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < in_flight + OTHER_FILES:
        raise ConfigError(
            f"fetch.in_flight = {in_flight} needs {in_flight + OTHER_FILES} open files; this "
            f"process may have {soft}. Raise `ulimit -Hn`, or lower fetch.in_flight."
        )


@asynccontextmanager
async def session_of(config: FetchConfig) -> AsyncIterator[aiohttp.ClientSession]:
    """Return the session of one batch, whose sockets go to allowed addresses alone."""
    make_room(config.in_flight)
    resolver = addresses.Resolver(config.in_flight)
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
