"""The authority of an http url (user, host and port), as it is compared and as it is asked for."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, quote

import idna

DEFAULT_PORTS = {"http": 80, "https": 443}

HOST_CHARACTERS = 253
"""Maximum number of characters of a host name; mapping a name takes time that grows with it."""

STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SIMPLE = re.compile(r"[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)+")
_HOST = re.compile(r"(?=.*[a-z0-9])[a-z0-9._-]+")


def authority_of(parts: SplitResult) -> str:
    """Return user, host and port of an http or https url, in ASCII; "" if it is another url.

    A default port is left out.

    Raises:
        ValueError: the port, the address or the name is malformed.
    """
    if parts.scheme not in DEFAULT_PORTS:
        return ""
    if len(parts.netloc) <= HOST_CHARACTERS and _SIMPLE.fullmatch(parts.netloc):
        return parts.netloc  # the common case, which has nothing to map
    host = ascii_host(parts.hostname or "")
    if not host:
        return ""
    port = "" if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    user, at, _ = parts.netloc.rpartition("@")
    return f"{escaped(user)}{at}{host}{port}"


def ascii_host(host: str) -> str:
    """Return the ASCII form of a lower-case host name or address; "" if it is malformed.

    A name is mapped by UTS 46 without its transitional rules, as browsers map it: `faß.de` and
    `fass.de` belong to two owners. IPv6 addresses get their brackets.

    Raises:
        ValueError: the address is malformed, or the name has no ASCII form.
    """
    if ":" in host:
        address = ipaddress.IPv6Address(host)
        return "" if address.scope_id else f"[{address}]"
    if len(host) > HOST_CHARACTERS:
        return ""
    if not host.isascii():
        mapped = idna.uts46_remap(host, std3_rules=False, transitional=False)
        labels = [_ascii_label(label) for label in mapped.split(".")]
        if not all(labels[:-1]) or len(max(labels, key=len)) > 63:
            return ""
        host = ".".join(labels)
    return host if _HOST.fullmatch(host) else ""


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    try:
        return idna.alabel(label).decode("ascii")
    except idna.InvalidCodepoint:
        # IDNA 2008 has no emoji and no symbols; registries and browsers have.
        return "xn--" + label.encode("punycode").decode("ascii")


def escaped(text: str) -> str:
    """Return text with upper-case escapes; what is neither plain nor reserved is escaped."""
    if "%" in text:
        text = STRAY_PERCENT.sub("%25", text)
        text = _ESCAPE.sub(lambda match: match[0].upper(), text)
    return quote(text, safe="%/:;=&?+$,!*'()@~|", errors="replace")
