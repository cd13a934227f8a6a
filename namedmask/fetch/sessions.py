"""HTTP sessions of a batch: their connections, open files, and the cookies of a url."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable

import aiohttp
from yarl import URL

from namedmask.config import FetchConfig
from namedmask.errors import ConfigError
from namedmask.fetch.addresses import Resolver
from namedmask.fetch.answers import HEAD_BYTES, HEADERS, Connector

KEEPALIVE_S = 2.0
"""Number of seconds for which an idle connection stays open.

Few hosts occur again within seconds, and idle connections would use up the file descriptors."""

OTHER_FILES = 256
"""Number of files that a process may have open in addition to its connections."""


def session_of(
    config: FetchConfig,
    resolver: Resolver,
    socket_factory: Callable[..., socket.socket] | None,
) -> aiohttp.ClientSession:
    """Return a new HTTP session; `socket_factory` may refuse addresses, None refuses none."""
    return aiohttp.ClientSession(
        connector=Connector(
            limit=0,  # `Downloader` limits the number of connections
            resolver=resolver,
            use_dns_cache=False,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=socket_factory,
        ),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=HEAD_BYTES,
        max_field_size=HEAD_BYTES,
        max_headers=HEADERS,
        headers={
            "User-Agent": config.user_agent,
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        },
    )


class Cookies:
    """The cookies that the redirects of one url set; they go to no other url.

    Some hosts redirect a url to itself until a cookie comes back.
    """

    def __init__(self) -> None:
        self._jar: aiohttp.CookieJar | None = None
        self._as_sent: dict[tuple[str, str], str] = {}  # the jar keeps values without their quotes

    def keep(self, response: aiohttp.ClientResponse) -> None:
        """Keep the cookies of a redirect."""
        if response.cookies:
            self._jar = self._jar or aiohttp.CookieJar(unsafe=True, quote_cookie=False)
            self._jar.update_cookies(response.cookies, response.url)
            for name, cookie in response.cookies.items():
                self._as_sent[name, cookie.value] = cookie.coded_value

    def headers_for(self, target: URL) -> dict[str, str]:
        """Return the Cookie header of a request, if it has one."""
        found = self._jar.filter_cookies(target) if self._jar else {}
        pairs = (
            f"{name}={self._as_sent.get((name, cookie.value), cookie.value)}"
            for name, cookie in found.items()
        )
        return {"Cookie": "; ".join(pairs)} if found else {}


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
