"""What a request asks for: the url as it was given, and where a redirect leads."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from namedmask.schema.urls import STRAY_PERCENT, authority_of

_ALLOWED = "%/?:@!$&'()*+,;="
"""Characters besides letters, digits and `-._~` that a path and a query may have (RFC 3986)."""

_PLAIN = re.compile(r"[A-Za-z0-9._~/?:@!$&'()*+,;=-]*")
_READY = re.compile(
    r"https?://[a-z0-9][a-z0-9.-]{,252}(?::(?:[1-9]\d{,3}|[1-5]\d{4}))?/" + _PLAIN.pattern
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_URL = re.compile(r"([a-z]+://[^/]*)(/[^?]*)(.*)")
_ZONE = re.compile(r"[^/?#]*//[^/?#]*\[[^/?#\]]*%")


def request_url(url: str) -> str:
    """Return the form of an http or https url that a request asks for; "" for other texts.

    The path and the query stay as given, with their escapes, letter case and dot segments. Only
    characters that RFC 3986 does not allow there are escaped. A byte that is no UTF-8, which a
    header may have, is a lone surrogate (`surrogateescape`) and is escaped as that byte. Scheme and
    host become lower case, the host gets its ASCII form, and the fragment is dropped.
    """
    if _READY.fullmatch(url):
        return url
    text = url.strip()
    try:
        parts = urlsplit(text)
        authority = "" if "\\" in parts.netloc else authority_of(parts)
    except ValueError:
        return ""
    mark = "?" if "?" in text.partition("#")[0] else ""  # an empty query is a query, too
    path = _escaped(parts.path) or "/"
    return f"{parts.scheme}://{authority}{path}{mark}{_escaped(parts.query)}" if authority else ""


def has_zone(url: str) -> bool:
    """Return whether the host of a url is an IPv6 address of one network card (`%eth0`)."""
    return _ZONE.match(url) is not None


def joined(base: str, place: str) -> str:
    """Return the url to which the answer from `base` redirects by the Location header `place`.

    `base` is a result of `request_url`. The result is as RFC 3986, section 5.2, resolves it. An
    absolute `place` is returned as it is, and may have any scheme.
    """
    place = place.strip().partition("#")[0]
    match = _URL.fullmatch(base)
    if not match or _ABSOLUTE.match(place):
        return place
    origin, path, _ = match.groups()
    if place.startswith("//"):
        return f"{origin.partition(':')[0]}:{place}"
    new_path, mark, new_query = place.partition("?")
    if not new_path:
        return f"{origin}{path}{mark}{new_query}" if mark else base
    if not new_path.startswith("/"):
        new_path = path[: path.rindex("/") + 1] + new_path
    return f"{origin}{_without_dots(new_path)}{mark}{new_query}"


def _without_dots(path: str) -> str:
    *folders, last = path.split("/")[1:]
    if last in (".", ".."):
        folders, last = [*folders, last], ""
    kept: list[str] = []
    for folder in folders:
        if folder == "..":
            kept = kept[:-1]
        elif folder != ".":
            kept.append(folder)
    return "/" + "/".join([*kept, last])


def _escaped(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    if "%" in text:
        text = STRAY_PERCENT.sub("%25", text)
    try:
        return quote(text, safe=_ALLOWED, errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return quote(text, safe=_ALLOWED, errors="replace")
