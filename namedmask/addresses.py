"""The addresses that may be connected to, and the names that are asked for them.

Safe by construction: the address is judged where the socket is made, so that the one checked is
the one connected to, whatever name, notation or redirect led there.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

DNS_THREADS = 32


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


class Resolver(AbstractResolver):
    """Names asked once a batch, failures remembered too, in threads that nobody waits for."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(DNS_THREADS, "namedmask-dns")
        self.answers: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of `host`; OSError when it has none."""
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
        """Forget what is still being asked."""
        for answer in self.answers.values():
            answer.cancel()
        self.threads.shutdown(wait=False, cancel_futures=True)
