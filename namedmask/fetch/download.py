"""Download one url within limits on time, size and redirects, and by the rules of its host.

targets.py says what is asked for, answers.py how an answer is read.

The timeout of a url covers one attempt with all its redirects. It does not cover the time spent
waiting for a free slot, for a pause that the host asked for, or for the host's robots.txt. This
module follows redirects itself, so that every redirect passes the same checks as the first request.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

import aiohttp
from aiohttp import http_exceptions
from yarl import URL

from namedmask.config import FetchConfig
from namedmask.fetch import addresses
from namedmask.fetch.addresses import BlockedAddressError
from namedmask.fetch.politeness import Host, header_opt_out, retry_after
from namedmask.fetch.proxies import Proxies, is_inner, unused_proxy, warn
from namedmask.fetch.robots import ROBOTS_BYTES, site_rules
from namedmask.fetch.sessions import Cookies, raise_open_file_limit, session_of
from namedmask.fetch.targets import has_zone, joined, request_url
from namedmask.fetch.ttl_cache import TtlCache
from namedmask.schema.status import (
    BAD_RESPONSE,
    BAD_TLS,
    BAD_URL,
    BLOCKED_ADDRESS,
    DNS,
    DNS_FAILED,
    PROXY_FAILED,
    REFUSED,
    RESET,
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
    """The downloader of one batch, with its HTTP sessions, its slots and the limits per host.

    Args:
        session: session that connects to allowed addresses only.
        behind_proxy: session that may connect to the proxies at any address.
        proxies: proxy of each url.
        resolver: lookups of the hosts behind a proxy.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        behind_proxy: aiohttp.ClientSession,
        proxies: Proxies,
        resolver: addresses.Resolver,
        config: FetchConfig,
    ) -> None:
        self.session = session
        self.behind_proxy = behind_proxy
        self.proxies = proxies
        self.resolver = resolver
        self.config = config
        self.slots = asyncio.Semaphore(config.in_flight)
        self.hosts: dict[str, Host] = {}
        self.robots: dict[str, asyncio.Task[bytes]] = {}
        self.inner: dict[str, asyncio.Task[bool]] = {}

    async def get(self, url: str, use: Use[T]) -> T:
        """Follow the redirects from `url`, and return the result of `use` for the final body.

        The url keeps its slot while `use` runs, so that at most `in_flight` bodies are in memory.

        Raises:
            FailedError: the download failed; the error has the status of the row.
        """
        return await self._follow(parsed(url), self._body, use, self.config.robots_txt)

    async def _follow(self, target: URL, read: Read, use: Use[T], check_robots: bool) -> T:
        left = self.config.timeout_s
        cookies = Cookies()
        for _ in range(self.config.max_redirects + 1):
            if check_robots and (forbidden := await self._forbidden(target)):
                raise FailedError(forbidden)
            host = self._host(target.raw_host or "")
            # The host's slot is acquired first, so that a slow host blocks no slots of the batch.
            async with host.slots:
                if given_up := await host.wait_for_pause():
                    raise FailedError(given_up)
                async with self.slots:
                    started = time.monotonic()
                    body_or_location = await self._bounded(target, read, cookies, left)
                    if isinstance(body_or_location, bytes):
                        return await use(body_or_location)
            left -= time.monotonic() - started
            target = parsed(joined(str(target), body_or_location))
        raise FailedError(TOO_MANY_REDIRECTS)

    def _host(self, name: str) -> Host:
        if name not in self.hosts:
            self.hosts[name] = Host(self.config.per_host, self.config.max_pause_s)
        return self.hosts[name]

    async def _bounded(
        self, target: URL, read: Read, cookies: Cookies, seconds: float
    ) -> bytes | str:
        try:
            async with asyncio.timeout(seconds):
                return await self._hop(target, read, cookies)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FailedError(status_of(error)) from error

    async def _hop(self, target: URL, read: Read, cookies: Cookies) -> bytes | str:
        """Return the body, or the location that a redirect names."""
        proxy = self.proxies.of(target) if self.proxies else None
        if proxy and await self._is_inner(target.raw_host or ""):
            raise FailedError(BLOCKED_ADDRESS)
        session = self.behind_proxy if proxy else self.session
        async with session.get(
            target, allow_redirects=False, proxy=proxy, headers=cookies.headers_for(target)
        ) as response:
            if response.status in REDIRECTS and response.headers.get("Location", "").strip():
                cookies.keep(response)
                return response.headers["Location"]
            if 200 <= response.status < 300:
                return await read(response)
            status = PROXY_FAILED if proxy and response.status == 407 else of_http(response.status)
            if response.status in PAUSES and "Retry-After" in response.headers:
                pause = retry_after(response.headers["Retry-After"])
                self._host(target.raw_host or "").record_pause(status, pause)
            raise FailedError(status)

    async def _is_inner(self, host: str) -> bool:
        if host not in self.inner:
            check = is_inner(host, self.resolver, self.config.allow_loopback)
            self.inner[host] = asyncio.create_task(check)
        return await asyncio.shield(self.inner[host])

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        config = self.config
        if config.honor_opt_out and (
            status := header_opt_out(
                lambda name: response.headers.getall(name, ()),
                config.user_agent,
                config.opt_out_tags,
            )
        ):
            raise FailedError(status)
        if (response.content_length or 0) > config.max_bytes:
            raise FailedError(TOO_BIG)
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > config.max_bytes:
                raise FailedError(TOO_BIG)
        return bytes(body)

    async def _forbidden(self, target: URL) -> str:
        """Return the status of a url that the robots.txt of its site forbids, or ""."""
        site = f"{target.scheme}://{target.host_port_subcomponent}"
        text = robots_texts.get(site)
        if text is None:
            if site not in self.robots:
                self.robots[site] = asyncio.create_task(self._robots_of(site))
                self.robots[site].add_done_callback(lambda _: self.robots.pop(site))
            text = await self.robots[site]
        rules = site_rules(text, self.config.user_agent)
        host = self._host(target.raw_host or "")
        host.delay_s = max(host.delay_s, rules.delay_s)
        return rules.status_of(target.raw_path_qs, self.config.honor_opt_out)

    async def _robots_of(self, site: str) -> bytes:
        try:
            text = await self._follow(parsed(f"{site}/robots.txt"), first_bytes, as_is, False)
        except FailedError as error:
            # RFC 9309: a site without a robots.txt allows everything, as does one whose robots.txt
            # is behind too many redirects; a site that cannot be reached allows nothing.
            is_absent = http_code_of(error.status) or error.status == TOO_MANY_REDIRECTS
            if not is_absent or failure_class_of(error.status) == TRANSIENT:
                raise
            text = b""
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
    """Return the target of a request for `url`, which is not changed further.

    Raises:
        FailedError: the url is malformed, or its scheme is neither http nor https (`bad_url`), or
            its host is an address of a network card (`blocked_address`).
    """
    scheme, slashes, rest = request_url(url).partition("://")
    if not slashes:
        raise FailedError(BLOCKED_ADDRESS if has_zone(url) else BAD_URL)
    authority, slash, path = rest.partition("/")
    # The query is given as part of the path, because yarl would drop the mark of an empty one.
    return URL.build(scheme=scheme, authority=authority, path=slash + path, encoded=True)


def status_of(error: Exception) -> str:
    """Return the status of a row whose request raised `error`."""
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return PROXY_FAILED
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


@asynccontextmanager
async def downloader_of(config: FetchConfig) -> AsyncIterator[Downloader]:
    """Yield the downloader of one batch; it connects to allowed addresses and to proxies only.

    Raises:
        ConfigError: as `raise_open_file_limit` and `Proxies`.
    """
    raise_open_file_limit(config.in_flight)
    proxies = Proxies(config.proxy)
    warn(unused_proxy(config))
    async with AsyncExitStack() as stack:
        resolver = addresses.Resolver(config.in_flight, warns=not proxies)
        stack.push_async_callback(resolver.close)
        open_socket = partial(addresses.open_socket, config.allow_loopback)
        checked, free = [
            await stack.enter_async_context(session_of(config, resolver, factory))
            for factory in (open_socket, None)
        ]
        yield Downloader(checked, free, proxies, resolver, config)
