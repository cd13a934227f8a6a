"""Normalize urls, and derive sample ids from them."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from urllib.parse import quote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?=.*[a-z0-9])[a-z0-9._-]+")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def normalize_url(url: str) -> str:
    """Return the normalized form of an http, https or file url, in ASCII; "" for other texts.

    The scheme and the host become lower case, and the host gets its ASCII form. A default port and
    the fragment are dropped. Escapes become upper case, and special characters are escaped.
    The function is idempotent and never raises.
    """
    try:
        parts = urlsplit(url.strip())
        if parts.scheme == "file":
            return f"file://{_escaped(parts.path)}" if parts.netloc in ("", "localhost") else ""
        host = _host(parts.hostname or "")
        if parts.scheme not in DEFAULT_PORTS or not host:
            return ""
        port = "" if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    except ValueError:  # port above 65535, malformed IPv6 address, host without an ASCII form
        return ""
    user, at, _ = parts.netloc.rpartition("@")
    query = f"?{_escaped(parts.query)}" if parts.query else ""
    return f"{parts.scheme}://{_escaped(user)}{at}{host}{port}{_escaped(parts.path) or '/'}{query}"


def _host(host: str) -> str:
    if ":" in host:
        address = ipaddress.IPv6Address(host)
        return "" if address.scope_id else f"[{address}]"
    if not host.isascii():
        host = host.encode("idna").decode("ascii").lower()
    return host if _HOST.fullmatch(host) else ""


def _escaped(text: str) -> str:
    if "%" in text:
        text = _STRAY_PERCENT.sub("%25", text)
        text = _ESCAPE.sub(lambda match: match[0].upper(), text)
    return quote(text, safe="%/:;=&?+$,!*'()@~|", errors="replace")


def sample_id(url: str) -> str:
    """Return the sample id of a url: 20 hex digits, equal for all urls of one normalized form."""
    return url_digest(normalize_url(url) or url)


def url_digest(text: str) -> str:
    """Return the BLAKE2b hash of a normalized url, as 20 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
