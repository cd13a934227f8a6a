"""Normalize urls, and derive sample ids from them.

The normalized form is for comparing only. Fetching asks for what the metadata says; see
fetch/targets.py.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from namedmask.schema.urls import authority_of, escaped


def normalize_url(url: str) -> str:
    """Return the normalized form of an http, https or file url, in ASCII; "" for other texts.

    The scheme and the host become lower case, and the host gets its ASCII form by UTS 46. A default
    port and the fragment are dropped. Escapes become upper case, and special characters are
    escaped. The function is idempotent and never raises.
    """
    try:
        parts = urlsplit(url.strip())
        if parts.scheme == "file":
            return f"file://{escaped(parts.path)}" if parts.netloc in ("", "localhost") else ""
        authority = authority_of(parts)
    except ValueError:  # port above 65535, malformed IPv6 address, host without an ASCII form
        return ""
    query = f"?{escaped(parts.query)}" if parts.query else ""
    path = escaped(parts.path) or "/"
    return f"{parts.scheme}://{authority}{path}{query}" if authority else ""


def sample_id(url: str) -> str:
    """Return the sample id of a url: 20 hex digits, equal for all urls of one normalized form."""
    return url_digest(normalize_url(url) or url)


def url_digest(text: str) -> str:
    """Return the BLAKE2b hash of a normalized url, as 20 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
