"""The proxy of each url, and what can be checked of an address behind a proxy.

A proxy looks up the names itself, so this program cannot judge the address that is connected to. It
refuses the hosts that it knows to be inside a network: addresses in any notation, names that have
an inner address here, and names that the public web does not have. A name that only the proxy can
look up is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from functools import lru_cache
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from namedmask.config import FetchConfig
from namedmask.errors import ConfigError
from namedmask.fetch.addresses import Resolver, is_allowed

ENVIRONMENT = "environment"
"""Value of `fetch.proxy` that stands for the proxies in the environment variables."""

LOOKUP_S = 2.0
"""Number of seconds that a lookup may take before a name counts as unknown here.

Where only a proxy reaches the web, there is often no name server either."""

INNER_DOMAINS = ("localhost", "local", "internal", "home.arpa", "lan")
"""Domains that no public name has."""

_log = logging.getLogger(__name__)


class Proxies:
    """The proxies that `fetch.proxy` and the environment set, by scheme.

    Raises:
        ConfigError: the environment names a proxy that does not speak HTTP, or a malformed one.
    """

    def __init__(self, setting: str) -> None:
        found = getproxies()
        self._bypass: Mapping[str, str] = {"no": found.get("no", "")}
        urls = found if setting == ENVIRONMENT else {"all": setting} if setting else {}
        self._urls = {
            scheme: parsed_proxy(urls.get(scheme) or urls["all"])
            for scheme in ("http", "https")
            if urls.get(scheme) or urls.get("all")
        }

    def __bool__(self) -> bool:
        return bool(self._urls)

    def of(self, target: URL) -> URL | None:
        """Return the proxy of a url, or None if there is none, or no_proxy names its host."""
        proxy = self._urls.get(target.scheme)
        host = target.host_port_subcomponent or ""
        return None if proxy and proxy_bypass(host, self._bypass) else proxy


def parsed_proxy(text: str) -> URL:
    """Return the url of a proxy; its scheme is http if it has none.

    Raises:
        ConfigError: the url is malformed, or its scheme is neither http nor https.
    """
    try:
        url = URL(text if "://" in text else f"http://{text}")
        if url.scheme in ("http", "https") and url.host and url.port:
            return url
        shown = f"{url.scheme}://{url.host}"
    except ValueError:
        shown = "a malformed url"
    raise ConfigError(
        f"fetch.proxy: expected http://host:port or https://host:port, got {shown}. Set it, or the "
        "variables http_proxy and https_proxy, to such a proxy."
    )


def unused_proxy(config: FetchConfig) -> str:
    """Return a warning if the environment has a proxy that `fetch.proxy` does not use, or ""."""
    names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy")]
    if config.proxy or config.allow_loopback or not any(os.environ[name] for name in names):
        return ""
    return (
        f"the environment has a proxy ({', '.join(sorted(names))}), but images are downloaded "
        f'without one. Set fetch.proxy = "{ENVIRONMENT}" to use it.'
    )


@lru_cache(1)
def warn(text: str) -> None:
    """Log a warning, unless it is empty or was the last one that this process logged here."""
    if text:
        _log.warning("%s", text)


async def is_inner(host: str, resolver: Resolver, allow_loopback: bool) -> bool:
    """Return whether a host is known to be inside a network: no proxy is asked for it."""
    try:
        # This reads addresses in any notation, such as 127.1 or 0x7f000001, and asks no server.
        numeric = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        return not all(is_allowed(str(found[4][0]), allow_loopback) for found in numeric)
    except (OSError, UnicodeError):
        pass
    name = host.rstrip(".").lower()
    is_local = "." not in name or any(name.endswith(f".{domain}") for domain in INNER_DOMAINS)
    if is_local and not (allow_loopback and name == "localhost"):
        return True
    try:
        async with asyncio.timeout(LOOKUP_S):
            found = await resolver.resolve(host)
    except OSError:  # TimeoutError is one
        return False
    return not all(is_allowed(address["host"], allow_loopback) for address in found)
