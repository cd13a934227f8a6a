"""The addresses that may be connected to, and the names that are asked for them.

Safe by construction: the address is judged where the socket is made, so that the one checked is
the one connected to, whatever name, notation or redirect led there. Names are asked once in a
while for a whole process, those that do not exist too; several addresses of a name are tried.
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
"""That wait for name servers. A name whose own server is silent takes one for up to half a minute:
fewer than urls in flight, and a domain of many such names would keep all others waiting."""

NAME_S = 300.0
"""For so long an answer holds, also that a name does not exist: the system tells no lifetime."""

FAILED_S = 0.4
"""For so long a name server's failure holds: rows of one batch share it, a retry asks anew."""

ADDRESSES_TRIED = 3
"""Of each family of one name, so that a name with thousands makes no thousands of attempts."""

MANY_NAMES = 20
"""From so many names on, more than half without an address speak against the name server."""

_WORLD = ipaddress.IPv6Network("2000::/3")

# Listed here, and not asked of `ipaddress`, which knows other networks in each patch of Python.
_CLOSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # a cloud's own services, on a number of the public web
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",  # tunnels and examples
    )
)  # fmt: skip

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_log = logging.getLogger(__name__)


@lru_cache(4096)
def is_allowed(address: str, allow_loopback: bool) -> bool:
    """Return whether a numeric address is one of the public web, or this machine if allowed."""
    if "%" in address:  # a zone: of no use on the web, and asyncio would look it up as a name
        return False
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _inner(ip)
    if ip.is_loopback:
        return allow_loopback
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _WORLD:
        return False
    return not any(ip in network for network in _CLOSED)


def _inner(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip


class BlockedAddressError(OSError):
    """An address that must not be connected to; an OSError so that the next address is tried."""


def open_socket(allow_loopback: bool, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for one answer of getaddrinfo.

    Raises:
        BlockedAddressError: the address may not be connected to.
    """
    family, kind, protocol, _, (host, *_) = address
    if not is_allowed(host, allow_loopback):
        raise BlockedAddressError(errno.EACCES, "the address is not of the public web")
    return socket.socket(family=family, type=kind, proto=protocol)


class Address(NamedTuple):
    """One address of a name, as getaddrinfo tells it."""

    family: int
    protocol: int
    host: str


resolved: TtlCache[tuple[Address, ...] | OSError] = TtlCache(100_000)
"""The addresses of the names asked lately, or why there are none."""


class Resolver(AbstractResolver):
    """Names asked in threads that nobody waits for, each once while it is being asked."""

    def __init__(self, in_flight: int) -> None:
        self.threads = ThreadPoolExecutor(min(2 * in_flight, MAX_THREADS), "namedmask-dns")
        self.asking: dict[str, asyncio.Future[tuple[Address, ...]]] = {}
        self.asked = self.without = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; OSError when it has none."""
        found = resolved.get(host)
        if found is None:
            found = await self._ask(host, family)
        if isinstance(found, OSError):
            raise copy_of(found)
        return [
            ResolveResult(
                hostname=host,
                host=address.host,
                port=port,
                family=address.family,
                proto=address.protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in found
        ]

    async def _ask(self, host: str, family: int) -> tuple[Address, ...]:
        if host not in self.asking:
            work = partial(addresses_of, host, family)
            self.asking[host] = asyncio.get_running_loop().run_in_executor(self.threads, work)
            self.asking[host].add_done_callback(partial(self._note, host))
        # shielded: the deadline of one row must not take the answer from the others
        return await asyncio.shield(self.asking[host])

    def _note(self, host: str, done: asyncio.Future[tuple[Address, ...]]) -> None:
        del self.asking[host]
        if not done.cancelled():
            self.asked += 1
            self.without += done.exception() is not None

    async def close(self) -> None:
        """Forget what is still being asked; say so when it is the name server that fails."""
        for answer in list(self.asking.values()):
            answer.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)
        if self.asked >= MANY_NAMES and self.without * 2 > self.asked:
            _log.warning(
                "%d of %d names have no address; of a web that is alive most have one. "
                "Is the name server of this machine (/etc/resolv.conf) in order?",
                self.without, self.asked,
            )  # fmt: skip


def addresses_of(host: str, family: int = socket.AF_UNSPEC) -> tuple[Address, ...]:
    """Return a few addresses of a name, and remember them, or that there are none.

    Raises:
        OSError: the name has none, or the name server failed; see `is_failure`.
    """
    try:
        found = socket.getaddrinfo(host, 0, family, socket.SOCK_STREAM)
    except OSError as error:
        resolved.put(host, copy_of(error), FAILED_S if is_failure(error) else NAME_S)
        raise
    answer = _few(Address(kind, protocol, str(place[0])) for kind, _, protocol, _, place in found)
    resolved.put(host, answer, NAME_S)
    return answer


def copy_of(error: OSError) -> OSError:
    """Return the error without its traceback, which would keep what it passed through alive."""
    return type(error)(*error.args)


def is_failure(error: BaseException | None) -> bool:
    """Return whether a name could not be asked; not: it was, and there is no such name."""
    none = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY)
    return isinstance(error, socket.gaierror) and error.errno not in none


def _few(addresses: Iterable[Address]) -> tuple[Address, ...]:
    few: list[Address] = []
    for address in addresses:
        if sum(one.family == address.family for one in few) < ADDRESSES_TRIED:
            few.append(address)
    return tuple(few)
