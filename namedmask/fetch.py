"""Urls to image bytes, each proven to be an image by a decode, each failure with its reason.

Reads `url`; adds `image` (bytes as they came, or shrunk), `image_height`, `image_width`, `status`.
A status that is not ok:

* dead: http_404, http_410, http_<code>, dns, refused, bad_tls, bad_response, too_many_redirects,
  no_file, bad_url, blocked_address;
* transient, tried `retries` times more: timeout, reset, http_408, http_425, http_429, http_5xx;
* unwanted: opted_out, too_big, empty, not_an_image, truncated, too_many_pixels;
* crashed: a fault of this program; the log says which.

Safe by construction: the address is judged where the socket is made, so that the one checked is
the one connected to, whatever name, notation or redirect led there. Redirects are followed by hand.
The deadline of a url holds for one attempt with all its redirects; waiting for a turn and decoding
do not count. Cost per 1,000 JPEGs of 12 kB from loopback: 1.0 s of one cloud core, decode included.
Method: the seed downloaded what the retrieval page listed and skipped dead links.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp
import pyarrow as pa
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from namedmask import images
from namedmask.config import FetchConfig
from namedmask.schema import OK, alive, require_columns, update

BACKOFF_S = 0.5
"""Before the first retry; doubled before each further one."""

REDIRECTS = frozenset((301, 302, 303, 307, 308))
TRANSIENT = frozenset(("timeout", "reset", "http_408", "http_425", "http_429"))
OPT_OUTS = frozenset(("noai", "noimageai", "noml"))

KEEPALIVE_S = 2.0  # hosts rarely repeat within seconds: idle connections would use up descriptors
DNS_THREADS = 32
JPEG_QUALITY = 95

_log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """What became of one url: a status and, when ok, the bytes and the upright size."""

    status: str
    image: bytes | None = None
    height: int | None = None
    width: int | None = None


class Fetch:
    """The stage: one batch of urls at a time, many in flight; no state between batches."""

    name = "fetch"
    reads = ("url",)
    adds = ("image", "image_height", "image_width", "status")

    def __init__(self, config: FetchConfig) -> None:
        self.config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with image, its size and status; rows not ok pass untouched."""
        require_columns(table, (*self.reads, "status"), self.name)
        rows = alive(table)
        urls = table["url"].take(rows).to_pylist()
        fetched = _run(fetch_all(urls, self.config)) if urls else []
        return update(
            table,
            rows,
            {
                "image": [one.image for one in fetched],
                "image_height": [one.height for one in fetched],
                "image_width": [one.width for one in fetched],
                "status": [one.status for one in fetched],
            },
        )


