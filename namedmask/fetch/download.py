"""Download one url within limits on time, size and redirects, and by the rules of its host.

The timeout of a url covers one attempt with all its redirects. It does not cover the time spent
waiting for a free slot, for a pause that the host asked for, or for the host's robots.txt. This
module follows redirects itself, so that every redirect passes the same checks as the first request.
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
"""HTTP codes whose Retry-After header pauses the requests to a host."""

KEEPALIVE_S = 2.0
"""Number of seconds for which an idle connection stays open.

Few hosts occur again within seconds, and idle connections would use up the file descriptors."""

OTHER_FILES = 256
"""Number of files that a process may have open in addition to its connections."""

ROBOTS_S = 3600.0
"""Number of seconds for which a robots.txt is cached."""

T = TypeVar("T")
Use = Callable[[bytes], Awaitable[T]]
Read = Callable[[aiohttp.ClientResponse], Awaitable[bytes]]

robots_texts: TtlCache[bytes] = TtlCache(8 * 2**20)
"""Cache of robots.txt by site, shared by all batches of this process."""


class FailedError(Exception):
    """A download failed; `status` is the status of its row."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Downloader:
    """The downloader of one batch, with its HTTP session, its slots and the limits per host."""

    def __init__(self, session: aiohttp.ClientSession, config: FetchConfig) -> None:
        self.session = session
        self.config = config
        self.slots = asyncio.Semaphore(config.in_flight)
        self.hosts: dict[str, Host] = {}
        self.robots: dict[str, asyncio.Task[bytes]] = {}

    async def get(self, url: str, use: Use[T]) -> T:
        """Follow the redirects from `url`, and return the result of `use` for the final body.

        The url keeps its slot while `use` runs, so that at most `in_flight` bodies are in memory.

        Raises:
            FailedError: the download failed; the error has the status of the row.
        """
        return await self._follow(parsed(url), self._body, use, self.config.robots_txt)

    async def _follow(self, target: URL, read: Read, use: Use[T], check_robots: bool) -> T:
        left = self.config.timeout_s
        for _ in range(self.config.max_redirects + 1):
            if target.scheme not in ("http", "https") or not target.raw_host:
                raise FailedError(BAD_URL)
            if check_robots and not await self._may_fetch(target):
                raise FailedError(ROBOTS_TXT)
            host = self._host(target.raw_host)
            # The host's slot is acquired first, so that a slow host blocks no slots of the batch.
            async with host.slots:
                if given_up := await host.wait_for_pause():
                    raise FailedError(given_up)
                async with self.slots:
                    started = time.monotonic()
                    body_or_location = await self._bounded(target, read, left)
                    if isinstance(body_or_location, bytes):
                        return await use(body_or_location)
            left -= time.monotonic() - started
            target = target.join(parsed(body_or_location))
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
        """Return the body, or the location that a redirect names."""
        async with self.session.get(target, allow_redirects=False) as response:
            if response.status in REDIRECTS and "Location" in response.headers:
                return response.headers["Location"]
            if 200 <= response.status < 300:
                return await read(response)
            status = of_http(response.status)
            if response.status in PAUSES and "Retry-After" in response.headers:
                pause = retry_after(response.headers["Retry-After"])
                self._host(target.raw_host or "").record_pause(status, pause)
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
            text = b""  # RFC 9309: a site without a robots.txt allows everything
        robots_texts.put(site, text, ROBOTS_S, len(text) + 100)
        return text


async def first_bytes(response: aiohttp.ClientResponse) -> bytes:
    """Return the first `ROBOTS_BYTES` bytes of a robots.txt."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= ROBOTS_BYTES:
            break
    return bytes(body[:ROBOTS_BYTES])


async def as_is(body: bytes) -> bytes:
    """Return the body unchanged."""
    return body


def parsed(url: str) -> URL:
    """Return `url` as a parsed URL.

    Raises:
        FailedError: the url is malformed; the status is `bad_url`.
    """
    try:
        return URL(url.strip())
    except (ValueError, IndexError) as error:  # IndexError: the host is an empty pair of brackets
        raise FailedError(BAD_URL) from error


def status_of(error: Exception) -> str:
    """Return the status of a row whose request raised `error`."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientSSLError
    ):
        return _status_of_connecting(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError) and _is_malformed(error.__cause__):
        return BAD_RESPONSE  # the same status as if the body had arrived with the headers
    statuses: tuple[tuple[str, tuple[type[Exception], ...]], ...] = (
        (TIMEOUT, (TimeoutError,)),
        (BAD_TLS, (aiohttp.ClientSSLError,)),
        (BAD_URL, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)),
        (BAD_RESPONSE, (aiohttp.ClientResponseError,)),
        (RESET, (aiohttp.ClientError, OSError)),
    )
    return next((status for status, kinds in statuses if isinstance(error, kinds)), BAD_URL)


def _is_malformed(cause: BaseException | None) -> bool:
    """Return whether a body violated HTTP, as opposed to ending too early."""
    too_short = (http_exceptions.ContentLengthError, http_exceptions.TransferEncodingError)
    is_violation = isinstance(cause, http_exceptions.HttpProcessingError)
    return is_violation and not isinstance(cause, too_short)


def _status_of_connecting(error: OSError) -> str:
    if isinstance(error, BlockedAddressError):
        return BLOCKED_ADDRESS
    if isinstance(error, socket.gaierror):
        return DNS_FAILED if addresses.is_failure(error) else DNS
    statuses = {errno.ECONNREFUSED: REFUSED, errno.ECONNRESET: RESET, errno.EPIPE: RESET}
    return statuses.get(error.errno or 0, UNREACHABLE)


def raise_open_file_limit(in_flight: int) -> None:
    """Raise this process's limit on open files to the number that `in_flight` downloads need.

    Raises:
        ConfigError: the hard limit of the system is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * in_flight + OTHER_FILES  # idle connections are open files as well
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
    """Yield the HTTP session of one batch; it connects to allowed addresses only.

    Raises:
        ConfigError: as `raise_open_file_limit`.
    """
    raise_open_file_limit(config.in_flight)
    resolver = addresses.Resolver(config.in_flight)
    connector = aiohttp.TCPConnector(
        limit=0,  # `Downloader` limits the number of connections
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
