"""DNS lookups of image hosts, and the check that limits connections to public addresses.

An address is checked when its socket is created. The checked address is therefore always the
address of the connection, for any host name, notation or redirect. Each process caches the result
of a lookup for a limited time, including the result that a name does not exist. If a host has
several addresses, up to `ADDRESSES_TRIED` per address family are tried.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

from aiohttp.abc import AbstractResolver, ResolveResult

from namedmask.fetch.ttl_cache import TtlCache

MAX_THREADS = 1024
"""Maximum number of threads that wait for name servers.

If the name server of a host does not answer, the lookup occupies a thread for up to half a minute.
With fewer threads than urls in flight, a domain with many such hosts would block all other lookups.
"""

NAME_S = 300.0
"""Number of seconds for which the result of a lookup is cached, even if the name does not exist.

The operating system does not report how long an answer is valid."""

FAILED_S = 0.4
"""Number of seconds for which a failure of the name server is cached.

The rows of one batch share the failure, and a retry asks the name server again."""

ADDRESSES_TRIED = 3
"""Maximum number of addresses tried per host and address family.

Without this limit, a host with thousands of addresses would cause thousands of attempts."""

MANY_NAMES = 20
"""Minimum number of lookups for a warning about the name server.

The warning is logged if more than half of the lookups found no address."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

# The networks are listed here because the lists in `ipaddress` differ between Python releases.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # services of a cloud platform, at a public address
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",  # tunnels and documentation
    )
)  # fmt: skip

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_log = logging.getLogger(__name__)


@lru_cache(4096)
def is_allowed(address: str, allow_loopback: bool) -> bool:
    """Return whether a numeric address is public or, if `allow_loopback` is true, loopback."""
    if "%" in address:  # a zone id has no use on the web, and asyncio would resolve it as a name
        return False
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _unwrapped(ip)
    if ip.is_loopback:
        return allow_loopback
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    return not any(ip in network for network in _NOT_PUBLIC)


def _unwrapped(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that an IPv6 address embeds, or else the IPv6 address."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip


class BlockedAddressError(OSError):
    """Raised for a forbidden address; it is an OSError so that aiohttp tries the next address."""


def open_socket(allow_loopback: bool, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for one result of `getaddrinfo`, after checking the address.

    Raises:
        BlockedAddressError: connections to the address are forbidden.
    """
    family, kind, protocol, _, (host, *_) = address
    if not is_allowed(host, allow_loopback):
        raise BlockedAddressError(errno.EACCES, "the address is not on the public web")
    return socket.socket(family=family, type=kind, proto=protocol)


class Address(NamedTuple):
    """One address of a host, as `getaddrinfo` reports it."""

    family: int
    protocol: int
    host: str


resolved: TtlCache[tuple[Address, ...] | OSError] = TtlCache(100_000)
"""Cache of lookups by host name: the addresses, or the error of a lookup that found none."""


class Resolver(AbstractResolver):
    """Resolver that calls `getaddrinfo` in threads; concurrent lookups of one host share a call.

    Closing the resolver does not wait for its threads. With `warns` false, it never warns about the
    name server: behind a proxy there may be none.
    """

    def __init__(self, in_flight: int, warns: bool = True) -> None:
        self.warns = warns
        self.threads = ThreadPoolExecutor(min(2 * in_flight, MAX_THREADS), "namedmask-dns")
        self.pending: dict[str, asyncio.Future[tuple[Address, ...]]] = {}
        self.lookups = self.failures = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`.

        Raises:
            OSError: the host has no address, or the name server failed.
        """
        answer = resolved.get(host)
        if answer is None:
            answer = await self._look_up(host, family)
        if isinstance(answer, OSError):
            raise copy_of(answer)
        return [
            ResolveResult(
                hostname=host,
                host=address.host,
                port=port,
                family=address.family,
                proto=address.protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in answer
        ]

    async def _look_up(self, host: str, family: int) -> tuple[Address, ...]:
        if host not in self.pending:
            work = partial(addresses_of, host, family)
            self.pending[host] = asyncio.get_running_loop().run_in_executor(self.threads, work)
            self.pending[host].add_done_callback(partial(self._count, host))
        # The shield keeps the timeout of one row from canceling the lookup of the other rows.
        return await asyncio.shield(self.pending[host])

    def _count(self, host: str, done: asyncio.Future[tuple[Address, ...]]) -> None:
        del self.pending[host]
        if not done.cancelled():
            self.lookups += 1
            self.failures += done.exception() is not None

    async def close(self) -> None:
        """Cancel all pending lookups; warn if so many failed that the name server may be down."""
        for lookup in list(self.pending.values()):
            lookup.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)
        if self.warns and self.lookups >= MANY_NAMES and self.failures * 2 > self.lookups:
            _log.warning(
                "%d of %d names have no address, and on the live web most names have one. "
                "Check the name server of this machine (/etc/resolv.conf).",
                self.failures, self.lookups,
            )  # fmt: skip


def addresses_of(host: str, family: int = socket.AF_UNSPEC) -> tuple[Address, ...]:
    """Return at most `ADDRESSES_TRIED` addresses per family of a host, and cache the result.

    Raises:
        OSError: the host has no address, or the name server failed; see `is_failure`.
    """
    try:
        results = socket.getaddrinfo(host, 0, family, socket.SOCK_STREAM)
    except OSError as error:
        resolved.put(host, copy_of(error), FAILED_S if is_failure(error) else NAME_S)
        raise
    answer = _first_per_family(
        Address(kind, protocol, str(address[0])) for kind, _, protocol, _, address in results
    )
    resolved.put(host, answer, NAME_S)
    return answer


def copy_of(error: OSError) -> OSError:
    """Return a copy of an error without its traceback, which would keep stack frames in memory."""
    return type(error)(*error.args)


def is_failure(error: BaseException | None) -> bool:
    """Return whether a lookup failed, as opposed to finding that the host has no address."""
    none = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY)
    return isinstance(error, socket.gaierror) and error.errno not in none


def _first_per_family(addresses: Iterable[Address]) -> tuple[Address, ...]:
    chosen: list[Address] = []
    for address in addresses:
        if sum(other.family == address.family for other in chosen) < ADDRESSES_TRIED:
            chosen.append(address)
    return tuple(chosen)