async def fetch_all(urls: Sequence[str], config: FetchConfig) -> list[Fetched]:
    """Return what became of each url, in the order of `urls`."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "namedmask-decode") as decoders:
        async with _session(config) as session:
            fetcher = _Fetcher(session, decoders, config)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetcher.fetch(url)) for url in urls]
    return [task.result() for task in tasks]


def _run(work: Coroutine[Any, Any, list[Fetched]]) -> list[Fetched]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # a notebook or an async actor has a loop of its own here: step aside
    with ThreadPoolExecutor(1, "namedmask-fetch") as aside:
        return aside.submit(asyncio.run, work).result()


class _Failed(Exception):
    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class _Fetcher:
    """One batch in flight: its session, its slots, its decoding threads."""

    def __init__(
        self, session: aiohttp.ClientSession, decoders: ThreadPoolExecutor, config: FetchConfig
    ) -> None:
        self.session = session
        self.decoders = decoders
        self.config = config
        self.slots = asyncio.Semaphore(config.in_flight)
        self.host_slots: dict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(config.per_host)
        )

    async def fetch(self, url: str) -> Fetched:
        for attempt in range(self.config.retries + 1):
            if attempt:
                await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
            fetched = await self._attempt(url)
            if not _is_transient(fetched.status):
                break
        return fetched

    async def _attempt(self, url: str) -> Fetched:
        try:
            return await (self._file(url) if url.startswith("file:") else self._follow(url))
        except _Failed as error:
            return Fetched(error.status)
        except images.BadImage as error:
            return Fetched(error.status)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Fetched(status_of(error))
        except Exception:  # noqa: BLE001  the guard of a row: one url must not end the batch
            _log.exception("fetching %s", url)
            return Fetched("crashed")

    async def _follow(self, url: str) -> Fetched:
        left = self.config.timeout_s
        target = URL(url.strip())
        for _ in range(self.config.max_redirects + 1):
            if target.scheme not in ("http", "https") or not target.host:
                raise _Failed("bad_url")
            # the host's slot first: rows of a slow host must not hold the slots of all others
            async with self.host_slots[target.host], self.slots:
                started = time.monotonic()
                async with asyncio.timeout(left):
                    answer = await self._hop(target)
                if isinstance(answer, bytes):
                    return await self._in_thread(prove, answer, self.config)
            left -= time.monotonic() - started
            target = target.join(answer)
        raise _Failed("too_many_redirects")

    async def _hop(self, target: URL) -> bytes | URL:
        async with self.session.get(target, allow_redirects=False) as response:
            if response.status in REDIRECTS and "Location" in response.headers:
                return URL(response.headers["Location"].strip())
            if not 200 <= response.status < 300:
                raise _Failed(f"http_{response.status}")
            tags = response.headers.getall("X-Robots-Tag", ())
            if self.config.honor_opt_out and opted_out(tags, self.config.user_agent):
                raise _Failed("opted_out")
            if (response.content_length or 0) > self.config.max_bytes:
                raise _Failed("too_big")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self.config.max_bytes:
                    raise _Failed("too_big")
            return bytes(body)

    async def _file(self, url: str) -> Fetched:
        async with self.slots:
            return await self._in_thread(_prove_file, url, self.config)

    async def _in_thread(self, work: Any, *arguments: Any) -> Fetched:
        loop = asyncio.get_running_loop()
        fetched: Fetched = await loop.run_in_executor(self.decoders, work, *arguments)
        return fetched


def prove(body: bytes, config: FetchConfig) -> Fetched:
    """Return the body as an image: proven by decoding all of it, shrunk when the config says so.

    Raises:
        BadImage: see images.decode.
    """
    if not body:
        return Fetched("empty")
    height, width = images.size_of(body, config.max_pixels)
    if config.longest_side and max(height, width) > config.longest_side:
        pixels = images.decode(body, config.max_pixels, config.longest_side)
        return Fetched(OK, images.encode_jpeg(pixels, JPEG_QUALITY), *pixels.shape[:2])
    # at an eighth, the least libjpeg does, every byte is still read but few pixels are computed
    images.decode(body, config.max_pixels, max(1, max(height, width) // 16))
    return Fetched(OK, body, height, width)


def _prove_file(url: str, config: FetchConfig) -> Fetched:
    if not config.file_root:
        return Fetched("blocked_address")
    path = Path(unquote(urlsplit(url).path)).resolve()
    if not path.is_relative_to(Path(config.file_root).resolve()):
        return Fetched("blocked_address")
    if not path.is_file():
        return Fetched("no_file")
    if path.stat().st_size > config.max_bytes:
        return Fetched("too_big")
    return prove(path.read_bytes(), config)


def _is_transient(status: str) -> bool:
    return status in TRANSIENT or status.startswith("http_5")


def status_of(error: Exception) -> str:
    """Return the status word of what a request raised."""
    if isinstance(getattr(error, "os_error", None), _BlockedAddressError):
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


def opted_out(tags: Iterable[str], user_agent: str) -> bool:
    """Return whether X-Robots-Tag values ask all agents, or this one, to leave the image alone.

    A value is `noai, noindex` or `agent: noai`; a named agent holds for what follows it.
    """
    ours = user_agent.split("/")[0].strip().lower()
    for tag in tags:
        agent = ""
        for part in tag.lower().split(","):
            name, colon, word = part.rpartition(":")
            agent = name.strip() if colon else agent
            if word.strip() in OPT_OUTS and agent in ("", "*", ours):
                return True
    return False


def is_allowed(address: str, allow_loopback: bool) -> bool:
    """Return whether a numeric address is one of the public web, or this machine if allowed."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _inner(ip)
    if ip.is_loopback:
        return allow_loopback
    site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not site_local


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _inner(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


class _BlockedAddressError(OSError):
    """An address that must not be connected to; an OSError so that the next address is tried."""


def _open_socket(allow_loopback: bool, address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address
    if not is_allowed(host, allow_loopback):
        raise _BlockedAddressError(errno.EACCES, "the address is not of the public web")
    return socket.socket(family=family, type=kind, proto=protocol)


class _Resolver(AbstractResolver):
    """Names asked once a batch, failures remembered too, in threads that nobody waits for."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(DNS_THREADS, "namedmask-dns")
        self.answers: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        key = (host, port, family)
        if key not in self.answers:
            ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
            self.answers[key] = asyncio.get_running_loop().run_in_executor(self.threads, ask)
            self.answers[key].add_done_callback(lambda done: done.cancelled() or done.exception())
        # shielded: the deadline of one row must not take the answer from the others
        found = await asyncio.shield(self.answers[key])
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        for answer in self.answers.values():
            answer.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def _session(config: FetchConfig) -> AsyncIterator[aiohttp.ClientSession]:
    resolver = _Resolver()
    connector = aiohttp.TCPConnector(
        limit=0,  # `_Fetcher` counts
        resolver=resolver,
        use_dns_cache=False,
        keepalive_timeout=KEEPALIVE_S,
        socket_factory=partial(_open_socket, config.allow_loopback),
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
